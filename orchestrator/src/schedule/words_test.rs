//! Places as far as words are concerned: labels, taints, other workloads, preferences; who has to go; and
//! what is said of it all.

use super::testing::*;
use super::*;

fn in_site(name: &str, site: &str) -> Host {
    let mut host = host(name);
    host.labels.insert("site".into(), site.into());
    host
}

fn app(id: &str, app: &str) -> Request {
    Request {
        labels: labels(&[("app", app)]),
        ..request(id, 1, 1)
    }
}

fn site() -> Topology {
    Topology::Label("site".into())
}

fn near(app: &str, within: Topology, apart: bool) -> Near {
    Near {
        workloads: Selector::equal([("app", app)]),
        within,
        apart,
    }
}

fn taint(effect: Effect) -> Taint {
    Taint {
        key: "role".into(),
        value: "gateway".into(),
        effect,
    }
}

#[test]
fn cordoned_and_claimed_hosts_are_left_alone() {
    let mut claimed = host("b");
    claimed.claimed = true;
    let mut cluster = cluster(&[host("a"), claimed]);
    cluster.cordon("a", true).unwrap();
    let refusal = cluster.place(&request("vm", 1, 1)).unwrap_err();
    assert_eq!(
        reasons(refusal),
        [(Reason::Cordoned, 1), (Reason::Claimed, 1)]
    );
    cluster.cordon("a", false).unwrap();
    assert_eq!(cluster.place(&request("vm", 1, 1)).unwrap().host, "a");
}

#[test]
fn a_selector_has_the_rules_that_labels_can_keep() {
    let cluster = cluster(&[in_site("a", "north"), in_site("b", "south"), host("c")]);
    let able = |rule: Rule| {
        let term = Term {
            key: "site".into(),
            rule,
        };
        let wanted = Request {
            hosts: Selector { terms: vec![term] },
            ..request("vm", 1, 1)
        };
        let ranked = cluster.explain(&wanted).unwrap().ranked;
        let mut names: Vec<String> = ranked.into_iter().map(|r| r.host).collect();
        names.sort();
        names.join("")
    };
    assert_eq!(able(Rule::In(["north".into(), "west".into()].into())), "a");
    assert_eq!(able(Rule::NotIn(["north".into()].into())), "bc");
    assert_eq!(able(Rule::Exists), "ab");
    assert_eq!(able(Rule::Absent), "c");
}

#[test]
fn a_taint_keeps_away_whoever_does_not_tolerate_it() {
    let mut tainted = host("a");
    tainted.taints.push(taint(Effect::Refuse));
    let mut cluster = cluster(&[tainted]);
    let refusal = cluster.place(&request("vm", 1, 1)).unwrap_err();
    assert_eq!(
        reasons(refusal),
        [(Reason::Taint("role=gateway".into()), 1)]
    );
    let tolerant = Request {
        tolerations: vec![Toleration {
            key: Some("role".into()),
            ..Toleration::default()
        }],
        ..request("vm", 1, 1)
    };
    assert!(cluster.place(&tolerant).is_ok());
    cluster.relabel("a", labels(&[]), Vec::new()).unwrap();
    assert!(cluster.place(&request("other", 1, 1)).is_ok());
}

#[test]
fn a_host_to_avoid_is_taken_last() {
    let mut tainted = host("a");
    tainted.taints.push(taint(Effect::Avoid));
    let mut cluster = cluster(&[tainted, host("b")]);
    assert_eq!(cluster.place(&request("one", 60, 60)).unwrap().host, "b");
    assert_eq!(cluster.place(&request("two", 60, 60)).unwrap().host, "a");
}

#[test]
fn affinity_is_kept_within_a_place_and_the_first_may_begin_anywhere() {
    let mut cluster = cluster(&[
        host("z"),
        in_site("a", "north"),
        in_site("b", "south"),
        in_site("c", "south"),
    ]);
    let together = |id: &str| Request {
        near: vec![near("db", site(), false)],
        ..app(id, "db")
    };
    let first = cluster.place(&Request {
        hosts: Selector::equal([("name", "b")]),
        ..together("one")
    });
    assert_eq!(first.unwrap().host, "b");
    cluster.cordon("b", true).unwrap();
    assert_eq!(cluster.place(&together("two")).unwrap().host, "c");
    cluster.cordon("c", true).unwrap();
    let refusal = cluster.place(&together("three")).unwrap_err();
    assert_eq!(
        reasons(refusal),
        [(Reason::Cordoned, 2), (Reason::Affinity, 2)]
    );
    // Who wants to be near to what is nowhere is not placed.
    let lonely = Request {
        near: vec![near("cache", site(), false)],
        ..app("lonely", "web")
    };
    assert!(cluster.place(&lonely).is_err());
}

