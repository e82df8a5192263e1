//! Tasks on the devices that give or take plain bytes: the entropy source and the console.

use core::fmt::Write;

use super::{Arguments, put};
use crate::clock::Deadline;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::memory::Dma;
use crate::virtio::queue::Queue;
use crate::virtio::{Device, Kind, PATIENCE_MS};
use crate::{failure, say};

/// One chain from publication to use. Gives the bytes that the device says it has written.
fn exchange(
    queue: &mut Queue,
    readable: &[Dma],
    writable: &[Dma],
    deadline: Deadline,
) -> Outcome<usize> {
    let mut segments = [Default::default(); 4];
    let count = readable.len() + writable.len();
    for (segment, memory) in segments.iter_mut().zip(readable.iter().chain(writable)) {
        *segment = (*memory).into();
    }
    let (readable, writable) = segments[..count].split_at(readable.len());
    if queue.add(readable, writable).is_none() {
        return Err(failure!("queue-full queue={}", queue.index()));
    }
    queue.publish();
    loop {
        if let Some(used) = queue.take()? {
            return Ok(used.written as usize);
        }
        queue.wait(deadline)?;
    }
}

/// `rng`: two reads of the entropy device differ and aren't zero.
pub fn rng(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    const BYTES: usize = 64;
    let index = arguments.number(0)?.unwrap_or(0) as usize;
    let device = Device::open(machine, Kind::ENTROPY, index, 0)?;
    let mut queue = device.queue(machine, 0, 64)?;
    device.start()?;
    let memory = machine.memory.allocate(BYTES, 64)?;
    let deadline = machine.clock.deadline_ms(PATIENCE_MS);
    let mut reads = [[0; BYTES]; 2];
    let mut lengths = [0; 2];
    for (read, length) in reads.iter_mut().zip(&mut lengths) {
        memory.fill(0);
        *length = exchange(&mut queue, &[], &[memory], deadline)?;
        if !(1..=BYTES).contains(length) {
            return Err(failure!("bad-length bytes={length}"));
        }
        memory.read_bytes(0, read);
        if read[..*length].iter().all(|byte| *byte == 0) {
            return Err(failure!("all-zero bytes={length}"));
        }
    }
    if reads[0] == reads[1] {
        return Err(failure!("same-twice"));
    }
    put(
        report,
        format_args!(
            "bytes={}+{} irqs={}",
            lengths[0],
            lengths[1],
            queue.interrupts()
        ),
    );
    Ok(())
}

/// A console's first port.
struct Console {
    rx: Queue,
    tx: Queue,
    rx_memory: Dma,
    tx_memory: Dma,
    _device: Device,
}

const CONSOLE_BYTES: usize = 512;

impl Console {
    fn open(machine: &mut Machine) -> Outcome<Self> {
        let device = Device::open(machine, Kind::CONSOLE, 0, 0)?;
        let console = Self {
            rx: device.queue(machine, 0, 64)?,
            tx: device.queue(machine, 1, 64)?,
            rx_memory: machine.memory.allocate(CONSOLE_BYTES, 64)?,
            tx_memory: machine.memory.allocate(CONSOLE_BYTES, 64)?,
            _device: device,
        };
        console._device.start()?;
        Ok(console)
    }

    fn write(&mut self, text: &[u8], deadline: Deadline) -> Outcome {
        let memory = self.tx_memory.part(0, text.len().min(CONSOLE_BYTES));
        memory.write_bytes(0, &text[..memory.size()]);
        exchange(&mut self.tx, &[memory], &[], deadline).map(|_| ())
    }

    /// Appends what arrives to a line until its end.
    fn read_line(&mut self, line: &mut Line, deadline: Deadline) -> Outcome {
        loop {
            let length = exchange(&mut self.rx, &[], &[self.rx_memory], deadline)?;
            let mut bytes = [0; CONSOLE_BYTES];
            self.rx_memory.read_bytes(0, &mut bytes);
            for byte in &bytes[..length.min(CONSOLE_BYTES)] {
                match byte {
                    b'\r' | b'\n' => return Ok(()),
                    // Writing to a line cannot fail.
                    byte => drop(line.write_char(char::from(*byte))),
                }
            }
        }
    }
}

/// `console-write:text`: writes a line to the virtio console.
pub fn console_write(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let mut line = Line::new();
    // Writing to a line cannot fail.
    let _ = line.write_str(arguments.at(0).unwrap_or("hello"));
    line.end();
    let mut console = Console::open(machine)?;
    console.write(line.as_bytes(), machine.clock.deadline_ms(PATIENCE_MS))?;
    put(
        report,
        format_args!(
            "bytes={} irqs={}",
            line.as_bytes().len(),
            console.tx.interrupts()
        ),
    );
    Ok(())
}

/// `console-echo[:seconds]`: reads a line from the virtio console and writes it back.
pub fn console_echo(machine: &mut Machine, arguments: &Arguments, report: &mut Line) -> Outcome {
    let seconds = arguments.number(0)?.unwrap_or(30);
    let deadline = machine.clock.deadline_ms(seconds * 1000);
    let mut console = Console::open(machine)?;
    say!("# console-echo: waiting for a line");
    let mut line = Line::new();
    console.read_line(&mut line, deadline)?;
    put(report, format_args!("text={}", line.as_str()));
    line.end();
    console.write(line.as_bytes(), deadline)
}
