//! Virtual CPUs: one thread each, an explicit state machine, and kicks that are never lost.
//!
//! Whoever wants something of a CPU stores its wish and kicks the thread with a signal. The signal's
//! handler sets `immediate_exit` in the CPU's `kvm_run`. So whether the signal comes before, at, or
//! after the entry into KVM_RUN, that call ends, and the wish is looked at before the next one.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use parking_lot::{Condvar, Mutex, MutexGuard};
use skerry_devices::bus::Action;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::board::Board;

/// CPUs that are slowed down are so in pieces of this.
pub const SLICE: Duration = Duration::from_millis(20);

/// What a CPU is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Pause,
    Stop,
}

/// What a CPU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It executes the guest.
    Running,
    /// It stands still, with no access of the guest half done.
    Paused,
    /// Its thread has ended, or is about to.
    Stopped,
}

/// What a CPU's thread does for somebody while it stands still.
type Errand = Box<dyn FnOnce(&mut VcpuFd) + Send>;

struct Standing {
    wish: Wish,
    state: State,
    errand: Option<Errand>,
}

struct Control {
    inner: Mutex<Standing>,
    changed: Condvar,
    /// Percent of the time that the CPU is to stand still while it runs.
    throttle: AtomicU32,
}

/// Why a CPU cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// KVM could not emulate what the guest did.
    Emulation,
    /// KVM could not enter the guest.
    Entry(String),
}

/// What a running CPU reports to the machine's owner.
pub trait CpuEvents: Send + Sync {
    /// The guest did something that the machine has to carry out.
    fn action(&self, action: Action);
    /// CPU `index` cannot go on. It stands still until it is stopped.
    fn failed(&self, index: u32, failure: Failure);
}

thread_local! {
    /// The `immediate_exit` byte of this thread's CPU.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: set by this thread to a byte of its CPU's mapped kvm_run, and cleared before
        // that is unmapped.
        unsafe { flag.write_volatile(1) };
    }
}

fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the kick's handler, once a process.
fn install_handler() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        if let Err(e) = register_signal_handler(kick_signal(), on_kick) {
            // The signal number is a constant that the function accepts.
            log::error!(
                "cannot install the handler of signal {}: {e}",
                kick_signal()
            );
        }
    });
}

/// A thread whose CPU can be kicked.
pub struct KickTarget(libc::pthread_t);

/// This thread runs a CPU, for as long as this lives. It ends before the CPU does.
pub struct RunningHere(());

impl RunningHere {
    /// A name to kick the thread by.
    pub fn target(&self) -> KickTarget {
        // SAFETY: always succeeds.
        KickTarget(unsafe { libc::pthread_self() })
    }
}

impl Drop for RunningHere {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

impl KickTarget {
    /// Makes this thread the one that runs `vcpu`.
    pub fn of_this_thread(vcpu: &mut VcpuFd) -> RunningHere {
        install_handler();
        let run: *mut kvm_run = vcpu.get_kvm_run();
        // SAFETY: the pointer is to the CPU's mapped kvm_run; only the field's address is taken.
        IMMEDIATE_EXIT.set(unsafe { &raw mut (*run).immediate_exit });
        RunningHere(())
    }

    /// Ends the thread's KVM_RUN, the present one or the next.
    pub fn kick(&self) {
        // SAFETY: the owner kicks only threads that it has not joined.
        unsafe { libc::pthread_kill(self.0, kick_signal()) };
    }
}

// SAFETY: a pthread_t is a name, which any thread may use.
unsafe impl Send for KickTarget {}

/// A CPU's thread, as its owner holds it.
pub struct Vcpu {
    control: Arc<Control>,
    prepared: Receiver<io::Result<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Starts CPU `index`'s thread, paused. `prepare` runs on it first: pinning, the sandbox.
    /// Returns at once; see [`wait_prepared`](Self::wait_prepared).
    pub fn start(
        index: u32,
        fd: VcpuFd,
        board: Arc<Board>,
        events: Arc<dyn CpuEvents>,
        prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Vcpu> {
        // Before there is a thread that could be kicked: without it a kick ends the process.
        install_handler();
        let control = Arc::new(Control {
            inner: Mutex::new(Standing {
                wish: Wish::Pause,
                state: State::Running,
                errand: None,
            }),
            changed: Condvar::new(),
            throttle: AtomicU32::new(0),
        });
        let shared = control.clone();
        let (ready, prepared) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || {
                let mut cpu = Cpu {
                    index,
                    fd,
                    board,
                    events,
                    ended: false,
                };
                let running = KickTarget::of_this_thread(&mut cpu.fd);
                let outcome = prepare();
                let go_on = outcome.is_ok();
                let _ = ready.send(outcome);
                if go_on {
                    cpu.run(&shared);
                }
                // The mapped kvm_run goes away with the CPU.
                drop(running);
                let mut inner = shared.inner.lock();
                inner.state = State::Stopped;
                inner.errand = None;
                drop(inner);
                shared.changed.notify_all();
            })?;
        Ok(Vcpu {
            control,
            prepared,
            thread: Some(thread),
        })
    }

