//! The client: JSON over HTTP on a host's socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::http::request::Builder;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::model::Kind;

/// Bytes of an answer.
const MAX_ANSWER: usize = 64 << 20;
/// Bytes of a line of a watch.
const MAX_LINE: usize = 8 << 20;
/// A connection over the network is there within this.
const PATIENCE: Duration = Duration::from_secs(20);
/// How tables are asked for.
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
/// How objects are.
pub const JSON: &str = "application/json";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "cannot reach the host at {path}: is `skerry up` running there? (--socket names another)"
    )]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Nobody listens there, or not whom we believe.
    #[error("cannot reach the host at {address}")]
    Network {
        /// Host and port.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the host's answer was cut off")]
    Cut(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It refused.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// Why.
        message: String,
    },
    /// It is of another version.
    #[error("the host's answer is not understood")]
    Answer(#[from] serde_json::Error),
}

fn cut(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
    ClientError::Cut(e.into())
}

/// Where a host is reached.
pub enum Place {
    /// Its socket.
    Socket(PathBuf),
    /// Over the network.
    Tls {
        /// Host and port.
        address: String,
        /// Whose certificate it must show.
        name: ServerName<'static>,
        /// Whom to believe, and what to show.
        config: Arc<ClientConfig>,
    },
}

/// A connection to a host, of either kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Place {
    async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        match self {
            Place::Socket(path) => {
                let stream = UnixStream::connect(path).await;
                let stream = stream.map_err(|source| ClientError::Connect {
                    path: path.clone(),
                    source,
                })?;
                Ok(Box::new(stream))
            }
            Place::Tls {
                address,
                name,
                config,
            } => {
                let connected = async {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    let connector = TlsConnector::from(config.clone());
                    connector.connect(name.clone(), stream).await
                };
                let stream = match tokio::time::timeout(PATIENCE, connected).await {
                    Ok(connected) => connected,
                    Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
                };
                let stream = stream.map_err(|source| ClientError::Network {
                    address: address.clone(),
                    source,
                })?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// A host.
pub struct Client {
    place: Place,
    token: Option<String>,
}

/// Lines, as they come.
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Client {
    /// The one that listens there, asked with a token or without. Nothing is sent yet.
    pub fn new(place: Place, token: Option<String>) -> Client {
        Client { place, token }
    }

    /// The path of some objects of a kind, or of one.
    pub fn path(kind: &Kind, namespace: &str, name: Option<&str>) -> String {
        let mut path = match kind.group {
            "" => format!("/api/{}", crate::model::VERSION),
            group => format!("/apis/{group}/{}", crate::model::VERSION),
        };
        if kind.namespaced && !namespace.is_empty() {
            path += &format!("/namespaces/{namespace}");
        }
        path += &format!("/{}", kind.plural);
        if let Some(name) = name {
            path += &format!("/{name}");
        }
        path
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Response<Incoming>, ClientError> {
        let (content, bytes) = body.unwrap_or((JSON, Vec::new()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(ACCEPT, accept)
            .header(CONTENT_TYPE, content);
        let response = self.exchange(request, bytes).await?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(refusal(response).await),
        }
    }

    /// A connection into a workload: what HTTP became.
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &str,
        body: Option<&impl Serialize>,
    ) -> Result<TokioIo<Upgraded>, ClientError> {
        let bytes = body.map(serde_json::to_vec).transpose()?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, protocol)
            .header(CONTENT_TYPE, JSON);
        let response = self.exchange(request, bytes.unwrap_or_default()).await?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                let upgraded = hyper::upgrade::on(response).await;
                upgraded.map(TokioIo::new).map_err(cut)
            }
            _ => Err(refusal(response).await),
        }
    }

    async fn exchange(
        &self,
        request: Builder,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = self.place.connect().await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(cut)?;
        tokio::spawn(connection.with_upgrades());
        let mut request = request.header(HOST, "skerry");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(cut)?;
        sender.send_request(request).await.map_err(cut)
    }

    /// An answer as a whole.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let body = body.map(|body| (JSON, serde_json::to_vec(body).unwrap_or_default()));
        let response = self.send(method, path, accept, body).await?;
        Ok(serde_json::from_slice(&read(response).await?)?)
    }

    /// What is at a path.
    pub async fn get(&self, path: &str, accept: &str) -> Result<Value, ClientError> {
        self.ask(Method::GET, path, accept, None).await
    }

    /// The same, if there is something.
    pub async fn find(&self, path: &str) -> Result<Option<Value>, ClientError> {
        match self.get(path, JSON).await {
            Ok(value) => Ok(Some(value)),
            Err(ClientError::Refused { code: 404, .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Changes fields of an object.
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value, ClientError> {
        let bytes = serde_json::to_vec(patch).unwrap_or_default();
        let body = Some(("application/merge-patch+json", bytes));
        let response = self.send(Method::PATCH, path, JSON, body).await?;
        Ok(serde_json::from_slice(&read(response).await?)?)
    }

    /// An answer as it comes.
    pub async fn stream(&self, path: &str, accept: &str) -> Result<Lines, ClientError> {
        let response = self.send(Method::GET, path, accept, None).await?;
        Ok(Lines {
            body: response.into_body(),
            buffer: Vec::new(),
        })
    }
}

impl Lines {
    /// The next piece; none at the end.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(cut)?.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The next line's JSON; none at the end.
    pub async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(cut("a line has no end"));
            }
            match self.piece().await? {
                Some(data) => self.buffer.extend_from_slice(&data),
                None => return Ok(None),
            }
        }
    }
}

async fn read(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
    Ok(body.collect().await.map_err(ClientError::Cut)?.to_bytes())
}

async fn refusal(response: Response<Incoming>) -> ClientError {
    let code = response.status().as_u16();
    let bytes = match read(response).await {
        Ok(bytes) => bytes,
        Err(e) => return e,
    };
    let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = match status.get("message").and_then(Value::as_str) {
        Some(message) => message.to_owned(),
        None => format!("the host answered {code}"),
    };
    ClientError::Refused { code, message }
}
