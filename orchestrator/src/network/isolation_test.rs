//! Several networks in a kernel: who reaches whom, from which addresses, and how fast.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Instant;

use super::tests::{Island, NEVER, SOON, address, delete, links, plan, reach};
use super::*;

/// A network of a tenant.
fn net(uid: &str, subnet: &str, six: bool) -> Net {
    let subnet6 = six.then(|| Subnet6::chosen(uid));
    Net::of(uid, subnet.parse().unwrap(), subnet6, true)
}

fn blue() -> Net {
    net("blue", "10.90.1.0/24", true)
}

fn red() -> Net {
    net("red", "10.90.2.0/24", true)
}

fn within(net: &Net, tenant: &str, last: u8) -> Plan {
    let [a, b, c, _] = net.subnet.base().octets();
    Plan {
        net: net.id.clone(),
        tenant: tenant.to_owned(),
        address: Ipv4Addr::new(a, b, c, last),
        limits: Limits::default(),
    }
}

fn six(net: &Net, plan: &Plan) -> Ipv6Addr {
    net.subnet6.unwrap().of(Mac::of(plan.address))
}

fn of_tenant(tenant: &str, address: Ipv4Addr) -> Plan {
    Plan {
        tenant: tenant.to_owned(),
        ..plan(address)
    }
}

/// A socket in a namespace that gives up soon.
fn listen(path: &Path, at: impl Into<IpAddr>) -> UdpSocket {
    let at = SocketAddr::new(at.into(), 0);
    netns::inside(path, || {
        let socket = UdpSocket::bind(at).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    })
    .unwrap()
}

/// Whether a datagram from a namespace comes to a socket.
fn comes(from: &Path, server: &UdpSocket) -> bool {
    let to = server.local_addr().unwrap();
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let client = listen(from, any);
    server.set_read_timeout(Some(NEVER)).unwrap();
    // No way there is as well.
    let came = client.send_to(b"hello", to).is_ok() && server.recv_from(&mut [0; 16]).is_ok();
    server.set_read_timeout(Some(SOON)).unwrap();
    came
}

/// The same, within a time in which it should.
fn comes_soon(from: &Path, server: &UdpSocket) -> bool {
    let until = Instant::now() + SOON;
    while Instant::now() < until {
        if comes(from, server) {
            return true;
        }
    }
    false
}

#[test]
fn workloads_of_a_network_reach_each_other_and_no_other_network() {
    let island = Island::new();
    let networks = &island.network;
    networks.declare(&blue()).unwrap();
    networks.declare(&red()).unwrap();
    let plans = [
        within(&blue(), "team", 2),
        within(&blue(), "team", 3),
        within(&red(), "team", 2),
    ];
    let [one, two, other] = ["one", "two", "other"];
    let one = networks.attach_netns(one, &plans[..1]).unwrap();
    let two = networks.attach_netns(two, &plans[1..2]).unwrap();
    let other = networks.attach_netns(other, &plans[2..]).unwrap();
    for (from, net) in [(&one, blue()), (&other, red())] {
        let plan = if from == &one { &plans[0] } else { &plans[2] };
        let near = listen(from, plan.address);
        let near6 = listen(from, six(&net, plan));
        let (same, foreign) = if from == &one {
            (&two, &other)
        } else {
            (&other, &one)
        };
        assert!(comes_soon(same, &near) && comes_soon(same, &near6));
        assert!(!comes(foreign, &near) && !comes(foreign, &near6));
    }
    // The rules do that, and nothing else: without them this host passes all of it on.
    let near = listen(&one, plans[0].address);
    let near6 = listen(&one, six(&blue(), &plans[0]));
    rules::remove().unwrap();
    assert!(comes_soon(&other, &near) && comes_soon(&other, &near6));
}

