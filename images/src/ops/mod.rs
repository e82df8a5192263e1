//! What is done with whole images: copying, comparing, mapping, merging. Sans-I/O, like the engine:
//! the tools run these by blocking calls, the monitor could run them on its worker.

mod compare;
mod convert;
mod map;
mod zeroes;

pub use compare::{Difference, compare};
pub use convert::{Convert, ConvertOptions, PIECE};
pub use map::{Extent, extent};
pub use zeroes::is_zero;
