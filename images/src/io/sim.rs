//! A simulated disk for tests: it completes operations in any order, and forgets at a power cut any
//! part of what was not flushed.
//!
//! The model is as hostile as disks are allowed to be: each 512-byte sector of an unflushed write
//! survives by itself or not, older versions of a sector may survive instead of newer ones, and a
//! flush covers only what had completed when it was submitted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Kind, Op, OpId, Port, Tasks};

/// What is written or lost as a whole.
pub const SECTOR: usize = 512;
/// None is a sector of zeroes: most of a file is.
type Sector = Option<Arc<[u8; SECTOR]>>;

fn sector_of(bytes: &[u8]) -> Sector {
    if bytes.iter().all(|b| *b == 0) {
        return None;
    }
    let mut sector = [0; SECTOR];
    sector[..bytes.len()].copy_from_slice(bytes);
    Some(Arc::new(sector))
}

/// A small, fast, seeded source of numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.number() % n.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Default, Clone)]
struct SimFile {
    durable: HashMap<u64, Arc<[u8; SECTOR]>>,
    durable_len: u64,
    /// Versions of each sector that are written and not durable, with their times.
    cached: BTreeMap<u64, Vec<(u64, Sector)>>,
    /// Lengths that are not durable.
    lengths: Vec<(u64, u64)>,
}

impl SimFile {
    fn len(&self) -> u64 {
        self.lengths.last().map_or(self.durable_len, |l| l.1)
    }

    fn sector(&self, n: u64) -> Option<&[u8; SECTOR]> {
        match self.cached.get(&n).and_then(|v| v.last()) {
            Some((_, sector)) => sector.as_deref(),
            None => self.durable.get(&n).map(|s| &**s),
        }
    }

    fn read(&self, mut offset: u64, mut out: &mut [u8]) {
        while !out.is_empty() {
            let at = (offset % SECTOR as u64) as usize;
            let n = (SECTOR - at).min(out.len());
            match self.sector(offset / SECTOR as u64) {
                Some(sector) => out[..n].copy_from_slice(&sector[at..at + n]),
                None => out[..n].fill(0),
            }
            out = &mut out[n..];
            offset += n as u64;
        }
    }

    fn write(&mut self, time: u64, mut offset: u64, mut data: &[u8]) {
        let end = offset + data.len() as u64;
        if end > self.len() {
            self.lengths.push((time, end));
        }
        while !data.is_empty() {
            let (n, at) = (offset / SECTOR as u64, (offset % SECTOR as u64) as usize);
            let part = (SECTOR - at).min(data.len());
            let mut sector = [0; SECTOR];
            if part < SECTOR
                && let Some(old) = self.sector(n)
            {
                sector = *old;
            }
            sector[at..at + part].copy_from_slice(&data[..part]);
            let sector = sector_of(&sector);
            self.cached.entry(n).or_default().push((time, sector));
            data = &data[part..];
            offset += part as u64;
        }
    }

    fn keep(durable: &mut HashMap<u64, Arc<[u8; SECTOR]>>, n: u64, sector: Sector) {
        match sector {
            Some(sector) => durable.insert(n, sector),
            None => durable.remove(&n),
        };
    }

    fn flush(&mut self, upto: u64) {
        for (n, versions) in &mut self.cached {
            let covered = versions.partition_point(|v| v.0 <= upto);
            if let Some((_, sector)) = versions.drain(..covered).next_back() {
                SimFile::keep(&mut self.durable, *n, sector);
            }
        }
        self.cached.retain(|_, versions| !versions.is_empty());
        while self.lengths.first().is_some_and(|l| l.0 <= upto) {
            self.durable_len = self.lengths.remove(0).1;
        }
    }

