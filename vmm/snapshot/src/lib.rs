//! What a VM's snapshot consists of, on disk and on its way.
//!
//! A snapshot is a directory. `state` has a [`Header`] that can be read alone, and records tagged
//! (kind, version): the state of CPUs, devices and clocks, as the monitor wrote them. `memory` is
//! guest RAM, its regions one behind the other, as a sparse file: what is at an offset of RAM is at
//! that offset of the file. A *full* snapshot has all of it, and what no range lists is zeroes; a
//! *diff* snapshot has the ranges that were written since its parent.
//!
//! The directory gets its name when it is complete: until then it is called `NAME.partial`.
//!
//! On its way elsewhere it is a stream ([`StreamWriter`], [`Incoming`]), which becomes a directory there.
//!
//! Nothing here knows KVM or a device: the monitor fills records, and the tools look at the rest.

mod chain;
mod directory;
mod error;
#[cfg(test)]
mod example;
mod header;
mod memory;
mod merge;
mod open;
mod state;
mod strays;
mod stream;
mod sums;
mod watch;
mod working_set;

pub use chain::{Chain, MAX_DEPTH};
pub use directory::{Directory, Partial};
pub use error::SnapshotError;
pub use header::{
    CpuFacts, CpuidLeaf, DeviceFacts, Header, MachineFacts, MemoryFacts, MemoryKind, Parent,
    Record, Sum,
};
pub use memory::{MemoryFile, Range, coalesce};
pub use merge::merge;
pub use state::{FORMAT, OLDEST_FORMAT, Records, State};
pub use stream::{Answer, Arriving, Begin, Incoming, KeptSnapshot, StreamWriter};
pub use sums::CHUNK;
pub use watch::Watch;
pub use working_set::WorkingSet;
