//! Shapes of hosts as they are written, and what a simulation comes to.

use super::replay::replay;
use super::*;

#[test]
fn a_shape_names_what_it_changes() {
    let small = shape("cpus=8,memory=32G,nodes=1").unwrap();
    assert_eq!((small.cpus, small.memory, small.nodes), (8, 32 << 30, 1));
    assert_eq!(small.disk, 8 << 40);
    for wrong in [
        "",
        "cpus",
        "cpus=0",
        "cpus=x",
        "ram=1G",
        "cpus=1,nodes=2",
        "memory=9E",
        "cpus=5000",
    ] {
        assert!(shape(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn our_packing_is_denser_than_the_simple_ones_and_strands_less() {
    let hosts = 100;
    let shape = shape("cpus=64").unwrap();
    // The first rejection of a small cluster is much of chance: three traces together are less.
    let traces: Vec<Trace> = (1..=3)
        .map(|seed| generate::generate(hosts, seed))
        .collect();
    let sums = |packing| {
        let mut sums = [0.0; 4];
        for trace in &traces {
            let outcome = replay(trace, hosts, &shape, packing).unwrap();
            assert!(outcome.any_rejected);
            assert_eq!(outcome.placed + outcome.rejected, trace.arrivals.len());
            sums[0] += outcome.first.density();
            sums[1] -= outcome.first.unplaceable;
            sums[2] -= outcome.unplaceable();
            sums[3] -= outcome.rejected_share;
        }
        sums
    };
    let ours = sums(Packing::Skerry);
    for packing in [Packing::FirstFit, Packing::BestFit, Packing::WorstFit] {
        let other = sums(packing);
        let better = ours.iter().zip(other).all(|(ours, other)| *ours > other);
        assert!(better, "{ours:?}, {packing:?}: {other:?}");
    }
    assert_eq!(ours, sums(Packing::Skerry));
}
