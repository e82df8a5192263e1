//! What a Linux guest is told of its networks on its kernel's command line.

use std::net::Ipv4Addr;

use super::{Mac, Net, zone};

/// Words from which a guest of a tenant knows its addresses, gateway and name server: those of the kernel's own
/// autoconfiguration for the first network, and those of our guests (images/guest) for all.
pub fn guest_words(tenant: &str, nets: &[(Net, Ipv4Addr)]) -> String {
    let mut words = Vec::new();
    for (n, (net, address)) in nets.iter().enumerate() {
        let (gateway, mask) = (net.subnet.gateway(), net.subnet.mask());
        let len = net.subnet.prefix();
        let nth = if n == 0 { String::new() } else { n.to_string() };
        if n == 0 {
            words.push(format!(
                "ip={address}::{gateway}:{mask}::eth0:off:{gateway}"
            ));
        }
        words.push(format!("skerry.ip{nth}={address}/{len}"));
        if n == 0 {
            words.push(format!("skerry.gw={gateway}"));
        }
        if let Some(subnet6) = net.subnet6 {
            let six = subnet6.of(Mac::of(*address));
            let place = if n == 0 {
                String::new()
            } else {
                format!("-{n}")
            };
            words.push(format!("skerry.v6{place}={six}/{}", subnet6.prefix()));
        }
    }
    let six = nets.iter().find_map(|(net, _)| net.subnet6);
    words.extend(six.map(|subnet6| format!("skerry.v6gw={}", subnet6.gateway())));
    if let Some((net, _)) = nets.first() {
        words.push(format!("skerry.dns={}", net.subnet.gateway()));
        words.push(format!("skerry.search={}", zone::search(tenant)));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Subnet, Subnet6};

    #[test]
    fn a_guest_is_told_its_addresses_in_both_tongues() {
        let net = Net::default(Subnet::default());
        let words = guest_words("team", &[(net, Ipv4Addr::new(10, 88, 3, 4))]);
        assert_eq!(
            words,
            "ip=10.88.3.4::10.88.0.1:255.255.0.0::eth0:off:10.88.0.1 skerry.ip=10.88.3.4/16 \
             skerry.gw=10.88.0.1 skerry.dns=10.88.0.1 skerry.search=team.skerry.internal"
        );
    }

    #[test]
    fn more_networks_are_told_by_their_places() {
        let subnet6: Subnet6 = "fd00:1:2:3::/64".parse().expect("a subnet");
        let subnet = "10.90.1.0/24".parse().expect("a subnet");
        let nets = [
            (Net::default(Subnet::default()), Ipv4Addr::new(10, 88, 3, 4)),
            (
                Net::of("an-uid", subnet, Some(subnet6), true),
                Ipv4Addr::new(10, 90, 1, 2),
            ),
        ];
        let words = guest_words("team", &nets);
        for word in [
            "skerry.ip1=10.90.1.2/24",
            "skerry.v6-1=fd00:1:2:3:53:aff:fe5a:102/64",
            "skerry.v6gw=fd00:1:2:3::1",
        ] {
            assert!(words.split(' ').any(|found| found == word), "{words}");
        }
        assert_eq!(words.matches("skerry.gw=").count(), 1);
    }
}
