//! Tests of ports: their names, and what their aliases tell.

use std::collections::BTreeSet;

use super::*;

const UID: &str = "6f1c2d3e-4a5b-4c6d-8e9f-0a1b2c3d4e5f";

#[test]
fn names_of_ports_never_change() {
    assert_eq!(name(UID, 0).unwrap(), "sk70896551665c9");
}

#[test]
fn names_are_short_and_differ() {
    let names: BTreeSet<_> = (0..5000)
        .map(|n| name(&format!("w-{n}"), 0).unwrap())
        .collect();
    assert_eq!(names.len(), 5000);
    assert!(names.iter().all(|name| name.len() == 15 && is_name(name)));
}

#[test]
fn what_is_no_uid_is_refused() {
    for wrong in ["", "..", "a/b", "a b", "ä", &"a".repeat(65)] {
        assert!(
            matches!(name(wrong, 0), Err(NetworkError::Uid(_))),
            "{wrong}"
        );
    }
}

#[test]
fn a_port_is_read_back_from_its_interface() {
    let port = Port::new(UID, Ipv4Addr::new(10, 88, 1, 2)).unwrap();
    assert_eq!(Port::read(&port.name, &port.alias()), Some(port.clone()));
    assert_eq!(port.mac().to_string(), "02:53:0a:58:01:02");
    // That of an agent before, too.
    let before = format!("skerry {UID} 10.88.1.2");
    assert_eq!(Port::read(&port.name, &before), Some(port.clone()));
    let longest = Port {
        name: name(UID, 7).unwrap(),
        place: 7,
        net: UID.to_owned(),
        tenant: "a".repeat(63),
        limits: Limits {
            ingress: Some(u64::MAX),
            egress: Some(u64::MAX),
        },
        ..port
    };
    assert_eq!(
        Port::read(&longest.name, &longest.alias()),
        Some(longest.clone())
    );
    // What the kernel takes (IFALIASZ).
    assert!(longest.alias().len() < 256);
}

#[test]
fn what_others_write_into_an_alias_is_no_port() {
    let port = Port::new(UID, Ipv4Addr::new(10, 88, 1, 2)).unwrap();
    for alias in [
        "",
        "uplink",
        "skerry",
        "skerry a",
        "skerry a b",
        "skerry a 10.88.1.2",
        "skerry ../x 1.1.1.1",
    ] {
        assert_eq!(Port::read(&port.name, alias), None, "{alias}");
    }
    for more in [" more", " in=x", " up=3"] {
        assert_eq!(Port::read(&port.name, &(port.alias() + more)), None);
    }
    assert_eq!(Port::read("eth0", &port.alias()), None);
    assert!(!is_name("skerry0") && !is_name("skABCDEF0123456") && !is_name("skyscraper00000"));
}