#[test]
fn tenants_of_the_default_network_do_not_reach_each_other() {
    let island = Island::built();
    let attach = |uid: &str, tenant: &str, last| {
        let plan = of_tenant(tenant, address(last));
        island.network.attach_netns(uid, &[plan]).unwrap()
    };
    let one = attach("one", "team", 5);
    let same = attach("same", "team", 6);
    let other = attach("other", "rivals", 7);
    let near = listen(&one, address(5));
    assert!(comes_soon(&same, &near));
    assert!(!comes(&other, &near));
    // Nor by way of the gateway.
    let mut inside = netns::ensure(&other).unwrap().netlink;
    let link = inside.link("eth0").unwrap().unwrap();
    inside
        .set_addresses(link.index, &[(address(7).into(), 32)])
        .unwrap();
    inside.set_link_route(link.index, address(1)).unwrap();
    inside.set_default_route(address(1).into()).unwrap();
    assert!(!comes(&other, &near));
    rules::remove().unwrap();
    assert!(comes_soon(&other, &near));
}

#[test]
fn this_host_is_closed_to_workloads_but_for_what_it_serves() {
    let island = Island::built();
    let one = island.netns("one", address(5)).unwrap();
    let open = |at: Ipv4Addr, port| {
        let socket = UdpSocket::bind((at, port)).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    };
    assert!(comes_soon(&one, &open(address(1), 53)));
    assert!(!comes(&one, &open(address(1), 54)));
    assert!(!comes(&one, &open(METADATA, 53)));
    // By TCP, it is there that workloads ask what they are, on every bridge.
    let metadata = std::net::TcpListener::bind((METADATA, 80)).unwrap();
    let asked = netns::inside(&one, || {
        std::net::TcpStream::connect_timeout(&(METADATA, 80).into(), SOON)
    });
    let asked = asked.unwrap().unwrap();
    let (_, from) = metadata.accept().unwrap();
    assert_eq!(from, asked.local_addr().unwrap());
    // This host speaks to all of them.
    let theirs = listen(&one, address(5));
    open(address(1), 0)
        .send_to(b"hello", theirs.local_addr().unwrap())
        .unwrap();
    assert_eq!(theirs.recv_from(&mut [0; 16]).unwrap().1.ip(), address(1));
}

#[test]
fn nobody_outside_begins_to_speak_with_those_behind_nat() {
    let island = Island::new();
    let outside = island.outside();
    let open = Net {
        nat: false,
        ..net("open", "10.90.3.0/24", false)
    };
    for net in [&blue(), &open] {
        island.network.declare(net).unwrap();
    }
    let mut netlink = netns::ensure(&outside).unwrap().netlink;
    let here = Ipv4Addr::new(192, 0, 2, 1);
    netlink.set_default_route(here.into()).unwrap();
    for (net, reached) in [(&blue(), false), (&open, true)] {
        let plan = within(net, "team", 2);
        let path = island
            .network
            .attach_netns(&net.id, std::slice::from_ref(&plan));
        let near = listen(&path.unwrap(), plan.address);
        assert_eq!(
            comes(&outside, &near) || (reached && comes_soon(&outside, &near)),
            reached,
            "{}",
            net.id
        );
    }
}

#[test]
fn a_workload_sends_from_its_own_ipv6_addresses_only() {
    let island = Island::new();
    island.network.declare(&blue()).unwrap();
    let plans = [within(&blue(), "team", 2), within(&blue(), "team", 3)];
    let one = island.network.attach_netns("one", &plans[..1]).unwrap();
    let two = island.network.attach_netns("two", &plans[1..]).unwrap();
    let near = listen(&two, six(&blue(), &plans[1]));
    let to = near.local_addr().unwrap();
    assert_eq!(
        reach(&one, &near, to),
        IpAddr::from(six(&blue(), &plans[0]))
    );
    let mut inside = netns::ensure(&one).unwrap().netlink;
    let link = inside.link("eth0").unwrap().unwrap();
    let [a, b, c, d, ..] = six(&blue(), &plans[0]).segments();
    let lie = Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0x77);
    let all = [six(&blue(), &plans[0]), lie].map(|address| (address.into(), 64));
    inside.set_addresses(link.index, &all).unwrap();
    let liar = listen(&one, lie);
    near.set_read_timeout(Some(NEVER)).unwrap();
    liar.send_to(b"lie", to).unwrap();
    assert!(near.recv_from(&mut [0; 16]).is_err());
}

