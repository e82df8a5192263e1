//! The networks of a host: for each a bridge whose first address is this host's and the workloads' gateway, NAT to
//! all that is outside, and a port for each workload, which can send from its own addresses only. Networks do not
//! reach each other.
//!
//! All there is of them is in the kernel and found there again: nothing is written down. Calls of [`Networks`] wait
//! for the kernel, a few milliseconds as a rule and five seconds a question at most, so async code makes them on a
//! blocking thread; none changes the namespace of its caller's thread.

mod addresses;
mod attach;
mod error;
pub mod keeper;
mod kernel;
mod limits;
mod links;
mod net;
mod netlink;
mod netns;
mod nft;
mod pool;
mod port;
mod registry;
mod rules;
pub mod serve;
pub mod services;
mod subnet;
mod subnet6;
mod tap;
mod words;
pub mod zone;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, RwLock};

pub use addresses::Addresses;
pub use attach::{Plan, Tap};
pub use error::NetworkError;
pub use limits::Limits;
pub use net::{DEFAULT, Net};
pub use port::{MOST, is_tenant};
pub use registry::{Registry, ServiceNames, Who, all_of};
pub use subnet::{Mac, Subnet};
pub use subnet6::Subnet6;
pub use words::guest_words;

use self::error::system;
use self::netlink::Netlink;
use self::port::Port;

/// Where workloads ask what they are: this host has this address on every bridge.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// All networks of a host.
#[derive(Debug)]
pub struct Networks {
    default: Net,
    folder: PathBuf,
    /// One change at a time: the rules are made of all networks and ports there are.
    turn: Mutex<State>,
    /// The networks as of the last change, for those who must not wait for one.
    known: RwLock<Vec<Net>>,
}

#[derive(Debug, Default)]
struct State {
    /// Those that are to be here.
    nets: Vec<Net>,
    /// The tenants' numbers in the rules.
    tenants: rules::Tenants,
    /// What the kernel counted when the rules were as they are to be.
    generation: Option<u32>,
}

/// A workload that has something here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The workload.
    pub uid: String,
    /// Its networks and its addresses there.
    pub addresses: Vec<(String, Ipv4Addr)>,
}

impl Networks {
    /// Those of a host whose network `default` has a subnet, with containers' namespaces in `folder`. Nothing is
    /// done yet.
    pub fn new(subnet: Subnet, folder: &Path) -> Networks {
        Networks {
            default: Net::default(subnet),
            folder: folder.to_owned(),
            turn: Mutex::new(State::default()),
            known: RwLock::default(),
        }
    }

    /// Takes over the networks that are there, as they are, and says who is in them.
    pub fn adopt(&self) -> Result<Vec<Found>, NetworkError> {
        let found = self.found()?;
        let mut state = self.turn.lock();
        let mut netlink = kernel::open()?;
        for (net, _) in kernel::bridges(&mut netlink)? {
            // What `default` is to be is known better.
            let net = match net.id.as_str() {
                DEFAULT => self.default.clone(),
                _ => net,
            };
            state.insert(net);
        }
        let in_default = |found: &Found| found.addresses.iter().any(|(net, _)| net == DEFAULT);
        if found.iter().any(in_default) {
            state.insert(self.default.clone());
        }
        self.publish(&state);
        Ok(found)
    }

    fn publish(&self, state: &State) {
        self.known.write().clone_from(&state.nets);
    }

    /// Lets a network seem to be here.
    #[cfg(test)]
    pub fn pretend(&self, net: Net) {
        self.known.write().push(net);
    }

    /// Those that are to be here. It does not wait for the kernel.
    pub fn all(&self) -> Vec<Net> {
        self.known.read().clone()
    }

    /// One of them; `default` is there as soon as it is asked for. It does not wait for the kernel.
    pub fn get(&self, id: &str) -> Result<Net, NetworkError> {
        if id == DEFAULT {
            return Ok(self.default.clone());
        }
        let known = self.known.read();
        let found = known.iter().find(|net| net.id == id);
        found.cloned().ok_or(NetworkError::Unknown)
    }

