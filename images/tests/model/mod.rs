//! One seeded sequence of operations on one image, and the plain model that it is compared with.

use std::path::PathBuf;
use std::process::Command;

use skerry_images::chain::{Format, LayerSpec, Stack};
use skerry_images::io::sim::Dice;
use skerry_images::io::{Buffer, FileOptions, ImageFile, Port, block_on};
use skerry_images::qcow2::{CreateOptions, create};
use tempfile::TempDir;

/// What an image is made with.
#[derive(Debug, Clone)]
pub struct Shape {
    pub cluster_bits: u32,
    pub refcount_bits: u32,
    pub version: u32,
    pub extended: bool,
    pub lazy: bool,
    pub backing: bool,
    pub cache: u64,
}

impl Shape {
    /// Every cluster size and refcount width comes with some seed.
    pub fn roll(seed: u64) -> Shape {
        let mut dice = Dice(seed ^ 0x5eed);
        let cluster_bits = 9 + (seed % 13) as u32;
        let version = if dice.one_in(5) { 2 } else { 3 };
        let modern = version == 3;
        Shape {
            cluster_bits,
            refcount_bits: if modern { 1 << (seed / 13 % 7) } else { 16 },
            version,
            extended: modern && cluster_bits >= 14 && dice.one_in(2),
            lazy: modern && dice.one_in(4),
            backing: dice.one_in(2),
            cache: if dice.one_in(2) { 0 } else { 1 << 20 },
        }
    }
}

/// One sequence.
pub struct Case {
    seed: u64,
    shape: Shape,
    dice: Dice,
    dir: TempDir,
    port: Port,
    stack: Stack,
    model: Vec<u8>,
    log: Vec<String>,
}

const SECTOR: u64 = 512;

impl Case {
    pub fn new(seed: u64, shape: Shape) -> Case {
        let dir = TempDir::new().expect("a directory");
        let mut dice = Dice(seed);
        let port = Port::new();
        // A few tables' worth of clusters, at most 24 MiB.
        let cluster = 1u64 << shape.cluster_bits;
        let most = (cluster * 200).min(24 << 20);
        let size = (most / 2 + dice.below(most / 2)) / SECTOR * SECTOR;
        let mut model = vec![0; size as usize];
        let mut specs = vec![LayerSpec::new(Format::Qcow2, dir.path().join("top.qcow2"))];
        let mut options = CreateOptions {
            cluster_size: cluster,
            refcount_bits: shape.refcount_bits,
            version: shape.version,
            extended_l2: shape.extended,
            lazy_refcounts: shape.lazy,
            ..CreateOptions::new(size)
        };
        if shape.backing {
            let path = dir.path().join("base.raw");
            let len = (size / 2 + dice.below(size)) / SECTOR * SECTOR;
            let mut base = vec![0; len as usize];
            for chunk in base.chunks_mut(3000) {
                if dice.one_in(2) {
                    chunk.fill(dice.next() as u8 | 1);
                }
            }
            std::fs::write(&path, &base).expect("the base");
            let n = base.len().min(model.len());
            model[..n].copy_from_slice(&base[..n]);
            options.backing = Some((path.display().to_string(), "raw".into()));
            specs.push(LayerSpec::new(Format::Raw, path));
        }
        let file = ImageFile::create(&specs[0].path).expect("a new file");
        block_on(&port, create(&port, &file, None, &options)).expect("an image");
        drop(file);
        let stack = block_on(
            &port,
            Stack::open(&port, &specs, &FileOptions::default(), shape.cache),
        )
        .expect("opens");
        Case {
            seed,
            shape,
            dice,
            dir,
            port,
            stack,
            model,
            log: Vec::new(),
        }
    }

    fn top(&self) -> PathBuf {
        self.dir.path().join("top.qcow2")
    }

    /// A range, often small, often touching cluster borders.
    fn range(&mut self) -> (u64, u64) {
        let size = self.model.len() as u64;
        let cluster = 1u64 << self.shape.cluster_bits;
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
        for _ in 0..20 + self.dice.below(40) {
            self.step();
        }
        self.compare();
        block_on(&self.port, self.stack.close(&self.port))
            .unwrap_or_else(|e| self.fail(&e.to_string()));
        let Case {
            seed,
            shape,
            dir,
            model,
            stack,
            log,
            ..
        } = self;
        drop(stack);
        judge(
            &dir,
            &model,
            &format!("seed {seed} {shape:?}\n{}", log.join("\n")),
        );
    }

