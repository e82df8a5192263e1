//! Places as far as amounts are concerned: tiers, NUMA nodes, whole hosts, and the books.

use super::testing::*;
use super::*;

#[test]
fn dedicated_cpus_are_whole_cpus_of_one_node_and_never_given_twice() {
    let mut cluster = cluster(&[host("a")]);
    let first = cluster.place(&dedicated("one", 6, 4)).unwrap();
    assert_eq!(first.nodes.len(), 1);
    assert_eq!(first.nodes[0].cpus, [0, 1, 2, 3, 4, 5]);
    let second = cluster.place(&dedicated("two", 6, 4)).unwrap();
    assert_eq!((second.nodes[0].node, second.nodes.len()), (1, 1));
    // Two are left on each node: this one must be of both.
    let third = cluster.place(&dedicated("three", 4, 4)).unwrap();
    let cpus: Vec<u32> = third
        .nodes
        .iter()
        .flat_map(|node| node.cpus.clone())
        .collect();
    assert_eq!(cpus, [6, 7, 14, 15]);
    let refusal = cluster.place(&dedicated("four", 1, 1)).unwrap_err();
    assert_eq!(reasons(refusal), [(Reason::Cpu, 1)]);
}

#[test]
fn one_node_is_kept_to_when_asked_for() {
    let mut cluster = cluster(&[host("a")]);
    cluster.place(&dedicated("one", 6, 4)).unwrap();
    cluster.place(&dedicated("two", 6, 4)).unwrap();
    let strict = Request {
        one_node: true,
        ..dedicated("three", 4, 4)
    };
    let refusal = cluster.place(&strict).unwrap_err();
    assert!(
        refusal.to_string().contains("2 CPUs on one NUMA node"),
        "{refusal}"
    );
    assert_eq!(reasons(refusal), [(Reason::OneNode, 1)]);
}

#[test]
fn shared_cpus_are_promised_as_often_as_the_tier_says() {
    for (tier, times) in [(Tier::Burst, 4), (Tier::Dense, 16)] {
        let mut cluster = cluster(&[host("a")]);
        let one = |i: u64| Request {
            tier,
            memory: 0,
            ..request(&format!("vm-{i}"), 1, 0)
        };
        let placed = (0..1000)
            .take_while(|&i| cluster.place(&one(i)).is_ok())
            .count();
        assert_eq!(placed, 16 * times, "{tier:?}");
    }
}

#[test]
fn pinned_cpus_are_taken_from_the_shared_ones() {
    let mut cluster = cluster(&[host("a")]);
    cluster.place(&dedicated("pinned", 12, 1)).unwrap();
    cluster.place(&request("shared", 16, 1)).unwrap();
    let refusal = cluster.place(&request("more", 1, 1)).unwrap_err();
    assert_eq!(reasons(refusal), [(Reason::Cpu, 1)]);
    cluster.release("pinned").unwrap();
    assert!(cluster.place(&request("more", 1, 1)).is_ok());
}

#[test]
fn memory_is_promised_once_unless_the_dense_tier_is_told_otherwise() {
    let overcommit = Overcommit::new(400, 1600, 200).unwrap();
    for (tier, fits) in [(Tier::Burst, 1), (Tier::Dense, 2)] {
        let mut cluster = Cluster::new(Policy {
            overcommit,
            ..Policy::default()
        });
        cluster.add_host(&host("a")).unwrap();
        let one = |i: u64| Request {
            tier,
            ..request(&format!("vm-{i}"), 1, 64)
        };
        assert_eq!(
            (0..9)
                .take_while(|&i| cluster.place(&one(i)).is_ok())
                .count(),
            fits
        );
    }
}

