//! nf_tables' messages, as bytes: tables, chains, sets and rules, sent as one batch of which all is done or
//! nothing. Numbers and layouts are those of <linux/netfilter/nf_tables.h>.

use std::io;

use super::netlink::{HEADER, Netlink};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const DELETE_ELEMENTS: u16 = 14;

const GET_GENERATION: u16 = 16;

/// A set whose keys have values.
const NFT_SET_MAP: u32 = 0x8;
/// Elements of a set in one message: a list of attributes has at most 64 KiB.
const ELEMENTS: usize = 512;

/// Attributes, one behind the other.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::network) struct Attributes(Vec<u8>);

impl Attributes {
    pub(in crate::network) fn put(mut self, kind: u16, value: &[u8]) -> Attributes {
        // All values are short but lists of elements, which are cut.
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(in crate::network) fn number(self, kind: u16, value: u32) -> Attributes {
        self.put(kind, &value.to_be_bytes())
    }

    pub(in crate::network) fn text(self, kind: u16, value: &str) -> Attributes {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    pub(in crate::network) fn nest(self, kind: u16, inner: Attributes) -> Attributes {
        self.put(kind | NLA_F_NESTED, &inner.0)
    }

    /// A value within (NFTA_DATA_VALUE).
    pub(in crate::network) fn data(self, kind: u16, value: &[u8]) -> Attributes {
        self.nest(kind, Attributes::default().put(1, value))
    }
}

/// The packets that a table sees.
#[derive(Debug, Clone, Copy)]
pub enum Family {
    /// IPv4's.
    Ip = 2,
    /// IPv6's.
    Ip6 = 10,
    /// Those that a bridge passes on.
    Bridge = 7,
}

/// Where a chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// The point on a packet's way, by its family's count.
    pub number: u32,
    /// Chains with smaller ones come first.
    pub priority: i32,
}

/// A register: a place of 4 bytes, of which a value takes as many as it needs.
#[derive(Debug, Clone, Copy)]
pub struct Register(pub(in crate::network) u32);

impl Register {
    /// The `n`th of 16.
    pub const fn of(n: u32) -> Register {
        // NFT_REG32_00
        Register(8 + n)
    }

    /// The one with a number of the kernel's.
    pub(in crate::network) const fn raw(n: u32) -> Register {
        Register(n)
    }
}

/// The part of a packet that an offset counts from.
#[derive(Debug, Clone, Copy)]
pub enum Base {
    /// The Ethernet header.
    Link = 0,
    /// The header behind that.
    Network = 1,
    /// The header behind that one.
    Transport = 2,
}

/// How keys are read by those who look at a set: `nft` leaves itself that note.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// As this host's.
    Host = 1,
    /// As on the wire.
    Wire = 2,
}

/// What is known of a packet beside its bytes.
#[derive(Debug, Clone, Copy)]
pub enum Meta {
    /// A number that somebody gave it.
    Mark = 3,
    /// The interface it came in by.
    Iifname = 6,
    /// The interface it goes out by.
    Oifname = 7,
    /// The number of the protocol in its network header, or behind the last of IPv6's.
    L4Proto = 16,
}

/// What is known of the connection that a packet belongs to: flags, as a number of the host's.
#[derive(Debug, Clone, Copy)]
pub enum Connection {
    /// How far it has come (NF_CT_STATE_BIT).
    State = 0,
    /// Whether the packet goes the way of the first one (0) or back (1): a byte.
    Direction = 1,
    /// What was done to it (IPS_…).
    Status = 2,
}

/// What a rule does, one expression after the other; it ends where one says no.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Rule(pub(in crate::network) Attributes);

impl Rule {
    pub(in crate::network) fn with(self, name: &str, data: Attributes) -> Rule {
        let expression = Attributes::default().text(1, name).nest(2, data);
        Rule(self.0.nest(1, expression))
    }

    /// Loads what is known of a packet.
    pub fn meta(self, key: Meta, to: Register) -> Rule {
        let data = Attributes::default().number(1, to.0).number(2, key as u32);
        self.with("meta", data)
    }

    /// Notes a number in a register (4 bytes) as a packet's mark.
    pub fn set_mark(self, from: Register) -> Rule {
        let data = Attributes::default()
            .number(2, Meta::Mark as u32)
            .number(3, from.0);
        self.with("meta", data)
    }

    /// Puts a value into a register.
    pub fn value(self, value: &[u8], to: Register) -> Rule {
        let data = Attributes::default().number(1, to.0).data(2, value);
        self.with("immediate", data)
    }

    /// Loads what is known of a packet's connection.
    pub fn connection(self, key: Connection, to: Register) -> Rule {
        let data = Attributes::default().number(1, to.0).number(2, key as u32);
        self.with("ct", data)
    }

