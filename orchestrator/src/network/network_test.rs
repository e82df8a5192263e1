//! The network as it is in a kernel. Each test is in network and mount namespaces of its own, so that the host
//! is not touched; they need root.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::links::Link;
use super::net::BRIDGE;
use super::*;

/// A frame that is to come does so within this.
pub(super) const SOON: Duration = Duration::from_secs(5);
/// A frame that is not to come would have done so within this.
pub(super) const NEVER: Duration = Duration::from_millis(300);

/// A host of its own, on the test's thread.
pub(super) struct Island {
    pub(super) network: Networks,
    pub(super) folder: tempfile::TempDir,
}

impl Island {
    pub(super) fn new() -> Island {
        assert!(
            rustix::process::geteuid().is_root(),
            "run these tests as root"
        );
        // SAFETY: descriptors stay shared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let network = Networks::new(Subnet::default(), &folder.path().join("netns"));
        Island { network, folder }
    }

    /// A tap of a tenant's VM in the network `default`.
    pub(super) fn tap(
        &self,
        uid: &str,
        address: Ipv4Addr,
        queues: u16,
    ) -> Result<Tap, NetworkError> {
        let taps = self.network.attach_taps(uid, &[plan(address)], queues)?;
        Ok(taps.into_iter().next().unwrap())
    }

    /// A namespace of the same tenant's container there.
    pub(super) fn netns(&self, uid: &str, address: Ipv4Addr) -> Result<PathBuf, NetworkError> {
        self.network.attach_netns(uid, &[plan(address)])
    }

    pub(super) fn built() -> Island {
        let island = Island::new();
        island.network.ensure().unwrap();
        island
    }

    /// Another host that can be reached by an uplink, and knows nothing of the subnet.
    pub(super) fn outside(&self) -> PathBuf {
        let path = self.folder.path().join("outside");
        let mut outside = netns::ensure(&path).unwrap();
        let mut here = Netlink::route().unwrap();
        let inner = ("eth0", Mac([2, 0, 0, 0, 0, 1]));
        here.add_veth("uplink", "", inner, outside.handle.as_fd())
            .unwrap();
        for (netlink, name, last) in [(&mut here, "uplink", 1), (&mut outside.netlink, "eth0", 2)] {
            let link = netlink.link(name).unwrap().unwrap();
            netlink.change_link(link.index, vec![], true).unwrap();
            netlink
                .set_addresses(link.index, &[(Ipv4Addr::new(192, 0, 2, last).into(), 24)])
                .unwrap();
        }
        path
    }

    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = links().into_iter().map(|link| link.name).collect();
        names.sort();
        names
    }
}

/// A port in the network `default`.
pub(super) fn plan(address: Ipv4Addr) -> Plan {
    Plan {
        net: DEFAULT.to_owned(),
        tenant: "team".to_owned(),
        address,
        limits: Limits::default(),
    }
}

pub(super) fn links() -> Vec<Link> {
    Netlink::route().unwrap().links().unwrap()
}

pub(super) fn delete(name: &str) {
    let mut netlink = Netlink::route().unwrap();
    let link = netlink.link(name).unwrap().unwrap();
    netlink.delete_link(link.index).unwrap();
}

pub(super) fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, last)
}

/// A socket that gives up.
fn socket(at: impl Into<IpAddr>) -> UdpSocket {
    let socket = UdpSocket::bind((at.into(), 0)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// A socket of this host that workloads may reach: that of its name server.
fn served() -> UdpSocket {
    let socket = UdpSocket::bind((address(1), 53)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// Sends a datagram from a namespace to a socket, whose reply has to come back. Who seems to have sent it.
pub(super) fn reach(from: &Path, server: &UdpSocket, to: SocketAddr) -> IpAddr {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let client = netns::inside(from, || socket(any)).unwrap();
    client.send_to(b"hello", to).unwrap();
    let mut bytes = [0; 16];
    let (n, seen) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"hello");
    server.send_to(b"welcome", seen).unwrap();
    let (n, _) = client.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"welcome");
    seen.ip()
}

/// An Ethernet frame behind an empty vnet header, as a guest would ask who has `wanted`.
fn who_has(wanted: Ipv4Addr, mac: Mac, address: Ipv4Addr, inner: Mac) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend([0xff; 6]);
    frame.extend(mac.0);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(inner.0);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(wanted.octets());
    frame
}

/// Whether an ARP reply for `wanted` comes out of a tap.
fn answered(tap: &mut File, wanted: Ipv4Addr, within: Duration) -> bool {
    let until = std::time::Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let left = Timespec::try_from(left).unwrap();
        let mut fds = [PollFd::new(&*tap, PollFlags::IN)];
        if poll(&mut fds, Some(&left)).unwrap() == 0 {
            return false;
        }
        let mut bytes = [0; 2048];
        let n = tap.read(&mut bytes).unwrap();
        let frame = &bytes[10..n];
        if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == wanted.octets() {
            return true;
        }
    }
}

