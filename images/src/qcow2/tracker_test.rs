//! Tests of bitmaps in memory.

use proptest::prelude::*;

use super::Tracker;

#[test]
fn the_form_in_the_file_starts_at_the_lowest_bit() {
    let tracker = Tracker::new(b"b".to_vec(), 9, true, 512 * 20);
    tracker.mark(512 * 9, 1);
    tracker.mark(0, 512);
    let mut bytes = [0; 3];
    tracker.copy_to(0, &mut bytes);
    assert_eq!(bytes, [1, 2, 0]);
}

#[test]
fn a_smaller_disk_forgets_what_was_beyond_its_end() {
    let mut tracker = Tracker::new(b"b".to_vec(), 9, true, 512 * 100);
    tracker.mark(0, u64::MAX);
    tracker.resize(512 * 3 + 1);
    tracker.resize(512 * 100);
    assert_eq!(tracker.dirty().collect::<Vec<_>>(), vec![0..512 * 4]);
}

proptest! {
    #[test]
    fn ranges_are_what_was_marked(
        size in 0u64..100_000,
        marks in prop::collection::vec((0u64..120_000, 0u64..30_000), 0..8),
    ) {
        let tracker = Tracker::new(b"b".to_vec(), 9, true, size);
        let mut model = vec![false; size.div_ceil(512) as usize];
        for (offset, len) in marks {
            tracker.mark(offset, len);
            let end = (offset + len).min(size);
            if offset < end {
                model[(offset / 512) as usize..end.div_ceil(512) as usize].fill(true);
            }
        }
        let mut is = vec![false; model.len()];
        for range in tracker.dirty() {
            prop_assert!(range.start < range.end && range.end <= size);
            is[(range.start / 512) as usize..range.end.div_ceil(512) as usize].fill(true);
        }
        prop_assert_eq!(&is, &model);
        let mut bytes = vec![0; model.len().div_ceil(8)];
        tracker.copy_to(0, &mut bytes);
        let mut copy = Tracker::new(b"b".to_vec(), 9, true, size);
        copy.fill(0, &bytes);
        prop_assert_eq!(copy.dirty().collect::<Vec<_>>(), tracker.dirty().collect::<Vec<_>>());
    }
}
