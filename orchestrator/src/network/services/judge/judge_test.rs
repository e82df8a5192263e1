//! What follows from declared objects, without a kernel.

use serde_json::{Value, json};

use super::super::uplink::Held;
use super::*;
use crate::model::{Container, ElasticAddress, Meta, Resource, Service, Timestamp, kind_of};

const ONE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 5);
const TWO: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 6);
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 9);

/// What is declared, and what is asked of it.
#[derive(Default)]
struct Case {
    declared: Declared,
    answers: Answers,
    elastic: Vec<Subnet>,
}

fn ground() -> Ground {
    let held = |address: [u8; 4], prefix, interface: &str, bridge| Held {
        address: address.into(),
        prefix,
        interface: interface.to_owned(),
        bridge,
        elastic: false,
    };
    Ground {
        held: vec![
            held([10, 88, 0, 1], 16, "skerry0", true),
            held([10, 90, 0, 1], 24, "skerry1", true),
            held([192, 0, 2, 1], 24, "uplink", false),
        ],
        interfaces: ["skerry0", "skerry1", "uplink"].map(str::to_owned).into(),
        uplink: Some("uplink".to_owned()),
        ..Ground::default()
    }
}

impl Case {
    fn enter<R: Resource>(&mut self, namespace: &str, name: &str, body: Value) {
        self.enter_at::<R>("2026-01-01T00:00:00Z", namespace, name, body);
    }

    fn enter_at<R: Resource>(&mut self, made: &str, namespace: &str, name: &str, body: Value) {
        let made: Timestamp = serde_json::from_value(json!(made)).expect("a moment");
        let kind = kind_of::<R>();
        let Value::Object(mut body) = body else {
            unreachable!("it is an object")
        };
        let labels = body.remove("labels").unwrap_or(json!({}));
        let meta = Meta {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            uid: format!("uid-{namespace}-{name}"),
            generation: 1,
            creation_timestamp: Some(made),
            labels: serde_json::from_value(labels).expect("labels"),
            ..Meta::default()
        };
        let body = kind.accept(body).expect("it can be");
        let object = Object { kind, meta, body };
        assert!(self.declared.enter(&object), "it is new");
    }

    /// A container with the label `app: web`, as its agent says that it is.
    fn runs(&mut self, name: &str, address: Ipv4Addr, ready: bool, publish: Value) {
        self.runs_in("default", name, address, "Running", ready, publish);
    }

