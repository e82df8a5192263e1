//! One seeded history of a guest on a simulated disk: concurrent requests, and power cuts.
#![allow(dead_code, reason = "each test file takes what it needs")]

pub mod allowed;
pub mod left;
pub mod shape;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use allowed::{Allowed, Id, Time, Value, paint};
use shape::{Habit, Shape};
use skerry_images::chain::{Layer, Raw, Stack};
use skerry_images::io::sim::{Dice, SimDisk, Simulator};
use skerry_images::io::{Buffer, ImageFile, Port};
use skerry_images::qcow2::{Image, OpenOptions, create};
use skerry_images::{Error, Result};

/// What a task gives back: how it ended, and what it read.
type Outcome = (Result<()>, Option<Buffer>);

/// A request under way.
enum Doing {
    Change(Id),
    Flush(Time),
    Read(u64, Time, Vec<Vec<Id>>),
    Resize(u64, Vec<Id>),
    /// What nobody else may be about at the same time.
    Snapshot,
}

/// The files of every disk here.
pub const TOP: i32 = 0;
pub const BELOW: i32 = 1;

/// Opens the image and what is below it.
pub async fn open(port: &Port, shape: &Shape, len: u64, for_check: bool) -> Result<Stack> {
    let file = ImageFile::simulated(TOP, len, false);
    let options = OpenOptions {
        cache: shape.cache,
        for_check,
        ..OpenOptions::default()
    };
    let image = Image::open(port, file, None, &options).await?;
    let mut layers = vec![Layer::Qcow2(image)];
    if let Some(sectors) = shape.below {
        let file = ImageFile::simulated(BELOW, sectors * 512, true);
        layers.push(Layer::Raw(Arc::new(Raw::new(file))));
    }
    Ok(Stack::new(layers))
}

/// A history.
pub struct History {
    seed: u64,
    pub shape: Shape,
    pub sim: Simulator<Outcome>,
    pub allowed: Allowed,
    pub stack: Stack,
    dice: Dice,
    clock: Time,
    doing: HashMap<u32, Doing>,
    tags: u32,
    /// Requests that were acknowledged as failed.
    pub failures: u64,
    /// Sizes that failed resizes may have left, with the times of the failures.
    maybe: Vec<(Time, u64)>,
    /// Requests may fail.
    pub tolerant: bool,
    /// Every request, in words.
    pub log: Vec<String>,
}

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Runs one task alone on a disk.
pub fn alone<T: 'static>(
    disk: SimDisk,
    dice: Dice,
    task: impl FnOnce(Port) -> Task<T>,
) -> (SimDisk, T) {
    let mut sim = Simulator::new(disk, dice);
    let task = task(sim.port.clone());
    let result = sim.finish(task).expect("the task ends");
    (sim.disk, result)
}

impl History {
    /// A new image of this shape, and nothing going on.
    pub fn new(seed: u64, shape: Shape) -> History {
        let mut dice = Dice(seed);
        let mut disk = SimDisk::default();
        disk.add(&[]);
        disk.add(&allowed::below(shape.below.unwrap_or(0)));
        let options = shape.options();
        let (mut disk, made) = alone(disk, dice.clone(), |port| {
            Box::pin(async move {
                let file = ImageFile::simulated(TOP, 0, false);
                create(&port, &file, None, &options).await
            })
        });
        made.expect("an image is made");
        disk.settle();
        dice.number();
        let (own, len) = (shape.clone(), disk.len(TOP));
        let (disk, stack) = alone(disk, dice.clone(), |port| {
            Box::pin(async move { open(&port, &own, len, false).await })
        });
        let mut history = History {
            seed,
            allowed: Allowed::new(shape.sectors, shape.below.unwrap_or(0)),
            shape,
            sim: Simulator::new(disk, dice.clone()),
            stack: stack.expect("the new image opens"),
            dice,
            clock: 1,
            doing: HashMap::new(),
            tags: 0,
            failures: 0,
            tolerant: false,
            maybe: Vec::new(),
            log: Vec::new(),
        };
        if history.shape.habit == Habit::Reuse {
            history.sim.slow = 12;
        }
        history.fill();
        history
    }

    fn fill(&mut self) {
        const PIECE: u64 = 64;
        let mut at = 0;
        while at < self.shape.filled {
            let len = PIECE.min(self.shape.filled - at);
            self.write(at, len);
            at += len;
            self.settle();
        }
        self.flush();
        self.settle();
    }

    /// Lets everything that is going on end.
    pub fn settle(&mut self) {
        while self.step() {}
        assert_eq!(self.sim.live(), 0, "a task hangs\n{}", self.story());
    }

