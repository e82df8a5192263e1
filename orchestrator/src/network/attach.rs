//! Workloads' ports: made, found again, removed.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;

use netlink_packet_route::link::{InfoKind, LinkAttribute};

use super::error::{lacking, system};
use super::links::Link;
use super::netlink::Netlink;
use super::port::{self, MOST, Port};
use super::{DEFAULT, Limits, Mac, Net, NetworkError, Networks, State, kernel, netns, rules, tap};

/// What a monitor is told of a VM's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The tap.
    pub name: String,
    /// The VM's hardware address; what comes from another is dropped.
    pub mac: Mac,
}

/// A port that a workload is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The network.
    pub net: String,
    /// The tenant whose the workload is.
    pub tenant: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// How much may go through.
    pub limits: Limits,
}

impl Plan {
    fn port(&self, uid: &str, place: usize, net: &Net) -> Result<Port, NetworkError> {
        net.subnet.check(self.address)?;
        if !port::is_tenant(&self.tenant) {
            return Err(NetworkError::Uid(self.tenant.clone()));
        }
        Ok(Port {
            name: port::name(uid, place)?,
            uid: uid.to_owned(),
            place,
            net: net.id.clone(),
            tenant: self.tenant.clone(),
            address: self.address,
            limits: self.limits,
        })
    }
}

/// The name of a container's end of a port.
fn inner(place: usize) -> String {
    format!("eth{place}")
}

impl Networks {
    /// A VM's ports: taps that a monitor can open by their names, with `queues` queue pairs. What is there for
    /// this workload and fits is left as it is; what does not is made anew, so nothing of it may run.
    pub fn attach_taps(
        &self,
        uid: &str,
        plans: &[Plan],
        queues: u16,
    ) -> Result<Vec<Tap>, NetworkError> {
        let multi = queues > 1;
        let mut state = self.turn.lock();
        let mut netlink = kernel::open()?;
        let ports = self.ports(&mut state, &mut netlink, uid, plans)?;
        let fits = |link: &Link| link.kind == Some(InfoKind::Tun) && link.multi_queue == multi;
        for (port, net) in &ports {
            if !clear(&mut state, &mut netlink, port, fits)? {
                let made = tap::make(&port.name, multi);
                made.map_err(lacking(format!("make tap `{}`", port.name), "tun"))?;
            }
            self.connect(&mut state, &mut netlink, port, net)?;
        }
        self.drop_others(&mut state, &mut netlink, uid, ports.len())?;
        let taps = ports.into_iter().map(|(port, _)| Tap {
            mac: port.mac(),
            name: port.name,
        });
        Ok(taps.collect())
    }

    /// A container's ports: a network namespace in which `eth0`, `eth1` and so on have the addresses. The path of
    /// the namespace is given back.
    pub fn attach_netns(&self, uid: &str, plans: &[Plan]) -> Result<PathBuf, NetworkError> {
        let path = self.folder.join(uid);
        let mut state = self.turn.lock();
        let mut netlink = kernel::open()?;
        let ports = self.ports(&mut state, &mut netlink, uid, plans)?;
        let inside = netns::ensure(&path);
        let mut inside =
            inside.map_err(system(format!("make network namespace {}", path.display())))?;
        for (port, net) in &ports {
            let inner = inner(port.place);
            let told = inside.netlink.link(&inner);
            let is_inside = told
                .map_err(system("look into a network namespace"))?
                .is_some();
            let fits = |link: &Link| link.kind == Some(InfoKind::Veth) && is_inside;
            if !clear(&mut state, &mut netlink, port, fits)? {
                let (name, alias) = (&port.name, port.alias());
                let end = (inner.as_str(), port.mac());
                let made = netlink.add_veth(name, &alias, end, inside.handle.as_fd());
                made.map_err(lacking(format!("make veth `{name}`"), "veth"))?;
            }
            let configured = configure(&mut inside.netlink, port, net);
            configured.map_err(system(format!("configure {inner} in {}", path.display())))?;
            self.connect(&mut state, &mut netlink, port, net)?;
        }
        let nets = ports.iter().map(|(_, net)| net);
        let routed = route(&mut inside.netlink, nets);
        routed.map_err(system(format!("set routes in {}", path.display())))?;
        self.drop_others(&mut state, &mut netlink, uid, ports.len())?;
        Ok(path)
    }

