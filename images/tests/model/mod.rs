//! One seeded sequence of operations on one image, and the plain model that it is compared with.

mod judge;
mod layers;
mod shape;

use std::ops::Range;
use std::sync::Arc;

use skerry_images::Error;
use skerry_images::chain::{Layer, LayerSpec, Stack};
use skerry_images::io::sim::Dice;
use skerry_images::io::{Buffer, FileOptions, Port, block_on};
use skerry_images::qcow2::{Image, Tracker, pack};
use tempfile::TempDir;

pub use shape::{Data, Shape};

/// A kept disk: its name and content.
struct Kept {
    name: String,
    content: Vec<u8>,
}

/// One sequence.
pub struct Case {
    seed: u64,
    shape: Shape,
    dice: Dice,
    dir: TempDir,
    port: Port,
    specs: Vec<LayerSpec>,
    stack: Option<Stack>,
    trackers: Vec<Tracker>,
    model: Vec<u8>,
    kept: Vec<Kept>,
    log: Vec<String>,
}

const SECTOR: u64 = 512;

impl Case {
    pub fn new(seed: u64, shape: Shape) -> Case {
        let dir = TempDir::new().expect("a directory");
        let mut dice = Dice(seed);
        let port = Port::new();
        let (specs, model) = shape.make(dir.path(), &port, &mut dice);
        let mut case = Case {
            seed,
            shape,
            dice,
            dir,
            port,
            specs,
            stack: None,
            trackers: Vec::new(),
            model,
            kept: Vec::new(),
            log: Vec::new(),
        };
        case.open();
        case
    }

    /// Opens the disk, and takes its bitmap.
    fn open(&mut self) {
        // Without a lock: a process that another test starts holds it until it has begun.
        let options = FileOptions {
            unlocked: true,
            ..FileOptions::default()
        };
        let (port, cache) = (self.port.clone(), self.shape.cache);
        let stack = self.must(block_on(
            &port,
            Stack::open(&port, &self.specs, &options, cache),
        ));
        self.stack = Some(stack);
        let Some(granularity) = self.shape.bitmap else {
            return;
        };
        let image = self.image();
        if self.must(block_on(&port, image.bitmaps(&port))).is_empty() {
            self.must(block_on(&port, image.bitmap_add(&port, "t", granularity)));
        }
        self.trackers = self.must(block_on(&port, image.load_bitmaps(&port)));
    }

    /// Stores the bitmap and closes the disk.
    fn close(&mut self) {
        let (port, image) = (self.port.clone(), self.image());
        let trackers = std::mem::take(&mut self.trackers);
        self.must(block_on(&port, image.store_bitmaps(&port, &trackers)));
        if let Some(stack) = self.stack.take() {
            self.must(block_on(&port, stack.close(&port)));
        }
    }

    fn stack(&self) -> Stack {
        self.stack.clone().expect("it is open")
    }

    fn image(&self) -> Arc<Image> {
        match self.stack().top() {
            Layer::Qcow2(image) => image.clone(),
            Layer::Raw(_) => panic!("the top is qcow2"),
        }
    }

    /// A range, often small, often touching cluster borders.
    fn range(&mut self) -> (u64, u64) {
        let size = self.model.len() as u64;
        let cluster = self.shape.cluster();
        let mut at = self.dice.below(size / SECTOR) * SECTOR;
        let mut len = match self.dice.below(4) {
            0 => SECTOR * (1 + self.dice.below(16)),
            1 => cluster * (1 + self.dice.below(4)),
            2 => cluster / 2,
            _ => self.dice.below(cluster * 8),
        };
        if self.dice.one_in(2) {
            at &= !(cluster - 1);
        }
        len = (len / SECTOR).max(1) * SECTOR;
        (at, len.min(size - at))
    }

    pub fn run(mut self) {
        for _ in 0..15 + self.dice.below(30) {
            self.step();
        }
        self.compare();
        self.close();
        if let Err(what) = judge::judge(self.dir.path(), &self.specs, &self.shape, &self.model) {
            self.fail(&what);
        }
        self.merge();
    }

    fn fail(&self, what: &str) -> ! {
        let kept = std::env::temp_dir().join(format!("failed-{}.qcow2", self.seed));
        let _ = std::fs::copy(self.dir.path().join("top.qcow2"), &kept);
        panic!(
            "{what}\nseed {} {:?} (the image is kept as {})\n{}",
            self.seed,
            self.shape,
            kept.display(),
            self.log.join("\n")
        );
    }

    fn must<T>(&self, result: Result<T, Error>) -> T {
        result.unwrap_or_else(|e| self.fail(&e.to_string()))
    }

    fn mark(&self, at: u64, len: u64) {
        for tracker in &self.trackers {
            tracker.mark(at, len);
        }
    }

    fn step(&mut self) {
        let (at, len) = self.range();
        let (port, stack) = (self.port.clone(), self.stack());
        let range = at as usize..(at + len) as usize;
        match self.dice.below(21) {
            0..=6 => {
                let byte = self.dice.number() as u8;
                self.log.push(format!("write {at:#x}+{len:#x} {byte:#x}"));
                let mut data = Buffer::new(len as usize);
                data.bytes_mut().fill(byte);
                self.model[range].fill(byte);
                self.must(block_on(&port, stack.write(&port, at, &data.span())));
                self.mark(at, len);
            }
            7..=9 => {
                let unmap = self.dice.one_in(2);
                self.log
                    .push(format!("zero {at:#x}+{len:#x} unmap={unmap}"));
                self.model[range].fill(0);
                self.must(block_on(&port, stack.zero(&port, at, len, unmap)));
                self.mark(at, len);
            }
            10 => {
                self.log.push(format!("discard {at:#x}+{len:#x}"));
                self.must(block_on(&port, stack.discard(&port, at, len)));
                self.mark(at, len);
                self.look_after_discard(range);
            }
            11 => {
                self.log.push("flush".into());
                self.must(block_on(&port, stack.flush(&port)));
            }
            12 => self.resize(),
            13 | 14 => self.pack(at),
            15 => self.reopen(),
            16 | 17 => self.snapshot(),
            18 => self.rebase(),
            _ => {
                let is = self.read(at, len);
                if is != self.model[range] {
                    self.fail(&format!("read {at:#x}+{len:#x} differs"));
                }
            }
        }
    }

