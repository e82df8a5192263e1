//! Ports that programs of the host listen on: nobody gets them by publishing, whoever is reached there.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::model::{Protocol, Published};

/// Ports above are taken by whoever asks others, for a moment.
const LASTING: u16 = 32_767;
/// TCP_LISTEN of <net/tcp_states.h>; a UDP socket without a peer is in state TCP_CLOSE.
const LISTENS: u8 = 10;
const UNCONNECTED: u8 = 7;

/// What is listened on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listeners(BTreeSet<(Protocol, u16, Ipv4Addr)>);

impl Listeners {
    /// Looks. What cannot be read is not listened on.
    pub fn look() -> Listeners {
        let mut all = Listeners::default();
        for (file, protocol, state) in [
            ("tcp", Protocol::Tcp, LISTENS),
            ("tcp6", Protocol::Tcp, LISTENS),
            ("udp", Protocol::Udp, UNCONNECTED),
            ("udp6", Protocol::Udp, UNCONNECTED),
        ] {
            let path = format!("/proc/thread-self/net/{file}");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            all.read(&text, protocol, state);
        }
        all
    }

    /// Reads a table of the kernel's.
    fn read(&mut self, text: &str, protocol: Protocol, state: u8) {
        let sockets = text.lines().skip(1).filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (local, _, found) = (words.next()?, words.next()?, words.next()?);
            let (address, port) = local.split_once(':')?;
            let port = u16::from_str_radix(port, 16).ok()?;
            let fits = u8::from_str_radix(found, 16) == Ok(state);
            let lasts = protocol == Protocol::Tcp || port <= LASTING;
            let address = address_of(address)?;
            (fits && lasts && !address.is_loopback()).then_some((protocol, port, address))
        });
        self.0.extend(sockets);
    }

    /// Whether a program would not be reached any more if this were published.
    pub fn clash(&self, wanted: &Published) -> bool {
        let (protocol, port) = (wanted.protocol, wanted.host_port);
        let all = (protocol, port, Ipv4Addr::UNSPECIFIED)..=(protocol, port, Ipv4Addr::BROADCAST);
        let mut listened = self.0.range(all).map(|(_, _, address)| *address);
        listened.any(|address| {
            address.is_unspecified() || wanted.host_address.is_none_or(|one| one == address)
        })
    }
}

/// An address as the kernel's tables have it: words of 4 bytes in this host's order. None if it is IPv6's alone.
fn address_of(text: &str) -> Option<Ipv4Addr> {
    let words = text.as_bytes().chunks(8).map(|word| {
        let word = std::str::from_utf8(word).ok()?;
        u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes)
    });
    let words: Vec<[u8; 4]> = words.collect::<Option<_>>()?;
    match words[..] {
        [address] => Some(address.into()),
        [a, b, c, d] => {
            let bytes: [u8; 16] = [a, b, c, d].concat().try_into().ok()?;
            let address = Ipv6Addr::from(bytes);
            // Who listens on all of IPv6 does so on all of IPv4, as a rule.
            match address.is_unspecified() {
                true => Some(Ipv4Addr::UNSPECIFIED),
                false => address.to_ipv4_mapped(),
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn clash(listeners: &Listeners, text: &str) -> bool {
        listeners.clash(&text.parse().expect("a published port"))
    }

    #[test]
    fn tables_are_read_and_nonsense_is_not() {
        let mut listeners = Listeners::default();
        let mut word = |text: &str, protocol, state| {
            let text = format!("head\n{text}\nnonsense\n 1: zz:zz zz 0A\n 1: :: : :\n");
            listeners.read(&text, protocol, state);
        };
        let one = format!("{:08X}", u32::from_ne_bytes([192, 0, 2, 1]));
        word(
            &format!(" 0: {one}:0050 00000000:0000 0A 0"),
            Protocol::Tcp,
            LISTENS,
        );
        word(
            &format!(" 0: {one}:0051 {one}:0000 01 0"),
            Protocol::Tcp,
            LISTENS,
        );
        let any = "00000000".repeat(4);
        word(
            &format!(" 0: {any}:0016 {any}:0000 0A 0"),
            Protocol::Tcp,
            LISTENS,
        );
        assert!(clash(&listeners, "80:1") && clash(&listeners, "192.0.2.1:80:1"));
        assert!(!clash(&listeners, "192.0.2.2:80:1") && !clash(&listeners, "80:1/udp"));
        assert!(!clash(&listeners, "81:1"));
        assert!(clash(&listeners, "22:1") && clash(&listeners, "192.0.2.2:22:1"));
    }

    #[test]
    fn who_listens_is_found_but_for_the_loopback() {
        let all = TcpListener::bind("0.0.0.0:0").expect("a port");
        let own = TcpListener::bind("127.0.0.1:0").expect("a port");
        let passing = UdpSocket::bind("0.0.0.0:0").expect("a port");
        let port = |address: std::net::SocketAddr| address.port();
        let listeners = Listeners::look();
        let (all, own) = (all.local_addr(), own.local_addr());
        assert!(clash(&listeners, &format!("{}:1", port(all.expect("one")))));
        assert!(!clash(
            &listeners,
            &format!("{}:1", port(own.expect("one")))
        ));
        let passing = port(passing.local_addr().expect("one"));
        let text = format!("{passing}:1/udp");
        assert_eq!(clash(&listeners, &text), passing <= LASTING);
    }
}
