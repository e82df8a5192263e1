//! What can go wrong with a store.

use super::{LeaseId, MAX_BATCH, MAX_KEY, MAX_VALUE, Revision};

/// Why a store refused, or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A key was not as it was expected: nothing of the batch was done.
    #[error("`{key}` was changed meanwhile: look at it again, then decide")]
    Conflict {
        /// The key.
        key: String,
        /// The commit that changed it last; none if it does not exist.
        found: Option<Revision>,
    },
    /// Changes that far back are not known any more.
    #[error("changes up to revision {} are not kept any more: list again", oldest.0)]
    Compacted {
        /// The last one that is forgotten.
        oldest: Revision,
    },
    /// A watch from a revision that does not exist yet.
    #[error("revision {} does not exist yet: list again", .0.0)]
    Future(Revision),
    /// The lease ended, or never was.
    #[error("lease {} is over: get a new one", .0.0)]
    Lease(LeaseId),
    /// A key that is too long, or empty.
    #[error("a key has {0} bytes: it must have 1 to {MAX_KEY}")]
    Key(usize),
    /// A value that is too long.
    #[error(
        "`{key}` would have {bytes} bytes: the limit is {MAX_VALUE}; keep large things in an image or volume"
    )]
    Value {
        /// Its key.
        key: String,
        /// Bytes.
        bytes: usize,
    },
    /// Too much at once, or nothing.
    #[error("a batch of {0} changes: it must have 1 to {MAX_BATCH}")]
    Batch(usize),
    /// A batch says two things of a key.
    #[error("a batch changes `{0}` twice")]
    Twice(String),
    /// The engine's files are not as it writes them.
    #[error("the store {path} is damaged: {what}; restore it from a copy")]
    Damaged {
        /// Where.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// The engine failed: nothing that was not answered before is certain.
    #[error("the store cannot {what}")]
    Engine {
        /// What it should do.
        what: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no space: nothing was changed.
    #[error(
        "the disk that {0} is on is full, so nothing was changed: make space there, or delete objects; what runs goes on"
    )]
    Full(String),
    /// What was asked for did not become durable, and was not done.
    #[error("nothing was changed: {0}")]
    Unwritten(String),
    /// It may have become durable or not.
    #[error("whether anything was changed is not known, look again: {0}")]
    Unsure(String),
    /// It ended.
    #[error("the store is closed")]
    Closed,
}

/// An engine's failure.
pub(super) fn engine<E>(what: &'static str) -> impl FnOnce(E) -> StoreError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| StoreError::Engine {
        what,
        source: source.into(),
    }
}
