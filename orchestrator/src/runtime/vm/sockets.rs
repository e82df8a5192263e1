//! When a monitor listens: its folder tells, so that nobody looks again and again.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init, remove_watch};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::home::Home;

/// Looked for all the same this often: a host may have no watches left.
const LOOK: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_millis(1);

/// Hears of sockets that are made. All starts share one watch of the kernel's, of which a user has few.
pub struct Sockets(Option<AsyncFd<OwnedFd>>);

impl Sockets {
    /// Where this host can tell; where it cannot, folders are looked into.
    pub fn new() -> Sockets {
        let made = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        let heard = made.ok().and_then(|fd| {
            // SAFETY: an `OwnedFd` names the same descriptor and keeps it open as long as it lives, which is as
            // long as the `AsyncFd` that owns it.
            unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.ok()
        });
        Sockets(heard)
    }

    /// Waits until somebody listens in a folder.
    pub async fn appears(&self, home: &Home) {
        let folder = home.folder();
        let watch = self
            .0
            .as_ref()
            .and_then(|fd| add_watch(fd, folder, WatchFlags::CREATE).ok());
        while UnixStream::connect(home.socket()).is_err() {
            // It is made a moment before it can be connected to.
            let look = if home.socket().exists() { SOON } else { LOOK };
            tokio::select! {
                () = self.something() => {}
                () = sleep(look) => {}
            }
        }
        if let (Some(fd), Some(watch)) = (&self.0, watch) {
            // The folder may be gone by now.
            let _ = remove_watch(fd, watch);
        }
    }

    /// Something was made in one of the folders. All who wait are woken, and each looks into its own.
    async fn something(&self) {
        let Some(fd) = &self.0 else {
            return std::future::pending().await;
        };
        let Ok(mut ready) = fd.readable().await else {
            return std::future::pending().await;
        };
        let mut names = [0; 4096];
        while rustix::io::read(fd, &mut names).is_ok_and(|n| n > 0) {}
        ready.clear_ready();
    }
}
