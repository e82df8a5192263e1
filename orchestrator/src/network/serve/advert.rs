//! What a router says of itself (RFC 4861 §6.2): here are addresses of these 64 bits, which everybody makes for itself
//! of its hardware address (RFC 4862), and this is the way out.

use std::io::{self, Read};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::super::{Mac, Net, Subnet6};

/// Between advertisements that nobody asked for.
const EVERY: Duration = Duration::from_secs(30);
/// Between those that somebody asked for, at least.
const LEAST: Duration = Duration::from_millis(200);
/// Seconds for which this host is a router, and for which addresses are good.
const LIFETIME: u16 = 1800;
const GOOD: u32 = 86_400;
const PREFERRED: u32 = 14_400;

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Serves a network on its bridge, until something fails.
pub async fn serve(net: Net, subnet6: Subnet6, index: u32) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(net.bridge.as_bytes()))?;
    socket.set_nonblocking(true)?;
    // What has come farther is not believed (RFC 4861 §6.1.2).
    socket.set_multicast_hops_v6(255)?;
    socket.set_unicast_hops_v6(255)?;
    socket.set_multicast_loop_v6(false)?;
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    // SAFETY: a `Socket` names the same descriptor and keeps it open as long as it lives, which is as long as the
    // `AsyncFd` that owns it.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
    let to: SocketAddr = SocketAddrV6::new(ALL_NODES, 0, 0, index).into();
    let says = advertisement(subnet6, Mac::of(net.subnet.gateway()));
    loop {
        socket.get_ref().send_to(&says, &to.into())?;
        let said = Instant::now();
        let asked = async {
            loop {
                socket.readable().await?.clear_ready();
                let mut bytes = [0; 64];
                loop {
                    match socket.get_ref().read(&mut bytes) {
                        Ok(n) if n > 0 && bytes[0] == SOLICITATION => return Ok(()),
                        Ok(_) => {}
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                        Err(e) => return Err(e),
                    }
                }
            }
        };
        match tokio::time::timeout(EVERY, asked).await {
            Ok(Ok(())) => tokio::time::sleep_until(said + LEAST).await,
            Ok(Err(e)) => return Err(e),
            Err(_) => {}
        }
    }
}

/// The message, whose checksum the kernel makes.
fn advertisement(subnet6: Subnet6, Mac(mac): Mac) -> Vec<u8> {
    let mut bytes = vec![ADVERTISEMENT, 0, 0, 0, 64, 0];
    bytes.extend(LIFETIME.to_be_bytes());
    // How long neighbours are reachable, and between questions: not said.
    bytes.extend([0; 8]);
    // The prefix (§4.6.2): on this link, and to make addresses of.
    bytes.extend([3, 4, subnet6.prefix(), 0xc0]);
    bytes.extend(GOOD.to_be_bytes());
    bytes.extend(PREFERRED.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(subnet6.base().octets());
    // Where frames go (§4.6.1).
    bytes.extend([1, 1]);
    bytes.extend(mac);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_has_the_prefix_and_the_routers_hardware_address() {
        let subnet6: Subnet6 = "fd00:1:2:3::/64".parse().expect("a subnet");
        let says = advertisement(subnet6, Mac([2, 3, 4, 5, 6, 7]));
        assert_eq!((says.len(), says[0], says[4]), (56, 134, 64));
        assert_eq!(says[16..20], [3, 4, 64, 0xc0]);
        assert_eq!(says[32..48], subnet6.base().octets());
        assert_eq!(says[48..], [1, 1, 2, 3, 4, 5, 6, 7]);
    }
}
