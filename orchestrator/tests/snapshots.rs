//! Snapshots that `skerry snapshot` describes, checks and merges.

mod desk;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use desk::Desk;
use serde_json::json;
use skerry_snapshot::{
    CHUNK, CpuFacts, CpuidLeaf, DeviceFacts, Directory, Header, MachineFacts, MemoryFacts,
    MemoryFile, MemoryKind, Parent, Partial, Range, Records, coalesce,
};
use skerry_vmm_api::VmConfig;

const PAGE: u64 = 4096;
const SIZE: u64 = 4 << 20;

/// A machine with everything that a snapshot can have.
fn config(desk: &Desk) -> VmConfig {
    let at = |name: &str| desk.path().join(name);
    let config = json!({
        "cpus": { "boot_vcpus": 2 },
        "memory": { "size": SIZE },
        "payload": { "kernel": "/boot/vmlinux", "initramfs": "/boot/initrd", "cmdline": "console=hvc0 quiet" },
        "disks": [
            { "id": "root", "path": at("top.qcow2"), "backing": [format!("raw:{}", at("base.raw").display())] },
            { "id": "data", "path": at("data.qcow2"), "data_file": at("data.raw"), "readonly": true },
        ],
        "net": [{ "id": "uplink", "tap": "tap7", "mac": "02:00:00:00:00:07" }],
        "vsock": { "cid": 9, "socket": "/run/vm.vsock" },
    });
    serde_json::from_value(config).expect("a configuration")
}

const FILES: [&str; 4] = ["top.qcow2", "base.raw", "data.qcow2", "data.raw"];

fn header(desk: &Desk, name: &str, parent: Option<&str>) -> Header {
    let at = |name: &str| desk.path().join(name);
    Header {
        id: format!("id-of-{name}"),
        parent: parent.map(|p| Parent::new(&format!("id-of-{p}"), &at(p), &at(name))),
        disks_go_on: false,
        created: 1_795_426_550,
        monitor: "0.1.0".into(),
        machine: MachineFacts {
            arch: "x86_64".into(),
            cpus: 2,
            tsc_khz: 2_899_999,
        },
        cpu: CpuFacts {
            vendor: "GenuineIntel".into(),
            model: "Some model at 2.9 GHz".into(),
            cpuid: vec![CpuidLeaf(0, 0, [1, 2, 3, 4])],
        },
        devices: vec![DeviceFacts {
            id: "root".into(),
            kind: "blk".into(),
        }],
        config: config(desk),
        memory: MemoryFacts {
            kind: match parent {
                Some(_) => MemoryKind::Diff,
                None => MemoryKind::Full,
            },
            size: SIZE,
            data: 0,
        },
        records: Vec::new(),
    }
}

/// Takes a snapshot: pages, each full of a byte.
fn take(desk: &Desk, name: &str, mut header: Header, writes: &[(u64, u8)]) {
    let partial = Partial::create(&desk.path().join(name)).expect("a directory");
    let memory = partial.create_memory(header.memory.size).expect("memory");
    for (page, byte) in writes {
        let written = memory.write_all_at(&[*byte; PAGE as usize], page * PAGE);
        written.expect("a page");
    }
    let pages = writes.iter().map(|(page, _)| Range {
        start: page * PAGE,
        len: PAGE,
    });
    let ranges = coalesce(pages.collect());
    header.memory.data = ranges.iter().map(|r| r.len).sum();
    let mut records = Records::default();
    records.put("cpu", "0", 1, b"some state");
    let path = partial.directory().memory();
    MemoryFile::record(&mut records, &path, &memory, &ranges).expect("sums");
    partial.complete(records, header).expect("a snapshot");
}

/// A full snapshot and a diff on it, and the files of their disks.
fn desk() -> Desk {
    let desk = Desk::new();
    take(
        &desk,
        "base",
        header(&desk, "base", None),
        &[(0, 1), (1, 1)],
    );
    let diff = header(&desk, "diff", Some("base"));
    take(&desk, "diff", diff, &[(1, 2), (600, 2)]);
    for file in FILES {
        File::create(desk.path().join(file)).expect("a file");
    }
    desk
}

fn flip(desk: &Desk, file: &str, at: u64) {
    let path = desk.path().join(file);
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("a byte");
}