    /// Some of it reads as zeroes now, and the rest as before.
    fn look_after_discard(&mut self, range: Range<usize>) {
        let is = self.read(range.start as u64, range.len() as u64);
        let was = &self.model[range.clone()];
        if is != was && is.iter().zip(was).any(|(is, was)| *is != 0 && is != was) {
            self.fail("a discard made data of nothing");
        }
        self.model[range].copy_from_slice(&is);
    }

    fn resize(&mut self) {
        if self.shape.version < 3 && !self.kept.is_empty() {
            return;
        }
        let size = self.model.len() as u64;
        let new = match self.dice.below(3) {
            0 => size - self.dice.below(size / 2) / SECTOR * SECTOR,
            _ => size + self.dice.below(size / 2) / SECTOR * SECTOR,
        };
        let new = new.clamp(SECTOR, 24 << 20);
        self.log.push(format!("resize {size:#x} -> {new:#x}"));
        self.model.resize(new as usize, 0);
        let (port, stack) = (self.port.clone(), self.stack());
        self.must(block_on(&port, stack.resize(&port, new)));
        for tracker in &mut self.trackers {
            tracker.resize(new);
        }
    }

    /// Writes a whole cluster compressed.
    fn pack(&mut self, at: u64) {
        let cluster = self.shape.cluster();
        let at = at & !(cluster - 1);
        if self.shape.data != Data::Inside || at + cluster > self.model.len() as u64 {
            return;
        }
        let mut bytes = vec![self.dice.number() as u8; cluster as usize];
        // Some packs well and some less so.
        let noise = self.dice.below(cluster) as usize;
        for byte in &mut bytes[..noise.min(4096)] {
            *byte = self.dice.number() as u8;
        }
        let (port, image) = (self.port.clone(), self.image());
        let Some(packed) = pack(image.header().compression, &bytes) else {
            return;
        };
        self.log.push(format!("pack {at:#x} ({})", packed.len()));
        if self.must(block_on(&port, image.write_packed(&port, at, &packed))) {
            self.model[at as usize..(at + cluster) as usize].copy_from_slice(&bytes);
            self.mark(at, cluster);
        }
    }

    fn reopen(&mut self) {
        self.log.push("reopen".into());
        let dirty: Vec<Vec<Range<u64>>> = self
            .trackers
            .iter()
            .map(|t| t.map().ranges().collect())
            .collect();
        self.close();
        self.open();
        let is: Vec<Vec<Range<u64>>> = self
            .trackers
            .iter()
            .map(|t| t.map().ranges().collect())
            .collect();
        if is != dirty {
            self.fail("a bitmap came back differently");
        }
    }

    fn snapshot(&mut self) {
        if self.shape.data != Data::Inside {
            return;
        }
        let (port, image) = (self.port.clone(), self.image());
        let many = self.kept.len() as u64;
        let pick = self.dice.below(many.max(1)) as usize;
        let result = match self.dice.below(3) {
            _ if many == 0 => self.keep(&image),
            0 if many < 4 => self.keep(&image),
            1 => {
                let name = self.kept.remove(pick).name;
                self.log.push(format!("delete snapshot {name}"));
                block_on(&port, image.snapshot_delete(&port, &name))
            }
            _ => {
                let kept = &self.kept[pick];
                self.log.push(format!("apply snapshot {}", kept.name));
                let result = block_on(&port, image.snapshot_apply(&port, &kept.name));
                if result.is_ok() {
                    self.model.clone_from(&kept.content);
                    let size = self.model.len() as u64;
                    for tracker in &mut self.trackers {
                        tracker.resize(size);
                        tracker.mark(0, size);
                    }
                }
                result
            }
        };
        match result {
            // Narrow refcounts cannot count many.
            Err(Error::Unsupported { .. }) if self.shape.refcount_bits <= 8 => {
                self.log.push("(refused)".into());
            }
            result => self.must(result),
        }
    }

    fn keep(&mut self, image: &Image) -> Result<(), Error> {
        let name = format!("at-{}", self.log.len());
        self.log.push(format!("create snapshot {name}"));
        let create = image.snapshot_create(&self.port, &name, (1, 2));
        block_on(&self.port, create)?;
        self.kept.push(Kept {
            name,
            content: self.model.clone(),
        });
        Ok(())
    }

    fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let buffer = Buffer::new(len as usize);
        self.must(block_on(
            &self.port,
            self.stack().read(&self.port, at, &buffer.span()),
        ));
        buffer.bytes().to_vec()
    }

    fn compare(&self) {
        let is = self.read(0, self.model.len() as u64);
        if is != self.model {
            let differ = is.iter().zip(&self.model).position(|(a, b)| a != b);
            let i = differ.unwrap_or_default();
            self.fail(&format!(
                "byte {i:#x} is {:#x}, not {:#x}",
                is[i], self.model[i]
            ));
        }
    }
}
