//! Feature bits (virtio 1.3 §6) and device status bits (§2.1).

/// Whether `bit` is in `features`.
pub const fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

/// Indirect descriptors.
pub const RING_INDIRECT_DESC: u32 = 28;
/// used_event and avail_event.
pub const RING_EVENT_IDX: u32 = 29;
/// A modern device.
pub const VERSION_1: u32 = 32;

/// The bits every device of ours offers.
pub const COMMON: u64 = 1 << VERSION_1 | 1 << RING_EVENT_IDX | 1 << RING_INDIRECT_DESC;

/// The guest has noticed the device.
pub const STATUS_ACKNOWLEDGE: u8 = 1;
/// The guest has a driver for it.
pub const STATUS_DRIVER: u8 = 2;
/// The driver is ready.
pub const STATUS_DRIVER_OK: u8 = 4;
/// Feature negotiation is complete.
pub const STATUS_FEATURES_OK: u8 = 8;
/// The device cannot go on.
pub const STATUS_NEEDS_RESET: u8 = 64;
/// The driver has given up.
pub const STATUS_FAILED: u8 = 128;
