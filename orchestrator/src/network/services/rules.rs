//! A plan as what is in a table of our own, `skerry_services`: chains that are always the same, and maps by which they
//! lead to a chain for each port. So a packet looks its port up once, and a change of a port touches what is that
//! port's alone.

use super::expressions::{Kind, Shape, Value};
use super::plan::{At, Backend, Front, Plan};
use super::table::Table;
use super::uplink::Range;
use crate::model::Protocol;
use crate::network::NetworkError;
use crate::network::error::lacking;
use crate::network::nft::{Base, Batch, Connection, Family, Hook, Meta, Register, Rule};

/// Our table.
pub const TABLE: &str = "skerry_services";

/// Before routing, just before others rewrite destinations (-100).
const IN: Hook = Hook {
    kind: "nat",
    number: 0,
    priority: -110,
};
/// The same for what this host itself sends.
const OUT: Hook = Hook {
    kind: "nat",
    number: 3,
    priority: -110,
};
/// Behind routing, before others rewrite sources (100).
const BEHIND: Hook = Hook {
    kind: "nat",
    number: 4,
    priority: 90,
};
/// What is for this host after all. Refusals come before others' filters, which would let askers wait.
const HERE: Hook = Hook {
    kind: "filter",
    number: 1,
    priority: -20,
};
/// What is passed on.
const PASSED: Hook = Hook {
    kind: "filter",
    number: 2,
    priority: -20,
};
/// What this host itself sends, once its destination is rewritten.
const SENT: Hook = Hook {
    kind: "filter",
    number: 3,
    priority: -20,
};

/// Bytes of an interface's name, filled up with zeros.
const NAME: usize = 16;
/// IPS_DST_NAT of <linux/netfilter/nf_conntrack_common.h>.
const DESTINATION_REWRITTEN: u32 = 1 << 5;
/// How `nft` shows things: its types of a number, an address, a protocol, a port, an interface's name.
const INTEGER: u32 = 4;
const ADDRESS: u32 = 7;
const PROTOCOL: u32 = 12;
const PORT: u32 = 13;
const INTERFACE: u32 = 41;

const fn wire(shown: u32, len: u32) -> Shape {
    Shape {
        shown,
        len,
        wire: true,
    }
}

/// Who answers, by number.
const NUMBER: Shape = Shape {
    shown: INTEGER,
    len: 4,
    wire: false,
};
/// An address, and a port with two zeros behind it.
const BACKEND: Shape = wire(ADDRESS << 6 | PORT, 8);
/// An address.
const ALONE: Shape = wire(ADDRESS, 4);
/// A protocol and a port.
const ANYWHERE: Shape = wire(PROTOCOL << 6 | PORT, 8);
/// An address before them.
const THERE: Shape = wire((ADDRESS << 6 | PROTOCOL) << 6 | PORT, 12);
/// An interface and an address.
const LEAVING: Shape = Shape {
    shown: INTERFACE << 6 | ADDRESS,
    len: 20,
    wire: false,
};

/// Ports of services' addresses: for this host, and for workloads.
const SERVICES: &str = "services";
const NEAR: &str = "near";
/// Ports of the host, at one address and at all of them.
const PORTS_THERE: &str = "ports-there";
const PORTS: &str = "ports";
/// The same, of those that nobody answers at.
const REFUSED_THERE: &str = "refused-there";
const REFUSED: &str = "refused";
/// Elastic addresses, who has each, and whose is used on the way out.
const ELASTIC: &str = "elastic";
const ELASTIC_IN: &str = "elastic-in";
const ELASTIC_OUT: &str = "elastic-out";

/// The first registers: where a key begins, and its parts of four bytes; and where a map's address and port come to
/// be beside it.
const FIRST: Register = Register::of(0);
const SECOND: Register = Register::of(1);
const THIRD: Register = Register::of(2);
const FIFTH: Register = Register::of(4);
const TO: Register = Register::of(8);
const TO_PORT: Register = Register::of(9);

fn name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME, 0);
    bytes
}

fn users(network: &str) -> String {
    format!("users/{network}")
}

/// A port as a key, each part filled up to four bytes.
fn key(front: &Front) -> Vec<u8> {
    let address = front.at.address();
    let mut key = address.map_or_else(Vec::new, |address| address.octets().to_vec());
    key.extend([front.protocol.number(), 0, 0, 0]);
    key.extend(front.port.to_be_bytes());
    key.extend([0; 2]);
    key
}

/// What a port is called: `192.0.2.1-tcp-80`.
fn called(front: &Front) -> String {
    let protocol = front.protocol.to_string().to_lowercase();
    match front.at.address() {
        Some(address) => format!("{address}-{protocol}-{}", front.port),
        None => format!("{protocol}-{}", front.port),
    }
}

/// Loads where a packet is for: the protocol and the port, behind the address if it is asked for.
fn for_port(rule: Rule, with_address: bool) -> Rule {
    let (rule, protocol, port) = match with_address {
        true => (rule.payload(Base::Network, 16, 4, FIRST), SECOND, THIRD),
        false => (rule, FIRST, SECOND),
    };
    rule.payload(Base::Network, 9, 1, protocol)
        .payload(Base::Transport, 2, 2, port)
}

