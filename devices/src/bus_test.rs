//! Tests of the address bus.

use super::*;

struct Echo(Mutex<u64>);

impl BusDevice for Echo {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        *self.0.lock() + offset
    }
    fn write(&self, _offset: u64, _size: u8, value: u64) -> Action {
        *self.0.lock() = value;
        Action::Reboot
    }
}

fn echo() -> Arc<Echo> {
    Arc::new(Echo(Mutex::new(0)))
}

#[test]
fn a_write_returns_the_devices_action_and_a_read_its_value() {
    let bus = Bus::new();
    bus.insert(0x100, 0x10, echo()).unwrap();
    assert_eq!(bus.write(0x104, &[0x34, 0x12]), Action::Reboot);
    let mut data = [0; 4];
    bus.read(0x101, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x1235);
}

#[test]
fn what_nobody_answers_reads_as_ones() {
    let bus = Bus::new();
    bus.insert(0x100, 0x10, echo()).unwrap();
    for (addr, len) in [(0xff, 1), (0x110, 1), (0x10e, 4), (u64::MAX, 8), (0x100, 3)] {
        let mut data = vec![0; len];
        bus.read(addr, &mut data);
        assert_eq!(data, vec![0xff; len], "{addr:#x}");
        assert_eq!(bus.write(addr, &data), Action::None);
    }
}

#[test]
fn overlapping_and_empty_ranges_are_refused() {
    let bus = Bus::new();
    bus.insert(0x100, 0x10, echo()).unwrap();
    for (base, len) in [(0x100, 1), (0x10f, 1), (0xf0, 0x11), (0, 0x1000)] {
        assert!(
            matches!(bus.insert(base, len, echo()), Err(BusError::Overlap { .. })),
            "{base:#x}"
        );
    }
    assert!(matches!(
        bus.insert(0, 0, echo()),
        Err(BusError::BadRange { .. })
    ));
    assert!(matches!(
        bus.insert(u64::MAX, 2, echo()),
        Err(BusError::BadRange { .. })
    ));
    bus.insert(0x110, 0x10, echo()).unwrap();
    bus.insert(0xf0, 0x10, echo()).unwrap();
    assert!(bus.remove(0x100));
    assert!(!bus.remove(0x100));
    bus.insert(0x100, 0x10, echo()).unwrap();
}