    /// Makes a network, or makes it another one.
    ///
    /// # Errors
    /// If its addresses are others', or workloads have addresses that it would not have any more.
    pub fn declare(&self, net: &Net) -> Result<(), NetworkError> {
        let mut state = self.turn.lock();
        let mut netlink = kernel::open()?;
        if let Some(old) = state.nets.iter().find(|old| old.id == net.id) {
            if old == net {
                return self.check_all(&mut state, &mut netlink);
            }
            let moved = (old.subnet, old.subnet6) != (net.subnet, net.subnet6);
            let ports = kernel::ports(&mut netlink)?;
            let inside = ports.iter().filter(|port| port.net == net.id).count();
            if moved && inside > 0 {
                return Err(NetworkError::Busy(inside));
            }
        }
        let mut others = state.nets.clone();
        others.push(self.default.clone());
        kernel::is_free(&mut netlink, net, &others)?;
        let is_new = !state.nets.iter().any(|old| old.id == net.id);
        let had6 = state.has6();
        state.insert(net.clone());
        self.publish(&state);
        if !is_new || !state.is_current()? {
            return self.build(&mut state, &mut netlink);
        }
        // It has no ports yet, and all others are as they are to be.
        kernel::set_bridge(&mut netlink, net)?;
        state.set_filter(had6)
    }

    /// A subnet of the pool for a network of this uid that is nobody's yet.
    pub fn choose(&self, uid: &str) -> Result<Subnet, NetworkError> {
        let state = self.turn.lock();
        let mut netlink = kernel::open()?;
        let mut others = state.nets.clone();
        others.push(self.default.clone());
        pool::choose(uid, |subnet| {
            let net = Net::of(uid, subnet, None, true);
            kernel::is_free(&mut netlink, &net, &others).is_ok()
        })
    }

    /// Removes a network, in which nobody is any more.
    ///
    /// # Errors
    /// If somebody is.
    pub fn undeclare(&self, id: &str) -> Result<(), NetworkError> {
        let mut state = self.turn.lock();
        let mut netlink = kernel::open()?;
        let links = kernel::links(&mut netlink)?;
        let ports = links.iter().map(|link| Port::read(&link.name, &link.alias));
        let inside = ports.flatten().filter(|port| port.net == id).count();
        if inside > 0 {
            return Err(NetworkError::Inhabited(inside));
        }
        let known = state.nets.iter().any(|net| net.id == id);
        let (had6, current) = (state.has6(), state.is_current()?);
        state.nets.retain(|net| net.id != id);
        self.publish(&state);
        // Rules come first: the kernel takes its time to remove a bridge.
        match (known, state.nets.is_empty()) {
            (false, _) => {}
            (true, false) if current => state.set_filter(had6)?,
            (true, false) => self.build(&mut state, &mut netlink)?,
            (true, true) => {
                state.generation = None;
                rules::remove()?;
            }
        }
        for (net, bridge) in kernel::bridges_of(links) {
            if net.id == id {
                kernel::delete(&mut netlink, &bridge)?;
            }
        }
        Ok(())
    }

    /// Makes whatever is missing of the network `default`, and of all others.
    pub fn ensure(&self) -> Result<(), NetworkError> {
        let mut state = self.turn.lock();
        let mut netlink = kernel::open()?;
        self.has_default(&mut state, &mut netlink)?;
        self.build(&mut state, &mut netlink)
    }

    /// Looks whether somebody has changed anything, and makes it again.
    pub fn check(&self) -> Result<(), NetworkError> {
        let mut state = self.turn.lock();
        if state.nets.is_empty() {
            return Ok(());
        }
        self.check_all(&mut state, &mut kernel::open()?)
    }

    fn check_all(&self, state: &mut State, netlink: &mut Netlink) -> Result<(), NetworkError> {
        if state.is_current()? && kernel::fits(netlink, &state.nets)? {
            return Ok(());
        }
        self.build(state, netlink)
    }

    /// Lets the network `default` be one of those that are to be here.
    fn has_default(&self, state: &mut State, netlink: &mut Netlink) -> Result<(), NetworkError> {
        if state.nets.iter().any(|net| net.id == DEFAULT) {
            return Ok(());
        }
        if kernel::look(netlink, &self.default.bridge)?.is_none() {
            kernel::is_free(netlink, &self.default, &state.nets)?;
        }
        state.insert(self.default.clone());
        self.publish(state);
        Ok(())
    }

