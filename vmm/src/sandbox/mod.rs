//! What each kind of thread may still do once it runs: seccomp filters, on in every build.
//!
//! The monitor's own thread enters last of all what start-up does and first of all what the guest
//! can reach. Threads that it starts inherit its filter and add their own, narrower one. None may
//! execute a program, trace, mount, or load code.

mod calls;

use std::io;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// The monitor's threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// The one that owns the VM's life, and what it has not confined further.
    Monitor,
    /// A virtual CPU.
    Vcpu,
    /// An I/O worker.
    Worker,
    /// The API's server.
    Api,
    /// The one that waits for signals.
    Signals,
    /// One that has a console to which others attach.
    Console,
}

/// How strictly the filters work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A forbidden call ends the process.
    Enforce,
    /// A forbidden call is logged by the kernel and carried out.
    Log,
    /// No filters.
    Off,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        match text {
            "true" => Ok(Mode::Enforce),
            "log" => Ok(Mode::Log),
            "false" => Ok(Mode::Off),
            _ => Err("give true, log or false".into()),
        }
    }
}

/// The way into the sandbox, handed to whoever starts threads.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox(Mode);

impl Sandbox {
    /// A sandbox of the given strictness.
    pub fn new(mode: Mode) -> Sandbox {
        if mode == Mode::Enforce {
            report_violations();
        }
        Sandbox(mode)
    }

    /// Confines the calling thread for good.
    pub fn enter(self, kind: ThreadKind) -> io::Result<()> {
        let refused = match self.0 {
            Mode::Enforce => SeccompAction::Trap,
            Mode::Log => SeccompAction::Log,
            Mode::Off => return Ok(()),
        };
        let letter = match kind {
            ThreadKind::Monitor => b'M',
            ThreadKind::Vcpu => b'V',
            ThreadKind::Worker => b'W',
            ThreadKind::Api => b'A',
            ThreadKind::Signals => b'S',
            ThreadKind::Console => b'C',
        };
        KIND.with(|k| k.store(letter, Ordering::Relaxed));
        apply_filter(program(kind, refused)?).map_err(io::Error::other)
    }
}

/// The compiled filter of a kind of thread; compiled once, since there may be many CPUs.
fn program(kind: ThreadKind, refused: SeccompAction) -> io::Result<&'static BpfProgram> {
    static PROGRAMS: [OnceLock<BpfProgram>; 6] = [const { OnceLock::new() }; 6];
    let place = &PROGRAMS[kind as usize];
    if let Some(program) = place.get() {
        return Ok(program);
    }
    let rules = calls::of(kind).into_iter().collect();
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::x86_64);
    let program = filter
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)?;
    Ok(place.get_or_init(|| program))
}

thread_local! {
    /// For the message about a violation.
    static KIND: AtomicU8 = const { AtomicU8::new(0) };
}

/// Names the call before the process ends: a kill without a word helps nobody.
fn report_violations() {
    extern "C" fn on_violation(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // From <asm-generic/siginfo.h>: call_addr, then the call's number.
        const CALL_NUMBER: usize = 24;
        // SAFETY: the kernel passes a siginfo_t, which for SIGSYS has the number at that offset.
        let call = unsafe {
            info.cast::<u8>()
                .add(CALL_NUMBER)
                .cast::<i32>()
                .read_unaligned()
        };
        let kind = KIND.with(|k| k.load(Ordering::Relaxed));
        let mut line = *b"skerry-vmm: the sandbox forbids system call #### to a @ thread: please report this (--seccomp log goes on)\n";
        let mut number = call.unsigned_abs();
        for byte in line.iter_mut().rev() {
            match *byte {
                b'#' => {
                    *byte = b'0' + (number % 10) as u8;
                    number /= 10;
                }
                b'@' => *byte = kind,
                _ => {}
            }
        }
        // SAFETY: plain system calls on our own buffer; both are allowed in a signal handler.
        unsafe {
            libc::write(2, line.as_ptr().cast(), line.len());
            libc::_exit(128 + libc::SIGSYS);
        }
    }
    if let Err(e) = vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, on_violation) {
        log::warn!("cannot name forbidden system calls: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_compiles() {
        for kind in [
            ThreadKind::Monitor,
            ThreadKind::Vcpu,
            ThreadKind::Worker,
            ThreadKind::Api,
            ThreadKind::Signals,
            ThreadKind::Console,
        ] {
            assert!(!program(kind, SeccompAction::Trap).unwrap().is_empty());
        }
    }

    #[test]
    fn a_confined_thread_cannot_execute_programs() {
        let denied = std::thread::spawn(|| {
            // Errno instead of a trap, so that the test lives.
            let rules = calls::of(ThreadKind::Monitor).into_iter().collect();
            let filter = SeccompFilter::new(
                rules,
                SeccompAction::Errno(libc::EPERM as u32),
                SeccompAction::Allow,
                TargetArch::x86_64,
            );
            apply_filter(&BpfProgram::try_from(filter.unwrap()).unwrap()).unwrap();
            // SAFETY: an execve of nothing; it fails either way.
            unsafe { libc::execve(std::ptr::null(), std::ptr::null(), std::ptr::null()) };
            io::Error::last_os_error().raw_os_error()
        });
        assert_eq!(denied.join().unwrap(), Some(libc::EPERM));
    }
}
