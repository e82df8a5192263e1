//! Tests of what clients are answered.

use super::*;
use crate::network::Subnet;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);

fn asked(kind: MessageType, mac: Mac) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new(none, none, none, none, &mac.0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message
}

fn answered(message: &Message) -> Option<Reply> {
    let registry = Registry::pretended(&[("team", "web"), ("other", "db")]);
    answer(&registry, &Net::default(Subnet::default()), message)
}

fn kind(reply: &Reply) -> Option<MessageType> {
    reply.message.opts().msg_type()
}

#[test]
fn whoever_is_declared_gets_its_address_and_all_that_goes_with_it() {
    let mac = Mac::of(ADDRESS);
    let offer = answered(&asked(MessageType::Discover, mac)).expect("an offer");
    assert_eq!(kind(&offer), Some(MessageType::Offer));
    assert_eq!((offer.to, offer.mac), (ADDRESS, Some(mac)));
    let mut request = asked(MessageType::Request, mac);
    let options = request.opts_mut();
    options.insert(DhcpOption::RequestedIpAddress(ADDRESS));
    let gateway = Ipv4Addr::new(10, 88, 0, 1);
    options.insert(DhcpOption::ServerIdentifier(gateway));
    let reply = answered(&request).expect("an acknowledgement");
    assert_eq!(kind(&reply), Some(MessageType::Ack));
    assert_eq!(reply.message.yiaddr(), ADDRESS);
    let options = reply.message.opts();
    for wanted in [
        DhcpOption::Router(vec![gateway]),
        DhcpOption::DomainNameServer(vec![gateway]),
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 0, 0)),
        DhcpOption::BroadcastAddr(Ipv4Addr::new(10, 88, 255, 255)),
        DhcpOption::Hostname("web".to_owned()),
        DhcpOption::DomainName("team.skerry.internal".to_owned()),
        DhcpOption::InterfaceMtu(1500),
        DhcpOption::AddressLeaseTime(3600),
    ] {
        assert_eq!(options.get(OptionCode::from(&wanted)), Some(&wanted));
    }
    let bytes = reply.message.to_vec().expect("bytes");
    assert_eq!(Message::from_bytes(&bytes).expect("read"), reply.message);
}

#[test]
fn another_address_is_refused_to_all_who_hear_it() {
    let mut request = asked(MessageType::Request, Mac::of(ADDRESS));
    let other = Ipv4Addr::new(10, 88, 0, 3);
    request
        .opts_mut()
        .insert(DhcpOption::RequestedIpAddress(other));
    let reply = answered(&request).expect("a refusal");
    assert_eq!(kind(&reply), Some(MessageType::Nak));
    assert_eq!(reply.to, Ipv4Addr::BROADCAST);
    assert_eq!(reply.message.yiaddr(), Ipv4Addr::UNSPECIFIED);
}

#[test]
fn strangers_and_those_who_speak_to_others_get_no_answer() {
    let nobody = Mac::of(Ipv4Addr::new(10, 88, 0, 99));
    for mac in [
        nobody,
        Mac([2, 0, 0, 0, 0, 1]),
        Mac::of(Ipv4Addr::new(10, 1, 0, 2)),
    ] {
        assert!(
            answered(&asked(MessageType::Discover, mac)).is_none(),
            "{mac}"
        );
    }
    let mac = Mac::of(ADDRESS);
    let mut elsewhere = asked(MessageType::Request, mac);
    let other = DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 88, 0, 7));
    elsewhere.opts_mut().insert(other);
    let mut relayed = asked(MessageType::Discover, mac);
    relayed.set_giaddr(ADDRESS);
    let mut reply = asked(MessageType::Discover, mac);
    reply.set_opcode(Opcode::BootReply);
    let release = asked(MessageType::Release, mac);
    for message in [elsewhere, relayed, reply, release] {
        assert!(answered(&message).is_none(), "{message:?}");
    }
}

#[test]
fn who_has_an_address_is_told_the_rest_and_who_cannot_hear_its_own_is_told_by_broadcast() {
    let mac = Mac::of(ADDRESS);
    let mut inform = asked(MessageType::Inform, mac);
    inform.set_ciaddr(ADDRESS);
    let reply = answered(&inform).expect("an acknowledgement");
    assert_eq!(reply.message.yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert!(!reply.message.opts().contains(OptionCode::AddressLeaseTime));
    assert!(reply.message.opts().contains(OptionCode::DomainNameServer));
    let mut discover = asked(MessageType::Discover, mac);
    let flags = discover.flags().set_broadcast();
    discover.set_flags(flags);
    assert_eq!(
        answered(&discover).expect("an offer").to,
        Ipv4Addr::BROADCAST
    );
}