#[test]
fn hugepages_and_devices_come_from_the_node_of_the_cpus() {
    let mut one = host("a");
    one.nodes[1].huge_1g = 8;
    one.nodes[1].huge_2m = 512;
    one.nodes[1].devices.insert("gpu".into(), 1);
    let mut cluster = cluster(&[one]);
    let wanted = Request {
        huge_1g: 4,
        huge_2m: 512,
        devices: [("gpu".to_owned(), 1)].into(),
        ..dedicated("vm", 4, 1)
    };
    let placement = cluster.place(&wanted).unwrap();
    assert_eq!(placement.nodes.len(), 1);
    let node = &placement.nodes[0];
    assert_eq!((node.node, node.huge_1g, node.huge_2m), (1, 4, 512));
    assert_eq!(
        (node.cpus.as_slice(), node.devices["gpu"]),
        (&[8, 9, 10, 11][..], 1)
    );
    let again = Request {
        id: "again".into(),
        ..wanted.clone()
    };
    assert_eq!(
        reasons(cluster.place(&again).unwrap_err()),
        [(Reason::Huge2m, 1)]
    );
    let again = Request {
        huge_2m: 0,
        ..again
    };
    let refusal = cluster.place(&again).unwrap_err();
    assert_eq!(reasons(refusal), [(Reason::Device("gpu".into()), 1)]);
    let strange = Request {
        devices: [("fpga".to_owned(), 1)].into(),
        ..request("strange", 1, 1)
    };
    let refusal = cluster.place(&strange).unwrap_err();
    assert_eq!(reasons(refusal), [(Reason::Device("fpga".into()), 1)]);
}

#[test]
fn a_whole_host_is_taken_when_nothing_runs_there_and_nothing_runs_beside_it() {
    let mut small = host("small");
    small.nodes.truncate(1);
    let mut cluster = cluster(&[host("large"), small, host("busy")]);
    let claim = |id: &str| Request {
        kind: Kind::Host,
        ..request(id, 4, 16)
    };
    let beside = Request {
        hosts: Selector::equal([("name", "busy")]),
        ..request("vm", 1, 1)
    };
    cluster.place(&beside).unwrap();
    let first = cluster.place(&claim("first")).unwrap();
    assert_eq!(
        (first.host.as_str(), first.nodes[0].cpus.len()),
        ("small", 8)
    );
    assert_eq!(cluster.place(&claim("second")).unwrap().host, "large");
    let refusal = cluster.place(&claim("third")).unwrap_err();
    assert_eq!(reasons(refusal), [(Reason::Claimed, 2), (Reason::Busy, 1)]);
    let refusal = cluster.place(&request("big", 40, 64)).unwrap_err();
    assert_eq!(
        reasons(refusal),
        [(Reason::Claimed, 2), (Reason::Memory, 1)]
    );
    cluster.release("first").unwrap();
    assert_eq!(cluster.place(&claim("third")).unwrap().host, "small");
}

#[test]
fn all_of_a_group_is_placed_or_none() {
    let mut cluster = cluster(&[host("a")]);
    let group: Vec<Request> = (0..3)
        .map(|i| dedicated(&format!("vm-{i}"), 6, 1))
        .collect();
    let refusal = cluster.place_all(&group).unwrap_err();
    assert_eq!(reasons(refusal), [(Reason::Cpu, 1)]);
    assert_eq!(cluster.usage().cpu_taken, 0);
    assert_eq!(cluster.place_all(&group[..2]).unwrap().len(), 2);
}

#[test]
fn what_runs_already_is_taken_over_with_what_it_has() {
    let (mut old, mut new) = (cluster(&[host("a")]), cluster(&[host("a")]));
    old.place(&dedicated("gone", 3, 1)).unwrap();
    let wanted = dedicated("stays", 3, 1);
    let placement = old.place(&wanted).unwrap();
    new.adopt(&wanted, &placement).unwrap();
    assert_eq!(new.find("stays"), Some(placement.clone()));
    assert_eq!(
        new.adopt(&wanted, &placement),
        Err(PlaceError::Twice("stays".into()))
    );
    let other = dedicated("other", 3, 1);
    let taken = PlaceError::Taken {
        id: "other".into(),
        host: "a".into(),
    };
    assert_eq!(new.adopt(&other, &placement), Err(taken));
    let placed = new.place(&other).unwrap();
    assert_eq!(placed.nodes[0].cpus, [0, 1, 2]);
}

