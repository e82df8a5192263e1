//! The seam between image logic and whoever does its I/O.
//!
//! A task asks its [`Port`] for reads, writes and flushes of [`ImageFile`]s and awaits them. The
//! port only keeps the list: a driver takes operations from it, carries them out in any order, and
//! reports their results.

mod blocking;
mod buffer;
mod file;
mod port;
mod quick;
pub mod sim;
mod tasks;
pub mod uring;

pub use blocking::{block_on, block_on_with, carry_out};
pub use buffer::{Buffer, Span};
pub use file::{FileOptions, ImageFile};
pub use port::{Kind, Op, OpFuture, OpId, Port, join};
pub use quick::Quick;
pub use tasks::{Bell, Tasks};
