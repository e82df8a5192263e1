//! An image in a directory of its own, made and judged by `qemu-img`.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::process::Command;
use std::sync::Arc;

use skerry_images::chain::{Format, Layer, LayerSpec, Stack};
use skerry_images::io::{Buffer, FileOptions, Port, block_on};
use skerry_images::qcow2::check::{Repair, check};
use skerry_images::qcow2::{Image, OpenOptions};
use tempfile::TempDir;

/// Runs `qemu-img`, which must succeed; what it said.
pub fn qemu_img(args: &[&str]) -> String {
    let out = Command::new("qemu-img")
        .args(args)
        .output()
        .expect("qemu-img runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "qemu-img {args:?}: {text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    text
}

/// What `qemu-img` says of an image, parsed.
pub fn qemu_json(args: &[&str], image: &str) -> serde_json::Value {
    let args = [args, &[image]].concat();
    serde_json::from_str(&qemu_img(&args)).expect("JSON")
}

/// Without a lock: a child process that another test starts holds it until it has begun.
fn unlocked(readonly: bool) -> FileOptions {
    FileOptions {
        readonly,
        unlocked: true,
        ..FileOptions::default()
    }
}

/// A directory with `top.qcow2`.
pub struct Bench {
    pub dir: TempDir,
    pub port: Port,
    pub specs: Vec<LayerSpec>,
}

impl Bench {
    /// An image made with `-o options`.
    pub fn new(options: &str, size: u64) -> Bench {
        let bench = Bench::empty();
        let (top, size) = (bench.top(), size.to_string());
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, &top, &size]);
        bench
    }

    /// No image yet.
    pub fn empty() -> Bench {
        let dir = TempDir::new().expect("a directory");
        let specs = vec![LayerSpec::new(Format::Qcow2, dir.path().join("top.qcow2"))];
        Bench {
            dir,
            port: Port::new(),
            specs,
        }
    }

    /// The image's path.
    pub fn top(&self) -> String {
        self.dir.path().join("top.qcow2").display().to_string()
    }

    /// The disk, open for writing.
    pub fn stack(&self) -> Stack {
        let options = unlocked(false);
        let open = Stack::open(&self.port, &self.specs, &options, 1 << 20);
        block_on(&self.port, open).expect("opens")
    }

    /// Its top image, open for writing.
    pub fn image(&self) -> Arc<Image> {
        self.image_of(&self.stack())
    }

    /// The top image of an open disk.
    pub fn image_of(&self, stack: &Stack) -> Arc<Image> {
        match stack.top() {
            Layer::Qcow2(image) => image.clone(),
            Layer::Raw(_) => panic!("the top is qcow2"),
        }
    }

    /// Fills a range and closes.
    pub fn write(&self, at: u64, len: usize, byte: u8) {
        let stack = self.stack();
        self.write_to(&stack, at, len, byte);
        block_on(&self.port, stack.close(&self.port)).expect("closes");
    }

    /// Fills a range of an open disk.
    pub fn write_to(&self, stack: &Stack, at: u64, len: usize, byte: u8) {
        let mut data = Buffer::new(len);
        data.bytes_mut().fill(byte);
        block_on(&self.port, stack.write(&self.port, at, &data.span())).expect("writes");
    }

    /// Fills whole clusters, compressed, and closes.
    pub fn pack(&self, at: u64, len: u64, byte: u8) {
        let image = self.image();
        let cluster = image.geometry().cluster();
        let kind = image.header().compression;
        let packed = skerry_images::qcow2::pack(kind, &vec![byte; cluster as usize]);
        let packed = packed.expect("one byte packs well");
        for offset in (at..at + len).step_by(cluster as usize) {
            let write = image.write_packed(&self.port, offset, &packed);
            assert!(block_on(&self.port, write).expect("writes"));
        }
        block_on(&self.port, image.close(&self.port)).expect("closes");
    }

    /// The disk's content, by `qemu-img`.
    pub fn read_raw(&self) -> Vec<u8> {
        let raw = self.dir.path().join("read.raw").display().to_string();
        qemu_img(&["convert", "-O", "raw", &self.top(), &raw]);
        std::fs::read(raw).expect("the content")
    }

    /// The disk's content, by us.
    pub fn read(&self) -> Vec<u8> {
        let options = unlocked(true);
        let open = Stack::open(&self.port, &self.specs, &options, 1 << 20);
        let stack = block_on(&self.port, open).expect("opens");
        let buffer = Buffer::new(stack.size() as usize);
        block_on(&self.port, stack.read(&self.port, 0, &buffer.span())).expect("reads");
        buffer.bytes().to_vec()
    }

    /// `qemu-img check` and our own find nothing, not even leaks.
    pub fn check_clean(&self, story: &str) {
        let out = Command::new("qemu-img")
            .args(["check", "-f", "qcow2", &self.top()])
            .output()
            .expect("qemu-img runs");
        assert!(
            out.status.success(),
            "{story}: {}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        let file = unlocked(true);
        let options = OpenOptions {
            readonly: true,
            for_check: true,
            ..OpenOptions::default()
        };
        let open = self.specs[0].open_with(&self.port, &file, &options);
        let Layer::Qcow2(image) = block_on(&self.port, open).expect("opens") else {
            panic!("the top is qcow2");
        };
        let report = block_on(&self.port, check(&image, &self.port, Repair::None));
        let report = report.unwrap_or_else(|e| panic!("{story}: {e}"));
        assert!(report.clean(), "{story}: {:?}", report.messages);
    }
}
