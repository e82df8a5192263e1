//! What nf_tables can do beyond the other rooms' needs: maps, chance, rewriting of destinations, refusals. Numbers
//! are those of <linux/netfilter/nf_tables.h>.

use std::net::Ipv4Addr;

use crate::network::nft::{Attributes, Batch, Register, Rule};

const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULES: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENTS: u16 = 12;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// NFT_SET_MAP.
const MAP: u32 = 0x8;
/// Elements of a set in one message: a list of attributes has at most 64 KiB, and an element with a chain's name and
/// words less than 512 bytes.
const ELEMENTS: usize = 120;
/// AF_INET.
const INET: u32 = 2;

/// NFT_DATA_VERDICT: a map's values are verdicts.
const VERDICTS: u32 = 0xffff_ff00;
/// NFT_REG_VERDICT.
const VERDICT: Register = Register::raw(0);
/// NFT_JUMP and NFT_RETURN, in two's complement.
const JUMP: u32 = -3i32 as u32;
const RETURN: u32 = -5i32 as u32;

/// Keys or values of a map: how `nft` shows them, and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The number of nft's type.
    pub shown: u32,
    /// Bytes.
    pub len: u32,
    /// As on the wire, or as this host's: nft's BYTEORDER_BIG_ENDIAN and BYTEORDER_HOST_ENDIAN.
    pub wire: bool,
}

/// What a set is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Keys alone.
    Keys(Shape),
    /// Keys and their values.
    Values(Shape, Shape),
    /// Keys and the chains to go on in.
    Jumps(Shape),
}

/// What belongs to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing: it is in a set.
    None,
    /// Bytes.
    Bytes(Vec<u8>),
    /// A chain.
    Jump(String),
}

fn verdict(chain: &str) -> Attributes {
    let verdict = Attributes::default().number(1, JUMP).text(2, chain);
    Attributes::default().nest(2, verdict)
}

/// nft's comment: type 0, a length, and text that ends with a zero; 128 bytes at most.
fn comment(words: &str) -> Vec<u8> {
    let mut note = words.as_bytes().to_vec();
    note.truncate(120);
    note.push(0);
    // It has at most 121 bytes.
    let head = [0, u8::try_from(note.len()).unwrap_or(0)];
    [&head, &note[..]].concat()
}

impl Rule {
    /// Loads a value.
    pub fn load(self, to: Register, value: &[u8]) -> Rule {
        let data = Attributes::default().number(1, to.0).data(2, value);
        self.with("immediate", data)
    }

    /// Loads a random number below `of`, as this host's u32.
    pub fn chance(self, of: u32, to: Register) -> Rule {
        let data = Attributes::default()
            .number(1, to.0)
            .number(2, of)
            // NFT_NG_RANDOM
            .number(3, 1)
            .number(4, 0);
        self.with("numgen", data)
    }

    /// Loads what a map has for a key; goes on if it has something.
    pub fn pick(self, map: &str, key: Register, to: Register) -> Rule {
        let data = Attributes::default()
            .text(1, map)
            .number(2, key.0)
            .number(3, to.0);
        self.with("lookup", data)
    }

    /// Goes on in the chain that a map has for a key, if it has one.
    pub fn jump_by(self, map: &str, key: Register) -> Rule {
        self.pick(map, key, VERDICT)
    }

    /// Sends the packet's connection to the address in a register and, if one is given, the port in another.
    pub fn send_to(self, address: Register, port: Option<Register>) -> Rule {
        // NFT_NAT_DNAT
        self.nat(1, address, port)
    }

    /// Lets the packet's connection come from the address in a register.
    pub fn come_from(self, address: Register) -> Rule {
        // NFT_NAT_SNAT
        self.nat(0, address, None)
    }

    fn nat(self, kind: u32, address: Register, port: Option<Register>) -> Rule {
        let data = Attributes::default()
            .number(1, kind)
            .number(2, INET)
            .number(3, address.0);
        let data = match port {
            Some(port) => data.number(5, port.0),
            None => data,
        };
        self.with("nat", data)
    }

    /// Goes on if the packet is for an address of this host's.
    pub fn if_for_host(self, by: Register) -> Rule {
        // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR, which is to be RTN_LOCAL.
        let data = Attributes::default()
            .number(1, by.0)
            .number(2, 3)
            .number(3, 2);
        self.with("fib", data)
            .compare(by, true, &2u32.to_ne_bytes())
    }

