//! `skerry get`, `describe`, `events`: what is declared, what is, what happened.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::client::{Client, JSON, TABLE};
use super::{Failure, Form, Remote, ask, kind, kind_and_name};
use crate::cli::output::on_a_line;
use crate::model::Kind;

/// Show objects of a kind, or one of them
#[derive(Debug, Args)]
pub struct Get {
    #[command(flatten)]
    remote: Remote,
    /// A kind, and a name if it is one: vm, vm web, vm/web
    #[arg(value_name = "KIND [NAME]", required = true, num_args = 1..=2)]
    what: Vec<String>,
    /// Of all tenants
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Those with these labels: app=web,tier!=db
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "")]
    selector: String,
    /// How they are shown
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
    /// Go on showing what changes
    #[arg(short, long)]
    watch: bool,
}

impl Get {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask(&self.remote.clone(), async move |client| {
            let (kind, name) = kind_and_name(&self.what)?;
            let namespace = if self.all_namespaces {
                ""
            } else {
                &self.remote.namespace
            };
            let path = Client::path(kind, namespace, name);
            let query = format!("labelSelector={}", encoded(&self.selector));
            let accept = match self.output {
                Form::Table | Form::Wide => TABLE,
                _ => JSON,
            };
            if self.watch {
                return self
                    .follow(&client, kind, &path, name, &query, accept)
                    .await;
            }
            let value = client.get(&format!("{path}?{query}"), accept).await?;
            let empty = value["rows"].as_array().is_some_and(Vec::is_empty);
            if empty {
                eprintln!("There are no {} here", kind.plural);
            } else {
                print(&value, self.output, self.all_namespaces)?;
            }
            Ok(0)
        })
    }

    async fn follow(
        &self,
        client: &Client,
        kind: &Kind,
        path: &str,
        name: Option<&str>,
        query: &str,
        accept: &str,
    ) -> super::Outcome {
        let field = name.map(|name| format!("&fieldSelector=metadata.name={name}"));
        let path = match name {
            Some(_) => Client::path(kind, &self.remote.namespace, None),
            None => path.to_owned(),
        };
        let field = field.unwrap_or_default();
        let mut lines = client
            .stream(&format!("{path}?watch=true&{query}{field}"), accept)
            .await?;
        while let Some(line) = lines.next().await? {
            print(&line["object"], self.output, self.all_namespaces)?;
        }
        Ok(0)
    }
}

/// What a query may have in a value.
pub fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => {
                out.push(byte.into())
            }
            byte => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

fn print(value: &Value, form: Form, namespaces: bool) -> Result<(), Failure> {
    match form {
        Form::Json => println!("{}", serde_json::to_string_pretty(value)?),
        Form::Yaml => print!("{}", yaml(value)?),
        Form::Name => {
            let one = std::slice::from_ref(value);
            let items = value["items"].as_array().map_or(one, Vec::as_slice);
            for item in items {
                let kind = item["kind"].as_str().and_then(|name| kind(name).ok());
                let kind = kind.map_or("object", |kind| kind.singular);
                println!("{kind}/{}", item["metadata"]["name"].as_str().unwrap_or(""));
            }
        }
        Form::Table | Form::Wide => table(value, form == Form::Wide, namespaces),
    }
    Ok(())
}

/// As YAML, which people read: who owns which field is told in JSON.
pub(super) fn yaml(value: &Value) -> Result<String, Failure> {
    let mut value = value.clone();
    let owners = |object: &mut Value| {
        let meta = object.get_mut("metadata").and_then(Value::as_object_mut);
        meta.map(|meta| meta.remove("managedFields"));
    };
    owners(&mut value);
    let items = value.get_mut("items").and_then(Value::as_array_mut);
    items.into_iter().flatten().for_each(owners);
    serde_saphyr::to_string(&value).map_err(|e| Failure::Asked(format!("cannot write YAML: {e}")))
}

