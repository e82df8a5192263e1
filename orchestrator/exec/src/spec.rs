//! What is asked of whoever runs a command, and what they answer.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecSpec {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// Environment variables, which override those that are there.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The working directory, instead of the usual one.
    #[serde(default)]
    pub working_dir: Option<PathBuf>,
    /// Who it runs as, instead of the usual user.
    #[serde(default)]
    pub user: Option<String>,
    /// Whether it has a terminal.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
}

/// How large a terminal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Its lines.
    pub rows: u16,
    /// Its columns.
    pub columns: u16,
}

/// What a connection begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Runs a command.
    Exec(ExecSpec),
}

/// What that is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// It runs.
    Done,
    /// It does not, for this reason.
    Refused(String),
}
