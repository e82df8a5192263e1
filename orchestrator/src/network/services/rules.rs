//! A plan as rules: a table of our own, `skerry_services`, which is made anew with each change.

use std::net::Ipv4Addr;

use super::expressions::Shape;
use super::plan::{At, Backend, Front, Plan};
use super::uplink::Range;
use crate::model::Protocol;
use crate::network::NetworkError;
use crate::network::error::lacking;
use crate::network::nft::{Base, Batch, Connection, Family, Hook, Meta, Order, Register, Rule};

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
/// How `nft` shows things: its types of a number, an address, a port.
const INTEGER: u32 = 4;
const ADDRESS: u32 = 7;
const PORT: u32 = 13;

/// Who answers, by number.
const KEY: Shape = Shape {
    shown: INTEGER,
    len: 4,
    wire: false,
};
/// An address, and a port with two zeros behind it.
const VALUE: Shape = Shape {
    shown: ADDRESS << 6 | PORT,
    len: 8,
    wire: true,
};

/// The first registers: where a map's address and port come to be beside its key.
const FIRST: Register = Register::of(0);
const TO: Register = Register::of(4);
const TO_PORT: Register = Register::of(5);

fn name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME, 0);
    bytes
}

fn users(n: usize) -> String {
    format!("users-{n}")
}

/// Goes on if an address of the packet, at `offset`, is this one.
fn address(rule: Rule, offset: u32, address: Ipv4Addr) -> Rule {
    rule.payload(Base::Network, offset, 4, FIRST)
        .compare(FIRST, true, &address.octets())
}

fn from(rule: Rule, source: Ipv4Addr) -> Rule {
    address(rule, 12, source)
}

fn to(rule: Rule, destination: Ipv4Addr) -> Rule {
    address(rule, 16, destination)
}

fn to_port(rule: Rule, protocol: Protocol, port: u16) -> Rule {
    rule.payload(Base::Network, 9, 1, FIRST)
        .compare(FIRST, true, &[protocol.number()])
        .payload(Base::Transport, 2, 2, FIRST)
        .compare(FIRST, true, &port.to_be_bytes())
}

