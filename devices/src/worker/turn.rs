//! What a worker does all day: completions, polled sources, interrupts; and sleep when none has work.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::polling::{Budget, FOREVER, Linger, now};
use super::ring::{Account, Completion, ENTRIES, MAIL, Ring};
use super::{Command, KICK, KickWait, Mailbox, Source, SourceId, SourceReport};

/// The clock is read in one of so many turns: it costs as much as a look into a queue.
const PASSES: u32 = 16;
/// After so many of these without work, whoever else wants the processor may have it: on a host that has sold
/// all of them, that may be who brings the work.
const POLITE: u32 = 4;

/// An attached source and what the worker knows of it.
struct Attached {
    id: SourceId,
    source: Box<dyn Source>,
    account: Account,
    budget: Budget,
    /// The worker looks into it by itself.
    polled: bool,
    /// It cannot be polled.
    unpollable: bool,
    stopping: bool,
    /// Something happened: its interrupts are due.
    touched: bool,
    /// It had work when it was looked into.
    worked: bool,
}

/// A worker at work.
struct Turns<'a> {
    ring: Ring,
    inbox: &'a Mailbox,
    wake: KickWait,
    sources: Vec<Option<Attached>>,
    batch: Vec<Completion>,
    /// How many sources are polled.
    polled: u32,
    linger: Linger,
    /// Turns with polled sources, and how many of them had work since the clock was read last.
    passes: u32,
    worked: u32,
    /// How often the clock was read since there was work.
    in_vain: u32,
    /// When the clock was read last.
    idle_since: u64,
}

/// Why a worker ends.
enum End {
    /// It was asked to.
    Quit,
    /// Its ring is of no more use.
    Broken(std::io::Error),
}

pub(super) fn run(ring: Ring, inbox: &Mailbox) {
    let mut turns = Turns {
        ring,
        inbox,
        wake: KickWait::default(),
        sources: Vec::new(),
        batch: Vec::with_capacity(ENTRIES as usize * 2),
        polled: 0,
        linger: Linger::default(),
        passes: 0,
        worked: 0,
        in_vain: 0,
        idle_since: now(),
    };
    turns.ring.wait_for_mail(&mut turns.wake, &inbox.wake);
    // What was sent to a thread that broke down is still there.
    inbox.mail.store(true, Ordering::Release);
    let end = loop {
        if let Err(end) = turns.turn() {
            break end;
        }
    };
    match end {
        End::Quit => quit(turns.sources),
        End::Broken(error) => broken(turns.sources, inbox, &error),
    }
}