#[test]
fn a_placement_that_cannot_be_is_not_taken_over() {
    let mut cluster = cluster(&[host("a")]);
    let wanted = dedicated("vm", 1, 1);
    let share = |node, cpus: &[u32], memory| NodeShare {
        node,
        cpus: cpus.to_vec(),
        memory,
        ..NodeShare::default()
    };
    let strange = [
        vec![share(7, &[0], 1)],
        vec![share(0, &[99], 1)],
        vec![share(0, &[1, 1], 1)],
        vec![share(0, &[0], u64::MAX)],
        vec![share(0, &[0], 1), share(0, &[1], 1)],
        vec![NodeShare {
            devices: [("gpu".to_owned(), 1)].into(),
            ..share(0, &[], 0)
        }],
    ];
    for nodes in strange {
        let placement = Placement {
            host: "a".into(),
            nodes,
            ..Placement::default()
        };
        let answer = cluster.adopt(&wanted, &placement);
        assert!(
            matches!(answer, Err(PlaceError::Taken { .. })),
            "{placement:?}"
        );
    }
    let placement = Placement {
        host: "a".into(),
        shared_cpu: u64::MAX,
        disk: u64::MAX,
        ..Placement::default()
    };
    assert!(cluster.adopt(&wanted, &placement).is_err());
    assert_eq!(cluster.usage().cpu_taken, 0);
}

#[test]
fn a_host_that_goes_takes_its_workloads_along() {
    let mut cluster = cluster(&[host("a"), host("b")]);
    let on = |id: &str, name: &str| Request {
        hosts: Selector::equal([("name", name)]),
        ..request(id, 1, 1)
    };
    cluster.place(&on("x", "a")).unwrap();
    cluster.place(&on("y", "b")).unwrap();
    assert_eq!(cluster.remove_host("a").unwrap(), ["x"]);
    assert_eq!(cluster.release("x"), Err(PlaceError::Unknown("x".into())));
    assert_eq!(
        cluster.remove_host("a"),
        Err(InventoryError::Unknown("a".into()))
    );
    assert_eq!(cluster.usage().cpu, 16 * MICRO);
    cluster.add_host(&host("c")).unwrap();
    assert!(cluster.place(&on("x", "c")).is_ok());
}

#[test]
fn hosts_and_requests_that_make_no_sense_are_refused_by_name() {
    let mut cluster = cluster(&[host("a")]);
    assert_eq!(
        cluster.add_host(&host("a")),
        Err(InventoryError::Twice("a".into()))
    );
    let mut twice = host("b");
    twice.nodes[1].cpus[0] = 0;
    let cpu = InventoryError::CpuTwice {
        host: "b".into(),
        cpu: 0,
    };
    assert_eq!(cluster.add_host(&twice), Err(cpu));
    let mut vast = host("c");
    vast.nodes[0].memory = u64::MAX;
    assert!(matches!(
        cluster.add_host(&vast),
        Err(InventoryError::Number { .. })
    ));
    let mut none = host("d");
    none.nodes.clear();
    assert!(cluster.add_host(&none).is_err());
    let vast = Request {
        memory: u64::MAX,
        ..request("vm", 1, 1)
    };
    assert!(matches!(
        cluster.place(&vast),
        Err(Refusal::Malformed { .. })
    ));
    let half = Request {
        milli_cpus: 500,
        ..dedicated("vm", 1, 1)
    };
    assert!(matches!(
        cluster.place(&half),
        Err(Refusal::Malformed { .. })
    ));
    cluster.place(&request("vm", 1, 1)).unwrap();
    let again = cluster.place(&request("vm", 1, 1));
    assert_eq!(again, Err(Refusal::Twice("vm".into())));
    assert!(Overcommit::new(99, 1600, 100).is_err());
}
