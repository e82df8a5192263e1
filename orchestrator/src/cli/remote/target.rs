//! Which host is asked, and how it is reached: its socket, or over the network as a `kubectl` configuration says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;

use super::client::{Client, Place};
use crate::cli::failure::Failure;

/// Which host is asked.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// The host's socket
    #[arg(
        long,
        value_name = "SOCKET",
        env = "SKERRY_SOCKET",
        default_value = "/var/lib/skerry/api.sock",
        global = true
    )]
    socket: PathBuf,
    /// A configuration as kubectl has it, of a host to be asked over the network instead
    #[arg(long, value_name = "FILE", env = "SKERRY_KUBECONFIG", global = true)]
    kubeconfig: Option<PathBuf>,
    /// A token (`skerry token create` makes one)
    #[arg(
        long,
        value_name = "TOKEN",
        env = "SKERRY_TOKEN",
        hide_env_values = true,
        global = true
    )]
    token: Option<String>,
}

/// What is read of a configuration; the rest is for others.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: String,
    contexts: Vec<Named>,
    clusters: Vec<Named>,
    users: Vec<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Named {
    name: String,
    context: Context,
    cluster: Cluster,
    user: User,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_key: Option<PathBuf>,
    token: Option<String>,
}

impl Target {
    /// A client for it. Nothing is sent yet.
    pub fn client(&self) -> Result<Client, Failure> {
        let Some(path) = &self.kubeconfig else {
            let place = Place::Socket(self.socket.clone());
            return Ok(Client::new(place, self.token.clone()));
        };
        let text = std::fs::read_to_string(path).map_err(|source| Failure::System {
            what: "read",
            path: path.clone(),
            source,
        })?;
        let wrong = |what: &str| Failure::Asked(format!("{}: {what}", path.display()));
        let all: Kubeconfig =
            serde_saphyr::from_str(&text).map_err(|e| wrong(&format!("it cannot be read: {e}")))?;
        let find = |list: &[Named], name: &str| list.iter().position(|one| one.name == name);
        let context = find(&all.contexts, &all.current_context)
            .ok_or_else(|| wrong("its `current-context` names none of its contexts"))?;
        let context = &all.contexts[context].context;
        let cluster = find(&all.clusters, &context.cluster)
            .ok_or_else(|| wrong("its context names none of its clusters"))?;
        let user = find(&all.users, &context.user);
        let (cluster, none) = (&all.clusters[cluster].cluster, User::default());
        let user = user.map_or(&none, |at| &all.users[at].user);
        let address = cluster.server.strip_prefix("https://");
        let address = address.map(|address| address.trim_end_matches('/'));
        let address = address.ok_or_else(|| wrong("its server is no `https://HOST:PORT`"))?;
        let (host, _) = address
            .rsplit_once(':')
            .ok_or_else(|| wrong("its server has no port: write https://HOST:PORT"))?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| wrong("its server is no name and no address"))?;
        let config = config(cluster, user).map_err(|why| wrong(&why))?;
        let place = Place::Tls {
            address: address.to_owned(),
            name,
            config: Arc::new(config),
        };
        Ok(Client::new(
            place,
            self.token.clone().or_else(|| user.token.clone()),
        ))
    }
}

fn config(cluster: &Cluster, user: &User) -> Result<ClientConfig, String> {
    let unusable = |e: rustls::Error| format!("its certificates cannot be used: {e}");
    let authority = cluster.certificate_authority.as_deref();
    let authority = authority.ok_or("its cluster names no file as `certificate-authority`")?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority)? {
        roots.add(certificate).map_err(unusable)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots);
    match (&user.client_certificate, &user.client_key) {
        (Some(certificate), Some(key)) => {
            let shown = key.display();
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| format!("cannot read {shown}: {e}"))?;
            let config = config.with_client_auth_cert(certificates(certificate)?, key);
            config.map_err(unusable)
        }
        (None, None) => Ok(config.with_no_client_auth()),
        _ => Err("its user has `client-certificate` or `client-key` alone: name both".to_owned()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|e| format!("cannot read {}: {e}", path.display()))
}
