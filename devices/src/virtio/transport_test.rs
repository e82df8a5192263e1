//! Tests of the PCI transport: registers as a driver uses and abuses them.

use std::io;

use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::registers::offsets::*;
use super::*;
use crate::irq::MsiVector;
use crate::virtio::rng::Rng;
use crate::worker::{PollSettings, Worker};

struct NoVectors;

impl MsiSource for NoVectors {
    fn vector(&self) -> io::Result<Arc<dyn MsiVector>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn worker() -> Worker {
    Worker::start("test", PollSettings::events(), || Ok(())).unwrap()
}

fn device(worker: &Worker) -> VirtioPci {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let ram = GuestRam::new(memory);
    VirtioPci::new(
        "rng",
        Slot(3),
        Box::new(Rng::default()),
        0xc000_0000,
        ram,
        Arc::new(NoVectors),
        worker.handle(),
    )
    .unwrap()
}

/// Brings the device to DRIVER_OK; the action that this asks for.
fn bring_up(device: &VirtioPci) -> Action {
    for status in [1, 3] {
        assert_eq!(device.write(DEVICE_STATUS, 1, status), Action::None);
    }
    for (select, bits) in [(0, 0), (1, 1)] {
        device.write(DRIVER_FEATURE_SELECT, 4, select);
        device.write(DRIVER_FEATURE, 4, bits);
    }
    assert_eq!(device.write(DEVICE_STATUS, 1, 0xb), Action::None);
    assert_eq!(device.read(DEVICE_STATUS, 1), 0xb, "FEATURES_OK is kept");
    device.write(QUEUE_SIZE, 2, 16);
    for (at, address) in [
        (QUEUE_DESC, 0x1000),
        (QUEUE_DRIVER, 0x2000),
        (QUEUE_DEVICE, 0x3000),
    ] {
        device.write(at, 8, address);
    }
    device.write(QUEUE_ENABLE, 2, 1);
    device.write(DEVICE_STATUS, 1, 0xf)
}

#[test]
fn driver_ok_activates_and_a_reset_ends_when_queues_have_stopped() {
    let worker = worker();
    let device = device(&worker);
    assert_eq!(bring_up(&device), Action::Activate(Slot(3)));
    device.activate();
    assert_eq!(device.write(DEVICE_STATUS, 1, 0), Action::Reset(Slot(3)));
    assert_ne!(
        device.read(DEVICE_STATUS, 1),
        0,
        "the reset is not over yet"
    );
    assert_eq!(
        device.write(DEVICE_STATUS, 1, 0),
        Action::None,
        "one reset at a time"
    );
    device.reset();
    assert_eq!(device.read(DEVICE_STATUS, 1), 0);
    assert_eq!(device.read(QUEUE_ENABLE, 2), 0);
    // And it works again.
    assert_eq!(bring_up(&device), Action::Activate(Slot(3)));
    device.activate();
    device.pause();
    device.resume();
    device.reset();
}

#[test]
fn a_pause_may_come_before_what_the_driver_asked_for_is_done() {
    let worker = worker();
    let device = device(&worker);
    let running = || device.shared.registers.lock().running;
    // Before the activation: the queues stand where the driver set them up.
    assert_eq!(bring_up(&device), Action::Activate(Slot(3)));
    device.pause();
    assert!(!running());
    assert_eq!(device.read(DEVICE_STATUS, 1), 0xf);
    device.resume();
    assert!(running());
    device.activate();
    // Before the reset: nothing is in flight any more.
    assert_eq!(device.write(DEVICE_STATUS, 1, 0), Action::Reset(Slot(3)));
    device.pause();
    assert!(!running());
    device.resume();
    assert!(!running());
    device.reset();
    assert_eq!(device.read(DEVICE_STATUS, 1), 0);
    assert_eq!(bring_up(&device), Action::Activate(Slot(3)));
    device.activate();
    assert!(running());
    device.reset();
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let worker = worker();
    let device = device(&worker);
    device.write(DRIVER_FEATURE_SELECT, 4, 0);
    device.write(DRIVER_FEATURE, 4, 0xffff_ffff);
    device.write(DRIVER_FEATURE_SELECT, 4, 1);
    device.write(DRIVER_FEATURE, 4, 1);
    device.write(DEVICE_STATUS, 1, 0xb);
    assert_eq!(device.read(DEVICE_STATUS, 1), 0x3);
}

#[test]
fn a_driver_without_version_1_is_refused() {
    let worker = worker();
    let device = device(&worker);
    device.write(DEVICE_STATUS, 1, 0xb);
    assert_eq!(device.read(DEVICE_STATUS, 1), 0x3);
}

#[test]
fn a_queue_that_is_not_there_reads_as_zero() {
    let worker = worker();
    let device = device(&worker);
    device.write(QUEUE_SELECT, 2, 7);
    for at in [
        QUEUE_SIZE,
        QUEUE_ENABLE,
        QUEUE_NOTIFY_OFF,
        QUEUE_DESC,
        QUEUE_DRIVER,
        QUEUE_DEVICE,
    ] {
        device.write(at, 2, 0xffff);
        assert_eq!(device.read(at, 2), 0, "{at:#x}");
    }
    assert_eq!(device.read(QUEUE_MSIX_VECTOR, 2), 0xffff);
}

#[test]
fn a_vector_that_is_not_there_is_refused() {
    let worker = worker();
    let device = device(&worker);
    device.write(QUEUE_MSIX_VECTOR, 2, 1);
    assert_eq!(device.read(QUEUE_MSIX_VECTOR, 2), 1);
    device.write(QUEUE_MSIX_VECTOR, 2, 2);
    assert_eq!(device.read(QUEUE_MSIX_VECTOR, 2), 0xffff);
}

#[test]
fn the_window_in_configuration_space_reaches_the_bar() {
    let worker = worker();
    let device = device(&worker);
    let window = device.config.lock().window_capability;
    device.config_write(window + 8, 4, NUM_QUEUES as u32);
    device.config_write(window + 12, 4, 2);
    assert_eq!(device.config_read(window + 16, 4), 1);
    device.config_write(window + 8, 4, DEVICE_STATUS as u32);
    device.config_write(window + 12, 4, 1);
    device.config_write(window + 16, 4, 1);
    assert_eq!(device.read(DEVICE_STATUS, 1), 1);
}

#[test]
fn moving_the_bar_asks_for_a_new_layout() {
    let worker = worker();
    let device = device(&worker);
    assert_eq!(
        device.config_write(0x10, 4, 0xd000_0000),
        Action::ChangeLayout(Slot(3))
    );
    assert_eq!(device.bar().map(|b| b.address), Some(0xd000_0000));
    assert_eq!(
        device.config_write(0x04, 2, 0),
        Action::ChangeLayout(Slot(3))
    );
    assert_eq!(device.bar(), None);
}

proptest! {
    #[test]
    fn no_access_panics(accesses in prop::collection::vec((0u64..BAR_SIZE + 16, 0u32..4, any::<u64>(), 0u8..4), 1..200)) {
        let worker = worker();
    let device = device(&worker);
        for (offset, size, value, kind) in accesses {
            let size = 1u8 << size;
            match kind {
                0 => drop(device.read(offset, size)),
                1 => drop(device.write(offset, size, value)),
                2 => drop(device.config_read(offset as u16 & 0xfff, size.min(4))),
                _ => drop(device.config_write(offset as u16 & 0xfff, size.min(4), value as u32)),
            }
        }
    }
}
