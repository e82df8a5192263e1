//! Plans as they are in a kernel. Each test is in network and mount namespaces of its own, so that the host is not
//! touched; they need root and `ip`.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::kernel::Kernel;
use super::plan::{At, Backend, Elastic, Front, Plan};
use super::rules;
use super::uplink::{Ground, Range};
use crate::model::Protocol;
use crate::network::{Subnet, netns};

/// What is to come does so within this.
const SOON: Duration = Duration::from_secs(10);

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const ONE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 5);
const TWO: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 6);
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 9);
const ELASTIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// A host of its own, on the test's thread: two workloads on a bridge, and another host by an uplink.
struct Island {
    one: PathBuf,
    two: PathBuf,
    outside: PathBuf,
    kernel: Kernel,
    _folder: tempfile::TempDir,
}

fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).output();
    let done = done.expect("iproute2");
    assert!(done.status.success(), "ip {words}: {done:?}");
}

fn ip_in(namespace: &Path, words: &str) {
    let net = format!("--net={}", namespace.display());
    let mut enter = Command::new("nsenter");
    let done = enter.arg(net).arg("ip").args(words.split(' ')).output();
    let done = done.expect("util-linux");
    assert!(done.status.success(), "ip {words}: {done:?}");
}

impl Island {
    fn new() -> Island {
        assert!(
            rustix::process::geteuid().is_root(),
            "run these tests as root"
        );
        // SAFETY: descriptors stay shared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let folder = tempfile::tempdir().unwrap();
        ip("link set lo up");
        ip("link add br0 type bridge");
        ip("address add 10.88.0.1/16 dev br0");
        ip("link set br0 up");
        let beside = |name: &str, address: Ipv4Addr, len: u8, gateway: Ipv4Addr| {
            let path = folder.path().join(name);
            netns::ensure(&path).unwrap();
            ip(&format!(
                "link add {name} type veth peer eth0 netns {}",
                path.display()
            ));
            ip(&format!("link set {name} up"));
            ip_in(&path, "link set lo up");
            ip_in(&path, &format!("address add {address}/{len} dev eth0"));
            ip_in(&path, "link set eth0 up");
            ip_in(&path, &format!("route add default via {gateway}"));
            path
        };
        let one = beside("one", ONE, 16, GATEWAY);
        let two = beside("two", TWO, 16, GATEWAY);
        ip("link set one master br0");
        ip("link set two master br0");
        for (name, address) in [("one", ONE), ("two", TWO)] {
            let alias = format!("skerry {name} {address}");
            let words = ["link", "set", name, "alias", &alias];
            let named = Command::new("ip").args(words).status();
            assert!(named.expect("iproute2").success());
        }
        // The outside has to have its other end before it has a way to it.
        let outside = beside("uplink", OUTSIDE, 24, HOST);
        ip("address add 192.0.2.1/24 dev uplink");
        ip("route add default via 192.0.2.2");
        Island {
            one,
            two,
            outside,
            kernel: Kernel::new(),
            _folder: folder,
        }
    }

    fn set(&mut self, plan: &Plan) {
        let ground = Ground::look().unwrap();
        self.kernel.set(plan.clone(), &ground).unwrap();
    }
}

fn plan(fronts: Vec<Front>) -> Plan {
    let mut plan = Plan::new("10.96.0.0/16".parse::<Subnet>().unwrap());
    plan.fronts = fronts;
    plan.networks.insert(Range::of(GATEWAY, 16));
    plan
}

fn front(at: At, port: u16, backends: &[Backend]) -> Front {
    Front {
        whose: "a test".to_owned(),
        at,
        protocol: Protocol::Tcp,
        port,
        backends: backends.to_vec(),
        leaving: Vec::new(),
        near: match at {
            At::Virtual(_) => vec![("team/br0".to_owned(), backends.to_vec())],
            At::Host(_) => Vec::new(),
        },
    }
}

