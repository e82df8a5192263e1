//! The sizes that follow from an image's header, and the arithmetic of offsets.

/// Cluster sizes that the format allows: 512 bytes to 2 MiB.
pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Subclusters of a cluster with extended L2 entries.
pub const SUBCLUSTERS: u32 = 32;
/// Tables are cached in slices of at most this many bytes.
const SLICE: u64 = 4096;

/// An image's fixed sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// log2 of a refcount's width in bits.
    pub refcount_order: u32,
    /// L2 entries have 16 bytes and describe 32 subclusters.
    pub extended: bool,
}

impl Geometry {
    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of what is allocated as a whole for the guest: a subcluster, or a cluster.
    pub fn unit(&self) -> u64 {
        if self.extended {
            self.cluster() / u64::from(SUBCLUSTERS)
        } else {
            self.cluster()
        }
    }

    /// Bytes of an L2 entry.
    pub fn l2_entry(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Entries of an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster() / self.l2_entry()
    }

    /// Guest bytes that one L2 table, so one L1 entry, covers.
    pub fn l2_coverage(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Bytes of a slice of an L2 table or a refblock.
    pub fn slice(&self) -> u64 {
        self.cluster().min(SLICE)
    }

    /// Entries of an L2 slice.
    pub fn slice_entries(&self) -> u64 {
        self.slice() / self.l2_entry()
    }

    /// Guest bytes that one L2 slice covers.
    pub fn slice_coverage(&self) -> u64 {
        self.slice_entries() << self.cluster_bits
    }

    /// Slices of an L2 table or refblock.
    pub fn slices(&self) -> u64 {
        self.cluster() / self.slice()
    }

    /// Bits of a refcount.
    pub fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// The largest refcount.
    pub fn refcount_max(&self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Refcounts of a refblock.
    pub fn refblock_entries(&self) -> u64 {
        (self.cluster() * 8) >> self.refcount_order
    }

    /// Refcounts of a slice of a refblock.
    pub fn refslice_entries(&self) -> u64 {
        (self.slice() * 8) >> self.refcount_order
    }

    /// L1 entries for a guest disk of `size` bytes.
    pub fn l1_entries(&self, size: u64) -> u64 {
        size.div_ceil(self.l2_coverage())
    }

    /// Clusters that `bytes` take.
    pub fn clusters(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster())
    }
}

/// Reads refcount `index` of a table of refcounts of `1 << order` bits. Widths below a byte are packed
/// from the least significant bits on; wider ones are big-endian.
pub fn refcount(bytes: &[u8], order: u32, index: u64) -> u64 {
    let i = index as usize;
    match order {
        0..=2 => {
            let (per, bits) = (8 >> order, 1 << order);
            let byte = bytes.get(i / per).copied().unwrap_or(0);
            u64::from(byte >> ((i % per) * bits)) & ((1 << bits) - 1)
        }
        _ => {
            let width = 1usize << (order - 3);
            let at = i * width;
            bytes
                .get(at..at + width)
                .unwrap_or_default()
                .iter()
                .fold(0, |n, b| n << 8 | u64::from(*b))
        }
    }
}

/// Stores refcount `index`.
pub fn set_refcount(bytes: &mut [u8], order: u32, index: u64, value: u64) {
    let i = index as usize;
    match order {
        0..=2 => {
            let (per, bits) = (8 >> order, 1 << order);
            if let Some(byte) = bytes.get_mut(i / per) {
                let shift = (i % per) * bits;
                let mask = ((1u16 << bits) - 1) as u8;
                *byte = *byte & !(mask << shift) | (value as u8 & mask) << shift;
            }
        }
        _ => {
            let width = 1usize << (order - 3);
            let at = i * width;
            if let Some(place) = bytes.get_mut(at..at + width) {
                place.copy_from_slice(&value.to_be_bytes()[8 - width..]);
            }
        }
    }
}

#[cfg(test)]
#[path = "geometry_test.rs"]
mod tests;
