//! Tests of the state file.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::example::header;

fn records() -> Records {
    let mut records = Records::default();
    records.put("cpu", "0", 1, b"the first");
    records.put("cpu", "1", 3, b"");
    records.put_value("clock", "", 2, &vec![1, 2, 3]);
    records
}

fn encoded() -> Vec<u8> {
    records().encode(header()).unwrap()
}

fn decode(bytes: &[u8]) -> Result<State, SnapshotError> {
    State::from_reader(&mut &bytes[..], Path::new("a state"))
}

/// A state file around any header, with a checksum that is right.
fn around(version: u32, header: &[u8], records: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(MAGIC);
    bytes.extend(version.to_le_bytes());
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(header);
    bytes.extend(Sum::of(&bytes).0);
    bytes.extend(records);
    bytes
}

fn message(result: Result<State, SnapshotError>) -> String {
    result.err().expect("a refusal").to_string()
}

#[test]
fn what_is_put_is_taken() {
    let mut state = decode(&encoded()).unwrap();
    assert_eq!(state.take("cpu", "1"), Some((3, &b""[..])));
    assert_eq!(state.take("cpu", "1"), None);
    assert_eq!(state.take("cpu", "0"), Some((1, &b"the first"[..])));
    let clock: Vec<u32> = state.take_value("clock", "", 2).unwrap();
    assert_eq!(clock, [1, 2, 3]);
    state.finish().unwrap();
}

#[test]
fn the_header_can_be_read_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state");
    records().write(&path, header()).unwrap();
    // What follows it does not matter.
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 10]).unwrap();
    let (format, found) = State::describe(&path).unwrap();
    assert_eq!(format, FORMAT);
    let names: Vec<_> = found
        .records
        .iter()
        .map(|r| (r.kind.as_str(), r.len))
        .collect();
    assert_eq!(names, [("cpu", 9), ("cpu", 0), ("clock", 7)]);
    let wanted = Header {
        records: found.records.clone(),
        ..header()
    };
    let json = |header: &Header| serde_json::to_value(header).unwrap();
    assert_eq!(json(&found), json(&wanted));
    assert_eq!(json(&State::read_header(&path).unwrap()), json(&wanted));
    State::read(&path).err().expect("its records are cut off");
}

#[test]
fn a_state_file_is_never_overwritten() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state");
    std::fs::write(&path, b"mine").unwrap();
    records().write(&path, header()).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

