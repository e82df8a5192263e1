//! The guard, where frames enter and leave bridges: what comes in by a port has its workload's addresses, and
//! what one tenant's workload sends to another's, by the bridge that both are on, ends there.

use std::collections::BTreeMap;
use std::io;

use super::super::error::lacking;
use super::super::nft::{Base, Batch, Family, Hook, Meta, Order, Register, Rule};
use super::super::port::Port;
use super::super::subnet6::link_local;
use super::super::{Mac, Net, NetworkError, limits};
use super::{
    ICMPV6, NAME, SHOW_IPV4, SHOW_IPV6, SHOW_MAC, SHOW_NAME, TABLE, UDP, anew, name, show,
};

/// The tenants' numbers in the guard that is set.
pub type Tenants = BTreeMap<String, u32>;

/// Our ports.
const PORTS: &str = "ports";
/// Who may send from where, by IPv4 and IPv6, and from which hardware address.
const SOURCES: &str = "sources";
const SOURCES6: &str = "sources6";
const HARDWARE: &str = "hardware";
/// Whose each port is, and where each tenant's frames may go.
const TENANTS: &str = "tenants";
const MEMBERS: &str = "members";

const BEFORE: &str = "prerouting";
const BETWEEN: &str = "forward";
const SENT: &str = "sent";
const RECEIVED: &str = "received";

const fn filter(number: u32, priority: i32) -> Hook {
    Hook {
        kind: "filter",
        number,
        priority,
    }
}
/// Before a bridge looks at a frame (NF_BR_PRE_ROUTING), and before all that rewrites it.
const GUARD: Hook = filter(0, -310);
/// Behind that.
const COUNT_SENT: Hook = filter(0, -309);
/// From one port to another (NF_BR_FORWARD).
const FORWARD: Hook = filter(2, -310);
/// Behind the bridge (NF_BR_POST_ROUTING).
const COUNT_RECEIVED: Hook = filter(4, -309);

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// Ports of those who give addresses (RFC 2131 §4.1, RFC 8415 §7.2), which no workload does, and of those who ask.
const DHCP_SERVER: [u8; 2] = [0, 67];
const DHCPV6_SERVER: [u8; 2] = [2, 35];
/// Router advertisements and redirects, which no workload sends; solicitations and advertisements of neighbours
/// (RFC 4861 §4); reports of groups (RFC 3810 §5.2).
const ROUTERS: [[u8; 1]; 2] = [[134], [137]];
const SOLICITATION: [u8; 1] = [135];
const ADVERTISEMENT: [u8; 1] = [136];
const GROUPS: [u8; 1] = [143];

/// Bytes of a tenant's number, and how `nft` shows it: it is a mark for a moment.
const TENANT: usize = 4;
const SHOW_TENANT: u32 = 19;
/// Bytes of an Ethernet address with the two zeros behind it.
const MAC: usize = 8;

const KEY: Register = Register::of(0);
const KEY_MAC: Register = Register::of(4);
const KEY_ADDRESS: Register = Register::of(6);

fn hardware(port: &Port) -> Vec<u8> {
    let Mac(mac) = port.mac();
    let mut bytes = name(&port.name);
    bytes.extend(mac);
    bytes.extend([0; 2]);
    bytes
}

fn source(port: &Port) -> Vec<u8> {
    let mut bytes = hardware(port);
    bytes.extend(port.address.octets());
    bytes
}

/// Its sources of IPv6, if its network has any.
fn sources6(port: &Port, nets: &[Net]) -> Vec<Vec<u8>> {
    let net = nets.iter().find(|net| net.id == port.net);
    let Some(subnet6) = net.and_then(|net| net.subnet6) else {
        return Vec::new();
    };
    let of = |address: std::net::Ipv6Addr| {
        let mut bytes = hardware(port);
        bytes.extend(address.octets());
        bytes
    };
    vec![of(subnet6.of(port.mac())), of(link_local(port.mac()))]
}

/// Where the frames of a tenant with this number may go by a port.
fn member(port: &Port, tenant: u32) -> Vec<u8> {
    let mut bytes = tenant.to_ne_bytes().to_vec();
    bytes.extend(name(&port.name));
    bytes
}

