//! A probe, asked once: by a command in the workload, or over its network or vsock. It takes no longer than it
//! may, whatever the other side does.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::Builder;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::model::Probe;
use crate::runtime::Runtime;

/// Characters of a reason.
const REASON: usize = 300;
/// Bytes of an answer's head.
const HEAD: usize = 64 << 10;
/// Bytes of the line with which a monitor answers.
const LINE: usize = 64;

/// Whom a probe asks.
#[derive(Clone)]
pub struct Aim {
    /// What runs it.
    pub runtime: Arc<dyn Runtime>,
    /// Its uid.
    pub uid: String,
    /// Its address, if it has one.
    pub address: Option<IpAddr>,
}

impl Aim {
    /// Asks. Why it is not well, if it is not.
    pub async fn ask(&self, probe: &Probe) -> Result<(), String> {
        let limit = Duration::from_secs(probe.timeout_seconds.into());
        let answer = match &probe.exec {
            // It is bounded where it runs: it is over when this is.
            Some(exec) => self.runtime.attempt(&self.uid, &exec.command, limit).await,
            None => timeout(limit, self.connect(probe))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs()))),
        };
        answer.map_err(|why| on_a_line(&why))
    }

    async fn connect(&self, probe: &Probe) -> Result<(), String> {
        if let Some(http) = &probe.http_get {
            return self::http(self.at(http.port)?, &http.path).await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            return self::tcp(self.at(tcp.port)?).await.map(drop);
        }
        let Some(vsock) = &probe.vsock else {
            return Err("nothing is asked".to_owned());
        };
        let socket = self.runtime.vsock(&self.uid);
        let socket = socket.ok_or("it has no vsock")?;
        match dial(&socket, vsock.port).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!(
                "port {} of its vsock takes no connection",
                vsock.port
            )),
            Err(e) => Err(format!("its vsock cannot be reached: {e}")),
        }
    }

    fn at(&self, port: u16) -> Result<SocketAddr, String> {
        let address = self.address.ok_or("it has no address")?;
        Ok(SocketAddr::new(address, port))
    }
}

/// Whether a port takes a connection.
///
/// # Errors
/// Why not, in words.
pub async fn tcp(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(address).await;
    stream.map_err(|e| format!("{address} takes no connection: {e}"))
}

/// Whether an HTTP request is answered by a status of 200 to 399.
///
/// # Errors
/// Why not, in words.
pub async fn http(address: SocketAddr, path: &str) -> Result<(), String> {
    let stream = tcp(address).await?;
    let said = |e: hyper::Error| format!("http://{address}{path} does not answer: {e}");
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, "skerry-probe")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let (mut sender, connection) = Builder::new()
        .max_buf_size(HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(said)?;
    let answer = sender.send_request(request);
    // Only the head is wanted: the connection is closed before the rest comes.
    let answer = tokio::select! {
        answer = answer => answer,
        Err(e) = connection => Err(e),
    };
    match answer.map_err(said)?.status().as_u16() {
        200..=399 => Ok(()),
        code => Err(format!("http://{address}{path} answers {code}")),
    }
}

/// Asks a monitor for a port of its guest's vsock; whether the guest takes the connection.
async fn dial(socket: &Path, port: u32) -> io::Result<bool> {
    let mut stream = UnixStream::connect(socket).await?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    let mut line = Vec::new();
    let mut byte = [0];
    // A port that nobody listens on is a connection that ends without a line.
    while line.len() < LINE && stream.read(&mut byte).await? > 0 {
        if byte[0] == b'\n' {
            return Ok(line.starts_with(b"OK "));
        }
        line.push(byte[0]);
    }
    Ok(false)
}

/// The beginning of a text, without control characters: it may be the workload's own.
pub fn on_a_line(text: &str) -> String {
    let space = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(REASON).map(space).collect()
}

#[cfg(test)]
#[path = "probe_test.rs"]
mod tests;
