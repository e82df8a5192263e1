//! What is wrong with a manifest, field by field.

use std::fmt;

/// A field and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Its path: `spec.disks[0].base`.
    pub field: String,
    /// What is wrong, and what it should be.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// All that is found wrong.
#[derive(Debug, Default)]
pub struct Fields {
    /// In the order in which it was found.
    pub errors: Vec<FieldError>,
}

impl Fields {
    /// Says what is wrong with a field.
    pub fn wrong(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError {
            field: field.into(),
            message: message.into(),
        });
    }

    /// Says so unless it is well.
    pub fn must(&mut self, good: bool, field: &str, message: &str) {
        if !good {
            self.wrong(field, message);
        }
    }
}
