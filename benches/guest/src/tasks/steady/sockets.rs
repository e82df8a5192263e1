//! A connection to the host echoes what is sent on it, and can be made anew when it is gone.

use super::waited_for;
use crate::clock::{Clock, Limit, Patience, now};
use crate::failure;
use crate::line::Outcome;
use crate::machine::Machine;
use crate::random::pattern;
use crate::virtio::vsock::{DATA_BYTES, HOST, Header, Stream, Vsock, op};

const MESSAGE: usize = 64;

/// What a round tells the host, which gives it back.
fn message(round: u64) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    for (index, bytes) in message.chunks_exact_mut(8).enumerate() {
        let word = match index {
            0 => round,
            _ => pattern(round, index as u64),
        };
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    message
}

/// A connection to the host, made anew when it is gone.
pub struct Link {
    vsock: Vsock,
    clock: Clock,
    peer_port: u32,
    /// Of the latest attempt. No two have the same, so that none takes another's packets.
    port: u32,
    stream: Option<Stream>,
    connections: u64,
    /// How long the host may go on refusing.
    refused: Option<Patience>,
}

impl Link {
    const WAIT_MS: u64 = 10_000;

    /// Opens the device and connects.
    pub fn new(machine: &mut Machine, peer_port: u32) -> Outcome<Self> {
        const FIRST_PORT: u64 = 0xd000_0000;
        const AGAIN_MS: u64 = 10;
        let mut link = Self {
            vsock: Vsock::open(machine)?,
            clock: machine.clock,
            peer_port,
            port: (FIRST_PORT + now() % 0x1000_0000) as u32,
            stream: None,
            connections: 0,
            refused: None,
        };
        while link.stream.is_none() {
            link.connect()?;
            if link.stream.is_none() {
                link.clock.sleep_ms(AGAIN_MS);
            }
        }
        Ok(link)
    }

    /// How often the connection was made anew.
    pub fn reconnects(&self) -> u64 {
        self.connections.saturating_sub(1)
    }

    /// Connects, if there is no connection; else, and if that succeeds, sends a message and expects it back.
    pub fn round(&mut self, round: u64) -> Outcome {
        if self.vsock.take_reset()? {
            self.stream = None;
        }
        if self.stream.is_none() {
            self.connect()?;
        }
        if let Some(mut stream) = self.stream.take()
            && self.echo(&mut stream, round)?
        {
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Tries to connect; the host may refuse for a while.
    fn connect(&mut self) -> Outcome {
        const REFUSED_MS: u64 = 30_000;
        self.port = self.port.wrapping_add(1);
        let mut stream = Stream::new(self.port, self.peer_port);
        stream.control(&mut self.vsock, op::REQUEST, 0)?;
        let mut data = [0; DATA_BYTES];
        let Some(header) = self.next(&mut stream, &mut data)? else {
            // The host may know of it already.
            return stream.control(&mut self.vsock, op::RST, 0);
        };
        match header.operation {
            op::RESPONSE => {
                self.stream = Some(stream);
                self.connections += 1;
                self.refused = None;
            }
            op::RST => {
                let refused = &mut self.refused;
                if refused
                    .get_or_insert_with(|| self.clock.patience_ms(REFUSED_MS))
                    .is_reached()
                {
                    return Err(failure!("connection-refused port={}", self.peer_port));
                }
            }
            operation => {
                return Err(failure!("unexpected-answer operation={operation}"));
            }
        }
        Ok(())
    }

    /// Sends a round's message and compares what comes back. False when the connection is gone.
    fn echo(&mut self, stream: &mut Stream, round: u64) -> Outcome<bool> {
        let expected = message(round);
        let mut data = [0; DATA_BYTES];
        let mut sent = false;
        let mut received = 0;
        while received < MESSAGE {
            if !sent && stream.credit() >= MESSAGE {
                stream.send(&mut self.vsock, &expected)?;
                sent = true;
            }
            let Some(header) = self.next(stream, &mut data)? else {
                return Ok(false);
            };
            match header.operation {
                op::RW if sent => {
                    let found = &data[..header.length as usize];
                    compare(found, &expected[received..], received)?;
                    received += found.len();
                    stream.consume(&mut self.vsock, found.len())?;
                }
                op::CREDIT_UPDATE => {}
                op::CREDIT_REQUEST => stream.control(&mut self.vsock, op::CREDIT_UPDATE, 0)?,
                op::SHUTDOWN => {
                    stream.control(&mut self.vsock, op::RST, 0)?;
                    return Ok(false);
                }
                op::RST => return Ok(false),
                operation => {
                    return Err(failure!(
                        "unexpected-packet operation={operation} sent={sent}"
                    ));
                }
            }
        }
        Ok(true)
    }

    /// The stream's next packet. None when a reset of the transport has ended the stream.
    fn next(
        &mut self,
        stream: &mut Stream,
        data: &mut [u8; DATA_BYTES],
    ) -> Outcome<Option<Header>> {
        let mut patience = self.clock.patience_ms(Self::WAIT_MS);
        loop {
            if self.vsock.take_reset()? {
                return Ok(None);
            }
            match self.vsock.poll(data)? {
                Some(header) if stream.owns(&header) => {
                    self.check(&header)?;
                    stream.learn(&header);
                    return Ok(Some(header));
                }
                Some(header) if { header.operation } == op::REQUEST => {
                    Stream::new(header.to_port, header.from_port).control(
                        &mut self.vsock,
                        op::RST,
                        0,
                    )?;
                }
                // Of an earlier stream.
                Some(_) => {}
                None => self
                    .vsock
                    .wait(&mut patience)
                    .map_err(waited_for("vsock"))?,
            }
        }
    }

    /// What a living stream receives is from the host's address, and for this side's.
    fn check(&self, header: &Header) -> Outcome {
        let Header {
            from_cid, to_cid, ..
        } = *header;
        if matches!(header.operation, op::RESPONSE | op::RW)
            && (from_cid, to_cid) != (HOST, self.vsock.cid)
        {
            return Err(failure!(
                "wrong-cid from={from_cid} to={to_cid} expected={}",
                self.vsock.cid
            ));
        }
        Ok(())
    }
}

/// Compares what came back from the host with what it was told from there on.
fn compare(found: &[u8], expected: &[u8], offset: usize) -> Outcome {
    if found.len() > expected.len() {
        return Err(failure!(
            "echo-too-long found={} expected={}",
            found.len(),
            expected.len()
        ));
    }
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    match differs {
        None => Ok(()),
        Some(at) => Err(failure!(
            "echo-differs offset={} found={:#x} expected={:#x}",
            offset + at,
            found[at],
            expected[at]
        )),
    }
}
