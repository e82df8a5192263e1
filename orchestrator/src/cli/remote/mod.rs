//! Commands that ask a running host: what is declared, what is, what happens.

mod apply;
mod client;
mod console;
mod delete;
mod exec;
mod explain;
mod fields;
mod get;
mod host;
mod log;
mod manifest;
mod run;
mod target;
mod terminal;
mod token;
mod wait;

use std::process::ExitCode;

use clap::{Args, ValueEnum};

pub use apply::Apply;
pub use client::{Client, ClientError, JSON};
pub use console::Console;
pub use delete::Delete;
pub use exec::Exec;
pub use explain::Explain;
pub use get::{Describe, Events, Get, encoded};
pub use host::{Cordon, Drain, Uncordon};
pub use log::Logs;
pub use run::Run;
pub use target::Target;
pub use token::Token;

use super::failure::{Failure, Outcome, exit_code};
use crate::model::{KINDS, Kind, named};

/// Whom is asked, and for whom.
#[derive(Debug, Clone, Args)]
pub struct Remote {
    #[command(flatten)]
    target: Target,
    /// The tenant
    #[arg(
        short,
        long,
        value_name = "NAME",
        default_value = "default",
        global = true
    )]
    namespace: String,
}

/// How objects are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// A line each.
    Table,
    /// A longer line each.
    Wide,
    /// As JSON.
    Json,
    /// As YAML.
    Yaml,
    /// Kind and name alone.
    Name,
}

/// Does what a command asks of a host.
fn ask<F>(remote: &Remote, work: impl FnOnce(Client) -> F) -> ExitCode
where
    F: Future<Output = Outcome>,
{
    ask_at(&remote.target, work)
}

/// The same for what belongs to no tenant.
pub fn ask_at<F>(target: &Target, work: impl FnOnce(Client) -> F) -> ExitCode
where
    F: Future<Output = Outcome>,
{
    let client = match target.client() {
        Ok(client) => client,
        Err(e) => return exit_code(Err(e), 1),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(work(client)),
        Err(source) => Err(Failure::System {
            what: "start",
            path: "the runtime".into(),
            source,
        }),
    };
    exit_code(outcome, 1)
}

/// The kind that somebody calls so.
fn kind(name: &str) -> Result<&'static Kind, String> {
    named(name).ok_or_else(|| {
        let all: Vec<&str> = KINDS.iter().map(|kind| kind.plural).collect();
        format!(
            "there is no kind `{name}`: the kinds are {}",
            all.join(", ")
        )
    })
}

/// An object's kind and name: `vm/web`, or `vm` and `web`.
fn kind_and_name(words: &[String]) -> Result<(&'static Kind, Option<&str>), Failure> {
    let asked = |text: String| Failure::Asked(text);
    match words {
        [one] => match one.split_once('/') {
            Some((of, name)) => Ok((kind(of).map_err(asked)?, Some(name))),
            None => Ok((kind(one).map_err(asked)?, None)),
        },
        [of, name] => Ok((kind(of).map_err(asked)?, Some(name))),
        _ => Err(asked(
            "give a kind and a name, such as `vm web` or `vm/web`".into(),
        )),
    }
}
