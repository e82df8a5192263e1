//! Persistent taps: made here, opened by monitors (devices/src/virtio/net/tap.rs).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

// From <linux/if_tun.h>.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const IFF_TAP: i16 = 0x0002;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    _rest: [u8; 22],
}

/// A queue of the tap `name`, which is made if it is not there. Its frames have a vnet header, as the monitor
/// wants it; a tap for several queues (`multi`) can be opened by nobody who wants one, and the reverse.
pub fn open(name: &str, multi: bool) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let several = if multi { IFF_MULTI_QUEUE } else { 0 };
    let mut request = IfReq {
        name: [0; libc::IFNAMSIZ],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | several,
        _rest: [0; 22],
    };
    // A zero byte stays behind it.
    let room = request
        .name
        .get_mut(..name.len())
        .filter(|room| room.len() < libc::IFNAMSIZ);
    let room = room.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    room.copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes a struct ifreq, whose layout `IfReq` has.
    match unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a tap that stays. Nobody has it open then.
pub fn make(name: &str, multi: bool) -> io::Result<()> {
    let file = open(name, multi)?;
    // SAFETY: TUNSETPERSIST takes its argument by value.
    match unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST, 1 as libc::c_ulong) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
