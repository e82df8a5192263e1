//! The agent: what is declared to run on this host runs, and nothing else does. It is driven by what is, not
//! by what happened: whatever it missed, it sees when it looks again.

mod agent;
mod backoff;
mod books;
mod counts;
mod events;
mod explain;
mod health;
mod inventory;
mod owners;
mod place;
mod probe;
mod request;
mod space;
mod usage;
mod wanted;
mod workload;

pub use agent::{Agent, AgentError, Runtimes};
pub use counts::SiteCounts;
pub use owners::Owners;
pub use place::Placer;
pub(crate) use probe::{http, on_a_line, tcp};
pub use usage::count;