    /// Goes on in another chain, and comes back if nothing is decided there.
    pub fn jump(self, chain: &str) -> Rule {
        let data = Attributes::default().number(1, 0).nest(2, verdict(chain));
        self.with("immediate", data)
    }

    /// Goes back to where this chain was jumped to from.
    pub fn give_back(self) -> Rule {
        let verdict = Attributes::default().number(1, RETURN);
        let data = Attributes::default()
            .number(1, 0)
            .nest(2, Attributes::default().nest(2, verdict));
        self.with("immediate", data)
    }

    /// Answers a TCP segment with a reset.
    pub fn reset(self) -> Rule {
        // NFT_REJECT_TCP_RST
        let data = Attributes::default().number(1, 1).put(2, &[0]);
        self.with("reject", data)
    }

    /// Answers a packet by saying that nobody listens there (ICMP's port unreachable).
    pub fn unreachable(self) -> Rule {
        let data = Attributes::default().number(1, 0).put(2, &[3]);
        self.with("reject", data)
    }

    /// Loads an IPv4 address.
    pub fn load_address(self, to: Register, address: Ipv4Addr) -> Rule {
        self.load(to, &address.octets())
    }
}

impl Batch {
    /// Makes a chain that others jump to.
    pub fn side_chain(self, name: &str) -> Batch {
        let all = self.within().text(3, name);
        self.tell(NEW_CHAIN, NLM_F_CREATE, &all)
    }

    /// Takes all rules out of a chain.
    pub fn flush_chain(self, name: &str) -> Batch {
        let all = self.within().text(2, name);
        self.tell(DELETE_RULES, 0, &all)
    }

    /// Removes a chain, which has no rules and to which nothing leads.
    pub fn delete_chain(self, name: &str) -> Batch {
        let all = self.within().text(3, name);
        self.tell(DELETE_CHAIN, 0, &all)
    }

    /// Adds a rule to a chain, with words, if there are any, for those who look at it.
    pub fn noted_rule(self, chain: &str, rule: Rule, words: &str) -> Batch {
        if words.is_empty() {
            return self.rule(chain, rule);
        }
        let all = self.within().text(2, chain).nest(4, rule.0);
        let all = all.put(7, &comment(words));
        self.tell(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &all)
    }

    /// Removes a set that no rule uses.
    pub fn delete_set(self, name: &str) -> Batch {
        let all = self.within().text(2, name);
        self.tell(DELETE_SET, 0, &all)
    }

    /// Makes a set, or a map.
    pub fn new_set_of(mut self, name: &str, kind: Kind) -> Batch {
        self.sets += 1;
        let (Kind::Keys(key) | Kind::Values(key, _) | Kind::Jumps(key)) = kind;
        let flags = if matches!(kind, Kind::Keys(_)) {
            0
        } else {
            MAP
        };
        let all = self.within().text(2, name).number(3, flags);
        let all = all.number(4, key.shown).number(5, key.len);
        let order = |shape: Shape| if shape.wire { 2u32 } else { 1 };
        // Types 0 and 1: the order of the keys' and the values' bytes.
        let mut note = vec![0, 4];
        note.extend(order(key).to_ne_bytes());
        let all = match kind {
            Kind::Keys(_) => all,
            Kind::Values(_, value) => {
                note.extend([1, 4]);
                note.extend(order(value).to_ne_bytes());
                all.number(6, value.shown).number(7, value.len)
            }
            Kind::Jumps(_) => all.number(6, VERDICTS),
        };
        let all = all.number(10, self.sets).put(13, &note);
        self.tell(NEW_SET, NLM_F_CREATE, &all)
    }

    /// Puts keys into a set, with what belongs to them and words for those who look at it.
    pub fn fill(self, set: &str, all: &[(&[u8], &Value, &str)]) -> Batch {
        all.chunks(ELEMENTS).fold(self, |batch, some| {
            let list = some
                .iter()
                .fold(Attributes::default(), |list, (key, value, words)| {
                    let element = Attributes::default().data(1, key);
                    let element = match value {
                        Value::None => element,
                        Value::Bytes(bytes) => element.data(2, bytes),
                        Value::Jump(chain) => element.nest(2, verdict(chain)),
                    };
                    list.nest(
                        1,
                        match words.is_empty() {
                            true => element,
                            false => element.put(6, &comment(words)),
                        },
                    )
                });
            let all = batch.within().text(2, set).nest(3, list);
            batch.tell(NEW_ELEMENTS, NLM_F_CREATE, &all)
        })
    }
}