    /// Drops all tasks, and lets the disk end what they began.
    pub fn abandon(&mut self) {
        self.sim.abandon();
        let doing = std::mem::take(&mut self.doing);
        self.log
            .push(format!("{} all tasks are dropped", self.clock));
        self.clock += 1;
        for doing in doing.into_values() {
            match doing {
                Doing::Change(id) => self.allowed.end(self.clock, id, false),
                Doing::Resize(_, cut) => {
                    for id in cut {
                        self.allowed.end(self.clock, id, false);
                    }
                }
                Doing::Flush(_) | Doing::Read(..) | Doing::Snapshot => {}
            }
        }
        while self.step() {}
        // A resize may have been done, or not.
        if let Layer::Qcow2(image) = self.stack.top()
            && image.size() / 512 != self.allowed.len()
        {
            self.allowed.resize(self.clock, image.size() / 512);
        }
    }

    /// What happened.
    pub fn story(&self) -> String {
        format!(
            "seed {} {:?}\n{}",
            self.seed,
            self.shape,
            self.log.join("\n")
        )
    }

    fn spawn(&mut self, doing: Doing, said: String, task: Task<Outcome>) {
        self.tags += 1;
        self.log
            .push(format!("{} {}: {said}", self.clock, self.tags));
        self.doing.insert(self.tags, doing);
        self.sim.spawn(self.tags, task);
    }

    /// Lets the disk complete one operation. False when nothing is going on.
    pub fn step(&mut self) -> bool {
        let mut ended = Vec::new();
        let more = self.sim.step(|tag, outcome| ended.push((tag, outcome)));
        for (tag, (result, buffer)) in ended {
            self.clock += 1;
            self.ended(tag, result, buffer);
        }
        more
    }

    fn ended(&mut self, tag: u32, result: Result<()>, buffer: Option<Buffer>) {
        let ok = result.is_ok();
        let how = result
            .as_ref()
            .map_or_else(ToString::to_string, |()| "ok".into());
        self.log.push(format!("{} {tag} ended: {how}", self.clock));
        if let Err(e) = result {
            self.failures += 1;
            // A resize and a snapshot may be more than the format can express.
            let refused = matches!(e, Error::Invalid { .. } | Error::Unsupported { .. })
                && matches!(
                    self.doing.get(&tag),
                    Some(Doing::Resize(..) | Doing::Snapshot)
                );
            assert!(refused || self.tolerant, "{e}\n{}", self.story());
        }
        match self.doing.remove(&tag).expect("a task that was begun") {
            Doing::Change(id) => self.allowed.end(self.clock, id, ok),
            Doing::Flush(start) if ok => {
                self.maybe.retain(|(time, _)| *time > start);
                self.allowed.flushed(start);
            }
            Doing::Read(at, start, before) if ok => {
                let buffer = buffer.expect("what was read");
                if let Err(what) = self.allowed.in_life(at, buffer.bytes(), start, &before) {
                    panic!("a read is wrong: {what}\n{}", self.story());
                }
            }
            Doing::Resize(sectors, cut) => {
                for id in cut {
                    self.allowed.end(self.clock, id, ok);
                }
                if ok {
                    self.allowed.resize(self.clock, sectors);
                    self.maybe.clear();
                } else {
                    self.maybe.push((self.clock, sectors));
                }
            }
            Doing::Snapshot | Doing::Flush(_) | Doing::Read(..) => {}
        }
    }

    fn resizing(&self) -> Option<u64> {
        self.doing.values().find_map(|d| match d {
            Doing::Resize(to, _) => Some(*to),
            _ => None,
        })
    }

    /// Sizes in sectors that the disk may have after a power cut now.
    pub fn sizes(&self) -> Vec<u64> {
        [Some(self.allowed.len()), self.resizing()]
            .into_iter()
            .flatten()
            .chain(self.maybe.iter().map(|m| m.1))
            .collect()
    }

    /// Begins another request now and then; false if it did not.
    pub fn more(&mut self) -> bool {
        // A disk that becomes shorter has the guest's attention.
        let alone = self.doing.values().any(|d| matches!(d, Doing::Snapshot));
        let shrinking = alone || self.resizing().is_some_and(|to| to < self.allowed.len());
        if shrinking || self.doing.len() >= self.shape.width || self.dice.one_in(3) {
            return false;
        }
        self.clock += 1;
        let (at, len) = self.range();
        match (self.shape.habit, self.dice.below(20)) {
            (Habit::Fill, 0..=10) => {
                let len = (len + 40).min(self.allowed.len() - at);
                self.write(at, len);
            }
            (Habit::Reuse, 0..=5) => self.write(at, len),
            // All of the disk: what slow requests use, too.
            (Habit::Reuse, 6..=9) => self.discard(0, self.allowed.len()),
            (Habit::Reuse, 10..=14) => self.flush(),
            (Habit::Reuse, 15..=18) => self.read(at, len),
            (_, what) => return self.anything(what, at, len),
        }
        true
    }