#[test]
fn a_workload_can_be_in_several_networks() {
    let island = Island::built();
    island.network.declare(&blue()).unwrap();
    let both = [of_tenant("team", address(5)), within(&blue(), "team", 2)];
    let one = island.network.attach_netns("one", &both).unwrap();
    let near = within(&blue(), "team", 3);
    let two = island.network.attach_netns("two", &[near]).unwrap();
    let at = listen(&one, both[1].address);
    assert!(comes_soon(&two, &at));
    let taps = island.network.attach_taps("vm", &both_of_vm(), 1).unwrap();
    assert_eq!(taps.len(), 2);
    // What it is in no more goes.
    let before = links().len();
    island.network.attach_netns("one", &both[..1]).unwrap();
    assert_eq!(links().len(), before - 1);
    assert!(!comes(&two, &at));
    let twice = [both[0].clone(), both[0].clone()];
    assert!(island.network.attach_netns("one", &twice).is_err());
}

fn both_of_vm() -> [Plan; 2] {
    [of_tenant("team", address(9)), within(&blue(), "team", 9)]
}

#[test]
fn what_goes_through_a_port_is_limited() {
    /// Bits a second, and how much is sent at once.
    const RATE: u64 = 1_000_000;
    const SENT: usize = 3000;
    let island = Island::built();
    let sender = Plan {
        limits: Limits {
            ingress: None,
            egress: Some(RATE),
        },
        ..plan(address(5))
    };
    let one = island.network.attach_netns("one", &[sender]).unwrap();
    let two = island.netns("two", address(6)).unwrap();
    let there = listen(&two, address(6));
    let to = there.local_addr().unwrap();
    assert!(comes_soon(&one, &there));
    let reader = std::thread::spawn(move || {
        there.set_read_timeout(Some(NEVER)).unwrap();
        let mut count = 0;
        while there.recv_from(&mut [0; 2048]).is_ok() {
            count += 1;
        }
        count
    });
    let client = listen(&one, address(5));
    let begun = Instant::now();
    for _ in 0..SENT {
        client.send_to(&[0; 1000], to).unwrap();
    }
    let (rate, burst) = limits::bytes(RATE);
    let came: usize = reader.join().unwrap();
    let spent = begun.elapsed().as_millis() as u64;
    // What a second may bring may come at once.
    let most = (u64::from(burst) + rate + rate * spent / 1000) as usize / 1000;
    assert!(came > 0 && came <= most + 10, "{came} of {most}");
    assert!(came < SENT, "{came} of {SENT}");
}

#[test]
fn addresses_of_others_are_refused_and_chosen_ones_are_free() {
    let island = Island::new();
    island.outside();
    let declare = |subnet: &str| {
        let declared = island.network.declare(&net("more", subnet, false));
        declared.map_err(|e| e.to_string())
    };
    island.network.declare(&blue()).unwrap();
    let refused = |subnet: &str| declare(subnet).unwrap_err();
    assert!(refused("10.90.0.0/16").contains("10.90.1.0/24"));
    assert!(refused("10.88.7.0/24").contains("`default`"));
    assert!(refused("192.0.2.128/25").contains("192.0.2.1/24"));
    let chosen = island.network.choose("more").unwrap();
    assert!(!chosen.meets(blue().subnet.base(), 24));
    declare(&chosen.to_string()).unwrap();
    declare("10.90.7.0/24").unwrap();
    // Not under its workloads.
    let more = net("more", "10.90.7.0/24", false);
    let plan = within(&more, "team", 2);
    island.network.attach_netns("one", &[plan]).unwrap();
    assert!(refused("10.90.8.0/24").contains("1 ports"));
}

