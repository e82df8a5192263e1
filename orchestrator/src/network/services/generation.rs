//! How often somebody has changed this host's rules: a number of the kernel's, by which it is seen that ours may
//! not be there any more.

use std::io;

use crate::network::netlink::{HEADER, Netlink};

/// NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u16 = 10;
const GET: u16 = SUBSYSTEM << 8 | 16;
const NEW: u16 = SUBSYSTEM << 8 | 15;
const REQUEST: u16 = 0x1;
const ERROR: u16 = 2;

/// The number.
pub fn now() -> io::Result<u32> {
    let mut bytes = 20u32.to_ne_bytes().to_vec();
    bytes.extend(GET.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    // A sequence number, a port, and no family.
    bytes.extend([0; 12]);
    let netlink = Netlink::netfilter()?;
    netlink.send(&bytes)?;
    let mut found = None;
    netlink.receive(|part| match part.kind {
        NEW => {
            // NFTA_GEN_ID is the first.
            let number = part.bytes.get(HEADER + 8..HEADER + 12);
            found = number.and_then(|bytes| bytes.try_into().ok());
            Ok(true)
        }
        ERROR => part.error().map(|()| true),
        _ => Ok(false),
    })?;
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is torn");
    found.map(u32::from_be_bytes).ok_or_else(torn)
}
