//! What `skerry-vmm` can be asked, by flags or over its socket: configuration, requests, answers,
//! and a client.
//!
//! The JSON is Cloud Hypervisor's v1 (names, defaults, status codes), so that its clients work.

#[cfg(feature = "client")]
pub mod client;
pub mod config;
pub mod endpoints;
mod inert;
pub mod options;
pub mod requests;
pub mod snapshots;
pub mod workers;

pub use config::VmConfig;
