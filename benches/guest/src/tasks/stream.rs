//! A load on a network device for a time: frames out, in, or out and back again.
//!
//! Frames are of the local experimental type 0x88b5, which no host's stack wants, or TCP segments for nobody
//! where the device cuts them: what is measured is the way to the tap and back, and nothing behind it.

use super::{Arguments, put};
use crate::clock::now;
use crate::failure;
use crate::histogram::Histogram;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::memory::Dma;
use crate::say;
use crate::virtio::queue::{Queue, Segment};
use crate::virtio::{Device, Kind, PATIENCE_MS};

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
const MRG_RXBUF: u64 = 1 << 15;
const HEADER: usize = 12;
const QUEUE: u16 = 256;
/// What one receive buffer holds: the largest frame that a host merges, in one piece.
const LARGE: usize = 66 << 10;
const SMALL: usize = 2048;
const ETHERNET: [u8; 14] = [0x02, 0, 0, 0, 0, 0xee, 0x02, 0, 0, 0, 0, 1, 0x88, 0xb5];

/// A queue and its buffers, all of one size.
struct Lane {
    queue: Queue,
    memory: Dma,
    size: usize,
    of_head: [u16; QUEUE as usize],
}

impl Lane {
    fn new(machine: &mut Machine, queue: Queue, size: usize, count: usize) -> Outcome<Self> {
        let memory = machine.memory.allocate(size * count, 4096)?;
        Ok(Self {
            queue,
            memory,
            size,
            of_head: [0; QUEUE as usize],
        })
    }

    fn buffer(&self, number: u16) -> Dma {
        self.memory.part(usize::from(number) * self.size, self.size)
    }

    #[inline]
    fn give(&mut self, number: u16, bytes: usize, readable: bool) -> Outcome {
        let buffer = Segment::from(self.buffer(number).part(0, bytes));
        let added = match readable {
            true => self.queue.add(&[buffer], &[]),
            false => self.queue.add(&[], &[buffer]),
        };
        let head = added.ok_or_else(|| failure!("queue-full"))?;
        self.of_head[usize::from(head)] = number;
        Ok(())
    }
}

/// What was counted.
#[derive(Clone, Copy, Default)]
struct Count {
    frames: u64,
    bytes: u64,
}

struct Stream {
    rx: Lane,
    tx: Lane,
    /// Bytes of a frame to send, with its header.
    frame: usize,
    buffers: u16,
    _device: Device,
}

/// `net-load[:i]`, `dir=send|receive|echo`, `bytes=60`, `segment=0`, `ms=1000`, `warm=100`: sends frames of so
/// many bytes as fast as the device takes them (with `segment=` the device is to cut them), counts what comes,
/// or sends one at a time and waits for it to come back. `# load: begin` and `# load: end` are around what is
/// counted.
pub fn load(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let number = |key, otherwise| Ok(arguments.number_of(key)?.unwrap_or(otherwise));
    let index = arguments.number(0)?.unwrap_or(0) as usize;
    let bytes = (number("bytes", 60)? as usize).clamp(60, 65_000);
    let segment = number("segment", 0)?;
    let (ms, warm) = (number("ms", 1000)?, number("warm", 100)?);
    let direction = arguments.value("dir").unwrap_or("send");
    let mut stream = Stream::open(machine, index, bytes, segment)?;
    let clock = machine.clock;
    let mut histogram = Histogram::new();
    let run = |stream: &mut Stream, ms, histogram: &mut Histogram| {
        let end = now() + ms * clock.khz();
        match direction {
            "send" => stream.send(end),
            "receive" => stream.receive(end),
            "echo" => stream.echo(machine, end, histogram),
            _ => Err(failure!("bad-direction dir={direction}")),
        }
    };
    if direction == "send" {
        stream.fill_tx()?;
    }
    say!("# load: ready");
    run(&mut stream, warm, &mut histogram)?;
    say!("# load: begin");
    histogram = Histogram::new();
    let started = now();
    let count = run(&mut stream, ms, &mut histogram)?;
    let us = clock.us_since(started).max(1);
    say!("# load: end");
    put(report, format_args!("frames={} us={us}", count.frames));
    put(
        report,
        format_args!("rate={}", count.frames * 1_000_000 / us),
    );
    put(
        report,
        format_args!("bytes_per_s={}", count.bytes * 1_000_000 / us),
    );
    let ns = |share| histogram.permille(share) * 1_000_000 / clock.khz();
    put(report, format_args!("p50={} p99={}", ns(500), ns(990)));
    Ok(())
}

