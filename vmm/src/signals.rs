//! SIGINT, SIGTERM and SIGHUP end the monitor in order: they become events of its one thread.

use std::io;

use rustix::process::Signal;

use crate::sandbox::{Sandbox, ThreadKind};

const ENDING: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

fn set() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data that sigemptyset initialises.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in ENDING {
            libc::sigaddset(&mut set, signal.as_raw());
        }
        set
    }
}

/// Blocks the ending signals for this thread and all that it starts.
pub fn block() -> io::Result<()> {
    let set = set();
    // SAFETY: `set` is an initialised signal set.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(e)),
    }
}

/// Starts the thread that waits for them.
pub fn watch(sandbox: Sandbox, on_signal: impl Fn(i32) + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if let Err(e) = sandbox.enter(ThreadKind::Signals) {
                log::error!("the signals' thread cannot enter the sandbox: {e}");
            }
            let set = set();
            loop {
                let mut signal = 0;
                // SAFETY: `set` is initialised and `signal` is an int.
                if unsafe { libc::sigwait(&set, &mut signal) } == 0 {
                    on_signal(signal);
                }
            }
        })?;
    Ok(())
}
