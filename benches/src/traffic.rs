//! The host's end of a network: frames that are sent to the tap as fast as it takes them, and frames that
//! are sent back.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

/// The type of all frames but those that are to be cut: local experimental (IEEE 802).
const KIND: u16 = 0x88b5;
const ETHERNET: [u8; 14] = [0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 0xee, 0x88, 0xb5];
const BATCH: usize = 64;
/// struct virtio_net_hdr of packet(7) sockets.
const VNET_HEADER: usize = 10;

/// Frames that were sent and that the monitor has not taken from the tap yet, at most, and their bytes: the
/// sender is not to spend on frames that are dropped what the monitor could use, and no transport keeps more
/// under way than a cache holds.
const WINDOW: u64 = 512;
const WINDOW_BYTES: u64 = 1 << 20;

/// A thread that makes traffic until it is dropped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Traffic {
    /// Sends frames of `bytes` to the guest behind `interface`; with `segment` they are TCP segments that
    /// the kernel would cut into pieces of so many bytes for a guest that takes no whole ones.
    pub fn blast(interface: &str, bytes: usize, segment: u16) -> Result<Traffic> {
        let socket = open(interface, segment > 0, false)?;
        let frame = frame(bytes, segment);
        let path = format!("/sys/class/net/{interface}/statistics/tx_packets");
        let taken = File::open(&path).context(path)?;
        Traffic::start(move |stop| send(&socket, &frame, &taken, stop))
    }

    /// Sends back what comes from the guest.
    pub fn echo(interface: &str) -> Result<Traffic> {
        let socket = open(interface, false, true)?;
        Traffic::start(move |stop| echo(&socket, stop))
    }

    fn start(work: impl FnOnce(&AtomicBool) + Send + 'static) -> Result<Traffic> {
        let stop = Arc::new(AtomicBool::new(false));
        let its_stop = stop.clone();
        let thread = std::thread::Builder::new()
            .name("traffic".to_owned())
            .spawn(move || work(&its_stop))
            .context("a thread for the host's traffic")?;
        let thread = Some(thread);
        Ok(Traffic { stop, thread })
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        done => Ok(done),
    }
}

fn option(socket: &OwnedFd, name: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: these options read an int.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            name,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as u32,
        )
    })
    .map(drop)
}

/// A packet(7) socket on an interface, which sees frames of our type only if it is to receive.
fn open(interface: &str, vnet: bool, receives: bool) -> Result<OwnedFd> {
    let what = || format!("a packet socket on {interface} (run as root)");
    let kind = if receives { KIND.to_be() } else { 0 };
    // SAFETY: no memory is involved; the descriptor is ours.
    let socket = unsafe {
        let fd = check(libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            kind.into(),
        ));
        OwnedFd::from_raw_fd(fd.with_context(what)?)
    };
    if vnet {
        option(&socket, libc::PACKET_VNET_HDR).with_context(what)?;
    }
    option(&socket, libc::PACKET_QDISC_BYPASS).with_context(what)?;
    let name = std::ffi::CString::new(interface).with_context(what)?;
    // SAFETY: the name ends with NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: a C structure of integers and arrays, for which zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = kind;
    address.sll_ifindex = index as i32;
    // SAFETY: the address is a sockaddr_ll of that size.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    })
    .with_context(what)?;
    let patience = libc::timeval {
        tv_sec: 0,
        tv_usec: 50_000,
    };
    // SAFETY: SO_RCVTIMEO reads a timeval.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            size_of::<libc::timeval>() as u32,
        )
    })
    .with_context(what)?;
    Ok(socket)
}

fn frame(bytes: usize, segment: u16) -> Vec<u8> {
    if segment == 0 {
        let mut frame = vec![0; bytes];
        frame[..14].copy_from_slice(&ETHERNET);
        return frame;
    }
    const HEADERS: u16 = 14 + 20 + 20;
    let mut frame = vec![0; VNET_HEADER + bytes];
    // Needs a checksum (1), TCP over IPv4 (1): virtio 1.3 §5.1.6.
    frame[..2].copy_from_slice(&[1, 1]);
    frame[2..4].copy_from_slice(&HEADERS.to_le_bytes());
    frame[4..6].copy_from_slice(&segment.to_le_bytes());
    frame[6..8].copy_from_slice(&34u16.to_le_bytes());
    frame[8..10].copy_from_slice(&16u16.to_le_bytes());
    let ethernet = &mut frame[VNET_HEADER..];
    ethernet[..14].copy_from_slice(&ETHERNET);
    ethernet[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut ethernet[14..34];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((bytes - 14) as u16).to_be_bytes());
    ip[8..10].copy_from_slice(&[64, 6]);
    ip[12..20].copy_from_slice(&[10, 99, 0, 3, 10, 99, 0, 2]);
    ethernet[34 + 12] = 0x50;
    ethernet[34 + 13] = 0x10;
    frame
}

/// How many frames the monitor has taken from the tap.
fn taken_by(statistics: &File) -> u64 {
    let mut text = [0; 24];
    let n = statistics.read_at(&mut text, 0).unwrap_or(0);
    let text = std::str::from_utf8(&text[..n]).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn send(socket: &OwnedFd, frame: &[u8], statistics: &File, stop: &AtomicBool) {
    let mut piece = libc::iovec {
        iov_base: frame.as_ptr().cast_mut().cast(),
        iov_len: frame.len(),
    };
    // SAFETY: a C structure of integers and pointers, for which zeroes are valid.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = &raw mut piece;
    message.msg_hdr.msg_iovlen = 1;
    let mut messages = [message; BATCH];
    let window = (WINDOW_BYTES / frame.len() as u64).clamp(16, WINDOW);
    let batch = BATCH.min(window as usize / 4);
    let (mut sent, mut taken) = (0, 0);
    let first = taken_by(statistics);
    while !stop.load(Ordering::Relaxed) {
        if sent - taken > window - batch as u64 {
            taken = (taken_by(statistics) - first).min(sent);
            if sent - taken > window / 2 {
                std::thread::yield_now();
                continue;
            }
        }
        // SAFETY: the messages point to the frame, which is only read.
        let done =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), batch as u32, 0) };
        match u64::try_from(done) {
            Ok(done) => sent += done,
            // The tap's queue is full.
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn echo(socket: &OwnedFd, stop: &AtomicBool) {
    let mut frame = [0u8; 2048];
    while !stop.load(Ordering::Relaxed) {
        // SAFETY: the buffer is as long as that.
        let n = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
            )
        };
        let Ok(n) = usize::try_from(n) else { continue };
        // What we sent ourselves comes by here, too.
        if frame[..6] == ETHERNET[..6] {
            continue;
        }
        frame[..12].copy_from_slice(&ETHERNET[..12]);
        // SAFETY: as above.
        unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), n, 0) };
    }
}