/// Answers connections to a port with its own name and the client's address, and stays connected.
fn serve(namespace: &Path, port: u16, name: &'static str) {
    let bound = netns::inside(namespace, || {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
    });
    let listener = bound.unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let from = stream.peer_addr().unwrap().ip();
            stream
                .write_all(format!("{name} {from}\n").as_bytes())
                .unwrap();
            std::thread::spawn(move || while stream.read(&mut [0; 64]).is_ok_and(|n| n > 0) {});
        }
    });
}

fn dial(from: Option<&Path>, to: SocketAddr) -> std::io::Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&to, SOON);
    match from {
        Some(namespace) => netns::inside(namespace, connect).unwrap(),
        None => connect(),
    }
}

/// Who answers, and whom that one sees.
fn ask(from: Option<&Path>, to: (Ipv4Addr, u16)) -> (String, IpAddr) {
    let stream = dial(from, to.into());
    let (_, answer) = read(stream.unwrap_or_else(|e| panic!("{to:?}: {e}")));
    answer
}

fn read(mut stream: TcpStream) -> (TcpStream, (String, IpAddr)) {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let (name, from) = line.split_once(' ').unwrap();
    let answer = (name.to_owned(), from.parse().unwrap());
    (stream, answer)
}

fn refused(from: Option<&Path>, to: (Ipv4Addr, u16)) {
    let begun = Instant::now();
    let error = dial(from, to.into()).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::ConnectionRefused,
        "{to:?}: {error}"
    );
    assert!(begun.elapsed() < SOON / 2);
}

#[test]
fn a_published_port_is_reached_from_outside_from_the_host_and_from_neighbours() {
    let mut island = Island::new();
    serve(&island.one, 80, "one");
    island.set(&plan(vec![front(At::Host(None), 8080, &[(ONE, 80)])]));
    let one = "one".to_owned();
    // Who asks from outside is seen as who they are.
    let seen = ask(Some(&island.outside), (HOST, 8080));
    assert_eq!(seen, (one.clone(), OUTSIDE.into()));
    assert_eq!(ask(None, (HOST, 8080)).0, one);
    for at in [HOST, GATEWAY] {
        // A neighbour, and the workload itself.
        assert_eq!(
            ask(Some(&island.two), (at, 8080)),
            (one.clone(), GATEWAY.into())
        );
        assert_eq!(ask(Some(&island.one), (at, 8080)).0, one);
    }
    refused(Some(&island.outside), (HOST, 8081));
    // An address alone.
    island.set(&plan(vec![front(At::Host(Some(HOST)), 8080, &[(ONE, 80)])]));
    assert_eq!(ask(Some(&island.two), (HOST, 8080)).0, one);
    refused(Some(&island.two), (GATEWAY, 8080));
}

#[test]
fn a_service_is_shared_by_those_who_serve_and_used_by_those_who_may() {
    let mut island = Island::new();
    serve(&island.one, 80, "one");
    serve(&island.two, 80, "two");
    let backends = [(ONE, 80), (TWO, 80)];
    let mut plan = plan(vec![
        front(At::Virtual(VIRTUAL), 8000, &backends),
        front(At::Host(None), 8000, &backends),
    ]);
    plan.users = [("team/br0".to_owned(), [TWO].into())].into();
    island.set(&plan);
    for (from, to) in [
        (Some(island.two.as_path()), VIRTUAL),
        (None, VIRTUAL),
        (Some(island.outside.as_path()), HOST),
    ] {
        let begun = Instant::now();
        let mut heard = std::collections::BTreeSet::new();
        while heard.len() < 2 {
            heard.insert(ask(from, (to, 8000)).0);
            assert!(begun.elapsed() < SOON, "{heard:?} alone at {to}");
        }
    }
    // Another tenant's, the outside, and ports that are nobody's.
    refused(Some(&island.one), (VIRTUAL, 8000));
    refused(Some(&island.outside), (VIRTUAL, 8000));
    refused(Some(&island.two), (VIRTUAL, 8001));
    refused(None, (VIRTUAL, 8001));
}