/// Whether a question is answered as soon as the kernel has noticed that the tap is open.
fn passes(tap: &mut File, question: &[u8], wanted: Ipv4Addr) -> bool {
    let until = std::time::Instant::now() + SOON;
    while std::time::Instant::now() < until {
        tap.write_all(question).unwrap();
        if answered(tap, wanted, NEVER) {
            return true;
        }
    }
    false
}

#[test]
fn what_is_there_is_taken_over() {
    let island = Island::built();
    let before = (
        links().len(),
        Netlink::route()
            .unwrap()
            .link(BRIDGE)
            .unwrap()
            .unwrap()
            .index,
    );
    island.network.ensure().unwrap();
    let again = Networks::new(Subnet::default(), &island.folder.path().join("netns"));
    again.ensure().unwrap();
    let bridge = Netlink::route().unwrap().link(BRIDGE).unwrap().unwrap();
    assert_eq!((links().len(), bridge.index), before);
    assert_eq!(bridge.mac, Mac::of(address(1)).0);
    assert_eq!(
        fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
            .unwrap()
            .trim(),
        "1"
    );
    // Only an address that is there can be bound to.
    socket(address(1));
}

#[test]
fn another_subnet_replaces_the_one_before() {
    let island = Island::built();
    let folder = island.folder.path().join("netns");
    Networks::new("10.7.0.0/24".parse().unwrap(), &folder)
        .ensure()
        .unwrap();
    socket(Ipv4Addr::new(10, 7, 0, 1));
    assert!(UdpSocket::bind((address(1), 0)).is_err());
}

#[test]
fn containers_reach_this_host_and_each_other() {
    let island = Island::built();
    let one = island.netns("one", address(5)).unwrap();
    let two = island.netns("two", address(6)).unwrap();
    let here = served();
    assert_eq!(reach(&one, &here, here.local_addr().unwrap()), address(5));
    let there = netns::inside(&two, || socket(address(6))).unwrap();
    assert_eq!(reach(&one, &there, there.local_addr().unwrap()), address(5));
    // Its own lo is up.
    let own = netns::inside(&one, || socket(Ipv4Addr::LOCALHOST)).unwrap();
    reach(&one, &own, own.local_addr().unwrap());
}

#[test]
fn a_container_reaches_the_outside_by_this_hosts_address() {
    let island = Island::built();
    let outside = island.outside();
    let one = island.netns("one", address(5)).unwrap();
    let there = netns::inside(&outside, || socket(Ipv4Addr::new(192, 0, 2, 2))).unwrap();
    let seen = reach(&one, &there, there.local_addr().unwrap());
    assert_eq!(seen, Ipv4Addr::new(192, 0, 2, 1));
}

#[test]
fn a_tap_carries_the_frames_of_its_workload_only() {
    let island = Island::built();
    let (me, gateway) = (address(9), address(1));
    let tap = island.tap("vm", me, 1).unwrap();
    let mut guest = tap::open(&tap.name, false).unwrap();
    let ours = who_has(gateway, tap.mac, me, tap.mac);
    assert!(passes(&mut guest, &ours, gateway));
    let other = Mac::of(address(10));
    for (mac, address, inner) in [
        (other, me, tap.mac),
        (tap.mac, address(10), tap.mac),
        (tap.mac, me, other),
        (tap.mac, gateway, tap.mac),
    ] {
        guest
            .write_all(&who_has(gateway, mac, address, inner))
            .unwrap();
        assert!(
            !answered(&mut guest, gateway, NEVER),
            "{mac} {address} {inner}"
        );
    }
    guest.write_all(&ours).unwrap();
    assert!(answered(&mut guest, gateway, SOON));
    // It is the guard that does it, and nothing else.
    rules::remove().unwrap();
    let foreign = who_has(gateway, other, address(10), other);
    guest.write_all(&foreign).unwrap();
    assert!(answered(&mut guest, gateway, SOON));
}

