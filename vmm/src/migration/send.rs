//! The source of a migration.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use skerry_link::{Address, Connection, Hangup, Identity, SILENCE, patience, security};
use skerry_snapshot::{Header, Range, Records, coalesce};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::snapshots::{MigratedDisks, VmMigrationInfo, VmSendMigration};

use super::MigrationError;
use super::files;
use super::receive::Hello;
use super::wire::{Kind, Link, MAX_PAGES, is_gone};
use crate::machine::Machine;
use crate::memory::{DirtyTracker, Ram};
use crate::snapshot::{Kept, absolute, check_migrates, describe, overlay_paths};

/// Rounds of copying before the guest is paused whatever it writes.
const MAX_ROUNDS: usize = 60;
/// What a guest that writes faster than the link carries is slowed down by, a step a round, in percent.
const THROTTLE_STEP: u32 = 20;
const THROTTLE_MOST: u32 = 80;

/// How long the other side may take to say that it has let go, and then to give the disks back.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends a migration early.
#[derive(Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks for it.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), MigrationError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(MigrationError::Cancelled),
            false => Ok(()),
        }
    }
}

/// A migration under way.
pub struct Sending {
    request: VmSendMigration,
    address: Address,
    identity: Option<Identity>,
    link: Option<Link>,
    header: Header,
    ram: Ram,
    tracker: DirtyTracker,
    missing: Vec<Range>,
    cancel: Cancel,
    begun: Instant,
    rounds: u32,
    bytes: u64,
    throttled: u32,
    /// GO was said: the guest is the target's, unless that ends without having taken it.
    committed: bool,
    buffer: Vec<u8>,
}

impl Sending {
    /// Prepares it; nothing has gone over the link yet.
    pub fn begin(
        request: VmSendMigration,
        machine: &mut Machine,
        config: &VmConfig,
        cancel: Cancel,
    ) -> Result<Sending, MigrationError> {
        let address = Address::parse(&request.destination_url)?;
        let identity = security(&address, request.tls_dir.as_deref(), request.insecure)?;
        check_migrates(config)?;
        if let Some(id) = machine.disk_with_bitmaps() {
            return Err(MigrationError::Bitmaps(id));
        }
        // Only one can track: a diff after a migration that came to nothing needs a full snapshot first.
        machine.tracking.take_if(|tracking| tracking.is_tracked());
        let mut config = config.clone();
        machine.note_layers(&mut config.disks);
        let header = describe(machine, &config, None);
        if request.disks == MigratedDisks::Stream {
            // What is frozen can go while the guest runs.
            let paths = overlay_paths(&config, &[], Path::new(&header.id[..8]))?;
            let frozen = machine.prepare_freeze(paths)?;
            machine.freeze(frozen)?;
            machine.note_layers(&mut config.disks);
        }
        let tracker = DirtyTracker::start(&machine.ram)?;
        let missing = machine.ram.populated(Some(&tracker))?;
        Ok(Sending {
            request,
            address,
            identity,
            link: None,
            header: Header {
                config: absolute(&config),
                ..header
            },
            ram: machine.ram.clone(),
            tracker,
            missing,
            cancel,
            begun: Instant::now(),
            rounds: 0,
            bytes: 0,
            throttled: 0,
            committed: false,
            buffer: Vec::new(),
        })
    }

    /// Copies memory while the guest runs, until what is left fits into the wanted downtime. On a thread of
    /// its own; `throttle` slows the guest down by so many percent.
    pub fn copy_live(&mut self, throttle: impl Fn(u32)) -> Result<(), MigrationError> {
        let identity = self.identity.take();
        let connected = Connection::connect(&self.address, identity, &Hangup::default());
        let mut link = Link::new(connected?);
        let hello = Hello {
            header: self.header.clone(),
            disks: self.request.disks,
        };
        link.send(Kind::Hello, &serde_json::to_vec(&hello).unwrap_or_default())?;
        match link.answer()? {
            (Kind::Accept, _) => {}
            (Kind::Refuse, why) => {
                let why = serde_json::from_slice(&why).unwrap_or_default();
                return Err(MigrationError::Refused(why));
            }
            _ => return Err(MigrationError::Protocol("no answer to the greeting")),
        }
        if self.request.disks == MigratedDisks::Stream {
            let cancel = self.cancel.clone();
            files::send(&mut link, &self.header.config, false, &|| cancel.check())?;
        }
        self.link = Some(link);
        let downtime = Duration::from_millis(self.request.downtime_ms);
        let mut before = u64::MAX;
        for _ in 0..MAX_ROUNDS {
            let begun = Instant::now();
            let sent = self.copy()?;
            self.rounds += 1;
            let took = begun.elapsed();
            self.missing = self.tracker.take()?;
            let left: u64 = self.missing.iter().map(|range| range.len).sum();
            let rate = sent as f64 / took.as_secs_f64().max(1e-6);
            if left as f64 / rate.max(1.0) <= downtime.as_secs_f64() {
                return Ok(());
            }
            // It does not converge: half of what was sent at least has to be spared a round.
            if left > before / 2 && self.throttled < THROTTLE_MOST {
                self.throttled += THROTTLE_STEP;
                throttle(self.throttled);
            }
            before = left;
        }
        Ok(())
    }

