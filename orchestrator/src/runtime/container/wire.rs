//! What is said on a shim's socket, in frames.
//!
//! A connection begins with one request. Its answer ends it, but for a command that is run: then
//! input, output and sizes follow until the command's end, as wherever commands are run.

use serde::{Deserialize, Serialize};
pub use skerry_exec::Kind;
pub use skerry_exec::wire::{DATA, receive, receive_json, send, send_json};

use super::spec::{ExecSpec, State};

/// The socket's name in the container's directory.
pub const SOCKET: &str = "shim.sock";

/// What is asked of a shim.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What the container is doing.
    State,
    /// Sends a signal to its first process.
    Kill {
        /// The signal's number.
        signal: i32,
    },
    /// Asks it to end, and kills it if it has not after some time. Answered when it has ended.
    Stop {
        /// How long it has, in milliseconds.
        grace_ms: u64,
    },
    /// Waits for its end. Answered then, or with what it is doing after some time.
    Wait {
        /// How long to wait, in milliseconds.
        limit_ms: u64,
    },
    /// Runs a command in it.
    Exec(ExecSpec),
    /// Kills it and ends. Answered when nothing is left.
    Delete,
}

/// What a shim answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// It is done.
    Done,
    /// What the container is doing.
    State(State),
    /// It is not done, for this reason.
    Refused(String),
}

#[cfg(test)]
#[path = "wire_test.rs"]
mod tests;
