//! Where the API is served: a Unix socket for the local user, TCP with TLS for everybody else.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_rustls::TlsAcceptor;

use super::caller::Caller;
use super::connections::Connections;

/// A handshake is done within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection is silent before its peer is asked whether it is there, and between questions.
const ALIVE: Duration = Duration::from_secs(30);
/// After an error of the listener itself, such as no more descriptors.
const REST: Duration = Duration::from_millis(100);

/// What TLS needs.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The authority of clients.
    pub ca: PathBuf,
    /// The server's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or malformed.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The files do not fit together.
    #[error("the certificates cannot be used: {0}")]
    Use(String),
}

impl Tls {
    fn config(&self) -> Result<ServerConfig, TlsError> {
        let unusable = |e: &dyn std::error::Error| TlsError::Use(e.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|e| unusable(&e))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        // Without a certificate there has to be a token, which is seen to when something is asked for.
        let verifier = verifier.allow_unauthenticated();
        let verifier = verifier.build().map_err(|e| unusable(&e))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|source| TlsError::Read {
            path: self.key.clone(),
            source,
        })?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&self.cert)?, key)
            .map_err(|e| unusable(&e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

/// An open socket.
pub enum Listening {
    /// For the local user.
    Unix(UnixListener),
    /// For clients with certificates or tokens.
    Tls(TcpListener, Arc<ServerConfig>),
}

impl Listening {
    /// A Unix socket that its owner alone can use. What an ended server left there is removed.
    ///
    /// # Errors
    /// If somebody listens there, or the system refuses.
    pub fn unix(path: &Path) -> io::Result<Listening> {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(_) => {}
        }
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        listener.map(Listening::Unix)
    }

    /// A TCP port with TLS, whose clients show certificates or send tokens.
    ///
    /// # Errors
    /// If the certificates cannot be used, or the system refuses.
    pub async fn tls(address: &str, tls: &Tls) -> io::Result<Listening> {
        let config = tls.config().map_err(io::Error::other)?;
        let listener = TcpListener::bind(address).await?;
        Ok(Listening::Tls(listener, Arc::new(config)))
    }

    /// Serves the API there, for ever.
    ///
    /// # Errors
    /// Never, as long as the listener is one.
    pub async fn serve(self, router: Router) -> io::Result<()> {
        let connections = Connections::new(router);
        match self {
            Listening::Unix(listener) => local(listener, connections).await,
            Listening::Tls(listener, config) => {
                remote(listener, TlsAcceptor::from(config), connections).await
            }
        }
        Ok(())
    }
}

async fn local(listener: UnixListener, connections: Connections) {
    loop {
        let seat = connections.seat().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let connections = connections.clone();
                tokio::spawn(async move { connections.serve(stream, Caller::Known, seat).await });
            }
            Err(e) => rest(&e).await,
        }
    }
}

async fn remote(listener: TcpListener, acceptor: TlsAcceptor, connections: Connections) {
    loop {
        let seat = connections.seat().await;
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                rest(&e).await;
                continue;
            }
        };
        let lent = seat.clone();
        let (acceptor, connections) = (acceptor.clone(), connections.clone());
        let task = tokio::spawn(async move {
            // One that goes without a word is noticed.
            if let Err(e) = steady(&stream) {
                log::debug!("{from}: {e}");
            }
            let stream = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(e)) => return log::debug!("{from} is not let in: {e}"),
                Err(_) => return log::debug!("{from} is not let in: it is too slow"),
            };
            let caller = match stream.get_ref().1.peer_certificates() {
                Some([_, ..]) => Caller::Known,
                _ => Caller::Stranger,
            };
            connections.serve(stream, caller, seat).await;
        });
        lent.lend(task.abort_handle());
    }
}

async fn rest(error: &io::Error) {
    // Out of descriptors, perhaps: others have to end first.
    log::warn!("cannot accept a connection: {error}");
    tokio::time::sleep(REST).await;
}

/// Small pieces go at once, and a peer that does not answer for some minutes is gone.
fn steady(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, ALIVE)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}
