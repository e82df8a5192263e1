//! `skerry exec`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use skerry_exec::wire::{HEAD, frame, head};
use skerry_exec::{Kind, PROTOCOL, TerminalSize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::client::Client;
use super::terminal::{Raw, input, size};
use super::{Failure, Remote, ask, kind_and_name};
use crate::api::reach::ExecRequest;

/// Run a command in a container, or in a VM whose guest runs `skerry-guest`; ends with its exit code
#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    remote: Remote,
    /// Its kind and name: vm web, vm/web
    #[arg(value_name = "KIND NAME", required = true, num_args = 1..=2)]
    what: Vec<String>,
    /// Pass standard input on
    #[arg(short = 'i', long = "stdin")]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Run as this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Run in this directory
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Set a variable
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Exec {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask(&self.remote.clone(), async move |client| {
            let (kind, name) = kind_and_name(&self.what)?;
            let name = name.ok_or_else(|| Failure::Asked("give a name, too".into()))?;
            let path = Client::path(kind, &self.remote.namespace, Some(name));
            let connection = client
                .upgrade(&format!("{path}/exec"), PROTOCOL, Some(&self.request()?))
                .await?;
            // Ours is as it was when the command has ended, also if that goes wrong.
            let raw = (self.tty && self.stdin).then(Raw::enter);
            let done = attend(connection, self.stdin, self.tty).await;
            drop(raw);
            done
        })
    }

    fn request(&self) -> Result<ExecRequest, Failure> {
        let mut env = BTreeMap::new();
        if self.tty
            && let Ok(terminal) = std::env::var("TERM")
        {
            env.insert("TERM".to_owned(), terminal);
        }
        for one in &self.env {
            let (name, value) = one.split_once('=').ok_or_else(|| {
                Failure::Asked(format!("`{one}` sets no variable: write NAME=VALUE"))
            })?;
            env.insert(name.to_owned(), value.to_owned());
        }
        let usual = TerminalSize {
            rows: 24,
            columns: 80,
        };
        Ok(ExecRequest {
            command: self.command.clone(),
            env,
            working_dir: self.workdir.clone(),
            user: self.user.clone(),
            terminal: self.tty.then(|| size().unwrap_or(usual)),
        })
    }
}

/// Passes streams on until the command has ended; its exit code.
async fn attend<C>(connection: C, stdin: bool, tty: bool) -> Result<u8, Failure>
where
    C: AsyncRead + tokio::io::AsyncWrite,
{
    let (mut from, mut to) = tokio::io::split(connection);
    let mut typed = stdin.then(input);
    let mut resized = tty
        .then(|| signal(SignalKind::window_change()).ok())
        .flatten();
    // A terminal in raw mode is put back before we go.
    let mut told = signal(SignalKind::terminate()).map_err(broken)?;
    let sends = async {
        if typed.is_none() {
            to.write_all(&frame(Kind::Input, b"")?).await?;
        }
        loop {
            let next = tokio::select! {
                piece = piece_of(&mut typed) => match piece {
                    Some(bytes) => frame(Kind::Input, &bytes)?,
                    None => {
                        typed = None;
                        frame(Kind::Input, b"")?
                    }
                },
                () = change_of(&mut resized) => match size() {
                    Some(size) => frame(Kind::Resize, &serde_json::to_vec(&size)?)?,
                    None => continue,
                },
            };
            to.write_all(&next).await?;
            to.flush().await?;
        }
    };
    let hears = async {
        loop {
            let (kind, bytes) = receive(&mut from).await?;
            match kind {
                Kind::Output => {
                    let mut out = io::stdout().lock();
                    if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
                        // Whoever reads it has seen enough, which ends it as in a pipe.
                        return Ok(128 + rustix::process::Signal::PIPE.as_raw());
                    }
                }
                Kind::Error => {
                    let _ = io::stderr().write_all(&bytes);
                }
                Kind::Exit => return Ok(serde_json::from_slice::<i32>(&bytes)?),
                _ => return Err(io::Error::other("the host said something unexpected")),
            }
        }
    };
    tokio::pin!(sends);
    tokio::pin!(hears);
    let ended: io::Result<i32> = tokio::select! {
        ended = &mut hears => ended,
        _ = told.recv() => Ok(128 + rustix::process::Signal::TERM.as_raw()),
        // The other side takes no more: what it said before that is still to be heard.
        failed = &mut sends => {
            let failed: io::Result<()> = failed;
            match (&mut hears).await {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(failed.err().unwrap_or(e)),
                other => other,
            }
        }
    };
    Ok(ended.map_err(broken)? as u8)
}

fn broken(source: io::Error) -> Failure {
    Failure::System {
        what: "go on with",
        path: "the command: its workload or the host ended, or nobody took its output".into(),
        source,
    }
}

async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(Kind, Vec<u8>)> {
    let mut first = [0; HEAD];
    from.read_exact(&mut first).await?;
    let (kind, length) = head(first)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok((kind, bytes))
}

/// The next piece of input; none at its end.
async fn piece_of(typed: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match typed {
        Some(typed) => typed.recv().await,
        None => std::future::pending().await,
    }
}

/// The next change of the terminal's size.
async fn change_of(resized: &mut Option<Signal>) {
    match resized {
        Some(resized) => drop(resized.recv().await),
        None => std::future::pending().await,
    }
}
