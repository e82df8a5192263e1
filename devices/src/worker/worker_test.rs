//! Tests of workers: sources made of counters, real threads, real rings.