/// Whether the packet goes the way of its connection's first.
fn asks(rule: Rule) -> Rule {
    rule.connection(Connection::Direction, FIRST)
        .compare(FIRST, true, &[0])
}

/// Goes on if an address of the packet, at `offset`, is of a range.
fn within(rule: Rule, offset: u32, range: Range) -> Rule {
    rule.payload(Base::Network, offset, 4, FIRST)
        .mask(FIRST, &range.mask.octets())
        .compare(FIRST, true, &range.base.octets())
}

/// Goes on if the packet is for 127.0.0.1 or its like: what goes there cannot leave this host, and is none of ours.
fn to_loopback() -> Rule {
    Rule::default()
        .payload(Base::Network, 16, 1, FIRST)
        .compare(FIRST, true, &[127])
}

/// Goes on if another address was asked than answers.
fn is_handed_on(rule: Rule) -> Rule {
    let bit = DESTINATION_REWRITTEN.to_ne_bytes();
    rule.connection(Connection::Status, FIRST)
        .mask(FIRST, &bit)
        .compare(FIRST, true, &bit)
}

/// What leads from each hook to the maps.
fn frame(table: &mut Table) {
    for (chain, hook) in [
        ("in", IN),
        ("out", OUT),
        ("behind", BEHIND),
        ("here", HERE),
        ("passed", PASSED),
        ("sent", SENT),
    ] {
        let hook = Some(hook);
        let chain = table.chains.entry(chain.to_owned()).or_default();
        chain.hook = hook;
    }
    for (set, kind) in [
        (SERVICES, Kind::Jumps(THERE)),
        (NEAR, Kind::Jumps(THERE)),
        (PORTS_THERE, Kind::Jumps(THERE)),
        (PORTS, Kind::Jumps(ANYWHERE)),
        (REFUSED_THERE, Kind::Keys(THERE)),
        (REFUSED, Kind::Keys(ANYWHERE)),
        (ELASTIC, Kind::Keys(ALONE)),
        (ELASTIC_IN, Kind::Values(ALONE, ALONE)),
        (ELASTIC_OUT, Kind::Values(LEAVING, ALONE)),
    ] {
        table.set(set, kind);
    }
    let there = |map: &str| for_port(Rule::default(), true).jump_by(map, FIRST);
    let to = Rule::default().payload(Base::Network, 16, 4, FIRST);
    let elastic = to.clone().pick(ELASTIC_IN, FIRST, TO).send_to(TO, None);
    let for_host = Rule::default().if_for_host(FIRST).jump("ports");
    let here = || asks(Rule::default());
    let refused = |rule: Rule, set: &str| rule.lookup(set, FIRST, true).jump("refuse");
    let tcp = Rule::default()
        .payload(Base::Network, 9, 1, FIRST)
        .compare(FIRST, true, &[Protocol::Tcp.number()])
        .reset();
    for (chain, rule) in [
        ("in", there(NEAR)),
        ("in", Rule::default().jump("public")),
        ("out", there(SERVICES)),
        ("out", Rule::default().jump("public")),
        ("public", elastic),
        ("public", to_loopback().give_back()),
        ("public", for_host),
        // One address comes before all.
        ("ports", there(PORTS_THERE)),
        (
            "ports",
            for_port(Rule::default(), false).jump_by(PORTS, FIRST),
        ),
        ("refuse", tcp),
        ("refuse", Rule::default().unreachable()),
        ("here", to_loopback().give_back()),
        (
            "here",
            refused(here().payload(Base::Network, 16, 4, FIRST), ELASTIC),
        ),
        ("here", refused(for_port(here(), true), REFUSED_THERE)),
        ("here", refused(for_port(here(), false), REFUSED)),
    ] {
        table.rule(chain, rule, "");
    }
}

/// Hands on what comes to a chain to one of some, by chance; `map` is for who they are.
fn balance(table: &mut Table, (chain, map): (&str, &str), rule: Rule, to: &[Backend], whose: &str) {
    let Ok(count @ 1..) = u32::try_from(to.len()) else {
        return;
    };
    if let [(address, port)] = to {
        let rule = rule
            .load_address(TO, *address)
            .load(TO_PORT, &port.to_be_bytes())
            .send_to(TO, Some(TO_PORT));
        return table.rule(chain, rule, whose);
    }
    let set = table.set(map, Kind::Values(NUMBER, BACKEND));
    for (n, (address, port)) in (0..count).zip(to) {
        let mut value = address.octets().to_vec();
        value.extend(port.to_be_bytes());
        value.extend([0; 2]);
        set.put(n.to_ne_bytes().to_vec(), Value::Bytes(value), "");
    }
    let rule = rule.chance(count, FIRST).pick(map, FIRST, TO);
    table.rule(chain, rule.send_to(TO, Some(TO_PORT)), whose);
}