#[test]
fn anti_affinity_holds_for_both_sides() {
    let mut cluster = cluster(&[host("a"), host("b")]);
    let shy = |id: &str| Request {
        near: vec![near("web", Topology::Host, true)],
        ..app(id, "web")
    };
    let one = cluster.place(&shy("one")).unwrap().host;
    let two = cluster.place(&shy("two")).unwrap().host;
    assert_ne!(one, two);
    let refusal = cluster.place(&shy("three")).unwrap_err();
    assert_eq!(reasons(refusal), [(Reason::AntiAffinity, 2)]);
    // This one does not mind the others, but they mind it.
    let refusal = cluster.place(&app("four", "web")).unwrap_err();
    assert_eq!(reasons(refusal), [(Reason::Repelled, 2)]);
    cluster.release("one").unwrap();
    assert_eq!(cluster.place(&app("four", "web")).unwrap().host, one);
}

#[test]
fn a_spread_leans_no_further_than_it_may() {
    let sites = ["n", "n", "s", "w"];
    let hosts: Vec<Host> = (0..4)
        .map(|i| in_site(&format!("h{i}"), sites[i]))
        .collect();
    let mut cluster = cluster(&hosts);
    let even = |id: &str| Request {
        spread: vec![Spread {
            workloads: Selector::equal([("app", "web")]),
            over: site(),
            max_skew: 1,
            soft: false,
        }],
        ..app(id, "web")
    };
    let mut places: Vec<String> = Vec::new();
    for i in 0..6 {
        let host = cluster.place(&even(&format!("web-{i}"))).unwrap().host;
        let at: usize = host[1..].parse().unwrap();
        places.push(sites[at].into());
        if i % 3 == 2 {
            places.sort();
            assert_eq!(places.join(""), "nsw");
            places.clear();
        }
    }
    cluster.place(&even("seventh")).unwrap();
    // A place that nothing can be put into does not count.
    cluster.cordon("h3", true).unwrap();
    assert!(cluster.place(&even("eighth")).is_ok());
}

#[test]
fn a_soft_spread_and_preferences_outweigh_packing() {
    let mut cluster = cluster(&[in_site("a", "n"), in_site("b", "s")]);
    let soft = |id: &str| Request {
        spread: vec![Spread {
            workloads: Selector::equal([("app", "web")]),
            over: site(),
            max_skew: 1,
            soft: true,
        }],
        ..app(id, "web")
    };
    let one = cluster.place(&soft("one")).unwrap().host;
    assert_ne!(cluster.place(&soft("two")).unwrap().host, one);
    let wish = Request {
        prefer_hosts: vec![Preferred {
            weight: 5,
            what: Selector::equal([("site", "s")]),
        }],
        ..request("wish", 1, 1)
    };
    assert_eq!(cluster.place(&wish).unwrap().host, "b");
    let company = Request {
        prefer_near: vec![Preferred {
            weight: 5,
            what: near("web", Topology::Host, true),
        }],
        ..request("alone", 1, 1)
    };
    cluster.release("one").unwrap();
    assert_eq!(cluster.place(&company).unwrap().host, one);
}

#[test]
fn the_least_important_and_fewest_have_to_go() {
    let mut cluster = cluster(&[host("a"), host("b")]);
    let on = |id: &str, name: &str, cpus: u64, priority: i32| Request {
        hosts: Selector::equal([("name", name)]),
        priority,
        ..dedicated(id, cpus, 1)
    };
    for (id, name, cpus, priority) in [
        ("a-large", "a", 10, 50),
        ("a-small", "a", 6, 10),
        ("b-1", "b", 3, 10),
        ("b-2", "b", 3, 10),
        ("b-3", "b", 10, 100),
    ] {
        cluster.place(&on(id, name, cpus, priority)).unwrap();
    }
    let urgent = |id: &str, cpus: u64, priority: i32| Request {
        priority,
        ..dedicated(id, cpus, 1)
    };
    // One of a is enough, and two of b would be as unimportant.
    let done = cluster.preempt(&urgent("first", 5, 60)).unwrap();
    let names: Vec<&str> = done
        .victims
        .iter()
        .map(|victim| victim.id.as_str())
        .collect();
    assert_eq!(
        (done.placement.host.as_str(), names),
        ("a", vec!["a-small"])
    );
    assert_eq!(cluster.find("a-small"), None);
    // Two unimportant ones rather than a more important one.
    let done = cluster.preempt(&urgent("second", 6, 60)).unwrap();
    let names: Vec<&str> = done
        .victims
        .iter()
        .map(|victim| victim.id.as_str())
        .collect();
    assert_eq!(
        (done.placement.host.as_str(), names),
        ("b", vec!["b-1", "b-2"])
    );
    // Nobody goes for an equal, or for somebody who does not want it.
    assert!(cluster.preempt(&urgent("third", 8, 50)).is_err());
    let meek = Request {
        preemption: Preemption::Never,
        ..urgent("meek", 8, 1000)
    };
    assert!(matches!(
        cluster.preempt(&meek),
        Err(Refusal::NoVictims { .. })
    ));
    assert!(cluster.find("a-large").is_some());
}