#[test]
fn networks_are_found_again_and_nothing_is_left_of_them() {
    let island = Island::new();
    let before = island.names();
    island.network.declare(&blue()).unwrap();
    island.network.declare(&red()).unwrap();
    let plans = [within(&blue(), "team", 2)];
    island.network.attach_netns("one", &plans).unwrap();
    // An agent that knows nothing.
    let again = Networks::new(Subnet::default(), &island.folder.path().join("netns"));
    let found = again.adopt().unwrap();
    assert_eq!(found[0].addresses, [("blue".to_owned(), plans[0].address)]);
    let mut nets = again.all();
    nets.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(nets, [blue(), red()]);
    again.detach("one").unwrap();
    for id in ["blue", "red", "blue"] {
        again.undeclare(id).unwrap();
    }
    assert_eq!(island.names(), before);
    // There is no table, so that nothing can be put into one.
    let port = Port::new("vm", address(9)).unwrap();
    assert!(!rules::admit(&[], &port, &mut rules::Tenants::new()).unwrap());
}

#[test]
fn what_somebody_changes_is_noticed_and_made_again() {
    let island = Island::new();
    island.network.declare(&blue()).unwrap();
    let plans = [within(&blue(), "team", 2), within(&blue(), "team", 3)];
    let one = island.network.attach_netns("one", &plans[..1]).unwrap();
    let two = island.network.attach_netns("two", &plans[1..]).unwrap();
    let near = listen(&one, plans[0].address);
    let generation = || nft::generation().unwrap();
    let settled = generation();
    island.network.check().unwrap();
    // Nothing is done where nothing has changed.
    assert_eq!(generation(), settled);
    for harm in [
        || rules::remove().unwrap(),
        || delete(&blue().bridge),
        || {
            let mut netlink = Netlink::route().unwrap();
            let bridge = netlink.link(&blue().bridge).unwrap().unwrap();
            let other = (Ipv4Addr::new(10, 5, 5, 5).into(), 24);
            netlink.set_addresses(bridge.index, &[other]).unwrap();
        },
    ] {
        harm();
        island.network.check().unwrap();
        assert!(comes_soon(&two, &near));
        let gateway = blue().subnet.gateway();
        UdpSocket::bind((gateway, 53)).unwrap();
        let port = Port::new("never", address(9)).unwrap();
        assert!(
            rules::admit(&[], &port, &mut rules::Tenants::new()).unwrap(),
            "the guard is there"
        );
    }
}