    /// What is left after a power cut.
    fn cut(&self, dice: &mut Dice) -> SimFile {
        let mut durable = self.durable.clone();
        let mut durable_len = self.durable_len;
        // Some disks lose nearly everything, some nearly nothing.
        let lost = dice.below(9);
        let mut last = 0;
        for (n, versions) in &self.cached {
            if dice.below(8) >= lost {
                let kept = if dice.one_in(4) {
                    dice.below(versions.len() as u64) as usize
                } else {
                    versions.len() - 1
                };
                SimFile::keep(&mut durable, *n, versions[kept].1.clone());
                last = last.max(n + 1);
            }
        }
        // A file system makes the length cover what it kept, or more of what was asked for.
        for (_, len) in &self.lengths {
            if dice.below(8) >= lost {
                durable_len = *len;
            }
        }
        let needed = (last * SECTOR as u64).min(self.len());
        SimFile {
            durable,
            durable_len: durable_len.max(needed),
            ..SimFile::default()
        }
    }
}

/// A disk with any number of files, known by their index.
#[derive(Default, Clone)]
pub struct SimDisk {
    files: Vec<SimFile>,
    time: u64,
}

impl SimDisk {
    /// Adds a file with durable content; its index.
    pub fn add(&mut self, content: &[u8]) -> i32 {
        let mut file = SimFile::default();
        file.write(0, 0, content);
        file.flush(0);
        self.files.push(file);
        self.files.len() as i32 - 1
    }

    /// A file's content, as a reader sees it now.
    pub fn content(&self, id: i32) -> Vec<u8> {
        let file = &self.files[id as usize];
        let mut bytes = vec![0; file.len() as usize];
        file.read(0, &mut bytes);
        bytes
    }

    /// A file's length now.
    pub fn len(&self, id: i32) -> u64 {
        self.files[id as usize].len()
    }

    /// The disk after a power cut now.
    pub fn cut(&self, dice: &mut Dice) -> SimDisk {
        SimDisk {
            files: self.files.iter().map(|f| f.cut(dice)).collect(),
            time: self.time,
        }
    }

    /// Makes everything durable.
    pub fn settle(&mut self) {
        for file in &mut self.files {
            file.flush(u64::MAX);
        }
    }

    /// Carries out one operation. A flush covers what was written up to the time `since`.
    fn carry_out(&mut self, port: &Port, id: OpId, since: u64) {
        let result = port.look(id, |op| self.perform(op, since, u64::MAX));
        if let Some(result) = result {
            port.complete(id, result);
        }
    }

    /// Carries out a part of a transfer.
    fn shorten(&mut self, port: &Port, id: OpId, dice: &mut Dice) {
        let result = port.look(id, |op| match op.kind {
            // Sectors stay whole, also those of tables.
            Kind::Read | Kind::Write if op.span.len() > SECTOR as u64 => {
                let sectors = (op.span.len() - 1) / SECTOR as u64;
                self.perform(op, 0, (1 + dice.below(sectors)) * SECTOR as u64)
            }
            _ => -libc::EINTR,
        });
        if let Some(result) = result {
            port.complete(id, result);
        }
    }

    /// Fails one operation, after any part of it was done.
    fn fail(&mut self, port: &Port, id: OpId, dice: &mut Dice) {
        port.look(id, |op| match op.kind {
            Kind::Read | Kind::Flush | Kind::SetLen => {}
            _ => {
                let len = op.len.max(op.span.len());
                let sectors = len.div_ceil(SECTOR as u64);
                let part = dice.below(sectors + 1) * SECTOR as u64;
                self.perform(op, 0, part);
            }
        });
        port.complete(id, -libc::EIO);
    }

    fn perform(&mut self, op: &Op, since: u64, most: u64) -> i32 {
        self.time += 1;
        let time = self.time;
        let Some(file) = self.files.get_mut(op.file.id() as usize) else {
            return -libc::EBADF;
        };
        match op.kind {
            Kind::Read => {
                let n = op.span.len().min(file.len().saturating_sub(op.offset));
                let mut bytes = vec![0; n.min(most) as usize];
                file.read(op.offset, &mut bytes);
                op.span.fill(&bytes);
                bytes.len() as i32
            }
            Kind::Write => {
                if op.offset.saturating_add(op.span.len()) > MOST {
                    return -libc::EFBIG;
                }
                let mut bytes = vec![0; op.span.len().min(most) as usize];
                op.span.copy_to(&mut bytes);
                file.write(time, op.offset, &bytes);
                bytes.len() as i32
            }
            Kind::Flush => {
                file.flush(since);
                0
            }
            Kind::Punch | Kind::Zero => {
                let len = op.len.min(most);
                let end = match op.kind {
                    Kind::Punch => op.offset.saturating_add(len).min(file.len()),
                    _ => op.offset.saturating_add(len),
                };
                if end > MOST {
                    return -libc::EFBIG;
                }
                if op.offset < end {
                    file.write(time, op.offset, &vec![0; (end - op.offset) as usize]);
                }
                0
            }
            Kind::SetLen => {
                if op.offset > MOST {
                    return -libc::EFBIG;
                }
                let len = file.len();
                if op.offset < len {
                    file.write(time, op.offset, &vec![0; (len - op.offset) as usize]);
                }
                file.lengths.push((time, op.offset));
                0
            }
        }
    }
}

