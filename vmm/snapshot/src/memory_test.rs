//! Tests of the memory file.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::example::header;
use crate::{CHUNK, Header};

fn pages(start: u64, len: u64) -> Range {
    Range {
        start: start * PAGE,
        len: len * PAGE,
    }
}

/// A memory file that is made, looked at, and damaged.
struct Subject {
    folder: TempDir,
    facts: MemoryFacts,
    ranges: Vec<Range>,
}

impl Subject {
    /// Its ranges are full of sevens.
    fn new(kind: MemoryKind, size: u64, ranges: &[Range]) -> Subject {
        let subject = Subject {
            folder: TempDir::new().unwrap(),
            facts: MemoryFacts {
                kind,
                size,
                data: ranges.iter().map(|r| r.len).sum(),
            },
            ranges: ranges.to_vec(),
        };
        subject.file().set_len(size).unwrap();
        for range in ranges {
            subject.write(range.start, &vec![7; range.len as usize]);
        }
        subject
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("memory")
    }

    fn file(&self) -> File {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.open(self.path()).unwrap()
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.file().write_all_at(bytes, at).unwrap();
    }

    /// What is said of the file as it is now.
    fn records(&self) -> Records {
        let mut records = Records::default();
        MemoryFile::record(&mut records, &self.path(), &self.file(), &self.ranges).unwrap();
        records
    }

    fn open(&self, records: Records) -> Result<MemoryFile, SnapshotError> {
        let header = Header {
            memory: self.facts.clone(),
            ..header()
        };
        let bytes = records.encode(header).unwrap();
        let mut state = State::from_reader(&mut &bytes[..], Path::new("state")).unwrap();
        let opened = MemoryFile::open(&mut state, &self.path());
        if opened.is_ok() {
            state.finish().unwrap();
        }
        opened
    }

    /// Of a file that was changed after its records were made.
    fn verify_after(&self, change: impl FnOnce()) -> Result<(), SnapshotError> {
        let memory = self.open(self.records()).unwrap();
        change();
        memory.verify()
    }
}

fn message<T>(result: Result<T, SnapshotError>) -> String {
    result.err().expect("a refusal").to_string()
}

/// Three chunks and a part of one, with data in the first, the second and the last.
fn subject(kind: MemoryKind) -> Subject {
    let ranges = [pages(1, 2), pages(255, 3), pages(769, 1)];
    Subject::new(kind, 3 * CHUNK + 8 * PAGE, &ranges)
}

#[test]
fn what_was_recorded_is_opened_and_sound() {
    for kind in [MemoryKind::Full, MemoryKind::Diff] {
        let subject = subject(kind);
        let memory = subject.open(subject.records()).unwrap();
        assert_eq!(memory.ranges(), subject.ranges);
        assert_eq!(memory.path(), subject.path());
        assert_eq!(memory.summed(), 2 * CHUNK + 8 * PAGE);
        memory.verify().unwrap();
    }
}

#[test]
fn memory_without_data_is_sound() {
    let subject = Subject::new(MemoryKind::Full, CHUNK, &[]);
    let memory = subject.open(subject.records()).unwrap();
    assert_eq!(memory.summed(), 0);
    memory.verify().unwrap();
}

#[test]
fn a_flipped_byte_is_found_with_its_chunk() {
    for (page, chunk) in [(1, 0), (2, 0), (255, 0), (256, 1), (257, 1), (769, 3)] {
        for offset in [0, PAGE - 1] {
            let subject = subject(MemoryKind::Diff);
            let damaged = subject.verify_after(|| subject.write(page * PAGE + offset, &[6]));
            let text = message(damaged);
            let place = format!("from {:#x} on", chunk * CHUNK);
            assert!(text.contains(&place), "page {page}: {text}");
        }
    }
}

#[test]
fn what_no_range_of_a_full_snapshot_lists_must_be_zero() {
    // Before the first range, between two in chunks of their own, behind the last.
    let ranges = [pages(600, 1), pages(1500, 1)];
    for at in [0, 17, 255 * PAGE, 1000 * PAGE, 2047 * PAGE + PAGE - 1] {
        let make = |kind| Subject::new(kind, 2048 * PAGE, &ranges);
        let subject = make(MemoryKind::Full);
        let text = message(subject.verify_after(|| subject.write(at, &[1])));
        assert!(text.contains(&format!("data at {at:#x}")), "{text}");
        // Nobody looks there in a diff.
        let subject = make(MemoryKind::Diff);
        subject.verify_after(|| subject.write(at, &[1])).unwrap();
    }
}

