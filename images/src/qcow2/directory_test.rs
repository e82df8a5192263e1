//! Tests of the bitmap directory's form.

use proptest::prelude::*;

use super::{Bitmap, DIRTY_TRACKING, flag};

fn bitmap(name: &str, extra: &[u8]) -> Bitmap {
    Bitmap {
        table: 0x10000,
        entries: 1,
        flags: flag::AUTO,
        kind: DIRTY_TRACKING,
        granularity_bits: 16,
        extra: extra.to_vec(),
        name: name.as_bytes().to_vec(),
    }
}

#[test]
fn an_entry_comes_back_as_it_was() {
    let mut bytes = Vec::new();
    bitmap("abc", b"12345").store(&mut bytes);
    assert_eq!(bytes.len(), 32);
    let (again, len) = Bitmap::parse(&bytes).expect("parses");
    assert_eq!(
        (len, &*again.name, &*again.extra),
        (32, &b"abc"[..], &b"12345"[..])
    );
    assert!(again.auto() && again.defect(65536).is_none());
}

#[test]
fn unknown_extra_data_makes_a_bitmap_unusable_unless_it_says_otherwise() {
    let mut unknown = bitmap("a", b"?");
    assert!(!unknown.usable());
    unknown.flags |= flag::EXTRA_COMPATIBLE;
    assert!(unknown.usable());
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some((bitmap, len)) = Bitmap::parse(&bytes) {
            prop_assert!(len >= 24 && len.is_multiple_of(8));
            let _ = bitmap.defect(65536);
        }
    }
}
