//! A persistent bitmap in memory.

use std::sync::Arc;

use crate::dirty::DirtyMap;

/// Marks what changes on a disk, under a name. Clones mark the same map.
#[derive(Debug, Clone)]
pub struct Tracker {
    pub(super) name: Vec<u8>,
    /// It goes on tracking when the image is opened the next time.
    pub(super) auto: bool,
    map: Arc<DirtyMap>,
}

impl Tracker {
    /// A clean tracker for a disk of `size` bytes, with granules of `1 << granularity_bits`.
    pub fn new(name: Vec<u8>, granularity_bits: u32, auto: bool, size: u64) -> Tracker {
        Tracker {
            name,
            auto,
            map: Arc::new(DirtyMap::new(size, granularity_bits)),
        }
    }

    /// Bytes that a bitmap for a disk of `size` bytes has.
    pub(super) fn bytes_for(size: u64, granularity_bits: u32) -> u64 {
        size.div_ceil(1 << granularity_bits).div_ceil(8)
    }

    /// The bitmap's name.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    /// What it marked.
    pub fn map(&self) -> &Arc<DirtyMap> {
        &self.map
    }

    /// Notes that the guest changed a range. What lies beyond the disk's end is ignored.
    pub fn mark(&self, offset: u64, len: u64) {
        self.map.mark(offset, len);
    }

    /// The disk has another size. What is new has not changed.
    pub fn resize(&mut self, size: u64) {
        self.map = Arc::new(self.map.resized(size));
    }
}
