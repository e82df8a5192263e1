//! A tap device in a network namespace of this process: both are gone when it ends, however it ends.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};

/// The name of the tap.
pub const NAME: &str = "skerry0";

/// Moves this process, and the children that it will start, to a network namespace of their own. /sys is mounted
/// anew for them: it shows the interfaces of the namespace that it was mounted in.
pub fn enter_namespace() -> Result<()> {
    let what = "a network namespace for the tap cannot be made (run as root)";
    // SAFETY: no memory is involved; the process has one thread at this time.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) }).context(what)?;
    mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE).context(what)?;
    mount(c"sysfs", c"/sys", Some(c"sysfs"), libc::MS_RDONLY).context(what)
}

fn mount(source: &CStr, target: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> Result<()> {
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the strings end with NUL and outlive the call; no data goes with it.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind,
            flags,
            std::ptr::null(),
        )
    };
    check(result)
}

fn check(result: libc::c_int) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

fn request() -> libc::ifreq {
    // SAFETY: a C structure of integers and arrays, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn ioctl(
    file: &impl AsRawFd,
    number: libc::Ioctl,
    argument: *mut libc::ifreq,
    what: &str,
) -> Result<()> {
    // SAFETY: the callers' requests take an `ifreq`, or an integer in its place that isn't followed.
    if unsafe { libc::ioctl(file.as_raw_fd(), number, argument) } != 0 {
        return Err(std::io::Error::last_os_error()).context(format!("tap {NAME}: {what}"));
    }
    Ok(())
}

/// A tap that stays until this is dropped. Nothing holds it open: whoever is told its name can.
pub struct Tap(());

/// Opens the tap by name, and makes it if there is none.
fn attach() -> Result<File> {
    let path = "/dev/net/tun";
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .context(path)?;
    let mut interface = request();
    interface.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    ioctl(&file, libc::TUNSETIFF, &mut interface, "cannot be opened")?;
    Ok(file)
}

impl Tap {
    /// Makes the tap and brings it up.
    pub fn new() -> Result<Self> {
        let keep = std::ptr::without_provenance_mut(1);
        ioctl(&attach()?, libc::TUNSETPERSIST, keep, "cannot be kept")?;
        let socket = UdpSocket::bind(("0.0.0.0", 0)).context("socket")?;
        let mut interface = request();
        interface.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        ioctl(
            &socket,
            libc::SIOCSIFFLAGS,
            &mut interface,
            "cannot be brought up",
        )?;
        Ok(Self(()))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // What fails here goes with the namespace.
        let forget = std::ptr::null_mut();
        let _ = attach()
            .and_then(|file| ioctl(&file, libc::TUNSETPERSIST, forget, "cannot be removed"));
    }
}
