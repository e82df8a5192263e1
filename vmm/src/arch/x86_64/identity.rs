//! Who a machine is, where its guest can see it: VMGenID and vmclock. Both change when a machine is made
//! of a snapshot, so that no two draw the same random numbers or believe the same clock.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{ArchError, layout};

/// "VCLK" (vmclock-abi.h).
const MAGIC: u32 = 0x4b4c_4356;
const SIZE: u32 = 0x1000;
const VERSION: u16 = 1;
/// No counter is described: only disruptions are.
const COUNTER_INVALID: u8 = 0xff;
const DISRUPTION_MARKER: u64 = layout::VMCLOCK + 16;
const SEQUENCE: u64 = layout::VMCLOCK + 12;

/// Writes both for a new machine.
pub fn write(memory: &GuestMemoryMmap) -> Result<(), ArchError> {
    write_generation(memory)?;
    let mut page = [0; 12];
    page[..4].copy_from_slice(&MAGIC.to_le_bytes());
    page[4..8].copy_from_slice(&SIZE.to_le_bytes());
    page[8..10].copy_from_slice(&VERSION.to_le_bytes());
    page[10] = COUNTER_INVALID;
    memory.write_slice(&page, GuestAddress(layout::VMCLOCK))?;
    Ok(())
}

/// Makes the machine another one. Its guest does not run; it is to be told afterwards.
pub fn renew(memory: &GuestMemoryMmap) -> Result<(), ArchError> {
    write_generation(memory)?;
    let marker: u64 = memory.read_obj(GuestAddress(DISRUPTION_MARKER))?;
    memory.write_obj(marker.wrapping_add(1), GuestAddress(DISRUPTION_MARKER))?;
    // Readers begin anew when it changed; an even number says that nobody writes.
    let sequence: u32 = memory.read_obj(GuestAddress(SEQUENCE))?;
    memory.write_obj(sequence.wrapping_add(2), GuestAddress(SEQUENCE))?;
    Ok(())
}

fn write_generation(memory: &GuestMemoryMmap) -> Result<(), ArchError> {
    let mut generation = [0; 16];
    // It fails only where the kernel's generator is not ready yet, which is over long before.
    let _ = rustix::rand::getrandom(&mut generation, rustix::rand::GetRandomFlags::empty());
    memory.write_slice(&generation, GuestAddress(layout::IDENTITY))?;
    Ok(())
}
