//! Ethernet frames as bytes: ARP, IPv4, ICMP echo, UDP. Just enough to talk to a host's kernel.

/// An Ethernet address.
pub type Mac = [u8; 6];
/// An IPv4 address.
pub type Ip = [u8; 4];

const ETHERNET: usize = 14;
const IP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
const TYPE_ARP: u16 = 0x0806;
const TYPE_IP: u16 = 0x0800;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_UDP: u8 = 17;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// The shortest frame on a wire.
const MINIMUM: usize = 60;

/// What a received frame is.
pub enum Received<'a> {
    ArpRequest {
        mac: Mac,
        ip: Ip,
        wanted: Ip,
    },
    ArpReply {
        mac: Mac,
        ip: Ip,
    },
    EchoRequest {
        mac: Mac,
        ip: Ip,
        to: Ip,
        id: u16,
        sequence: u16,
        payload: &'a [u8],
    },
    EchoReply {
        ip: Ip,
        id: u16,
        sequence: u16,
        payload: &'a [u8],
    },
    Udp {
        to: Ip,
        payload: &'a [u8],
    },
    /// A checksum is wrong.
    Corrupt,
    Other,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    core::array::from_fn(|index| bytes[at + index])
}

/// The Internet checksum of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Understands a frame.
pub fn parse(frame: &[u8]) -> Received<'_> {
    if frame.len() < ETHERNET {
        return Received::Other;
    }
    let body = &frame[ETHERNET..];
    match be16(frame, 12) {
        TYPE_ARP if body.len() >= 28 => {
            let (mac, ip) = (array(body, 8), array(body, 14));
            match be16(body, 6) {
                1 => Received::ArpRequest {
                    mac,
                    ip,
                    wanted: array(body, 24),
                },
                2 => Received::ArpReply { mac, ip },
                _ => Received::Other,
            }
        }
        TYPE_IP if body.len() >= IP_HEADER => parse_ip(array(frame, 6), body),
        _ => Received::Other,
    }
}

fn parse_ip(mac: Mac, packet: &[u8]) -> Received<'_> {
    let header = usize::from(packet[0] & 15) * 4;
    let length = usize::from(be16(packet, 2));
    if header < IP_HEADER || length < header + ICMP_HEADER || length > packet.len() {
        return Received::Other;
    }
    if checksum(&packet[..header]) != 0 {
        return Received::Corrupt;
    }
    let (ip, to): (Ip, Ip) = (array(packet, 12), array(packet, 16));
    let body = &packet[header..length];
    let payload = &body[ICMP_HEADER..];
    match (packet[9], body[0]) {
        (PROTOCOL_ICMP, _) if checksum(body) != 0 => Received::Corrupt,
        (PROTOCOL_ICMP, ECHO_REQUEST) => Received::EchoRequest {
            mac,
            ip,
            to,
            id: be16(body, 4),
            sequence: be16(body, 6),
            payload,
        },
        (PROTOCOL_ICMP, ECHO_REPLY) => Received::EchoReply {
            ip,
            id: be16(body, 4),
            sequence: be16(body, 6),
            payload,
        },
        (PROTOCOL_UDP, _) => Received::Udp { to, payload },
        _ => Received::Other,
    }
}

/// A frame being built.
pub struct Frame {
    bytes: [u8; 1536],
    length: usize,
}

impl Frame {
    fn new(to: Mac, from: Mac, kind: u16) -> Self {
        let mut frame = Self {
            bytes: [0; 1536],
            length: 0,
        };
        frame.put(&to);
        frame.put(&from);
        frame.put(&kind.to_be_bytes());
        frame
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    /// The frame, padded to the shortest that a wire takes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length.max(MINIMUM)]
    }

    fn arp(operation: u16, to: Mac, mac: Mac, ip: Ip, peer_mac: Mac, peer: Ip) -> Self {
        let mut frame = Self::new(to, mac, TYPE_ARP);
        frame.put(&[0, 1, 8, 0, 6, 4]);
        frame.put(&operation.to_be_bytes());
        frame.put(&mac);
        frame.put(&ip);
        frame.put(&peer_mac);
        frame.put(&peer);
        frame
    }

    /// Who has `peer`?
    pub fn arp_request(mac: Mac, ip: Ip, peer: Ip) -> Self {
        Self::arp(1, [0xff; 6], mac, ip, [0; 6], peer)
    }

    /// `mac` has `ip`.
    pub fn arp_reply(mac: Mac, ip: Ip, peer_mac: Mac, peer: Ip) -> Self {
        Self::arp(2, peer_mac, mac, ip, peer_mac, peer)
    }

    /// An ICMP echo, or its reply.
    pub fn echo(
        reply: bool,
        from: (Mac, Ip),
        to: (Mac, Ip),
        id: u16,
        sequence: u16,
        payload: &[u8],
    ) -> Self {
        let mut frame = Self::new(to.0, from.0, TYPE_IP);
        let length = (IP_HEADER + ICMP_HEADER + payload.len()) as u16;
        frame.put(&[0x45, 0]);
        frame.put(&length.to_be_bytes());
        frame.put(&[0, 0, 0x40, 0, 64, PROTOCOL_ICMP, 0, 0]);
        frame.put(&from.1);
        frame.put(&to.1);
        let sum = checksum(&frame.bytes[ETHERNET..frame.length]);
        frame.bytes[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
        let icmp = frame.length;
        frame.put(&[if reply { ECHO_REPLY } else { ECHO_REQUEST }, 0, 0, 0]);
        frame.put(&id.to_be_bytes());
        frame.put(&sequence.to_be_bytes());
        frame.put(payload);
        let sum = checksum(&frame.bytes[icmp..frame.length]);
        frame.bytes[icmp + 2..icmp + 4].copy_from_slice(&sum.to_be_bytes());
        frame
    }
}

/// An address as text.
pub struct ShowIp(pub Ip);

impl core::fmt::Display for ShowIp {
    fn fmt(&self, f: &mut core::fmt::Formatter) -> core::fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

/// Text as an address.
pub fn parse_ip_address(text: &str) -> Option<Ip> {
    let mut ip = [0; 4];
    let mut parts = text.split('.');
    for byte in &mut ip {
        *byte = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then_some(ip)
}
