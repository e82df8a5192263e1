//! Who is in which network, by which names and addresses: what is declared, beside what the kernel has. Its calls
//! that change something block; those that look do not.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;

use super::{Addresses, DEFAULT, Limits, Mac, Net, NetworkError, Networks, Subnet};

/// How long a workload waits for a network that was declared just before it.
const JUST_BEFORE: Duration = Duration::from_millis(500);

/// A workload, as its tenant knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Its uid.
    pub uid: String,
    /// `MicroVM` or `Container`.
    pub kind: &'static str,
    /// Its tenant.
    pub tenant: String,
    /// Its name.
    pub name: String,
}

/// The names of a tenant's services.
pub trait ServiceNames: Send + Sync {
    /// The addresses of a service of a tenant. It does not wait for anything.
    fn addresses(&self, tenant: &str, name: &str) -> Vec<IpAddr>;
}

/// The networks of a host and who is in them.
pub struct Registry {
    /// What the kernel has.
    pub networks: Networks,
    books: Mutex<Books>,
    /// A network has come.
    come: Condvar,
    changed: watch::Sender<()>,
    services: RwLock<Option<Arc<dyn ServiceNames>>>,
}

#[derive(Default)]
struct Books {
    /// The ids of networks by tenant and name, with what their ports are limited to.
    named: HashMap<(String, String), (String, Limits)>,
    /// Who has which address, by the networks' ids.
    addresses: HashMap<String, Addresses>,
    who: HashMap<String, Who>,
    /// Uids of a tenant's workloads of a name: a VM and a container may share it.
    uids: HashMap<(String, String), BTreeSet<String>>,
}

impl Registry {
    /// That of a host whose network `default` has a subnet, with containers' namespaces in `folder`. Those that are
    /// there keep their networks and addresses.
    ///
    /// # Errors
    /// If they cannot be looked at.
    pub fn open(subnet: Subnet, folder: &Path) -> Result<Arc<Registry>, NetworkError> {
        let networks = Networks::new(subnet, folder);
        let mut books = Books::default();
        let found = networks.adopt()?;
        books
            .addresses
            .insert(DEFAULT.to_owned(), Addresses::new(subnet));
        for net in networks.all() {
            let addresses = Addresses::new(net.subnet);
            books.addresses.insert(net.id, addresses);
        }
        for found in found {
            for (net, address) in found.addresses {
                if let Some(addresses) = books.addresses.get_mut(&net) {
                    // One that does not fit any more is told when its workload starts.
                    let _ = addresses.take(&found.uid, Some(address));
                }
            }
        }
        Ok(Arc::new(Registry {
            networks,
            books: Mutex::new(books),
            come: Condvar::new(),
            changed: watch::Sender::new(()),
            services: RwLock::new(None),
        }))
    }

    /// One in which nothing is done: it has a network `default` and a workload of each of some tenants and names,
    /// with addresses from 10.88.0.2 on.
    #[cfg(test)]
    pub fn pretended(workloads: &[(&str, &str)]) -> Arc<Registry> {
        let registry = Registry::open(Subnet::default(), Path::new("/nowhere")).expect("it can be");
        let net = Net::default(Subnet::default());
        registry.networks.pretend(net.clone());
        for (n, (tenant, name)) in (2..).zip(workloads) {
            let uid = format!("{tenant}-{name}");
            let address = Ipv4Addr::new(10, 88, 0, n);
            registry
                .take(&net, &uid, Some(address), &[])
                .expect("it is free");
            registry.know(Who {
                uid,
                kind: "Container",
                tenant: (*tenant).to_owned(),
                name: (*name).to_owned(),
            });
        }
        registry
    }

    /// Tells of every change of networks.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Makes a tenant's network, by its name and with what its ports are limited to.
    ///
    /// # Errors
    /// If it cannot be, as [`Networks::declare`].
    pub fn declare(
        &self,
        tenant: &str,
        name: &str,
        net: &Net,
        limits: Limits,
    ) -> Result<(), NetworkError> {
        self.networks.declare(net)?;
        let is_new = !self.books.lock().addresses.contains_key(&net.id);
        // Its bridge may be new, and its ports are not.
        let found = match is_new {
            true => self.networks.found()?,
            false => Vec::new(),
        };
        let mut books = self.books.lock();
        let key = (tenant.to_owned(), name.to_owned());
        books.named.insert(key, (net.id.clone(), limits));
        let addresses = books.addresses.entry(net.id.clone());
        let addresses = addresses.or_insert_with(|| Addresses::new(net.subnet));
        if addresses.subnet() != net.subnet {
            *addresses = Addresses::new(net.subnet);
        }
        for found in found {
            for (_, address) in found.addresses.iter().filter(|(id, _)| *id == net.id) {
                // One that does not fit any more is told when its workload starts.
                let _ = addresses.take(&found.uid, Some(*address));
            }
        }
        self.come.notify_all();
        self.changed.send_replace(());
        Ok(())
    }

