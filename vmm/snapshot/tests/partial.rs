//! A directory gets its name when it is whole.

mod shelf;

use shelf::Shelf;
use skerry_snapshot::{Partial, SnapshotError};

#[test]
fn one_that_is_dropped_leaves_nothing() {
    let shelf = Shelf::new(8);
    let partial = Partial::create(&shelf.path("new")).expect("a directory");
    assert_eq!(shelf.names(), ["new.partial"]);
    let mut header = shelf.header("new", None);
    shelf
        .fill(&partial, &mut header, &[(1, 1)])
        .expect("memory");
    drop(partial);
    assert!(shelf.names().is_empty());
}

#[test]
fn one_that_is_complete_has_its_name() {
    let shelf = Shelf::new(8);
    let partial = Partial::create(&shelf.path("new")).expect("a directory");
    let mut header = shelf.header("new", None);
    let records = shelf
        .fill(&partial, &mut header, &[(1, 1)])
        .expect("memory");
    partial.complete(records, header).expect("complete");
    assert_eq!(shelf.names(), ["new"]);
    assert_eq!(shelf.seen("new"), [0, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_slash_behind_the_name_changes_nothing() {
    let shelf = Shelf::new(8);
    let mut header = shelf.header("new", None);
    let partial = Partial::create(&shelf.path("new/")).expect("a directory");
    assert_eq!(partial.directory().path(), shelf.path("new.partial"));
    let records = shelf
        .fill(&partial, &mut header, &[(1, 1)])
        .expect("memory");
    partial.complete(records, header).expect("complete");
    assert_eq!(shelf.names(), ["new"]);
}

#[test]
fn an_interrupted_one_is_in_nobodys_way() {
    let shelf = Shelf::new(8);
    for left in [&[][..], &["memory"], &["state", "memory"]] {
        let folder = shelf.path("new.partial");
        std::fs::create_dir(&folder).expect("a directory");
        for file in left {
            std::fs::write(folder.join(file), b"old").expect("a file");
        }
        shelf.take("new", None, &[(2, 5)]);
        assert_eq!(shelf.names(), ["new"]);
        assert_eq!(shelf.seen("new"), [0, 0, 5, 0, 0, 0, 0, 0]);
        std::fs::remove_dir_all(shelf.path("new")).expect("removed");
    }
}

#[test]
fn what_is_no_leftover_stays() {
    let shelf = Shelf::three();
    let partial = shelf.path("new.partial");
    let refused = || {
        Partial::create(&shelf.path("new"))
            .err()
            .expect("a refusal");
    };
    // A link to somebody's snapshot, a file, a folder with other things.
    std::os::unix::fs::symlink(shelf.path("base"), &partial).expect("a link");
    refused();
    assert_eq!(shelf.seen("base"), [1, 1, 1, 0, 0, 0, 0, 0]);
    std::fs::remove_file(&partial).expect("removed");
    std::fs::write(&partial, b"mine").expect("a file");
    refused();
    assert_eq!(std::fs::read(&partial).expect("a file"), b"mine");
    std::fs::remove_file(&partial).expect("removed");
    std::fs::create_dir(&partial).expect("a directory");
    std::fs::write(partial.join("notes"), b"mine").expect("a file");
    refused();
    assert_eq!(
        std::fs::read(partial.join("notes")).expect("a file"),
        b"mine"
    );
}

#[test]
fn a_target_that_exists_is_refused() {
    let shelf = Shelf::three();
    std::os::unix::fs::symlink("nowhere", shelf.path("link")).expect("a link");
    for name in ["base", "link"] {
        let refused = Partial::create(&shelf.path(name)).err();
        let refused = refused.expect("a refusal");
        assert!(matches!(refused, SnapshotError::Exists { .. }), "{refused}");
    }
    assert_eq!(shelf.names(), ["base", "link", "one", "two"]);
}

#[test]
fn a_target_that_came_meanwhile_is_not_replaced() {
    let shelf = Shelf::new(8);
    let partial = Partial::create(&shelf.path("new")).expect("a directory");
    let mut header = shelf.header("new", None);
    let records = shelf
        .fill(&partial, &mut header, &[(1, 1)])
        .expect("memory");
    std::fs::create_dir(shelf.path("new")).expect("a directory");
    std::fs::write(shelf.path("new").join("notes"), b"mine").expect("a file");
    partial.complete(records, header).expect_err("a refusal");
    assert_eq!(shelf.names(), ["new"]);
    assert!(shelf.path("new").join("notes").exists());
}

#[test]
fn of_two_at_once_no_mixture_is_completed() {
    let shelf = Shelf::new(8);
    let (mut first, mut second) = (shelf.header("first", None), shelf.header("second", None));
    let one = Partial::create(&shelf.path("new")).expect("a directory");
    let ones = shelf.fill(&one, &mut first, &[(1, 1)]).expect("memory");
    let two = Partial::create(&shelf.path("new")).expect("the leftover's place");
    let twos = shelf.fill(&two, &mut second, &[(1, 2)]).expect("memory");
    let refused = one.complete(ones, first).expect_err("a refusal");
    assert!(
        matches!(refused, SnapshotError::Unwritable { .. }),
        "{refused}"
    );
    // It must not have touched what is the other's.
    two.complete(twos, second).expect("complete");
    assert_eq!(shelf.seen("new"), [0, 2, 0, 0, 0, 0, 0, 0]);
}
