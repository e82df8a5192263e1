//! Tests of locks.

use super::*;

#[test]
fn one_writer_or_many_readers() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let open = |readonly| {
        let options = FileOptions {
            readonly,
            ..FileOptions::default()
        };
        ImageFile::open(file.path(), &options)
    };
    let writer = open(false).expect("the first");
    assert!(matches!(open(false), Err(Error::Locked { .. })));
    assert!(matches!(open(true), Err(Error::Locked { .. })));
    assert!(writer.relock(Some(false)).expect("a lock"));
    let reader = open(true).expect("a reader beside a reader");
    assert!(matches!(open(false), Err(Error::Locked { .. })));
    assert!(!writer.relock(Some(true)).expect("an answer"));
    drop(reader);
    assert!(writer.relock(Some(true)).expect("an answer"));
    drop(writer);
    open(false).expect("nobody has it");
}