    /// Sends what is missing; how many bytes that was.
    fn copy(&mut self) -> Result<u64, MigrationError> {
        let Some(link) = &mut self.link else {
            return Err(MigrationError::Protocol("no link"));
        };
        let mut sent = 0;
        for range in std::mem::take(&mut self.missing) {
            let mut at = range.start;
            while at < range.end() {
                self.cancel.check()?;
                let len = (range.end() - at).min(MAX_PAGES);
                self.ram
                    .copy_out(Range { start: at, len }, &mut self.buffer);
                link.send_pages(at, &self.buffer)?;
                at += len;
                sent += len;
            }
        }
        self.bytes += sent;
        Ok(sent)
    }

    /// Hands a machine over that has just been paused. On success it is not to run here any more; on failure
    /// it is as it was, unless its disks could not be taken back.
    pub fn hand_over(
        &mut self,
        machine: &mut Machine,
        config: &mut VmConfig,
        paused: Instant,
    ) -> Result<VmMigrationInfo, MigrationError> {
        let sent = self.send_rest(machine, config);
        let decided = sent.and_then(|()| self.decide());
        let Err(error) = decided else {
            let downtime = paused.elapsed();
            return Ok(VmMigrationInfo {
                downtime_us: downtime.as_micros() as u64,
                total_us: self.begun.elapsed().as_micros() as u64,
                rounds: self.rounds,
                memory_bytes: self.bytes,
                throttled_percent: self.throttled,
            });
        };
        if self.committed {
            // The other side may have it, and only it can say.
            return Err(MigrationError::Stranded(error.to_string()));
        }
        self.tell_cancelled();
        let patience = Instant::now() + PATIENCE;
        loop {
            match machine.take_disks_back() {
                Ok(()) => return Err(error),
                Err(e) if Instant::now() > patience => {
                    log::error!("{e}");
                    return Err(MigrationError::Stranded(error.to_string()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn send_rest(
        &mut self,
        machine: &mut Machine,
        config: &mut VmConfig,
    ) -> Result<(), MigrationError> {
        let written = self.tracker.take()?;
        self.missing.extend(written);
        self.missing = coalesce(std::mem::take(&mut self.missing));
        machine.note_layers(&mut config.disks);
        let mut rest = self.missing.iter().map(|range| range.len).sum();
        if self.request.disks == MigratedDisks::Stream {
            rest += files::written(config);
        }
        // However the other side takes it, bit by bit: the guest stands still, and so does its monitor.
        self.bound(patience(rest));
        self.copy()?;
        let kept = Kept::of(machine)?;
        let mut header = describe(machine, config, Some(&kept));
        header.id.clone_from(&self.header.id);
        let mut records = Records::default();
        kept.put(&mut records);
        let state = records.encode(header)?;
        machine.let_disks_go()?;
        if let (MigratedDisks::Stream, Some(link)) = (self.request.disks, &mut self.link) {
            let cancel = self.cancel.clone();
            files::send(link, config, true, &|| cancel.check())?;
        }
        match &mut self.link {
            Some(link) => link.send(Kind::State, &state),
            None => Err(MigrationError::Protocol("no link")),
        }
    }

    /// What is said and heard from here on takes no longer than this.
    fn bound(&self, limit: Duration) {
        if let Some(link) = &self.link {
            link.bound(Instant::now() + limit);
        }
    }

    /// From here on the other side may have the guest.
    fn decide(&mut self) -> Result<(), MigrationError> {
        self.cancel.check()?;
        let Some(link) = &mut self.link else {
            return Err(MigrationError::Protocol("no link"));
        };
        match link.answer()? {
            (Kind::Ready, _) => {}
            (Kind::Failed, why) => {
                let why = String::from_utf8_lossy(&why).into_owned();
                return Err(MigrationError::Target(why));
            }
            _ => return Err(MigrationError::Protocol("no answer to the state")),
        }
        self.cancel.check()?;
        self.committed = true;
        link.bound(Instant::now() + SILENCE);
        let answer = link.send(Kind::Go, &[]).and_then(|()| link.answer());
        match answer {
            Ok((Kind::Running, _)) => Ok(()),
            Ok(_) => Err(MigrationError::Protocol("no answer to GO")),
            Err(e) => {
                // Its process has ended, and cannot have said that the guest runs.
                self.committed = !link.tells_the_end() || !is_gone(&e);
                Err(e)
            }
        }
    }

    /// Says that nothing comes of it, so that the target does not go on by itself, and waits until it has let
    /// go of what it has.
    pub fn tell_cancelled(&mut self) {
        self.bound(PATIENCE);
        if let Some(link) = &mut self.link {
            let told = link.send(Kind::Cancel, &[]);
            // It answers when it has nothing left, or its end is seen.
            let _ = told.and_then(|()| link.answer());
            link.end();
        }
    }
}
