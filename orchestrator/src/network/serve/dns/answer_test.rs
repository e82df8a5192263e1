//! Tests of what a network's name server knows.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{MessageType, Query};

use super::*;
use crate::network::{ServiceNames, Subnet};

struct Web;

impl ServiceNames for Web {
    fn addresses(&self, tenant: &str, name: &str) -> Vec<IpAddr> {
        let address = IpAddr::from([10, 96, 0, 5]);
        (tenant == "team" && name == "shop")
            .then_some(address)
            .into_iter()
            .collect()
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut asked = Message::new(7, MessageType::Query, OpCode::Query);
    asked.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    asked
}

/// What the workload with an address in `default` is answered.
fn asked(last: u8, message: &Message) -> Answer {
    let registry = Registry::pretended(&[("team", "web"), ("team", "db.main"), ("other", "web")]);
    registry.set_services(Arc::new(Web));
    let from = Ipv4Addr::new(10, 88, 0, last).into();
    answer(&registry, &Net::default(Subnet::default()), from, message)
}

fn known(last: u8, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    match asked(last, &question(name, kind)) {
        Answer::Known(said) => {
            assert_eq!(said.metadata.id, 7);
            let data = said.answers.iter().map(|record| record.data.to_string());
            (said.metadata.response_code, data.collect())
        }
        other => panic!("{name}: {other:?}"),
    }
}

fn found(data: &str) -> (ResponseCode, Vec<String>) {
    (ResponseCode::NoError, vec![data.to_owned()])
}

const NONE: (ResponseCode, Vec<String>) = (ResponseCode::NoError, Vec::new());
const NO_NAME: (ResponseCode, Vec<String>) = (ResponseCode::NXDomain, Vec::new());

#[test]
fn workloads_of_the_own_tenant_have_names_and_their_addresses_lead_back() {
    let a = RecordType::A;
    assert_eq!(known(2, "web.team.skerry.internal.", a), found("10.88.0.2"));
    assert_eq!(known(2, "WEB.Team.skerry.INTERNAL.", a), found("10.88.0.2"));
    assert_eq!(
        known(2, "db.main.team.skerry.internal.", a),
        found("10.88.0.3")
    );
    assert_eq!(
        known(2, "3.0.88.10.in-addr.arpa.", RecordType::PTR),
        found("db.main.team.skerry.internal.")
    );
}

#[test]
fn other_tenants_names_and_addresses_are_not_told() {
    let a = RecordType::A;
    assert_eq!(known(2, "web.other.skerry.internal.", a), NO_NAME);
    assert_eq!(
        known(4, "web.other.skerry.internal.", a),
        found("10.88.0.4")
    );
    let ptr = RecordType::PTR;
    assert_eq!(known(2, "4.0.88.10.in-addr.arpa.", ptr), NO_NAME);
    // Nor is anybody who is nobody told anything.
    assert_eq!(known(99, "web.team.skerry.internal.", a), NO_NAME);
}

#[test]
fn a_name_without_such_an_address_is_no_missing_name() {
    let aaaa = RecordType::AAAA;
    assert_eq!(known(2, "web.team.skerry.internal.", aaaa), NONE);
    assert_eq!(known(2, "team.skerry.internal.", aaaa), NONE);
    assert_eq!(known(2, "skerry.internal.", aaaa), NONE);
    assert_eq!(known(2, "no.team.skerry.internal.", aaaa), NO_NAME);
}

#[test]
fn services_are_known_to_their_tenant() {
    let name = "shop.svc.team.skerry.internal.";
    assert_eq!(known(2, name, RecordType::A), found("10.96.0.5"));
    assert_eq!(known(4, name, RecordType::A), NO_NAME);
}

#[test]
fn others_are_asked_for_the_rest_and_nonsense_is_refused() {
    for name in [
        "example.org.",
        "notskerry.internal.",
        "1.2.0.192.in-addr.arpa.",
        "88.10.in-addr.arpa.",
    ] {
        let answer = asked(2, &question(name, RecordType::A));
        assert!(matches!(answer, Answer::Elsewhere), "{name}");
    }
    let empty = Message::new(7, MessageType::Query, OpCode::Query);
    let Answer::Known(said) = asked(2, &empty) else {
        panic!("it is answered")
    };
    assert_eq!(said.metadata.response_code, ResponseCode::FormErr);
    let update = Message::new(7, MessageType::Query, OpCode::Update);
    let Answer::Known(said) = asked(2, &update) else {
        panic!("it is answered")
    };
    assert_eq!(said.metadata.response_code, ResponseCode::NotImp);
    let mut answer = question("example.org.", RecordType::A);
    answer.metadata.message_type = MessageType::Response;
    assert!(matches!(asked(2, &answer), Answer::Nothing));
    // And nobody from elsewhere is answered.
    let registry = Registry::pretended(&[]);
    let net = Net::default(Subnet::default());
    let question = question("example.org.", RecordType::A);
    let from = Ipv4Addr::new(192, 0, 2, 1).into();
    assert!(matches!(
        answer_of(&registry, &net, from, &question),
        Answer::Nothing
    ));
}

fn answer_of(registry: &Registry, net: &Net, from: IpAddr, asked: &Message) -> Answer {
    answer(registry, net, from, asked)
}
