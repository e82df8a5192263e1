//! Single probes against servers that answer, refuse, or say nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UnixListener};

use super::*;
use crate::model::{HttpAction, Object, TcpAction, VsockAction};
use crate::runtime::{Life, RuntimeError};

/// A VM of which there is a vsock alone.
struct Vsock(PathBuf);

#[async_trait]
impl Runtime for Vsock {
    async fn start(&self, _: &Object) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }
    async fn life(&self, _: &str) -> Life {
        Life::Running
    }
    async fn ended(&self, _: &str) {}
    async fn stop(&self, _: &str, _: Duration) -> Result<(), RuntimeError> {
        Ok(())
    }
    async fn remove(&self, _: &str) -> Result<(), RuntimeError> {
        Ok(())
    }
    fn vsock(&self, _: &str) -> Option<PathBuf> {
        Some(self.0.clone())
    }
    fn log(&self, _: &str) -> Option<PathBuf> {
        None
    }
    async fn found(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }
}

fn aim(socket: &Path) -> Aim {
    Aim {
        runtime: Arc::new(Vsock(socket.to_owned())),
        uid: "one".to_owned(),
        address: "127.0.0.1".parse().ok(),
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(test);
}

/// A port of this host that gives each of these answers once, and then takes connections and says nothing.
async fn serve(answers: &'static [&'static [u8]]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let mut silent = Vec::new();
        let mut answers = answers.iter();
        while let Ok((mut stream, _)) = listener.accept().await {
            let Some(answer) = answers.next() else {
                silent.push(stream);
                continue;
            };
            let mut request = [0; 4096];
            let n = stream.read(&mut request).await.unwrap_or(0);
            assert!(request[..n].starts_with(b"GET /health HTTP/1.1\r\n"));
            let _ = stream.write_all(answer).await;
        }
    });
    port
}

fn http(port: u16) -> Probe {
    Probe {
        http_get: Some(HttpAction {
            path: "/health".to_owned(),
            port,
        }),
        ..Probe::default()
    }
}

#[test]
fn http_is_well_if_its_status_is_and_what_is_no_http_is_not() {
    run(async {
        let aim = aim(Path::new("/nowhere"));
        let port = serve(&[
            b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nbegin",
            b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n",
            b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
            b"\x1b[31mnothing like it\r\n\r\n",
            &[b'x'; 1 << 20],
            b"",
        ])
        .await;
        let probe = http(port);
        assert_eq!(aim.ask(&probe).await, Ok(()));
        assert_eq!(aim.ask(&probe).await, Ok(()));
        let why = aim.ask(&probe).await.expect_err("503");
        assert!(why.ends_with("/health answers 503"), "{why}");
        for _ in 0..3 {
            let why = aim.ask(&probe).await.expect_err("no HTTP");
            assert!(why.contains("does not answer"), "{why}");
        }
        // It takes the connection, and says nothing.
        let begin = Instant::now();
        let why = aim.ask(&probe).await.expect_err("silence");
        assert_eq!(why, "no answer within 1 s");
        assert!(begin.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn tcp_is_well_if_the_port_takes_connections() {
    run(async {
        let aim = aim(Path::new("/nowhere"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let probe = Probe {
            tcp_socket: Some(TcpAction { port }),
            ..Probe::default()
        };
        assert_eq!(aim.ask(&probe).await, Ok(()));
        drop(listener);
        let why = aim.ask(&probe).await.expect_err("nobody listens");
        assert!(
            why.contains(&format!(":{port} takes no connection")),
            "{why}"
        );
    });
}

#[test]
fn a_vsock_is_well_if_the_monitor_says_ok_and_not_if_it_says_anything_else() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("vsock");
        let listener = UnixListener::bind(&socket).expect("a listener");
        let answers: [&[u8]; 4] = [b"OK 1024\n", b"", b"NO\n", &[b'x'; 100]];
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = [0; 64];
                let n = stream.read(&mut request).await.unwrap_or(0);
                assert_eq!(&request[..n], b"CONNECT 5000\n");
                let _ = stream.write_all(answer).await;
            }
        });
        let probe = Probe {
            vsock: Some(VsockAction { port: 5000 }),
            ..Probe::default()
        };
        let aim = aim(&socket);
        assert_eq!(aim.ask(&probe).await, Ok(()));
        for _ in 0..3 {
            let why = aim.ask(&probe).await.expect_err("nobody listens");
            assert!(why.contains("port 5000 of its vsock"), "{why}");
        }
        let why = aim.ask(&probe).await.expect_err("nobody is there");
        assert!(why.contains("cannot be reached"), "{why}");
    });
}
