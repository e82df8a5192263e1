//! `skerry token`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::to_value;

use super::client::{Client, JSON, TABLE};
use super::get::table;
use super::{Failure, Target, ask_at};
use crate::api::digest;
use crate::model::{Kind, Meta, Timestamp, Token as Object, TokenSpec, duration, kind_of, untyped};

/// Bytes of a secret.
const SECRET: usize = 32;

/// Make, show and delete tokens: who may ask this host over the network, and for what
#[derive(Debug, Args)]
pub struct Token {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a token and print it, this once
    Create(Create),
    /// Show which tokens there are
    List,
    /// Delete a token: it is worth nothing from then on
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// Its name
    name: String,
    /// How long it is worth something: 90s, 30m, 24h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = lasting)]
    ttl: Duration,
    /// The only tenant that it is for [default: all]
    #[arg(short, long = "namespace", value_name = "NAME")]
    tenant: Option<String>,
    /// For looking alone: get, list, watch and logs
    #[arg(long)]
    read_only: bool,
}

fn lasting(text: &str) -> Result<Duration, String> {
    let found = duration(text).filter(|time| !time.is_zero());
    found.ok_or_else(|| "give a number and a unit: 90s, 30m, 24h, 7d".to_owned())
}

impl Token {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask_at(&self.target.clone(), async move |client| {
            let kind = kind_of::<Object>();
            let path = |name| Client::path(kind, "", name);
            match self.what {
                What::Create(create) => create.run(&client, kind).await?,
                What::List => table(&client.get(&path(None), TABLE).await?, false, false),
                What::Delete { name } => {
                    let path = path(Some(&name));
                    client.ask(Method::DELETE, &path, JSON, None).await?;
                    println!("token/{name} deleted");
                }
            }
            Ok(0)
        })
    }
}

impl Create {
    async fn run(self, client: &Client, kind: &'static Kind) -> Result<(), Failure> {
        let mut secret = [0; SECRET];
        rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty()).map_err(
            |e| Failure::System {
                what: "take random bytes from",
                path: "the kernel".into(),
                source: e.into(),
            },
        )?;
        let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = format!("{}.{digits}", self.name);
        let meta = Meta {
            name: self.name,
            ..Meta::default()
        };
        // The host hears its hash alone.
        let spec = TokenSpec {
            sha256: digest(&token),
            expires: Some(Timestamp::after(self.ttl)),
            namespace: self.tenant,
            read_only: self.read_only,
        };
        let object = untyped(meta, &Object { spec, status: None });
        let body = to_value(object.to_value())?;
        let path = Client::path(kind, "", None);
        client.ask(Method::POST, &path, JSON, Some(&body)).await?;
        println!("{token}");
        Ok(())
    }
}