    fn anything(&mut self, what: u64, at: u64, len: u64) -> bool {
        match what {
            0..=8 => self.write(at, len),
            9 | 10 => self.zero(at, len),
            11 | 12 => self.discard(at, len),
            13..=15 => self.flush(),
            16 => self.read(at, len),
            17 if self.doing.is_empty() && self.shape.snapshots => self.snapshot(),
            17 => self.read(at, len),
            _ if self.resizing().is_none() => self.resize(),
            _ => return false,
        }
        true
    }

    fn range(&mut self) -> (u64, u64) {
        let size = self.allowed.len();
        let cluster = 1 << (self.shape.cluster_bits - 9);
        let mut at = self.dice.below(size);
        let mut len = match self.dice.below(4) {
            0 => 1 + self.dice.below(8),
            1 => cluster * (1 + self.dice.below(3)),
            2 => cluster / 2,
            _ => 1 + self.dice.below(cluster * 2),
        };
        if self.dice.one_in(2) {
            at &= !(cluster - 1);
        }
        len = len.clamp(1, 4096);
        (at, len.min(size - at))
    }

    fn parts(&self) -> (Port, Stack) {
        (self.sim.port.clone(), self.stack.clone())
    }

    fn write(&mut self, at: u64, len: u64) {
        let (port, stack) = self.parts();
        let tag = self.tags + 1;
        let id = self
            .allowed
            .begin(self.clock, at, len, Value::Tag(tag), false);
        let mut data = Buffer::new(len as usize * 512);
        paint(data.bytes_mut(), at, tag);
        let task = async move { (stack.write(&port, at * 512, &data.span()).await, None) };
        self.spawn(
            Doing::Change(id),
            format!("write {at}+{len}"),
            Box::pin(task),
        );
    }

    fn zero(&mut self, at: u64, len: u64) {
        let (port, stack) = self.parts();
        let unmap = self.dice.one_in(2);
        let id = self.allowed.begin(self.clock, at, len, Value::Zero, false);
        let task = async move { (stack.zero(&port, at * 512, len * 512, unmap).await, None) };
        let said = format!("zero {at}+{len} unmap={unmap}");
        self.spawn(Doing::Change(id), said, Box::pin(task));
    }

    fn discard(&mut self, at: u64, len: u64) {
        let (port, stack) = self.parts();
        let id = self.allowed.begin(self.clock, at, len, Value::Zero, true);
        let task = async move { (stack.discard(&port, at * 512, len * 512).await, None) };
        self.spawn(
            Doing::Change(id),
            format!("discard {at}+{len}"),
            Box::pin(task),
        );
    }

    /// Begins a flush.
    pub fn flush(&mut self) {
        let (port, stack) = self.parts();
        let task = async move { (stack.flush(&port).await, None) };
        self.spawn(Doing::Flush(self.clock), "flush".into(), Box::pin(task));
    }

    /// Begins to read.
    pub fn read(&mut self, at: u64, len: u64) {
        let (port, stack) = self.parts();
        let before = self.allowed.candidates(at, len);
        let task = async move {
            let buffer = Buffer::new(len as usize * 512);
            let result = stack.read(&port, at * 512, &buffer.span()).await;
            (result.map(drop), Some(buffer))
        };
        self.spawn(
            Doing::Read(at, self.clock, before),
            format!("read {at}+{len}"),
            Box::pin(task),
        );
    }

    /// Makes an internal snapshot, or deletes the oldest.
    fn snapshot(&mut self) {
        let (port, stack) = self.parts();
        let (name, delete) = (self.clock.to_string(), self.dice.one_in(2));
        let task = async move {
            let Layer::Qcow2(image) = stack.top() else {
                return (Ok(()), None);
            };
            let work = async {
                match image.snapshots(&port).await?.first() {
                    Some(oldest) if delete => image.snapshot_delete(&port, &oldest.id).await,
                    _ => image.snapshot_create(&port, &name, (0, 0)).await.map(drop),
                }
            };
            (work.await, None)
        };
        let said = format!("snapshot delete={delete}");
        self.spawn(Doing::Snapshot, said, Box::pin(task));
    }

    fn resize(&mut self) {
        let old = self.allowed.len();
        let new = if self.doing.is_empty() && self.dice.one_in(2) {
            1 + self.dice.below(old)
        } else {
            (old + self.dice.below(self.shape.sectors)).min(self.shape.sectors * 3)
        };
        let (port, stack) = self.parts();
        // What is cut off may be gone, or show what is below, before the size changes.
        let lost = if new < old {
            vec![Value::Zero, Value::Below]
        } else {
            Vec::new()
        };
        let mut cut = Vec::new();
        for value in lost {
            cut.push(self.allowed.begin(self.clock, new, old - new, value, true));
        }
        let task = async move { (stack.resize(&port, new * 512).await, None) };
        let said = format!("resize {old} -> {new}");
        self.spawn(Doing::Resize(new, cut), said, Box::pin(task));
    }
}
