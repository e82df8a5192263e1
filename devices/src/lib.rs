//! Everything a guest can see behind a bus: legacy ports, PCI, virtio, and the workers that move
//! virtio queues.
//!
//! Data flows one way. A guest access comes in through a [`bus::Bus`], which hands back a value
//! (read) or an [`bus::Action`] (write) and never waits. The machine carries actions out. Queues
//! run on [`worker::Worker`]s and reach the guest again through [`irq`] only.

pub mod bus;
pub mod irq;
pub mod legacy;
pub mod limit;
pub mod memory;
pub mod pci;
pub mod stream;
pub mod virtio;
pub mod worker;
