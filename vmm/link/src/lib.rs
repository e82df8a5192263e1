//! Connections over which VMs go: Unix sockets, and TCP under mutual TLS.
//!
//! Migrations and streamed snapshots say what goes over a [`Connection`]; here is how it comes about, what
//! secures it, and how it ends. Nobody waits for ever: every read and write ends within [`SILENCE`], sooner
//! if its user allows less, and at once when somebody else says so ([`Hangup`]).

mod address;
mod connection;
mod error;
mod socket;
mod tls;

use std::time::Duration;

pub use address::Address;
pub use connection::{Connection, Listener};
pub use error::LinkError;
pub use socket::Hangup;
pub use tls::{Identity, security};

/// The other side answers within this, or is taken for dead.
pub const SILENCE: Duration = Duration::from_secs(30);

/// What the slowest link carries that is good enough for a guest that stands still, in bytes a second.
const SLOWEST: u64 = 8 << 20;

/// How long a guest stands still for so many bytes before the other side is given up.
pub fn patience(bytes: u64) -> Duration {
    SILENCE + Duration::from_secs(bytes / SLOWEST)
}
