//! The link of migrations: what arrives, and what is refused as no message.

use std::io::Write;
use std::os::unix::net::UnixStream;

use super::*;

/// A link, and the bytes' way into it.
fn pair() -> (Link, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    (Link::new(Connection::over(near)), far)
}

/// What a link makes of these bytes and their end.
fn hears(bytes: &[u8]) -> Result<Message, MigrationError> {
    let (mut link, mut far) = pair();
    far.write_all(bytes).unwrap();
    drop(far);
    link.receive(&mut Vec::new())
}

fn message(kind: u8, len: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(len.to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn messages_arrive_as_they_were_sent() {
    let (mut link, far) = pair();
    let mut other = Link::new(Connection::over(far));
    link.send(Kind::Hello, b"hello").unwrap();
    link.send_pages(8192, &[7; 4096]).unwrap();
    link.send_data(3, b"abc").unwrap();
    link.send(Kind::Go, &[]).unwrap();
    let mut pages = Vec::new();
    assert!(matches!(
        other.receive(&mut pages).unwrap(),
        Message::Other(Kind::Hello, body) if body == b"hello"
    ));
    assert!(matches!(
        other.receive(&mut pages).unwrap(),
        Message::Pages(8192)
    ));
    assert_eq!(pages, [7; 4096]);
    assert!(matches!(
        other.receive(&mut pages).unwrap(),
        Message::Data(3)
    ));
    assert_eq!(pages, b"abc");
    assert!(matches!(other.answer().unwrap(), (Kind::Go, body) if body.is_empty()));
}

#[test]
fn what_is_no_message_is_refused_and_nothing_is_set_aside_for_it() {
    let huge = u64::MAX;
    for (bytes, is_protocol) in [
        (message(200, 0, &[]), true),
        (message(Kind::Pages as u8, huge, &[]), true),
        (message(Kind::Pages as u8, 7, &[]), true),
        (message(Kind::Data as u8, 9 + MAX_PAGES, &[]), true),
        (message(Kind::Hello as u8, huge, &[]), true),
        (message(Kind::Failed as u8, MAX_ANSWER + 1, &[]), true),
        (message(Kind::State as u8, MAX_MESSAGE, b"short"), false),
        (message(Kind::Pages as u8, 8 + 4096, &[0; 100]), false),
        (vec![0, 1, 2], false),
        (Vec::new(), false),
    ] {
        match hears(&bytes) {
            Err(MigrationError::Protocol(_)) => assert!(is_protocol, "{bytes:?}"),
            Err(e) => assert!(!is_protocol && is_gone(&e), "{bytes:?}: {e}"),
            Ok(_) => panic!("{bytes:?} was taken for a message"),
        }
    }
}
