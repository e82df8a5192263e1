//! Tests of the working set.

use tempfile::TempDir;

use super::*;

const SIZE: u64 = 64 * PAGE;

fn pages(start: u64, len: u64) -> Range {
    Range {
        start: start * PAGE,
        len: len * PAGE,
    }
}

fn directory(folder: &TempDir) -> Directory {
    Directory::new(folder.path())
}

#[test]
fn what_was_recorded_is_read_in_the_same_order() {
    let folder = TempDir::new().unwrap();
    let directory = directory(&folder);
    assert_eq!(WorkingSet::read(&directory, "a", SIZE).unwrap(), None);
    for ranges in [&[pages(9, 1), pages(2, 3)][..], &[pages(63, 1)], &[]] {
        WorkingSet::write(&directory, "a", ranges).unwrap();
        let read = WorkingSet::read(&directory, "a", SIZE).unwrap();
        assert_eq!(read.as_deref(), Some(ranges));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn one_of_another_snapshot_is_none() {
    let folder = TempDir::new().unwrap();
    let directory = directory(&folder);
    WorkingSet::write(&directory, "a", &[pages(0, 1)]).unwrap();
    assert_eq!(WorkingSet::read(&directory, "b", SIZE).unwrap(), None);
}

#[test]
fn one_that_cannot_be_is_none() {
    let folder = TempDir::new().unwrap();
    let directory = directory(&folder);
    for (start, len) in [
        (64 * PAGE, PAGE),
        (63 * PAGE, 2 * PAGE),
        (1, PAGE),
        (0, 1),
        (0, 0),
        (u64::MAX - PAGE + 1, PAGE),
        (PAGE, u64::MAX - PAGE + 1),
    ] {
        WorkingSet::write(&directory, "a", &[Range { start, len }]).unwrap();
        let read = WorkingSet::read(&directory, "a", SIZE).unwrap();
        assert_eq!(read, None, "{start:#x}, {len:#x}");
    }
}

#[test]
fn what_is_no_file_of_ours_is_refused_at_once() {
    let folder = TempDir::new().unwrap();
    let directory = directory(&folder);
    let path = folder.path().join(FILE);
    let refused = || WorkingSet::read(&directory, "a", SIZE).unwrap_err();
    std::fs::write(&path, b"no JSON").unwrap();
    refused();
    std::fs::remove_file(&path).unwrap();
    // Nobody writes to it: whoever waited for that would wait forever.
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
    refused();
    std::fs::remove_file(&path).unwrap();
    // Behind a link it is as large.
    let large = folder.path().join("large");
    let file = std::fs::File::create(&large).unwrap();
    file.set_len(MAX_FILE + 1).unwrap();
    std::os::unix::fs::symlink(&large, &path).unwrap();
    assert!(matches!(
        refused(),
        SnapshotError::Io { source, .. } if source.kind() == ErrorKind::FileTooLarge
    ));
}
