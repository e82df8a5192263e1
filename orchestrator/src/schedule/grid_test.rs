//! The grid finds every host that has enough, and little else.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn classes_grow_with_their_numbers(a in 0u64..1 << 48, b in 0u64..1 << 48) {
        prop_assert!(a > b || class(a) <= class(b));
    }

    #[test]
    fn every_host_with_enough_is_found_once(
        hosts in prop::collection::vec((0u64..1 << 28, 0u64..1 << 40), 1..80),
        gone in prop::collection::vec(any::<bool>(), 80),
        wanted in (0u64..1 << 28, 0u64..1 << 40),
    ) {
        let mut grid = Grid::new();
        for (i, &(cpu, memory)) in hosts.iter().enumerate() {
            grid.insert(Cell::of(cpu, memory), HostIndex(i as u32));
        }
        for (i, &(cpu, memory)) in hosts.iter().enumerate() {
            if gone[i] {
                grid.remove(Cell::of(cpu, memory), HostIndex(i as u32));
            }
        }
        let found: Vec<usize> = grid.from(Cell::of(wanted.0, wanted.1)).map(HostIndex::at).collect();
        for (i, &(cpu, memory)) in hosts.iter().enumerate() {
            let times = found.iter().filter(|&&f| f == i).count();
            let enough = cpu >= wanted.0 && memory >= wanted.1;
            prop_assert!(times <= 1 && (!enough || gone[i] || times == 1));
            prop_assert!(!gone[i] || times == 0);
        }
    }
}
