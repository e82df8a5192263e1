//! Tests of removal: all of a tree goes, and nothing beside it.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn a_tree_deeper_than_paths_and_descriptors_goes() {
    let home = tempfile::tempdir().unwrap();
    let tree = home.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let mut at = open(CWD, tree.as_os_str()).unwrap();
    for _ in 0..3000 {
        fs::mkdirat(&at, "some-directory", Mode::from_raw_mode(0o755)).unwrap();
        at = open(at.as_fd(), OsStr::new("some-directory")).unwrap();
    }
    drop(at);
    remove_path(&tree).unwrap();
    assert!(!tree.exists());
}

#[test]
fn links_out_of_a_tree_are_not_followed() {
    let home = tempfile::tempdir().unwrap();
    let kept = home.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("file"), "x").unwrap();
    let tree = home.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    symlink(&kept, tree.join("link")).unwrap();
    remove_path(&tree).unwrap();
    assert!(kept.join("file").exists());
}

#[test]
fn what_is_not_there_is_removed_already() {
    let home = tempfile::tempdir().unwrap();
    remove_path(&home.path().join("none")).unwrap();
    remove_path(&home.path().join("none/nor/this")).unwrap();
}
