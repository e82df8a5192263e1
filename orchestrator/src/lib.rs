//! `skerry`: what is declared to run on hosts runs there: the model, the store that keeps it, the API
//! that serves it, the agent that makes it so, and the commands.

pub mod api;
pub mod cli;
pub mod firstboot;
pub mod metadata;
pub mod model;
pub mod network;
pub mod runtime;
pub mod schedule;
pub mod site;
pub mod store;
pub mod telemetry;
pub mod ui;
pub mod up;
pub mod volumes;
