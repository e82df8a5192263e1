//! The qcow2 engine (the format's specification: QEMU's docs/interop/qcow2.rst).
//!
//! [`Image`] is the open image. Looking something up and deciding what to write is synchronous
//! (`state`); getting what that lacks, and carrying it out, is done by tasks on a
//! [`Port`](crate::io::Port).

mod bitmap;
mod cache;
pub mod check;
mod commit;
mod compress;
mod counts;
mod create;
mod directory;
mod entry;
mod geometry;
mod header;
mod image;
mod packed;
mod rebuild;
mod relabel;
mod report;
mod resize;
mod rewrite;
mod snapshot;
mod space;
mod state;
mod status;
mod ticket;
mod tracker;
mod tracking;
mod tree;
mod vacate;
mod write;

pub use bitmap::BitmapInfo;
pub use compress::pack;
pub use create::{CreateOptions, Preallocation, create};
pub use entry::{Place, Run};
pub use geometry::Geometry;
pub use header::{BitmapsExtension, Compression, Header, autoclear, compatible, incompatible};
pub use image::{DEFAULT_CACHE, Guard, Image, OpenOptions, read_header};
pub use packed::PackedCluster;
pub use snapshot::Snapshot;
pub use status::Status;
pub use ticket::Ticket;
pub use tracker::Tracker;
pub use tracking::MAX_TRACKED;
