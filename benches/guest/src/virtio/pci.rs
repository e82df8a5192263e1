//! The PCI transport's registers. Virtio 1.3 §4.1.

use super::Kind;
use super::queue::{Doorbell, Rings};
use crate::failure;
use crate::line::Outcome;
use crate::memory::{Memory, Mmio};
use crate::pci::Function;

const VENDOR: u16 = 0x1af4;
const MODERN: u16 = 0x1040;
const TRANSITIONAL: core::ops::RangeInclusive<u16> = 0x1000..=0x103f;
/// The vendor capability, by which virtio describes its areas.
pub const CAPABILITY_VENDOR: u8 = 0x09;
const NO_VECTOR: u16 = 0xffff;

const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
const COMMON_BYTES: u64 = 0x38;

/// What kind of virtio device a function is, if it is one.
pub fn kind(function: Function) -> Option<Kind> {
    if function.vendor != VENDOR {
        None
    } else if TRANSITIONAL.contains(&function.device) {
        Some(Kind(function.subsystem))
    } else {
        function.device.checked_sub(MODERN).map(Kind)
    }
}

/// A device's four register areas.
pub struct PciTransport {
    common: Mmio,
    notify: Mmio,
    notify_multiplier: u32,
    device: Option<Mmio>,
}

impl PciTransport {
    /// Finds the areas by the vendor capabilities and maps them.
    pub fn open(function: Function, memory: &mut Memory) -> Outcome<Self> {
        function.enable();
        let mut areas: [Option<Mmio>; 5] = [None; 5];
        let mut notify_multiplier = 0;
        for (id, register) in function.capabilities() {
            if id != CAPABILITY_VENDOR {
                continue;
            }
            let kind = function.read8(register + 3);
            // The first of a kind is the one that the device prefers.
            let Some(area @ None) = areas.get_mut(usize::from(kind)) else {
                continue;
            };
            let bar = function.read8(register + 4);
            let offset = function.read32(register + 8);
            let length = function.read32(register + 12);
            let Some(address) = function.bar_address(bar) else {
                return Err(failure!(
                    "bar-unassigned function={} bar={bar}",
                    function.address
                ));
            };
            *area = Some(memory.mmio(address + u64::from(offset), length.into())?);
            if kind == NOTIFY {
                notify_multiplier = function.read32(register + 16);
            }
        }
        let missing = |what| failure!("no-{what}-capability function={}", function.address);
        let common = areas[usize::from(COMMON)].ok_or_else(|| missing("common"))?;
        if common.size() < COMMON_BYTES {
            return Err(failure!("common-area-too-small bytes={}", common.size()));
        }
        areas[usize::from(ISR)].ok_or_else(|| missing("isr"))?;
        Ok(Self {
            common,
            notify: areas[usize::from(NOTIFY)].ok_or_else(|| missing("notify"))?,
            notify_multiplier,
            device: areas[usize::from(DEVICE)],
        })
    }

    pub(super) fn status(&self) -> u8 {
        self.common.read8(DEVICE_STATUS)
    }

    pub(super) fn set_status(&self, status: u8) {
        self.common.write8(DEVICE_STATUS, status);
    }

    pub(super) fn device_features(&self) -> u64 {
        let half = |select| {
            self.common.write32(DEVICE_FEATURE_SELECT, select);
            u64::from(self.common.read32(DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    pub(super) fn set_driver_features(&self, features: u64) {
        for select in 0..2 {
            self.common.write32(DRIVER_FEATURE_SELECT, select);
            self.common
                .write32(DRIVER_FEATURE, (features >> (32 * select)) as u32);
        }
    }

    /// How many queues the device has.
    pub fn queues(&self) -> u16 {
        self.common.read16(NUM_QUEUES)
    }

    pub(super) fn queue_max(&self, index: u16) -> u16 {
        if index >= self.queues() {
            return 0;
        }
        self.common.write16(QUEUE_SELECT, index);
        self.common.read16(QUEUE_SIZE)
    }

    pub(super) fn enable_queue(
        &self,
        index: u16,
        rings: &Rings,
        entry: Option<u16>,
    ) -> Outcome<Doorbell> {
        let common = self.common;
        common.write16(CONFIG_MSIX_VECTOR, NO_VECTOR);
        common.write16(QUEUE_SELECT, index);
        common.write16(QUEUE_SIZE, rings.size());
        common.write16(QUEUE_MSIX_VECTOR, entry.unwrap_or(NO_VECTOR));
        if entry.is_some() && common.read16(QUEUE_MSIX_VECTOR) != entry.unwrap_or(NO_VECTOR) {
            return Err(failure!("msix-vector-refused queue={index}"));
        }
        let addresses = [
            (QUEUE_DESC, rings.descriptors()),
            (QUEUE_DRIVER, rings.available()),
            (QUEUE_DEVICE, rings.used()),
        ];
        for (register, address) in addresses {
            common.write32(register, address as u32);
            common.write32(register + 4, (address >> 32) as u32);
        }
        let offset = u64::from(common.read16(QUEUE_NOTIFY_OFF)) * u64::from(self.notify_multiplier);
        let Some(doorbell) = self.notify.part(offset, 2) else {
            return Err(failure!(
                "doorbell-outside-of-its-area queue={index} offset={offset:#x}"
            ));
        };
        common.write16(QUEUE_ENABLE, 1);
        Ok(Doorbell::Word(doorbell))
    }

    pub(super) fn config(&self) -> Mmio {
        self.device.unwrap_or(self.common)
    }

    pub(super) fn generation(&self) -> u32 {
        self.common.read8(CONFIG_GENERATION).into()
    }
}
