//! Interrupts through KVM: irqfds routed as messages, and messages sent directly.

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1, kvm_msi,
};
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use skerry_devices::irq::{MsiSend, MsiSource, MsiVector};
use skerry_devices::legacy::PINS;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The VM's interrupt routes.
pub struct Interrupts {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

#[derive(Default)]
struct Routes {
    /// Messages of level-triggered IOAPIC pins: KVM watches for their end.
    pins: Vec<(u64, u32)>,
    /// Messages of vectors, by their GSI from [`PINS`] on.
    vectors: Vec<Option<(u64, u32)>>,
    /// Vectors whose functions are gone.
    free: Vec<usize>,
}

impl Interrupts {
    /// The routes of `vm`.
    pub fn new(vm: Arc<VmFd>) -> Arc<Interrupts> {
        Arc::new(Interrupts {
            vm,
            routes: Mutex::default(),
        })
    }

    fn install(&self, routes: &Routes) -> io::Result<()> {
        let pins = routes
            .pins
            .iter()
            .enumerate()
            .map(|(gsi, m)| entry(gsi, *m));
        let vectors = routes.vectors.iter().enumerate();
        let vectors = vectors.filter_map(|(i, m)| m.map(|m| entry(PINS + i, m)));
        let entries: Vec<_> = pins.chain(vectors).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|e| io::Error::other(format!("{e:?}")))?;
        self.vm.set_gsi_routing(&table).map_err(io::Error::from)
    }
}

fn entry(gsi: usize, (address, data): (u64, u32)) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: gsi as u32,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: address as u32,
                address_hi: (address >> 32) as u32,
                data,
                __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
            },
        },
        ..Default::default()
    }
}

/// What functions get their vectors from.
pub struct Vectors(pub Arc<Interrupts>);

impl MsiSource for Vectors {
    fn vector(&self) -> io::Result<Arc<dyn MsiVector>> {
        let index = {
            let mut routes = self.0.routes.lock();
            routes.free.pop().unwrap_or_else(|| {
                routes.vectors.push(None);
                routes.vectors.len() - 1
            })
        };
        // From here on its number is given back whatever happens.
        let vector = Vector {
            interrupts: self.0.clone(),
            event: EventFd::new(EFD_NONBLOCK)?,
            index,
        };
        let gsi = (PINS + index) as u32;
        self.0.vm.register_irqfd(&vector.event, gsi)?;
        Ok(Arc::new(vector))
    }
}

struct Vector {
    interrupts: Arc<Interrupts>,
    event: EventFd,
    index: usize,
}

impl MsiVector for Vector {
    fn fire(&self) {
        // Fails only when KVM has not taken 2^64 - 2 interrupts yet.
        let _ = self.event.write(1);
    }

    fn route(&self, address: u64, data: u32) -> io::Result<()> {
        let mut routes = self.interrupts.routes.lock();
        match routes.vectors.get_mut(self.index) {
            Some(route) if *route == Some((address, data)) => return Ok(()),
            Some(route) => *route = Some((address, data)),
            None => {}
        }
        self.interrupts.install(&routes)
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        // KVM lets go of the eventfd when it is closed, and the route is replaced with the next one. Whichever
        // thread this is, it makes no call for that.
        let mut routes = self.interrupts.routes.lock();
        if let Some(route) = routes.vectors.get_mut(self.index) {
            *route = None;
            routes.free.push(self.index);
        }
    }
}

impl MsiSend for Interrupts {
    fn send(&self, address: u64, data: u32) {
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        if let Err(e) = self.vm.signal_msi(msi) {
            log::debug!("message {data:#x} to {address:#x}: {e}");
        }
    }

    fn set_pins(&self, pins: &[(u64, u32)]) {
        let mut routes = self.routes.lock();
        routes.pins = pins.to_vec();
        if let Err(e) = self.install(&routes) {
            log::error!("cannot route the IOAPIC's pins: {e}");
        }
    }
}
