//! Diffs and what they build on.

mod shelf;

use shelf::{Shelf, message};
use skerry_snapshot::{MAX_DEPTH, MemoryKind, SnapshotError};

#[test]
fn a_diff_opens_with_all_that_it_builds_on() {
    let shelf = Shelf::three();
    let mut chain = shelf.open("two").expect("a chain");
    let ids: Vec<_> = chain.headers.iter().map(|h| h.id.as_str()).collect();
    assert_eq!(ids, ["base", "one", "two"]);
    let places = chain.memory.iter().map(|m| m.path().canonicalize().ok());
    let wanted = ["base", "one", "two"].map(|n| shelf.path(n).join("memory").canonicalize().ok());
    assert!(places.eq(wanted));
    // Its state is that of the diff, and has nothing left of the memory.
    assert_eq!(
        chain.state.take("cpu", "0"),
        Some((1, &b"the CPU of two"[..]))
    );
    chain.state.finish().expect("nothing");
    assert_eq!(shelf.seen("two"), [1, 2, 3, 0, 0, 2, 0, 0]);
    assert_eq!(shelf.seen("one"), [1, 2, 1, 0, 0, 2, 0, 0]);
    assert_eq!(shelf.seen("base"), [1, 1, 1, 0, 0, 0, 0, 0]);
}

#[test]
fn a_missing_parent_is_named() {
    for missing in ["base", "one"] {
        let shelf = Shelf::three();
        std::fs::remove_dir_all(shelf.path(missing)).expect("removed");
        let text = message(shelf.open("two"));
        assert!(
            text.contains(missing) && text.contains("not there"),
            "{text}"
        );
    }
}

#[test]
fn a_parents_missing_memory_is_named() {
    let shelf = Shelf::three();
    std::fs::remove_file(shelf.path("base").join("memory")).expect("removed");
    let text = message(shelf.open("two"));
    assert!(text.contains("base/memory"), "{text}");
}

#[test]
fn a_replaced_parent_is_refused() {
    let shelf = Shelf::three();
    std::fs::remove_dir_all(shelf.path("base")).expect("removed");
    let mut header = shelf.header("base", None);
    header.id = "another".into();
    shelf.take_as("base", header, &[(0, 9)]);
    let text = message(shelf.open("two"));
    assert!(text.contains("another snapshot is there now"), "{text}");
}

#[test]
fn a_parent_of_another_size_is_refused() {
    let shelf = Shelf::three();
    let mut header = shelf.header("three", Some("two"));
    header.memory.size *= 2;
    shelf.take_as("three", header, &[(9, 4)]);
    let text = message(shelf.open("three"));
    assert!(text.contains("another size"), "{text}");
}

#[test]
fn a_diff_without_a_parent_is_refused() {
    let shelf = Shelf::three();
    let mut header = shelf.header("alone", None);
    header.memory.kind = MemoryKind::Diff;
    shelf.take_as("alone", header, &[(0, 4)]);
    let text = message(shelf.open("alone"));
    assert!(text.contains("does not say of which"), "{text}");
}

#[test]
fn parents_that_lead_in_a_circle_are_refused() {
    let shelf = Shelf::new(8);
    shelf.take("one", Some("two"), &[(0, 1)]);
    shelf.take("two", Some("three"), &[(0, 2)]);
    shelf.take("three", Some("one"), &[(0, 3)]);
    shelf.take("self", Some("self"), &[(0, 3)]);
    for name in ["one", "two", "three", "self"] {
        let text = message(shelf.open(name));
        assert!(text.contains("builds on it in turn"), "{text}");
    }
}

#[test]
fn a_chain_has_an_end() {
    let shelf = Shelf::new(1);
    shelf.take("0", None, &[(0, 255)]);
    let name = |depth: usize| depth.to_string();
    for depth in 1..=MAX_DEPTH + 1 {
        shelf.take(&name(depth), Some(&name(depth - 1)), &[(0, depth as u8)]);
    }
    assert_eq!(shelf.seen(&name(MAX_DEPTH)), [MAX_DEPTH as u8]);
    let text = message(shelf.open(&name(MAX_DEPTH + 1)));
    assert!(text.contains("more than 64 diffs"), "{text}");
}

#[test]
fn neighbours_can_be_moved_together() {
    let shelf = Shelf::three();
    let seen = shelf.seen("two");
    let elsewhere = Shelf::new(8);
    for name in ["base", "one", "two"] {
        let moved = std::fs::rename(shelf.path(name), elsewhere.path(name));
        moved.expect("moved");
    }
    assert_eq!(elsewhere.seen("two"), seen);
    assert!(shelf.names().is_empty());
}

#[test]
fn a_parent_elsewhere_is_named_by_its_whole_path() {
    let (shelf, elsewhere) = (Shelf::three(), Shelf::new(8));
    let mut header = elsewhere.header("three", None);
    let parent = skerry_snapshot::Parent::new("two", &shelf.path("two"), &elsewhere.path("three"));
    assert_eq!(parent.path, shelf.path("two"));
    header.parent = Some(parent);
    header.memory.kind = MemoryKind::Diff;
    elsewhere.take_as("three", header, &[(0, 4)]);
    let again = Shelf::new(8);
    std::fs::rename(elsewhere.path("three"), again.path("three")).expect("moved");
    assert_eq!(again.seen("three"), [4, 2, 3, 0, 0, 2, 0, 0]);
}

#[test]
fn damage_in_any_layer_is_found() {
    for name in ["base", "one", "two"] {
        let shelf = Shelf::three();
        let path = shelf.path(name).join("memory");
        let mut bytes = std::fs::read(&path).expect("memory");
        // Page 1 or 2 is in each.
        bytes[0x1234] ^= 1;
        bytes[0x2234] ^= 1;
        std::fs::write(&path, bytes).expect("memory");
        let chain = shelf.open("two").expect("a chain");
        let refused = chain.verify().expect_err("damage");
        assert!(
            matches!(refused, SnapshotError::Corrupt { .. }),
            "{refused}"
        );
        assert!(refused.to_string().contains(&format!("{name}/memory")));
    }
}