impl Turns<'_> {
    fn turn(&mut self) -> Result<(), End> {
        let again = self.sources.iter().flatten().any(|a| a.account.again);
        let mail = self.inbox.mail.load(Ordering::Acquire);
        if self.polled == 0 && !again && !mail {
            self.wait().map_err(End::Broken)?;
        } else {
            self.ring.attend().map_err(End::Broken)?;
        }
        let mut worked = self.completions();
        if self.inbox.mail.load(Ordering::Acquire) {
            worked = true;
            self.mail()?;
        }
        worked |= self.poll();
        self.flush();
        if self.polled > 0 {
            self.spend(worked);
        }
        Ok(())
    }

    /// Waits until something has completed: awake for a moment, if that has paid lately, then asleep.
    fn wait(&mut self) -> std::io::Result<()> {
        self.ring.attend()?;
        let begun = now();
        let awake = match self.inbox.cap.allows(begun) {
            true => self.linger.time(),
            false => 0,
        };
        let (mut time, mut looks) = (begun, 0u32);
        while !self.ring.is_ready() {
            if time - begun >= awake {
                add(&self.inbox.stats.sleeps, 1);
                self.ring.submit_and_wait()?;
                break;
            }
            std::hint::spin_loop();
            looks += 1;
            if looks.is_multiple_of(PASSES * POLITE) {
                std::thread::yield_now();
            }
            time = now();
        }
        if time > begun {
            add(&self.inbox.stats.polled_ns, time - begun);
            self.inbox.cap.spend(time - begun, time);
        }
        self.ring.attend()?;
        self.idle_since = now();
        self.linger.learn(self.idle_since.saturating_sub(begun));
        Ok(())
    }

    /// Passes on what has completed.
    fn completions(&mut self) -> bool {
        self.ring.take_completions(&mut self.batch);
        if self.batch.is_empty() {
            return false;
        }
        let poll_max = self.inbox.poll_max.load(Ordering::Relaxed);
        let time = now();
        for completion in self.batch.drain(..) {
            let Some(slot) = completion.slot else {
                if completion.tag == MAIL {
                    self.ring.wait_for_mail(&mut self.wake, &self.inbox.wake);
                }
                continue;
            };
            let Some(Some(attached)) = self.sources.get_mut(slot as usize) else {
                continue;
            };
            attached.account.in_flight -= 1;
            attached.touched = true;
            if attached.polled {
                attached.budget.worked(time);
            } else if completion.tag == KICK
                && poll_max > 0
                && !attached.unpollable
                && !attached.stopping
                && attached.budget.woken(poll_max, time)
                && self.inbox.cap.allows(time)
            {
                let io = &mut self.ring.io(slot, &mut attached.account);
                attached.polled = attached.source.set_polled(io, true);
                attached.unpollable = !attached.polled;
                self.polled += u32::from(attached.polled);
            } else {
                attached.budget.worked(time);
            }
            attached.source.complete(
                &mut self.ring.io(slot, &mut attached.account),
                completion.tag,
                completion.result,
            );
        }
        true
    }

    /// Looks into the sources that are polled, and into those that asked for it.
    fn poll(&mut self) -> bool {
        let mut worked = false;
        for (slot, place) in self.sources.iter_mut().enumerate() {
            let Some(attached) = place else { continue };
            if attached.stopping || !(attached.polled || attached.account.again) {
                continue;
            }
            attached.account.again = false;
            let io = &mut self.ring.io(slot as u32, &mut attached.account);
            if attached.source.poll(io) {
                (attached.touched, attached.worked) = (true, true);
                worked = true;
            }
        }
        worked
    }

    /// Raises interrupts, and lets go of what has drained.
    fn flush(&mut self) {
        for (slot, place) in self.sources.iter_mut().enumerate() {
            let Some(attached) = place else { continue };
            if std::mem::take(&mut attached.touched) {
                let io = &mut self.ring.io(slot as u32, &mut attached.account);
                attached.source.flush(io);
            }
            if attached.stopping
                && attached.account.in_flight == 0
                && let Some(attached) = place.take()
            {
                attached.source.stopped();
            }
        }
    }

    /// Now and then looks at the time: sources that had work go on being polled, those that had none for
    /// too long do not, and what was in vain is paid for.
    fn spend(&mut self, worked: bool) {
        self.passes += 1;
        if worked {
            self.worked += 1;
        } else {
            std::hint::spin_loop();
        }
        if self.passes < PASSES {
            return;
        }
        let time = now();
        let piece = time.saturating_sub(std::mem::replace(&mut self.idle_since, time));
        let mut may_go_on = true;
        if self.worked > 0 {
            self.in_vain = 0;
        } else {
            self.in_vain += 1;
            if self.in_vain.is_multiple_of(POLITE) {
                std::thread::yield_now();
            }
            add(&self.inbox.stats.polled_ns, piece);
            may_go_on = self.inbox.cap.spend(piece, time);
            if !may_go_on {
                add(&self.inbox.stats.capped, 1);
            }
        }
        (self.passes, self.worked) = (0, 0);
        for (slot, place) in self.sources.iter_mut().enumerate() {
            let Some(attached) = place else { continue };
            if !attached.polled {
                continue;
            }
            if std::mem::take(&mut attached.worked) {
                attached.budget.worked(time);
            } else if !may_go_on || attached.budget.is_spent(time) {
                attached.polled = false;
                self.polled -= 1;
                let io = &mut self.ring.io(slot as u32, &mut attached.account);
                attached.source.set_polled(io, false);
                // Something may have come since it was looked into last.
                let io = &mut self.ring.io(slot as u32, &mut attached.account);
                attached.source.flush(io);
            }
        }
    }

    fn mail(&mut self) -> Result<(), End> {
        // Before the commands are taken: one that comes now is seen in the next turn.
        self.inbox.mail.store(false, Ordering::Release);
        self.follow_settings();
        let commands = std::mem::take(&mut self.inbox.commands.lock().queue);
        for command in commands {
            match command {
                Command::Attach(id, source) => self.attach(id, source),
                Command::Detach(id) => self.detach(id),
                Command::Report(reply) => drop(reply.send(self.report())),
                Command::Quit => return Err(End::Quit),
            }
        }
        Ok(())
    }

    /// The longest time may have changed.
    fn follow_settings(&mut self) {
        let poll_max = self.inbox.poll_max.load(Ordering::Relaxed);
        let time = now();
        for (slot, place) in self.sources.iter_mut().enumerate() {
            let Some(attached) = place else { continue };
            let endless = attached.budget.ns == FOREVER;
            if endless != (poll_max == FOREVER) {
                attached.budget = Budget::new(poll_max, time);
            }
            attached.budget.ns = attached.budget.ns.min(poll_max);
            self.polled += begin_polling(&mut self.ring, slot, attached);
        }
    }

    fn attach(&mut self, id: SourceId, source: Box<dyn Source>) {
        let free = self.sources.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.sources.push(None);
            self.sources.len() - 1
        });
        let poll_max = self.inbox.poll_max.load(Ordering::Relaxed);
        let attached = self.sources[slot].insert(Attached {
            id,
            source,
            account: Account::default(),
            budget: Budget::new(poll_max, now()),
            polled: false,
            unpollable: false,
            stopping: false,
            touched: true,
            worked: false,
        });
        self.polled += begin_polling(&mut self.ring, slot, attached);
        attached
            .source
            .start(&mut self.ring.io(slot as u32, &mut attached.account));
    }

    fn detach(&mut self, id: SourceId) {
        let mut numbered = self.sources.iter_mut().enumerate();
        let found =
            numbered.find_map(|(slot, place)| Some((slot, place.as_mut().filter(|a| a.id == id)?)));
        if let Some((slot, attached)) = found {
            attached.stopping = true;
            self.polled -= u32::from(std::mem::take(&mut attached.polled));
            attached.account.again = false;
            attached.touched = true;
            attached
                .source
                .stop(&mut self.ring.io(slot as u32, &mut attached.account));
        }
    }

    fn report(&self) -> Vec<SourceReport> {
        let named = |a: &Attached| {
            Some(SourceReport {
                name: a.source.name()?,
                polled: a.polled,
                budget_ns: a.budget.ns,
            })
        };
        self.sources.iter().flatten().filter_map(named).collect()
    }
}

