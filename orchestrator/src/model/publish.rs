//! Ports of the host that are handed on: to a workload, or to a service.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fields, Port};

/// What is sent to a port.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// Its number in an IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        })
    }
}

/// A port of the host that is a workload's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Published {
    /// The host's port. It belongs to who declared it first.
    pub host_port: u16,
    /// The workload's port.
    pub port: u16,
    /// What is sent to it.
    #[serde(default)]
    pub protocol: Protocol,
    /// The host's only address at which it can be reached; all of them if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<Ipv4Addr>,
}

/// What is no published port.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no published port: write [ADDRESS:]HOSTPORT:PORT[/udp], such as 8080:80")]
pub struct PublishedError(String);

impl FromStr for Published {
    type Err = PublishedError;

    fn from_str(text: &str) -> Result<Published, PublishedError> {
        let read = || {
            let (ports, protocol) = match text.split_once('/') {
                None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
                Some((ports, "udp")) => (ports, Protocol::Udp),
                Some(_) => return None,
            };
            let (rest, port) = ports.rsplit_once(':')?;
            let (host_address, host_port) = match rest.rsplit_once(':') {
                Some((address, port)) => (Some(address.parse().ok()?), port),
                None => (None, rest),
            };
            let port_of = |text: &str| text.parse().ok().filter(|port| *port > 0);
            Some(Published {
                host_port: port_of(host_port)?,
                port: port_of(port)?,
                protocol,
                host_address,
            })
        };
        read().ok_or_else(|| PublishedError(text.to_owned()))
    }
}

impl Published {
    /// Whether two claims of a host's port exclude each other: an address that is left out is every address.
    pub fn clashes(&self, other: &Published) -> bool {
        let same = (self.protocol, self.host_port) == (other.protocol, other.host_port);
        let alike = match (self.host_address, other.host_address) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        same && alike
    }

    /// Says what is wrong with a workload's published ports.
    pub(super) fn check_all(all: &[Published], networks: &[Port], fields: &mut Fields) {
        if all.len() > super::MOST {
            return fields.wrong("spec.publish", "there may be 64");
        }
        fields.must(
            all.is_empty() || !networks.is_empty(),
            "spec.publish",
            "it has no address to be reached at: give it `networks: [{network: default}]`",
        );
        for (n, one) in all.iter().enumerate() {
            let at = format!("spec.publish[{n}]");
            let more = "it must be more than 0";
            fields.must(one.host_port > 0, &format!("{at}.hostPort"), more);
            fields.must(one.port > 0, &format!("{at}.port"), more);
            let twice = all[..n].iter().any(|other| one.clashes(other));
            fields.must(
                !twice,
                &format!("{at}.hostPort"),
                "it is published already, above",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_read_and_nonsense_is_not() {
        let read = |text: &str| text.parse::<Published>().ok();
        let plain = Published {
            host_port: 8080,
            port: 80,
            protocol: Protocol::Tcp,
            host_address: None,
        };
        assert_eq!(read("8080:80").as_ref(), Some(&plain));
        assert_eq!(read("8080:80/tcp").as_ref(), Some(&plain));
        let whole = read("192.0.2.1:53:5353/udp").expect("it is one");
        assert_eq!(whole.protocol, Protocol::Udp);
        assert_eq!(whole.host_address, Some(Ipv4Addr::new(192, 0, 2, 1)));
        for wrong in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "80:70000",
            "80:80/sctp",
            "a:80:80",
            "1:2:3:4",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
