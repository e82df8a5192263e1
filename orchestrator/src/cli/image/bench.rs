//! `skerry image bench`: requests through the engine and io_uring, as the monitor sends them.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use skerry_images::chain::{Layer, Stack};
use skerry_images::io::uring::{Driver, Ended};
use skerry_images::io::{Buffer, ImageFile, Port, Tasks, block_on};
use skerry_images::qcow2::Place;

use super::layers::Source;
use super::output::{Output, print_json};
use super::{Failure, Outcome, bytes};

/// Measure how fast an image is read or written.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    source: Source,

    /// Requests
    #[arg(short, long, value_name = "N", default_value = "75000")]
    count: u64,

    /// Requests under way at a time
    #[arg(short, long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=65536))]
    depth: u32,

    /// Bytes of a request
    #[arg(short = 's', long, value_name = "SIZE", default_value = "4k", value_parser = bytes::parse)]
    buffer_size: u64,

    /// From one request's start to the next one's [default: the buffer's size]
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = bytes::parse)]
    step_size: Option<u64>,

    /// Where the first request starts
    #[arg(short, long, value_name = "SIZE", default_value = "0", value_parser = bytes::parse)]
    offset: u64,

    /// Requests at random multiples of the step, instead of one after the other
    #[arg(long)]
    random: bool,

    /// Write. What the image holds is lost
    #[arg(short, long)]
    write: bool,

    /// The byte to write
    #[arg(long, value_name = "BYTE", default_value = "0", requires = "write")]
    pattern: u8,

    /// Bypass the page cache (O_DIRECT)
    #[arg(long)]
    direct: bool,

    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Answer {
    requests: u64,
    bytes: u64,
    seconds: f64,
    requests_per_second: f64,
    bytes_per_second: f64,
    /// Requests that went to the file at once, without a task.
    straight: u64,
}

type Result<T> = std::result::Result<T, Failure>;

impl Bench {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let port = Port::new();
        let options = self.source.file_options_for(!self.write, self.direct);
        let disk = block_on(&port, self.source.open_with(&port, &options))?;
        let step = self.step_size.unwrap_or(self.buffer_size);
        let wrong = match () {
            () if self.buffer_size == 0 || step == 0 => Some("requests need a size and a step"),
            () if self.buffer_size + self.offset > disk.size() => {
                Some("a request does not fit into the disk")
            }
            () if !(self.buffer_size | step | self.offset).is_multiple_of(512) => {
                Some("sizes and offsets are multiples of 512")
            }
            () => None,
        };
        if let Some(wrong) = wrong {
            return Err(Failure::Asked(wrong.into()));
        }
        if !self.output.json() {
            println!(
                "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size {step}{})",
                self.count,
                if self.write { "write" } else { "read" },
                self.buffer_size,
                self.depth,
                self.offset,
                if self.random { ", random" } else { "" }
            );
        }
        let system = |source| Failure::System {
            what: "use io_uring for",
            path: self.source.file.clone(),
            source,
        };
        let driver = Driver::new(self.depth.clamp(8, 4096), port.clone()).map_err(system)?;
        let start = Instant::now();
        let straight = Run {
            bench: self,
            step,
            next: self.offset,
            dice: 0x5eed,
            disk: disk.clone(),
            port: port.clone(),
            driver,
            tasks: Tasks::new(Box::new(|| {})),
            slots: Vec::new(),
            free: Vec::new(),
            done: 0,
            straight: 0,
        }
        .go()?;
        let seconds = start.elapsed().as_secs_f64();
        if self.write {
            block_on(&port, disk.close(&port))?;
        }
        let bytes = self.count * self.buffer_size;
        let answer = Answer {
            requests: self.count,
            bytes,
            seconds,
            requests_per_second: self.count as f64 / seconds,
            bytes_per_second: bytes as f64 / seconds,
            straight,
        };
        if self.output.json() {
            print_json(&answer)?;
        } else {
            println!("Run completed in {seconds:.3} seconds.");
            println!(
                "{:.0} requests/s, {}/s; {straight} requests went straight to the file",
                answer.requests_per_second,
                bytes::show(answer.bytes_per_second as u64)
            );
        }
        Ok(0)
    }
}

/// One request's memory, and what it holds of the engine while it is under way.
struct Slot {
    buffer: Arc<Buffer>,
    side: Option<u8>,
}

struct Run<'a> {
    bench: &'a Bench,
    step: u64,
    next: u64,
    dice: u64,
    disk: Stack,
    port: Port,
    driver: Driver,
    tasks: Tasks<skerry_images::Result<()>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    done: u64,
    straight: u64,
}