#[test]
fn every_flipped_bit_is_found() {
    let mut bytes = encoded();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(decode(&bytes).is_err(), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
    decode(&bytes).unwrap();
}

#[test]
fn every_overwritten_byte_is_found() {
    let bytes = encoded();
    for at in 0..bytes.len() {
        for value in [0, 0xff, bytes[at].wrapping_add(1)] {
            let mut bytes = bytes.clone();
            if std::mem::replace(&mut bytes[at], value) != value {
                assert!(decode(&bytes).is_err(), "{value} as byte {at}");
            }
        }
    }
}

#[test]
fn every_truncation_is_found() {
    let bytes = encoded();
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn what_follows_the_last_record_is_refused() {
    let mut bytes = encoded();
    bytes.push(0);
    assert!(message(decode(&bytes)).contains("something follows its last record"));
}

#[test]
fn other_versions_are_refused_by_name() {
    let json = serde_json::to_vec(&header()).unwrap();
    for (version, advice) in [
        (FORMAT + 1, "it is newer"),
        (u32::MAX, "it is newer"),
        (OLDEST_FORMAT - 1, "it is older"),
    ] {
        let text = message(decode(&around(version, &json, &[])));
        let found = format!("format version {version},");
        let read = format!("reads {OLDEST_FORMAT} to {FORMAT}");
        for part in [advice, &found, &read] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn an_unknown_field_is_refused_by_name() {
    let mut json = serde_json::to_value(header()).unwrap();
    for place in [
        "",
        "/parent",
        "/machine",
        "/cpu",
        "/devices/0",
        "/config",
        "/memory",
    ] {
        let mut json = json.clone();
        json.pointer_mut(place).unwrap()["novelty"] = true.into();
        let text = message(decode(&around(FORMAT, json.to_string().as_bytes(), &[])));
        assert!(text.contains("novelty"), "{place}: {text}");
    }
    json["records"] = serde_json::json!([{
        "kind": "cpu", "id": "0", "version": 1, "len": 0, "sum": Sum::of(b""), "novelty": 1,
    }]);
    let text = message(decode(&around(FORMAT, json.to_string().as_bytes(), &[])));
    assert!(text.contains("novelty"), "{text}");
}

#[test]
fn what_is_no_snapshot_is_called_so() {
    for bytes in [
        &b""[..],
        b"SKERRYVM",
        b"SKERRYVN\0\0\0\0\0\0\0\0",
        &[0; 100],
    ] {
        let refused = decode(bytes).err().unwrap();
        assert!(
            matches!(refused, SnapshotError::Foreign { .. }),
            "{refused}"
        );
    }
}

#[test]
fn only_a_regular_file_is_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state");
    let foreign = |path: &Path| {
        let refused = State::read(path).err().unwrap();
        assert!(
            matches!(refused, SnapshotError::Foreign { .. }),
            "{refused}"
        );
    };
    foreign(&path);
    foreign(&path.join("state"));
    foreign(folder.path());
    // Nobody writes to it: whoever waited for that would wait forever.
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
    foreign(&path);
}

#[test]
fn a_record_that_nobody_takes_is_an_error() {
    let mut state = decode(&encoded()).unwrap();
    state.take("cpu", "0");
    state.take("clock", "");
    let text = state.finish().unwrap_err().to_string();
    assert!(text.contains("cpu `1`"), "{text}");
    state.take("cpu", "1");
    state.finish().unwrap();
}

#[test]
fn two_records_of_a_name_are_refused() {
    let mut records = records();
    records.put("cpu", "0", 2, b"another");
    let text = message(decode(&records.encode(header()).unwrap()));
    assert!(text.contains("cpu `0` twice"), "{text}");
}

#[test]
fn a_value_must_be_there_in_its_version() {
    let mut state = decode(&encoded()).unwrap();
    let mut refusal = |kind, id, version| {
        let taken = state.take_value::<Vec<u32>>(kind, id, version);
        taken.unwrap_err().to_string()
    };
    assert!(refusal("cpu", "7", 1).contains("no cpu `7`"));
    let text = refusal("clock", "", 5);
    assert!(
        text.contains("version 2") && text.contains("knows 5"),
        "{text}"
    );
    assert!(refusal("cpu", "0", 1).contains("cannot be read"));
}

#[test]
fn what_could_not_be_read_again_is_not_written() {
    let odd = Path::new(OsStr::from_bytes(b"/no/\xfftext"));
    let mut nowhere = header();
    nowhere.config.payload.kernel = Some(odd.to_owned());
    let mut large = header();
    large.id = "0".repeat(MAX_HEADER as usize);
    let mut odd_record = records();
    odd_record.put_value("odd", "", 1, &odd);
    for (records, header) in [
        (records(), nowhere),
        (records(), large),
        (odd_record, header()),
    ] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("state");
        let refused = records.write(&path, header).unwrap_err();
        assert!(
            matches!(refused, SnapshotError::Unwritable { .. }),
            "{refused}"
        );
        assert!(!path.exists());
    }
}

fn record() -> impl Strategy<Value = Record> {
    let len = prop_oneof![0..20u64, any::<u64>(), MAX_STATE - 2..MAX_STATE + 2];
    let sum = prop_oneof![Just(Sum::of(b"")), any::<[u8; 32]>().prop_map(Sum)];
    (".{0,8}", ".{0,4}", any::<u32>(), len, sum).prop_map(|(kind, id, version, len, sum)| Record {
        kind,
        id,
        version,
        len,
        sum,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_behind_the_magic_are_refused(
        version in 0..3u32,
        len in prop_oneof![0..300u32, any::<u32>()],
        rest in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = Vec::from(MAGIC);
        bytes.extend(version.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(rest);
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn an_arbitrary_header_with_its_checksum_is_refused(json in ".{0,200}") {
        prop_assert!(decode(&around(FORMAT, json.as_bytes(), &[])).is_err());
    }

    #[test]
    fn lists_of_records_are_only_believed_if_they_are_true(
        list in proptest::collection::vec(record(), 1..6),
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let header = Header { records: list, ..header() };
        let file = around(FORMAT, &serde_json::to_vec(&header).unwrap(), &bytes);
        if let Ok(state) = decode(&file) {
            let sum: u64 = state.header().records.iter().map(|r| r.len).sum();
            prop_assert_eq!(sum, bytes.len() as u64);
        }
    }

    #[test]
    fn records_come_back(
        list in proptest::collection::btree_map(
            ("[a-z]{1,6}", ".{0,6}"),
            (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..50)),
            0..10,
        ),
    ) {
        let mut records = Records::default();
        for ((kind, id), (version, bytes)) in &list {
            records.put(kind, id, *version, bytes);
        }
        let mut state = decode(&records.encode(header()).unwrap()).unwrap();
        for ((kind, id), (version, bytes)) in list.iter().rev() {
            prop_assert_eq!(state.take(kind, id), Some((*version, &bytes[..])));
        }
        state.finish().unwrap();
    }
}
