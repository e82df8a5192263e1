//! Tests of configuration space and the two ways to it.

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;

struct Plain(Mutex<ConfigSpace>);

impl PciFunction for Plain {
    fn config_read(&self, offset: u16, size: u8) -> u32 {
        self.0.lock().read(offset, size)
    }
    fn config_write(&self, offset: u16, size: u8, value: u32) -> Action {
        self.0.lock().write(offset, size, value);
        Action::None
    }
}

fn space() -> ConfigSpace {
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_8000,
        subsystem: 0x40,
    });
    space.set_bar(0xc000_0000, 0x8000);
    space
}

#[test]
fn a_bar_tells_its_size_and_moves() {
    let mut space = space();
    assert_eq!(
        space.bar(),
        Some(Bar {
            address: 0xc000_0000,
            size: 0x8000
        })
    );
    space.write(0x10, 4, 0xffff_ffff);
    space.write(0x14, 4, 0xffff_ffff);
    assert_eq!(
        (space.read(0x10, 4), space.read(0x14, 4)),
        (0xffff_8004, 0xffff_ffff)
    );
    space.write(0x10, 4, 0xc123_8000);
    space.write(0x14, 4, 1);
    assert_eq!(space.bar().map(|b| b.address), Some(0x1_c123_8000));
    space.write(0x04, 2, 0);
    assert_eq!(space.bar(), None);
}

#[test]
fn capabilities_form_a_list() {
    let mut space = space();
    let first = space.add_capability(9, &[5; 14], &[]);
    let second = space.add_capability(0x11, &[0; 10], &[0, 0xc0]);
    assert_eq!(space.read(0x34, 1), u32::from(first));
    assert_eq!(space.read(first, 2), u32::from(second) << 8 | 9);
    assert_eq!(space.read(second, 2), 0x11);
    assert_eq!(space.read(0x06, 2) & 0x10, 0x10);
    space.write(second + 2, 2, 0xffff);
    assert_eq!(space.read(second + 2, 2), 0xc000);
}

#[test]
fn ecam_and_ports_show_the_same_functions() {
    let root = Arc::new(PciRoot::new());
    let slot = root.free_slot(|_| false).unwrap();
    root.insert(slot, Arc::new(Plain(Mutex::new(space()))));
    let (ecam, ports) = (Ecam(root.clone()), ConfigPorts(root.clone()));
    for device in 0..4u64 {
        for register in (0..256).step_by(4) {
            ports.write(0, 4, 1 << 31 | device << 11 | register);
            let by_port = ports.read(4, 4) as u32;
            let by_ecam = ecam.read(device << 15 | register, 4) as u32;
            assert_eq!(by_port, by_ecam, "{device} {register:#x}");
        }
    }
    assert_eq!(ecam.read(1 << 15, 4) as u32, 0x1042_1af4);
    assert_eq!(
        ecam.read(1 << 15 | 1 << 12, 4) as u32,
        u32::MAX,
        "no function 1"
    );
}

#[test]
fn the_bus_fills_up() {
    let root = PciRoot::new();
    for _ in 1..SLOTS {
        let slot = root.free_slot(|_| false).unwrap();
        root.insert(slot, Arc::new(Plain(Mutex::new(space()))));
    }
    assert_eq!(root.free_slot(|_| false), Err(PciError::Full));
}

proptest! {
    #[test]
    fn no_access_panics(accesses in prop::collection::vec((any::<u64>(), 0u32..4, any::<u64>(), any::<bool>()), 1..64)) {
        let root = Arc::new(PciRoot::new());
        root.insert(Slot(1), Arc::new(Plain(Mutex::new(space()))));
        let (ecam, ports) = (Ecam(root.clone()), ConfigPorts(root));
        for (offset, size, value, small) in accesses {
            let size = 1 << size;
            let offset = if small { offset & 0xffff } else { offset };
            ecam.write(offset, size, value);
            ecam.read(offset, size);
            ports.write(offset & 7, size, value);
            ports.read(offset & 7, size);
        }
    }
}
