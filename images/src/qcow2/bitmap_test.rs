//! Tests of the bitmap directory's form.
