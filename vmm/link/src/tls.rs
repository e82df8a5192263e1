//! TLS over TCP, mutual: both sides show a certificate of one authority.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use crate::connection::Stream;
use crate::socket::Bytes;
use crate::{Address, LinkError};

/// What secures a connection to or from `address`: over TCP there is something, unless it is said that nothing
/// is wanted.
pub fn security(
    address: &Address,
    tls_dir: Option<&Path>,
    insecure: bool,
) -> Result<Option<Identity>, LinkError> {
    match (address, tls_dir) {
        (Address::Unix(_), _) => Ok(None),
        (Address::Tcp(_), Some(directory)) => Identity::read(directory).map(Some),
        (Address::Tcp(_), None) if insecure => Ok(None),
        (Address::Tcp(_), None) => Err(LinkError::Insecure),
    }
}

/// A host's certificate, its key, and the authority that it believes.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: Arc<RootCertStore>,
    directory: String,
}

impl Identity {
    /// Reads `cert.pem`, `key.pem` and `ca.pem`.
    pub fn read(directory: &Path) -> Result<Identity, LinkError> {
        let shown = directory.display().to_string();
        let failed = |file: &str, e: &dyn std::fmt::Display| LinkError::Tls {
            dir: shown.clone(),
            what: format!("{file}: {e}"),
        };
        let certificates = |file: &str| -> Result<Vec<_>, LinkError> {
            let read = CertificateDer::pem_file_iter(directory.join(file));
            let list = read.and_then(Iterator::collect::<Result<Vec<_>, _>>);
            match list {
                Ok(list) if list.is_empty() => Err(failed(file, &"it has no certificate")),
                Ok(list) => Ok(list),
                Err(e) => Err(failed(file, &e)),
            }
        };
        let mut authority = RootCertStore::empty();
        for certificate in certificates("ca.pem")? {
            authority
                .add(certificate)
                .map_err(|e| failed("ca.pem", &e))?;
        }
        Ok(Identity {
            chain: certificates("cert.pem")?,
            key: PrivateKeyDer::from_pem_file(directory.join("key.pem"))
                .map_err(|e| failed("key.pem", &e))?,
            authority: Arc::new(authority),
            directory: shown.clone(),
        })
    }

    fn failed(&self, e: impl std::fmt::Display) -> LinkError {
        LinkError::Tls {
            dir: self.directory.clone(),
            what: e.to_string(),
        }
    }

    /// Goes over a connection to `host`, whose certificate must be for that name or address.
    pub(crate) fn connect(self, host: &str, bytes: Bytes) -> Result<Box<dyn Stream>, LinkError> {
        let name = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(name).map_err(|e| self.failed(e))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| self.failed(e))?
            .with_root_certificates(self.authority.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| self.failed(e))?;
        let connection =
            ClientConnection::new(Arc::new(config), name).map_err(|e| self.failed(e))?;
        Ok(Box::new(StreamOwned::new(connection, bytes)))
    }

    /// Goes over a connection that was accepted, from whoever has a certificate of the authority.
    pub(crate) fn accept(self, bytes: Bytes) -> Result<Box<dyn Stream>, LinkError> {
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.authority.clone(), provider.clone())
                .build()
                .map_err(|e| self.failed(e))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| self.failed(e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| self.failed(e))?;
        let connection = ServerConnection::new(Arc::new(config)).map_err(|e| self.failed(e))?;
        Ok(Box::new(StreamOwned::new(connection, bytes)))
    }
}
