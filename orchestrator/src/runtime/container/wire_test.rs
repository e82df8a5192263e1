//! Tests of what agent and shim say to each other.

use proptest::prelude::*;

use super::*;

#[test]
fn frames_arrive_as_they_were_sent() {
    let mut wire = Vec::new();
    send_json(&mut wire, Kind::Request, &Request::Kill { signal: 15 }).unwrap();
    send(&mut wire, Kind::Input, b"").unwrap();
    let mut from = &wire[..];
    let request: Request = receive_json(&mut from, Kind::Request).unwrap();
    assert!(matches!(request, Request::Kill { signal: 15 }));
    assert_eq!(receive(&mut from).unwrap(), Some((Kind::Input, Vec::new())));
    assert_eq!(receive(&mut from).unwrap(), None);
}

#[test]
fn a_frame_longer_than_may_be_is_refused_before_it_is_read() {
    let mut wire = vec![b'0'];
    wire.extend(u32::MAX.to_be_bytes());
    assert!(receive(&mut &wire[..]).is_err());
}

proptest! {
    #[test]
    fn nothing_that_arrives_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut from = &bytes[..];
        while let Ok(Some(_)) = receive(&mut from) {}
    }
}
