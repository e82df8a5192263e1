//! Kernels: ELF images with a PVH entry or Linux's 64-bit one, and bzImages.
//!
//! A bzImage's payload is unpacked here, where decompression is fast and the result can start at
//! its PVH entry; one that is packed in a way unknown here starts at the bzImage's own 64-bit
//! entry and unpacks itself.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::arch::layout;

/// Unpacked kernels are refused beyond this: larger than any, smaller than a bomb.
const MAX_UNPACKED: u64 = 512 << 20;

/// Why a kernel could not be loaded.
#[derive(Debug, Error)]
pub enum KernelError {
    /// It could not be opened or read.
    #[error("cannot read kernel {path}")]
    Read {
        /// The kernel.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no kernel.
    #[error("{path} is no kernel for this machine: {why}. Give an x86-64 ELF vmlinux or a bzImage")]
    Kind {
        /// The kernel.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// It is one, but broken or too large.
    #[error("kernel {path} cannot be loaded: is it whole, and does the guest have memory for it?")]
    Load {
        /// The kernel.
        path: PathBuf,
        /// What the loader said.
        source: linux_loader::loader::Error,
    },
    /// Its segments are not where a kernel's may be.
    #[error("kernel {path} cannot be loaded: {why}")]
    Layout {
        /// The kernel.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Its payload cannot be unpacked.
    #[error("kernel {path} cannot be unpacked: is it whole?")]
    Unpack {
        /// The kernel.
        path: PathBuf,
        /// What the decompressor said.
        source: std::io::Error,
    },
}

/// Where a loaded kernel starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Its PVH entry.
    Pvh(u64),
    /// Linux's 64-bit entry.
    Linux64(u64),
}

/// A kernel in guest memory.
pub struct Kernel {
    /// Where it starts.
    pub entry: Entry,
    /// Where it ends; what Linux clears behind its image is included if known.
    pub end: u64,
    /// What a bzImage says of itself.
    pub setup_header: Option<setup_header>,
}

impl Kernel {
    /// Loads the kernel in `file` into `memory`. `path` names it in errors.
    pub fn load(
        memory: &GuestMemoryMmap,
        path: &Path,
        mut file: &File,
    ) -> Result<Kernel, KernelError> {
        let low_ram = memory
            .iter()
            .next()
            .map_or(0, |r| r.start_addr().0 + r.len());
        let layout = |why| KernelError::Layout {
            path: path.to_owned(),
            why,
        };
        let read = |source| KernelError::Read {
            path: path.to_owned(),
            source,
        };
        let load = |source| KernelError::Load {
            path: path.to_owned(),
            source,
        };
        let mut head = Vec::with_capacity(0x1000);
        file.take(0x1000).read_to_end(&mut head).map_err(read)?;
        match Kind::of(&head) {
            Kind::Elf => {
                let end = check_segments(&mut file, low_ram).map_err(layout)?;
                load_elf(memory, &mut file, end).map_err(load)
            }
            Kind::BzImage(header) => match unpack(file, &header).map_err(read)? {
                Some(Ok(payload)) if Kind::of(&payload) == Kind::Elf => {
                    let mut image = Cursor::new(payload.as_slice());
                    let end = check_segments(&mut image, low_ram).map_err(layout)?;
                    let mut kernel = load_elf(memory, &mut image, end).map_err(load)?;
                    kernel.setup_header = Some(header.0);
                    kernel.end = kernel.end.max(header.end());
                    Ok(kernel)
                }
                Some(Ok(_)) => Err(KernelError::Kind {
                    path: path.to_owned(),
                    why: "its payload is not an x86-64 ELF".into(),
                }),
                Some(Err(source)) => Err(KernelError::Unpack {
                    path: path.to_owned(),
                    source,
                }),
                None => load_bzimage(memory, file, &header).map_err(load),
            },
            Kind::Other(why) => Err(KernelError::Kind {
                path: path.to_owned(),
                why,
            }),
        }
    }
}

/// The fields of a bzImage's setup header that matter here (Documentation/arch/x86/boot.rst).
#[derive(Clone, Copy)]
struct BzHeader(setup_header);

impl PartialEq for BzHeader {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl BzHeader {
    fn payload(&self) -> (u64, u64) {
        let setup = u64::from(if self.0.setup_sects == 0 {
            4
        } else {
            self.0.setup_sects
        }) + 1;
        (
            setup * 512 + u64::from(self.0.payload_offset),
            u64::from(self.0.payload_length),
        )
    }

    /// The end of the memory that the kernel uses before it knows the memory map.
    fn end(&self) -> u64 {
        self.0
            .pref_address
            .saturating_add(u64::from(self.0.init_size))
            .min(layout::LOW_RAM_END)
    }
}

#[derive(PartialEq)]
enum Kind {
    Elf,
    BzImage(BzHeader),
    Other(String),
}

impl Kind {
    fn of(head: &[u8]) -> Kind {
        const X86_64: u16 = 62;
        let machine = head.get(18..20).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match (head.get(..5), machine) {
            (Some(b"\x7fELF\x02"), Some(X86_64)) => Kind::Elf,
            (Some([0x7f, b'E', b'L', b'F', ..]), Some(other)) => {
                let name = match other {
                    3 => "a 32-bit x86",
                    40 => "a 32-bit ARM",
                    183 => "an ARM64",
                    243 => "a RISC-V",
                    _ => "a foreign",
                };
                Kind::Other(format!("it is {name} ELF (machine {other})"))
            }
            _ if head.get(0x202..0x206) == Some(b"HdrS") => Kind::bzimage(head),
            _ if head.get(0x38..0x3c) == Some(b"ARM\x64") => {
                Kind::Other("it is an ARM64 Image".into())
            }
            _ if head.is_empty() => Kind::Other("it is empty".into()),
            _ => Kind::Other("it is neither an ELF nor a bzImage".into()),
        }
    }

    fn bzimage(head: &[u8]) -> Kind {
        // Protocol 2.12 announced 64-bit entries in xloadflags.
        const XLF_KERNEL_64: u16 = 1;
        let mut header = setup_header::default();
        let size = size_of::<setup_header>();
        let Some(bytes) = head.get(0x1f1..0x1f1 + size) else {
            return Kind::Other("its header is cut off".into());
        };
        // SAFETY: setup_header is a packed structure of integers, for which any bytes are a
        // value; both sides are `size` bytes long.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut header).cast::<u8>(), size)
        };
        if header.version < 0x20c || header.xloadflags & XLF_KERNEL_64 == 0 {
            return Kind::Other("it is a bzImage without a 64-bit entry".into());
        }
        Kind::BzImage(BzHeader(header))
    }
}

/// Looks at an ELF's program headers before anything is loaded by them: everything goes between
/// where kernels begin and the end of low RAM, and no more than a kernel has. Where it ends.
fn check_segments(image: &mut (impl Read + Seek), low_ram: u64) -> Result<u64, String> {
    const MAX_HEADERS: u16 = 64;
    const HEADER: usize = 56;
    const LOAD: u32 = 1;
    const NOTE: u32 = 4;
    const MAX_NOTE: u64 = 64 << 10;
    let cut = |e: std::io::Error| format!("it is cut off ({e}): is it whole?");
    let mut elf = [0; 64];
    image.rewind().map_err(cut)?;
    image.read_exact(&mut elf).map_err(cut)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    let (table, size, count) = (
        number(&elf[32..40]),
        number(&elf[54..56]),
        number(&elf[56..58]),
    );
    if size != HEADER as u64 || count == 0 || count > MAX_HEADERS.into() {
        return Err(format!("it has {count} program headers of {size} bytes"));
    }
    image.seek(SeekFrom::Start(table)).map_err(cut)?;
    let (mut end, mut total) = (0, 0u64);
    for _ in 0..count {
        let mut header = [0; HEADER];
        image.read_exact(&mut header).map_err(cut)?;
        let kind = number(&header[0..4]) as u32;
        let (address, in_file, in_memory) = (
            number(&header[24..32]),
            number(&header[32..40]),
            number(&header[40..48]),
        );
        if kind == NOTE && in_file > MAX_NOTE {
            return Err(format!("it has a note of {in_file} bytes"));
        }
        let len = in_file.max(in_memory);
        if kind != LOAD || len == 0 {
            continue;
        }
        total = total.saturating_add(in_file);
        let last = address.checked_add(len).filter(|last| *last <= low_ram);
        let Some(last) = last.filter(|_| address >= layout::KERNEL && total <= MAX_UNPACKED) else {
            return Err(format!(
                "a segment of {len:#x} bytes at {address:#x} is not between {:#x} and {low_ram:#x}, where \
                 guest memory for kernels is. Give the guest more memory",
                layout::KERNEL
            ));
        };
        end = end.max(last);
    }
    image.rewind().map_err(cut)?;
    Ok(end)
}

fn load_elf<F>(
    memory: &GuestMemoryMmap,
    image: &mut F,
    end: u64,
) -> Result<Kernel, linux_loader::loader::Error>
where
    F: Read + Seek + vm_memory::ReadVolatile,
{
    let result: KernelLoaderResult =
        Elf::load(memory, None, image, Some(GuestAddress(layout::KERNEL)))?;
    let entry = match result.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Entry::Pvh(entry.0),
        _ => Entry::Linux64(result.kernel_load.0),
    };
    Ok(Kernel {
        entry,
        end: result.kernel_end.max(end),
        setup_header: None,
    })
}

fn load_bzimage(
    memory: &GuestMemoryMmap,
    mut file: &File,
    header: &BzHeader,
) -> Result<Kernel, linux_loader::loader::Error> {
    // Protocol 2.06 on: the 64-bit entry is 0x200 behind the 32-bit one.
    const ENTRY_64: u64 = 0x200;
    let result = BzImage::load(memory, None, &mut file, Some(GuestAddress(layout::KERNEL)))?;
    Ok(Kernel {
        entry: Entry::Linux64(result.kernel_load.0 + ENTRY_64),
        end: result.kernel_end.max(header.end()),
        setup_header: result.setup_header.or(Some(header.0)),
    })
}

/// Unpacks a bzImage's payload. None if its format is one for which there is no unpacker here.
fn unpack(mut file: &File, header: &BzHeader) -> std::io::Result<Option<std::io::Result<Vec<u8>>>> {
    let (offset, length) = header.payload();
    if length > MAX_UNPACKED {
        return Ok(Some(Err(too_large())));
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut packed = Vec::new();
    file.take(length).read_to_end(&mut packed)?;
    if (packed.len() as u64) < length {
        let short = format!("it ends {} bytes early", length - packed.len() as u64);
        return Ok(Some(Err(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            short,
        ))));
    }
    // The last four bytes are the unpacked size: gzip's own, which its decoder wants to see, or the
    // kernel build's, which the others must not see.
    let body = &packed[..packed.len().saturating_sub(4)];
    // The kernel's documentation defines the format by these first bytes.
    Ok(match packed.get(..4) {
        Some([0x1f, 0x8b, ..]) => Some(read_all(flate2::read::GzDecoder::new(packed.as_slice()))),
        Some([0x02, 0x21, 0x4c, 0x18]) => Some(unpack_lz4(&body[4..])),
        Some([0x28, 0xb5, 0x2f, 0xfd]) => Some(
            ruzstd::decoding::StreamingDecoder::new(body)
                .map_err(std::io::Error::other)
                .and_then(read_all),
        ),
        _ => None,
    })
}

fn too_large() -> std::io::Error {
    std::io::Error::new(
        std::io::ErrorKind::InvalidData,
        "it is larger than any kernel",
    )
}

fn read_all(decoder: impl Read) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decoder.take(MAX_UNPACKED + 1).read_to_end(&mut out)?;
    if out.len() as u64 > MAX_UNPACKED {
        return Err(too_large());
    }
    Ok(out)
}

/// The legacy LZ4 frame that the kernel's build uses: blocks of at most 8 MiB, each with its
/// packed size in front.
fn unpack_lz4(mut packed: &[u8]) -> std::io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let bad = |why: String| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
    let mut out = Vec::new();
    // One buffer for all blocks: a hostile stream has very many of them.
    let mut unpacked = vec![0; BLOCK];
    while let Some((size, rest)) = packed.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let Some((block, rest)) = rest.split_at_checked(size) else {
            return Err(bad(format!("an LZ4 block of {size} bytes is cut off")));
        };
        let n = lz4_flex::block::decompress_into(block, &mut unpacked)
            .map_err(|e| bad(e.to_string()))?;
        out.extend_from_slice(&unpacked[..n]);
        if out.len() as u64 > MAX_UNPACKED {
            return Err(too_large());
        }
        packed = rest;
    }
    Ok(out)
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod tests;
