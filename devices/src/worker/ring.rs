//! The worker's io_uring, and the view of it that a source gets.

use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::KickWait;

/// Submission entries; the completion queue has twice as many, and the kernel keeps overflow.
pub(super) const ENTRIES: u32 = 256;

/// What may be submitted.
const OPERATIONS: [u8; 10] = [
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
    opcode::Timeout::CODE,
    opcode::AsyncCancel::CODE,
];

/// Tag of the worker's own wait for its mailbox.
pub(super) const MAIL: u32 = 0;
const CANCEL: u32 = 1;
/// Slot number of the worker's own operations.
const OWN: u32 = u32::MAX;

/// One completion, with the source it belongs to (none: the worker's own).
pub(super) struct Completion {
    pub slot: Option<u32>,
    pub tag: u32,
    pub result: i32,
}

/// The ring of one worker.
pub(super) struct Ring(IoUring);

impl Ring {
    /// Must be called on the worker's own thread, which becomes the ring's only issuer.
    pub fn new() -> io::Result<Ring> {
        let tuned = IoUring::builder()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES);
        let ring = match tuned {
            Ok(ring) => ring,
            // Linux before 6.1 does not know the last two.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().setup_r_disabled().build(ENTRIES)?
            }
            Err(e) => return Err(e),
        };
        // The ring is a way around seccomp: it opens files and sockets, too. From here on it does
        // only what sources do.
        let mut allowed = OPERATIONS.map(Restriction::sqe_op);
        ring.submitter().register_restrictions(&mut allowed)?;
        ring.submitter().register_enable_rings()?;
        Ok(Ring(ring))
    }

    /// Its descriptor.
    #[cfg(test)]
    pub fn fd(&self) -> i32 {
        use std::os::fd::AsRawFd;
        self.0.as_raw_fd()
    }

    pub fn io<'a>(&'a mut self, slot: u32, on: &'a mut Account) -> Io<'a> {
        Io {
            ring: self,
            slot,
            account: on,
        }
    }

    pub fn wait_for_mail(&mut self, wait: &mut KickWait, wake: &EventFd) {
        let entry = wait.entry(wake).user_data(pack(OWN, MAIL));
        // SAFETY: `wait` and `wake` live as long as the worker's loop, which owns the ring.
        unsafe { self.push(entry) };
    }

    /// Sleeps until something has completed. An error is final: the ring is of no more use.
    pub fn submit_and_wait(&mut self) -> io::Result<()> {
        loop {
            let waited = self.0.submit_and_wait(1);
            if let Some(done) = settled(waited) {
                return done;
            }
        }
    }

    /// Gives the kernel what was queued, and lets it complete what it has ready, if there is any of
    /// either. Does not wait. An error is final.
    pub fn attend(&mut self) -> io::Result<()> {
        let (queued, ready) = {
            let queue = self.0.submission();
            (queue.len() as u32, queue.taskrun() || queue.cq_overflow())
        };
        if queued == 0 && !ready {
            return Ok(());
        }
        const GETEVENTS: u32 = 1;
        // SAFETY: no argument goes with it; the entries are valid as `push` demands.
        let entered = unsafe { self.0.submitter().enter::<()>(queued, 0, GETEVENTS, None) };
        settled(entered).unwrap_or(Ok(()))
    }

    /// Whether something has completed, or would as soon as the kernel is asked.
    pub fn is_ready(&mut self) -> bool {
        let flagged = self.0.submission().taskrun();
        flagged || !self.0.completion().is_empty()
    }

    pub fn take_completions(&mut self, batch: &mut Vec<Completion>) {
        batch.extend(self.0.completion().map(|cqe| {
            let slot = (cqe.user_data() >> 32) as u32;
            Completion {
                slot: (slot != OWN).then_some(slot),
                tag: cqe.user_data() as u32,
                result: cqe.result(),
            }
        }));
    }

    /// # Safety
    /// Everything that `entry` points to stays valid until its completion is taken.
    unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller keeps the entry's buffers valid.
        while unsafe { self.0.submission().push(&entry) }.is_err() {
            // Full: the kernel takes the whole queue in one call.
            if let Err(e) = self.0.submit()
                && settled(Err(e)).is_some_and(|settled| settled.is_err())
            {
                // The ring is broken, and the next turn says so: the entry is as lost as the others.
                return;
            }
        }
    }
}

/// What a call to the kernel came to: none if it is to be made again.
fn settled(entered: io::Result<usize>) -> Option<io::Result<()>> {
    let Err(error) = entered else {
        return Some(Ok(()));
    };
    match error.raw_os_error() {
        Some(libc::EINTR) => None,
        // The completion queue is full: taking completions makes room.
        Some(libc::EBUSY) => Some(Ok(())),
        // No memory for requests now: nothing was lost, and the next turn tries again.
        Some(libc::EAGAIN | libc::ENOMEM) => {
            log::warn!("io_uring_enter: {error}");
            std::thread::sleep(std::time::Duration::from_millis(1));
            Some(Ok(()))
        }
        _ => Some(Err(error)),
    }
}

/// What a worker keeps of a source on behalf of its calls.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Operations in the kernel's hands.
    pub in_flight: u32,
    /// The source wants to go on without waiting for anything.
    pub again: bool,
}

fn pack(slot: u32, tag: u32) -> u64 {
    u64::from(slot) << 32 | u64::from(tag)
}

/// A source's way to the ring, for the length of one call.
pub struct Io<'a> {
    ring: &'a mut Ring,
    slot: u32,
    account: &'a mut Account,
}

impl Io<'_> {
    /// Queues `entry`; its completion comes back with `tag`. It reaches the kernel at the end of
    /// the worker's turn, with everything else.
    ///
    /// # Safety
    /// Everything that `entry` points to stays valid until [`super::Source::complete`] is called
    /// with `tag`. The worker keeps the source itself alive until then.
    pub unsafe fn submit(&mut self, tag: u32, entry: squeue::Entry) {
        self.account.in_flight += 1;
        // SAFETY: the caller's promise.
        unsafe { self.ring.push(entry.user_data(pack(self.slot, tag))) };
    }

    /// Asks for a call of [`super::Source::poll`] after the worker's other sources had their turn.
    pub fn come_back(&mut self) {
        self.account.again = true;
    }

    /// Cancels the operation submitted with `tag`, which then completes with ECANCELED unless it
    /// completed already.
    pub fn cancel(&mut self, tag: u32) {
        let entry = opcode::AsyncCancel::new(pack(self.slot, tag))
            .build()
            .user_data(pack(OWN, CANCEL));
        // SAFETY: the entry points to nothing.
        unsafe { self.ring.push(entry) };
    }

    /// Waits once for `events` (poll(2)) on `fd`, which the source keeps open until completion.
    pub fn poll(&mut self, tag: u32, fd: std::os::fd::BorrowedFd<'_>, events: i16) {
        use std::os::fd::AsRawFd;
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events as u32).build();
        // SAFETY: the entry points to nothing; the kernel holds the file while it polls.
        unsafe { self.submit(tag, entry) };
    }
}