/// Goes on if the packet is for a port.
fn to_front(front: &Front) -> Rule {
    let rule = match front.at.address() {
        Some(address) => to(Rule::default(), address),
        None => Rule::default(),
    };
    to_port(rule, front.protocol, front.port)
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

/// Rules, and the maps that they need.
struct Writer {
    batch: Batch,
    maps: usize,
}

impl Writer {
    /// Hands on what is for a port to one of some, by chance.
    fn balance(mut self, chain: &str, rule: Rule, backends: &[Backend], whose: &str) -> Writer {
        let Ok(count @ 1..) = u32::try_from(backends.len()) else {
            return self;
        };
        if let [(address, port)] = backends {
            let rule = rule
                .load_address(TO, *address)
                .load(TO_PORT, &port.to_be_bytes())
                .send_to(TO, Some(TO_PORT));
            self.batch = self.batch.noted_rule(chain, rule, whose);
            return self;
        }
        let map = format!("backends-{}", self.maps);
        let pairs: Vec<_> = (0..count)
            .zip(backends)
            .map(|(n, (address, port))| {
                let mut value = address.octets().to_vec();
                value.extend(port.to_be_bytes());
                value.extend([0; 2]);
                (n.to_ne_bytes().to_vec(), value)
            })
            .collect();
        let rule = rule
            .chance(count, FIRST)
            .pick(&map, FIRST, TO)
            .send_to(TO, Some(TO_PORT));
        self.maps += 1;
        self.batch = self.batch.choices(&map, KEY, VALUE).fill(&map, &pairs);
        self.batch = self.batch.noted_rule(chain, rule, whose);
        self
    }

    /// Services' addresses, for workloads and for the host itself.
    fn services(self, plan: &Plan) -> Writer {
        let fronts = plan.fronts.iter();
        let fronts = fronts.filter(|front| matches!(front.at, At::Virtual(_)));
        fronts.fold(self, |writer, front| {
            let writer = front.near.iter().fold(writer, |writer, (set, backends)| {
                let rule = to_front(front).payload(Base::Network, 12, 4, FIRST).lookup(
                    &users(*set),
                    FIRST,
                    true,
                );
                writer.balance("workloads", rule, backends, &front.whose)
            });
            writer.balance("host", to_front(front), &front.backends, &front.whose)
        })
    }

    /// The host's ports and elastic addresses, for all.
    fn public(mut self, plan: &Plan) -> Writer {
        for one in &plan.elastic {
            if let Some(target) = one.target {
                let rule = to(Rule::default(), one.address);
                let rule = rule.load_address(TO, target).send_to(TO, None);
                self.batch = self.batch.noted_rule("public", rule, &one.whose);
            }
        }
        self.batch = self.batch.rule("public", to_loopback().give_back());
        let ports = Rule::default().if_for_host(FIRST).jump("ports");
        self.batch = self.batch.rule("public", ports);
        let fronts = plan.fronts.iter();
        let mut fronts: Vec<_> = fronts
            .filter(|front| matches!(front.at, At::Host(_)))
            .collect();
        // One address comes before all.
        fronts.sort_by_key(|front| front.at.address().is_none());
        fronts.into_iter().fold(self, |writer, front| {
            writer.balance("ports", to_front(front), &front.backends, &front.whose)
        })
    }

    /// What comes to nobody is refused, at once.
    fn refusals(mut self, plan: &Plan) -> Writer {
        let tcp = Rule::default()
            .payload(Base::Network, 9, 1, FIRST)
            .compare(FIRST, true, &[Protocol::Tcp.number()])
            .reset();
        let refuse = |batch: Batch, chain: &str, rule: Rule, whose: &str| {
            batch.noted_rule(chain, asks(rule).jump("refuse"), whose)
        };
        let pool = Range::of(plan.pool.base(), plan.pool.prefix());
        let mut batch = self.batch.rule("refuse", tcp);
        batch = batch.rule("refuse", Rule::default().unreachable());
        let is_service = |front: &Front| matches!(front.at, At::Virtual(_));
        if plan.fronts.iter().any(is_service) {
            for chain in ["passed", "sent"] {
                let rule = within(Rule::default(), 16, pool);
                batch = refuse(batch, chain, rule, "no service");
            }
        }
        batch = batch.rule("here", to_loopback().give_back());
        for one in &plan.elastic {
            let rule = to(Rule::default(), one.address);
            batch = refuse(batch, "here", rule, &one.whose);
        }
        for front in &plan.fronts {
            if matches!(front.at, At::Host(_)) && !front.is_served() {
                batch = refuse(batch, "here", to_front(front), &front.whose);
            }
        }
        self.batch = batch;
        self
    }

    /// Sources: neighbours would answer each other past this host, so they are asked by it; and elastic addresses are
    /// used on the way out, too.
    fn sources(mut self, plan: &Plan) -> Writer {
        for range in &plan.networks {
            let rule = within(within(Rule::default(), 12, *range), 16, *range);
            self.batch = self.batch.rule("behind", is_handed_on(rule).masquerade());
        }
        for one in &plan.elastic {
            if let Some(target) = one.target {
                let rule = Rule::default().meta(Meta::Oifname, FIRST).compare(
                    FIRST,
                    true,
                    &name(&one.interface),
                );
                let rule = from(rule, target)
                    .load_address(TO, one.address)
                    .come_from(TO);
                self.batch = self.batch.noted_rule("behind", rule, &one.whose);
            }
        }
        self
    }
}

/// Puts a plan in the place of what was there.
///
/// # Errors
/// If the kernel refuses; what was there is left then.
pub fn set(plan: &Plan) -> Result<(), NetworkError> {
    if plan.is_empty() {
        return remove();
    }
    let mut batch = Batch::of(Family::Ip, TABLE).table().delete_table().table();
    for (n, addresses) in plan.users.iter().enumerate() {
        let addresses: Vec<_> = addresses.iter().map(|one| one.octets().to_vec()).collect();
        batch = batch.set(&users(n), ADDRESS, 4, Order::Wire);
        batch = batch.add(&users(n), &addresses);
    }
    for chain in ["workloads", "host", "public", "ports", "refuse"] {
        batch = batch.side_chain(chain);
    }
    for (chain, hook) in [
        ("in", IN),
        ("out", OUT),
        ("behind", BEHIND),
        ("here", HERE),
        ("passed", PASSED),
        ("sent", SENT),
    ] {
        batch = batch.chain(chain, hook);
    }
    for (chain, first) in [("in", "workloads"), ("out", "host")] {
        batch = batch.rule(chain, Rule::default().jump(first));
        batch = batch.rule(chain, Rule::default().jump("public"));
    }
    let writer = Writer { batch, maps: 0 };
    let written = writer
        .services(plan)
        .public(plan)
        .refusals(plan)
        .sources(plan);
    let sent = written.batch.send();
    sent.map_err(lacking(
        "hand on ports with nf_tables",
        "nft_numgen, nft_fib_ipv4 and nft_reject_ipv4",
    ))
}

/// Removes all of it.
///
/// # Errors
/// If the kernel refuses.
pub fn remove() -> Result<(), NetworkError> {
    let sent = Batch::of(Family::Ip, TABLE).table().delete_table().send();
    sent.map_err(lacking("remove rules of nf_tables", "nf_tables"))
}
