//! What changes of the table are made of: a chain of them leaves in a real kernel what writing it anew does.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;

use proptest::prelude::*;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::super::plan::{At, Elastic, Front, Plan};
use super::super::rules;
use super::super::uplink::Range;
use super::*;
use crate::model::Protocol;
use crate::network::nft::Family;

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, n)
}

fn front() -> impl Strategy<Value = Front> {
    let at = prop_oneof![
        Just(At::Host(None)),
        Just(At::Host(Some(Ipv4Addr::new(192, 0, 2, 1)))),
        (1..4u8).prop_map(|n| At::Virtual(Ipv4Addr::new(10, 96, 0, n))),
    ];
    let backends = prop::collection::btree_set(2..8u8, 0..4);
    (at, any::<bool>(), 1..5u16, backends).prop_map(|(at, udp, port, backends)| {
        let backends: Vec<_> = backends.into_iter().map(|n| (address(n), 80)).collect();
        let near = match at {
            At::Virtual(_) => vec![("team/skerry0".to_owned(), backends.clone())],
            At::Host(_) => Vec::new(),
        };
        Front {
            whose: format!("a test's {port}"),
            at,
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            port,
            backends,
            leaving: Vec::new(),
            near,
        }
    })
}

fn plan() -> impl Strategy<Value = Plan> {
    let elastic = prop::collection::btree_map(1..4u8, prop::option::of(2..8u8), 0..3);
    let users = prop::collection::btree_set((2..8u8).prop_map(address), 0..5);
    let networks = prop::collection::btree_set(0..3u8, 0..3);
    let fronts = prop::collection::vec(front(), 0..7);
    (fronts, users, elastic, networks).prop_map(|(fronts, users, elastic, networks)| {
        let mut plan = Plan::new("10.96.0.0/16".parse().unwrap());
        plan.fronts = fronts;
        plan.users = BTreeMap::from([("team/skerry0".to_owned(), users)]);
        plan.elastic = elastic
            .into_iter()
            .map(|(n, target)| Elastic {
                whose: "a test".to_owned(),
                address: Ipv4Addr::new(203, 0, 113, n),
                interface: "lo".to_owned(),
                target: target.map(address),
            })
            .collect();
        let ranges = networks.into_iter();
        plan.networks = ranges
            .map(|n| Range::of(Ipv4Addr::new(10, 90, n, 0), 24))
            .collect();
        plan
    })
}

/// All that `nft` sees, line by line: sets' elements come in an order of their own.
fn listed() -> Vec<String> {
    let mut list = Command::new("nft");
    list.args(["-s", "list", "table", "ip", rules::TABLE]);
    let done = list.output().expect("nftables");
    assert!(done.status.success(), "{done:?}");
    let text = String::from_utf8(done.stdout).unwrap();
    let words = text
        .split_whitespace()
        .map(|word| word.trim_end_matches(','));
    let mut chains: Vec<String> = text.lines().map(str::to_owned).collect();
    chains.retain(|line| !line.contains(" : ") && !line.contains("elements"));
    let mut words: Vec<String> = words.map(str::to_owned).collect();
    words.sort();
    chains.sort();
    chains.extend(words);
    chains
}

/// A network namespace of its own, for this thread.
fn apart() {
    assert!(
        rustix::process::geteuid().is_root(),
        "run these tests as root"
    );
    // SAFETY: descriptors stay shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
}

/// Whatever was there before, a change makes what would be there had all been made anew.
#[test]
fn changes_come_to_what_is_made_anew() {
    apart();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(48));
    let plans = prop::collection::vec(plan(), 2..5);
    let ran = runner.run(&plans, |plans| {
        let tables: Vec<_> = plans.iter().map(rules::table).collect();
        let mut tables = tables
            .into_iter()
            .filter(|table| *table != Table::default());
        let Some(mut there) = tables.next() else {
            return Ok(());
        };
        rules::set(&there, None).unwrap();
        for wanted in tables {
            rules::set(&wanted, Some(&there)).unwrap();
            there = wanted;
        }
        let changed = listed();
        rules::set(&there, None).unwrap();
        prop_assert_eq!(changed, listed());
        Ok(())
    });
    ran.unwrap();
}

#[test]
fn what_is_as_it_is_to_be_is_not_touched() {
    let plan = Plan {
        elastic: vec![Elastic {
            whose: "a test".to_owned(),
            address: address(9),
            interface: "lo".to_owned(),
            target: None,
        }],
        ..Plan::new("10.96.0.0/16".parse().unwrap())
    };
    let table = rules::table(&plan);
    let none = || Batch::of(Family::Ip, rules::TABLE);
    let change = table.change(&table, none());
    assert_eq!(format!("{change:?}"), format!("{:?}", none()));
}
