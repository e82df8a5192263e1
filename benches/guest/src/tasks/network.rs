//! Tasks on network devices: what they are, pinging the host, answering the host.

use super::frame::{Frame, Ip, Mac, Received, ShowIp, parse, parse_ip_address};
use super::{Arguments, put};
use crate::clock::{Deadline, now};
use crate::failure;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::random::pattern;
use crate::say;
use crate::virtio::PATIENCE_MS;
use crate::virtio::net::{FRAME_BYTES, Net};

const SIZES: [usize; 6] = [64, 56, 128, 512, 1024, 1400];
const PAYLOAD_MAX: usize = 1400;

fn open(machine: &mut Machine, arguments: &Arguments) -> Outcome<Net> {
    Net::open(machine, arguments.number(0)?.unwrap_or(0) as usize)
}

pub(super) fn address(arguments: &Arguments, key: &str, otherwise: Ip) -> Outcome<Ip> {
    match arguments.value(key) {
        None => Ok(otherwise),
        Some(text) => parse_ip_address(text).ok_or_else(|| failure!("not-an-address {key}={text}")),
    }
}

/// `net-info[:i]`: address, MTU, features, queue pairs.
pub fn info(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let net = open(machine, arguments)?;
    let [a, b, c, d, e, f] = net.mac;
    put(report, format_args!("place={}", net.device.place));
    put(
        report,
        format_args!("mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
    );
    put(
        report,
        format_args!(
            "mtu={} pairs={} link={}",
            net.mtu, net.pairs_max, net.link_up
        ),
    );
    put(
        report,
        format_args!(
            "offered={:#x} features={:#x}",
            net.device.offered, net.device.features
        ),
    );
    Ok(())
}

/// This end of the conversation.
pub(super) struct Host {
    pub(super) mac: Mac,
    pub(super) ip: Ip,
}

impl Host {
    /// Answers what any host answers. True for an echo request.
    pub(super) fn answer(
        &self,
        net: &mut Net,
        pair: usize,
        received: &Received,
        deadline: Deadline,
    ) -> Outcome<bool> {
        match *received {
            Received::ArpRequest { mac, ip, wanted } if wanted == self.ip => {
                let reply = Frame::arp_reply(self.mac, self.ip, mac, ip);
                net.send(pair, reply.bytes(), deadline)?;
                Ok(false)
            }
            Received::EchoRequest {
                mac,
                ip,
                to,
                id,
                sequence,
                payload,
            } if to == self.ip => {
                let reply =
                    Frame::echo(true, (self.mac, self.ip), (mac, ip), id, sequence, payload);
                net.send(pair, reply.bytes(), deadline)?;
                Ok(true)
            }
            Received::Corrupt => Err(failure!("bad-checksum-received")),
            _ => Ok(false),
        }
    }

    /// Asks for a peer's address until it answers.
    fn resolve(&self, net: &mut Net, peer: Ip, machine: &Machine) -> Outcome<Mac> {
        const TRIES: usize = 10;
        const TRY_MS: u64 = 500;
        let mut frame = [0; FRAME_BYTES];
        for _ in 0..TRIES {
            let deadline = machine.clock.deadline_ms(TRY_MS);
            net.send(
                0,
                Frame::arp_request(self.mac, self.ip, peer).bytes(),
                deadline,
            )?;
            while let Ok((pair, length)) = net.receive(&mut frame, deadline) {
                let received = parse(&frame[..length]);
                if let Received::ArpReply { mac, ip } = received
                    && ip == peer
                {
                    return Ok(mac);
                }
                self.answer(net, pair, &received, deadline)?;
            }
        }
        Err(failure!("no-arp-reply peer={}", ShowIp(peer)))
    }
}

/// `net-ping[:i]:ip=10.0.0.2:peer=10.0.0.1` with `count=` (echoes of each size on each queue pair): resolves the
/// peer and pings it from every queue pair with payloads of 56 to 1400 bytes.
pub fn ping(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let mut net = open(machine, arguments)?;
    let host = Host {
        mac: net.mac,
        ip: address(arguments, "ip", [10, 0, 0, 2])?,
    };
    let peer = address(arguments, "peer", [10, 0, 0, 1])?;
    let count = arguments.number_of("count")?.unwrap_or(4);
    let peer_mac = host.resolve(&mut net, peer, machine)?;
    let mut frame = [0; FRAME_BYTES];
    let mut sequence = 0;
    let mut from_pair = [0u32; crate::virtio::net::PAIRS];
    let started = now();
    for pair in 0..net.pair_count() {
        for (size, round) in SIZES
            .iter()
            .flat_map(|size| (0..count).map(move |round| (*size, round)))
        {
            let mut payload = [0; PAYLOAD_MAX];
            for (index, byte) in payload[..size].iter_mut().enumerate() {
                *byte = pattern(u64::from(sequence), index as u64 + round) as u8;
            }
            let id = 0x5ce0 + pair as u16;
            let deadline = machine.clock.deadline_ms(PATIENCE_MS);
            let echo = Frame::echo(
                false,
                (host.mac, host.ip),
                (peer_mac, peer),
                id,
                sequence,
                &payload[..size],
            );
            net.send(pair, echo.bytes(), deadline)?;
            loop {
                let (arrived, length) = net.receive(&mut frame, deadline)?;
                let received = parse(&frame[..length]);
                if let Received::EchoReply {
                    ip,
                    id: other,
                    sequence: number,
                    payload: found,
                } = received
                    && (ip, other, number) == (peer, id, sequence)
                {
                    if found != &payload[..size] {
                        return Err(failure!("echo-mismatch pair={pair} size={size}"));
                    }
                    from_pair[arrived] += 1;
                    break;
                }
                host.answer(&mut net, arrived, &received, deadline)?;
            }
            sequence += 1;
        }
    }
    let us = machine.clock.us_since(started);
    put(
        report,
        format_args!(
            "echoes={sequence} pairs={} irqs={}",
            net.pair_count(),
            net.interrupts()
        ),
    );
    put(
        report,
        format_args!("us_each={}", us / u64::from(sequence.max(1))),
    );
    put(
        report,
        format_args!("received={:?}", &from_pair[..net.pair_count()]),
    );
    Ok(())
}

/// `net-respond[:i]:ip=10.0.0.2` with `n=` and `seconds=`: answers ARP and pings until it has answered `n`
/// pings, or a UDP datagram `stop` arrives.
pub fn respond(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let mut net = open(machine, arguments)?;
    let host = Host {
        mac: net.mac,
        ip: address(arguments, "ip", [10, 0, 0, 2])?,
    };
    let wanted = arguments.number_of("n")?.unwrap_or(u64::MAX);
    let seconds = arguments.number_of("seconds")?.unwrap_or(60);
    let deadline = machine.clock.deadline_ms(seconds * 1000);
    say!("# net-respond: {} answers", ShowIp(host.ip));
    let mut frame = [0; FRAME_BYTES];
    let mut answered = 0;
    while answered < wanted {
        let (pair, length) = net.receive(&mut frame, deadline)?;
        let received = parse(&frame[..length]);
        if let Received::Udp { to, payload, .. } = received
            && to == host.ip
            && payload.starts_with(b"stop")
        {
            break;
        }
        if host.answer(&mut net, pair, &received, deadline)? {
            answered += 1;
        }
    }
    put(
        report,
        format_args!("answered={answered} irqs={}", net.interrupts()),
    );
    Ok(())
}
