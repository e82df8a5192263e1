//! One full snapshot made of a diff and what it builds on.

mod shelf;

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::Path;

use proptest::prelude::*;
use shelf::{PAGE, Shelf, message};
use skerry_snapshot::{Directory, MemoryKind, SnapshotError, Watch, merge};

#[test]
fn what_was_merged_is_the_same_alone() {
    let shelf = Shelf::three();
    let seen = shelf.seen("two");
    merge(&shelf.directory("two"), &shelf.path("merged"), &()).expect("merged");
    for name in ["base", "one", "two"] {
        std::fs::remove_dir_all(shelf.path(name)).expect("removed");
    }
    assert_eq!(shelf.names(), ["merged"]);
    assert_eq!(shelf.seen("merged"), seen);
    let header = shelf.directory("merged").header().expect("a header");
    assert_eq!(header.parent, None);
    assert_eq!(header.memory.kind, MemoryKind::Full);
    assert_eq!(header.memory.data, 4 * PAGE);
    let mut chain = shelf.open("merged").expect("a chain");
    assert_eq!(
        chain.state.take("cpu", "0"),
        Some((1, &b"the CPU of two"[..]))
    );
    chain.state.finish().expect("nothing");
}

#[test]
fn what_built_on_a_diff_builds_on_what_it_was_merged_to() {
    let shelf = Shelf::three();
    let seen = shelf.seen("two");
    merge(&shelf.directory("one"), &shelf.path("merged"), &()).expect("merged");
    std::fs::remove_dir_all(shelf.path("base")).expect("removed");
    std::fs::remove_dir_all(shelf.path("one")).expect("removed");
    std::fs::rename(shelf.path("merged"), shelf.path("one")).expect("renamed");
    assert_eq!(shelf.seen("two"), seen);
}

#[test]
fn a_full_snapshot_is_copied() {
    let shelf = Shelf::three();
    merge(&shelf.directory("base"), &shelf.path("merged"), &()).expect("merged");
    assert_eq!(shelf.seen("merged"), shelf.seen("base"));
}

#[test]
fn the_target_may_be_on_another_file_system() {
    let Ok(memory) = tempfile::TempDir::new_in("/dev/shm") else {
        return;
    };
    let shelf = Shelf::three();
    let target = memory.path().join("merged");
    merge(&shelf.directory("two"), &target, &()).expect("merged");
    let merged = Directory::new(target);
    let data = std::fs::read(merged.memory()).expect("memory");
    let firsts: Vec<u8> = data.chunks(PAGE as usize).map(|page| page[0]).collect();
    assert_eq!(firsts, shelf.seen("two"));
}

#[test]
fn an_existing_target_stays_as_it_is() {
    let shelf = Shelf::three();
    std::fs::write(shelf.path("mine"), b"mine").expect("a file");
    for target in ["mine", "base"] {
        let refused = merge(&shelf.directory("two"), &shelf.path(target), &());
        let refused = refused.expect_err("a refusal");
        assert!(matches!(refused, SnapshotError::Exists { .. }), "{refused}");
    }
    assert_eq!(std::fs::read(shelf.path("mine")).expect("a file"), b"mine");
    assert_eq!(shelf.seen("two"), [1, 2, 3, 0, 0, 2, 0, 0]);
    assert_eq!(shelf.names(), ["base", "mine", "one", "two"]);
}

#[test]
fn damage_is_not_merged_and_nothing_is_left() {
    for name in ["base", "one", "two"] {
        for file in ["state", "memory"] {
            let shelf = Shelf::three();
            let path = shelf.path(name).join(file);
            let mut bytes = std::fs::read(&path).expect("a file");
            // In page 2 of the memory, which is in `base` and `two`, and of page 1 for `one`.
            let at = match (file, name) {
                ("state", _) => 100,
                (_, "one") => 0x1800,
                _ => 0x2800,
            };
            bytes[at] ^= 0x40;
            std::fs::write(&path, bytes).expect("a file");
            let text = message(merge(&shelf.directory("two"), &shelf.path("merged"), &()));
            assert!(text.contains("damaged"), "{name}/{file}: {text}");
            assert_eq!(shelf.names(), ["base", "one", "two"]);
        }
    }
}

/// Counts, and ends the work at some byte.
struct Counter {
    total: Cell<u64>,
    done: Cell<u64>,
    end: u64,
}

impl Counter {
    fn until(end: u64) -> Counter {
        Counter {
            total: Cell::new(0),
            done: Cell::new(0),
            end,
        }
    }
}

impl Watch for Counter {
    fn expect(&self, total: u64) {
        self.total.set(total);
    }

    fn step(&self, bytes: u64) -> ControlFlow<()> {
        self.done.set(self.done.get() + bytes);
        match self.done.get() >= self.end {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

#[test]
fn all_of_the_work_is_followed() {
    let shelf = Shelf::three();
    let counter = Counter::until(u64::MAX);
    merge(&shelf.directory("two"), &shelf.path("merged"), &counter).expect("merged");
    assert!(counter.total.get() > 0);
    assert_eq!(counter.done.get(), counter.total.get());
}

#[test]
fn a_cancelled_merge_leaves_nothing() {
    let shelf = Shelf::three();
    let counter = Counter::until(u64::MAX);
    merge(&shelf.directory("two"), &shelf.path("merged"), &counter).expect("merged");
    for end in (0..=counter.total.get()).step_by(PAGE as usize) {
        let counter = Counter::until(end);
        let ended = merge(&shelf.directory("two"), &shelf.path("again"), &counter);
        assert!(matches!(ended, Err(SnapshotError::Cancelled)), "{end}");
        assert_eq!(shelf.names(), ["base", "merged", "one", "two"]);
    }
}

#[test]
fn a_target_without_a_folder_is_refused() {
    let shelf = Shelf::three();
    merge(&shelf.directory("two"), &shelf.path("no/merged"), &()).expect_err("no folder");
    for odd in ["..", "/"] {
        merge(&shelf.directory("two"), Path::new(odd), &()).expect_err(odd);
    }
}

/// Pages of the machine of the property: two chunks and a half.
const PAGES: u64 = 640;

fn writes() -> impl Strategy<Value = Vec<(u64, u8)>> {
    let run = (0..PAGES, 1..40u64, any::<u8>());
    proptest::collection::vec(run, 0..8).prop_map(|runs| {
        let pages = runs.into_iter().flat_map(|(start, len, byte)| {
            (start..(start + len).min(PAGES)).map(move |page| (page, byte))
        });
        pages.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_base_and_three_diffs_merge_to_what_was_written(
        layers in proptest::array::uniform4(writes()),
    ) {
        let shelf = Shelf::new(PAGES);
        let mut model = vec![0; PAGES as usize];
        let names = ["base", "one", "two", "three"];
        for (index, writes) in layers.iter().enumerate() {
            let parent = index.checked_sub(1).map(|below| names[below]);
            shelf.take(names[index], parent, writes);
            for (page, byte) in writes {
                model[*page as usize] = *byte;
            }
        }
        merge(&shelf.directory("three"), &shelf.path("merged"), &()).expect("merged");
        prop_assert_eq!(shelf.seen("merged"), model.clone());
        // All of the bytes, as one who maps the file would see them.
        let bytes = std::fs::read(shelf.directory("merged").memory()).expect("memory");
        let wanted = model.iter().flat_map(|byte| [*byte; PAGE as usize]);
        prop_assert!(bytes.into_iter().eq(wanted));
    }
}