    /// Removes one.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn undeclare(&self, id: &str) -> Result<(), NetworkError> {
        self.networks.undeclare(id)?;
        let mut books = self.books.lock();
        books.named.retain(|_, (other, _)| other != id);
        books.addresses.remove(id);
        self.changed.send_replace(());
        Ok(())
    }

    /// The network that a tenant calls so, and what its ports are limited to. Where a tenant has none called
    /// `default`, that is this host's. One that was declared just now is waited for.
    ///
    /// # Errors
    /// [`NetworkError::Missing`].
    pub fn named(&self, tenant: &str, name: &str) -> Result<(Net, Limits), NetworkError> {
        let name = if name.is_empty() { DEFAULT } else { name };
        let key = (tenant.to_owned(), name.to_owned());
        let mut books = self.books.lock();
        if name != DEFAULT && !books.named.contains_key(&key) {
            let mut missing = |books: &mut Books| !books.named.contains_key(&key);
            self.come
                .wait_while_for(&mut books, &mut missing, JUST_BEFORE);
        }
        let (id, limits) = match books.named.get(&key) {
            Some(found) => found.clone(),
            None if name == DEFAULT => (DEFAULT.to_owned(), Limits::default()),
            None => {
                return Err(NetworkError::Missing {
                    name: name.to_owned(),
                    tenant: tenant.to_owned(),
                });
            }
        };
        drop(books);
        Ok((self.networks.get(&id)?, limits))
    }

    /// Gives a workload an address in a network: the one that it asks for, else one of those that it had, else a
    /// free one.
    ///
    /// # Errors
    /// If it cannot have it, or there is none.
    pub fn take(
        &self,
        net: &Net,
        uid: &str,
        asked: Option<Ipv4Addr>,
        had: &[Ipv4Addr],
    ) -> Result<Ipv4Addr, NetworkError> {
        let mut books = self.books.lock();
        let addresses = books.addresses.get_mut(&net.id);
        let addresses = addresses.ok_or(NetworkError::Unknown)?;
        if asked.is_none() && addresses.of(uid).is_none() {
            let fitting = had.iter().find(|had| net.subnet.contains(**had));
            if let Some(had) = fitting
                && let Ok(address) = addresses.take(uid, Some(*had))
            {
                return Ok(address);
            }
        }
        addresses.take(uid, asked)
    }

    /// Lets others have what a workload had in networks, but in those.
    pub fn free_but(&self, uid: &str, nets: &[String]) {
        let mut books = self.books.lock();
        for (net, addresses) in &mut books.addresses {
            if !nets.contains(net) {
                addresses.free(uid);
            }
        }
    }

    /// Networks may be others, such as `default`, which is there as soon as somebody is in it.
    pub fn tell(&self) {
        self.changed.send_replace(());
    }

    /// How many addresses of a network are in use.
    pub fn used(&self, net: &str) -> usize {
        let books = self.books.lock();
        books.addresses.get(net).map_or(0, Addresses::used)
    }

    /// Who has addresses in a network.
    pub fn inside(&self, net: &str) -> Vec<Who> {
        let books = self.books.lock();
        let uids = books.addresses.get(net).map(Addresses::uids);
        let uids = uids.into_iter().flatten();
        uids.filter_map(|uid| books.who.get(uid).cloned()).collect()
    }

    /// Lets `services` say which addresses services have.
    pub fn set_services(&self, services: Arc<dyn ServiceNames>) {
        *self.services.write() = Some(services);
    }

    /// The addresses of a tenant's service.
    pub fn service(&self, tenant: &str, name: &str) -> Vec<IpAddr> {
        let services = self.services.read();
        let found = services.as_ref().map(|all| all.addresses(tenant, name));
        found.unwrap_or_default()
    }

    /// Notes how a tenant calls a workload.
    pub fn know(&self, who: Who) {
        let mut books = self.books.lock();
        let key = (who.tenant.clone(), who.name.clone());
        books.uids.entry(key).or_default().insert(who.uid.clone());
        books.who.insert(who.uid.clone(), who);
    }

    /// Forgets that, when the workload is gone.
    pub fn forget(&self, uid: &str) {
        let mut books = self.books.lock();
        let Some(who) = books.who.remove(uid) else {
            return;
        };
        let key = (who.tenant, who.name);
        if let Some(uids) = books.uids.get_mut(&key) {
            uids.remove(uid);
            if uids.is_empty() {
                books.uids.remove(&key);
            }
        }
    }

    /// The workload that has an address in one of the networks: what comes from there by a bridge of ours was sent
    /// by it, as nobody else can.
    pub fn whose(&self, address: IpAddr) -> Option<Who> {
        let nets = self.networks.all();
        let address = match address {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => {
                let net = nets
                    .iter()
                    .find(|net| net.subnet6.is_some_and(|subnet| subnet.contains(address)))?;
                Mac::of_interface(address)?.address(net.subnet)?
            }
        };
        let net = nets.iter().find(|net| net.subnet.contains(address))?;
        let books = self.books.lock();
        let uid = books.addresses.get(&net.id)?.user(address)?;
        books.who.get(uid).cloned()
    }

    /// The addresses in a network of a tenant's workloads of a name.
    pub fn addresses(&self, net: &Net, tenant: &str, name: &str) -> Vec<IpAddr> {
        let books = self.books.lock();
        let key = (tenant.to_owned(), name.to_owned());
        let (Some(uids), Some(addresses)) = (books.uids.get(&key), books.addresses.get(&net.id))
        else {
            return Vec::new();
        };
        let found = uids.iter().filter_map(|uid| addresses.of(uid));
        found.flat_map(|address| all_of(net, address)).collect()
    }
}

/// All addresses of whoever has this one.
pub fn all_of(net: &Net, address: Ipv4Addr) -> impl Iterator<Item = IpAddr> {
    let six = net.subnet6.map(|subnet| subnet.of(Mac::of(address)));
    [Some(address.into()), six.map(IpAddr::V6)]
        .into_iter()
        .flatten()
}