    /// Waits until the thread is prepared to run. Called once, also for a CPU that was resumed.
    pub fn wait_prepared(&self) -> io::Result<()> {
        let prepared = self.prepared.recv();
        prepared.map_err(|_| io::Error::other("the CPU's thread ended at once"))?
    }

    /// Lets the CPU run. Returns at once.
    pub fn resume(&self) {
        self.wish(Wish::Run);
    }

    /// Asks the CPU to stand still. Returns at once; see [`wait_paused`](Self::wait_paused).
    pub fn pause(&self) {
        self.wish(Wish::Pause);
    }

    /// Waits until the CPU stands still after a [`pause`](Self::pause).
    pub fn wait_paused(&self) {
        let mut inner = self.control.inner.lock();
        while inner.state == State::Running {
            self.control.changed.wait(&mut inner);
        }
    }

    /// Lets the CPU's own thread do something with it while it stands still, and returns what came of
    /// it. None if the thread has ended.
    pub fn errand<T: Send + 'static>(
        &self,
        errand: impl FnOnce(&mut VcpuFd) -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = std::sync::mpsc::sync_channel(1);
        {
            let mut inner = self.control.inner.lock();
            if inner.state != State::Paused {
                return None;
            }
            inner.errand = Some(Box::new(move |fd| drop(done.send(errand(fd)))));
        }
        self.control.changed.notify_all();
        result.recv().ok()
    }

    /// Lets the CPU stand still for `percent` of a [`SLICE`] from now on. Said again every slice, until it
    /// is said that it is none.
    pub fn throttle(&self, percent: u32) {
        self.control
            .throttle
            .store(percent.min(99), Ordering::Relaxed);
        if percent > 0
            && let Some(thread) = &self.thread
            && self.control.inner.lock().state == State::Running
        {
            use std::os::unix::thread::JoinHandleExt;
            KickTarget(thread.as_pthread_t()).kick();
        }
    }

    /// Asks the CPU's thread to end. Returns at once; dropping waits for it.
    pub fn stop(&self) {
        self.wish(Wish::Stop);
    }

