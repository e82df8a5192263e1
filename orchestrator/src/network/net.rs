//! What a network of a host is. It stands in its bridge's alias, where an agent that knows nothing finds it.

use super::{Subnet, Subnet6, port};

/// The network of those who name none.
pub const DEFAULT: &str = "default";
/// Its bridge.
pub const BRIDGE: &str = "skerry0";
/// What the names of other networks' bridges begin with.
const PREFIX: &str = "skn";
/// Digits of a hash behind that: a name has at most 15 bytes.
const DIGITS: usize = 12;
/// What all aliases begin with.
const ALIAS: [&str; 2] = ["skerry", "network"];

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    /// Its name among all networks: `default`, or the uid of the object that declares it.
    pub id: String,
    /// Its bridge.
    pub bridge: String,
    /// Its IPv4 addresses.
    pub subnet: Subnet,
    /// Its IPv6 addresses, if it has any.
    pub subnet6: Option<Subnet6>,
    /// What leaves it does so with this host's address.
    pub nat: bool,
}

impl Net {
    /// The network `default`.
    pub fn default(subnet: Subnet) -> Net {
        Net {
            id: DEFAULT.to_owned(),
            bridge: BRIDGE.to_owned(),
            subnet,
            subnet6: None,
            nat: true,
        }
    }

    /// One of a tenant, by its uid.
    pub fn of(uid: &str, subnet: Subnet, subnet6: Option<Subnet6>, nat: bool) -> Net {
        let hash = port::hash(uid) & ((1 << (4 * DIGITS)) - 1);
        Net {
            id: uid.to_owned(),
            bridge: format!("{PREFIX}{hash:0DIGITS$x}"),
            subnet,
            subnet6,
            nat,
        }
    }

    /// That of a bridge with this name and alias, if it is one.
    pub fn read(name: &str, alias: &str) -> Option<Net> {
        let words: Vec<&str> = alias.split(' ').collect();
        let (head, words) = words.split_at_checked(ALIAS.len())?;
        let (id, subnet, nat, subnet6) = match *words {
            [id, subnet, nat] => (id, subnet, nat, None),
            [id, subnet, nat, subnet6] => (id, subnet, nat, Some(subnet6.parse().ok()?)),
            _ => return None,
        };
        let (subnet, nat) = (subnet.parse().ok()?, nat == "nat");
        let net = match id {
            DEFAULT => Net::default(subnet),
            id => Net::of(id, subnet, subnet6, nat),
        };
        (head == ALIAS && net.bridge == name).then_some(net)
    }

    /// Its bridge's alias.
    pub fn alias(&self) -> String {
        let [ours, what] = ALIAS;
        let nat = if self.nat { "nat" } else { "routed" };
        let alias = format!("{ours} {what} {} {} {nat}", self.id, self.subnet);
        match self.subnet6 {
            Some(subnet6) => format!("{alias} {subnet6}"),
            None => alias,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet() -> Subnet {
        "10.90.3.0/24".parse().expect("a subnet")
    }

    #[test]
    fn a_network_is_read_back_from_its_bridge() {
        let six = Subnet6::chosen("an-uid");
        for net in [
            Net::default(subnet()),
            Net::of("an-uid", subnet(), None, true),
            Net::of("an-uid", subnet(), Some(six), false),
        ] {
            assert_eq!(Net::read(&net.bridge, &net.alias()), Some(net.clone()));
            assert!(net.bridge.len() <= 15 && net.alias().len() < 256);
            assert!(!port::is_name(&net.bridge));
        }
    }

    #[test]
    fn what_others_write_into_an_alias_is_no_network() {
        let net = Net::of("an-uid", subnet(), None, true);
        for alias in [
            "",
            "skerry",
            "skerry network",
            "skerry network an-uid x nat",
        ] {
            assert_eq!(Net::read(&net.bridge, alias), None, "{alias}");
        }
        assert_eq!(Net::read("br0", &net.alias()), None);
        assert_eq!(Net::read(&net.bridge, &(net.alias() + " a b")), None);
    }
}