#[test]
fn who_asks_where_nobody_serves_is_refused_at_once() {
    let mut island = Island::new();
    let mut plan = plan(vec![
        front(At::Virtual(VIRTUAL), 80, &[]),
        front(At::Host(None), 8080, &[]),
    ]);
    plan.users = [("team/br0".to_owned(), [TWO].into())].into();
    island.set(&plan);
    for from in [Some(island.two.as_path()), None] {
        refused(from, (VIRTUAL, 80));
        refused(from, (HOST, 8080));
    }
    refused(Some(&island.outside), (HOST, 8080));
    // What listens on the loopback alone is another matter.
    serve_here(Ipv4Addr::LOCALHOST, 8080);
    assert_eq!(ask(None, (Ipv4Addr::LOCALHOST, 8080)).0, "host");
}

#[test]
fn connections_to_who_is_gone_are_cut_and_others_stay() {
    let mut island = Island::new();
    serve(&island.one, 80, "one");
    serve(&island.two, 80, "two");
    let at = |port, backend| plan(vec![front(At::Host(None), port, &[(backend, 80)])]);
    let both = |one, other| {
        let mut plan = at(8080, one);
        plan.fronts
            .push(front(At::Host(None), 9090, &[(other, 80)]));
        plan
    };
    island.set(&both(ONE, TWO));
    let connect = |port| dial(Some(&island.outside), (HOST, port).into()).unwrap();
    let (mut cut, mut stays) = (read(connect(8080)).0, read(connect(9090)).0);
    island.set(&both(TWO, TWO));
    // It is told so when it says something next.
    let begun = Instant::now();
    loop {
        let wrote = cut.write_all(b"still there?");
        if wrote.is_err() {
            break;
        }
        assert!(begun.elapsed() < SOON, "the connection goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    stays.write_all(b"still there?").unwrap();
    stays
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let quiet = stays.read(&mut [0]).unwrap_err();
    assert_eq!(quiet.kind(), ErrorKind::WouldBlock);
    assert_eq!(ask(Some(&island.outside), (HOST, 8080)).0, "two");
}

#[test]
fn who_leaves_serves_those_who_asked_before() {
    let mut island = Island::new();
    serve(&island.one, 80, "one");
    serve(&island.two, 80, "two");
    island.set(&plan(vec![front(At::Host(None), 8080, &[(ONE, 80)])]));
    let mut stays = read(dial(Some(&island.outside), (HOST, 8080).into()).unwrap()).0;
    let mut leaving = front(At::Host(None), 8080, &[(TWO, 80)]);
    leaving.leaving = vec![(ONE, 80)];
    island.set(&plan(vec![leaving]));
    assert_eq!(ask(Some(&island.outside), (HOST, 8080)).0, "two");
    stays.write_all(b"still there?").unwrap();
    stays
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let quiet = stays.read(&mut [0]).unwrap_err();
    assert_eq!(quiet.kind(), ErrorKind::WouldBlock);
}

#[test]
fn datagrams_are_handed_on_and_so_are_those_of_who_was_not_heard_before() {
    let mut island = Island::new();
    let socket = |namespace: &Path, port| {
        let bound = netns::inside(namespace, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)));
        let socket = bound.unwrap().unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    };
    let (server, client) = (socket(&island.one, 53), socket(&island.outside, 0));
    client.connect((HOST, 5353)).unwrap();
    // The kernel knows this as a connection to the host itself from now on.
    island.set(&plan(vec![front(At::Host(None), 1, &[(ONE, 1)])]));
    client.send(b"early").unwrap();
    let mut udp = front(At::Host(None), 5353, &[(ONE, 53)]);
    udp.protocol = Protocol::Udp;
    island.set(&plan(vec![udp]));
    // The refusal of the first may be told first.
    while client.send(b"question").is_err() {}
    let mut bytes = [0; 16];
    let (n, from) = server.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..n], from.ip()), (&b"question"[..], OUTSIDE.into()));
    server.send_to(b"answer", from).unwrap();
    let heard = loop {
        match client.recv(&mut bytes) {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
            other => break other.unwrap(),
        }
    };
    assert_eq!(&bytes[..heard], b"answer");
}