#[test]
fn a_container_cannot_send_from_another_address() {
    let island = Island::built();
    let one = island.netns("one", address(5)).unwrap();
    let here = served();
    let to = here.local_addr().unwrap();
    // Both ends know each other's hardware addresses from then on.
    reach(&one, &here, to);
    let mut inside = netns::ensure(&one).unwrap().netlink;
    let lo = inside.link("lo").unwrap().unwrap();
    inside
        .set_addresses(lo.index, &[(address(77).into(), 32)])
        .unwrap();
    let liar = netns::inside(&one, || socket(address(77))).unwrap();
    here.set_read_timeout(Some(NEVER)).unwrap();
    liar.send_to(b"lie", to).unwrap();
    assert!(here.recv_from(&mut [0; 16]).is_err());
    rules::remove().unwrap();
    here.set_read_timeout(Some(SOON)).unwrap();
    liar.send_to(b"lie", to).unwrap();
    assert_eq!(here.recv_from(&mut [0; 16]).unwrap().1.ip(), address(77));
}

#[test]
fn a_tap_fits_the_number_of_queues() {
    let island = Island::built();
    for (queues, multi) in [(1, false), (2, true), (1, false)] {
        let tap = island.tap("vm", address(9), queues).unwrap();
        drop(tap::open(&tap.name, multi).unwrap());
        assert!(tap::open(&tap.name, !multi).is_err());
    }
}

#[test]
fn attaching_again_leaves_what_fits() {
    let island = Island::built();
    let index = |name: &str| Netlink::route().unwrap().link(name).unwrap().unwrap().index;
    let tap = island.tap("vm", address(9), 1).unwrap();
    // In use, as by a monitor that outlived the agent.
    let _guest = tap::open(&tap.name, false).unwrap();
    let before = index(&tap.name);
    assert_eq!(island.tap("vm", address(9), 1).unwrap(), tap);
    assert_eq!(index(&tap.name), before);
    let name = port::name("one", 0).unwrap();
    let one = island.netns("one", address(5)).unwrap();
    let before = index(&name);
    assert_eq!(island.netns("one", address(5)).unwrap(), one);
    assert_eq!(index(&name), before);
}

#[test]
fn a_workload_can_have_another_address_and_another_kind_of_port() {
    let island = Island::built();
    island.tap("one", address(5), 1).unwrap();
    island.netns("one", address(5)).unwrap();
    let one = island.netns("one", address(6)).unwrap();
    let here = served();
    assert_eq!(reach(&one, &here, here.local_addr().unwrap()), address(6));
}

#[test]
fn nothing_is_left_of_what_is_removed() {
    let island = Island::new();
    let before = island.names();
    island.network.ensure().unwrap();
    let built = island.names();
    island.tap("vm", address(9), 1).unwrap();
    let one = island.netns("one", address(5)).unwrap();
    let found = island.network.found().unwrap();
    let here = |last| vec![(DEFAULT.to_owned(), address(last))];
    let found: Vec<_> = found.into_iter().map(|f| (f.uid, f.addresses)).collect();
    assert_eq!(
        found,
        [("one".to_owned(), here(5)), ("vm".to_owned(), here(9))]
    );
    for _ in 0..2 {
        island.network.detach("vm").unwrap();
        island.network.detach("one").unwrap();
        island.network.detach("never there").unwrap_err();
        island.network.detach("never-there").unwrap();
    }
    assert_eq!(island.names(), built);
    assert!(!one.exists());
    assert!(island.network.found().unwrap().is_empty());
    let port = Port::new("vm", address(9)).unwrap();
    assert!(!rules::forget(&[], &port, &rules::Tenants::from([(String::new(), 1)])).unwrap());
    island.netns("one", address(5)).unwrap();
    island.network.remove().unwrap();
    island.network.remove().unwrap();
    assert_eq!(island.names(), before);
    // Without a table, no port can be admitted.
    assert!(!rules::admit(&[], &port, &mut rules::Tenants::new()).unwrap());
    assert_eq!(fs::read_dir(one.parent().unwrap()).unwrap().count(), 0);
}

