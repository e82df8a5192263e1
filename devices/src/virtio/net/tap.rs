//! A tap interface of the host, one open queue or several.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType};
use thiserror::Error;

/// The vnet header in front of every frame: struct virtio_net_hdr_v1 (virtio 1.3 §5.1.6).
pub const VNET_HEADER: usize = 12;

const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// Why a tap could not be opened.
#[derive(Debug, Error)]
pub enum TapError {
    /// The name is empty or too long for an interface.
    #[error("`{0}` is no name for a network interface: 1 to {MAX_NAME} bytes without `/`")]
    Name(String),
    /// There is no such interface.
    #[error("there is no tap `{0}`: create it with `ip tuntap add dev {0} mode tap`")]
    Missing(String),
    /// There is, but it is no tap.
    #[error("network interface `{0}` is no tap: create one with `ip tuntap add dev NAME mode tap`")]
    NotATap(String),
    /// Somebody has it open, or it was made with another number of queues.
    #[error(
        "tap `{0}` is in use, or was made {made} multi_queue: stop its other user, or make it {wanted}",
        made = if *.1 { "without" } else { "with" },
        wanted = if *.1 { "with `ip tuntap add … multi_queue`" } else { "without multi_queue" }
    )]
    Busy(String, bool),
    /// The system refused.
    #[error("cannot {what} tap `{name}`")]
    System {
        /// The interface.
        name: String,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// One queue of a tap.
#[derive(Debug)]
pub struct Tap(File);

// From <linux/if_tun.h>.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const IFF_ATTACH_QUEUE: i16 = 0x0200;
const IFF_DETACH_QUEUE: i16 = 0x0400;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const IFF_MULTI_QUEUE: i16 = 0x0100;

/// What the guest's driver takes in received frames (TUNSETOFFLOAD).
#[derive(Debug, Clone, Copy, Default)]
pub struct Offloads {
    /// Partial checksums.
    pub csum: bool,
    /// TCP segments over IPv4.
    pub tso4: bool,
    /// TCP segments over IPv6.
    pub tso6: bool,
    /// Segments with ECN.
    pub ecn: bool,
}

#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    _rest: [u8; 22],
}

impl Tap {
    /// Whether there is an interface `name`. The kernel is asked, and not sysfs, which may show another network
    /// namespace.
    pub fn exists(name: &str) -> bool {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
        socket.is_ok_and(|socket| rustix::net::netdevice::name_to_index(&socket, name).is_ok())
    }

    /// Opens `queues` queues of the tap `name`, which exists already.
    pub fn open(name: &str, queues: u16) -> Result<Vec<Tap>, TapError> {
        if name.is_empty() || name.len() > MAX_NAME || name.contains('/') {
            return Err(TapError::Name(name.to_owned()));
        }
        // Opening a name that is not there would create it, and leave nothing behind that anyone
        // asked for.
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
        let socket = socket.map_err(|e| TapError::System {
            name: name.to_owned(),
            what: "look for",
            source: e.into(),
        })?;
        if rustix::net::netdevice::name_to_index(&socket, name).is_err() {
            return Err(TapError::Missing(name.to_owned()));
        }
        if !is_tun_driver(socket.as_fd(), name) {
            return Err(TapError::NotATap(name.to_owned()));
        }
        (0..queues)
            .map(|_| Tap::open_queue(name, queues > 1))
            .collect()
    }

