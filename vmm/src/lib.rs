//! The microVM monitor: one process, one microVM.
//!
//! [`monitor`] is the thread that owns the VM's life; [`machine`] is one booted machine; [`vcpu`]
//! runs its CPUs; [`arch`] is everything that differs between processor architectures.

pub mod api;
pub mod arch;
pub mod args;
mod assembly;
mod board;
mod disks;
pub mod interrupts;
pub mod kernel;
pub mod logger;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod probe;
pub mod sandbox;
pub mod signals;
mod terminal;
mod validate;
pub mod vcpu;
mod workers;
