//! The MMIO transport's registers, and the command line's words that say where devices are. Virtio 1.3 §4.2.

use super::queue::{Doorbell, Rings};
use super::{Kind, Place};
use crate::failure;
use crate::line::Outcome;
use crate::memory::Mmio;
use crate::start::Start;

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SELECT: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SELECT: u64 = 0x024;
const QUEUE_SELECT: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;
const MAGIC_VALUE: u32 = 0x7472_6976;

/// The devices that `virtio_mmio.device=4K@0xd0000000:5` words describe (Linux' syntax).
pub fn places(start: &Start) -> impl Iterator<Item = Place> + '_ {
    start
        .command_line()
        .split_ascii_whitespace()
        .filter_map(|word| {
            let (size, rest) = word.strip_prefix("virtio_mmio.device=")?.split_once('@')?;
            let mut numbers = rest.split(':');
            let address = u64::from_str_radix(numbers.next()?.trim_start_matches("0x"), 16).ok()?;
            let gsi = numbers.next()?.parse().ok()?;
            let size = match size.strip_suffix(['K', 'k']) {
                Some(kib) => kib.parse::<u64>().ok()? << 10,
                None => u64::from_str_radix(size.trim_start_matches("0x"), 16).ok()?,
            };
            Some(Place::Mmio { address, size, gsi })
        })
}

/// One device's registers.
pub struct MmioTransport {
    registers: Mmio,
    config: Mmio,
}

impl MmioTransport {
    /// Checks that there is a modern device.
    pub fn open(registers: Mmio) -> Outcome<Self> {
        let (magic, version) = (registers.read32(MAGIC), registers.read32(VERSION));
        if magic != MAGIC_VALUE {
            return Err(failure!("no-virtio-mmio magic={magic:#x}"));
        }
        if version != 2 {
            return Err(failure!("device-is-legacy version={version}"));
        }
        let config = registers
            .part(CONFIG, registers.size().saturating_sub(CONFIG))
            .ok_or_else(|| failure!("mmio-area-too-small bytes={}", registers.size()))?;
        Ok(Self { registers, config })
    }

    /// What the device is; kind 0 is an empty place.
    pub fn kind(&self) -> Kind {
        Kind(self.registers.read32(DEVICE_ID) as u16)
    }

    /// Where pending interrupts are read (at 0) and acknowledged (at 4).
    pub fn acknowledge(&self) -> Mmio {
        self.registers
            .part(INTERRUPT_STATUS, 8)
            .unwrap_or(self.registers)
    }

    pub(super) fn status(&self) -> u8 {
        self.registers.read32(STATUS) as u8
    }

    pub(super) fn set_status(&self, status: u8) {
        self.registers.write32(STATUS, status.into());
    }

    pub(super) fn device_features(&self) -> u64 {
        let half = |select| {
            self.registers.write32(DEVICE_FEATURES_SELECT, select);
            u64::from(self.registers.read32(DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    pub(super) fn set_driver_features(&self, features: u64) {
        for select in 0..2 {
            self.registers.write32(DRIVER_FEATURES_SELECT, select);
            self.registers
                .write32(DRIVER_FEATURES, (features >> (32 * select)) as u32);
        }
    }

    pub(super) fn queue_max(&self, index: u16) -> u16 {
        self.registers.write32(QUEUE_SELECT, index.into());
        self.registers.read32(QUEUE_SIZE_MAX) as u16
    }

    pub(super) fn enable_queue(
        &self,
        index: u16,
        rings: &Rings,
        _: Option<u16>,
    ) -> Outcome<Doorbell> {
        let registers = self.registers;
        registers.write32(QUEUE_SELECT, index.into());
        registers.write32(QUEUE_SIZE, rings.size().into());
        let addresses = [
            (QUEUE_DESC, rings.descriptors()),
            (QUEUE_DRIVER, rings.available()),
            (QUEUE_DEVICE, rings.used()),
        ];
        for (register, address) in addresses {
            registers.write32(register, address as u32);
            registers.write32(register + 4, (address >> 32) as u32);
        }
        registers.write32(QUEUE_READY, 1);
        match registers.part(QUEUE_NOTIFY, 4) {
            Some(doorbell) => Ok(Doorbell::Double(doorbell)),
            None => Err(failure!("mmio-area-too-small bytes={}", registers.size())),
        }
    }

    pub(super) fn config(&self) -> Mmio {
        self.config
    }

    pub(super) fn generation(&self) -> u32 {
        self.registers.read32(CONFIG_GENERATION)
    }
}
