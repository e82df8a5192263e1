//! Taking a snapshot: before, in, and after its pause.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use skerry_link::{Hangup, patience};
use skerry_snapshot::{
    Begin, DeviceFacts, Header, MachineFacts, MemoryFacts, MemoryKind, Parent, Range, Records,
    coalesce,
};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::snapshots::{AfterSnapshot, SnapshotKind, VmSnapshot, VmSnapshotInfo};

use super::places::{absolute, overlay_paths};
use super::sink::Sink;
use super::{Kept, SnapshotRequestError, served};
use crate::arch;
use crate::disks::Frozen;
use crate::machine::Machine;
use crate::memory::{DirtyTracker, Ram};

/// The guest goes on running as long as each round of copying leaves less to copy, but no longer than
/// this many.
const MAX_ROUNDS: usize = 8;
/// Less than this is copied in the pause.
const PAUSE_BYTES: u64 = 4 << 20;

/// The snapshot that a diff may build on: the last one, or the one that the machine was made of.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Its id.
    pub id: String,
    /// Its directory. None if it went over a connection.
    pub path: Option<PathBuf>,
}

/// What is known of writes since a snapshot.
pub struct Tracking {
    /// None while everything that was written can be told from the mapping: memory is a snapshot's own
    /// and this machine's copies.
    tracker: Option<DirtyTracker>,
    origin: Origin,
}

impl Tracking {
    /// Writes are tracked, and not told from the mapping.
    pub fn is_tracked(&self) -> bool {
        self.tracker.is_some()
    }

    /// Of a machine that was restored from `origin` and did not run yet.
    pub fn since_restore(
        ram: &Ram,
        origin: Origin,
        track: bool,
    ) -> Result<Option<Tracking>, SnapshotRequestError> {
        let tracker = match (ram.is_private(), track) {
            (true, _) => None,
            (false, true) => Some(DirtyTracker::start(ram)?),
            (false, false) => return Ok(None),
        };
        Ok(Some(Tracking { tracker, origin }))
    }

    /// Whether a diff would build on this snapshot.
    pub fn builds_on(&self, id: &str) -> bool {
        self.origin.id == id
    }
}

/// Says that a snapshot's machine goes away: what is not frozen yet is copied in vain.
#[derive(Clone, Default)]
pub struct Ending {
    said: Arc<AtomicBool>,
    /// It has all of its machine, whose end is nothing to it any more.
    frozen: Arc<AtomicBool>,
    hangup: Hangup,
}

impl Ending {
    /// Says so. What is not frozen yet is not waited for either.
    pub fn end(&self) {
        self.said.store(true, Ordering::Relaxed);
        if !self.frozen.load(Ordering::Relaxed) {
            self.hangup.hang_up();
        }
    }

    /// Whoever keeps it elsewhere is not listened to any longer.
    pub fn hang_up(&self) {
        self.hangup.hang_up();
    }

    fn check(&self) -> Result<(), SnapshotRequestError> {
        match self.said.load(Ordering::Relaxed) {
            true => Err(SnapshotRequestError::Ended),
            false => Ok(()),
        }
    }
}

/// A snapshot being taken.
pub struct Taking {
    /// Its name among all snapshots.
    id: String,
    request: VmSnapshot,
    ending: Ending,
    begun: Instant,
    sink: Sink,
    ram: Ram,
    tracker: Option<DirtyTracker>,
    origin: Option<Origin>,
    /// What was written since the origin can be told from the mapping.
    by_mapping: bool,
    overlays: Vec<Frozen>,
    /// Memory that was written.
    written: Vec<Range>,
    /// Memory that is known to be missing there.
    missing: Vec<Range>,
    paused_bytes: u64,
    pause: Option<(Instant, u64)>,
    records: Records,
    header: Option<Header>,
}

