//! The thread that writes: takes all commits that wait, makes them in one transaction, answers when it is
//! durable. When the file fails it opens it anew and tries again, at longer and longer intervals.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use redb::ReadableTable;
use tokio::sync::oneshot;

use super::leases::Leases;
use super::state::{Shared, number};
use super::turn::{Reached, Turn, What};
use super::{COMPACTED, LEASES, LOGGED, REVISION};
use crate::store::error::engine;
use crate::store::{LeaseId, Revision, Room, StoreError};

/// What the writer is asked for, and who waits for the answer.
pub struct Command {
    pub what: What,
    pub answer: oneshot::Sender<Result<u64, StoreError>>,
}

/// Commands that are made durable together.
const AT_ONCE: usize = 128;
/// The file is looked at this often if nothing is to be done.
const IDLE: Duration = Duration::from_secs(10);
/// The same when it failed, or has little space.
const WATCHFUL: Duration = Duration::from_secs(1);
/// Waits between attempts to open a file that cannot be opened.
const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// The writer.
pub struct Writer {
    shared: Arc<Shared>,
    leases: Leases,
    reached: Reached,
    broken: Option<Broken>,
}

/// The file cannot be opened.
struct Broken {
    again: Instant,
    wait: Duration,
}

impl Writer {
    /// Of an open file.
    pub fn new(shared: Arc<Shared>) -> Result<Writer, StoreError> {
        let reading = shared.reading()?;
        let mut leases = Leases::default();
        let now = Instant::now();
        let table = reading.open_table(LEASES).map_err(engine("read"))?;
        for item in table.iter().map_err(engine("read"))? {
            let (lease, ttl) = item.map_err(engine("read"))?;
            leases.hold(
                LeaseId(lease.value()),
                Duration::from_millis(ttl.value()),
                now,
            );
        }
        let reached = Reached {
            revision: Revision(number(&reading, REVISION)?),
            compacted: Revision(number(&reading, COMPACTED)?),
            lease: leases.next(),
            logged: number(&reading, LOGGED)?,
        };
        drop(table);
        drop(reading);
        Ok(Writer {
            shared,
            leases,
            reached,
            broken: None,
        })
    }