impl Stream {
    fn open(machine: &mut Machine, index: usize, bytes: usize, segment: u64) -> Outcome<Self> {
        let large = segment > 0;
        let wanted = match large {
            true => CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4 | MRG_RXBUF,
            false => MRG_RXBUF,
        };
        let device = Device::open(machine, Kind::NET, index, wanted)?;
        if large && !(device.has(HOST_TSO4) && device.has(GUEST_TSO4)) {
            return Err(failure!("no-segmentation offered={:#x}", device.offered));
        }
        let (rx, tx) = (
            device.queue(machine, 0, QUEUE)?,
            device.queue(machine, 1, QUEUE)?,
        );
        let buffers = if large {
            32
        } else {
            rx.size().min(tx.size()).min(QUEUE)
        };
        let rx = Lane::new(
            machine,
            rx,
            if large { LARGE } else { SMALL },
            buffers.into(),
        )?;
        let size = (HEADER + bytes).next_multiple_of(64);
        let tx = Lane::new(machine, tx, size, buffers.into())?;
        device.start()?;
        let mut stream = Self {
            rx,
            tx,
            frame: HEADER + bytes,
            buffers,
            _device: device,
        };
        for number in 0..buffers {
            stream.rx.give(number, stream.rx.size, false)?;
            let buffer = stream.tx.buffer(number);
            buffer.fill(0);
            match large {
                true => segments(buffer, bytes, segment as u16),
                false => buffer.write_bytes(HEADER, &ETHERNET),
            }
        }
        stream.rx.queue.publish();
        Ok(stream)
    }

    fn fill_tx(&mut self) -> Outcome {
        for number in 0..self.buffers {
            self.tx.give(number, self.frame, true)?;
        }
        self.tx.queue.publish();
        Ok(())
    }

    /// Sends what was sent again, and again.
    fn send(&mut self, end: u64) -> Outcome<Count> {
        let mut count = Count::default();
        let bytes = (self.frame - HEADER) as u64;
        while now() < end {
            let before = count.frames;
            while let Some(used) = self.tx.queue.take()? {
                let number = self.tx.of_head[usize::from(used.head)];
                self.tx.give(number, self.frame, true)?;
                count.frames += 1;
                count.bytes += bytes;
            }
            if count.frames != before {
                self.tx.queue.publish();
            }
        }
        Ok(count)
    }

    /// Counts what comes.
    fn receive(&mut self, end: u64) -> Outcome<Count> {
        let mut count = Count::default();
        while now() < end {
            let before = count.frames;
            while let Some(used) = self.rx.queue.take()? {
                let number = self.rx.of_head[usize::from(used.head)];
                self.rx.give(number, self.rx.size, false)?;
                count.frames += 1;
                count.bytes += u64::from(used.written).saturating_sub(HEADER as u64);
            }
            if count.frames != before {
                self.rx.queue.publish();
            }
        }
        Ok(count)
    }

    /// Sends a frame and waits for one.
    fn echo(&mut self, machine: &Machine, end: u64, histogram: &mut Histogram) -> Outcome<Count> {
        let mut count = Count::default();
        loop {
            let begun = now();
            if begun >= end {
                return Ok(count);
            }
            while let Some(used) = self.tx.queue.take()? {
                let _ = used;
            }
            self.tx.give(0, self.frame, true)?;
            self.tx.queue.publish();
            let deadline = machine.clock.deadline_ms(PATIENCE_MS);
            let number = loop {
                if let Some(used) = self.rx.queue.take()? {
                    let number = self.rx.of_head[usize::from(used.head)];
                    // The host has other things to say, too.
                    let kind: [u8; 2] = self.rx.buffer(number).read(HEADER + 12);
                    if kind == ETHERNET[12..] {
                        break number;
                    }
                    self.rx.give(number, self.rx.size, false)?;
                    self.rx.queue.publish();
                }
                if deadline.passed() {
                    return Err(failure!("no-echo"));
                }
            };
            histogram.add(now() - begun);
            self.rx.give(number, self.rx.size, false)?;
            self.rx.queue.publish();
            count.frames += 1;
            count.bytes += (self.frame - HEADER) as u64;
        }
    }
}

/// A TCP segment that is to be cut into pieces of `segment` bytes: struct virtio_net_hdr (virtio 1.3
/// §5.1.6), Ethernet, IPv4, TCP, and zeroes.
fn segments(buffer: Dma, bytes: usize, segment: u16) {
    const NEEDS_CSUM: u8 = 1;
    const TCPV4: u8 = 1;
    const HEADERS: u16 = 14 + 20 + 20;
    let mut header = [0; HEADER];
    header[0] = NEEDS_CSUM;
    header[1] = TCPV4;
    header[2..4].copy_from_slice(&HEADERS.to_le_bytes());
    header[4..6].copy_from_slice(&segment.to_le_bytes());
    // The checksum is of what follows the IP header, and goes 16 bytes into it.
    header[6..8].copy_from_slice(&34u16.to_le_bytes());
    header[8..10].copy_from_slice(&16u16.to_le_bytes());
    buffer.write_bytes(0, &header);
    let mut frame = [0; HEADERS as usize];
    frame[..14].copy_from_slice(&ETHERNET);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut frame[14..34];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((bytes - 14) as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = 6;
    ip[12..16].copy_from_slice(&[10, 99, 0, 2]);
    ip[16..20].copy_from_slice(&[10, 99, 0, 3]);
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let tcp = &mut frame[34..54];
    tcp[0..4].copy_from_slice(&[0x13, 0x89, 0x13, 0x8a]);
    tcp[12] = 0x50;
    tcp[13] = 0x10;
    buffer.write_bytes(HEADER, &frame);
}