/// Lets these ports send from their workloads' addresses, and nothing else. The numbers of their tenants are
/// given back.
pub fn set_guard(nets: &[Net], ports: &[Port]) -> Result<Tenants, NetworkError> {
    let mut tenants = Tenants::default();
    for port in ports {
        number(&mut tenants, &port.tenant);
    }
    let bytes = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut batch = anew(Family::Bridge)
        .set(PORTS, SHOW_NAME, bytes(NAME), Order::Host)
        .set(
            HARDWARE,
            show(&[SHOW_NAME, SHOW_MAC]),
            bytes(NAME + MAC),
            Order::Wire,
        )
        .set(
            SOURCES,
            show(&[SHOW_NAME, SHOW_MAC, SHOW_IPV4]),
            bytes(NAME + MAC + 4),
            Order::Wire,
        )
        .set(
            SOURCES6,
            show(&[SHOW_NAME, SHOW_MAC, SHOW_IPV6]),
            bytes(NAME + MAC + 16),
            Order::Wire,
        )
        .map(
            TENANTS,
            (SHOW_NAME, bytes(NAME)),
            (SHOW_TENANT, bytes(TENANT)),
            Order::Host,
        )
        .set(
            MEMBERS,
            show(&[SHOW_TENANT, SHOW_NAME]),
            bytes(TENANT + NAME),
            Order::Wire,
        )
        .chain(BEFORE, GUARD)
        .chain(BETWEEN, FORWARD)
        .chain(SENT, COUNT_SENT)
        .chain(RECEIVED, COUNT_RECEIVED);
    for rule in sending() {
        batch = batch.rule(BEFORE, rule);
    }
    for rule in between() {
        batch = batch.rule(BETWEEN, rule);
    }
    for port in ports {
        for (chain, key, limit) in [
            (SENT, Meta::Iifname, port.limits.egress),
            (RECEIVED, Meta::Oifname, port.limits.ingress),
        ] {
            if let Some(limit) = limit {
                let (rate, burst) = limits::bytes(limit);
                let rule = Rule::default()
                    .meta(key, KEY)
                    .compare(KEY, true, &name(&port.name))
                    .above(rate, burst);
                batch = batch.rule(chain, rule.count().drop());
            }
        }
    }
    let keys = |key: fn(&Port) -> Vec<u8>| ports.iter().map(key).collect::<Vec<_>>();
    let all6: Vec<_> = ports.iter().flat_map(|port| sources6(port, nets)).collect();
    let numbered = ports.iter().filter_map(|port| {
        let tenant = *tenants.get(&port.tenant)?;
        let key = name(&port.name);
        Some(((key, tenant.to_ne_bytes().to_vec()), member(port, tenant)))
    });
    let (whose, members): (Vec<_>, Vec<_>) = numbered.unzip();
    let sent = batch
        .add(PORTS, &keys(|port| name(&port.name)))
        .add(HARDWARE, &keys(hardware))
        .add(SOURCES, &keys(source))
        .add(SOURCES6, &all6)
        .put(TENANTS, &whose)
        .add(MEMBERS, &members)
        .send();
    sent.map_err(lacking("guard ports with nf_tables", "nf_tables"))?;
    Ok(tenants)
}

/// The number of a tenant, which is given one if it has none.
fn number(tenants: &mut Tenants, tenant: &str) -> u32 {
    if let Some(number) = tenants.get(tenant) {
        return *number;
    }
    // They are counted anew with each guard, and are as many as ports at most.
    let number = tenants.values().max().map_or(1, |last| last + 1);
    tenants.insert(tenant.to_owned(), number);
    number
}

/// Goes on with frames of a kind.
fn of_kind(kind: [u8; 2]) -> Rule {
    Rule::default()
        .payload(Base::Link, 12, 2, KEY)
        .compare(KEY, true, &kind)
}

/// Loads the port and the sender's hardware address.
fn sender(rule: Rule) -> Rule {
    rule.meta(Meta::Iifname, KEY)
        .payload(Base::Link, 6, 6, KEY_MAC)
}

fn protocol(rule: Rule, number: u8) -> Rule {
    rule.meta(Meta::L4Proto, KEY).compare(KEY, true, &[number])
}

fn bytes_at(rule: Rule, base: Base, offset: u32, value: &[u8]) -> Rule {
    let len = u32::try_from(value.len()).unwrap_or(0);
    rule.payload(base, offset, len, KEY)
        .compare(KEY, true, value)
}