    /// Goes on with more than so many bytes a second, once `burst` bytes have gone by at once.
    pub fn above(self, rate: u64, burst: u32) -> Rule {
        let data = Attributes::default()
            .put(1, &rate.to_be_bytes())
            .put(2, &1u64.to_be_bytes())
            .number(3, burst)
            .number(4, 1)
            .number(5, 1);
        self.with("limit", data)
    }

    /// Loads what a map has for what is in registers; it ends where it has nothing.
    pub fn map(self, map: &str, from: Register, to: Register) -> Rule {
        let data = Attributes::default()
            .text(1, map)
            .number(2, from.0)
            .number(3, to.0);
        self.with("lookup", data)
    }

    /// Loads bytes of a packet.
    pub fn payload(self, base: Base, offset: u32, len: u32, to: Register) -> Rule {
        let data = Attributes::default()
            .number(1, to.0)
            .number(2, base as u32)
            .number(3, offset)
            .number(4, len);
        self.with("payload", data)
    }

    /// Keeps these bits of a register.
    pub fn mask(self, register: Register, mask: &[u8]) -> Rule {
        let len = u32::try_from(mask.len()).unwrap_or(0);
        let data = Attributes::default()
            .number(1, register.0)
            .number(2, register.0)
            .number(3, len)
            .data(4, mask)
            .data(5, &vec![0; mask.len()]);
        self.with("bitwise", data)
    }

    /// Goes on if a register has this value, or, if not `equal`, another.
    pub fn compare(self, register: Register, equal: bool, value: &[u8]) -> Rule {
        let data = Attributes::default()
            .number(1, register.0)
            .number(2, u32::from(!equal))
            .data(3, value);
        self.with("cmp", data)
    }

    /// Goes on if what is in registers is in a set, or, if not `within`, is not.
    pub fn lookup(self, set: &str, register: Register, within: bool) -> Rule {
        let data = Attributes::default()
            .text(1, set)
            .number(2, register.0)
            .number(5, u32::from(!within));
        self.with("lookup", data)
    }

    /// Counts packets and bytes.
    pub fn count(self) -> Rule {
        self.with("counter", Attributes::default())
    }

    /// Lets the packet go this chain's last step.
    pub fn accept(self) -> Rule {
        self.verdict(1)
    }

    /// Ends the packet.
    pub fn drop(self) -> Rule {
        self.verdict(0)
    }

    fn verdict(self, code: u32) -> Rule {
        let verdict = Attributes::default().nest(2, Attributes::default().number(1, code));
        let data = Attributes::default().number(1, 0).nest(2, verdict);
        self.with("immediate", data)
    }

    /// Gives the packet the address of the interface that it goes out by.
    pub fn masquerade(self) -> Rule {
        self.with("masq", Attributes::default())
    }
}

/// A key of a set, or of a map with its value.
type Element<'a> = (&'a [u8], Option<&'a [u8]>);

fn alone(keys: &[Vec<u8>]) -> Vec<Element<'_>> {
    keys.iter().map(|key| (key.as_slice(), None)).collect()
}

/// Changes that are made together.
#[derive(Debug)]
pub struct Batch {
    table: &'static str,
    family: Family,
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the last message begins.
    last: usize,
    pub(in crate::network) sets: u32,
}

impl Batch {
    /// None yet, to a table.
    pub fn of(family: Family, table: &'static str) -> Batch {
        let mut batch = Batch {
            table,
            family,
            bytes: Vec::new(),
            sequence: 0,
            last: 0,
            sets: 0,
        };
        batch.frame(BATCH_BEGIN);
        batch
    }

    fn frame(&mut self, kind: u16) {
        self.message(kind, NLM_F_REQUEST, 0, SUBSYSTEM, &Attributes::default());
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, all: &Attributes) {
        self.last = self.bytes.len();
        self.sequence += 1;
        // A batch is far from 4 GiB.
        let len = u32::try_from(HEADER + 4 + all.0.len()).unwrap_or(u32::MAX);
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(&all.0);
    }

    pub(in crate::network) fn tell(mut self, kind: u16, flags: u16, all: &Attributes) -> Batch {
        let (family, flags) = (self.family as u8, NLM_F_REQUEST | flags);
        self.message(SUBSYSTEM << 8 | kind, flags, family, 0, all);
        self
    }

    pub(in crate::network) fn within(&self) -> Attributes {
        Attributes::default().text(1, self.table)
    }

    /// Makes the table, unless it is there.
    pub fn table(self) -> Batch {
        let all = self.within();
        self.tell(NEW_TABLE, NLM_F_CREATE, &all)
    }

    /// Removes the table and all in it.
    pub fn delete_table(self) -> Batch {
        let all = self.within();
        self.tell(DELETE_TABLE, 0, &all)
    }