/// Polls a source from the beginning if it is to be polled for ever; how many that makes.
fn begin_polling(ring: &mut Ring, slot: usize, attached: &mut Attached) -> u32 {
    if attached.polled || attached.unpollable || attached.stopping || attached.budget.ns != FOREVER
    {
        return 0;
    }
    let io = &mut ring.io(slot as u32, &mut attached.account);
    attached.polled = attached.source.set_polled(io, true);
    attached.unpollable = !attached.polled;
    attached.polled.into()
}

/// Adds to a number that only this thread writes.
fn add(number: &AtomicU64, n: u64) {
    number.store(number.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}

/// Ends with the sources that nobody detached. What the kernel may still write to or read from is
/// kept for good: it is little, and freeing it would hand the kernel somebody else's memory.
fn quit(sources: Vec<Option<Attached>>) {
    for attached in sources.into_iter().flatten() {
        if attached.account.in_flight > 0 {
            std::mem::forget(attached);
        }
    }
}

/// Tells all sources that nothing of theirs goes on.
fn broken(sources: Vec<Option<Attached>>, inbox: &Mailbox, error: &std::io::Error) {
    log::error!("an I/O worker broke down: io_uring_enter: {error}");
    let why: Arc<str> = format!("its I/O worker broke down: {error}").into();
    let commands = {
        let mut commands = inbox.commands.lock();
        commands.dead = Some(why.clone());
        std::mem::take(&mut commands.queue)
    };
    for attached in sources.into_iter().flatten() {
        attached.source.lost(&why, attached.account.in_flight > 0);
    }
    refuse(commands, &why);
}

/// Tells the sources of commands that will not be carried out.
pub(super) fn refuse(commands: VecDeque<Command>, why: &str) {
    for command in commands {
        if let Command::Attach(_, source) = command {
            source.lost(why, false);
        }
    }
}