/// The longest file: simulated ones are not for bulk.
const MOST: u64 = 1 << 40;

/// Others overtake a slow operation about so many times.
const OVERTAKEN: u64 = 100;

/// Runs tasks against a simulated disk.
pub struct Simulator<T> {
    /// The disk.
    pub disk: SimDisk,
    /// What decides.
    pub dice: Dice,
    /// Where the tasks put their operations.
    pub port: Port,
    /// One operation in so many fails; 0 for none.
    pub faults: u64,
    /// One transfer in so many is cut short; 0 for none.
    pub shorts: u64,
    /// One operation in so many takes long, and others overtake it; 0 for none.
    pub slow: u64,
    tasks: Tasks<T>,
    /// Operations that the disk has, with the time of their submission, and whether they are slow.
    submitted: Vec<(OpId, u64, bool)>,
}

impl<T> Simulator<T> {
    /// A simulator of `disk`.
    pub fn new(disk: SimDisk, dice: Dice) -> Simulator<T> {
        Simulator {
            disk,
            dice,
            port: Port::new(),
            faults: 0,
            shorts: 0,
            slow: 0,
            tasks: Tasks::new(Box::new(|| {})),
            submitted: Vec::new(),
        }
    }

    /// Adds a task.
    pub fn spawn(
        &mut self,
        tag: u32,
        task: std::pin::Pin<Box<dyn std::future::Future<Output = T> + Send>>,
    ) {
        self.tasks.spawn(tag, task);
    }

    /// Tasks that have not ended.
    pub fn live(&self) -> usize {
        self.tasks.live()
    }

    /// One step: tasks that can go on do, then the disk completes one operation of those it has.
    /// False when there is nothing to do.
    pub fn step(&mut self, ended: impl FnMut(u32, T)) -> bool {
        self.tasks.run(ended);
        while let Some(id) = self.port.next() {
            let slow = self.slow != 0 && self.dice.one_in(self.slow);
            self.submitted.push((id, self.disk.time, slow));
        }
        if self.submitted.is_empty() {
            return false;
        }
        let mut pick = self.dice.below(self.submitted.len() as u64) as usize;
        if self.submitted[pick].2 && !self.dice.one_in(OVERTAKEN) {
            let quick = self.submitted.iter().position(|(_, _, slow)| !slow);
            pick = quick.unwrap_or(pick);
        }
        let (id, since, _) = self.submitted.swap_remove(pick);
        if self.faults != 0 && self.dice.one_in(self.faults) {
            self.disk.fail(&self.port, id, &mut self.dice);
        } else if self.shorts != 0 && self.dice.one_in(self.shorts) {
            self.disk.shorten(&self.port, id, &mut self.dice);
        } else {
            self.disk.carry_out(&self.port, id, since);
        }
        true
    }

    /// Drops all tasks as they are; what they began goes on.
    pub fn abandon(&mut self) {
        self.tasks = Tasks::new(Box::new(|| {}));
    }

    /// Runs one more task to its end, with whatever else is going on.
    pub fn finish(
        &mut self,
        task: std::pin::Pin<Box<dyn std::future::Future<Output = T> + Send>>,
    ) -> Option<T> {
        const MINE: u32 = u32::MAX;
        self.spawn(MINE, task);
        let mut result = None;
        loop {
            let more = self.step(|tag, r| {
                if tag == MINE {
                    result = Some(r);
                }
            });
            if result.is_some() || !more {
                return result;
            }
        }
    }
}