/// Who asks by DHCP and DNS as a workload would, by its bridge.
#[test]
fn workloads_are_served_on_their_bridges() {
    use dhcproto::v4::{DhcpOption, Message, MessageType};
    use dhcproto::{Decodable, Encodable};
    use hickory_proto::op::{Message as Dns, MessageType as Kind, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};

    let island = Island::new();
    let folder = island.folder.path().join("netns");
    let registry = Registry::open(Subnet::default(), &folder).unwrap();
    let net = blue();
    let limits = Limits::default();
    registry.declare("team", "blue", &net, limits).unwrap();
    let mut paths: Vec<PathBuf> = Vec::new();
    for (uid, last) in [("one", 2), ("two", 3)] {
        let plan = within(&net, "team", last);
        let taken = registry.take(&net, uid, Some(plan.address), &[]);
        taken.unwrap();
        registry.know(Who {
            uid: uid.to_owned(),
            kind: "Container",
            tenant: "team".to_owned(),
            name: uid.to_owned(),
        });
        paths.push(registry.networks.attach_netns(uid, &[plan]).unwrap());
    }
    let own = within(&net, "team", 2).address;
    let ask = move || {
        let none = Ipv4Addr::UNSPECIFIED;
        let mac = Mac::of(own);
        let mut asked = Message::new(none, none, none, none, &mac.0);
        let kind = DhcpOption::MessageType(MessageType::Discover);
        asked.opts_mut().insert(kind);
        let gateway = net.subnet.gateway();
        let mut dns = Dns::new(7, Kind::Query, OpCode::Query);
        let name = Name::from_ascii("two.team.skerry.internal.").unwrap();
        dns.add_query(Query::query(name, RecordType::AAAA));
        let socket = UdpSocket::bind(("0.0.0.0", 68)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.set_read_timeout(Some(NEVER)).unwrap();
        let (mut offered, mut named) = (None, None);
        let until = Instant::now() + 2 * SOON;
        let mut bytes = [0; 1500];
        while (offered.is_none() || named.is_none()) && Instant::now() < until {
            let asked = asked.to_vec().unwrap();
            socket.send_to(&asked, ("255.255.255.255", 67)).unwrap();
            if let Ok((n, _)) = socket.recv_from(&mut bytes) {
                offered = Message::from_bytes(&bytes[..n]).ok();
            }
            let resolver = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            resolver.set_read_timeout(Some(NEVER)).unwrap();
            resolver
                .send_to(&dns.to_vec().unwrap(), (gateway, 53))
                .unwrap();
            if let Ok((n, _)) = resolver.recv_from(&mut bytes) {
                named = Dns::from_vec(&bytes[..n]).ok();
            }
        }
        (offered, named)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (offered, named) = runtime.block_on(async {
        let serving = tokio::spawn(serve::serve(registry.clone()));
        let path = paths[0].clone();
        let asked = tokio::task::spawn_blocking(move || netns::inside(&path, ask).unwrap());
        let asked = asked.await.unwrap();
        serving.abort();
        asked
    });
    assert_eq!(offered.unwrap().yiaddr(), own);
    let named = named.unwrap();
    let six = six(&blue(), &within(&blue(), "team", 3));
    assert_eq!(named.answers[0].data.to_string(), six.to_string());
    assert_eq!(registry.whose(six.into()).unwrap().name, "two");
}

/// What a change takes where there are others already. On a host with nothing else to do it is some milliseconds.
#[test]
fn a_change_among_many_networks_is_quick() {
    let island = Island::built();
    for n in 0..20 {
        let more = net(&format!("net-{n}"), &format!("10.90.{n}.0/24"), n % 2 == 0);
        island.network.declare(&more).unwrap();
        let plans = [within(&more, "team", 2)];
        for uid in [format!("vm-{n}"), format!("more-{n}")] {
            let plans = plans.clone().map(|plan| Plan {
                address: Ipv4Addr::from(u32::from(plan.address) + u32::from(uid.len() as u16)),
                ..plan
            });
            island.network.attach_taps(&uid, &plans, 1).unwrap();
        }
    }
    let last = net("last", "10.90.200.0/24", true);
    let plan = [of_tenant("team", address(77))];
    let changes: [(&str, &dyn Fn()); 5] = [
        ("a network comes", &|| {
            island.network.declare(&last).unwrap()
        }),
        ("a network goes", &|| {
            island.network.undeclare("last").unwrap();
        }),
        ("a port comes", &|| {
            drop(island.network.attach_taps("last", &plan, 1).unwrap());
        }),
        ("a port goes", &|| island.network.detach("last").unwrap()),
        ("nothing has changed", &|| island.network.check().unwrap()),
    ];
    let mut took = vec![Vec::new(); changes.len()];
    for _ in 0..7 {
        for (took, (_, change)) in took.iter_mut().zip(&changes) {
            let begun = Instant::now();
            change();
            took.push(begun.elapsed());
        }
    }
    for (took, (what, _)) in took.iter_mut().zip(&changes) {
        took.sort();
        println!("{what}: {:?} ({:?} to {:?})", took[3], took[0], took[6]);
        // A busy machine may take much longer than an idle one.
        assert!(took[3] < SOON);
    }
}
