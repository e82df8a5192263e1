//! `skerry image pull`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use skerry_images::store::{Name, Origin};

use super::import::{keep, remove, scratch, tell};
use super::output::Output;
use super::progress::Bar;
use super::registry::{Login, Reference, Registry};
use super::store::{StoreFlag, name};
use super::{Failure, Outcome};
use crate::runtime::container::Layout;

/// Bring an OCI image from a registry into the image store. What was interrupted goes on where it ended.
#[derive(Debug, Args)]
pub struct Pull {
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    bar: Bar,
    /// The image's name in the store [default: REF]
    #[arg(long, value_name = "NAME[:TAG]", value_parser = name)]
    name: Option<Name>,
    /// Use http://, for a registry on this machine or in a network that is trusted
    #[arg(long)]
    plain_http: bool,
    /// The user's name at the registry
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    user: Option<String>,
    /// Read the user's password or token from standard input
    #[arg(long, requires = "user")]
    password_stdin: bool,
    /// Where logins are found [default: ~/.docker/config.json]
    #[arg(long, value_name = "FILE", env = "SKERRY_REGISTRY_AUTH")]
    auth_file: Option<PathBuf>,
    /// The image: `[HOST[:PORT]/]NAME[:TAG]`, or with `@sha256:DIGEST` behind it
    #[arg(value_name = "REF")]
    reference: Reference,
}

impl Pull {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let store = self.store.open()?;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => self.reference.name()?,
        };
        let login = self.login()?;
        let _use = store.share()?;
        let folder = scratch(&store, &self.reference.to_string())?;
        // A wait for the network ends at once; what came is kept for the next attempt.
        let end = || std::process::exit(1);
        self.bar.watch_waiting("Pulling", end, |progress| {
            let mut registry = Registry::new(&self.reference, self.plain_http, login);
            registry.pull(&folder, progress)
        })?;
        let origin = Origin {
            source: self.reference.to_string(),
            checksums: BTreeMap::new(),
        };
        let layout = Layout::open(&folder)?;
        let kept = self.bar.watch("Importing", |progress| {
            keep(&store, &name, &layout, None, origin, progress)
        });
        // What is not what its digest says would be found again.
        remove(&folder)?;
        tell(&self.output, &name, &kept?)
    }

    fn login(&self) -> Result<Option<Login>, Failure> {
        if let Some(user) = &self.user {
            let mut password = String::new();
            let read = std::io::stdin()
                .take(64 << 10)
                .read_to_string(&mut password);
            read.map_err(|source| Failure::System {
                what: "read",
                path: "standard input".into(),
                source,
            })?;
            return Ok(Some(Login {
                user: user.clone(),
                password: password.trim_end_matches(['\r', '\n']).to_owned(),
            }));
        }
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker/config.json"));
        match (&self.auth_file, home()) {
            (Some(path), _) => Login::found(path, &self.reference),
            (None, Some(path)) if path.exists() => Login::found(&path, &self.reference),
            _ => Ok(None),
        }
    }
}
