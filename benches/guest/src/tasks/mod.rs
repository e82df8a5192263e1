//! The tasks, by name, and their reports.
//!
//! A task is a word of `run=`: its name, then arguments after colons. Numbers are decimal or `0x…`; arguments of
//! the form `key=value` may stand anywhere. Every task also takes `wait=poll` (no interrupts) and
//! `event-idx=off`, which are words of the command line for all tasks at once as well. Each function's
//! documentation says what its task takes and proves.
//!
//! | room | tasks |
//! |---|---|
//! | `platform` | `mem`, `cpus[:n]`, `timer`, `tsc`, `rtc`, `serial-echo`, `serial-irq`, `spin:ms`, `ticker:n`, `heartbeat`, `wait-power-button[:s]` |
//! | `bus` | `pci` |
//! | `disk` | `blk-info`, `blk-verify`, `blk-read-verify`, `blk-sum`, `blk-indirect`, `blk-poll`, `blk-discard`, `blk-zeroes`, `blk-ro`, `blk-oob`, `reset-dev`, `msix-mask` |
//! | `churn` | `blk-churn[:i[:seed]]` |
//! | `exits` | `exit-costs[:i]` |
//! | `hotplug` | `hotplug`, all arguments by name; `eject[:slots]` |
//! | `kept` | `tick`, `rewrite`, all arguments by name |
//! | `load` | `blk-load[:i]` |
//! | `stream` | `net-load[:i]` |
//! | `steady` | `steady`, all arguments by name |
//! | `survive` | `blk-survive[:i]` |
//! | `network` | `net-info`, `net-ping` (also `net-arp`), `net-respond` |
//! | `sockets` | `vsock-connect:port`, `vsock-listen:port[:n]` |
//! | `streams` | `rng`, `console-write:text`, `console-echo` |
//! | `fuzz_registers` | `fuzz-pio`, `fuzz-pci`, `fuzz-config`, each `:seed:n` |
//! | `fuzz_queue` | `fuzz-queue:seed:n` |

mod blocks;
mod bus;
mod churn;
mod disk;
mod exits;
mod frame;
mod fuzz_queue;
mod fuzz_registers;
mod hotplug;
mod kept;
mod load;
mod network;
pub mod platform;
mod sockets;
mod steady;
mod stream;
mod streams;
mod survive;
mod sweep;

use core::fmt::Write;

use crate::failure;
use crate::line::{Line, Outcome};
use crate::machine::Machine;
use crate::say;

const ARGUMENTS: usize = 16;
const WORD_BYTES: usize = 256;

/// A task's arguments: `name[:argument…]`. Positional ones come first; `key=value` ones may stand anywhere.
pub struct Arguments {
    word: [u8; WORD_BYTES],
    length: usize,
}

impl Arguments {
    fn new(word: &str) -> Self {
        let length = word.len().min(WORD_BYTES);
        let mut copy = [0; WORD_BYTES];
        copy[..length].copy_from_slice(&word.as_bytes()[..length]);
        Self { word: copy, length }
    }

    fn text(&self) -> &str {
        core::str::from_utf8(&self.word[..self.length]).unwrap_or("")
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        self.text().split(':').skip(1).take(ARGUMENTS)
    }

    /// The name in front of the arguments.
    pub fn name(&self) -> &str {
        self.text().split(':').next().unwrap_or("")
    }

    /// The positional argument at `index`.
    pub fn at(&self, index: usize) -> Option<&str> {
        self.words()
            .filter(|word| !word.contains('='))
            .nth(index)
            .filter(|word| !word.is_empty())
    }

    /// The positional argument at `index` as a number, decimal or hexadecimal.
    pub fn number(&self, index: usize) -> Outcome<Option<u64>> {
        self.at(index).map(parse_number).transpose()
    }

    /// The value of `key=`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.words()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The value of `key=` as a number.
    pub fn number_of(&self, key: &str) -> Outcome<Option<u64>> {
        self.value(key).map(parse_number).transpose()
    }
}

fn parse_number(text: &str) -> Outcome<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| failure!("not-a-number argument={text}"))
}

