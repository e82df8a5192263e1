//! Tests of the handshake's line.

use proptest::prelude::*;

use super::*;

fn whole(line: &[u8]) -> Result<Option<u32>, BadLine> {
    Line::default().push(line)
}

#[test]
fn a_line_names_a_port() {
    assert_eq!(whole(b"CONNECT 52\n"), Ok(Some(52)));
    assert_eq!(whole(b"connect 4294967295\r\n"), Ok(Some(u32::MAX)));
}

#[test]
fn a_line_may_come_in_pieces() {
    let mut line = Line::default();
    for byte in b"CONNECT 7" {
        assert_eq!(line.push(&[*byte]), Ok(None));
    }
    assert_eq!(line.push(b"\n"), Ok(Some(7)));
}

#[test]
fn other_lines_are_refused() {
    for bad in [
        &b"\n"[..],
        b"CONNECT\n",
        b"CONNECT 4294967296\n",
        b"CONNECT -1\n",
        b"CONNECT 1 2\n",
        b"HELLO 1\n",
        b"CONNECT 1\0\n",
        b"\xff\xfe 1\n",
    ] {
        assert_eq!(whole(bad), Err(BadLine), "{bad:?}");
    }
}

#[test]
fn a_line_without_an_end_is_refused() {
    assert_eq!(whole(&[b'0'; MAX_LINE]), Err(BadLine));
    assert_eq!(whole(&[b'0'; MAX_LINE + 1]), Err(BadLine));
    assert_eq!(whole(&[b'0'; MAX_LINE - 1]), Ok(None));
}

proptest! {
    #[test]
    fn garbage_in_pieces_never_panics(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6)) {
        let mut line = Line::default();
        for piece in pieces {
            if line.push(&piece).is_err() { break; }
            prop_assert!(line.room() <= MAX_LINE);
        }
    }
}
