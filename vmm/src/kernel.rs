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
use vm_memory::{GuestAddress, GuestMemoryMmap};

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
            Kind::Elf => load_elf(memory, &mut file).map_err(load),
            Kind::BzImage(header) => match unpack(file, &header).map_err(read)? {
                Some(Ok(payload)) if Kind::of(&payload) == Kind::Elf => {
                    let mut kernel =
                        load_elf(memory, &mut Cursor::new(payload.as_slice())).map_err(load)?;
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

fn load_elf<F>(
    memory: &GuestMemoryMmap,
    image: &mut F,
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
        end: result.kernel_end,
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
    // The last four bytes are the unpacked size.
    let body = packed.len().saturating_sub(4);
    let size = packed
        .get(body..)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    packed.truncate(body);
    // The kernel's documentation defines the format by these first bytes.
    Ok(match packed.get(..4) {
        Some([0x1f, 0x8b, ..]) => Some(read_all(
            flate2::read::GzDecoder::new(packed.as_slice()),
            size,
        )),
        Some([0x02, 0x21, 0x4c, 0x18]) => Some(unpack_lz4(&packed[4..])),
        Some([0x28, 0xb5, 0x2f, 0xfd]) => Some(
            ruzstd::decoding::StreamingDecoder::new(packed.as_slice())
                .map_err(std::io::Error::other)
                .and_then(|decoder| read_all(decoder, size)),
        ),
        _ => None,
    })
}

fn read_all(decoder: impl Read, expected: u32) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity((expected as usize).min(MAX_UNPACKED as usize));
    decoder.take(MAX_UNPACKED).read_to_end(&mut out)?;
    Ok(out)
}

/// The legacy LZ4 frame that the kernel's build uses: blocks of at most 8 MiB, each with its
/// packed size in front.
fn unpack_lz4(mut packed: &[u8]) -> std::io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let bad = |why: String| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
    let mut out = Vec::new();
    while let Some((size, rest)) = packed.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let Some((block, rest)) = rest.split_at_checked(size) else {
            return Err(bad(format!("an LZ4 block of {size} bytes is cut off")));
        };
        let unpacked = lz4_flex::block::decompress(block, BLOCK).map_err(|e| bad(e.to_string()))?;
        out.extend_from_slice(&unpacked);
        if out.len() as u64 > MAX_UNPACKED {
            return Err(bad("it is larger than any kernel".into()));
        }
        packed = rest;
    }
    Ok(out)
}
