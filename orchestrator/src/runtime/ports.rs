//! Workloads' ports in networks: made when a workload starts that wants some. The network `default` is made for the
//! first of its workloads, so that a host without networks is left as it is.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{RuntimeError, system};
use crate::model::{Object, Port};
use crate::network::{Net, NetworkError, Plan, Registry, Tap, Who, all_of, guest_words, zone};

/// The ports of a host's workloads. Its calls block.
pub struct Ports {
    registry: Arc<Registry>,
    /// Where it is written for containers who resolves names.
    resolvers: PathBuf,
}

/// Where a container is.
pub struct Made {
    /// Its network namespace.
    pub path: PathBuf,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its `/etc/resolv.conf`.
    pub names: PathBuf,
}

/// A workload's networks, and its addresses there.
type Places = Vec<(Net, Ipv4Addr)>;

impl Ports {
    /// Those in the networks of `registry`; what is told containers lies in `resolvers`.
    pub fn new(registry: Arc<Registry>, resolvers: &Path) -> Arc<Ports> {
        Arc::new(Ports {
            registry,
            resolvers: resolvers.to_owned(),
        })
    }

    /// What the networks of a workload make of what it wants.
    fn plan(&self, object: &Object, ports: &[Port]) -> Result<(Vec<Plan>, Places), NetworkError> {
        let meta = &object.meta;
        let status = object.body.get("status");
        let told = status.and_then(|status| status.get("addresses")?.as_array());
        let told = told.into_iter().flatten();
        let had: Vec<Ipv4Addr> = told.filter_map(|one| one.as_str()?.parse().ok()).collect();
        self.registry.know(Who {
            uid: meta.uid.clone(),
            kind: object.kind.kind,
            tenant: meta.namespace.clone(),
            name: meta.name.clone(),
        });
        let (mut plans, mut places) = (Vec::new(), Vec::new());
        for port in ports {
            let (net, limits) = self.registry.named(&meta.namespace, &port.network)?;
            let asked = port.address.parse().ok();
            let address = self.registry.take(&net, &meta.uid, asked, &had)?;
            let own = port.bandwidth.as_ref().map(|own| own.limits());
            plans.push(Plan {
                net: net.id.clone(),
                tenant: meta.namespace.clone(),
                address,
                limits: own.unwrap_or(limits),
            });
            places.push((net, address));
        }
        let nets: Vec<_> = plans.iter().map(|plan| plan.net.clone()).collect();
        self.registry.free_but(&meta.uid, &nets);
        Ok((plans, places))
    }

    /// A VM's taps, its addresses, and what is added to its kernel's command line.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn taps(
        &self,
        object: &Object,
        ports: &[Port],
    ) -> Result<(Vec<Tap>, Vec<String>, String), RuntimeError> {
        if ports.is_empty() {
            return Ok((Vec::new(), Vec::new(), String::new()));
        }
        let made = || {
            let (plans, places) = self.plan(object, ports)?;
            let networks = &self.registry.networks;
            let taps = networks.attach_taps(&object.meta.uid, &plans, 1)?;
            self.registry.tell();
            let words = guest_words(&object.meta.namespace, &places);
            Ok((taps, addresses(&places), words))
        };
        made().map_err(RuntimeError::Network)
    }

    /// A container's network namespace, and what it is told.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn namespace(&self, object: &Object, ports: &[Port]) -> Result<Option<Made>, RuntimeError> {
        if ports.is_empty() {
            return Ok(None);
        }
        let uid = &object.meta.uid;
        let made = || {
            let (plans, places) = self.plan(object, ports)?;
            let path = self.registry.networks.attach_netns(uid, &plans)?;
            self.registry.tell();
            Ok((path, places))
        };
        let (path, places) = made().map_err(RuntimeError::Network)?;
        let names = self.resolvers.join(uid);
        let written = write(&names, &resolver(&object.meta.namespace, &places));
        written.map_err(system(format!("write {}", names.display())))?;
        Ok(Some(Made {
            path,
            addresses: addresses(&places),
            names,
        }))
    }

    /// Removes what a workload has here.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn detach(&self, uid: &str) -> Result<(), RuntimeError> {
        let detached = self.registry.networks.detach(uid);
        detached.map_err(RuntimeError::Network)?;
        self.registry.free_but(uid, &[]);
        let names = self.resolvers.join(uid);
        match fs::remove_file(&names) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(system(format!("remove {}", names.display()))(e))
            }
            _ => Ok(()),
        }
    }
}

/// IPv4 addresses in the order of their networks, and IPv6 addresses behind them.
fn addresses(places: &[(Net, Ipv4Addr)]) -> Vec<String> {
    let all = places
        .iter()
        .flat_map(|(net, address)| all_of(net, *address));
    let (four, six): (Vec<IpAddr>, Vec<IpAddr>) = all.partition(IpAddr::is_ipv4);
    four.iter().chain(&six).map(IpAddr::to_string).collect()
}

/// What a container's `/etc/resolv.conf` says (resolv.conf(5)).
fn resolver(tenant: &str, places: &[(Net, Ipv4Addr)]) -> String {
    let gateways = places.iter().map(|(net, _)| net.subnet.gateway());
    let servers = gateways.map(|gateway| format!("nameserver {gateway}\n"));
    // More than three are not asked.
    let servers: String = servers.take(3).collect();
    format!("search {}\n{servers}", zone::search(tenant))
}

/// Writes a file in place: it may be mounted.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)?;
    }
    match fs::read_to_string(path) {
        Ok(there) if there == text => Ok(()),
        _ => fs::write(path, text),
    }
}
