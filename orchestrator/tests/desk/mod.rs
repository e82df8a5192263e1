//! A directory with images, our binary and QEMU's tools side by side.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A directory that commands run in.
pub struct Desk(TempDir);

/// What a command answered.
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Answer {
    fn of(output: Output) -> Answer {
        Answer {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

impl Desk {
    pub fn new() -> Desk {
        Desk(TempDir::new().expect("a directory"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, program: &str, args: &str) -> Answer {
        // Words in quotes stay together, as qemu-io's commands must.
        let words = args.split('\'').enumerate().flat_map(|(i, part)| {
            if i % 2 == 1 {
                vec![part.to_owned()]
            } else {
                part.split_whitespace().map(str::to_owned).collect()
            }
        });
        let output = Command::new(program)
            .args(words)
            .current_dir(self.path())
            .output();
        Answer::of(output.unwrap_or_else(|e| panic!("{program}: {e}")))
    }

    /// `skerry image …`, with whatever exit code.
    pub fn try_skerry(&self, args: &str) -> Answer {
        self.run(env!("CARGO_BIN_EXE_skerry"), &format!("image {args}"))
    }

    /// `skerry image …`, which succeeds.
    pub fn skerry(&self, args: &str) -> Answer {
        let answer = self.try_skerry(args);
        assert_eq!(
            answer.code, 0,
            "skerry image {args}: {}{}",
            answer.out, answer.err
        );
        answer
    }

    /// `skerry snapshot …`, with whatever exit code.
    pub fn try_snapshot(&self, args: &str) -> Answer {
        self.run(env!("CARGO_BIN_EXE_skerry"), &format!("snapshot {args}"))
    }

    /// `skerry snapshot …`, which succeeds.
    pub fn snapshot(&self, args: &str) -> Answer {
        let answer = self.try_snapshot(args);
        assert_eq!(
            answer.code, 0,
            "skerry snapshot {args}: {}{}",
            answer.out, answer.err
        );
        answer
    }

    /// `qemu-img …`, with whatever exit code.
    pub fn try_qemu(&self, args: &str) -> Answer {
        self.run("qemu-img", args)
    }

    /// `qemu-img …`, which succeeds.
    pub fn qemu(&self, args: &str) -> Answer {
        let answer = self.try_qemu(args);
        assert_eq!(
            answer.code, 0,
            "qemu-img {args}: {}{}",
            answer.out, answer.err
        );
        answer
    }

    /// `qemu-io FILE`, with these commands.
    pub fn io(&self, format: &str, file: &str, commands: &[&str]) {
        let commands: String = commands.iter().map(|c| format!("-c '{c}' ")).collect();
        let answer = self.run("qemu-io", &format!("-f {format} {commands} {file}"));
        assert_eq!(
            answer.code, 0,
            "qemu-io {commands}: {}{}",
            answer.out, answer.err
        );
    }

    pub fn exists(&self, file: &str) -> bool {
        self.path().join(file).exists()
    }
}

/// One image, made by QEMU's tools with much in it.
pub struct Subject {
    pub options: String,
    pub file: String,
    /// The flags by which our commands are told what the image lies on.
    pub flags: String,
}

/// What images can be made with.
pub const SHAPES: [&str; 19] = [
    "",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=2M",
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=2M",
    "compat=0.10",
    "lazy_refcounts=on",
    "refcount_bits=1",
    "refcount_bits=2",
    "refcount_bits=8",
    "refcount_bits=64",
    "compression_type=zstd",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full",
    "data_file=N.data",
    "data_file=N.data,data_file_raw=on",
];

impl Desk {
    /// Makes the image of a shape, every other one on a layer.
    pub fn subject(&self, index: usize) -> Subject {
        let file = format!("subject{index}");
        let options = SHAPES[index].replace('N', &file);
        let external = options.contains("data_file");
        let alone = options.contains("preallocation") || options.contains("raw=on");
        let mut flags = String::new();
        let mut below = String::new();
        if !alone && !index.is_multiple_of(3) {
            let format = if index % 3 == 1 { "raw" } else { "qcow2" };
            let base = format!("base{index}");
            self.qemu(&format!("create -q -f {format} {base} 7M"));
            self.io(
                format,
                &base,
                &["write -P 1 0 3M", "write -z 1M 200k", "write -P 2 4M 100k"],
            );
            below = format!("-b {base} -F {format}");
            flags = format!("--backing {format}:{base}");
        }
        if external {
            flags += &format!(" --data-file {file}.data");
        }
        let o = match options.as_str() {
            "" => String::new(),
            some => format!("-o {some}"),
        };
        self.qemu(&format!("create -q -f qcow2 {o} {below} {file} 8M"));
        let mut commands = vec![
            "write -P 7 300k 700k",
            "write -P 8 2M 12k",
            "write -z 3M 1M",
            "write -P 9 6M 4k",
            "discard 2500k 100k",
        ];
        if !external && !options.contains("preallocation") {
            commands.push(match options.contains("2M") {
                true => "write -c -P 11 4M 2M",
                false => "write -c -P 11 7M 1M",
            });
        }
        self.io("qcow2", &file, &commands);
        Subject {
            options,
            file,
            flags,
        }
    }
}
