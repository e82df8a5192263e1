//! Reaching into a workload: the connection of a request becomes one to a command's streams, or to a console.
//!
//! | request | what its connection carries then |
//! |---|---|
//! | `POST …/NAME/exec`, `Upgrade: skerry.exec.v1`, its body an [`ExecRequest`] | frames of `skerry_exec` |
//! | `POST …/NAME/console`, `Upgrade: skerry.console.v1` | bytes, as the console's |
//!
//! We pass bytes on and keep none but one buffer for each direction, so whoever is slow is waited for by the
//! other side. They are requests that change something, since whoever may do so may do what the workload may.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use skerry_exec::{ExecSpec, TerminalSize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::error::ApiError;
use crate::model::Object;
use crate::runtime::RuntimeError;

/// The protocol of consoles, as HTTP upgrades to it.
pub const CONSOLE: &str = "skerry.console.v1";
/// Bytes on their way, in each direction.
const BUFFER: usize = 32 << 10;
/// How long what we connected to may take to end when the client has gone.
const FAREWELL: Duration = Duration::from_secs(10);
/// How many words, and how many variables, a command may have.
const WORDS: usize = 1024;

/// Knows how workloads are reached.
#[async_trait]
pub trait Reach: Send + Sync {
    /// Runs a command in an object's workload. Its streams go over the connection, as `skerry_exec` says.
    async fn exec(&self, object: &Object, spec: ExecSpec) -> Result<UnixStream, RuntimeError>;

    /// Connects to its console.
    async fn console(&self, object: &Object) -> Result<UnixStream, RuntimeError>;
}

/// A command that is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ExecRequest {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Environment variables, which override those that are there.
    pub env: BTreeMap<String, String>,
    /// The working directory, instead of the usual one.
    pub working_dir: Option<PathBuf>,
    /// Who it runs as, instead of the usual user.
    pub user: Option<String>,
    /// The size of its terminal; it has none if this is left out.
    pub terminal: Option<TerminalSize>,
}

impl ExecRequest {
    /// That of a body.
    ///
    /// # Errors
    /// If it is none, or there is no command.
    pub fn read(bytes: &[u8]) -> Result<ExecSpec, ApiError> {
        let request: ExecRequest = serde_json::from_slice(bytes)
            .map_err(|e| ApiError::Request(format!("the body is no command: {e}")))?;
        if request.command.is_empty() {
            let what = "the body names no command: send {\"command\": [\"uname\", \"-a\"]}";
            return Err(ApiError::Request(what.to_owned()));
        }
        if request.command.len() > WORDS || request.env.len() > WORDS {
            let what = format!("a command has at most {WORDS} words and as many variables");
            return Err(ApiError::Request(what));
        }
        let nul = |text: &String| text.contains('\0');
        let texts = request.env.iter().flat_map(|(name, value)| [name, value]);
        if request.command.iter().chain(texts).any(nul) {
            let what = "a command's words and variables cannot have zero bytes";
            return Err(ApiError::Request(what.to_owned()));
        }
        Ok(ExecSpec {
            args: request.command,
            env: request.env.into_iter().collect(),
            working_dir: request.working_dir,
            user: request.user,
            terminal: request.terminal,
        })
    }
}

/// A client's way out of HTTP, if it asks for one.
pub struct Way {
    upgrade: OnUpgrade,
    protocol: &'static str,
}

impl Way {
    /// That of a request, to this protocol.
    ///
    /// # Errors
    /// [`ApiError::Upgrade`] if it asks for none, or for another.
    pub fn of(head: &mut Parts, protocol: &'static str) -> Result<Way, ApiError> {
        let asks = has(&head.headers, header::CONNECTION, "upgrade")
            && has(&head.headers, header::UPGRADE, protocol);
        match head.extensions.remove::<OnUpgrade>() {
            Some(upgrade) if asks => Ok(Way { upgrade, protocol }),
            _ => Err(ApiError::Upgrade(protocol)),
        }
    }

    /// Agrees, and passes bytes on between the client and `inner` until one of them, or what `ends` it, is
    /// over. `kept` is dropped then.
    pub fn open(
        self,
        inner: UnixStream,
        ends: impl Future<Output = ()> + Send + 'static,
        kept: impl Send + 'static,
    ) -> Response {
        let upgrade = self.upgrade;
        tokio::spawn(async move {
            let _kept = kept;
            match upgrade.await {
                Ok(client) => tokio::select! {
                    () = pass(TokioIo::new(client), inner) => {}
                    () = ends => {}
                },
                // It went before it heard of it.
                Err(e) => ::log::debug!("a client left: {e}"),
            }
        });
        let headers = [
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, self.protocol),
        ];
        (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
    }
}

/// Whether a header has a word, in whatever case.
fn has(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter();
    let mut words = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','));
    words.any(|one| one.trim().eq_ignore_ascii_case(word))
}

/// Passes bytes on until what is inside has ended, also after the client has: a command's exit code comes last.
async fn pass(client: impl AsyncRead + AsyncWrite, inner: UnixStream) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_inner, mut to_inner) = inner.into_split();
    let inwards = async {
        // However it ended, nothing more comes.
        let _ = copy(&mut from_client, &mut to_inner).await;
        let _ = to_inner.shutdown().await;
        tokio::time::sleep(FAREWELL).await;
    };
    let outwards = async {
        let _ = copy(&mut from_inner, &mut to_client).await;
        let _ = tokio::time::timeout(FAREWELL, to_client.shutdown()).await;
    };
    tokio::select! {
        () = inwards => {}
        () = outwards => {}
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            n => {
                to.write_all(&buffer[..n]).await?;
                // TLS keeps what fills no record.
                to.flush().await?;
            }
        }
    }
}
