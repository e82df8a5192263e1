//! The PCI bus's slots in the DSDT: how the guest hears that a function has come or is asked back, and how it
//! gives it back (ACPI 6.5 §5.6.6, §6.3.3). Linux looks for `_ADR` and `_EJ0`.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local,
    Method, Name, Notify, OpRegion, OpRegionSpace, Path, Scope, Store, ZERO,
};
use skerry_devices::pci::{HOTPLUG_LEN, SLOTS};

use super::layout;

/// The method that reads what has changed and tells the slots.
pub const LOOK: &str = "\\_SB_.PCI0.LOOK";

/// "Look whether a device is there" (ACPI 6.5 §5.6.6, table 5.166).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// Adds the slots to the root bus. The host bridge's is not among them.
pub fn describe(aml: &mut Vec<u8>) {
    let mut inside = Vec::new();
    OpRegion::new(
        Path::new("HPRG"),
        OpRegionSpace::SystemIO,
        &(layout::PCI_HOTPLUG as u16),
        &(HOTPLUG_LEN as u8),
    )
    .to_aml_bytes(&mut inside);
    Field::new(
        Path::new("HPRG"),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"CAME", 32),
            FieldEntry::Named(*b"GOES", 32),
            FieldEntry::Named(*b"EJCT", 32),
        ],
    )
    .to_aml_bytes(&mut inside);
    let slots = 1..SLOTS as u32;
    slots.clone().for_each(|slot| device(slot, &mut inside));
    let told: Vec<Told> = slots.map(Told).collect();
    let (came, goes) = (Path::new("CAME"), Path::new("GOES"));
    let (read_came, read_goes) = (Store::new(&Local(0), &came), Store::new(&Local(1), &goes));
    let mut body: Vec<&dyn Aml> = vec![&read_came, &read_goes];
    body.extend(told.iter().map(|told| told as &dyn Aml));
    // One at a time: a read clears what it says.
    Method::new(Path::new("LOOK"), 0, true, body).to_aml_bytes(&mut inside);
    aml.extend(Scope::raw(Path::new("\\_SB_.PCI0"), inside));
}

fn name(slot: u32) -> Path {
    Path::new(&format!("S{slot:02X}_"))
}

fn device(slot: u32, aml: &mut Vec<u8>) {
    let (register, bit) = (Path::new("EJCT"), 1u32 << slot);
    let eject = Store::new(&register, &bit);
    Device::new(
        name(slot),
        vec![
            &Name::new(Path::new("_ADR"), &(slot << 16)),
            &Name::new(Path::new("_SUN"), &slot),
            &Method::new(Path::new("_EJ0"), 1, true, vec![&eject]),
        ],
    )
    .to_aml_bytes(aml);
}

/// Tells a slot what the two registers, read into locals, say of it.
struct Told(u32);

impl Aml for Told {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let (slot, bit) = (name(self.0), 1u32 << self.0);
        for (local, what) in [(Local(0), DEVICE_CHECK), (Local(1), EJECT_REQUEST)] {
            let notify = Notify::new(&slot, &what);
            let is_set = And::new(&ZERO, &local, &bit);
            If::new(&is_set, vec![&notify]).to_aml_bytes(sink);
        }
    }
}
