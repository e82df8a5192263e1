//! The common configuration structure (virtio 1.3 §4.1.4.3) and what it holds.

use serde::{Deserialize, Serialize};

use super::{Phase, QueueState, features};
use crate::virtio::queue::MAX_QUEUE_SIZE;

/// Where the fields are.
pub(super) mod offsets {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
}

/// The low `size` bytes.
pub(super) fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
}

/// What is kept of the registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RegistersState {
    status: u8,
    phase: Phase,
    driver_features: u64,
    queue_select: u16,
    config_generation: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    queues: Vec<QueueRegistersState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueRegistersState {
    enabled: bool,
    state: QueueState,
}

struct QueueRegisters {
    max_size: u16,
    enabled: bool,
    state: QueueState,
}

pub(super) struct Registers {
    pub status: u8,
    pub phase: Phase,
    /// The queues were started and not stopped since.
    pub running: bool,
    pub driver_features: u64,
    pub queue_select: u16,
    pub config_generation: u8,
    device_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queues: Vec<QueueRegisters>,
}

impl Registers {
    pub fn new(device_features: u64, queue_sizes: &[u16]) -> Registers {
        let queues = queue_sizes.iter().map(|size| QueueRegisters {
            max_size: *size,
            enabled: false,
            state: QueueState {
                size: *size,
                ..QueueState::default()
            },
        });
        Registers {
            status: 0,
            phase: Phase::Idle,
            running: false,
            driver_features: 0,
            queue_select: 0,
            config_generation: 0,
            device_features,
            device_feature_select: 0,
            driver_feature_select: 0,
            queues: queues.collect(),
        }
    }

