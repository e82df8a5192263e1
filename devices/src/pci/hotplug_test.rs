//! Tests of functions that come and go.

use super::super::{ConfigSpace, Identity, PciFunction};
use super::*;

struct Plain(ConfigSpace);

impl PciFunction for Plain {
    fn config_read(&self, offset: u16, size: u8) -> u32 {
        self.0.read(offset, size)
    }
    fn config_write(&self, _: u16, _: u8, _: u32) -> Action {
        Action::None
    }
}

fn filled(slots: &[u8]) -> (Arc<PciRoot>, Hotplug) {
    let pci = Arc::new(PciRoot::new());
    for slot in slots {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_8000,
            subsystem: 0x40,
        };
        pci.insert(Slot(*slot), Arc::new(Plain(ConfigSpace::new(identity))));
    }
    let hotplug = Hotplug::new(pci.clone());
    (pci, hotplug)
}

#[test]
fn what_came_and_what_is_asked_back_is_read_once() {
    let (_, hotplug) = filled(&[3, 31]);
    hotplug.came(Slot(3));
    hotplug.came(Slot(31));
    hotplug.ask_back(Slot(3));
    assert_eq!(hotplug.read(CAME, 4), 1 << 3 | 1 << 31);
    assert_eq!(hotplug.read(ASKED, 4), 1 << 3);
    assert_eq!((hotplug.read(CAME, 4), hotplug.read(ASKED, 4)), (0, 0));
    // It may be asked again.
    hotplug.ask_back(Slot(3));
    assert_eq!(hotplug.read(ASKED, 4), 1 << 3);
}

#[test]
fn only_what_was_asked_back_is_given_back() {
    let (pci, hotplug) = filled(&[1, 2]);
    hotplug.ask_back(Slot(2));
    assert_eq!(hotplug.write(EJECT, 4, 1 << 1), Action::None);
    assert_eq!(hotplug.write(EJECT, 4, 1), Action::None);
    assert!(hotplug.take_ejected().is_empty());
    assert!(!pci.is_free(Slot(0)) && !pci.is_free(Slot(1)) && !pci.is_free(Slot(2)));
    // Whatever else is written with it.
    assert_eq!(hotplug.write(EJECT, 4, u64::MAX), Action::Eject);
    assert!(pci.is_free(Slot(2)) && !pci.is_free(Slot(1)) && !pci.is_free(Slot(0)));
    assert_eq!(hotplug.asked_back(), [Slot(2)]);
    assert_eq!(hotplug.take_ejected(), [Slot(2)]);
    assert!(hotplug.take_ejected().is_empty() && hotplug.asked_back().is_empty());
    assert_eq!(hotplug.write(EJECT, 4, 1 << 2), Action::None);
}

#[test]
fn other_accesses_do_nothing() {
    let (_, hotplug) = filled(&[5]);
    hotplug.came(Slot(5));
    hotplug.ask_back(Slot(5));
    for size in [1, 2, 8] {
        for offset in 0..HOTPLUG_LEN {
            assert_eq!(hotplug.read(offset, size), 0);
            assert_eq!(hotplug.write(offset, size, u64::MAX), Action::None);
        }
    }
    for offset in [1, 2, 3, 5, 6, 7, 8] {
        assert_eq!(hotplug.read(offset, 4), 0);
    }
    for offset in 0..8 {
        assert_eq!(hotplug.write(offset, 4, u64::MAX), Action::None);
    }
    assert_eq!(hotplug.read(CAME, 4), 1 << 5);
    assert_eq!(hotplug.read(ASKED, 4), 1 << 5);
}

#[test]
fn what_is_kept_goes_on_elsewhere() {
    let (_, hotplug) = filled(&[4, 5]);
    hotplug.came(Slot(4));
    hotplug.ask_back(Slot(5));
    hotplug.write(EJECT, 4, 1 << 5);
    let state = hotplug.save();
    let (pci, other) = filled(&[4, 5]);
    other.restore(&state);
    assert_eq!(other.save(), state);
    assert!(pci.is_free(Slot(5)));
    assert_eq!(other.read(CAME, 4), 1 << 4);
    assert_eq!(other.take_ejected(), [Slot(5)]);
    // A broken state does not take the host bridge away.
    other.restore(&HotplugState {
        ejected: 1,
        asked: 1,
        ..HotplugState::default()
    });
    assert!(!pci.is_free(Slot(0)) && other.take_ejected().is_empty());
}