    /// Makes a chain, behind whose last rule packets are accepted.
    pub fn chain(self, name: &str, hook: Hook) -> Batch {
        // Two's complement is how it is sent.
        let priority = u32::from_ne_bytes(hook.priority.to_ne_bytes());
        let place = Attributes::default()
            .number(1, hook.number)
            .number(2, priority);
        let all = self.within().text(3, name).nest(4, place).number(5, 1);
        self.tell(NEW_CHAIN, NLM_F_CREATE, &all.text(7, hook.kind))
    }

    /// Adds a rule to a chain.
    pub fn rule(self, chain: &str, rule: Rule) -> Batch {
        let all = self.within().text(2, chain).nest(4, rule.0);
        self.tell(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &all)
    }

    /// Makes a set of keys of `len` bytes; `kind` and `order` say to those who look at it how they are to be read.
    pub fn set(self, name: &str, kind: u32, len: u32, order: Order) -> Batch {
        self.new_set(name, (kind, len), None, order)
    }

    /// Makes a map of keys to values: each with its type, as `nft` shows it, and its bytes.
    pub fn map(self, name: &str, key: (u32, u32), value: (u32, u32), order: Order) -> Batch {
        self.new_set(name, key, Some(value), order)
    }

    fn new_set(
        mut self,
        name: &str,
        (kind, len): (u32, u32),
        value: Option<(u32, u32)>,
        order: Order,
    ) -> Batch {
        self.sets += 1;
        let flags = if value.is_some() { NFT_SET_MAP } else { 0 };
        let all = self.within().text(2, name).number(3, flags).number(4, kind);
        let all = all.number(5, len).number(10, self.sets);
        let all = match value {
            Some((kind, len)) => all.number(6, kind).number(7, len),
            None => all,
        };
        // A type (the order of the key's bytes), a length, and the host's u32.
        let mut note = vec![0, 4];
        note.extend((order as u32).to_ne_bytes());
        let all = all.put(13, &note);
        self.tell(NEW_SET, NLM_F_CREATE, &all)
    }

    /// Puts keys and their values into a map.
    pub fn put(self, map: &str, all: &[(Vec<u8>, Vec<u8>)]) -> Batch {
        let pairs = all
            .iter()
            .map(|(key, value)| (key.as_slice(), Some(value.as_slice())));
        self.elements(NEW_ELEMENTS, NLM_F_CREATE, map, &pairs.collect::<Vec<_>>())
    }

    /// Puts keys into a set.
    pub fn add(self, set: &str, keys: &[Vec<u8>]) -> Batch {
        self.elements(NEW_ELEMENTS, NLM_F_CREATE, set, &alone(keys))
    }

    /// Takes keys out of a set, or a map. They are there, or none of the batch is done.
    pub fn take(self, set: &str, keys: &[Vec<u8>]) -> Batch {
        self.elements(DELETE_ELEMENTS, 0, set, &alone(keys))
    }

    fn elements(self, kind: u16, flags: u16, set: &str, all: &[Element<'_>]) -> Batch {
        all.chunks(ELEMENTS).fold(self, |batch, some| {
            let list = some
                .iter()
                .fold(Attributes::default(), |list, (key, value)| {
                    let element = Attributes::default().data(1, key);
                    let element = match value {
                        Some(value) => element.data(2, value),
                        None => element,
                    };
                    list.nest(1, element)
                });
            let all = batch.within().text(2, set).nest(3, list);
            batch.tell(kind, flags, &all)
        })
    }

    /// Has all of it done, or nothing.
    pub fn send(mut self) -> io::Result<()> {
        let flags = self.bytes.get_mut(self.last + 6..self.last + 8);
        if let Some(flags) = flags {
            let last = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
            flags.copy_from_slice(&last.to_ne_bytes());
        }
        let last = self.sequence;
        self.frame(BATCH_END);
        Netlink::netfilter()?.batch(&self.bytes, last)
    }
}

/// How often the rules of this network namespace have been changed, by anybody: another number means other rules.
pub fn generation() -> io::Result<u32> {
    let mut bytes = Vec::with_capacity(HEADER + 4);
    // 20 bytes: a header, and what all messages of nf_tables begin with.
    bytes.extend(20u32.to_ne_bytes());
    bytes.extend((SUBSYSTEM << 8 | GET_GENERATION).to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(1u32.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([0; 4]);
    let answer = Netlink::netfilter()?.one(&bytes)?;
    // The first attribute is the number (NFTA_GEN_ID).
    let id = answer.get(HEADER + 8..HEADER + 12);
    let id = id.and_then(|bytes| bytes.try_into().ok());
    id.map(u32::from_be_bytes)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its number is not told"))
}