#[test]
fn what_somebody_deleted_is_rebuilt() {
    let island = Island::built();
    let outside = island.outside();
    let one = island.netns("one", address(5)).unwrap();
    let tap = island.tap("vm", address(9), 1).unwrap();
    delete(BRIDGE);
    rules::remove().unwrap();
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    island.network.ensure().unwrap();
    let there = netns::inside(&outside, || socket(Ipv4Addr::new(192, 0, 2, 2))).unwrap();
    let seen = reach(&one, &there, there.local_addr().unwrap());
    assert_eq!(seen, Ipv4Addr::new(192, 0, 2, 1));
    let mut guest = tap::open(&tap.name, false).unwrap();
    let ask = who_has(address(1), tap.mac, address(9), tap.mac);
    assert!(passes(&mut guest, &ask, address(1)));
    drop(guest);
    // And so are ports, by being attached.
    delete(BRIDGE);
    delete(&tap.name);
    delete(&port::name("one", 0).unwrap());
    netns::remove(&one).unwrap();
    assert_eq!(island.tap("vm", address(9), 1).unwrap(), tap);
    assert_eq!(island.netns("one", address(5)).unwrap(), one);
    let here = served();
    assert_eq!(reach(&one, &here, here.local_addr().unwrap()), address(5));
}

#[test]
fn what_was_left_half_made_is_removed() {
    let island = Island::built();
    let built = island.names();
    tap::make(&port::name("vm", 0).unwrap(), false).unwrap();
    tap::make("tap7", false).unwrap();
    // A file without a namespace, as after a reboot.
    let folder = island.folder.path().join("netns");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("one"), "").unwrap();
    island.network.ensure().unwrap();
    delete("tap7");
    assert_eq!(island.names(), built);
    let found = island.network.found().unwrap();
    let uid = "one".to_owned();
    let addresses = Vec::new();
    assert_eq!(found, [Found { uid, addresses }]);
    let one = island.netns("one", address(5)).unwrap();
    let here = served();
    reach(&one, &here, here.local_addr().unwrap());
}

#[test]
fn what_is_anothers_is_refused_and_left() {
    let island = Island::new();
    tap::make(BRIDGE, false).unwrap();
    let refusal = island.network.ensure().unwrap_err().to_string();
    assert!(refusal.contains("ip link delete skerry0"), "{refusal}");
    delete(BRIDGE);
    let name = port::name("vm", 0).unwrap();
    Netlink::route()
        .unwrap()
        .add_bridge(&name, Mac([2, 0, 0, 0, 0, 9]))
        .unwrap();
    let refusal = island.tap("vm", address(9), 1).unwrap_err().to_string();
    assert!(
        refusal.contains(&format!("ip link delete {name}")),
        "{refusal}"
    );
    assert!(island.network.detach("vm").is_err());
    assert!(island.names().contains(&name));
}

#[test]
fn a_subnet_that_the_host_is_in_is_refused() {
    let island = Island::new();
    island.outside();
    let before = island.names();
    let network = Networks::new("192.0.0.0/16".parse().unwrap(), island.folder.path());
    let refusal = network.ensure().unwrap_err().to_string();
    assert!(refusal.contains("192.0.2.1"), "{refusal}");
    assert_eq!(island.names(), before);
}

#[test]
fn addresses_outside_are_refused_before_anything_is_made() {
    let island = Island::built();
    let built = island.names();
    let wrong = Ipv4Addr::new(10, 89, 0, 2);
    assert!(island.tap("vm", wrong, 1).is_err());
    assert!(island.netns("one", address(1)).is_err());
    assert_eq!(island.names(), built);
}

#[test]
fn many_ports_are_guarded_together() {
    let island = Island::built();
    for n in 0..60 {
        island.tap(&format!("vm-{n}"), address(10 + n), 1).unwrap();
    }
    island.network.ensure().unwrap();
    assert_eq!(island.network.found().unwrap().len(), 60);
    island.network.remove().unwrap();
}