impl Run<'_> {
    fn go(mut self) -> Result<u64> {
        let bench = self.bench;
        for i in 0..bench.depth {
            let bytes = vec![bench.pattern; bench.buffer_size as usize];
            self.slots.push(Slot {
                buffer: Arc::new(Buffer::from_slice(&bytes)),
                side: None,
            });
            self.free.push(i);
        }
        let mut started = 0;
        while self.done < bench.count {
            while started < bench.count
                && let Some(slot) = self.free.pop()
            {
                let offset = self.place();
                self.start(slot, offset)?;
                started += 1;
            }
            self.turn()?;
        }
        Ok(self.straight)
    }

    /// Where the next request goes.
    fn place(&mut self) -> u64 {
        let bench = self.bench;
        let room = self.disk.size() - bench.offset - bench.buffer_size;
        if bench.random {
            // Numbers need no quality but speed here (xorshift).
            self.dice ^= self.dice << 13;
            self.dice ^= self.dice >> 7;
            self.dice ^= self.dice << 17;
            return bench.offset + self.dice % (room / self.step + 1) * self.step;
        }
        let at = self.next;
        self.next += self.step;
        if self.next + bench.buffer_size > self.disk.size() {
            self.next = bench.offset;
        }
        at
    }

    /// Begins a request: straight to the file if its place is known, by a task if not.
    fn start(&mut self, slot: u32, offset: u64) -> Result<()> {
        let size = self.bench.buffer_size;
        if let Some((file, host, side)) = self.lookup(offset, size) {
            self.straight += 1;
            self.slots[slot as usize].side = side;
            let span = self.slots[slot as usize].buffer.span();
            let begun = if self.bench.write {
                self.driver.write(slot, &file, host, span)
            } else {
                self.driver.read(slot, &file, host, span)
            };
            return begun.map_err(|source| self.failed(source));
        }
        let (disk, port) = (self.disk.clone(), self.port.clone());
        let (buffer, write) = (self.slots[slot as usize].buffer.clone(), self.bench.write);
        self.tasks.spawn(
            slot,
            Box::pin(async move {
                if write {
                    disk.write(&port, offset, &buffer.span()).await
                } else {
                    disk.read(&port, offset, &buffer.span()).await.map(drop)
                }
            }),
        );
        Ok(())
    }

    /// Where the bytes are in a file, if that is known without waiting and all in one place.
    fn lookup(&self, offset: u64, len: u64) -> Option<(Arc<ImageFile>, u64, Option<u8>)> {
        match self.disk.top() {
            Layer::Raw(raw) => Some((raw.file().clone(), offset, None)),
            Layer::Qcow2(image) if self.bench.write => {
                let (host, side) = image.try_write(offset, len)?;
                Some((image.data_file().clone(), host, Some(side)))
            }
            Layer::Qcow2(image) => {
                let (run, side) = image.try_read(offset, len)?;
                match run.place {
                    Place::Data(host) if run.len >= len => {
                        Some((image.data_file().clone(), host, Some(side)))
                    }
                    _ => {
                        image.leave(side);
                        None
                    }
                }
            }
        }
    }

    fn turn(&mut self) -> Result<()> {
        let mut failure: Option<Failure> = None;
        let (mut free, mut done) = (std::mem::take(&mut self.free), 0);
        let (slots, disk, bench) = (&mut self.slots, &self.disk, self.bench);
        let system = |errno: i32| Failure::System {
            what: if bench.write { "write" } else { "read" },
            path: bench.source.file.clone(),
            source: std::io::Error::from_raw_os_error(errno),
        };
        let turned = self.driver.turn(&mut self.tasks, |ended| {
            done += 1;
            match ended {
                Ended::Task(slot, result) => {
                    free.push(slot);
                    if let Err(e) = result {
                        failure = Some(e.into());
                    }
                }
                Ended::Transfer(slot, result) => {
                    if let (Some(side), Layer::Qcow2(image)) =
                        (slots[slot as usize].side.take(), disk.top())
                    {
                        image.leave(side);
                    }
                    free.push(slot);
                    // A short read is that of a file's end, which reads as zeroes.
                    if result < 0 {
                        failure = Some(system(-result));
                    } else if bench.write && (result as u64) < bench.buffer_size {
                        failure = Some(system(libc::ENOSPC));
                    }
                }
            }
        });
        self.free = free;
        self.done += done;
        turned.map_err(|source| self.failed(source))?;
        match failure {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn failed(&self, source: std::io::Error) -> Failure {
        Failure::System {
            what: "use io_uring for",
            path: self.bench.source.file.clone(),
            source,
        }
    }
}
