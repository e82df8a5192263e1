//! Tasks on the socket device: connecting to the host, and being connected to.

use super::{Arguments, put};
use crate::clock::now;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::memory::Dma;
use crate::random::pattern;
use crate::virtio::PATIENCE_MS;
use crate::virtio::vsock::{DATA_BYTES, Header, SHUTDOWN_BOTH, Stream, Vsock, WINDOW, op};
use crate::{failure, say};

const DEFAULT_BYTES: u64 = 1 << 20;
const FIRST_PORT: u64 = 0xc000_0000;
const SEED: u64 = 0x50c4;

/// The pattern's byte at an offset of the stream.
fn byte(offset: u64) -> u8 {
    (pattern(SEED, offset / 8) >> (offset % 8 * 8)) as u8
}

fn port(arguments: &Arguments) -> Outcome<u32> {
    match arguments.number(0)? {
        Some(port) => Ok(port as u32),
        None => Err(failure!("no-port")),
    }
}

/// `vsock-connect:port` with `bytes=`: connects to the host, sends a pattern (more than one window of credit),
/// expects it back, and closes.
pub fn connect(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let bytes = arguments.number_of("bytes")?.unwrap_or(DEFAULT_BYTES);
    let mut vsock = Vsock::open(machine)?;
    let mut stream = Stream::new((FIRST_PORT + now() % 0x1000_0000) as u32, port(arguments)?);
    let mut data = [0; DATA_BYTES];
    let started = now();
    stream.control(&mut vsock, op::REQUEST, 0)?;
    let answer = expect(machine, &mut vsock, &mut stream, &mut data)?;
    if { answer.operation } != op::RESPONSE {
        return Err(failure!("connection-refused operation={}", {
            answer.operation
        }));
    }
    let (mut sent, mut received) = (0, 0);
    let mut deadline = machine.clock.deadline_ms(PATIENCE_MS);
    while received < bytes {
        let room = stream.credit().min(DATA_BYTES).min((bytes - sent) as usize);
        if room > 0 {
            for (index, slot) in data[..room].iter_mut().enumerate() {
                *slot = byte(sent + index as u64);
            }
            stream.send(&mut vsock, &data[..room])?;
            sent += room as u64;
        }
        let header = match vsock.poll(&mut data)? {
            Some(header) => header,
            None if room > 0 => continue,
            None => vsock.receive(&mut data, deadline)?,
        };
        deadline = machine.clock.deadline_ms(PATIENCE_MS);
        if !stream.owns(&header) {
            continue;
        }
        stream.learn(&header);
        match header.operation {
            op::RW => {
                let length = header.length as usize;
                for (index, found) in data[..length].iter().enumerate() {
                    let offset = received + index as u64;
                    if *found != byte(offset) {
                        return Err(failure!("mismatch offset={offset:#x} found={found:#x}"));
                    }
                }
                received += length as u64;
                stream.consume(&mut vsock, length)?;
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => stream.control(&mut vsock, op::CREDIT_UPDATE, 0)?,
            operation => {
                return Err(failure!(
                    "closed-early operation={operation} received={received}"
                ));
            }
        }
    }
    let us = machine.clock.us_since(started);
    close(machine, &mut vsock, &mut stream, &mut data)?;
    put(
        report,
        format_args!(
            "cid={} bytes={received} us={us} irqs={}",
            vsock.cid,
            vsock.interrupts()
        ),
    );
    Ok(())
}

/// The next packet of this stream.
fn expect(
    machine: &Machine,
    vsock: &mut Vsock,
    stream: &mut Stream,
    data: &mut [u8; DATA_BYTES],
) -> Outcome<Header> {
    let deadline = machine.clock.deadline_ms(PATIENCE_MS);
    loop {
        let header = vsock.receive(data, deadline)?;
        if stream.owns(&header) {
            stream.learn(&header);
            return Ok(header);
        }
    }
}

/// Shuts both directions down and waits for the peer's reset.
fn close(
    machine: &Machine,
    vsock: &mut Vsock,
    stream: &mut Stream,
    data: &mut [u8; DATA_BYTES],
) -> Outcome {
    stream.control(vsock, op::SHUTDOWN, SHUTDOWN_BOTH)?;
    loop {
        let header = expect(machine, vsock, stream, data)?;
        match header.operation {
            op::RST => return Ok(()),
            // The host may close at the same time.
            op::SHUTDOWN | op::CREDIT_UPDATE | op::CREDIT_REQUEST => {}
            operation => return Err(failure!("unexpected-after-shutdown operation={operation}")),
        }
    }
}

/// `vsock-listen:port[:n]` with `seconds=`: takes `n` connections of the host, one after the other, and echoes
/// what arrives until the host closes.
pub fn listen(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let port = port(arguments)?;
    let count = arguments.number(1)?.unwrap_or(1);
    let seconds = arguments.number_of("seconds")?.unwrap_or(60);
    let mut vsock = Vsock::open(machine)?;
    let mut bytes = 0;
    say!("# vsock-listen: cid={} port={port}", vsock.cid);
    for _ in 0..count {
        let mark = machine.memory.mark();
        bytes += serve(machine, &mut vsock, port, seconds)?;
        machine.memory.release(mark);
    }
    put(
        report,
        format_args!(
            "connections={count} bytes={bytes} irqs={}",
            vsock.interrupts()
        ),
    );
    Ok(())
}

fn serve(machine: &mut Machine, vsock: &mut Vsock, port: u32, seconds: u64) -> Outcome<u64> {
    let mut data = [0; DATA_BYTES];
    let deadline = machine.clock.deadline_ms(seconds * 1000);
    let mut stream = loop {
        let header = vsock.receive(&mut data, deadline)?;
        let mut stream = Stream::new(header.to_port, header.from_port);
        match header.operation {
            op::REQUEST if { header.to_port } == port => {
                stream.learn(&header);
                stream.control(vsock, op::RESPONSE, 0)?;
                break stream;
            }
            op::RST => {}
            _ => stream.control(vsock, op::RST, 0)?,
        }
    };
    let mut ring = Ring::new(machine)?;
    let mut bytes = 0;
    let mut half_closed = false;
    loop {
        ring.drain(vsock, &mut stream)?;
        if half_closed && ring.length == 0 {
            stream.control(vsock, op::SHUTDOWN, SHUTDOWN_BOTH)?;
            half_closed = false;
        }
        let header = vsock.receive(&mut data, deadline)?;
        if !stream.owns(&header) {
            if { header.operation } != op::RST {
                Stream::new(header.to_port, header.from_port).control(vsock, op::RST, 0)?;
            }
            continue;
        }
        stream.learn(&header);
        match header.operation {
            op::RW => {
                let length = header.length as usize;
                ring.put(&data[..length])?;
                bytes += length as u64;
            }
            op::CREDIT_REQUEST => stream.control(vsock, op::CREDIT_UPDATE, 0)?,
            op::SHUTDOWN if header.flags & SHUTDOWN_BOTH == SHUTDOWN_BOTH => {
                stream.control(vsock, op::RST, 0)?;
                return Ok(bytes);
            }
            op::SHUTDOWN => half_closed = true,
            op::RST => return Ok(bytes),
            _ => {}
        }
    }
}

/// What has arrived and not gone back yet: never more than the window that the host was told.
struct Ring {
    memory: Dma,
    start: usize,
    length: usize,
}

impl Ring {
    fn new(machine: &mut Machine) -> Outcome<Self> {
        Ok(Self {
            memory: machine.memory.allocate(WINDOW as usize, 4096)?,
            start: 0,
            length: 0,
        })
    }

    fn put(&mut self, data: &[u8]) -> Outcome {
        if data.len() > self.memory.size() - self.length {
            return Err(failure!(
                "host-overran-window held={} more={}",
                self.length,
                data.len()
            ));
        }
        let at = (self.start + self.length) % self.memory.size();
        let first = data.len().min(self.memory.size() - at);
        self.memory.write_bytes(at, &data[..first]);
        self.memory.write_bytes(0, &data[first..]);
        self.length += data.len();
        Ok(())
    }

    /// Sends what the host has credit for. What went back counts as consumed.
    fn drain(&mut self, vsock: &mut Vsock, stream: &mut Stream) -> Outcome {
        let mut data = [0; DATA_BYTES];
        loop {
            let contiguous = self.length.min(self.memory.size() - self.start);
            let count = contiguous.min(DATA_BYTES).min(stream.credit());
            if count == 0 {
                return Ok(());
            }
            self.memory.read_bytes(self.start, &mut data[..count]);
            stream.send(vsock, &data[..count])?;
            self.start = (self.start + count) % self.memory.size();
            self.length -= count;
            stream.consume(vsock, count)?;
        }
    }
}
