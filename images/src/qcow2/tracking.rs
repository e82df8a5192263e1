//! Bitmaps while the image is written: none of them may lie to whoever reads it next.
//!
//! Before the first change, each bitmap that tracks is marked *in use* in the file, durably. Whoever
//! tracks has taken them by [`Image::load_bitmaps`], and gives them back by
//! [`Image::store_bitmaps`]. If nobody does, or power is lost, they stay marked: their content means
//! nothing then, and they can only be removed.

use super::Image;
use super::header::autoclear;
use super::state::{Freed, Space};
use super::tracker::Tracker;
use crate::io::Port;
use crate::{Error, Result};

/// The most bytes of memory for the trackers of one image.
pub const MAX_TRACKED: u64 = 128 << 20;

impl Image {
    /// Takes the bitmaps that track, for a disk that is about to run: they are marked as in use.
    /// Their memory is at most [`MAX_TRACKED`] bytes in all, or this fails. What cannot be used (in
    /// use since a crash, or of an unknown kind) is not among them.
    pub async fn load_bitmaps(&self, port: &Port) -> Result<Vec<Tracker>> {
        let _lock = self.hold(Space::Bitmaps, 0, 0, true).await;
        self.take_bitmaps(port, false).await
    }

    /// Writes trackers back to the bitmaps that they came from, which are consistent and track again
    /// afterwards. Those that were removed meanwhile are passed over.
    pub async fn store_bitmaps(&self, port: &Port, trackers: &[Tracker]) -> Result<()> {
        if trackers.is_empty() {
            return Ok(());
        }
        let _lock = self.hold(Space::Bitmaps, 0, 0, true).await;
        // What the bitmaps tell of must be there.
        self.flush(port).await?;
        let mut list = self.directory(port).await?;
        let (mut new, mut freed) = (Vec::new(), Vec::new());
        let written = async {
            for tracker in trackers {
                if tracker.map().size() != self.size() {
                    return Err(self.invalid("a bitmap has not followed the disk's size"));
                }
                let Some(bitmap) = list.iter_mut().find(|b| b.name == tracker.name) else {
                    continue;
                };
                freed.extend(self.bitmap_clusters(port, bitmap).await?);
                self.write_bitmap(port, bitmap, tracker, &mut new).await?;
                bitmap.set_in_use(false);
            }
            Ok(())
        };
        if let Err(e) = written.await {
            for Freed { first, count } in new {
                self.give_back(port, first, count).await;
            }
            return Err(e);
        }
        self.switch_directory(port, &list, freed).await
    }

    /// Reads bitmaps and marks those as in use that a change would turn into lies: those that track,
    /// or (`all`) all of them. The caller holds [`Space::Bitmaps`].
    async fn take_bitmaps(&self, port: &Port, all: bool) -> Result<Vec<Tracker>> {
        let mut list = self.directory(port).await?;
        let size = self.size();
        let mut trackers = Vec::new();
        let mut memory = 0;
        for bitmap in list.iter().filter(|b| b.usable() && (all || b.auto())) {
            memory += bitmap.memory(size);
            if memory > MAX_TRACKED {
                return Err(Error::Unsupported {
                    path: self.path().to_owned(),
                    what: format!(
                        "its bitmaps take more than {} MiB of memory: remove or disable one",
                        MAX_TRACKED >> 20
                    ),
                });
            }
            trackers.push(self.read_bitmap(port, bitmap).await?);
        }
        let mut changed = false;
        for bitmap in &mut list {
            if (all || bitmap.auto()) && !bitmap.in_use() {
                bitmap.set_in_use(true);
                changed = true;
            }
        }
        if changed {
            self.switch_directory(port, &list, Vec::new()).await?;
        }
        Ok(trackers)
    }

    /// To be awaited before the guest's disk changes: bitmaps that nobody took must not claim to know
    /// of it.
    pub(super) async fn guard_bitmaps(&self, port: &Port) -> Result<()> {
        if !self.state().unguarded {
            return Ok(());
        }
        let _lock = self.hold(Space::Bitmaps, 0, 0, true).await;
        if !self.state().unguarded {
            return Ok(());
        }
        let marked = async {
            let mut list = self.directory(port).await?;
            let tracking = |b: &&mut super::directory::Bitmap| b.auto() && !b.in_use();
            for bitmap in list.iter_mut().filter(tracking) {
                log::warn!(
                    "{}: nobody tracks changes for the bitmap {:?}: it cannot be used any more",
                    self.path().display(),
                    String::from_utf8_lossy(&bitmap.name)
                );
                bitmap.set_in_use(true);
            }
            self.switch_directory(port, &list, Vec::new()).await
        };
        if let Err(e) = marked.await {
            log::warn!("{}: its bitmaps are given up: {e}", self.path().display());
            let _header = self.hold(Space::Header, 0, 0, true).await;
            self.change_header(port, |h| h.autoclear &= !autoclear::BITMAPS)
                .await?;
            self.state().unguarded = false;
        }
        Ok(())
    }

    /// Takes all bitmaps before the disk's size changes, since their tables must fit it.
    pub(super) async fn bitmaps_rest(&self, port: &Port) -> Result<Vec<Tracker>> {
        let _lock = self.hold(Space::Bitmaps, 0, 0, true).await;
        self.take_bitmaps(port, true).await
    }

    /// Gives back what [`bitmaps_rest`](Self::bitmaps_rest) took. With `replaced`, those that track
    /// note that all of the disk changed.
    pub(super) async fn bitmaps_wake(
        &self,
        port: &Port,
        mut trackers: Vec<Tracker>,
        replaced: bool,
    ) -> Result<()> {
        let size = self.size();
        if size == 0 {
            // An empty bitmap cannot be expressed; they stay in use.
            return Ok(());
        }
        for tracker in &mut trackers {
            tracker.resize(size);
            if replaced && tracker.auto {
                tracker.mark(0, size);
            }
        }
        self.store_bitmaps(port, &trackers).await
    }
}