impl Taking {
    /// Prepares a snapshot of a machine: where it goes, the disks' new layers.
    /// `runs` is whether the guest runs meanwhile.
    pub fn begin(
        mut request: VmSnapshot,
        machine: &mut Machine,
        config: &VmConfig,
        runs: bool,
    ) -> Result<Taking, SnapshotRequestError> {
        let begun = Instant::now();
        let (id, ending) = (new_id(), Ending::default());
        served::check_keeps(machine, config, &request, runs)?;
        // Who else writes to memory is not seen.
        request.live &= !served::is_served(config);
        let parent = match (request.kind, &machine.tracking) {
            (SnapshotKind::Full, _) => None,
            (SnapshotKind::Diff, Some(tracking)) => Some(&tracking.origin),
            (SnapshotKind::Diff, None) => return Err(SnapshotRequestError::NoParent),
        };
        let begin = Begin {
            id: id.clone(),
            memory: machine.ram.size(),
            parent: parent.map(|origin| origin.id.clone()),
        };
        let sink = Sink::open(&request, begin, ending.hangup.clone())?;
        if let (Some(Origin { id, path: None }), Some(_)) = (parent, sink.directory()) {
            return Err(SnapshotRequestError::Elsewhere(id.clone()));
        }
        let overlays = match request.after {
            AfterSnapshot::Continue => {
                let paths = overlay_paths(config, &request.overlays, sink.name())?;
                machine.prepare_freeze(paths)?
            }
            AfterSnapshot::Stop => {
                machine.prepare_freeze(Vec::new())?;
                Vec::new()
            }
        };
        let by_mapping = matches!(&machine.tracking, Some(Tracking { tracker: None, .. }));
        let (mut tracker, origin) = match machine.tracking.take() {
            Some(tracking) => (tracking.tracker, Some(tracking.origin)),
            None => (None, None),
        };
        let ram = machine.ram.clone();
        let missing = Self::to_copy(&request, &ram, &mut tracker);
        let mut taking = Taking {
            id,
            request,
            ending,
            begun,
            sink,
            ram,
            tracker,
            origin,
            by_mapping,
            overlays,
            written: Vec::new(),
            missing: Vec::new(),
            paused_bytes: 0,
            pause: None,
            records: Records::default(),
            header: None,
        };
        match missing {
            Ok(missing) => taking.missing = missing,
            Err(e) => {
                taking.give_up(machine);
                return Err(e);
            }
        }
        Ok(taking)
    }

