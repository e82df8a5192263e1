//! `skerry console`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use super::client::Client;
use super::terminal::{Raw, input};
use super::{Failure, Remote, ask, kind_and_name};
use crate::api::reach::CONSOLE;

/// The key that leaves: Ctrl-].
const LEAVE: u8 = 0x1d;
/// Bytes of a piece.
const PIECE: usize = 16 << 10;

/// Talk to a VM on its serial port, after what it said last; Ctrl-] leaves
#[derive(Debug, Args)]
pub struct Console {
    #[command(flatten)]
    remote: Remote,
    /// Its kind and name: vm web, vm/web
    #[arg(value_name = "KIND NAME", required = true, num_args = 1..=2)]
    what: Vec<String>,
}

impl Console {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask(&self.remote.clone(), async move |client| {
            let (kind, name) = kind_and_name(&self.what)?;
            let name = name.ok_or_else(|| Failure::Asked("give a name, too".into()))?;
            let path = Client::path(kind, &self.remote.namespace, Some(name));
            let none: Option<&()> = None;
            let connection = client
                .upgrade(&format!("{path}/console"), CONSOLE, none)
                .await?;
            let raw = Raw::enter();
            if raw.is_some() {
                eprint!("The console of {name}. Ctrl-] leaves.\r\n");
            }
            let done = attend(connection).await;
            drop(raw);
            let ended = done.map_err(|source| Failure::System {
                what: "go on with",
                path: "the console".into(),
                source,
            })?;
            if ended {
                eprintln!("\nskerry: the console is closed: the VM ended, or another agent runs");
            }
            Ok(0)
        })
    }
}

/// Passes bytes on until the user leaves. Whether the other side ended instead.
async fn attend<C>(connection: C) -> io::Result<bool>
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite,
{
    let (mut from, mut to) = tokio::io::split(connection);
    let mut told = signal(SignalKind::terminate())?;
    let types = async {
        let mut typed = input();
        while let Some(piece) = typed.recv().await {
            let leaves = piece.iter().position(|byte| *byte == LEAVE);
            to.write_all(&piece[..leaves.unwrap_or(piece.len())])
                .await?;
            to.flush().await?;
            if leaves.is_some() {
                return io::Result::Ok(());
            }
        }
        // Whoever only looks, as in a pipe, has no more to say.
        std::future::pending().await
    };
    let shows = async {
        let mut buffer = vec![0; PIECE];
        loop {
            let n = match from.read(&mut buffer).await {
                Ok(0) => return io::Result::Ok(()),
                Ok(n) => n,
                Err(e) => return Err(e),
            };
            let mut out = io::stdout().lock();
            out.write_all(&buffer[..n]).and_then(|()| out.flush())?;
        }
    };
    tokio::select! {
        left = types => left.map(|()| false),
        ended = shows => ended.map(|()| true),
        _ = told.recv() => Ok(false),
    }
}
