//! Consoles for browsers: the bytes of a console in the messages of a WebSocket (RFC 6455), whose protocol is
//! `skerry.console.v1`, too.

use std::io;

use axum::extract::FromRequestParts;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::request::Parts;
use axum::http::{Method, header};
use axum::response::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::error::ApiError;
use super::reach::CONSOLE;

/// Bytes on their way.
const BUFFER: usize = 32 << 10;
/// Bytes of a message.
const MESSAGE: usize = 64 << 10;

/// A client's way from HTTP to a WebSocket.
pub struct SocketWay(WebSocketUpgrade);

impl SocketWay {
    /// Whether a request asks for one.
    pub fn is_asked(head: &Parts) -> bool {
        let upgrade = head.headers.get(header::UPGRADE);
        let named = upgrade.is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(b"websocket"));
        named && head.method == Method::GET
    }

    /// That of a request.
    ///
    /// # Errors
    /// If it is malformed, or of another protocol.
    pub async fn of(head: &mut Parts) -> Result<SocketWay, ApiError> {
        let upgrade = WebSocketUpgrade::from_request_parts(head, &()).await;
        let upgrade =
            upgrade.map_err(|e| ApiError::Request(format!("this is no WebSocket: {e}")))?;
        let upgrade = upgrade.protocols([CONSOLE]);
        if upgrade.selected_protocol().is_none() {
            let what = format!("offer the protocol {CONSOLE} (Sec-WebSocket-Protocol)");
            return Err(ApiError::Request(what));
        }
        Ok(SocketWay(upgrade))
    }

    /// Agrees, and passes bytes on between the client and `inner` until one of them, or what `ends` it, is over.
    /// `kept` is dropped then.
    pub fn open(
        self,
        inner: UnixStream,
        ends: impl Future<Output = ()> + Send + 'static,
        kept: impl Send + 'static,
    ) -> Response {
        let upgrade = self.0.max_message_size(MESSAGE).max_frame_size(MESSAGE);
        upgrade.on_upgrade(async move |socket| {
            let _kept = kept;
            tokio::select! {
                passed = pass(socket, inner) => {
                    if let Err(e) = passed {
                        ::log::debug!("a browser left: {e}");
                    }
                }
                () = ends => {}
            }
        })
    }
}

/// Passes bytes on. Whoever is slow is waited for by the other side.
async fn pass(mut socket: WebSocket, mut inner: UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(bytes))) => inner.write_all(&bytes).await?,
                Some(Ok(Message::Text(text))) => inner.write_all(text.as_bytes()).await?,
                // Pings are answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Err(e)) => return Err(io::Error::other(e)),
            },
            read = inner.read(&mut buffer) => match read? {
                0 => return Ok(()),
                n => {
                    let message = Message::Binary(buffer[..n].to_vec().into());
                    socket.send(message).await.map_err(io::Error::other)?;
                }
            },
        }
    }
}
