//! The network goes on: a neighbour is asked in every round, and what it answers must be right.

use crate::clock::Clock;
use crate::failure;
use crate::line::Outcome;
use crate::machine::Machine;
use crate::random::pattern;
use crate::tasks::Arguments;
use crate::tasks::frame::{Frame, Ip, Mac, Received, parse};
use crate::tasks::network::{Host, address};
use crate::virtio::PATIENCE_MS;
use crate::virtio::net::{FRAME_BYTES, Net};

/// A host on the network, which may answer or not.
pub struct Neighbour {
    net: Net,
    host: Host,
    peer: Ip,
    mac: Option<Mac>,
    /// How many right answers have come.
    pub answers: u64,
    clock: Clock,
}

impl Neighbour {
    const ID: u16 = 0x57ea;
    const PAYLOAD: usize = 56;

    /// Opens the device; `ip=` and `peer=` say who is on the network.
    pub fn new(machine: &mut Machine, arguments: &Arguments, index: usize) -> Outcome<Self> {
        let net = Net::open(machine, index)?;
        Ok(Self {
            host: Host {
                mac: net.mac,
                ip: address(arguments, "ip", [10, 0, 0, 2])?,
            },
            peer: address(arguments, "peer", [10, 0, 0, 1])?,
            net,
            mac: None,
            answers: 0,
            clock: machine.clock,
        })
    }

    fn payload(sequence: u16) -> [u8; Self::PAYLOAD] {
        core::array::from_fn(|index| pattern(sequence.into(), index as u64) as u8)
    }

    /// Takes what has arrived, and asks once, if the device takes that.
    pub fn round(&mut self, round: u64) -> Outcome {
        self.take()?;
        let number = round as usize % self.net.pair_count();
        if self.has_room(number)? {
            let question = self.question(round);
            let deadline = self.clock.deadline_ms(PATIENCE_MS);
            self.net.send(number, question.bytes(), deadline)?;
        }
        Ok(())
    }

    fn has_room(&mut self, number: usize) -> Outcome<bool> {
        match &mut self.net.pairs[number] {
            Some(pair) => pair.has_room(),
            None => Ok(false),
        }
    }

    /// An echo, or who the peer is: from time to time, since that may have become another.
    fn question(&self, round: u64) -> Frame {
        const ASK_ROUNDS: u64 = 16;
        let Host { mac, ip } = self.host;
        match self.mac {
            Some(peer_mac) if !round.is_multiple_of(ASK_ROUNDS) => {
                let sequence = round as u16;
                let payload = Self::payload(sequence);
                Frame::echo(
                    false,
                    (mac, ip),
                    (peer_mac, self.peer),
                    Self::ID,
                    sequence,
                    &payload,
                )
            }
            _ => Frame::arp_request(mac, ip, self.peer),
        }
    }

    fn take(&mut self) -> Outcome {
        const FRAMES: usize = 64;
        let mut frame = [0; FRAME_BYTES];
        for number in 0..self.net.pair_count() {
            for _ in 0..FRAMES {
                let Some(pair) = &mut self.net.pairs[number] else {
                    break;
                };
                let Some(length) = pair.receive(&mut frame)? else {
                    break;
                };
                self.received(number, &parse(&frame[..length]))?;
            }
        }
        Ok(())
    }

    fn received(&mut self, number: usize, received: &Received) -> Outcome {
        match *received {
            Received::ArpReply { mac, ip } if ip == self.peer => {
                self.mac = Some(mac);
                self.answers += 1;
            }
            Received::EchoReply {
                ip,
                id,
                sequence,
                payload,
            } if (ip, id) == (self.peer, Self::ID) => {
                if payload != Self::payload(sequence) {
                    return Err(failure!("echo-reply-differs sequence={sequence}"));
                }
                self.answers += 1;
            }
            ref other if self.has_room(number)? => {
                let deadline = self.clock.deadline_ms(PATIENCE_MS);
                self.host.answer(&mut self.net, number, other, deadline)?;
            }
            Received::Corrupt => return Err(failure!("bad-checksum-received")),
            _ => {}
        }
        Ok(())
    }
}
