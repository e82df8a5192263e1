//! The rules for packets. They are three tables named `skerry`, and nobody else's are touched.

mod filter;
mod guard;

pub use filter::set_filter;
pub use guard::{Tenants, admit, forget, set_guard};

use super::NetworkError;
use super::error::lacking;
use super::nft::{Batch, Family};

const TABLE: &str = "skerry";
/// Bytes of an interface's name, filled up with zeros.
const NAME: usize = 16;
/// How `nft` shows keys: its types of an interface's name, an Ethernet address, IPv4 and IPv6 addresses.
const SHOW_NAME: u32 = 41;
const SHOW_MAC: u32 = 9;
const SHOW_IPV4: u32 = 7;
const SHOW_IPV6: u32 = 8;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// The type of a key of several parts.
const fn show(parts: &[u32]) -> u32 {
    let (mut kind, mut n) = (0, 0);
    while n < parts.len() {
        kind = kind << 6 | parts[n];
        n += 1;
    }
    kind
}

/// An interface's name as a key.
fn name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME, 0);
    bytes
}

/// The table, with nothing in it, whatever there was.
fn anew(family: Family) -> Batch {
    Batch::of(family, TABLE).table().delete_table().table()
}

/// Removes all rules.
pub fn remove() -> Result<(), NetworkError> {
    for family in [Family::Ip, Family::Ip6, Family::Bridge] {
        let sent = Batch::of(family, TABLE).table().delete_table().send();
        match sent {
            // This host has no IPv6 at all.
            Err(e)
                if matches!(family, Family::Ip6)
                    && matches!(
                        e.raw_os_error(),
                        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
                    ) => {}
            sent => sent.map_err(lacking("remove rules of nf_tables", "nf_tables"))?,
        }
    }
    Ok(())
}