#[test]
fn data_beside_a_range_is_found_though_its_sum_is_right() {
    let subject = Subject::new(MemoryKind::Full, CHUNK, &[pages(3, 2)]);
    subject.write(5 * PAGE, &[1]);
    let memory = subject.open(subject.records()).unwrap();
    assert!(message(memory.verify()).contains("data at 0x5000"));
}

#[test]
fn zeroes_that_were_written_are_as_good_as_holes() {
    let subject = Subject::new(MemoryKind::Full, 2 * CHUNK, &[pages(3, 2)]);
    let zeroes = vec![0; CHUNK as usize];
    subject
        .verify_after(|| subject.write(CHUNK, &zeroes))
        .unwrap();
}

#[test]
fn holes_are_not_read() {
    // Reading this would take hours.
    let size = 1 << 40;
    let ranges = [pages(1, 1), pages((size / PAGE) - 1, 1)];
    let subject = Subject::new(MemoryKind::Full, size, &ranges);
    let memory = subject.open(subject.records()).unwrap();
    assert_eq!(memory.summed(), 2 * CHUNK);
    memory.verify().unwrap();
}

#[test]
fn a_file_of_another_size_is_refused() {
    let subject = subject(MemoryKind::Full);
    for size in [0, PAGE, subject.facts.size - 1, subject.facts.size + PAGE] {
        let records = subject.records();
        subject.file().set_len(size).unwrap();
        let text = message(subject.open(records));
        let (found, wanted) = (size, subject.facts.size);
        let sizes = format!("it has {found} bytes instead of {wanted}");
        assert!(text.contains(&sizes), "{text}");
        subject.file().set_len(subject.facts.size).unwrap();
    }
}

#[test]
fn only_a_regular_file_is_opened() {
    let subject = subject(MemoryKind::Full);
    let replaced = |make: &dyn Fn(&Path)| {
        let records = subject.records();
        let aside = subject.folder.path().join("aside");
        std::fs::rename(subject.path(), &aside).unwrap();
        make(&subject.path());
        let refused = subject.open(records).err().expect("a refusal");
        let _ = std::fs::remove_file(subject.path());
        let _ = std::fs::remove_dir(subject.path());
        std::fs::rename(aside, subject.path()).unwrap();
        refused
    };
    let missing = replaced(&|_| {});
    assert!(matches!(missing, SnapshotError::Io { .. }), "{missing}");
    let folder = replaced(&|path| std::fs::create_dir(path).unwrap());
    assert!(matches!(folder, SnapshotError::Corrupt { .. }), "{folder}");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let pipe = replaced(&|path| rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).unwrap());
    assert!(matches!(pipe, SnapshotError::Corrupt { .. }), "{pipe}");
}

#[test]
fn records_that_are_missing_or_newer_are_refused() {
    let subject = subject(MemoryKind::Full);
    assert!(message(subject.open(Records::default())).contains("missing"));
    let mut records = Records::default();
    records.put(RANGES, "", VERSION + 1, &[]);
    assert!(message(subject.open(records)).contains("another version"));
}

fn range_bytes(pairs: &[(u64, u64)]) -> Vec<u8> {
    let words = pairs.iter().flat_map(|(start, len)| [*start, *len]);
    words.flat_map(u64::to_le_bytes).collect()
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let subject = Subject::new(MemoryKind::Full, 16 * PAGE, &[pages(1, 2)]);
    let cases: &[&[(u64, u64)]] = &[
        &[],
        &[(0, PAGE)],
        &[(0, 2 * PAGE + 1)],
        &[(1, 2 * PAGE)],
        &[(0, 0), (PAGE, 2 * PAGE)],
        &[(15 * PAGE, 2 * PAGE)],
        &[(5 * PAGE, PAGE), (2 * PAGE, PAGE)],
        &[(2 * PAGE, PAGE), (2 * PAGE, PAGE)],
        &[(u64::MAX - PAGE + 1, 2 * PAGE)],
        &[(0, u64::MAX - PAGE + 1)],
    ];
    for case in cases {
        let mut records = Records::default();
        records.put(RANGES, "", VERSION, &range_bytes(case));
        records.put(SUMS, "", VERSION, &[]);
        assert!(
            message(subject.open(records)).contains("ranges"),
            "{case:?}"
        );
    }
}

