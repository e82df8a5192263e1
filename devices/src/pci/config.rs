//! A function's configuration space: bytes, and which bits of them the guest may write.

/// Bytes of configuration space that exist; the extended space reads as 0 (no capabilities).
const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
const COMMAND_INTX_DISABLE: u8 = 1 << 2; // in the command register's second byte
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// What a function says it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Subsystem device id; the subsystem's vendor is the vendor.
    pub subsystem: u16,
}

/// A 64-bit memory BAR, in registers 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Where the guest put it.
    pub address: u64,
    /// Its size in bytes, a power of two.
    pub size: u64,
}

/// A configuration space of type 0.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bar_size: u64,
    next_capability: usize,
    last_capability: usize,
}

impl ConfigSpace {
    /// A space with an identity and nothing else.
    pub fn new(identity: Identity) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bar_size: 0,
            next_capability: 0x40,
            last_capability: 0,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &[identity.revision]);
        space.put(0x09, &identity.class.to_le_bytes()[..3]);
        space.put(0x2c, &identity.vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        space.writable[COMMAND] = COMMAND_MEMORY | COMMAND_BUS_MASTER;
        space.writable[COMMAND + 1] = COMMAND_INTX_DISABLE;
        // Interrupt line: scratch for the guest.
        space.writable[0x3c] = 0xff;
        space
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Adds a 64-bit memory BAR of `size` bytes (a power of two) at `address`, decoded from the
    /// start: there is no firmware that would do it.
    pub fn set_bar(&mut self, address: u64, size: u64) {
        const MEMORY_64: u8 = 0b100;
        self.bar_size = size;
        self.put(BAR0, &address.to_le_bytes());
        self.bytes[BAR0] |= MEMORY_64;
        let mask = !(size - 1);
        self.writable[BAR0..BAR0 + 8].copy_from_slice(&mask.to_le_bytes());
        self.bytes[COMMAND] |= COMMAND_MEMORY | COMMAND_BUS_MASTER;
    }

    /// Leaves it to the guest when the BAR is decoded, and where.
    pub fn switch_off(&mut self) {
        self.bytes[COMMAND] &= !(COMMAND_MEMORY | COMMAND_BUS_MASTER);
    }

    /// All of it, to be kept.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes what the guest may write from `saved`. False, and nothing is taken, if the rest differs:
    /// then it is another function's.
    pub fn restore(&mut self, saved: &[u8]) -> bool {
        let fixed = |bytes: &[u8]| -> Vec<u8> {
            let parts = bytes.iter().zip(&self.writable);
            parts.map(|(byte, mask)| byte & !mask).collect()
        };
        if saved.len() != SIZE || fixed(saved) != fixed(&self.bytes) {
            return false;
        }
        self.bytes.copy_from_slice(saved);
        true
    }

    /// The BAR, if it is decoded.
    pub fn bar(&self) -> Option<Bar> {
        let decoded = self.bytes[COMMAND] & COMMAND_MEMORY != 0;
        self.bar_address().filter(|_| decoded)
    }

    /// The BAR, decoded or not.
    pub fn bar_address(&self) -> Option<Bar> {
        if self.bar_size == 0 {
            return None;
        }
        let mut raw = [0; 8];
        raw.copy_from_slice(&self.bytes[BAR0..BAR0 + 8]);
        let address = u64::from_le_bytes(raw) & !(self.bar_size - 1);
        Some(Bar {
            address,
            size: self.bar_size,
        })
    }

    /// Appends a capability: its id, its body, and which bits of the body may be written.
    /// Returns its offset.
    ///
    /// The capabilities of one function fit: they are known when the monitor is built.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let at = self.next_capability;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        let link = match self.last_capability {
            0 => CAPABILITIES,
            last => last + 1,
        };
        self.bytes[link] = at as u8;
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.last_capability = at;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at as u16
    }

    /// Reads `size` (1, 2, 4) bytes.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        let mut value = [0; 4];
        let start = usize::from(offset).min(SIZE);
        let n = usize::from(size).min(4).min(SIZE - start);
        value[..n].copy_from_slice(&self.bytes[start..start + n]);
        u32::from_le_bytes(value)
    }

    /// Writes the bits that may be written.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) {
        let start = usize::from(offset);
        for (i, byte) in value
            .to_le_bytes()
            .into_iter()
            .take(size.into())
            .enumerate()
        {
            if let (Some(old), Some(mask)) =
                (self.bytes.get_mut(start + i), self.writable.get(start + i))
            {
                *old = *old & !mask | byte & mask;
            }
        }
    }
}
