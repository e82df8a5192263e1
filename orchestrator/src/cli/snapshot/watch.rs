//! Work on snapshots, shown by a bar and ended by signals.

use std::ops::ControlFlow;

use skerry_images::chain::live::Progress;
use skerry_snapshot::Watch;

/// What follows the work for a bar.
pub struct Watched<'a>(pub &'a Progress);

impl Watch for Watched<'_> {
    fn expect(&self, total: u64) {
        self.0.expect(total);
    }

    fn step(&self, bytes: u64) -> ControlFlow<()> {
        match self.0.step(bytes) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}
