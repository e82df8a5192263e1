//! Long work tells how far it is, and hears whether it is still wanted.

use std::ops::ControlFlow;

use crate::SnapshotError;

/// Follows long work.
pub trait Watch {
    /// There are so many bytes to read and write.
    fn expect(&self, total: u64);

    /// So many more are done. What is answered ends the work early.
    fn step(&self, bytes: u64) -> ControlFlow<()>;
}

/// Nobody looks, and the work goes on to its end.
impl Watch for () {
    fn expect(&self, _total: u64) {}

    fn step(&self, _bytes: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// So many more bytes are done.
pub(crate) fn step(watch: &dyn Watch, bytes: u64) -> Result<(), SnapshotError> {
    match watch.step(bytes) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(SnapshotError::Cancelled),
    }
}
