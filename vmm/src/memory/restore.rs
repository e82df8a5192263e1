//! RAM made of a snapshot's memory files.

use std::io;
use std::sync::Arc;

use skerry_snapshot::{Chain, MemoryFile, Range, SnapshotError, coalesce};
use skerry_vmm_api::config::MemoryConfig;

use super::{FaultServer, MemoryError, Ram, Reservation};

/// Ranges of diffs that are mapped; a process may have some 65,000 mappings, and what is more is copied.
const MAX_MAPPED: usize = 4096;

/// RAM made of a snapshot.
pub struct Restored {
    /// The memory.
    pub ram: Ram,
    /// Who fetches what is missing of it.
    pub faults: Option<FaultServer>,
}

impl Restored {
    /// Fetches ranges, before the guest asks for them.
    pub fn fetch(&self, ranges: &[Range]) -> io::Result<()> {
        match &self.faults {
            Some(faults) => faults.fetch(ranges),
            None if self.ram.is_private() => self.ram.populate(ranges),
            None => Ok(()),
        }
    }
}

/// Fetches it page by page when it is touched. It can be shared, and be of huge pages.
pub fn fetched(
    config: &MemoryConfig,
    place: &Arc<Reservation>,
    chain: &Chain,
) -> Result<Restored, RestoreError> {
    const SMALL: u64 = 4096;
    const HUGE: u64 = 2 << 20;
    let page = match config.hugepages {
        true => config.hugepage_size.unwrap_or(HUGE),
        false => SMALL,
    };
    let ram = super::create_untouched(config, place)?;
    let faults = FaultServer::start(&ram, chain, page).map_err(|source| MemoryError::System {
        what: "fetch pages (userfaultfd) of",
        source,
    })?;
    Ok(Restored {
        ram,
        faults: Some(faults),
    })
}

/// Reads all of it. Its checksums have been compared.
pub fn copied(
    config: &MemoryConfig,
    place: &Arc<Reservation>,
    chain: &Chain,
) -> Result<Restored, RestoreError> {
    let ram = super::create(config, place)?;
    for layer in &chain.memory {
        ram.read_from(layer.file(), layer.ranges())
            .map_err(failed("read", layer))?;
    }
    Ok(Restored { ram, faults: None })
}

/// Maps it: pages come from the page cache when they are touched, and are copied when they are written.
pub fn mapped(
    config: &MemoryConfig,
    place: &Arc<Reservation>,
    chain: &Chain,
) -> Result<Restored, RestoreError> {
    let Some((base, diffs)) = chain.memory.split_first() else {
        return Err(MemoryError::System {
            what: "map",
            source: io::ErrorKind::NotFound.into(),
        }
        .into());
    };
    let file = Arc::new(base.file().try_clone().map_err(failed("open", base))?);
    let guest = super::map_at(place, config, &file, libc::MAP_PRIVATE)?;
    let ranges = chain.memory.iter().flat_map(MemoryFile::ranges).copied();
    let ram = Ram::private(guest, coalesce(ranges.collect()));
    let mut left = MAX_MAPPED;
    for diff in diffs {
        let (map, copy) = split(diff.ranges(), left);
        left -= map.len();
        ram.map_from(diff.file(), &map)
            .map_err(failed("map", diff))?;
        ram.read_from(diff.file(), &copy)
            .map_err(failed("read", diff))?;
    }
    Ok(Restored { ram, faults: None })
}

/// The longest `most` ranges, and the others.
fn split(ranges: &[Range], most: usize) -> (Vec<Range>, Vec<Range>) {
    if ranges.len() <= most {
        return (ranges.to_vec(), Vec::new());
    }
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable_by_key(|range| std::cmp::Reverse(range.len));
    let copy = sorted.split_off(most);
    (sorted, copy)
}

fn failed(what: &'static str, file: &MemoryFile) -> impl Fn(io::Error) -> RestoreError {
    let path = file.path().to_owned();
    move |source| {
        SnapshotError::Io {
            what,
            path: path.clone(),
            source,
        }
        .into()
    }
}

/// Why RAM could not be made of a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot is not usable.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// There is no such memory here.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}
