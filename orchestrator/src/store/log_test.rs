//! Tests of entries and changes as bytes: they come back, and other bytes are no panic.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn entries_and_changes_come_back(
        key in ".{1,40}",
        value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        before in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        created: u64, modified: u64, lease: u64,
    ) {
        let changed = decode_change(Revision(7), &encode_change(&key, value.as_deref(), before.as_deref()));
        let wanted = Changed { revision: Revision(7), key: key.clone(), value: value.clone(), before };
        prop_assert_eq!(changed, Some(wanted));
        let lease = (lease != 0).then_some(LeaseId(lease));
        let value = value.unwrap_or_default();
        let bytes = encode_entry(&value, Revision(created), Revision(modified), lease);
        let entry = Entry { key: key.clone(), value, created: Revision(created), modified: Revision(modified) };
        prop_assert_eq!(decode_entry(&key, &bytes), Some((entry, lease)));
    }

    #[test]
    fn other_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = decode_change(Revision(1), &bytes);
        let _ = decode_entry("k", &bytes);
    }
}
