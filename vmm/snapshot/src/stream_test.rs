//! Streams: whole ones become the snapshot that was sent, and anything else becomes none.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::example::header;
use crate::{Chain, Directory, Header, MemoryFacts, Parent, Records};

const SIZE: u64 = 1 << 20;

/// A page full of a byte.
fn page(byte: u8) -> Vec<u8> {
    vec![byte; PAGE]
}

fn full() -> Header {
    Header {
        parent: None,
        memory: MemoryFacts {
            kind: MemoryKind::Full,
            size: SIZE,
            data: 0,
        },
        ..header()
    }
}

fn state(header: Header) -> Vec<u8> {
    let mut records = Records::default();
    records.put("cpu", "0", 1, b"some state");
    records.encode(header).unwrap()
}

/// A small stream of a snapshot: a few pages, one of which comes twice.
fn stream(header: &Header) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::begin(&mut bytes, &Begin::of(header)).unwrap();
    writer.pages(0, &page(1)).unwrap();
    writer.pages(5 * 4096, &page(2)).unwrap();
    writer.pages(0, &page(3)).unwrap();
    writer.end(&state(header.clone())).unwrap();
    bytes
}

/// Takes a stream in; what came of it.
fn take(bytes: &[u8], target: &Path, parent: Option<&Path>) -> Result<String, SnapshotError> {
    let mut incoming = Incoming::open(bytes)?;
    let mut arriving = Arriving::make(&incoming.begin().clone(), target, parent)?;
    incoming.receive(&mut arriving, &())?;
    incoming.finish()?;
    arriving.complete()
}

/// A folder, and a place in it for a snapshot.
fn place() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let target = folder.path().join("snap");
    (folder, target)
}

fn left(folder: &TempDir) -> usize {
    fs::read_dir(folder.path()).unwrap().count()
}

/// Panics unless it is refused and leaves nothing; why.
fn refused(bytes: &[u8]) -> String {
    let (folder, target) = place();
    let why = take(bytes, &target, None).expect_err("a refusal");
    assert_eq!(left(&folder), 0, "{why}");
    why.to_string()
}

#[test]
fn a_stream_becomes_a_snapshot() {
    let (_folder, target) = place();
    let id = take(&stream(&full()), &target, None).unwrap();
    assert_eq!(id, full().id);
    let chain = Chain::open(&Directory::new(&target)).unwrap();
    chain.verify().unwrap();
    assert_eq!(chain.headers[0].memory.data, 8192);
    let mut first = page(0);
    chain.memory[0].file().read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, page(3), "what came last counts");
}

#[test]
fn a_kept_snapshot_is_the_same_at_the_other_end() {
    let (folder, first) = place();
    take(&stream(&full()), &first, None).unwrap();
    let kept = KeptSnapshot::open(&Directory::new(&first)).unwrap();
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::begin(&mut bytes, &kept.begin()).unwrap();
    kept.verify(&()).unwrap();
    kept.write(&mut writer, &()).unwrap();
    let second = folder.path().join("second");
    take(&bytes, &second, None).unwrap();
    for file in ["state", "memory"] {
        let [first, second] = [&first, &second].map(|d| fs::read(d.join(file)).unwrap());
        assert!(first == second, "{file}");
    }
}

/// The smallest stream with pages.
fn small() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::begin(&mut bytes, &Begin::of(&full())).unwrap();
    writer.pages(4096, &page(1)).unwrap();
    writer.end(&state(full())).unwrap();
    bytes
}

#[test]
fn every_cut_is_refused() {
    let bytes = small();
    for len in 0..bytes.len() {
        let why = refused(&bytes[..len]);
        assert!(why.contains("ends early"), "{len}: {why}");
    }
}

#[test]
fn every_flipped_byte_is_refused() {
    let mut bytes = small();
    for at in 0..bytes.len() {
        let bit = 1 << (at % 8);
        bytes[at] ^= bit;
        refused(&bytes);
        bytes[at] ^= bit;
    }
}

#[test]
fn what_follows_the_end_is_refused() {
    let mut bytes = stream(&full());
    bytes.push(0);
    assert!(refused(&bytes).contains("follows"));
}

/// A stream's beginning, and this behind it.
fn begun(begin: &str, rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(head(BEGIN, begin.len()));
    bytes.extend(begin.as_bytes());
    bytes.extend(rest);
    bytes
}

