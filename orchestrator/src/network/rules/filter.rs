//! What this host passes on, takes in, and with which addresses, for IPv4 and IPv6: networks do not reach each
//! other, nothing outside begins to speak with those behind NAT, and of this host workloads reach what they are
//! served and nothing else.

use super::super::error::lacking;
use super::super::nft::{Base, Batch, Connection, Family, Hook, Meta, Order, Register, Rule};
use super::super::{METADATA, Mac, Net, NetworkError};
use super::{
    ICMP, ICMPV6, NAME, SHOW_IPV4, SHOW_IPV6, SHOW_MAC, SHOW_NAME, TCP, UDP, anew, name, show,
};

/// Our bridges.
const BRIDGES: &str = "bridges";
/// Those from which what leaves has this host's address.
const HIDDEN: &str = "hidden";
/// From a bridge to itself.
const SAME: &str = "same";
/// The same, by this host: it is what the bridge itself would do, past its guard.
const TURNED: &str = "turned";
/// Where a bridge's workloads reach this host.
const GATEWAYS: &str = "gateways";

const BEHIND: &str = "postrouting";
const FORWARD: &str = "forward";
const INPUT: &str = "input";

/// Behind routing (NF_INET_POST_ROUTING), where sources are rewritten.
const SNAT: Hook = Hook {
    kind: "nat",
    number: 4,
    priority: 100,
};
/// What is passed on (NF_INET_FORWARD), before others' filters.
const PASSED_ON: Hook = Hook {
    kind: "filter",
    number: 2,
    priority: -10,
};
/// What is for this host (NF_INET_LOCAL_IN).
const TAKEN_IN: Hook = Hook {
    kind: "filter",
    number: 1,
    priority: -10,
};

/// Connections that were let pass (NF_CT_STATE_BIT of IP_CT_ESTABLISHED and IP_CT_RELATED).
const KNOWN: u32 = 2 | 4;
/// Connections that this host has sent elsewhere, as to whom it publishes (IPS_DST_NAT).
const SENT_ON: u32 = 1 << 5;

const DNS: [u8; 2] = [0, 53];
const DHCP: [u8; 2] = [0, 67];
const HTTP: [u8; 2] = [0, 80];
const ECHO: [u8; 1] = [8];
const ECHO6: [u8; 1] = [128];
/// What neighbours and routers are asked, and say (RFC 4861 §4).
const NEIGHBOURS: [[u8; 1]; 3] = [[133], [135], [136]];

const KEY: Register = Register::of(0);

/// Sets all of it for these networks, for IPv6 only if that is asked for. How many changes the kernel counts for
/// that is given back.
pub fn set_filter(nets: &[Net], six: bool) -> Result<u32, NetworkError> {
    let sent = batch(Family::Ip, nets).send();
    sent.map_err(lacking("set up NAT with nf_tables", "nft_masq"))?;
    if !six {
        return Ok(1);
    }
    let with6 = nets.iter().filter(|net| net.subnet6.is_some());
    let with6: Vec<Net> = with6.cloned().collect();
    match batch(Family::Ip6, &with6).send() {
        // This host has no IPv6 at all, and nobody asks for it.
        Err(e)
            if with6.is_empty()
                && matches!(
                    e.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
                ) =>
        {
            Ok(1)
        }
        sent => sent
            .map(|()| 2)
            .map_err(lacking("filter IPv6 with nf_tables", "nft_masq")),
    }
}

fn pair(one: &str, other: &str) -> Vec<u8> {
    let mut bytes = name(one);
    bytes.extend(name(other));
    bytes
}

/// The bridge from which a packet came, and whether it is one of a set.
fn by(rule: Rule, key: Meta, set: &str, within: bool) -> Rule {
    rule.meta(key, KEY).lookup(set, KEY, within)
}

fn connection(key: Connection, bits: u32) -> Rule {
    Rule::default()
        .connection(key, KEY)
        .mask(KEY, &bits.to_ne_bytes())
        .compare(KEY, false, &[0; 4])
}

fn protocol(rule: Rule, number: u8) -> Rule {
    rule.meta(Meta::L4Proto, KEY).compare(KEY, true, &[number])
}

fn transport(rule: Rule, offset: u32, value: &[u8]) -> Rule {
    let len = u32::try_from(value.len()).unwrap_or(0);
    rule.payload(Base::Transport, offset, len, KEY)
        .compare(KEY, true, value)
}

