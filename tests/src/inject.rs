//! Breaks a monitor from outside: closes a file of it behind its back, as a bug would.

use std::io::Error;
use std::mem::MaybeUninit;
use std::time::Duration;

use crate::eventually;

/// A traced thread; let go of when dropped.
struct Traced(i32);

impl Drop for Traced {
    fn drop(&mut self) {
        trace(libc::PTRACE_DETACH, self.0, 0, 0);
    }
}

fn trace(request: libc::c_uint, thread: i32, address: usize, data: usize) -> i64 {
    // SAFETY: the callers' requests take these arguments; pointers among them are valid.
    unsafe { libc::ptrace(request, thread, address, data) }
}

#[track_caller]
fn done(result: i64, what: &str) {
    assert_eq!(result, 0, "{what}: {}", Error::last_os_error());
}

impl Traced {
    fn stop(thread: i32) -> Traced {
        done(trace(libc::PTRACE_SEIZE, thread, 0, 0), "PTRACE_SEIZE");
        let traced = Traced(thread);
        done(
            trace(libc::PTRACE_INTERRUPT, thread, 0, 0),
            "PTRACE_INTERRUPT",
        );
        traced.wait();
        traced
    }

    fn wait(&self) {
        // SAFETY: no status is asked for.
        let waited = unsafe { libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) };
        assert_eq!(waited, self.0, "{}", Error::last_os_error());
    }

    fn registers(&self) -> libc::user_regs_struct {
        let mut registers = MaybeUninit::uninit();
        let data = registers.as_mut_ptr() as usize;
        done(
            trace(libc::PTRACE_GETREGS, self.0, 0, data),
            "PTRACE_GETREGS",
        );
        // SAFETY: the call has filled them.
        unsafe { registers.assume_init() }
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) {
        let data = std::ptr::from_ref(registers) as usize;
        done(
            trace(libc::PTRACE_SETREGS, self.0, 0, data),
            "PTRACE_SETREGS",
        );
    }
}

/// Closes the io_uring in which the thread called `name` of process `pid` waits.
pub fn close_ring(pid: u32, name: &str) {
    let thread = thread(pid, name);
    // It may be caught at work, or on its way: then it is let go, and caught again.
    let what = format!("{name} waits in its ring");
    let (traced, before) = eventually(&what, Duration::from_secs(20), || {
        let traced = Traced::stop(thread);
        let registers = traced.registers();
        let waits = registers.orig_rax == libc::SYS_io_uring_enter as u64;
        waits.then_some((traced, registers))
    });
    // It has just left a `syscall` instruction, which is two bytes long: that one is used again.
    let mut close = before;
    close.rax = libc::SYS_close as u64;
    close.rdi = before.rdi;
    close.orig_rax = u64::MAX;
    close.rip = before.rip - 2;
    traced.set_registers(&close);
    done(
        trace(libc::PTRACE_SINGLESTEP, thread, 0, 0),
        "PTRACE_SINGLESTEP",
    );
    traced.wait();
    assert_eq!(traced.registers().rax, 0, "close failed");
    // Its own call was interrupted, as by a signal.
    let mut after = before;
    after.rax = (-i64::from(libc::EINTR)) as u64;
    after.orig_rax = u64::MAX;
    traced.set_registers(&after);
}

/// Whether process `pid` has a thread called `name`.
pub fn has_thread(pid: u32, name: &str) -> bool {
    find(pid, name).is_some()
}

fn thread(pid: u32, name: &str) -> i32 {
    find(pid, name).unwrap_or_else(|| panic!("process {pid} has no thread {name}"))
}

fn find(pid: u32, name: &str) -> Option<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let task = tasks.flatten().find(|task| {
        let comm = std::fs::read_to_string(task.path().join("comm"));
        comm.is_ok_and(|comm| comm.trim() == name)
    })?;
    task.file_name().to_string_lossy().parse().ok()
}
