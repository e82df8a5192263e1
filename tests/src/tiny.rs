//! The smallest guest: it says the alphabet on the serial port, a line each time, and keeps its place in memory. So
//! whoever goes on from a snapshot of it says the next letter.

use std::path::Path;

/// What it says.
pub const ALPHABET: &str = "abcdefghijklmnopqrstuvwxyz";

/// Where its code is, and behind it its place in the alphabet.
const BASE: u32 = 0x10_0000;
const COUNTER: u32 = BASE + 0x1000;

/// 32-bit code, as PVH enters it.
fn code() -> Vec<u8> {
    let counter = COUNTER.to_le_bytes();
    let mut code = Vec::new();
    // mov edx, 0x3f8
    code.extend([0xba, 0xf8, 0x03, 0x00, 0x00]);
    let start = code.len();
    // mov eax, [counter]; add al, 'a'; out dx, al
    code.push(0xa1);
    code.extend(counter);
    code.extend([0x04, b'a', 0xee]);
    // mov eax, [counter]; inc eax; cmp eax, 26; jb +5; mov al, '\n'; out dx, al; xor eax, eax; mov [counter], eax
    code.push(0xa1);
    code.extend(counter);
    code.extend([
        0x40, 0x83, 0xf8, 26, 0x72, 0x05, 0xb0, b'\n', 0xee, 0x31, 0xc0, 0xa3,
    ]);
    code.extend(counter);
    // mov ecx, 2000; loop: dec ecx; jnz loop
    code.extend([0xb9, 0xd0, 0x07, 0x00, 0x00, 0x49, 0x75, 0xfd]);
    // jmp start
    let back = start as i64 - (code.len() as i64 + 2);
    code.extend([0xeb, back as u8]);
    code
}

/// Writes it as an ELF file with a PVH entry.
pub fn write(path: &Path) {
    const HEADER: usize = 64;
    const PROGRAM: usize = 56;
    const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
    let code = code();
    let mut note = Vec::new();
    for word in [4u32, 4, XEN_ELFNOTE_PHYS32_ENTRY] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(BASE.to_le_bytes());
    let note_at = HEADER + 2 * PROGRAM;
    let code_at = note_at + note.len();

    let mut elf = Vec::new();
    // ELF, 64 bits, little-endian, version 1; an executable for x86-64.
    elf.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend(2u16.to_le_bytes());
    elf.extend(62u16.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    for word in [u64::from(BASE), HEADER as u64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM as u16, 2, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut program = |kind: u32, flags: u32, at: usize, address: u64, len: usize| {
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        for word in [at as u64, address, address, len as u64, len as u64, 4] {
            elf.extend(word.to_le_bytes());
        }
    };
    program(1, 7, code_at, u64::from(BASE), code.len());
    program(4, 4, note_at, 0, note.len());
    elf.extend(note);
    elf.extend(code);
    std::fs::write(path, elf).expect("the guest's file");
}