/// A task: does its work and writes ` key=value` pairs.
type Task = fn(&mut Machine, &Arguments, &mut Line) -> Outcome;

const TASKS: &[(&str, Task)] = &[
    ("blk-churn", churn::churn),
    ("blk-discard", disk::discard),
    ("blk-indirect", disk::indirect),
    ("blk-info", disk::info),
    ("blk-load", load::load),
    ("blk-oob", disk::out_of_bounds),
    ("blk-poll", disk::poll),
    ("blk-read-verify", disk::read_verify),
    ("blk-ro", disk::read_only),
    ("blk-sum", disk::sum),
    ("blk-survive", survive::survive),
    ("blk-verify", disk::verify),
    ("blk-zeroes", disk::zeroes),
    ("console-echo", streams::console_echo),
    ("console-write", streams::console_write),
    ("cpus", platform::processors),
    ("eject", hotplug::eject),
    ("exit-costs", exits::costs),
    ("fuzz-config", fuzz_registers::registers),
    ("fuzz-pci", fuzz_registers::pci),
    ("fuzz-pio", fuzz_registers::ports),
    ("fuzz-queue", fuzz_queue::queues),
    ("heartbeat", platform::heartbeat),
    ("hotplug", hotplug::hotplug),
    ("mem", platform::memory),
    ("msix-mask", disk::msix_mask),
    ("net-arp", network::ping),
    ("net-info", network::info),
    ("net-load", stream::load),
    ("net-ping", network::ping),
    ("net-respond", network::respond),
    ("pci", bus::pci),
    ("reset-dev", disk::reset),
    ("rewrite", kept::rewrite),
    ("rng", streams::rng),
    ("rtc", platform::rtc),
    ("serial-echo", platform::serial_echo),
    ("serial-irq", platform::serial_interrupt),
    ("spin", platform::spin),
    ("steady", steady::steady),
    ("tick", kept::tick),
    ("ticker", platform::ticker),
    ("timer", platform::timer),
    ("tsc", platform::tsc),
    ("vsock-connect", sockets::connect),
    ("vsock-listen", sockets::listen),
    ("wait-power-button", platform::power_button),
];

/// Runs the tasks of `run=` in order and reports each, then all.
pub fn run(machine: &mut Machine) {
    let (mut ok, mut fail) = (0, 0);
    let mut index = 0;
    while let Some(arguments) = machine
        .start
        .word("run")
        .and_then(|list| list.split(',').filter(|word| !word.is_empty()).nth(index))
        .map(Arguments::new)
    {
        let mut report = Line::new();
        let outcome = match TASKS.iter().find(|(name, _)| *name == arguments.name()) {
            Some((_, task)) => {
                let mark = machine.memory.mark();
                let options = machine.options;
                options_of(machine, &arguments);
                let outcome = task(machine, &arguments, &mut report);
                machine.options = options;
                machine.memory.release(mark);
                outcome
            }
            None => Err(failure!("unknown-task")),
        };
        match outcome {
            Ok(()) => {
                ok += 1;
                say!("ok {}{}", arguments.name(), report.as_str());
            }
            Err(failure) => {
                fail += 1;
                say!(
                    "fail {} reason={}{}",
                    arguments.name(),
                    failure.reason(),
                    report.as_str()
                );
            }
        }
        index += 1;
    }
    say!("skerry-payload: done ok={ok} fail={fail}");
}

/// A task's own `wait=` and `event-idx=` come before the command line's.
fn options_of(machine: &mut Machine, arguments: &Arguments) {
    if let Some(wait) = arguments.value("wait") {
        machine.options.poll = wait == "poll";
    }
    if let Some(event_idx) = arguments.value("event-idx") {
        machine.options.event_idx = event_idx != "off";
    }
}

/// Appends one ` key=value` to a report.
pub fn put(report: &mut Line, arguments: core::fmt::Arguments) {
    // Writing to a line cannot fail.
    let _ = report.write_char(' ');
    let _ = report.write_fmt(arguments);
}
