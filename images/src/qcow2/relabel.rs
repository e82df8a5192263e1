//! What an image says of the layer below it, and an image made empty again.

use super::Image;
use super::state::Space;
use crate::Result;
use crate::chain::Layer;
use crate::io::{Buffer, Port};

impl Image {
    /// Writes the name and format of the layer below into the header: for `info` and for other
    /// tools, since nothing here opens it. A power cut leaves the old name or the new one.
    pub async fn set_backing(&self, port: &Port, below: Option<&Layer>) -> Result<()> {
        let name = below.map(|layer| {
            let path = layer.file().path();
            // A name that is relative is relative to the image that says it.
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            (path.display().to_string(), layer.format().name().to_owned())
        });
        self.set_backing_name(port, name).await
    }

    /// As [`set_backing`](Self::set_backing), with the name and the format as they are to be
    /// written.
    pub async fn set_backing_name(
        &self,
        port: &Port,
        name: Option<(String, String)>,
    ) -> Result<()> {
        let _lock = self.hold(Space::Header, 0, 0, true).await;
        self.change_header(port, |header| {
            (header.backing, header.backing_format) = name.unzip();
        })
        .await
    }

    /// Makes the image empty: everything shows the layer below. Nothing else may be under way. A
    /// power cut leaves it full or empty. What it had is not given back: the file is about to be
    /// deleted, or to be used for little.
    pub async fn empty(&self, port: &Port) -> Result<()> {
        let g = self.geometry();
        self.flush(port).await?;
        let entries = self.state().l1.len();
        let clusters = g.clusters(entries as u64 * 8).max(1);
        let first = self.allocate_run(port, clusters).await?;
        let table = Buffer::new((clusters << g.cluster_bits) as usize);
        let offset = first << g.cluster_bits;
        port.write(self.file(), offset, table.span()).await?;
        // Counts of the new table before the header names it.
        self.commit(port, true, true).await?;
        let _header = self.hold(Space::Header, 0, 0, true).await;
        self.change_header(port, |header| header.l1_offset = offset)
            .await?;
        let mut state = self.state();
        state.l1.fill(0);
        state.l1_dirty.clear();
        state.l2.clear();
        Ok(())
    }
}
