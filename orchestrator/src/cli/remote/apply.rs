//! `skerry apply`: what a manifest declares is so.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::{Map, Value};

use super::client::{Client, JSON};
use super::manifest::{self, Declared};
use super::wait::until_ready;
use super::{Failure, Remote, ask};
use crate::model::{Event, Host, Kind, Namespace, Token, kind_of};

/// Declare what a manifest says: objects are made, or become what it says
#[derive(Debug, Args)]
pub struct Apply {
    #[command(flatten)]
    remote: Remote,
    /// The manifest, YAML or JSON; - for standard input
    #[arg(short, long, value_name = "FILE", required = true)]
    file: Vec<PathBuf>,
    /// Wait until all of it runs
    #[arg(long)]
    wait: bool,
    /// For so many seconds at most
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

impl Apply {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask(&self.remote.clone(), async move |client| {
            let mut declared = Vec::new();
            for file in &self.file {
                declared.extend(manifest::read(file, &self.remote.namespace)?);
            }
            for object in &declared {
                let what = apply(&client, object).await?;
                println!("{}/{} {what}", object.kind.singular, object.name);
            }
            if self.wait {
                let limit = Duration::from_secs(self.timeout);
                for object in declared.iter().filter(|object| gets_ready(object.kind)) {
                    until_ready(&client, object.kind, &object.namespace, &object.name, limit)
                        .await?;
                }
            }
            Ok(0)
        })
    }
}

/// Whether there is something to wait for: a namespace, say, is there as soon as it is declared.
fn gets_ready(kind: &Kind) -> bool {
    let at_once = [
        kind_of::<Namespace>(),
        kind_of::<Host>(),
        kind_of::<Token>(),
        kind_of::<Event>(),
    ];
    kind.has_status && !at_once.contains(&kind)
}

/// Makes an object, or makes it what is declared; which of both.
pub async fn apply(client: &Client, declared: &Declared) -> Result<&'static str, Failure> {
    let (kind, namespace) = (declared.kind, &declared.namespace);
    let path = Client::path(kind, namespace, Some(&declared.name));
    let Some(mut live) = client.find(&path).await? else {
        let all = Client::path(kind, namespace, None);
        client
            .ask(Method::POST, &all, JSON, Some(&declared.value))
            .await?;
        return Ok("created");
    };
    let before = live["metadata"]["resourceVersion"].clone();
    let mut next = declared.value.clone();
    let given = next["metadata"].take();
    let status = live.as_object_mut().and_then(|live| live.remove("status"));
    let mut meta = live["metadata"].take();
    for field in ["labels", "annotations"] {
        // Others' notes stay: they are nothing that a manifest says.
        let fields = given.get(field).and_then(Value::as_object).cloned();
        merge(&mut meta, field, fields.unwrap_or_default());
    }
    if let Some(meta) = meta.as_object_mut() {
        meta.remove("resourceVersion");
    }
    next["metadata"] = meta;
    if let (Some(status), Some(next)) = (status, next.as_object_mut()) {
        next.insert("status".into(), status);
    }
    let after = client.ask(Method::PUT, &path, JSON, Some(&next)).await?;
    match after["metadata"]["resourceVersion"] == before {
        true => Ok("unchanged"),
        false => Ok("configured"),
    }
}

fn merge(meta: &mut Value, field: &str, fields: Map<String, Value>) {
    if fields.is_empty() {
        return;
    }
    match meta.get_mut(field).and_then(Value::as_object_mut) {
        Some(found) => found.extend(fields),
        None => meta[field] = Value::Object(fields),
    }
}