    fn runs_in(
        &mut self,
        namespace: &str,
        name: &str,
        address: Ipv4Addr,
        phase: &str,
        ready: bool,
        publish: Value,
    ) {
        let status = if ready { "True" } else { "False" };
        let body = json!({
            "labels": {"app": "web"},
            "spec": {"image": "/image", "networks": [{}], "publish": publish},
            "status": {
                "phase": phase, "host": "here", "addresses": [address],
                "conditions": [{
                    "type": "Ready", "status": status, "reason": "Slow", "message": "not yet",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        });
        self.enter::<Container>(namespace, name, body);
    }

    fn service(&mut self, namespace: &str, name: &str, more: Value) {
        let mut spec =
            json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.enter::<Service>(namespace, name, json!({"spec": spec}));
    }

    fn judge(&self) -> Judgement {
        let terms = Terms {
            host: "here".to_owned(),
            pool: "10.96.0.0/16".parse().expect("a subnet"),
            elastic: self.elastic.clone(),
        };
        judge(&self.declared, &ground(), &terms, &self.answers)
    }

    /// What is said of an object: its status, or its condition `Published` alone.
    fn said(&self, kind: &str, name: &str) -> Value {
        let words = self.judge().words;
        let found = words.into_iter().find_map(|word| {
            let (object, said) = match word {
                Word::Status(object, status) => (object, status),
                Word::Published(object, condition) => {
                    let conditions: Vec<_> = condition.into_iter().collect();
                    (object, json!({"conditions": conditions}))
                }
            };
            (object.kind.singular == kind && object.meta.name == name).then_some(said)
        });
        found.unwrap_or_else(|| panic!("nothing is said of {kind} {name}"))
    }

    /// The reason and message of a condition of an object.
    fn condition(&self, kind: &str, name: &str, condition: &str) -> (String, String) {
        let status = self.said(kind, name);
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|one| one["type"] == condition);
        let found = found.unwrap_or_else(|| panic!("{condition} of {kind} {name}: {status}"));
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        (text("reason"), text("message"))
    }
}

#[test]
fn a_port_is_whose_who_declared_it_first() {
    let mut case = Case::default();
    let publish = json!([{"hostPort": 8080, "port": 80}, {"hostPort": 9090, "port": 90}]);
    case.runs("one", ONE, true, publish);
    let later = json!({"selector": {"app": "web"}, "ports": [{"port": 80}], "publish": [8080]});
    case.enter_at::<Service>(
        "2026-01-02T00:00:00Z",
        "default",
        "web",
        json!({"spec": later}),
    );
    let fronts = case.judge().plan.fronts;
    let of_host = |front: &&Front| front.at == At::Host(None);
    let ports: Vec<_> = fronts
        .iter()
        .filter(of_host)
        .map(|f| (f.port, f.backends.clone()))
        .collect();
    assert_eq!(ports, [(8080, vec![(ONE, 80)]), (9090, vec![(ONE, 90)])]);
    let (reason, why) = case.condition("service", "web", "Published");
    assert_eq!(reason, "NotPublished");
    assert!(
        why.contains("8080/TCP") && why.contains("container default/one"),
        "{why}"
    );
    assert_eq!(
        case.condition("container", "one", "Published").0,
        "Published"
    );
}

#[test]
fn ports_at_different_addresses_do_not_exclude_each_other() {
    let mut case = Case::default();
    let at = |address: &str| json!([{"hostPort": 53, "port": 53, "protocol": "UDP", "hostAddress": address}]);
    case.runs("one", ONE, true, at("192.0.2.1"));
    case.runs("two", TWO, true, at("10.88.0.1"));
    case.runs("three", TWO, true, at("192.0.2.9"));
    assert_eq!(case.judge().plan.fronts.len(), 2);
    let (_, why) = case.condition("container", "three", "Published");
    assert!(why.contains("192.0.2.9"), "{why}");
}

#[test]
fn only_those_of_the_tenant_who_are_ready_and_here_are_behind_a_service() {
    let mut case = Case::default();
    case.runs("one", ONE, true, json!([]));
    case.runs("slow", TWO, false, json!([]));
    case.runs_in(
        "default",
        "ended",
        Ipv4Addr::new(10, 88, 0, 7),
        "Failed",
        false,
        json!([]),
    );
    case.runs_in(
        "other",
        "web",
        Ipv4Addr::new(10, 88, 0, 8),
        "Running",
        true,
        json!([]),
    );
    case.service("default", "web", json!({"address": VIRTUAL}));
    let judgement = case.judge();
    let front = &judgement.plan.fronts[0];
    assert_eq!(
        (front.at, &front.backends),
        (At::Virtual(VIRTUAL), &vec![(ONE, 8080)])
    );
    // Those who are not ready serve those who asked before.
    assert_eq!(front.leaving, [(TWO, 8080)]);
    let status = case.said("service", "web");
    let told: Vec<_> = status["endpoints"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| {
            (
                one["name"].as_str().unwrap_or_default(),
                one["healthy"] == true,
            )
        })
        .collect();
    let expected = [
        ("container/ended", false),
        ("container/one", true),
        ("container/slow", false),
    ];
    assert_eq!(told, expected);
    assert_eq!(status["healthy"], 1);
    let name = ("default".to_owned(), "web".to_owned());
    assert_eq!(judgement.names[&name], VIRTUAL);
}

#[test]
fn workloads_use_a_service_in_the_network_that_they_share_with_who_serves() {
    let mut case = Case::default();
    let far = Ipv4Addr::new(10, 90, 0, 5);
    case.runs("one", ONE, true, json!([]));
    case.runs("far", far, true, json!([]));
    // A neighbour of another tenant is no user.
    case.runs_in("other", "web", TWO, "Running", true, json!([]));
    case.service("default", "web", json!({}));
    let plan = case.judge().plan;
    let front = &plan.fronts[0];
    assert_eq!(front.near.len(), 2);
    for (set, backends) in &front.near {
        let users: Vec<_> = plan.users[set].iter().copied().collect();
        let served: Vec<_> = backends.iter().map(|backend| backend.0).collect();
        assert_eq!(users, served);
    }
}

#[test]
fn who_is_asked_serves_from_the_first_good_answer_on() {
    let mut case = Case::default();
    case.runs("one", ONE, true, json!([]));
    case.service(
        "default",
        "web",
        json!({"healthCheck": {"tcpSocket": {"port": 8080}}}),
    );
    let judgement = case.judge();
    let (asked, wish) = judgement.wishes.iter().next().expect("somebody is asked");
    assert!(!wish.well && !judgement.plan.fronts[0].is_served());
    case.answers.insert(asked.clone(), None);
    assert!(case.judge().plan.fronts[0].is_served());
    // The next agent goes on with what was known.
    let known = case.said("service", "web");
    case.answers.clear();
    let spec = json!({
        "selector": {"app": "web"}, "ports": [{"port": 80}],
        "healthCheck": {"tcpSocket": {"port": 8080}},
    });
    case.enter::<Service>("default", "web", json!({"spec": spec, "status": known}));
    let judgement = case.judge();
    assert!(judgement.plan.fronts[0].is_served());
    assert!(judgement.wishes.values().all(|wish| wish.well));
    case.answers
        .insert(asked.clone(), Some("it is silent".to_owned()));
    let judgement = case.judge();
    let front = &judgement.plan.fronts[0];
    assert!(!front.is_served() && front.leaving.is_empty());
    assert_eq!(
        case.said("service", "web")["endpoints"][0]["why"],
        "it is silent"
    );
}

#[test]
fn a_services_address_is_kept_and_not_given_twice() {
    let mut case = Case::default();
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    let body = json!({"spec": spec, "status": {"address": VIRTUAL}});
    case.enter_at::<Service>("2026-01-02T00:00:00Z", "default", "has", body);
    case.service("default", "wants", json!({"address": VIRTUAL}));
    case.service("default", "strange", json!({"address": "10.88.0.9"}));
    assert_eq!(case.said("service", "has")["address"], json!(VIRTUAL));
    let (reason, why) = case.condition("service", "wants", "Ready");
    assert_eq!(reason, "NoAddress");
    assert!(why.contains("service default/has"), "{why}");
    let (_, why) = case.condition("service", "strange", "Ready");
    assert!(why.contains("10.96.0.0/16"), "{why}");
}

#[test]
fn elastic_addresses_that_are_somebodys_are_refused() {
    let mut case = Case::default();
    case.runs("one", ONE, true, json!([]));
    let mut elastic = |made: &str, name: &str, address: &str, target: &str| {
        let spec = json!({"address": address, "target": {"kind": "Container", "name": target}});
        let made = format!("2026-01-{made}T00:00:00Z");
        case.enter_at::<ElasticAddress>(&made, "default", name, json!({"spec": spec}));
    };
    elastic("02", "second", "203.0.113.7", "one");
    elastic("01", "first", "203.0.113.7", "one");
    elastic("01", "own", "192.0.2.1", "one");
    elastic("01", "near", "10.88.3.3", "one");
    elastic("01", "service", "10.96.3.3", "one");
    elastic("01", "nobody", "203.0.113.8", "none");
    for (name, reason, word) in [
        ("second", "Taken", "elasticaddress default/first"),
        ("own", "InUse", "uplink"),
        ("near", "InUse", "skerry0"),
        ("service", "InUse", "10.96.0.0/16"),
        ("nobody", "NoTarget", "Container none"),
        ("first", "Attached", ""),
    ] {
        let (found, why) = case.condition("elasticaddress", name, "Ready");
        assert_eq!(found, reason, "{name}: {why}");
        assert!(why.contains(word), "{name}: {why}");
    }
    let held: Vec<_> = case.judge().plan.elastic;
    assert_eq!(held.len(), 1);
    assert_eq!(
        (held[0].interface.as_str(), held[0].target),
        ("uplink", Some(ONE))
    );
    case.elastic = vec!["198.51.100.0/24".parse().expect("a subnet")];
    assert_eq!(
        case.condition("elasticaddress", "first", "Ready").0,
        "NotAllowed"
    );
}
