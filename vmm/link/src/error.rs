//! Why there is no connection.

use std::io;

use thiserror::Error;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum LinkError {
    /// It cannot be read.
    #[error("`{0}` is no address: give unix:/path/of/a/socket or tcp:HOST:PORT")]
    Address(String),
    /// Nobody said that this is wanted.
    #[error(
        "tcp without TLS carries the guest's memory in the clear: give tls_dir=DIR with cert.pem, key.pem and ca.pem, or insecure=true"
    )]
    Insecure,
    /// The certificates are not to be used.
    #[error("cannot use the certificates in {dir}: {what}")]
    Tls {
        /// Their directory.
        dir: String,
        /// What is wrong.
        what: String,
    },
    /// The system refused.
    #[error("cannot {what} {at}")]
    System {
        /// What was tried.
        what: &'static str,
        /// With which address.
        at: String,
        /// What the system said.
        source: io::Error,
    },
}
