//! What nf_tables can do beyond the other rooms' needs: maps, chance, rewriting of destinations, refusals. Numbers
//! are those of <linux/netfilter/nf_tables.h>.

use std::net::Ipv4Addr;

use crate::network::nft::{Attributes, Batch, Register, Rule};

const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// NFT_SET_MAP.
const MAP: u32 = 0x8;
/// Elements of a map in one message: a list of attributes has at most 64 KiB.
const ELEMENTS: usize = 512;
/// AF_INET.
const INET: u32 = 2;

/// NFT_JUMP and NFT_RETURN, in two's complement.
const JUMP: u32 = -3i32 as u32;
const RETURN: u32 = -5i32 as u32;

/// Keys or values of a map: how `nft` shows them, and their bytes.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The number of nft's type.
    pub shown: u32,
    /// Bytes.
    pub len: u32,
    /// As on the wire, or as this host's: nft's BYTEORDER_BIG_ENDIAN and BYTEORDER_HOST_ENDIAN.
    pub wire: bool,
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
        let verdict = Attributes::default().number(1, JUMP).text(2, chain);
        self.decide(verdict)
    }

    /// Goes back to where this chain was jumped to from.
    pub fn give_back(self) -> Rule {
        self.decide(Attributes::default().number(1, RETURN))
    }

    fn decide(self, verdict: Attributes) -> Rule {
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

    /// Adds a rule to a chain, with words for those who look at it.
    pub fn noted_rule(self, chain: &str, rule: Rule, words: &str) -> Batch {
        // nft's comment: type 0, a length, and text that ends with a zero; 128 bytes at most.
        let mut note = words.as_bytes().to_vec();
        note.truncate(120);
        note.push(0);
        // It has at most 121 bytes.
        let head = [0, u8::try_from(note.len()).unwrap_or(0)];
        let all = self.within().text(2, chain).nest(4, rule.0);
        let all = all.put(7, &[&head, &note[..]].concat());
        self.tell(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &all)
    }

    /// Makes a map, to pick from.
    pub fn choices(mut self, name: &str, key: Shape, value: Shape) -> Batch {
        self.sets += 1;
        let all = self.within().text(2, name).number(3, MAP);
        let all = all.number(4, key.shown).number(5, key.len);
        let all = all.number(6, value.shown).number(7, value.len);
        let all = all.number(10, self.sets);
        let order = |shape: Shape| if shape.wire { 2u32 } else { 1 };
        // Types 0 and 1: the order of the keys' and the values' bytes.
        let mut note = vec![0, 4];
        note.extend(order(key).to_ne_bytes());
        note.extend([1, 4]);
        note.extend(order(value).to_ne_bytes());
        let all = all.put(13, &note);
        self.tell(NEW_SET, NLM_F_CREATE, &all)
    }

    /// Puts keys and their values into a map.
    pub fn fill(self, map: &str, pairs: &[(Vec<u8>, Vec<u8>)]) -> Batch {
        pairs.chunks(ELEMENTS).fold(self, |batch, pairs| {
            let list = pairs
                .iter()
                .fold(Attributes::default(), |list, (key, value)| {
                    list.nest(1, Attributes::default().data(1, key).data(2, value))
                });
            let all = batch.within().text(2, map).nest(3, list);
            batch.tell(NEW_ELEMENTS, NLM_F_CREATE, &all)
        })
    }
}