/// Lets a map lead to a chain.
fn lead(table: &mut Table, map: &str, kind: Kind, front: &Front, chain: &str) {
    let to = Value::Jump(chain.to_owned());
    table.set(map, kind).put(key(front), to, &front.whose);
}

/// A port of a service's address, for workloads and for this host.
fn service(table: &mut Table, front: &Front) {
    let near = format!("near-{}", called(front));
    for (n, (network, backends)) in front.near.iter().enumerate() {
        if backends.is_empty() {
            continue;
        }
        let asker = Rule::default().payload(Base::Network, 12, 4, FIRST);
        let asker = asker.lookup(&users(network), FIRST, true);
        let map = format!("{near}-{n}");
        balance(table, (&near, &map), asker, backends, &front.whose);
        lead(table, NEAR, Kind::Jumps(THERE), front, &near);
    }
    if front.is_served() {
        let chain = format!("service-{}", called(front));
        let to = &front.backends;
        balance(table, (&chain, &chain), Rule::default(), to, &front.whose);
        lead(table, SERVICES, Kind::Jumps(THERE), front, &chain);
    }
}

/// A port of this host.
fn port(table: &mut Table, front: &Front) {
    let (kind, map, refused) = match front.at.address() {
        Some(_) => (THERE, PORTS_THERE, REFUSED_THERE),
        None => (ANYWHERE, PORTS, REFUSED),
    };
    if !front.is_served() {
        let set = table.set(refused, Kind::Keys(kind));
        return set.put(key(front), Value::None, &front.whose);
    }
    let chain = format!("port-{}", called(front));
    let to = &front.backends;
    balance(table, (&chain, &chain), Rule::default(), to, &front.whose);
    lead(table, map, Kind::Jumps(kind), front, &chain);
}

/// What is to be there for a plan; nothing for one that is empty.
pub fn table(plan: &Plan) -> Table {
    let mut table = Table::default();
    if plan.is_empty() {
        return table;
    }
    frame(&mut table);
    for (network, addresses) in &plan.users {
        let set = table.set(&users(network), Kind::Keys(ALONE));
        for address in addresses {
            set.put(address.octets().to_vec(), Value::None, "");
        }
    }
    let mut has_services = false;
    for front in &plan.fronts {
        match front.at {
            At::Virtual(_) => {
                has_services = true;
                service(&mut table, front);
            }
            At::Host(_) => port(&mut table, front),
        }
    }
    if has_services {
        // What is sent there and to no service is refused.
        let pool = Range::of(plan.pool.base(), plan.pool.prefix());
        for chain in ["passed", "sent"] {
            let rule = asks(within(Rule::default(), 16, pool)).jump("refuse");
            table.rule(chain, rule, "no service");
        }
    }
    sources(&mut table, plan);
    table
}

/// Sources: neighbours would answer each other past this host, so they are asked by it; and elastic addresses are
/// used on the way out, too.
fn sources(table: &mut Table, plan: &Plan) {
    for range in &plan.networks {
        let rule = within(within(Rule::default(), 12, *range), 16, *range);
        table.rule("behind", is_handed_on(rule).masquerade(), "");
    }
    for one in &plan.elastic {
        let address = one.address.octets().to_vec();
        let all = table.set(ELASTIC, Kind::Keys(ALONE));
        all.put(address.clone(), Value::None, &one.whose);
        let Some(target) = one.target.map(|target| target.octets().to_vec()) else {
            continue;
        };
        let mut key = name(&one.interface);
        key.extend(&target);
        let inward = table.set(ELASTIC_IN, Kind::Values(ALONE, ALONE));
        inward.put(address.clone(), Value::Bytes(target), &one.whose);
        let outward = table.set(ELASTIC_OUT, Kind::Values(LEAVING, ALONE));
        outward.put(key, Value::Bytes(address), &one.whose);
    }
    let leaving = Rule::default()
        .meta(Meta::Oifname, FIRST)
        .payload(Base::Network, 12, 4, FIFTH)
        .pick(ELASTIC_OUT, FIRST, TO)
        .come_from(TO);
    table.rule("behind", leaving, "");
}

/// Makes what is to be there of what is there, or, if that is not known, of whatever there is. How many changes the
/// kernel counts for that is given back.
///
/// # Errors
/// If the kernel refuses; what was there is left then.
pub fn set(wanted: &Table, there: Option<&Table>) -> Result<u32, NetworkError> {
    if there == Some(wanted) {
        return Ok(0);
    }
    let batch = Batch::of(Family::Ip, TABLE);
    let batch = match there {
        Some(there) => wanted.change(there, batch),
        None => wanted.change(&Table::default(), batch.table().delete_table().table()),
    };
    let sent = batch.send();
    sent.map_err(lacking(
        "hand on ports with nf_tables",
        "nft_numgen, nft_fib_ipv4 and nft_reject_ipv4",
    ))?;
    Ok(1)
}

/// Removes all of it.
///
/// # Errors
/// If the kernel refuses.
pub fn remove() -> Result<(), NetworkError> {
    let sent = Batch::of(Family::Ip, TABLE).table().delete_table().send();
    sent.map_err(lacking("remove rules of nf_tables", "nf_tables"))
}
