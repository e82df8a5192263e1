//! Connections over TCP: ports, and certificates for them.

use std::path::PathBuf;

use crate::eventually;
use crate::vmm::SHORT;

/// A folder with a certificate for 127.0.0.1 of a new authority, and what signs further ones.
pub fn certificate(folder: PathBuf) -> PathBuf {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let (ca_key, key) = (
        KeyPair::generate().expect("a key"),
        KeyPair::generate().expect("a key"),
    );
    let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = ca.self_signed(&ca_key).expect("a certificate");
    let issuer = Issuer::new(ca, ca_key);
    let host = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    let own = host.signed_by(&key, &issuer).expect("a certificate");
    for (name, text) in [
        ("ca.pem", authority.pem()),
        ("cert.pem", own.pem()),
        ("key.pem", key.serialize_pem()),
    ] {
        std::fs::write(folder.join(name), text).expect("a file");
    }
    folder
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Waits until a port is listened on, without connecting: that would be taken for whoever is waited for.
pub fn listened_on(port: u16) {
    let line = format!("0100007F:{port:04X}");
    eventually("the port is listened on", SHORT, || {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
        table.contains(&line).then_some(())
    });
}