#[test]
fn hostile_messages_are_refused_and_nothing_is_set_aside_for_them() {
    let good = format!(r#"{{"id":"i","memory":{SIZE}}}"#);
    let pages = |start: u64, len: usize| {
        let mut bytes = Vec::from(head(PAGES, 8 + len));
        bytes.extend(start.to_le_bytes());
        bytes.extend(vec![0; len]);
        bytes
    };
    let long = |kind| {
        let mut bytes = Vec::from(head(kind, u32::MAX as usize));
        bytes.extend([0; 100]);
        bytes
    };
    for rest in [
        long(PAGES),
        long(STATE),
        long(END),
        head(PAGES, 0).to_vec(),
        head(PAGES, 8).to_vec(),
        pages(0, 100),
        pages(1, PAGE),
        pages(0, MAX_PAGES + PAGE),
        pages(SIZE, PAGE),
        pages(SIZE - PAGE as u64, 2 * PAGE),
        pages(u64::MAX - 4095, PAGE),
        head(STATE, MAX_STATE).to_vec(),
        head(STATE, 0).to_vec(),
        head(END, 32).to_vec(),
        head(BEGIN, 0).to_vec(),
        head(200, 0).to_vec(),
    ] {
        refused(&begun(&good, &rest));
    }
    for begin in [
        "",
        "{}",
        r#"{"id":"i","memory":0}"#,
        r#"{"id":"i","memory":4095}"#,
        r#"{"id":"i","memory":18446744073709547520}"#,
        r#"{"id":"i","memory":4096,"more":1}"#,
        &"x".repeat(MAX_TEXT + 1),
    ] {
        refused(&begun(begin, &[]));
    }
    let mut other = stream(&full());
    other[8] = 2;
    assert!(refused(&other).contains("version 2"));
}

#[test]
fn a_state_that_is_not_the_beginnings_is_refused() {
    let with = |begin: &Header, header: Header| {
        let mut bytes = Vec::new();
        let mut writer = StreamWriter::begin(&mut bytes, &Begin::of(begin)).unwrap();
        writer.end(&state(header)).unwrap();
        bytes
    };
    let mut other = full();
    other.id = "another".into();
    assert!(refused(&with(&full(), other)).contains("another snapshot"));
    let mut smaller = full();
    smaller.memory.size = 4096;
    assert!(refused(&with(&full(), smaller)).contains("another snapshot"));
    assert!(refused(&with(&full(), header())).contains("another snapshot"));
    let orphan = Header {
        parent: None,
        ..header()
    };
    assert!(refused(&with(&full(), orphan)).contains("another snapshot"));
    // Whoever wrote the memory says what is in it.
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::begin(&mut bytes, &Begin::of(&full())).unwrap();
    let mut records = Records::default();
    records.put("memory-ranges", "", 1, b"");
    writer.end(&records.encode(full()).unwrap()).unwrap();
    assert!(refused(&bytes).contains("the receiver's"));
}

#[test]
fn a_diff_needs_what_it_builds_on() {
    let (folder, base) = place();
    let below = Header {
        id: header().parent.unwrap().id,
        ..full()
    };
    take(&stream(&below), &base, None).unwrap();
    let diff = Header {
        parent: Some(Parent {
            id: below.id.clone(),
            path: "/somewhere/else".into(),
        }),
        ..header()
    };
    let bytes = stream(&diff);
    let target = folder.path().join("diff");
    let why = take(&bytes, &target, None).unwrap_err().to_string();
    assert!(why.contains(&below.id) && why.contains("--parent"), "{why}");
    let wrong = folder.path().join("wrong");
    take(&stream(&full()), &wrong, None).unwrap();
    let why = take(&bytes, &target, Some(&wrong)).unwrap_err().to_string();
    assert!(why.contains(&full().id) && why.contains(&below.id), "{why}");
    take(&bytes, &target, Some(&folder.path().join("none"))).expect_err("nothing is there");
    take(&bytes, &target, Some(&base)).unwrap();
    let chain = Chain::open(&Directory::new(&target)).unwrap();
    chain.verify().unwrap();
    assert_eq!(chain.memory.len(), 2);
    // Both can be moved together.
    assert_eq!(
        chain.headers[1].parent.clone().unwrap().path,
        Path::new("../snap")
    );
}

#[test]
fn answers_arrive_as_they_were_sent() {
    let long = "ä".repeat(MAX_TEXT);
    for answer in [
        Answer::Accepted,
        Answer::Working,
        Answer::Done("an id".into()),
        Answer::Refused("no room".into()),
        Answer::Refused(long),
    ] {
        let mut bytes = Vec::new();
        answer.write(&mut bytes).unwrap();
        let heard = Answer::read(&mut bytes.as_slice()).unwrap();
        match (&answer, &heard) {
            (Answer::Refused(said), Answer::Refused(heard)) => assert!(said.starts_with(heard)),
            _ => assert_eq!(answer, heard),
        }
    }
    for bytes in [
        head(ACCEPTED, 1).to_vec(),
        head(DONE, MAX_TEXT + 1).to_vec(),
        head(3, 0).to_vec(),
        Vec::new(),
    ] {
        Answer::read(&mut bytes.as_slice()).expect_err("no answer");
    }
}
