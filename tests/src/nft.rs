//! Tables of nf_tables in the network namespace of the calling thread: whether there is one, and how somebody deletes
//! it. It is the kernel that is asked, as `nft` need not be there.

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};

/// NFNL_SUBSYS_NFTABLES, and messages of <linux/netfilter/nf_tables.h>.
const SUBSYSTEM: u16 = 10;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
/// NFPROTO_IPV4.
const IPV4: u8 = 2;

fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let len = 20 + attributes.len();
    let mut bytes = (len as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

fn named(name: &str) -> Vec<u8> {
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    let mut bytes = ((text.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(1u16.to_ne_bytes());
    bytes.extend(text);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn asked(bytes: &[u8]) -> Vec<u8> {
    let kind = Some(netlink::NETFILTER);
    let socket: OwnedFd = socket(AddressFamily::NETLINK, SocketType::RAW, kind).expect("netlink");
    send(&socket, bytes, SendFlags::empty()).expect("sent");
    let mut answer = vec![0; 64 << 10];
    let (n, _) = recv(&socket, &mut answer[..], RecvFlags::empty()).expect("answered");
    answer.truncate(n);
    answer
}

/// What an error message says, if the answer is one; 0 is an acknowledgement.
fn error(answer: &[u8]) -> Option<i32> {
    let word = |at: usize| {
        answer
            .get(at..at + 2)?
            .try_into()
            .ok()
            .map(u16::from_ne_bytes)
    };
    let code = answer.get(16..20)?.try_into().ok().map(i32::from_ne_bytes);
    code.filter(|_| word(4) == Some(2))
}

/// Whether there is a table of IPv4's.
pub fn has_table(name: &str) -> bool {
    error(&asked(&message(GET_TABLE, 0, IPV4, 0, &named(name)))).is_none()
}

/// Deletes a table of IPv4's, which is there.
pub fn delete_table(name: &str) {
    let batch = [
        message(BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]),
        message(DELETE_TABLE, ACK, IPV4, 0, &named(name)),
        message(BATCH_END, 0, 0, SUBSYSTEM, &[]),
    ];
    assert_eq!(error(&asked(&batch.concat())), Some(0), "{name} is deleted");
}