    fn open_queue(name: &str, multi: bool) -> Result<Tap, TapError> {
        let system = |what| {
            move |source| TapError::System {
                name: name.to_owned(),
                what,
                source,
            }
        };
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(system("open /dev/net/tun for"))?;
        let mut request = IfReq {
            name: [0; libc::IFNAMSIZ],
            flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | if multi { IFF_MULTI_QUEUE } else { 0 },
            _rest: [0; 22],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        if let Err(error) = attach_patiently(&file, &mut request) {
            return Err(match error.raw_os_error() {
                Some(libc::EBUSY | libc::EINVAL) => TapError::Busy(name.to_owned(), multi),
                _ => system("attach to")(error),
            });
        }
        let size = VNET_HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &size) } != 0 {
            return Err(system("set the header size of")(io::Error::last_os_error()));
        }
        Ok(Tap(file))
    }

    /// The open queue.
    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// Lets the host spread frames over this queue of a multi-queue tap, or not.
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        let request = IfReq {
            name: [0; libc::IFNAMSIZ],
            flags: if attached {
                IFF_ATTACH_QUEUE
            } else {
                IFF_DETACH_QUEUE
            },
            _rest: [0; 22],
        };
        // SAFETY: TUNSETQUEUE reads a struct ifreq, whose layout `IfReq` has.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), TUNSETQUEUE, &request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Tells the host what may be in frames to the guest.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let bit = |on: bool, bit: libc::c_ulong| if on { bit } else { 0 };
        // TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN; segments need checksums.
        let flags = bit(offloads.csum, 1)
            | bit(offloads.csum && offloads.tso4, 2)
            | bit(offloads.csum && offloads.tso6, 4)
            | bit(
                offloads.csum && offloads.ecn && (offloads.tso4 || offloads.tso6),
                8,
            );
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), TUNSETOFFLOAD, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads one frame, header first, into `buffers`; None if there is none.
    ///
    /// # Safety
    /// `buffers` are valid for writing.
    pub unsafe fn receive(&self, buffers: &[libc::iovec]) -> io::Result<Option<usize>> {
        // SAFETY: the caller's promise.
        let n = unsafe { transfer(libc::SYS_readv, libc::SYS_read, &self.0, buffers) };
        would_block(n)
    }

    /// Writes one frame, header first; None if the host has no room for it now.
    ///
    /// # Safety
    /// `buffers` are valid for reading.
    pub unsafe fn send(&self, buffers: &[libc::iovec]) -> io::Result<Option<usize>> {
        // SAFETY: the caller's promise.
        let n = unsafe { transfer(libc::SYS_writev, libc::SYS_write, &self.0, buffers) };
        would_block(n)
    }
}

/// readv(2) or writev(2), or their plain sisters for a single buffer. Without the C library's wrappers: these
/// are points of cancellation, which took a fifth of what sending a small frame takes.
///
/// # Safety
/// `buffers` are valid for what the call does.
unsafe fn transfer(
    vectored: libc::c_long,
    plain: libc::c_long,
    file: &File,
    buffers: &[libc::iovec],
) -> isize {
    let fd = file.as_raw_fd();
    // SAFETY: the caller's promise; the arguments are those of the calls.
    let n = unsafe {
        match buffers {
            [one] => libc::syscall(plain, fd, one.iov_base, one.iov_len),
            many => libc::syscall(vectored, fd, many.as_ptr(), many.len()),
        }
    };
    // It is as long as a pointer.
    n as isize
}

/// Attaches an open queue to a tap. A monitor that was killed a moment ago may seem to have it: the kernel
/// takes its ring down, and closes the files in it, some milliseconds after the process, or when a flush in
/// flight has ended.
fn attach_patiently(file: &File, request: &mut IfReq) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(1);
    const STEP: Duration = Duration::from_millis(5);
    let begun = Instant::now();
    loop {
        // SAFETY: TUNSETIFF reads and writes a struct ifreq, whose layout `IfReq` has.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut *request) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) || begun.elapsed() > PATIENCE {
            return Err(error);
        }
        std::thread::sleep(STEP);
    }
}

/// Whether the interface is one of the tun driver's (ETHTOOL_GDRVINFO).
fn is_tun_driver(socket: BorrowedFd<'_>, name: &str) -> bool {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const GDRVINFO: u32 = 3;
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        data: *mut DriverInfo,
        rest: [u8; 16],
    }
    let mut info = DriverInfo {
        command: GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        data: &mut info,
        rest: [0; 16],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: SIOCETHTOOL reads a struct ifreq, whose layout `Request` has, and for this command
    // fills the 196 bytes of the struct ethtool_drvinfo that it points to.
    let told = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &mut request) };
    told == 0 && info.driver.starts_with(b"tun\0")
}

fn would_block(n: isize) -> io::Result<Option<usize>> {
    match usize::try_from(n) {
        Ok(n) => Ok(Some(n)),
        Err(_) => match io::Error::last_os_error() {
            e if matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
            {
                Ok(None)
            }
            e => Err(e),
        },
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