#[test]
fn inspect_says_what_it_is_of() {
    let desk = desk();
    let answer = desk.snapshot("inspect diff");
    let place = |name: &str| desk.path().join(name).display().to_string();
    let lines = [
        "snapshot: diff",
        "id: id-of-diff",
        "builds on: ../base (id id-of-base)",
        "taken: 2026-11-23 09:35:50 UTC",
        "monitor version: 0.1.0",
        "format version: 1",
        "machine: x86_64, 2 CPUs, 4 MiB of memory",
        "TSC: 2899.999 MHz",
        "CPU: GenuineIntel, Some model at 2.9 GHz",
        "memory: diff, 8 KiB of 4 MiB (8192 of 4194304 bytes)",
        "kernel: /boot/vmlinux",
        "initramfs: /boot/initrd",
        "command line: console=hvc0 quiet",
        "    root: blk",
        "    root",
        &format!("        {} (qcow2)", place("top.qcow2")),
        &format!("        {} (raw)", place("base.raw")),
        "    data (read only)",
        &format!(
            "        {} (qcow2, data in {})",
            place("data.qcow2"),
            place("data.raw")
        ),
        "    uplink: tap tap7, 02:00:00:00:00:07",
        "sockets: context id 9, /run/vm.vsock",
    ];
    for line in lines {
        assert!(
            answer.out.lines().any(|l| l == line),
            "{line}: {}",
            answer.out
        );
    }
    let rows: Vec<Vec<&str>> = answer
        .out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(
        rows.contains(&vec!["cpu", "0", "1", "10"]),
        "{}",
        answer.out
    );
    assert!(answer.err.is_empty());
    let full = desk.snapshot("inspect base");
    assert!(!full.out.contains("builds on"), "{}", full.out);
}

#[test]
fn inspect_answers_in_json() {
    let desk = desk();
    let answer = desk.snapshot("inspect diff --output json").json();
    assert_eq!(answer["directory"], "diff");
    assert_eq!(answer["format"], 1);
    let header = Directory::new(desk.path().join("diff")).header();
    let header = serde_json::to_value(header.expect("a header")).expect("JSON");
    for (name, value) in header.as_object().expect("an object") {
        assert_eq!(answer[name], *value, "{name}");
    }
}

#[test]
fn inspect_needs_only_the_header() {
    let desk = desk();
    let before = desk.snapshot("inspect diff").out;
    std::fs::remove_dir_all(desk.path().join("base")).expect("removed");
    std::fs::remove_file(desk.path().join("diff/memory")).expect("removed");
    // Nor the records that follow it.
    let state = desk.path().join("diff/state");
    let bytes = std::fs::read(&state).expect("a state");
    std::fs::write(&state, &bytes[..bytes.len() - 5]).expect("a state");
    assert_eq!(desk.snapshot("inspect diff").out, before);
}

#[test]
fn what_a_snapshot_says_stays_on_its_line() {
    let desk = Desk::new();
    let mut odd = header(&desk, "odd", None);
    odd.id = "\u{1b}[2Jgone\nmonitor version: 9".into();
    odd.created = u64::MAX;
    odd.config.payload.cmdline = Some("one\rtwo".into());
    odd.config.disks[0].path = "/a\nb".into();
    take(&desk, "odd", odd, &[(0, 1)]);
    let inspect = desk.snapshot("inspect odd");
    let verify = desk.try_snapshot("verify odd");
    assert_eq!(verify.code, 3);
    for text in [&inspect.out, &verify.out, &verify.err] {
        assert!(!text.contains(['\u{1b}', '\r']), "{text}");
    }
    let versions = inspect.out.lines().filter(|l| l.starts_with("monitor"));
    assert_eq!(versions.count(), 1);
    assert!(verify.err.contains("/a\\nb"), "{}", verify.err);
}

#[test]
fn what_is_no_snapshot_is_refused() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path().join("empty")).expect("a directory");
    for args in [
        "inspect nowhere",
        "inspect empty",
        "inspect empty --output json",
        "verify empty",
        "merge empty new",
        "merge empty",
        "inspect",
    ] {
        let answer = desk.try_snapshot(args);
        assert_eq!(answer.code, 1, "{args}");
        assert!(answer.out.is_empty() && !answer.err.is_empty(), "{args}");
        assert!(!desk.exists("new") && !desk.exists("new.partial"), "{args}");
    }
}

#[test]
fn verify_says_what_it_checked() {
    let desk = desk();
    let answer = desk.snapshot("verify diff");
    let lines: Vec<&str> = answer.out.lines().collect();
    let folder = desk.path().canonicalize().expect("a path");
    assert_eq!(lines.len(), 4, "{}", answer.out);
    for (line, name, bytes) in [(lines[0], "base", CHUNK), (lines[1], "diff", 2 * CHUNK)] {
        let start = format!("{}: 3 records (", folder.join(name).display());
        let end = format!("of memory ({bytes} bytes)");
        assert!(line.starts_with(&start) && line.ends_with(&end), "{line}");
    }
    assert_eq!(lines[2..], ["files of disks: 4", "ok"]);
    assert!(answer.err.is_empty(), "{}", answer.err);
}

#[test]
fn verify_finds_damage_in_every_file() {
    for (file, at, what) in [
        ("diff/state", 40, "checksum of its header"),
        ("diff/memory", PAGE + 7, "from 0x0 on"),
        ("diff/memory", 600 * PAGE, "from 0x200000 on"),
        ("base/state", 40, "checksum of its header"),
        ("base/memory", 3, "from 0x0 on"),
        ("base/memory", 900 * PAGE, "data at 0x384000"),
    ] {
        let desk = desk();
        flip(&desk, file, at);
        let answer = desk.try_snapshot("verify diff");
        assert_eq!(answer.code, 1, "{file} {at}");
        let named = answer.err.contains(file) && answer.err.contains("damaged");
        assert!(named && answer.err.contains(what), "{}", answer.err);
        assert!(!answer.out.contains("ok"), "{}", answer.out);
    }
}

