//! Tests of the IOAPIC.

use super::*;

#[derive(Default)]
struct Log {
    sent: Mutex<Vec<(u64, u32)>>,
    pins: Mutex<Vec<(u64, u32)>>,
}

impl MsiSend for Log {
    fn send(&self, address: u64, data: u32) {
        self.sent.lock().push((address, data));
    }
    fn set_pins(&self, pins: &[(u64, u32)]) {
        *self.pins.lock() = pins.to_vec();
    }
}

fn chip() -> (Arc<IoApic>, Arc<Log>) {
    let log = Arc::new(Log::default());
    (Arc::new(IoApic::new(log.clone())), log)
}

fn program(chip: &IoApic, pin: u64, entry: u64) {
    chip.write(SELECT, 4, 0x11 + 2 * pin);
    chip.write(WINDOW, 4, entry >> 32);
    chip.write(SELECT, 4, 0x10 + 2 * pin);
    chip.write(WINDOW, 4, entry & 0xffff_ffff);
}

#[test]
fn an_edge_pin_sends_its_message_each_time() {
    let (chip, log) = chip();
    program(&chip, 4, 3 << 56 | 0x31);
    let pin = IoApicPin::new(chip, 4);
    pin.pulse();
    pin.pulse();
    assert_eq!(*log.sent.lock(), vec![(0xfee0_3000, 0x31); 2]);
    assert!(log.pins.lock().is_empty());
}

#[test]
fn a_masked_pin_is_silent() {
    let (chip, log) = chip();
    IoApicPin::new(chip.clone(), 9).pulse();
    program(&chip, 9, MASKED | 0x31);
    IoApicPin::new(chip, 9).pulse();
    assert!(log.sent.lock().is_empty());
}

#[test]
fn a_level_pin_waits_for_the_end_of_its_interrupt() {
    let (chip, log) = chip();
    program(&chip, 9, LEVEL | 0x40);
    assert_eq!(log.pins.lock().len(), 1);
    let pin = IoApicPin::new(chip.clone(), 9);
    pin.pulse();
    pin.pulse();
    assert_eq!(log.sent.lock().len(), 1);
    chip.end_of_interrupt(0x41);
    pin.pulse();
    assert_eq!(log.sent.lock().len(), 1);
    // What came meanwhile is sent once, now.
    chip.end_of_interrupt(0x40);
    assert_eq!(log.sent.lock().len(), 2);
    chip.end_of_interrupt(0x40);
    assert_eq!(log.sent.lock().len(), 2);
    pin.pulse();
    assert_eq!(log.sent.lock().len(), 3);
}

#[test]
fn registers_read_back() {
    let (chip, _) = chip();
    chip.write(SELECT, 4, 1);
    assert_eq!(chip.read(WINDOW, 4), 0x0017_0020);
    program(&chip, 23, 0x0100_0000_0001_0055);
    chip.write(SELECT, 4, 0x10 + 46);
    assert_eq!(chip.read(WINDOW, 4), 0x0001_0055);
    for select in 0..=255 {
        chip.write(SELECT, 4, select);
        chip.write(WINDOW, 4, 0xffff_ffff);
        chip.read(WINDOW, 4);
    }
}