#[test]
fn sums_that_cannot_be_are_refused() {
    let subject = Subject::new(MemoryKind::Full, 2 * CHUNK, &[pages(1, 2)]);
    let sums = |chunks: &[u64]| -> Vec<u8> {
        let sum = |chunk: &u64| [&chunk.to_le_bytes()[..], &[0; 32]].concat();
        chunks.iter().flat_map(sum).collect()
    };
    let records = |sums: &[u8]| {
        let mut records = Records::default();
        records.put(RANGES, "", VERSION, &range_bytes(&[(PAGE, 2 * PAGE)]));
        records.put(SUMS, "", VERSION, sums);
        records
    };
    for case in [&[2][..], &[1, 0], &[0, 0], &[u64::MAX], &[1 << 44]] {
        let text = message(subject.open(records(&sums(case))));
        assert!(text.contains("checksums is malformed"), "{case:?}: {text}");
    }
    assert!(subject.open(records(&[0; 39])).is_err());
    // These can be, and are wrong.
    for case in [&[][..], &[0], &[0, 1], &[1]] {
        let memory = subject.open(records(&sums(case))).unwrap();
        memory.verify().expect_err("sums of nothing");
    }
}

/// Ranges of a small memory, as somebody collects them: in any order, over each other.
fn collected() -> impl Strategy<Value = Vec<Range>> {
    let range = (0..60u64, 1..8u64).prop_map(|(start, len)| pages(start, len));
    proptest::collection::vec(range, 0..20)
}

/// Which pages are in some range.
fn covered(ranges: &[Range]) -> Vec<bool> {
    let holds = |page: u64| move |r: &Range| r.start <= page * PAGE && page * PAGE < r.end();
    (0..80).map(|page| ranges.iter().any(holds(page))).collect()
}

proptest! {
    #[test]
    fn joined_ranges_cover_the_same(ranges in collected()) {
        prop_assert_eq!(covered(&coalesce(ranges.clone())), covered(&ranges));
    }

    #[test]
    fn joined_ranges_are_sorted_and_apart(ranges in collected()) {
        let joined = coalesce(ranges);
        prop_assert!(joined.windows(2).all(|pair| pair[0].end() < pair[1].start));
    }

    #[test]
    fn joining_again_or_in_another_order_changes_nothing(ranges in collected()) {
        let joined = coalesce(ranges.clone());
        prop_assert_eq!(coalesce(joined.clone()), joined.clone());
        prop_assert_eq!(coalesce(ranges.into_iter().rev().collect()), joined);
    }

    #[test]
    fn chunks_are_those_that_ranges_touch(ranges in collected(), scale in 1..200u64) {
        let scaled = |r: &Range| Range { start: r.start * scale, len: r.len * scale };
        let ranges: Vec<Range> = coalesce(ranges).iter().map(scaled).collect();
        let size = 80 * PAGE * scale;
        let touched = |chunk: &u64| {
            let (start, end) = (chunk * CHUNK, (chunk + 1) * CHUNK);
            ranges.iter().any(|r| r.start < end && start < r.end())
        };
        let wanted: Vec<(u64, u64)> = (0..size.div_ceil(CHUNK))
            .filter(touched)
            .map(|chunk| (chunk, CHUNK.min(size - chunk * CHUNK)))
            .collect();
        prop_assert_eq!(chunks(&ranges, size).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn arbitrary_lists_of_ranges_are_refused_or_sound(
        pairs in proptest::collection::vec(
            (prop_oneof![0..20u64, any::<u64>()], prop_oneof![0..4u64, any::<u64>()]),
            0..6,
        ),
        scale in prop_oneof![Just(1), Just(PAGE)],
        cut in 0..2usize,
    ) {
        let (size, pairs): (_, Vec<_>) = (16 * PAGE, pairs
            .iter()
            .map(|(start, len)| (start.wrapping_mul(scale), len.wrapping_mul(scale)))
            .collect());
        let mut bytes = range_bytes(&pairs);
        bytes.truncate(bytes.len().saturating_sub(cut));
        let data = pairs.iter().fold(0u64, |sum, (_, len)| sum.wrapping_add(*len));
        let facts = MemoryFacts { kind: MemoryKind::Full, size, data };
        if let Some(ranges) = parse_ranges(&bytes, &facts) {
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end() <= pair[1].start));
            prop_assert!(ranges.iter().all(|r| r.len > 0 && r.end() <= size));
            prop_assert!(ranges.iter().all(|r| (r.start | r.len) % PAGE == 0));
        }
    }

    #[test]
    fn arbitrary_lists_of_sums_are_refused_or_come_back(
        numbers in proptest::collection::vec(prop_oneof![0..8u64, any::<u64>()], 0..5),
        rest in 0..3usize,
    ) {
        let entry = |chunk: &u64| [&chunk.to_le_bytes()[..], &[9; 32]].concat();
        let mut bytes: Vec<u8> = numbers.iter().flat_map(entry).collect();
        bytes.extend(vec![0; rest]);
        if let Some(sums) = Sums::parse(&bytes, 8 * CHUNK) {
            prop_assert_eq!(sums.bytes(), bytes);
        }
    }
}
