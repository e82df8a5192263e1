//! What the monitor hands over: `hvm_start_info` (Xen's PVH ABI), the memory map and the command line.

use crate::failure;
use crate::line::Outcome;

const MAGIC: u32 = 0x336e_c578;
const COMMAND_LINE_BYTES: usize = 4096;
const RANGES: usize = 64;

/// One entry of the memory map.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Range {
    pub address: u64,
    pub size: u64,
    /// 1 is RAM; the others are E820's.
    pub kind: u32,
    reserved: u32,
}

impl Range {
    /// Ordinary RAM.
    pub const RAM: u32 = 1;
}

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modules_address: u64,
    command_line_address: u64,
    rsdp_address: u64,
    memory_map_address: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// The monitor's data, copied: its place may be any RAM, and RAM is about to be used.
pub struct Start {
    /// Physical address of ACPI's root pointer; 0 when the monitor gives none.
    pub rsdp: u64,
    ranges: [Range; RANGES],
    count: usize,
    command_line: [u8; COMMAND_LINE_BYTES],
    command_line_length: usize,
}

impl Start {
    /// Copies what lies at the physical address that EBX held on entry.
    pub fn read(address: u64) -> Outcome<Self> {
        // SAFETY: the PVH ABI promises the structure at this address; the low 4 GiB are mapped one to one, and a
        // wrong address gives a wrong magic or an exception report, no worse.
        let info = unsafe { (address as *const StartInfo).read_unaligned() };
        if info.magic != MAGIC {
            return Err(failure!("start-info-magic found={:#x}", info.magic));
        }
        let mut start = Self {
            rsdp: info.rsdp_address,
            ranges: [Range::default(); RANGES],
            count: 0,
            command_line: [0; COMMAND_LINE_BYTES],
            command_line_length: 0,
        };
        if info.version >= 1 {
            start.count = (info.memory_map_entries as usize).min(RANGES);
            for index in 0..start.count {
                // SAFETY: version 1 promises this many entries there; the address is below 4 GiB in practice and
                // an exception report otherwise.
                start.ranges[index] = unsafe {
                    (info.memory_map_address as *const Range)
                        .add(index)
                        .read_unaligned()
                };
            }
        }
        if info.command_line_address != 0 {
            for index in 0..COMMAND_LINE_BYTES {
                // SAFETY: a NUL-terminated string by the ABI; reading stops at the NUL or at the buffer's end.
                let byte = unsafe { (info.command_line_address as *const u8).add(index).read() };
                if byte == 0 {
                    break;
                }
                start.command_line[index] = if byte.is_ascii() { byte } else { b'?' };
                start.command_line_length = index + 1;
            }
        }
        Ok(start)
    }

    /// The memory map.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges[..self.count]
    }

    /// The command line.
    pub fn command_line(&self) -> &str {
        core::str::from_utf8(&self.command_line[..self.command_line_length]).unwrap_or("")
    }

    /// The value of the last word `key=value` with this key.
    pub fn word(&self, key: &str) -> Option<&str> {
        self.command_line()
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .next_back()
    }
}