    /// What is to be copied at first. Writes from now on are tracked, if that is of use.
    fn to_copy(
        request: &VmSnapshot,
        ram: &Ram,
        tracker: &mut Option<DirtyTracker>,
    ) -> Result<Vec<Range>, SnapshotRequestError> {
        let ends = request.after == AfterSnapshot::Stop;
        let track = request.live || (request.track_dirty && !ends);
        if let Some(tracker) = tracker {
            let written = tracker.take()?;
            return match request.kind {
                SnapshotKind::Diff => Ok(written),
                SnapshotKind::Full => Ok(ram.populated(Some(tracker))?),
            };
        }
        if track {
            match DirtyTracker::start(ram) {
                Ok(started) => *tracker = Some(started),
                // Older kernels: then all of it is copied in the pause.
                Err(e) if !request.track_dirty => log::info!("{e}"),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(match request.kind {
            SnapshotKind::Diff => ram.copied(tracker.as_ref())?,
            SnapshotKind::Full => ram.populated(tracker.as_ref())?,
        })
    }

    /// Finds who takes it, and copies memory while the guest runs, until little is left. On a thread of its own.
    pub fn copy_live(&mut self) -> Result<(), SnapshotRequestError> {
        let copied = self.sink.connect().and_then(|()| self.copy_rounds());
        // An end that was asked for is why nobody answers any more.
        copied.map_err(|e| self.ending.check().err().unwrap_or(e))
    }

    fn copy_rounds(&mut self) -> Result<(), SnapshotRequestError> {
        if self.tracker.is_none() || !self.request.live {
            return Ok(());
        }
        let mut before = u64::MAX;
        for _ in 0..MAX_ROUNDS {
            let left = bytes(&self.missing);
            if left <= PAUSE_BYTES || left >= before {
                break;
            }
            before = left;
            let ending = self.ending.clone();
            self.copy(|| ending.check())?;
            if let Some(tracker) = &mut self.tracker {
                self.missing = tracker.take()?;
            }
        }
        Ok(())
    }

    /// Copies what is missing, as long as `go_on` agrees. All of it then counts as written, so that it is
    /// given back if nothing comes of it.
    fn copy(
        &mut self,
        go_on: impl Fn() -> Result<(), SnapshotRequestError>,
    ) -> Result<(), SnapshotRequestError> {
        let missing = std::mem::take(&mut self.missing);
        self.written.extend_from_slice(&missing);
        for range in missing {
            let mut start = range.start;
            while start < range.end() {
                go_on()?;
                let len = self.sink.piece().min(range.end() - start);
                self.sink.write(&self.ram, Range { start, len })?;
                start += len;
            }
        }
        Ok(())
    }

    /// Keeps a machine that has just been paused: the rest of its memory, its devices, its disks. `paused`
    /// is since when the guest stands still because of this; none if it did before.
    pub fn freeze(
        &mut self,
        machine: &mut Machine,
        config: &mut VmConfig,
        paused: Option<Instant>,
    ) -> Result<(), SnapshotRequestError> {
        let begun = paused.unwrap_or_else(Instant::now);
        // It may have been resumed since.
        served::check_frozen(machine, self.request.after, paused.is_some())?;
        if self.tracker.is_none() && self.request.kind == SnapshotKind::Diff {
            // Found before the pause; the guest may have written since.
            self.missing = self.ram.copied(None)?;
        } else if self.tracker.is_none() {
            self.missing = self.ram.populated(None)?;
        } else if let Some(tracker) = &mut self.tracker {
            let written = tracker.take()?;
            self.missing.extend(written);
            self.missing = coalesce(std::mem::take(&mut self.missing));
        }
        self.paused_bytes = bytes(&self.missing);
        // Whoever takes it slowly does not keep the guest for ever.
        self.sink.bound(Some(patience(self.paused_bytes)));
        self.copy(|| Ok(()))?;
        self.sink.bound(None);
        let kept = Kept::of(machine)?;
        machine.note_layers(&mut config.disks);
        self.header = Some(self.header_of(machine, config, &kept));
        kept.put(&mut self.records);
        machine.freeze(std::mem::take(&mut self.overlays))?;
        machine.note_layers(&mut config.disks);
        if self.request.track_dirty && self.request.after == AfterSnapshot::Continue {
            let tracker = match self.tracker.take() {
                Some(tracker) => tracker,
                None => DirtyTracker::start(&self.ram)?,
            };
            machine.tracking = Some(Tracking {
                tracker: Some(tracker),
                origin: self.origin_of_next(),
            });
        } else if let Some(origin) = self.origin.clone().filter(|_| self.by_mapping) {
            machine.tracking = Some(Tracking {
                tracker: None,
                origin,
            });
        }
        self.ending.frozen.store(true, Ordering::Relaxed);
        // Unless the guest goes on, that is all of it.
        self.pause = Some((begun, begun.elapsed().as_micros() as u64));
        Ok(())
    }

    /// What becomes of the VM.
    pub fn after(&self) -> AfterSnapshot {
        self.request.after
    }

    /// The guest runs again.
    pub fn resumed(&mut self) {
        if let Some((begun, micros)) = &mut self.pause {
            *micros = begun.elapsed().as_micros() as u64;
        }
    }

    /// How it is told that its machine goes away.
    pub fn ending(&self) -> Ending {
        self.ending.clone()
    }

    /// Its name among all snapshots.
    pub fn id(&self) -> String {
        self.id.clone()
    }

    fn origin_of_next(&self) -> Origin {
        Origin {
            id: self.id(),
            path: self.sink.directory().map(Path::to_owned),
        }
    }

    fn header_of(&self, machine: &Machine, config: &VmConfig, kept: &Kept) -> Header {
        let origin = self.origin.as_ref();
        let parent = origin.filter(|_| self.request.kind == SnapshotKind::Diff);
        let ranges = coalesce(self.written.clone());
        let mut header = describe(machine, config, Some(kept));
        header.id.clone_from(&self.id);
        header.disks_go_on = self.request.after == AfterSnapshot::Continue;
        header.parent = parent.map(|parent| match (&parent.path, self.sink.directory()) {
            (Some(path), Some(target)) => Parent::new(&parent.id, path, target),
            // Where it is only the receiver knows.
            _ => Parent {
                id: parent.id.clone(),
                path: PathBuf::new(),
            },
        });
        header.memory.data = bytes(&ranges);
        header.memory.kind = match self.request.kind {
            SnapshotKind::Full => MemoryKind::Full,
            SnapshotKind::Diff => MemoryKind::Diff,
        };
        header
    }

    /// Makes it durable and gives it its name. On a thread of its own; the guest runs.
    pub fn finish(mut self) -> Result<VmSnapshotInfo, SnapshotRequestError> {
        let Some(header) = self.header.take() else {
            return Err(SnapshotRequestError::Ended);
        };
        let ranges = coalesce(std::mem::take(&mut self.written));
        let info = VmSnapshotInfo {
            id: header.id.clone(),
            pause_us: self.pause.map_or(0, |(_, micros)| micros),
            total_us: 0,
            memory_bytes: header.memory.data,
            paused_bytes: self.paused_bytes,
        };
        self.sink.finish(self.records, header, &ranges)?;
        Ok(VmSnapshotInfo {
            total_us: self.begun.elapsed().as_micros() as u64,
            ..info
        })
    }

    /// Nothing comes of it, and the machine is gone: nothing is left.
    pub fn discard(self) {
        self.overlays.into_iter().for_each(Frozen::remove);
    }

    /// Nothing comes of it: the machine knows again what it knew of its writes, and nothing is left.
    pub fn give_up(self, machine: &mut Machine) {
        self.overlays.into_iter().for_each(Frozen::remove);
        let Some(origin) = self.origin else { return };
        match self.tracker.filter(|_| !self.by_mapping) {
            Some(mut tracker) => {
                // Some of it may be in the file that nobody will read.
                tracker.give_back(&self.written);
                tracker.give_back(&self.missing);
                machine.tracking = Some(Tracking {
                    tracker: Some(tracker),
                    origin,
                });
            }
            None if self.by_mapping => {
                machine.tracking = Some(Tracking {
                    tracker: None,
                    origin,
                });
            }
            None => {}
        }
    }
}

/// Describes a machine; what it is only known of its CPUs if it was kept.
pub fn describe(machine: &Machine, config: &VmConfig, kept: Option<&Kept>) -> Header {
    let functions = machine.board().functions();
    let devices = functions.iter().map(|(_, function)| DeviceFacts {
        id: function.name().to_owned(),
        kind: function.kind().to_owned(),
    });
    let first = kept.and_then(|kept| kept.cpus.first());
    let created = SystemTime::now().duration_since(UNIX_EPOCH);
    Header {
        id: new_id(),
        parent: None,
        disks_go_on: false,
        created: created.map_or(0, |d| d.as_secs()),
        monitor: env!("CARGO_PKG_VERSION").to_owned(),
        machine: MachineFacts {
            arch: std::env::consts::ARCH.to_owned(),
            cpus: machine.cpus.len() as u32,
            tsc_khz: first.map_or(0, arch::tsc_khz),
        },
        cpu: arch::facts(machine.told.first()),
        devices: devices.collect(),
        config: absolute(config),
        memory: MemoryFacts {
            kind: MemoryKind::Full,
            size: machine.ram.size(),
            data: 0,
        },
        records: Vec::new(),
    }
}

fn bytes(ranges: &[Range]) -> u64 {
    ranges.iter().map(|range| range.len).sum()
}

/// 32 random hexadecimal digits.
fn new_id() -> String {
    let mut bytes = [0; 16];
    // It fails only where the kernel's generator is not ready yet, which is over long before.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