    pub fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|q| q.max_size).collect();
        *self = Registers {
            config_generation: self.config_generation,
            ..Registers::new(self.device_features, &sizes)
        };
    }

    /// What is to be kept. An active device is kept as a paused one: it goes on by being resumed.
    pub fn keep(&self) -> RegistersState {
        RegistersState {
            status: self.status,
            phase: match self.phase {
                Phase::Active => Phase::Paused,
                phase => phase,
            },
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            config_generation: self.config_generation,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            queues: self
                .queues
                .iter()
                .map(|q| QueueRegistersState {
                    enabled: q.enabled,
                    state: q.state,
                })
                .collect(),
        }
    }

    /// Takes what was kept; says what stands in the way, and then nothing is taken.
    pub fn take(&mut self, kept: &RegistersState) -> Result<(), String> {
        if kept.queues.len() != self.queues.len() {
            return Err(format!(
                "it had {} queues and has {}",
                kept.queues.len(),
                self.queues.len()
            ));
        }
        let lacking = kept.driver_features & !self.device_features;
        if lacking != 0 {
            return Err(format!(
                "its driver uses features {lacking:#x}, which it does not offer now"
            ));
        }
        let pairs = self.queues.iter().zip(&kept.queues);
        let too_large =
            |(now, kept): (&QueueRegisters, &QueueRegistersState)| kept.state.size > now.max_size;
        if let Some(index) = pairs.map(too_large).position(|too_large| too_large) {
            return Err(format!("queue {index} was larger than it may be now"));
        }
        self.status = kept.status;
        self.phase = kept.phase;
        self.running = false;
        self.driver_features = kept.driver_features;
        self.queue_select = kept.queue_select;
        self.config_generation = kept.config_generation;
        self.device_feature_select = kept.device_feature_select;
        self.driver_feature_select = kept.driver_feature_select;
        for (queue, kept) in self.queues.iter_mut().zip(&kept.queues) {
            (queue.enabled, queue.state) = (kept.enabled, kept.state);
        }
        Ok(())
    }

    /// The queues that the driver enabled, with where they stand.
    pub fn enabled_queues(&self) -> Vec<(u16, QueueState)> {
        let numbered = (0..).zip(&self.queues);
        numbered
            .filter(|(_, q)| q.enabled)
            .map(|(i, q)| (i, q.state))
            .collect()
    }

    pub fn save(&mut self, index: u16, state: QueueState) {
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            queue.state = state;
        }
    }

    /// Takes a non-zero status; true if the queues are to start.
    pub fn set_status(&mut self, value: u8) -> bool {
        if self.phase == Phase::Resetting {
            return false;
        }
        let mut status =
            value & !features::STATUS_NEEDS_RESET | self.status & features::STATUS_NEEDS_RESET;
        let added = status & !self.status;
        if added & features::STATUS_FEATURES_OK != 0 {
            // What was not offered, or an old driver, is refused by not keeping the bit (§3.1.1).
            let extra = self.driver_features & !self.device_features;
            if extra != 0 || !features::has(self.driver_features, features::VERSION_1) {
                status &= !features::STATUS_FEATURES_OK;
            }
        }
        self.status = status;
        let ready = features::STATUS_FEATURES_OK | features::STATUS_DRIVER_OK;
        let start = self.phase == Phase::Idle && status & ready == ready;
        if start {
            self.phase = Phase::Active;
        }
        start
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    pub fn read(&self, offset: u64, size: u8) -> u64 {
        use offsets::*;
        let queue = |field: fn(&QueueRegisters) -> u64| self.selected().map_or(0, field);
        let word = |features: u64, select: u32| {
            if select < 2 {
                features >> (32 * select) & 0xffff_ffff
            } else {
                0
            }
        };
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select.into(),
            DEVICE_FEATURE => word(self.device_features, self.device_feature_select),
            DRIVER_FEATURE_SELECT => self.driver_feature_select.into(),
            DRIVER_FEATURE => word(self.driver_features, self.driver_feature_select),
            NUM_QUEUES => self.queues.len() as u64,
            DEVICE_STATUS => self.status.into(),
            CONFIG_GENERATION => self.config_generation.into(),
            QUEUE_SELECT => self.queue_select.into(),
            QUEUE_SIZE => queue(|q| q.state.size.into()),
            QUEUE_ENABLE => queue(|q| q.enabled.into()),
            QUEUE_NOTIFY_OFF => self.selected().map_or(0, |_| self.queue_select.into()),
            QUEUE_DESC | 0x24 => part(offset - QUEUE_DESC, size, queue(|q| q.state.desc)),
            QUEUE_DRIVER | 0x2c => part(offset - QUEUE_DRIVER, size, queue(|q| q.state.avail)),
            QUEUE_DEVICE | 0x34 => part(offset - QUEUE_DEVICE, size, queue(|q| q.state.used)),
            _ => 0,
        }
    }

    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        use offsets::*;
        if self.phase == Phase::Resetting {
            return;
        }
        // After DRIVER_OK the setup stands (§3.1.1).
        let idle = self.phase == Phase::Idle;
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value as u32,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value as u32,
            DRIVER_FEATURE if idle && self.status & features::STATUS_FEATURES_OK == 0 => {
                let word = value & 0xffff_ffff;
                match self.driver_feature_select {
                    0 => self.driver_features = self.driver_features >> 32 << 32 | word,
                    1 => self.driver_features = self.driver_features & 0xffff_ffff | word << 32,
                    _ => {}
                }
            }
            QUEUE_SELECT => self.queue_select = value as u16,
            _ if idle => self.write_queue(offset, size, value),
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u64, size: u8, value: u64) {
        use offsets::*;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if queue.enabled {
            return;
        }
        let state = &mut queue.state;
        match offset {
            QUEUE_SIZE => {
                let wanted = value as u16;
                if wanted.is_power_of_two() && wanted <= queue.max_size.min(MAX_QUEUE_SIZE) {
                    state.size = wanted;
                }
            }
            QUEUE_ENABLE => queue.enabled = value as u16 == 1,
            QUEUE_DESC | 0x24 => set_part(&mut state.desc, offset - QUEUE_DESC, size, value),
            QUEUE_DRIVER | 0x2c => set_part(&mut state.avail, offset - QUEUE_DRIVER, size, value),
            QUEUE_DEVICE | 0x34 => set_part(&mut state.used, offset - QUEUE_DEVICE, size, value),
            _ => {}
        }
    }
}

/// A 64-bit field read whole or by halves.
fn part(at: u64, size: u8, field: u64) -> u64 {
    match (at, size) {
        (0, 4 | 8) => field,
        (4, 4) => field >> 32,
        _ => 0,
    }
}

fn set_part(field: &mut u64, at: u64, size: u8, value: u64) {
    match (at, size) {
        (0, 8) => *field = value,
        (0, 4) => *field = *field >> 32 << 32 | value & 0xffff_ffff,
        (4, 4) => *field = *field & 0xffff_ffff | value << 32,
        _ => {}
    }
}
