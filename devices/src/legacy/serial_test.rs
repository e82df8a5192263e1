//! What a port says when it is asked to repeat itself.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

#[derive(Default)]
struct Pulses(AtomicU32);

impl IrqLine for Pulses {
    fn pulse(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_was_typed_and_not_heard_of_is_announced_again() {
    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const INTERRUPT_IDENTIFICATION: u64 = 2;
    let line = Arc::new(Pulses::default());
    let pulses = || line.0.load(Ordering::Relaxed);
    let port = Serial::new(line.clone(), Box::new(io::sink()), None);
    port.announce();
    assert_eq!(pulses(), 0);
    port.write(INTERRUPT_ENABLE, 1, 1);
    port.input(b"a");
    assert_eq!(pulses(), 1);
    // Another byte is no news for a port that has an interrupt waiting.
    port.input(b"b");
    assert_eq!(pulses(), 1);
    port.announce();
    assert_eq!(pulses(), 2);
    port.read(INTERRUPT_IDENTIFICATION, 1);
    port.read(DATA, 1);
    port.read(DATA, 1);
    port.announce();
    assert_eq!(pulses(), 2);
}
