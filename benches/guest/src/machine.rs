//! The machine as this program knows it. What a task needs is discovered when it asks for it.

use crate::acpi::Acpi;
use crate::clock::Clock;
use crate::interrupts::Vectors;
use crate::line::Outcome;
use crate::memory::Memory;
use crate::start::Start;

/// Everything the tasks work with.
pub struct Machine {
    pub start: Start,
    pub memory: Memory,
    pub clock: Clock,
    pub vectors: Vectors,
    acpi: Option<Acpi>,
}

impl Machine {
    /// Takes over from the monitor.
    pub fn new(start_info: u64) -> Outcome<Self> {
        let start = Start::read(start_info)?;
        let memory = Memory::new(&start)?;
        Ok(Self {
            start,
            memory,
            clock: Clock::new(),
            vectors: Vectors::new(),
            acpi: None,
        })
    }

    /// The ACPI tables.
    pub fn acpi(&mut self) -> Outcome<&Acpi> {
        let acpi = match self.acpi.take() {
            Some(acpi) => acpi,
            None => Acpi::read(&self.start, &mut self.memory)?,
        };
        Ok(self.acpi.insert(acpi))
    }
}
