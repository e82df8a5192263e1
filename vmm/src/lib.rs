//! The microVM monitor: one process, one microVM.
//!
//! [`monitor`] is the thread that owns the VM's life; [`machine`] is one booted machine; [`vcpu`]
//! runs its CPUs; [`arch`] is everything that differs between processor architectures.

pub mod api;
pub mod arch;
pub mod args;
mod assembly;
mod attach;
mod board;
mod disks;
mod exits;
pub mod interrupts;
pub mod kernel;
pub mod logger;
pub mod machine;
pub mod memory;
mod migration;
pub mod monitor;
pub mod probe;
pub mod sandbox;
pub mod shell;
pub mod signals;
mod slots;
mod snapshot;
mod start;
mod terminal;
mod validate;
pub mod vcpu;
mod workers;