#[test]
fn an_elastic_address_is_a_workloads_both_ways_and_moves() {
    let mut island = Island::new();
    ip_in(&island.outside, "route add 203.0.113.7 dev eth0");
    serve(&island.one, 80, "one");
    serve(&island.two, 80, "two");
    serve(&island.outside, 80, "outside");
    let with = |target| {
        let mut plan = plan(Vec::new());
        plan.elastic.push(Elastic {
            whose: "a test".to_owned(),
            address: ELASTIC,
            interface: "uplink".to_owned(),
            target,
        });
        plan
    };
    island.set(&with(Some(ONE)));
    assert_eq!(
        ask(Some(&island.outside), (ELASTIC, 80)),
        ("one".to_owned(), OUTSIDE.into())
    );
    assert_eq!(ask(Some(&island.one), (OUTSIDE, 80)).1, ELASTIC);
    assert_eq!(ask(Some(&island.two), (ELASTIC, 80)).0, "one");
    assert_eq!(ask(None, (ELASTIC, 80)).0, "one");
    island.set(&with(Some(TWO)));
    assert_eq!(ask(Some(&island.outside), (ELASTIC, 80)).0, "two");
    assert_eq!(ask(Some(&island.two), (OUTSIDE, 80)).1, ELASTIC);
    // Without a workload it is not the host that answers.
    serve_here(Ipv4Addr::UNSPECIFIED, 8080);
    island.set(&with(None));
    refused(Some(&island.outside), (ELASTIC, 8080));
    assert_eq!(ask(Some(&island.outside), (HOST, 8080)).0, "host");
    let held = |ground: Ground| ground.held.iter().filter(|held| held.elastic).count();
    assert_eq!(held(Ground::look().unwrap()), 1);
    // Another agent, which knows nothing, takes it away.
    island.kernel = Kernel::new();
    island.set(&plan(Vec::new()));
    assert_eq!(held(Ground::look().unwrap()), 0);
}

fn serve_here(address: Ipv4Addr, port: u16) {
    let listener = TcpListener::bind((address, port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let from = stream.peer_addr().unwrap().ip();
            stream
                .write_all(format!("host {from}\n").as_bytes())
                .unwrap();
        }
    });
}

#[test]
fn what_somebody_deleted_is_rebuilt_and_nothing_is_left_in_the_end() {
    let mut island = Island::new();
    serve(&island.one, 80, "one");
    let wanted = plan(vec![front(At::Host(None), 8080, &[(ONE, 80)])]);
    island.set(&wanted);
    rules::remove().unwrap();
    refused(Some(&island.outside), (HOST, 8080));
    island.set(&wanted);
    assert_eq!(ask(Some(&island.outside), (HOST, 8080)).0, "one");
    // An agent that begins finds what is there, and one that has nothing to do takes it away.
    island.kernel = Kernel::new();
    island.set(&wanted);
    assert_eq!(ask(Some(&island.outside), (HOST, 8080)).0, "one");
    island.kernel = Kernel::new();
    island.set(&plan(Vec::new()));
    refused(Some(&island.outside), (HOST, 8080));
}

#[test]
fn a_change_of_many_is_quick() {
    let mut island = Island::new();
    for count in [1, 10, 100, 500] {
        changes(&mut island, count);
    }
}

fn changes(island: &mut Island, count: u16) {
    let many = |more: u16| {
        let fronts = (0..count + more).map(|n| front(At::Host(None), 10_000 + n, &[(ONE, 80)]));
        plan(fronts.collect())
    };
    island.set(&many(0));
    // The rules hold from when this is done. That connections are cut off, where one has to be, comes later.
    let time = |more| {
        let begun = Instant::now();
        island.set(&many(more));
        begun.elapsed()
    };
    let mut times: Vec<_> = (1..10).map(time).collect();
    times.sort();
    println!(
        "one more port beside {count}: {:?} at best, {:?} in the middle, {:?} at worst",
        times[0], times[4], times[8]
    );
    assert!(times[0] < Duration::from_secs(1), "{times:?}");
}