fn batch(family: Family, nets: &[Net]) -> Batch {
    let six = matches!(family, Family::Ip6);
    let (size, show_address) = if six { (16, SHOW_IPV6) } else { (4, SHOW_IPV4) };
    let bytes = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut batch = anew(family)
        .set(BRIDGES, SHOW_NAME, bytes(NAME), Order::Host)
        .set(HIDDEN, SHOW_NAME, bytes(NAME), Order::Host)
        .set(
            SAME,
            show(&[SHOW_NAME, SHOW_NAME]),
            bytes(2 * NAME),
            Order::Host,
        )
        .set(
            TURNED,
            show(&[SHOW_NAME, SHOW_NAME, SHOW_MAC]),
            bytes(2 * NAME + 8),
            Order::Host,
        )
        .set(
            GATEWAYS,
            show(&[SHOW_NAME, show_address]),
            bytes(NAME + size),
            Order::Wire,
        )
        .chain(BEHIND, SNAT)
        .chain(FORWARD, PASSED_ON)
        .chain(INPUT, TAKEN_IN);
    for net in nets.iter().filter(|net| net.nat) {
        batch = batch.rule(BEHIND, hides(net, six));
    }
    for rule in passed_on() {
        batch = batch.rule(FORWARD, rule);
    }
    for rule in taken_in(six) {
        batch = batch.rule(INPUT, rule);
    }
    let keys =
        |key: &dyn Fn(&Net) -> Option<Vec<u8>>| nets.iter().filter_map(key).collect::<Vec<_>>();
    let gateway = |net: &Net| {
        let mut key = name(&net.bridge);
        match (six, net.subnet6) {
            (true, subnet6) => key.extend(subnet6?.gateway().octets()),
            (false, _) => key.extend(net.subnet.gateway().octets()),
        }
        Some(key)
    };
    let turned = |net: &Net| {
        let mut key = pair(&net.bridge, &net.bridge);
        key.extend(Mac::of(net.subnet.gateway()).0);
        key.extend([0; 2]);
        Some(key)
    };
    batch
        .add(BRIDGES, &keys(&|net| Some(name(&net.bridge))))
        .add(HIDDEN, &keys(&|net| net.nat.then(|| name(&net.bridge))))
        .add(SAME, &keys(&|net| Some(pair(&net.bridge, &net.bridge))))
        .add(TURNED, &keys(&turned))
        .add(GATEWAYS, &keys(&gateway))
}

/// What leaves a subnet, by another interface than our bridges, does so with that interface's address.
fn hides(net: &Net, six: bool) -> Rule {
    let rule = match (six, net.subnet6) {
        (true, Some(subnet6)) => {
            let (mask, base) = (subnet6.mask().octets(), subnet6.base().octets());
            let within = |rule: Rule, offset, equal| {
                rule.payload(Base::Network, offset, 16, KEY)
                    .mask(KEY, &mask)
                    .compare(KEY, equal, &base)
            };
            within(within(Rule::default(), 8, true), 24, false)
        }
        _ => {
            let (mask, base) = (net.subnet.mask().octets(), net.subnet.base().octets());
            let within = |rule: Rule, offset, equal| {
                rule.payload(Base::Network, offset, 4, KEY)
                    .mask(KEY, &mask)
                    .compare(KEY, equal, &base)
            };
            within(within(Rule::default(), 12, true), 16, false)
        }
    };
    by(rule, Meta::Oifname, BRIDGES, false).masquerade()
}

/// What this host passes on.
fn passed_on() -> Vec<Rule> {
    let turned = Rule::default()
        .meta(Meta::Iifname, KEY)
        .meta(Meta::Oifname, Register::of(4))
        .payload(Base::Link, 0, 6, Register::of(8))
        .lookup(TURNED, KEY, true)
        .count()
        .drop();
    // A bridge's own frames are seen here, too, where br_netfilter is on.
    let same = Rule::default()
        .meta(Meta::Iifname, KEY)
        .meta(Meta::Oifname, Register::of(4))
        .lookup(SAME, KEY, true)
        .accept();
    let others = by(Rule::default(), Meta::Iifname, BRIDGES, true);
    let others = by(others, Meta::Oifname, BRIDGES, true).count().drop();
    let begun = by(Rule::default(), Meta::Oifname, HIDDEN, true)
        .count()
        .drop();
    vec![
        connection(Connection::State, KNOWN).accept(),
        connection(Connection::Status, SENT_ON).accept(),
        turned,
        same,
        others,
        begun,
    ]
}

/// What this host takes in of what workloads send.
fn taken_in(six: bool) -> Vec<Rule> {
    let elsewhere = by(Rule::default(), Meta::Iifname, BRIDGES, false).accept();
    let (offset, size) = if six { (24, 16) } else { (16, 4) };
    let to_gateway = || {
        Rule::default()
            .meta(Meta::Iifname, KEY)
            .payload(Base::Network, offset, size, Register::of(4))
            .lookup(GATEWAYS, KEY, true)
    };
    let mut rules = vec![
        elsewhere,
        connection(Connection::State, KNOWN).accept(),
        connection(Connection::Status, SENT_ON).accept(),
    ];
    for number in [UDP, TCP] {
        rules.push(transport(protocol(to_gateway(), number), 2, &DNS).accept());
    }
    if six {
        rules.push(transport(protocol(to_gateway(), ICMPV6), 0, &ECHO6).accept());
        for kind in NEIGHBOURS {
            rules.push(transport(protocol(Rule::default(), ICMPV6), 0, &kind).accept());
        }
    } else {
        rules.push(transport(protocol(to_gateway(), ICMP), 0, &ECHO).accept());
        rules.push(transport(protocol(Rule::default(), UDP), 2, &DHCP).accept());
        let metadata = Rule::default().payload(Base::Network, 16, 4, KEY).compare(
            KEY,
            true,
            &METADATA.octets(),
        );
        rules.push(transport(protocol(metadata, TCP), 2, &HTTP).accept());
    }
    rules.push(Rule::default().count().drop());
    rules
}
