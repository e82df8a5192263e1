//! A command that runs elsewhere, in a container or in a VM: what is asked, and how its streams go over one
//! connection. A container's shim and the agent in a guest say the same, so whoever is between them and the
//! user passes bytes on and need not understand them.
//!
//! A connection begins with a [`Request`] in a frame, which a [`Reply`] answers. After it, input and sizes go
//! one way, output, errors and at last the exit code the other; [`wire`] has the frames. Who closes the
//! connection before the command has ended ends the command.

mod session;
mod spec;
pub mod wire;

pub use session::{Inlet, Streams, serve};
pub use spec::{ExecSpec, Reply, Request, TerminalSize};
pub use wire::Kind;

/// The protocol's name, as HTTP upgrades to it.
pub const PROTOCOL: &str = "skerry.exec.v1";
/// Where the agent in a guest listens on its vsock: a port that only the guest's root may take.
pub const GUEST_PORT: u32 = 997;