    /// Works until nobody can ask for anything any more.
    pub fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let rest = match (&self.broken, self.shared.room()) {
                (None, Room::Enough) => IDLE,
                _ => WATCHFUL,
            };
            let end = self.leases.next_end();
            let end = end.map(|end| end.saturating_duration_since(Instant::now()));
            let mut batch = match commands.recv_timeout(end.map_or(rest, |end| end.min(rest))) {
                Ok(command) => vec![command],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            batch.extend(commands.try_iter().take(AT_ONCE - 1));
            self.turn(batch);
        }
    }

    /// Does what is asked; if that cannot be made durable, none of it was done.
    fn turn(&mut self, batch: Vec<Command>) {
        let now = Instant::now();
        let (renewals, batch): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|command| matches!(command.what, What::Renew(_)));
        for Command { what, answer } in renewals {
            if let What::Renew(lease) = what {
                let renewed = self.leases.renew(lease, now).then_some(0);
                let _ = answer.send(renewed.ok_or(StoreError::Lease(lease)));
            }
        }
        self.shared.look();
        let over = self.leases.over(now);
        let wanted = !batch.is_empty() || !over.is_empty();
        let done = match self.ready(now) {
            Ok(()) if wanted => self.durable(&batch, &over),
            Ok(()) => return,
            Err(e) => Err(e),
        };
        match done {
            Ok(results) => {
                over.iter().for_each(|lease| {
                    self.leases.end(*lease);
                });
                self.shared.revision.send_replace(self.reached.revision);
                for (command, result) in batch.into_iter().zip(results) {
                    self.answer(command, result);
                }
            }
            Err(e) => {
                for Command { answer, .. } in batch {
                    let _ = answer.send(Err(match &e {
                        StoreError::Full(name) => StoreError::Full(name.clone()),
                        StoreError::Unsure(why) => StoreError::Unsure(why.clone()),
                        e => StoreError::Unwritten(chain(e)),
                    }));
                }
            }
        }
    }

    fn answer(&mut self, command: Command, result: Result<u64, StoreError>) {
        match (&command.what, &result) {
            (What::Grant(ttl), Ok(lease)) => {
                self.leases.hold(LeaseId(*lease), *ttl, Instant::now());
            }
            (What::Revoke(lease), Ok(_)) => {
                self.leases.end(*lease);
            }
            _ => {}
        }
        // Whoever asked may be gone.
        let _ = command.answer.send(result);
    }

    /// Sees to it that the file is open, unless that was tried a moment ago.
    fn ready(&mut self, now: Instant) -> Result<(), StoreError> {
        match &self.broken {
            Some(broken) if broken.again > now => Err(StoreError::Unwritten(
                "its file could not be opened, which is tried again: see the log".into(),
            )),
            Some(_) => self.resume(),
            // A reader may have found what nobody else knows.
            None if self.shared.has_failed() => {
                if let (Some(e), _) = self.shared.judge() {
                    log::error!("the store's file failed: {e}");
                }
                self.resume()
            }
            None => Ok(()),
        }
    }

    /// Opens the file anew, and goes on where it has come to.
    fn resume(&mut self) -> Result<(), StoreError> {
        self.open_again()?;
        let found = self.found()?;
        if found > self.reached.revision {
            // Those who asked for it were told that it is not known.
            self.reached.revision = found;
            self.shared.revision.send_replace(found);
        }
        Ok(())
    }

    /// Opens the file anew, or says when that is tried again.
    fn open_again(&mut self) -> Result<(), StoreError> {
        match self.shared.open_again() {
            Ok(()) => {
                self.broken = None;
                Ok(())
            }
            Err(e) => {
                log::error!("{}", chain(&e));
                let (trouble, _) = self.shared.judge();
                let last = self.broken.take();
                let wait = last.map_or(FIRST, |last| (last.wait * 2).min(LONGEST));
                let again = Instant::now() + wait;
                self.broken = Some(Broken { again, wait });
                match trouble.is_some_and(|e| super::medium::no_space(&e)) {
                    true => Err(StoreError::Full(self.shared.name())),
                    false => Err(e),
                }
            }
        }
    }

    /// Makes a turn durable. After a failure it is tried once more, if that can help.
    fn durable(
        &mut self,
        batch: &[Command],
        over: &[LeaseId],
    ) -> Result<Vec<Result<u64, StoreError>>, StoreError> {
        let mut tried = false;
        loop {
            let mut made = None;
            let error = match self.write(batch, over, &mut made) {
                Ok(results) => return Ok(results),
                Err(e) => e,
            };
            let (trouble, freed) = self.shared.judge();
            match &trouble {
                Some(e) => log::error!("{}: {e}", chain(&error)),
                None => log::error!("{}", chain(&error)),
            }
            let full = trouble.is_some_and(|e| super::medium::no_space(&e));
            let there = match (self.open_again(), made) {
                (Ok(()), made) => made.filter(|(reached, _)| self.is_there(*reached)),
                (Err(e), Some((reached, _))) if reached.revision > self.reached.revision => {
                    return Err(StoreError::Unsure(chain(&e)));
                }
                (Err(e), _) => return Err(e),
            };
            if let Some((reached, results)) = there {
                // What is written behind it makes it durable, too.
                let again = self.shared.writing()?.commit();
                again.map_err(|e| StoreError::Unsure(e.to_string()))?;
                self.reached = reached;
                return Ok(results);
            }
            if tried || (full && !freed) {
                return Err(match full {
                    true => StoreError::Full(self.shared.name()),
                    false => error,
                });
            }
            tried = true;
        }
    }

    /// Whether a turn is in the file after all, though its end failed.
    fn is_there(&self, reached: Reached) -> bool {
        let new = reached.revision > self.reached.revision;
        new && self.found().is_ok_and(|found| found == reached.revision)
    }

    /// The last commit that the file knows.
    fn found(&self) -> Result<Revision, StoreError> {
        Ok(Revision(number(&self.shared.reading()?, REVISION)?))
    }

    /// Does a turn. `made` is what there is to be answered from when only its end failed.
    fn write(
        &mut self,
        batch: &[Command],
        over: &[LeaseId],
        made: &mut Option<(Reached, Vec<Result<u64, StoreError>>)>,
    ) -> Result<Vec<Result<u64, StoreError>>, StoreError> {
        let writing = self.shared.writing()?;
        let mut turn = Turn::new(&self.shared, &self.leases, &writing, self.reached);
        over.iter().try_for_each(|lease| turn.end_lease(*lease))?;
        let results = batch.iter().map(|command| turn.act(&command.what));
        let results = results.collect::<Result<Vec<_>, _>>()?;
        turn.forget_old()?;
        let reached = turn.reached;
        let (_, results) = made.insert((reached, results));
        writing.commit().map_err(engine("make a commit durable"))?;
        self.reached = reached;
        Ok(std::mem::take(results))
    }
}

/// An error and its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
