//! Tests of MSI-X masking.

use std::io;
use std::sync::atomic::AtomicUsize;

use super::*;

#[derive(Default)]
struct Wire {
    fired: AtomicUsize,
    route: Mutex<Option<(u64, u32)>>,
}

impl MsiVector for Wire {
    fn fire(&self) {
        self.fired.fetch_add(1, Ordering::SeqCst);
    }
    fn route(&self, address: u64, data: u32) -> io::Result<()> {
        *self.route.lock() = Some((address, data));
        Ok(())
    }
}

struct OneWire(Arc<Wire>);

impl MsiSource for OneWire {
    fn vector(&self) -> io::Result<Arc<dyn MsiVector>> {
        Ok(self.0.clone())
    }
}

const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

fn msix() -> (Msix, Arc<Wire>) {
    let wire = Arc::new(Wire::default());
    let msix = Msix::new(3, Arc::new(OneWire(wire.clone())));
    msix.set_control(ENABLE);
    msix.table_write(0, 4, 0xfee0_1000);
    msix.table_write(8, 8, 0x31);
    (msix, wire)
}

fn fired(wire: &Wire) -> usize {
    wire.fired.load(Ordering::SeqCst)
}

#[test]
fn an_unmasked_vector_fires_where_the_table_says() {
    let (msix, wire) = msix();
    msix.vector(0).unwrap().fire();
    assert_eq!(fired(&wire), 1);
    assert_eq!(*wire.route.lock(), Some((0xfee0_1000, 0x31)));
    assert_eq!(msix.table_read(0, 8), 0xfee0_1000);
    assert_eq!(msix.table_read(8, 4), 0x31);
}

#[test]
fn a_masked_vector_is_pending_and_fires_once_when_unmasked() {
    for mask_function in [false, true] {
        let (msix, wire) = msix();
        if mask_function {
            msix.set_control(ENABLE | MASK_ALL)
        } else {
            msix.table_write(12, 4, 1)
        }
        let vector = msix.vector(0).unwrap();
        vector.fire();
        vector.fire();
        assert_eq!((fired(&wire), msix.pending_read(0, 8)), (0, 1));
        if mask_function {
            msix.set_control(ENABLE)
        } else {
            msix.table_write(12, 4, 0)
        }
        assert_eq!((fired(&wire), msix.pending_read(0, 8)), (1, 0));
    }
}

#[test]
fn odd_accesses_and_offsets_are_harmless() {
    let (msix, _) = msix();
    for offset in [1, 2, 7, 0x30, 0x1000, u64::MAX] {
        for size in [1, 2, 4, 8] {
            msix.table_write(offset, size, u64::MAX);
            msix.table_read(offset, size);
            msix.pending_read(offset, size);
        }
    }
    assert!(msix.vector(3).is_none());
}

#[test]
fn nothing_is_lost_or_doubled_when_firing_races_with_masking() {
    let (msix, wire) = msix();
    let vector = msix.vector(0).unwrap();
    let rounds = 2000;
    std::thread::scope(|s| {
        s.spawn(|| {
            for i in 0..20_000u64 {
                msix.table_write(12, 4, i & 1);
            }
        });
        for _ in 0..rounds {
            vector.fire();
        }
    });
    msix.table_write(12, 4, 0);
    let n = fired(&wire);
    // Interrupts may coalesce while masked, but never multiply, and the last is never lost.
    assert!((1..=rounds).contains(&n), "{n}");
    assert_eq!(msix.pending_read(0, 1), 0);
}
