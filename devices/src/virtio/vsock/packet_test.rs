//! Tests of headers.

use proptest::prelude::*;

use super::*;

#[test]
fn fields_lie_where_the_specification_puts_them() {
    let mut bytes = [0; HEADER];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = i as u8;
    }
    let header = Header::parse(&bytes);
    assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
    assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
    assert_eq!(header.src_port, 0x1312_1110);
    assert_eq!(header.dst_port, 0x1716_1514);
    assert_eq!(header.len, 0x1b1a_1918);
    assert_eq!(header.kind, 0x1d1c);
    assert_eq!(header.op, 0x1f1e);
    assert_eq!(header.flags, 0x2322_2120);
    assert_eq!(header.buf_alloc, 0x2726_2524);
    assert_eq!(header.fwd_cnt, 0x2b2a_2928);
}

#[test]
fn a_refusal_goes_back_to_the_sender_and_is_not_refused_itself() {
    let header = Header {
        src_cid: 3,
        dst_cid: 2,
        src_port: 1024,
        dst_port: 52,
        kind: 9,
        op: Op::Request as u16,
        ..Header::default()
    };
    let refusal = header.refusal().unwrap();
    assert_eq!((refusal.src_cid, refusal.dst_cid), (2, 3));
    assert_eq!((refusal.src_port, refusal.dst_port), (52, 1024));
    assert_eq!((refusal.kind, refusal.op()), (9, Some(Op::Reset)));
    assert_eq!(refusal.refusal(), None);
}

proptest! {
    #[test]
    fn any_bytes_are_a_header_and_come_back_the_same(bytes in prop::array::uniform32(any::<u8>()), tail in prop::array::uniform12(any::<u8>())) {
        let mut all = [0; HEADER];
        all[..32].copy_from_slice(&bytes);
        all[32..].copy_from_slice(&tail);
        let header = Header::parse(&all);
        prop_assert_eq!(header.bytes(), all);
        prop_assert_eq!(header.op().is_some(), (1..=7).contains(&header.op));
        prop_assert_eq!(header.refusal().is_none(), header.op == 3);
    }
}