    /// Removes all there is of a workload, which may be nothing. Nothing of it may run.
    pub fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        port::name(uid, 0)?;
        let mut state = self.turn.lock();
        let mut netlink = kernel::open()?;
        self.drop_others(&mut state, &mut netlink, uid, 0)?;
        let path = self.folder.join(uid);
        netns::remove(&path).map_err(system(format!("remove {}", path.display())))
    }

    /// The ports that a workload is to have, with their networks, which are there then.
    fn ports(
        &self,
        state: &mut State,
        netlink: &mut Netlink,
        uid: &str,
        plans: &[Plan],
    ) -> Result<Vec<(Port, Net)>, NetworkError> {
        let twice = |n: usize| plans[..n].iter().any(|plan| plan.net == plans[n].net);
        if plans.len() > MOST || (0..plans.len()).any(twice) {
            return Err(NetworkError::Networks(MOST));
        }
        let mut all = Vec::new();
        for (place, plan) in plans.iter().enumerate() {
            let net = match plan.net.as_str() {
                DEFAULT => &self.default,
                id => {
                    let net = state.nets.iter().find(|net| net.id == id);
                    net.ok_or(NetworkError::Unknown)?
                }
            };
            all.push((plan.port(uid, place, net)?, net.clone()));
        }
        let known = |id: &str| state.nets.iter().any(|net| net.id == id);
        if plans.iter().any(|plan| plan.net == DEFAULT) && !known(DEFAULT) {
            self.has_default(state, netlink)?;
            self.build(state, netlink)?;
        }
        Ok(all)
    }

    /// Lets frames through a port, once it is guarded.
    fn connect(
        &self,
        state: &mut State,
        netlink: &mut Netlink,
        port: &Port,
        net: &Net,
    ) -> Result<(), NetworkError> {
        let link = kernel::look(netlink, &port.name)?.ok_or_else(|| kernel::gone(&port.name))?;
        if link.alias.is_empty() {
            let alias = vec![LinkAttribute::IfAlias(port.alias())];
            let named = netlink.change_link(link.index, alias, false);
            named.map_err(system(format!("give `{}` an alias", port.name)))?;
        }
        let bridge = kernel::look(netlink, &net.bridge)?.filter(|bridge| bridge.up);
        match bridge {
            Some(bridge) if rules::admit(&state.nets, port, &mut state.tenants)? => {
                state.counted(1);
                kernel::is_bridge(&bridge, net)?;
                kernel::plug(netlink, port, link.index, (bridge.index, &net.bridge))
            }
            // Somebody took it down, or it takes more than that.
            _ => self.build(state, netlink),
        }
    }

    /// Removes a workload's ports from a place on.
    fn drop_others(
        &self,
        state: &mut State,
        netlink: &mut Netlink,
        uid: &str,
        from: usize,
    ) -> Result<(), NetworkError> {
        for place in from..MOST {
            let name = port::name(uid, place)?;
            let port = match kernel::look(netlink, &name)? {
                Some(link) => {
                    let port = kernel::whose(&link, uid)?;
                    kernel::delete(netlink, &link)?;
                    port
                }
                None => continue,
            };
            forget(state, netlink, port)?;
        }
        Ok(())
    }
}

/// Removes what has a port's name unless it is this very port and `fits`. True if that is there.
fn clear(
    state: &mut State,
    netlink: &mut Netlink,
    port: &Port,
    fits: impl Fn(&Link) -> bool,
) -> Result<bool, NetworkError> {
    let Some(link) = kernel::look(netlink, &port.name)? else {
        return Ok(false);
    };
    let before = kernel::whose(&link, &port.uid)?;
    if before.as_ref() == Some(port) && fits(&link) {
        return Ok(true);
    }
    kernel::delete(netlink, &link)?;
    forget(state, netlink, before)?;
    Ok(false)
}

/// Guards a port no more that is gone. If it is not known what was allowed, the guard is made anew of what
/// there is.
fn forget(
    state: &mut State,
    netlink: &mut Netlink,
    port: Option<Port>,
) -> Result<(), NetworkError> {
    match port {
        Some(port) if rules::forget(&state.nets, &port, &state.tenants)? => {}
        _ => state.tenants = rules::set_guard(&state.nets, &kernel::ports(netlink)?)?,
    }
    state.counted(1);
    Ok(())
}

/// A container's end.
fn configure(inside: &mut Netlink, port: &Port, net: &Net) -> io::Result<()> {
    let lo = inside.link("lo")?.ok_or(ErrorKind::NotFound)?;
    inside.change_link(lo.index, vec![], true)?;
    let link = inside
        .link(&inner(port.place))?
        .ok_or(ErrorKind::NotFound)?;
    inside.change_link(link.index, vec![], true)?;
    let (address, len) = (IpAddr::from(port.address), net.subnet.prefix());
    inside.set_addresses(link.index, &[(address, len)])?;
    if let Some(subnet6) = net.subnet6 {
        let address = IpAddr::from(subnet6.of(port.mac()));
        inside.set_addresses(link.index, &[(address, subnet6.prefix())])?;
    }
    Ok(())
}

/// What is for nobody near goes to the first network's gateway.
fn route<'a>(inside: &mut Netlink, nets: impl Iterator<Item = &'a Net> + Clone) -> io::Result<()> {
    if let Some(net) = nets.clone().next() {
        inside.set_default_route(net.subnet.gateway().into())?;
    }
    match nets.clone().find_map(|net| net.subnet6) {
        Some(subnet6) => inside.set_default_route(subnet6.gateway().into()),
        None => Ok(()),
    }
}
