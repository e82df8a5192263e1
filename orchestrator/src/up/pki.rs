//! Certificates of a host that has no other authority: its own, made once.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use super::State;
use crate::api::Tls;

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// They cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// A file cannot be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The address has no port.
    #[error("`{0}` is no address to listen on: write IP:PORT, such as 0.0.0.0:6443")]
    Address(String),
}

/// Makes what is missing: an authority, the server's certificate, an administrator's, and a configuration for
/// `kubectl`.
pub fn prepare(state: &State, listen: &str) -> Result<Tls, PkiError> {
    let address: SocketAddr = listen
        .parse()
        .map_err(|_| PkiError::Address(listen.to_owned()))?;
    let folder = state.pki();
    let file = |name: &str| folder.join(name);
    if !file("ca.pem").exists() {
        let (key, ca) = (KeyPair::generate()?, authority()?);
        write(&file("ca.key"), &key.serialize_pem())?;
        write(&file("ca.pem"), &ca.self_signed(&key)?.pem())?;
    }
    let ca = read(&file("ca.pem"))?;
    let key = KeyPair::from_pem(&read(&file("ca.key"))?)?;
    let issuer = Issuer::from_ca_cert_pem(&ca, key)?;
    // Short work, and addresses may have changed: the server's is made anew at each start.
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let ip = address.ip();
    if !ip.is_unspecified() && !ip.is_loopback() {
        names.push(ip.to_string());
    }
    let usage = ExtendedKeyUsagePurpose::ServerAuth;
    let issued = issue(
        &issuer,
        "skerry",
        names,
        usage,
        &file("server.pem"),
        &file("server.key"),
    );
    match issued {
        // A full disk does not keep a host down: the one before is mostly as good.
        Err(PkiError::File { source, .. })
            if source.kind() == ErrorKind::StorageFull && file("server.pem").exists() =>
        {
            log::warn!("the server's certificate stays as it was: the disk is full");
        }
        other => other?,
    }
    if !file("admin.pem").exists() {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        issue(
            &issuer,
            "admin",
            Vec::new(),
            usage,
            &file("admin.pem"),
            &file("admin.key"),
        )?;
    }
    let host = match ip.is_unspecified() {
        true => format!("127.0.0.1:{}", address.port()),
        false => address.to_string(),
    };
    write(&state.kubeconfig(), &kubeconfig(&folder, &host))?;
    Ok(Tls {
        ca: file("ca.pem"),
        cert: file("server.pem"),
        key: file("server.key"),
    })
}

fn named(name: &str) -> DistinguishedName {
    let mut found = DistinguishedName::new();
    found.push(DnType::CommonName, name);
    found
}

fn authority() -> Result<CertificateParams, rcgen::Error> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.distinguished_name = named("skerry authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(ca)
}

fn issue(
    issuer: &Issuer<KeyPair>,
    name: &str,
    names: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
    cert: &Path,
    key_file: &Path,
) -> Result<(), PkiError> {
    // A key that stays fits the certificate before and the next one, whichever is there in the end.
    let key = match std::fs::read_to_string(key_file) {
        Ok(text) => KeyPair::from_pem(&text)?,
        Err(_) => {
            let key = KeyPair::generate()?;
            write(key_file, &key.serialize_pem())?;
            key
        }
    };
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = named(name);
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    write(cert, &params.signed_by(&key, issuer)?.pem())
}

/// What `kubectl --kubeconfig` reads.
fn kubeconfig(folder: &Path, host: &str) -> String {
    let folder = folder.display();
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: skerry\n\
         \x20 cluster: {{server: \"https://{host}\", certificate-authority: \"{folder}/ca.pem\"}}\n\
         users:\n\
         - name: admin\n\
         \x20 user: {{client-certificate: \"{folder}/admin.pem\", client-key: \"{folder}/admin.key\"}}\n\
         contexts:\n\
         - name: skerry\n\
         \x20 context: {{cluster: skerry, user: admin, namespace: default}}\n\
         current-context: skerry\n"
    )
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })
}

/// Writes a file that its owner alone can read, whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    let failed = |source| PkiError::File {
        what: "write",
        path: path.to_owned(),
        source,
    };
    if std::fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    let partial = path.with_extension("partial");
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&partial).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written.map_err(failed)?;
    std::fs::rename(&partial, path).map_err(failed)
}