    fn fail(&self, what: &str) -> ! {
        let kept = self.top().with_extension("failed");
        let _ = std::fs::copy(self.top(), &kept);
        panic!(
            "{what}\nseed {} {:?}\n{}",
            self.seed,
            self.shape,
            self.log.join("\n")
        );
    }

    fn step(&mut self) {
        let (at, len) = self.range();
        let (port, stack) = (self.port.clone(), self.stack.clone());
        let range = at as usize..(at + len) as usize;
        let result = match self.dice.below(12) {
            0..=5 => {
                let byte = self.dice.next() as u8;
                self.log.push(format!("write {at:#x}+{len:#x} {byte:#x}"));
                let mut data = Buffer::new(len as usize);
                data.bytes_mut().fill(byte);
                self.model[range].fill(byte);
                block_on(&port, stack.write(&port, at, &data.span()))
            }
            6 | 7 => {
                let unmap = self.dice.one_in(2);
                self.log
                    .push(format!("zero {at:#x}+{len:#x} unmap={unmap}"));
                self.model[range].fill(0);
                block_on(&port, stack.zero(&port, at, len, unmap))
            }
            8 => {
                self.log.push(format!("discard {at:#x}+{len:#x}"));
                let result = block_on(&port, stack.discard(&port, at, len));
                // Some of it reads as zeroes now, and the rest as before.
                let is = self.read(at, len);
                for (i, byte) in is.iter().enumerate() {
                    let was = self.model[at as usize + i];
                    if *byte != 0 && *byte != was {
                        self.fail("a discard made data of nothing");
                    }
                }
                self.model[range].copy_from_slice(&is);
                result
            }
            9 => {
                self.log.push("flush".into());
                block_on(&port, stack.flush(&port))
            }
            10 => {
                let size = self.model.len() as u64;
                let new = match self.dice.below(3) {
                    0 => size - self.dice.below(size / 2) / SECTOR * SECTOR,
                    _ => size + self.dice.below(size / 2) / SECTOR * SECTOR,
                };
                let new = new.min(32 << 20);
                self.log.push(format!("resize {size:#x} -> {new:#x}"));
                self.model.resize(new as usize, 0);
                block_on(&port, stack.resize(&port, new))
            }
            _ => {
                let is = self.read(at, len);
                if is != self.model[range] {
                    self.fail(&format!("read {at:#x}+{len:#x} differs"));
                }
                Ok(())
            }
        };
        if let Err(e) = result {
            self.fail(&format!("{e}"));
        }
    }

    fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let buffer = Buffer::new(len as usize);
        block_on(&self.port, self.stack.read(&self.port, at, &buffer.span()))
            .unwrap_or_else(|e| self.fail(&e.to_string()));
        buffer.bytes().to_vec()
    }

    fn compare(&self) {
        let is = self.read(0, self.model.len() as u64);
        if let Some(i) = is.iter().zip(&self.model).position(|(a, b)| a != b) {
            self.fail(&format!(
                "byte {i:#x} is {:#x}, not {:#x}",
                is[i], self.model[i]
            ));
        }
    }
}

/// `qemu-img` calls the image clean and identical with the model.
fn judge(dir: &TempDir, model: &[u8], story: &str) {
    let top = dir.path().join("top.qcow2");
    let plain = dir.path().join("model.raw");
    std::fs::write(&plain, model).expect("the model");
    let run = |args: &[&str]| {
        let mut command = Command::new("qemu-img");
        command.args(args);
        for path in [&plain, &top] {
            if args[0] == "compare" || path == &top {
                command.arg(path);
            }
        }
        let out = command.output().expect("qemu-img runs");
        assert!(
            out.status.success(),
            "qemu-img {args:?}: {}{}\n{story}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    };
    run(&["check", "-f", "qcow2"]);
    run(&["compare", "-f", "raw", "-F", "qcow2"]);
}