#[test]
fn a_whole_host_is_emptied_only_of_the_less_important() {
    let mut cluster = cluster(&[host("a"), host("b")]);
    for (id, name, priority) in [("x", "a", 5), ("y", "a", 1), ("z", "b", 9)] {
        let on = Request {
            hosts: Selector::equal([("name", name)]),
            priority,
            ..request(id, 1, 1)
        };
        cluster.place(&on).unwrap();
    }
    let claim = Request {
        kind: Kind::Host,
        priority: 9,
        ..request("claim", 1, 1)
    };
    let done = cluster.preempt(&claim).unwrap();
    assert_eq!((done.placement.host.as_str(), done.victims.len()), ("a", 2));
}

#[test]
fn a_refusal_says_how_many_hosts_lack_what_and_what_to_do() {
    let hosts: Vec<Host> = (0..5).map(|i| host(&format!("h{i}"))).collect();
    let mut cluster = cluster(&hosts);
    for i in 0..5 {
        let fill = Request {
            hosts: Selector::equal([("name", format!("h{i}"))]),
            ..dedicated(&format!("fill-{i}"), 14 - (i == 3) as u64, 1)
        };
        cluster.place(&fill).unwrap();
    }
    cluster.cordon("h0", true).unwrap();
    let refusal = cluster.place(&dedicated("web", 4, 1)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "no host for web: 4 hosts: 3 CPUs free, 4 wanted (nearest: h3); 1 host: cordoned. \
         Ask for fewer CPUs or a tier that shares them, preempt, release something, or add a host."
    );
    let empty = Cluster::new(Policy::default());
    let said = empty.explain(&request("web", 1, 1)).unwrap();
    assert_eq!((said.able, said.misses.len(), said.ranked.len()), (0, 0, 0));
}

#[test]
fn an_explanation_names_the_host_that_is_taken_then_and_adds_up() {
    let hosts: Vec<Host> = (0..6).map(|i| host(&format!("h{i}"))).collect();
    let mut cluster = cluster(&hosts);
    for i in 0..9 {
        cluster
            .place(&request(&format!("vm-{i}"), 1 + i % 4, 3 * i))
            .unwrap();
    }
    let wanted = dedicated("next", 3, 20);
    let said = cluster.explain(&wanted).unwrap();
    let missed: usize = said.misses.iter().map(|miss| miss.hosts).sum();
    assert_eq!(said.able + missed, 6);
    for ranked in &said.ranked {
        let sum: f64 = ranked.terms.iter().map(|(_, value)| value).sum();
        assert!((sum - ranked.score).abs() < 1e-9, "{ranked}");
    }
    let shown = said.to_string();
    assert!(shown.contains("next best"), "{shown}");
    assert_eq!(cluster.place(&wanted).unwrap().host, said.ranked[0].host);
    // It is as if it were not there.
    assert_eq!(cluster.explain(&wanted).unwrap(), said);
    let ran = cluster.host_usage(&said.ranked[0].host).unwrap();
    let next = Workload {
        id: "next".into(),
        tier: Tier::Dedicated,
        priority: 0,
    };
    assert!(ran.workloads.contains(&next) && ran.free.cpu < ran.capacity.cpu);
    assert_eq!(cluster.hosts().count(), 6);
}

#[test]
fn each_host_is_judged_by_itself_and_the_best_comes_first() {
    let mut cluster = cluster(&[host("a"), host("b"), host("c")]);
    cluster.cordon("a", true).unwrap();
    cluster.place(&request("large", 1, 60)).unwrap();
    let verdicts = cluster.verdicts(&request("vm", 1, 8), 10).unwrap();
    let names: Vec<&str> = verdicts.iter().map(|v| v.host.as_str()).collect();
    let explained = cluster.explain(&request("vm", 1, 8)).unwrap();
    assert_eq!(names.len(), 3);
    assert_eq!(names[0], explained.ranked[0].host);
    assert!(verdicts[0].miss.is_none() && verdicts[0].ranked.is_some());
    for verdict in &verdicts[1..] {
        assert_eq!(verdict.ranked, None);
        let why = verdict.miss.as_ref().map(Miss::why).unwrap();
        match verdict.host.as_str() {
            "a" => assert_eq!(why, "cordoned"),
            _ => assert!(why.contains("of memory free, 8192 MiB wanted"), "{why}"),
        }
    }
    assert_eq!(cluster.verdicts(&request("vm", 1, 8), 1).unwrap().len(), 1);
    // What has a place is judged as if it had none.
    let large = cluster.verdicts(&request("large", 1, 60), 10).unwrap();
    assert_eq!(large.iter().filter(|v| v.miss.is_none()).count(), 2);
}
