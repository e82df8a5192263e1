//! What is done with whole images: copying, comparing, mapping, merging. Sans-I/O, like the engine:
//! the tools run these by blocking calls, the monitor could run them on its worker.

mod compare;
mod convert;
mod map;
mod measure;
mod merge;
mod rebase;
mod zeroes;

pub use compare::{Difference, compare};
pub use convert::{Convert, ConvertOptions, PIECE};
pub use map::{Extent, extent};
pub use measure::{Measure, measure};
pub use merge::merge;
pub use rebase::rebase;
pub use zeroes::is_zero;
