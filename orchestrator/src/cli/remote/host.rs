//! `skerry cordon`, `uncordon`, `drain`: what a host takes.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::{Failure, Remote, ask, kind};

/// Let a host take nothing new
#[derive(Debug, Args)]
pub struct Cordon {
    #[command(flatten)]
    remote: Remote,
    /// The host
    host: String,
}

/// Let a host take workloads again
#[derive(Debug, Args)]
pub struct Uncordon {
    #[command(flatten)]
    remote: Remote,
    /// The host
    host: String,
}

/// Let a host take nothing new, and end what runs there
#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    remote: Remote,
    /// The host
    host: String,
}

fn change(remote: &Remote, host: String, spec: Value, done: &'static str) -> ExitCode {
    ask(remote, async move |client| {
        let kind = kind("hosts").map_err(Failure::Asked)?;
        let path = Client::path(kind, "", Some(&host));
        client.merge(&path, &json!({"spec": spec})).await?;
        println!("host/{host} {done}");
        Ok(0)
    })
}

impl Cordon {
    /// Does it.
    pub fn run(self) -> ExitCode {
        change(
            &self.remote,
            self.host,
            json!({"unschedulable": true}),
            "cordoned",
        )
    }
}

impl Uncordon {
    /// Does it.
    pub fn run(self) -> ExitCode {
        let spec = json!({"unschedulable": false, "drain": false});
        change(&self.remote, self.host, spec, "uncordoned")
    }
}

impl Drain {
    /// Does it.
    pub fn run(self) -> ExitCode {
        let spec = json!({"unschedulable": true, "drain": true});
        change(&self.remote, self.host, spec, "is being drained")
    }
}
