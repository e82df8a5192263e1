//! Emptying an image whose content is somewhere else by now.

use super::Image;
use super::state::Space;
use crate::Result;
use crate::io::Port;

impl Image {
    /// Makes everything show the layer below, and gives the space back. Unlike
    /// [`empty`](Self::empty), which ends with an image that is about to be deleted, this leaves no
    /// leaks. A power cut leaves any part of it done.
    pub async fn vacate(&self, port: &Port) -> Result<()> {
        let g = self.geometry();
        let end = self.size().next_multiple_of(g.cluster());
        let mut at = 0;
        while at < end {
            let index = (at / g.l2_coverage()) as usize;
            if self.state().l2_table(index) == 0 {
                at = (at / g.l2_coverage() + 1) * g.l2_coverage();
                continue;
            }
            let stop = end.min((at / g.slice_coverage() + 1) * g.slice_coverage());
            let (first, last) = (at >> g.cluster_bits, (stop - 1) >> g.cluster_bits);
            let lock = self.hold(Space::Cluster, first, last, true).await;
            self.own_table(port, index).await?;
            self.with(port, |s| s.clear(at, stop - at, false, true))
                .await?;
            drop(lock);
            at = stop;
        }
        self.flush(port).await
    }
}
