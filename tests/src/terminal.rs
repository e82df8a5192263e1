//! A program with a terminal, as a user has it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::eventually;

/// The user's side of the terminal that a program has.
pub struct Terminal {
    child: Child,
    keys: File,
    seen: Arc<Mutex<String>>,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Terminal {
    /// Runs it on a terminal of 30 lines and 100 columns.
    pub fn run(command: &mut Command) -> Terminal {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let ours = ours.expect("a terminal");
        grantpt(&ours).expect("a terminal");
        unlockpt(&ours).expect("a terminal");
        let name = ptsname(&ours, Vec::new()).expect("a name");
        let flags =
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let theirs = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).expect("it opens");
        tcsetwinsize(&theirs, size(30, 100)).expect("it has a size");
        let stream = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a descriptor"));
        command.stdin(stream(&theirs)).stdout(stream(&theirs));
        command.stderr(theirs);
        let lead = || {
            // Its standard input is its terminal, which tells it of keys and sizes.
            // SAFETY: two system calls on plain numbers, which may be made between fork and exec.
            match unsafe { libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY, 0) != -1 } {
                true => Ok(()),
                false => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: it makes system calls alone.
        unsafe { command.pre_exec(lead) };
        let child = command.spawn().expect("it starts");
        // It keeps descriptors of the other side as long as it lives.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let keys = File::from(ours);
        let mut screen = keys.try_clone().expect("a descriptor");
        let seen = Arc::new(Mutex::new(String::new()));
        let all = seen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = screen.read(&mut buffer)
                && n > 0
            {
                let text = String::from_utf8_lossy(&buffer[..n]);
                all.lock().expect("nobody panics").push_str(&text);
            }
        });
        Terminal { child, keys, seen }
    }

    /// Presses keys.
    pub fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it reads");
    }

    /// Makes the terminal another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.keys, size(rows, columns)).expect("it takes a size");
    }

    /// All that was shown.
    pub fn seen(&self) -> String {
        self.seen.lock().expect("nobody panics").clone()
    }

    /// Waits until `text` is shown.
    pub fn expect(&self, text: &str, limit: Duration) {
        eventually(&format!("`{text}` is shown"), limit, || {
            self.seen().contains(text).then_some(())
        });
    }

    /// Waits for the program's end.
    pub fn end(mut self, limit: Duration) -> ExitStatus {
        eventually("it ends", limit, || self.child.try_wait().expect("ours"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