    /// All workloads that have something here, by uid. Who is declared by nobody is to be detached.
    pub fn found(&self) -> Result<Vec<Found>, NetworkError> {
        let _turn = self.turn.lock();
        let folder = &self.folder;
        let names = netns::names(folder);
        let names = names.map_err(system(format!("look into {}", folder.display())))?;
        let uids = names.into_iter().filter(|name| port::name(name, 0).is_ok());
        let mut all: BTreeMap<String, Vec<Port>> = uids.map(|uid| (uid, Vec::new())).collect();
        for port in kernel::ports(&mut kernel::open()?)? {
            all.entry(port.uid.clone()).or_default().push(port);
        }
        let found = all.into_iter().map(|(uid, mut ports)| {
            ports.sort_by_key(|port| port.place);
            let addresses = ports.into_iter().map(|port| (port.net, port.address));
            Found {
                uid,
                addresses: addresses.collect(),
            }
        });
        Ok(found.collect())
    }

    /// Removes everything: all ports, the rules, the bridges. Forwarding stays on, as others may rely on it.
    pub fn remove(&self) -> Result<(), NetworkError> {
        for found in self.found()? {
            self.detach(&found.uid)?;
        }
        let mut state = self.turn.lock();
        let mut netlink = kernel::open()?;
        let mut nets = std::mem::take(&mut state.nets);
        self.publish(&state);
        nets.push(self.default.clone());
        for net in nets {
            if let Some(bridge) = kernel::look(&mut netlink, &net.bridge)? {
                kernel::is_bridge(&bridge, &net)?;
                kernel::delete(&mut netlink, &bridge)?;
            }
        }
        state.generation = None;
        rules::remove()
    }

    /// Makes whatever is missing, and lets the rest be: ports that somebody took off a bridge are put back, rules
    /// are written anew, and what an agent left half made is removed.
    fn build(&self, state: &mut State, netlink: &mut Netlink) -> Result<(), NetworkError> {
        state.generation = None;
        let mut bridges = BTreeMap::new();
        let seen = kernel::Seen::now(netlink)?;
        for net in &state.nets {
            let index = match seen.fitting(net) {
                Some(bridge) => bridge.index,
                None => kernel::set_bridge(netlink, net)?,
            };
            bridges.insert(net.id.clone(), index);
        }
        let mut ports = Vec::new();
        for link in seen.links {
            match Port::read(&link.name, &link.alias) {
                Some(port) => ports.push((port, link)),
                None if kernel::is_half_made(&link) => kernel::delete(netlink, &link)?,
                None => {}
            }
        }
        state.set_filter(true)?;
        let guarded: Vec<_> = ports.iter().map(|(port, _)| port.clone()).collect();
        state.tenants = rules::set_guard(&state.nets, &guarded)?;
        state.generation = nft::generation().ok();
        for (port, link) in ports {
            let Some(net) = state.nets.iter().find(|net| net.id == port.net) else {
                continue;
            };
            let Some(bridge) = bridges.get(&net.id) else {
                continue;
            };
            if link.bridge != Some(*bridge) || !link.up {
                kernel::plug(netlink, &port, link.index, (*bridge, &net.bridge))?;
            }
        }
        Ok(())
    }
}

impl State {
    fn insert(&mut self, net: Net) {
        match self.nets.iter_mut().find(|old| old.id == net.id) {
            Some(old) => *old = net,
            None => self.nets.push(net),
        }
    }

    /// Whether some network has IPv6.
    fn has6(&self) -> bool {
        self.nets.iter().any(|net| net.subnet6.is_some())
    }

    /// Sets what this host passes on; for IPv6 if there is or was any.
    fn set_filter(&mut self, had6: bool) -> Result<(), NetworkError> {
        kernel::forward().map_err(system("turn on IPv4 forwarding"))?;
        if self.has6() {
            kernel::forward6().map_err(system("turn on IPv6 forwarding"))?;
        }
        let changes = rules::set_filter(&self.nets, had6 || self.has6())?;
        self.counted(changes);
        Ok(())
    }

    /// Whether rules are as we left them.
    fn is_current(&self) -> Result<bool, NetworkError> {
        let now = nft::generation().map_err(system("ask for the rules' number"))?;
        Ok(self.generation == Some(now))
    }

    /// Rules were changed by us so often, and by nobody else, unless the kernel says otherwise.
    fn counted(&mut self, changes: u32) {
        let now = nft::generation().ok();
        let next = self.generation.map(|before| before.wrapping_add(changes));
        self.generation = next.filter(|next| Some(*next) == now);
    }
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;

#[cfg(test)]
#[path = "isolation_test.rs"]
mod isolation_tests;