/// Prints a table, as wide as its cells.
pub(super) fn table(value: &Value, wide: bool, namespaces: bool) {
    let empty = Vec::new();
    let columns = value["columnDefinitions"].as_array().unwrap_or(&empty);
    let rows = value["rows"].as_array().unwrap_or(&empty);
    let width = rows
        .first()
        .and_then(|row| row["cells"].as_array())
        .map_or(0, Vec::len);
    let shown: Vec<usize> = (0..columns.len().max(width))
        .filter(|n| wide || columns.get(*n).is_none_or(|c| c["priority"] != 1))
        .collect();
    let mut lines = Vec::new();
    if !columns.is_empty() {
        let heads = shown
            .iter()
            .map(|n| columns[*n]["name"].as_str().unwrap_or("").to_uppercase());
        let before = namespaces.then(|| "NAMESPACE".to_owned());
        lines.push(before.into_iter().chain(heads).collect::<Vec<_>>());
    }
    for row in rows {
        let namespace = &row["object"]["metadata"]["namespace"];
        let before = namespaces.then(|| namespace.as_str().unwrap_or("").to_owned());
        let cells = shown.iter().map(|n| match &row["cells"][*n] {
            Value::String(text) => on_a_line(text),
            other => other.to_string(),
        });
        lines.push(before.into_iter().chain(cells).collect());
    }
    let count = lines.first().map_or(0, Vec::len);
    let widest = |n: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(n))
            .map(|c| c.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..count).map(|n| widest(n).unwrap_or(0)).collect();
    for line in &lines {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("   ").trim_end());
    }
}

/// Tell all that is known of an object, and what happened to it
#[derive(Debug, Args)]
pub struct Describe {
    #[command(flatten)]
    remote: Remote,
    /// Its kind and name: vm web, vm/web
    #[arg(value_name = "KIND NAME", required = true, num_args = 1..=2)]
    what: Vec<String>,
}

impl Describe {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask(&self.remote.clone(), async move |client| {
            let (kind, name) = kind_and_name(&self.what)?;
            let name = name.ok_or_else(|| Failure::Asked("give a name, too".into()))?;
            let path = Client::path(kind, &self.remote.namespace, Some(name));
            let object = client.get(&path, JSON).await?;
            print!("{}", yaml(&object)?);
            let uid = object["metadata"]["uid"].as_str().unwrap_or("");
            let namespace = if kind.namespaced {
                &self.remote.namespace
            } else {
                "default"
            };
            println!("events:");
            events(&client, namespace, &format!("involvedObject.uid={uid}")).await?;
            Ok(0)
        })
    }
}

/// Tell what happened
#[derive(Debug, Args)]
pub struct Events {
    #[command(flatten)]
    remote: Remote,
}

impl Events {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask(&self.remote.clone(), async move |client| {
            events(&client, &self.remote.namespace, "").await?;
            Ok(0)
        })
    }
}

async fn events(client: &Client, namespace: &str, fields: &str) -> Result<(), Failure> {
    let kind = kind("events").map_err(Failure::Asked)?;
    let path = Client::path(kind, namespace, None);
    let list = client
        .get(&format!("{path}?fieldSelector={}", encoded(fields)), JSON)
        .await?;
    let mut items = list["items"].as_array().cloned().unwrap_or_default();
    items.sort_by_key(|event| event["lastTimestamp"].as_str().unwrap_or("").to_owned());
    if items.is_empty() {
        println!("  none in the last hour");
    }
    for event in items {
        let text = |field: &str| on_a_line(event[field].as_str().unwrap_or(""));
        let times = match event["count"] == json!(1) {
            true => String::new(),
            false => format!(" ({} times)", event["count"]),
        };
        println!(
            "  {} {:7} {:12} {}: {}{times}",
            text("lastTimestamp"),
            text("type"),
            text("reason"),
            event["involvedObject"]["name"].as_str().unwrap_or(""),
            text("message"),
        );
    }
    Ok(())
}