#[test]
fn verify_finds_a_damaged_record() {
    let desk = desk();
    let state = desk.path().join("diff/state");
    let bytes = std::fs::read(&state).expect("a state");
    let at = bytes.windows(10).position(|w| w == b"some state");
    flip(&desk, "diff/state", at.expect("the record") as u64);
    let answer = desk.try_snapshot("verify diff");
    assert_eq!(answer.code, 1);
    assert!(answer.err.contains("cpu `0`"), "{}", answer.err);
}

#[test]
fn verify_names_missing_parents_and_memory() {
    for (missing, what) in [("base", "builds on"), ("base/memory", "base/memory")] {
        let desk = desk();
        let aside = desk.path().join("aside");
        std::fs::rename(desk.path().join(missing), aside).expect("moved");
        let answer = desk.try_snapshot("verify diff");
        assert_eq!(answer.code, 1);
        assert!(answer.err.contains(what), "{}", answer.err);
    }
}

#[test]
fn verify_reports_every_missing_layer() {
    let desk = desk();
    for missing in ["base.raw", "data.raw"] {
        std::fs::remove_file(desk.path().join(missing)).expect("removed");
    }
    std::fs::remove_file(desk.path().join("top.qcow2")).expect("removed");
    std::fs::create_dir(desk.path().join("top.qcow2")).expect("a directory");
    let answer = desk.try_snapshot("verify diff");
    assert_eq!(answer.code, 3, "{}", answer.err);
    for (disk, file, why) in [
        ("root", "top.qcow2", "neither a file"),
        ("root", "base.raw", "cannot be found"),
        ("data", "data.raw", "cannot be found"),
    ] {
        let start = format!("skerry: disk `{disk}` needs {}", desk.path().display());
        let found =
            |line: &str| line.starts_with(&start) && line.contains(file) && line.contains(why);
        assert!(answer.err.lines().any(found), "{file}: {}", answer.err);
    }
    assert!(!answer.err.contains("data.qcow2"), "{}", answer.err);
    assert!(answer.out.contains("files of disks: 1"), "{}", answer.out);
    assert!(!answer.out.lines().any(|l| l == "ok"), "{}", answer.out);
}

#[test]
fn merge_makes_one_that_stands_alone() {
    let desk = desk();
    let answer = desk.snapshot("merge diff whole");
    let sizes = "12 KiB of 4 MiB of memory (12288 of 4194304 bytes)";
    assert!(answer.out.contains(sizes), "{}", answer.out);
    for name in ["base", "diff"] {
        std::fs::remove_dir_all(desk.path().join(name)).expect("removed");
    }
    desk.snapshot("verify whole");
    let header = desk.snapshot("inspect whole --output json").json();
    assert_eq!(header["memory"]["kind"], "full");
    assert_eq!(header["id"], "id-of-diff");
    assert_eq!(header.get("parent"), None);
    let memory = std::fs::read(desk.path().join("whole/memory")).expect("memory");
    let firsts = [0, 1, 2, 600].map(|page| memory[page * PAGE as usize]);
    assert_eq!(firsts, [1, 2, 0, 2]);
}

#[test]
fn a_merge_that_fails_leaves_nothing() {
    let desk = desk();
    flip(&desk, "base/memory", 3);
    let answer = desk.try_snapshot("merge diff whole");
    assert_eq!(answer.code, 1);
    assert!(answer.err.contains("damaged"), "{}", answer.err);
    assert!(!desk.exists("whole") && !desk.exists("whole.partial"));
    let answer = desk.try_snapshot("merge diff base");
    assert_eq!(answer.code, 1);
    assert!(answer.err.contains("there already"), "{}", answer.err);
    assert!(!desk.exists("base.partial"));
}

/// Waits for a condition.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A snapshot with much memory, all of it zero: it takes long to read, and no place.
fn large(path: &Path, desk: &Desk) {
    let mut header = header(desk, "large", None);
    (header.memory.size, header.memory.data) = (1 << 30, 1 << 30);
    let partial = Partial::create(path).expect("a directory");
    let memory = partial.create_memory(header.memory.size).expect("memory");
    let mut records = Records::default();
    let whole = Range {
        start: 0,
        len: header.memory.size,
    };
    let place = partial.directory().memory();
    MemoryFile::record(&mut records, &place, &memory, &[whole]).expect("sums");
    partial.complete(records, header).expect("a snapshot");
}

#[test]
fn an_interrupted_merge_leaves_nothing() {
    let desk = Desk::new();
    large(&desk.path().join("large"), &desk);
    let child = Command::new(env!("CARGO_BIN_EXE_skerry"))
        .args(["snapshot", "merge", "large", "whole"])
        .current_dir(desk.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("skerry");
    wait_for("the merge", || desk.exists("whole.partial"));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
    let ended = child.wait_with_output().expect("an end");
    assert_eq!(ended.status.code(), Some(1));
    let message = String::from_utf8_lossy(&ended.stderr);
    assert!(message.contains("cancelled"), "{message}");
    assert!(!desk.exists("whole") && !desk.exists("whole.partial"));
}
