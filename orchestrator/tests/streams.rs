//! Snapshots that go from one command to another: over sockets, and as stored streams.

mod desk;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use desk::Desk;
use skerry_snapshot::{
    CpuFacts, DeviceFacts, Header, MachineFacts, MemoryFacts, MemoryFile, MemoryKind, Parent,
    Partial, Range, Records,
};
use skerry_vmm_api::VmConfig;

const PAGE: u64 = 4096;
const PAGES: u64 = 1024;

/// Takes a snapshot of a few pages.
fn take(desk: &Desk, name: &str, parent: Option<&str>) {
    let target = desk.path().join(name);
    let kind = match parent {
        Some(_) => MemoryKind::Diff,
        None => MemoryKind::Full,
    };
    let header = Header {
        id: format!("id-of-{name}"),
        parent: parent.map(|p| Parent::new(&format!("id-of-{p}"), &desk.path().join(p), &target)),
        disks_go_on: false,
        created: 0,
        monitor: "0.1.0".into(),
        machine: MachineFacts {
            arch: "x86_64".into(),
            cpus: 1,
            tsc_khz: 0,
        },
        cpu: CpuFacts {
            vendor: "A vendor".into(),
            model: "A model".into(),
            cpuid: Vec::new(),
        },
        devices: Vec::<DeviceFacts>::new(),
        config: VmConfig::default(),
        memory: MemoryFacts {
            kind,
            size: PAGES * PAGE,
            data: 3 * PAGE,
        },
        records: Vec::new(),
    };
    let partial = Partial::create(&target).expect("a directory");
    let memory = partial.create_memory(PAGES * PAGE).expect("memory");
    let ranges = [(1, 2), (700, 1)].map(|(page, pages)| Range {
        start: page * PAGE,
        len: pages * PAGE,
    });
    for range in ranges {
        let bytes = vec![name.as_bytes()[0]; range.len as usize];
        memory.write_all_at(&bytes, range.start).expect("pages");
    }
    let mut records = Records::default();
    records.put("cpu", "0", 1, b"some state");
    let path = partial.directory().memory();
    MemoryFile::record(&mut records, &path, &memory, &ranges).expect("sums");
    partial.complete(records, header).expect("a snapshot");
}

fn same(desk: &Desk, one: &str, other: &str) {
    for file in ["state", "memory"] {
        let read = |name: &str| fs::read(desk.path().join(name).join(file)).expect("a file");
        assert!(read(one) == read(other), "{file} of {one} and {other}");
    }
}

/// `skerry snapshot …`, started.
fn start(desk: &Desk, words: &str, input: Stdio, output: Stdio) -> Child {
    Command::new(env!("CARGO_BIN_EXE_skerry"))
        .args(["snapshot"].into_iter().chain(words.split(' ')))
        .current_dir(desk.path())
        .stdin(input)
        .stdout(output)
        .spawn()
        .expect("skerry starts")
}

fn until(desk: &Desk, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !desk.exists(name) {
        assert!(Instant::now() < deadline, "no {name}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn one_is_sent_over_a_socket() {
    let desk = Desk::new();
    take(&desk, "one", None);
    let words = "receive --from unix:sock two";
    let receiver = start(&desk, words, Stdio::null(), Stdio::piped());
    until(&desk, "sock");
    desk.snapshot("send one --to unix:sock");
    let output = receiver.wait_with_output().expect("its output");
    assert!(output.status.success());
    assert_eq!(output.stdout, b"id-of-one\n");
    assert!(!desk.exists("sock"));
    desk.snapshot("verify two");
    same(&desk, "one", "two");
    // Who sends hears why it is not wanted.
    let receiver = start(&desk, words, Stdio::null(), Stdio::null());
    until(&desk, "sock");
    let refused = desk.try_snapshot("send one --to unix:sock");
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains("two is there already"),
        "{}",
        refused.err
    );
    let output = receiver.wait_with_output().expect("its output");
    assert!(!output.status.success());
    let nobody = desk.try_snapshot("send one --to unix:sock");
    assert!(
        nobody.err.contains("cannot reach unix:sock"),
        "{}",
        nobody.err
    );
}

/// Stores a stream in a file.
fn store(desk: &Desk, name: &str, file: &str) {
    let output = File::create(desk.path().join(file)).expect("a file");
    let words = format!("send {name} --to -");
    let status = start(desk, &words, Stdio::null(), output.into()).wait();
    assert!(status.expect("its end").success());
}

/// Takes a stored stream in; whether that went well.
fn load(desk: &Desk, file: &str, words: &str) -> bool {
    let input = File::open(desk.path().join(file)).expect("a file");
    let words = format!("receive --from - {words}");
    let status = start(desk, &words, input.into(), Stdio::null()).wait();
    status.expect("its end").success()
}

#[test]
fn streams_are_stored_and_become_what_they_were() {
    let desk = Desk::new();
    take(&desk, "one", None);
    take(&desk, "diff", Some("one"));
    store(&desk, "one", "one.stream");
    store(&desk, "diff", "diff.stream");
    assert!(load(&desk, "one.stream", "two"));
    same(&desk, "one", "two");
    assert!(!load(&desk, "diff.stream", "again"), "it has no parent");
    assert!(!load(&desk, "diff.stream", "again --parent diff"));
    assert!(load(&desk, "diff.stream", "again --parent two"));
    desk.snapshot("verify again");
    // What is cut, and what has something behind it, becomes none.
    let whole = fs::read(desk.path().join("one.stream")).expect("a stream");
    for bytes in [&whole[..whole.len() - 1], &[&whole[..], b"x"].concat()[..]] {
        fs::write(desk.path().join("bad.stream"), bytes).expect("a file");
        assert!(!load(&desk, "bad.stream", "none"));
        assert!(!desk.exists("none") && !desk.exists("none.partial"));
    }
}

#[test]
fn damage_is_not_sent() {
    let desk = Desk::new();
    take(&desk, "one", None);
    let path = desk.path().join("one/memory");
    let memory = File::options().write(true).open(path).expect("a file");
    memory.write_all_at(b"x", PAGE).expect("a byte");
    let refused = desk.try_snapshot("send one --to unix:nobody");
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("checksum"), "{}", refused.err);
}

#[test]
fn over_tcp_something_secures_it() {
    let desk = Desk::new();
    take(&desk, "one", None);
    for command in [
        "send one --to tcp:127.0.0.1:9",
        "receive --from tcp:127.0.0.1:0 two",
    ] {
        let refused = desk.try_snapshot(command);
        assert_eq!(refused.code, 1);
        assert!(refused.err.contains("--tls-dir"), "{}", refused.err);
    }
    let wrong = desk.try_snapshot("send one --to 127.0.0.1");
    assert_ne!(wrong.code, 0);
    assert!(
        wrong.err.contains("unix:") && wrong.err.contains("- for a pipe"),
        "{}",
        wrong.err
    );
}
