//! Tests of dirty maps.

use proptest::prelude::*;

use super::*;

#[test]
fn marks_whole_granules_and_no_others() {
    let map = DirtyMap::new(1 << 20, 16);
    map.mark(0xffff, 2);
    assert_eq!(map.dirty(), 2 << 16);
    assert!(map.intersects(0, 1) && map.intersects(0x1_0000, 1) && !map.intersects(0x2_0000, 1));
    assert_eq!(map.next(1), Some(0x1_0000));
    assert!(map.take(0x1_0000) && !map.take(0x1_0000));
    assert_eq!(map.next(1), None);
}

#[test]
fn what_is_behind_the_end_is_ignored() {
    let map = DirtyMap::new(100, 16);
    map.mark(50, u64::MAX);
    map.mark(u64::MAX, 10);
    assert_eq!(map.dirty(), 1 << 16);
    assert!(!map.take(u64::MAX));
}

#[test]
fn merging_maps_granules_of_other_sizes() {
    let (coarse, fine) = (DirtyMap::new(1 << 20, 16), DirtyMap::new(1 << 20, 12));
    fine.mark(0x1_f000, 1);
    coarse.merge(&fine);
    assert_eq!((coarse.next(0), coarse.dirty()), (Some(0x1_0000), 1 << 16));
}

#[test]
fn the_form_in_the_file_starts_at_the_lowest_bit() {
    let map = DirtyMap::new(512 * 20, 9);
    map.mark(512 * 9, 1);
    map.mark(0, 512);
    let mut bytes = [0; 3];
    map.copy_to(0, &mut bytes);
    assert_eq!(bytes, [1, 2, 0]);
}

#[test]
fn a_smaller_disk_forgets_what_was_beyond_its_end() {
    let map = DirtyMap::new(512 * 100, 9);
    map.mark(0, u64::MAX);
    let map = map.resized(512 * 3 + 1).resized(512 * 100);
    assert_eq!(map.ranges().collect::<Vec<_>>(), vec![0..512 * 4]);
}

proptest! {
    #[test]
    fn ranges_are_what_was_marked(
        size in 0u64..100_000,
        marks in prop::collection::vec((0u64..120_000, 0u64..30_000), 0..8),
    ) {
        let map = DirtyMap::new(size, 9);
        let mut model = vec![false; size.div_ceil(512) as usize];
        for (offset, len) in marks {
            map.mark(offset, len);
            let end = (offset + len).min(size);
            if offset < end {
                model[(offset / 512) as usize..end.div_ceil(512) as usize].fill(true);
            }
        }
        let mut is = vec![false; model.len()];
        for range in map.ranges() {
            prop_assert!(range.start < range.end && range.end <= size);
            is[(range.start / 512) as usize..range.end.div_ceil(512) as usize].fill(true);
        }
        prop_assert_eq!(&is, &model);
        let mut bytes = vec![0; model.len().div_ceil(8)];
        map.copy_to(0, &mut bytes);
        let copy = DirtyMap::new(size, 9);
        copy.fill(0, &bytes);
        prop_assert_eq!(copy.ranges().collect::<Vec<_>>(), map.ranges().collect::<Vec<_>>());
    }
}
