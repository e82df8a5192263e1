//! Seeing what happens: what the host and its workloads use, what the control plane does, and lines of log.
//!
//! | path | what |
//! |---|---|
//! | `/metrics` | all of it as Prometheus's text, format 0.0.4 |
//! | `/usage` | what host and workloads use, as JSON: a [`Sample`] |
//!
//! Whoever may ask for one tenant alone sees that one's workloads alone. However many ask, the host is looked at
//! once a second at most.

mod counts;
mod families;
mod host;
pub mod logs;
mod sample;
mod serve;
mod store;
mod text;

pub use counts::ApiCounts;
pub use host::HostUsage;
pub use sample::{Sample, Sampler, WorkloadUsage};
pub use serve::Telemetry;
pub use store::{Counted, StoreCounts};
