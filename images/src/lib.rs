//! Disks and images: the qcow2 engine, layer chains, and the drivers under them.
//!
//! The engine never does I/O itself. Its work is written as tasks that put operations on a
//! [`io::Port`]; whoever drives the port carries them out: the monitor's worker by io_uring, the
//! tools by blocking calls, the tests by a simulated disk that may reorder and lose them.

pub mod boot;
pub mod chain;
pub mod io;
pub mod ops;
pub mod qcow2;
pub mod store;

mod dirty;
mod error;
pub use dirty::DirtyMap;
pub use error::{Error, Result};