/// Who may send what. What a rule does not let pass is looked at by the next.
fn sending() -> Vec<Rule> {
    let foreign = Rule::default()
        .meta(Meta::Iifname, KEY)
        .lookup(PORTS, KEY, false)
        .accept();
    let udp4 = || protocol(of_kind(IPV4), UDP);
    let server = bytes_at(udp4(), Base::Transport, 0, &DHCP_SERVER)
        .count()
        .drop();
    let ip = sender(of_kind(IPV4))
        .payload(Base::Network, 12, 4, KEY_ADDRESS)
        .lookup(SOURCES, KEY, true)
        .accept();
    // Whoever asks for its address does so from none.
    let asks = bytes_at(udp4(), Base::Transport, 2, &DHCP_SERVER);
    let asks = sender(bytes_at(asks, Base::Network, 12, &[0; 4]))
        .lookup(HARDWARE, KEY, true)
        .accept();
    // ARP has the sender's hardware address once more.
    let arp = sender(of_kind(ARP))
        .payload(Base::Network, 14, 4, KEY_ADDRESS)
        .lookup(SOURCES, KEY, true)
        .payload(Base::Network, 8, 6, KEY_MAC)
        .lookup(SOURCES, KEY, true)
        .accept();
    // Whoever wants to know whether an address is taken has none yet (RFC 5227 §2.1.1).
    let probe = bytes_at(of_kind(ARP), Base::Network, 14, &[0; 4]);
    let probe = sender(bytes_at(probe, Base::Network, 6, &[0, 1]))
        .lookup(HARDWARE, KEY, true)
        .payload(Base::Network, 8, 6, KEY_MAC)
        .lookup(HARDWARE, KEY, true)
        .accept();
    let mut rules = vec![foreign, server, ip, asks, arp, probe];
    let icmp6 = || protocol(of_kind(IPV6), ICMPV6);
    for kind in ROUTERS {
        rules.push(bytes_at(icmp6(), Base::Transport, 0, &kind).count().drop());
    }
    let server6 = protocol(of_kind(IPV6), UDP);
    rules.push(
        bytes_at(server6, Base::Transport, 0, &DHCPV6_SERVER)
            .count()
            .drop(),
    );
    // What says where an address is, says so of one's own.
    rules.push(
        sender(bytes_at(icmp6(), Base::Transport, 0, &ADVERTISEMENT))
            .payload(Base::Transport, 8, 16, KEY_ADDRESS)
            .lookup(SOURCES6, KEY, false)
            .count()
            .drop(),
    );
    rules.push(
        sender(of_kind(IPV6))
            .payload(Base::Network, 8, 16, KEY_ADDRESS)
            .lookup(SOURCES6, KEY, true)
            .accept(),
    );
    // The same for IPv6 (RFC 4862 §5.4.2), about an address of one's own.
    rules.push(
        sender(bytes_at(
            bytes_at(icmp6(), Base::Transport, 0, &SOLICITATION),
            Base::Network,
            8,
            &[0; 16],
        ))
        .payload(Base::Transport, 8, 16, KEY_ADDRESS)
        .lookup(SOURCES6, KEY, true)
        .accept(),
    );
    rules.push(
        sender(bytes_at(
            bytes_at(icmp6(), Base::Transport, 0, &GROUPS),
            Base::Network,
            8,
            &[0; 16],
        ))
        .lookup(HARDWARE, KEY, true)
        .accept(),
    );
    rules.push(Rule::default().count().drop());
    rules
}

/// What goes from one port to another is of one tenant.
fn between() -> Vec<Rule> {
    let elsewhere = |key| {
        Rule::default()
            .meta(key, KEY)
            .lookup(PORTS, KEY, false)
            .accept()
    };
    // The tenant's number is a mark as long as it is looked at: `nft` cannot read it otherwise.
    let whose = Rule::default()
        .meta(Meta::Iifname, KEY)
        .map(TENANTS, KEY, KEY)
        .set_mark(KEY);
    let same = Rule::default()
        .meta(Meta::Mark, KEY)
        .meta(Meta::Oifname, Register::of(1))
        .lookup(MEMBERS, KEY, true)
        .value(&[0; TENANT], KEY)
        .set_mark(KEY)
        .accept();
    vec![
        elsewhere(Meta::Iifname),
        elsewhere(Meta::Oifname),
        whose,
        same,
        Rule::default().count().drop(),
    ]
}

/// Guards one more port. False if the guard has to be set anew.
pub fn admit(nets: &[Net], port: &Port, tenants: &mut Tenants) -> Result<bool, NetworkError> {
    if port.limits.ingress.is_some() || port.limits.egress.is_some() {
        // Each limit is a rule.
        return Ok(false);
    }
    let tenant = number(tenants, &port.tenant);
    let whose = (name(&port.name), tenant.to_ne_bytes().to_vec());
    let batch = Batch::of(Family::Bridge, TABLE)
        .add(PORTS, &[name(&port.name)])
        .add(HARDWARE, &[hardware(port)])
        .add(SOURCES6, &sources6(port, nets))
        .put(TENANTS, &[whose])
        .add(MEMBERS, &[member(port, tenant)])
        .add(SOURCES, &[source(port)]);
    found(batch.send())
}

/// Forgets a port that is gone. False if the guard does not know it, and has to be set anew.
pub fn forget(nets: &[Net], port: &Port, tenants: &Tenants) -> Result<bool, NetworkError> {
    let limited = port.limits.ingress.is_some() || port.limits.egress.is_some();
    let Some(tenant) = tenants.get(&port.tenant).filter(|_| !limited) else {
        return Ok(false);
    };
    let batch = Batch::of(Family::Bridge, TABLE)
        .take(MEMBERS, &[member(port, *tenant)])
        .take(TENANTS, &[name(&port.name)])
        .take(SOURCES6, &sources6(port, nets))
        .take(SOURCES, &[source(port)])
        .take(HARDWARE, &[hardware(port)]);
    found(batch.take(PORTS, &[name(&port.name)]).send())
}

fn found(sent: io::Result<()>) -> Result<bool, NetworkError> {
    match sent {
        Ok(()) => Ok(true),
        // It has another tenant now.
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(lacking("guard a port with nf_tables", "nf_tables")(e)),
    }
}
