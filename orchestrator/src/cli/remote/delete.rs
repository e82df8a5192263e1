//! `skerry delete`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hyper::Method;
use serde_json::json;

use super::client::{Client, ClientError, JSON};
use super::wait::until_gone;
use super::{Failure, Remote, ask, kind_and_name, manifest};

/// Delete objects: what runs is ended and removed
#[derive(Debug, Args)]
pub struct Delete {
    #[command(flatten)]
    remote: Remote,
    /// A kind and a name: vm web, vm/web
    #[arg(value_name = "KIND NAME", num_args = 1..=2, required_unless_present = "file", conflicts_with = "file")]
    what: Vec<String>,
    /// What this manifest declares
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How many seconds it may take to end by itself
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,
    /// What becomes of objects that belong to it
    #[arg(long, value_name = "HOW", default_value = "background")]
    cascade: Cascade,
    /// Do not wait until it is gone
    #[arg(long)]
    no_wait: bool,
}

/// What becomes of objects that belong to what is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cascade {
    /// They go after it
    Background,
    /// They go before it
    Foreground,
    /// They stay
    Orphan,
}

impl Delete {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask(&self.remote.clone(), async move |client| {
            let namespace = &self.remote.namespace;
            let mut all = Vec::new();
            match &self.file {
                Some(file) => {
                    for object in manifest::read(file, namespace)?.into_iter().rev() {
                        all.push((object.kind, object.namespace, object.name));
                    }
                }
                None => {
                    let (kind, name) = kind_and_name(&self.what)?;
                    let name = name.ok_or_else(|| Failure::Asked("give a name, too".into()))?;
                    all.push((kind, namespace.clone(), name.to_owned()));
                }
            }
            let propagation = match self.cascade {
                Cascade::Background => "Background",
                Cascade::Foreground => "Foreground",
                Cascade::Orphan => "Orphan",
            };
            let options = json!({
                "gracePeriodSeconds": self.grace,
                "propagationPolicy": propagation,
            });
            for (kind, namespace, name) in &all {
                let path = Client::path(kind, namespace, Some(name));
                let deleted = client
                    .ask(Method::DELETE, &path, JSON, Some(&options))
                    .await;
                match deleted {
                    // What a manifest declares may be gone already.
                    Err(ClientError::Refused { code: 404, .. }) if self.file.is_some() => {}
                    Err(e) => return Err(e.into()),
                    Ok(_) => {
                        if !self.no_wait {
                            let limit = Duration::from_secs(self.grace + 60);
                            until_gone(&client, kind, namespace, name, limit).await?;
                        }
                        println!("{}/{name} deleted", kind.singular);
                    }
                }
            }
            Ok(0)
        })
    }
}
