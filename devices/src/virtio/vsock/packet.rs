//! Packet headers: struct virtio_vsock_hdr (virtio 1.3 §5.10.6).

/// Size of a header in bytes; the payload follows it.
pub(super) const HEADER: usize = 44;
/// The host's address (virtio 1.3 §5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// The only socket type spoken here: VIRTIO_VSOCK_TYPE_STREAM.
pub(super) const STREAM: u16 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender will receive no more data.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender will send no more data.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both directions are over.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet says (virtio 1.3 §5.10.6, `op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    /// Open a connection.
    Request = 1,
    /// The connection is open.
    Response = 2,
    /// There is no such connection, or no longer.
    Reset = 3,
    /// The sender will send or receive no more, by `flags`.
    Shutdown = 4,
    /// Payload.
    Data = 5,
    /// How much the sender can take.
    CreditUpdate = 6,
    /// Asks for a credit update.
    CreditRequest = 7,
}

/// A packet's header. Every field is what the sender claims.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Payload bytes.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// See [`Op`].
    pub op: u16,
    pub flags: u32,
    /// The sender's receive buffer for this connection, in bytes.
    pub buf_alloc: u32,
    /// Bytes that left the sender's receive buffer, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Decodes a header; any bytes are one.
    pub fn parse(bytes: &[u8; HEADER]) -> Header {
        let mut fields = Fields(bytes);
        Header {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            kind: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// Encodes the header.
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        out[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        out[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        out[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        out[24..28].copy_from_slice(&self.len.to_le_bytes());
        out[28..30].copy_from_slice(&self.kind.to_le_bytes());
        out[30..32].copy_from_slice(&self.op.to_le_bytes());
        out[32..36].copy_from_slice(&self.flags.to_le_bytes());
        out[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        out[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        out
    }

    /// The operation, if it is a known one.
    pub fn op(&self) -> Option<Op> {
        use Op::*;
        [
            Request,
            Response,
            Reset,
            Shutdown,
            Data,
            CreditUpdate,
            CreditRequest,
        ]
        .into_iter()
        .find(|op| *op as u16 == self.op)
    }

    /// The reset that answers this packet when no connection does. A reset is never answered.
    pub fn refusal(&self) -> Option<Header> {
        (self.op != Op::Reset as u16).then_some(Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset as u16,
            ..Header::default()
        })
    }
}

/// The rest of a header's bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// Takes the next `N` bytes. The fields above add up to a header's size, so there always are.
    fn next<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

#[cfg(test)]
#[path = "packet_test.rs"]
mod tests;