    fn wish(&self, wish: Wish) {
        let mut inner = self.control.inner.lock();
        if inner.wish == Wish::Stop || inner.state == State::Stopped {
            return;
        }
        inner.wish = wish;
        self.control.changed.notify_all();
        if let (Wish::Pause | Wish::Stop, Some(thread)) = (wish, &self.thread) {
            use std::os::unix::thread::JoinHandleExt;
            KickTarget(thread.as_pthread_t()).kick();
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A CPU, on its own thread.
struct Cpu {
    index: u32,
    fd: VcpuFd,
    board: Arc<Board>,
    events: Arc<dyn CpuEvents>,
    /// It failed, or asked for the machine's end: it stands still until it is stopped.
    ended: bool,
}

/// Stands still for a part of a slice, if the CPU is slowed down and nobody wishes anything.
fn rest(control: &Control) {
    let percent = control.throttle.load(Ordering::Relaxed);
    if percent == 0 {
        return;
    }
    let until = Instant::now() + SLICE * percent / 100;
    let mut inner = control.inner.lock();
    while inner.wish == Wish::Run {
        if control.changed.wait_until(&mut inner, until).timed_out() {
            return;
        }
    }
}

/// What one KVM_RUN ended with, without borrowing its CPU.
enum Exit {
    Io,
    Mmio,
    Interrupted,
    Act(Action),
    EndOfInterrupt(u8),
    Failed(Failure),
}

impl Cpu {
    fn run(&mut self, control: &Control) {
        loop {
            let wish = control.inner.lock().wish;
            match wish {
                Wish::Run if !self.ended => {
                    while self.step() {}
                    rest(control);
                }
                Wish::Stop => return,
                Wish::Run | Wish::Pause => {
                    self.finish_access();
                    let mut inner = control.inner.lock();
                    inner.state = State::Paused;
                    control.changed.notify_all();
                    while inner.wish == Wish::Pause || (inner.wish == Wish::Run && self.ended) {
                        match inner.errand.take() {
                            Some(errand) => {
                                MutexGuard::unlocked(&mut inner, || errand(&mut self.fd))
                            }
                            None => control.changed.wait(&mut inner),
                        }
                    }
                    if inner.wish == Wish::Run {
                        inner.state = State::Running;
                    }
                }
            }
        }
    }

    /// Enters the guest once; false if somebody may wish something.
    fn step(&mut self) -> bool {
        match self.enter() {
            Exit::Io => return self.io(),
            Exit::Mmio => return self.mmio(),
            Exit::EndOfInterrupt(vector) => self.board.end_of_interrupt(vector),
            Exit::Act(action) => return self.carry_out(action),
            Exit::Interrupted => {
                self.fd.set_kvm_immediate_exit(0);
                return false;
            }
            Exit::Failed(failure) => {
                self.ended = true;
                self.events.failed(self.index, failure);
                return false;
            }
        }
        true
    }

    fn enter(&mut self) -> Exit {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Exit::Io,
            Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => Exit::Mmio,
            Ok(VcpuExit::Intr) => Exit::Interrupted,
            Ok(VcpuExit::IoapicEoi(vector)) => Exit::EndOfInterrupt(vector),
            // A triple fault resets a PC.
            Ok(VcpuExit::Shutdown) => Exit::Act(Action::Reboot),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Exit::Act(Action::PowerOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Exit::Act(Action::Reboot),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => Exit::Act(Action::GuestPanic),
            Ok(VcpuExit::InternalError) => Exit::Failed(Failure::Emulation),
            Ok(VcpuExit::FailEntry(reason, cpu)) => Exit::Failed(Failure::Entry(format!(
                "hardware reason {reason:#x} on CPU {cpu}"
            ))),
            // Entering again would end the same way, for ever.
            Ok(other) => Exit::Failed(Failure::Entry(format!("unexpected exit {other:?}"))),
            Err(e) => match e.errno() {
                libc::EINTR | libc::EAGAIN => Exit::Interrupted,
                _ => Exit::Failed(Failure::Entry(format!("KVM_RUN: {e}"))),
            },
        }
    }

    /// Carries out an action; false if the CPU is not to go on.
    fn carry_out(&mut self, action: Action) -> bool {
        match action {
            Action::None => {}
            // The guest's next instruction may use the new layout.
            Action::ChangeLayout(slot) => self.board.change_layout(slot),
            Action::Activate(_) | Action::Reset(_) | Action::Eject => self.events.action(action),
            Action::PowerOff | Action::Reboot | Action::GuestPanic => {
                self.ended = true;
                self.events.action(action);
            }
        }
        !self.ended
    }

    /// Carries out the port access that KVM_RUN ended with, one element at a time: `rep outs` has
    /// many.
    fn io(&mut self) -> bool {
        const OUT: u8 = 1;
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: the exit was KVM_EXIT_IO, so `io` is the union's live member, and KVM put
        // `count` elements of `size` bytes at `data_offset` of the same mapping.
        let (io, data) = unsafe {
            let io = (*run).__bindgen_anon_1.io;
            let len = usize::from(io.size) * io.count as usize;
            let start = run.cast::<u8>().add(io.data_offset as usize);
            (io, std::slice::from_raw_parts_mut(start, len))
        };
        for element in data.chunks_exact_mut(usize::from(io.size.max(1))) {
            if io.direction == OUT {
                let action = self.board.ports.write(io.port.into(), element);
                if !self.carry_out(action) {
                    return false;
                }
            } else {
                self.board.ports.read(io.port.into(), element);
            }
        }
        true
    }

    fn mmio(&mut self) -> bool {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: the exit was KVM_EXIT_MMIO, so `mmio` is the union's live member.
        let mmio = unsafe { &mut (*run).__bindgen_anon_1.mmio };
        let len = (mmio.len as usize).min(mmio.data.len());
        if mmio.is_write != 0 {
            let action = self
                .board
                .memory_bus
                .write(mmio.phys_addr, &mmio.data[..len]);
            return self.carry_out(action);
        }
        let data = &mut mmio.data[..len];
        self.board.memory_bus.read(mmio.phys_addr, data);
        true
    }

    /// Lets KVM finish the access that the last exit was for (KVM API §5: state is consistent only
    /// after re-entry). An access of several parts exits once for each of them.
    fn finish_access(&mut self) {
        while !self.ended {
            self.fd.set_kvm_immediate_exit(1);
            if !self.step() {
                break;
            }
        }
        self.fd.set_kvm_immediate_exit(0);
    }
}
