//! `skerry logs`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::client::{Client, JSON};
use super::{Failure, Remote, ask, kind_and_name};

/// Show what a workload says: a VM on its serial port, a container on its standard output
#[derive(Debug, Args)]
pub struct Logs {
    #[command(flatten)]
    remote: Remote,
    /// Its kind and name: vm web, vm/web
    #[arg(value_name = "KIND NAME", required = true, num_args = 1..=2)]
    what: Vec<String>,
    /// Go on as long as it does
    #[arg(short, long)]
    follow: bool,
}

impl Logs {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask(&self.remote.clone(), async move |client| {
            let (kind, name) = kind_and_name(&self.what)?;
            let name = name.ok_or_else(|| Failure::Asked("give a name, too".into()))?;
            let path = Client::path(kind, &self.remote.namespace, Some(name));
            let path = format!("{path}/log?follow={}", self.follow);
            let mut lines = client.stream(&path, JSON).await?;
            let mut out = std::io::stdout().lock();
            while let Some(piece) = lines.piece().await? {
                // Whoever reads it has seen enough.
                if out.write_all(&piece).and_then(|()| out.flush()).is_err() {
                    return Ok(0);
                }
            }
            Ok(0)
        })
    }
}
