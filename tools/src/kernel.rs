//! Kernels: unpacks a bzImage to the ELF inside, which needs no decompressor in the (emulated) guest.
use std::io::Read;

use anyhow::{Context, Result, bail};

/// Offsets in the setup header (the kernel's Documentation/arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Decompresses a bzImage's payload.
///
/// # Errors
/// When it is no bzImage, is truncated, or is compressed with something unknown.
pub fn vmlinux_of(image: &[u8]) -> Result<Vec<u8>> {
    let elf = decompress(payload(image)?)?;
    if !elf.starts_with(b"\x7fELF") {
        bail!("the kernel image's payload is not an ELF file");
    }
    Ok(elf)
}

fn payload(image: &[u8]) -> Result<&[u8]> {
    if image.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        bail!("not a bzImage: it has no setup header");
    }
    let sectors = match image.get(SETUP_SECTS) {
        Some(0) | None => 4,
        Some(count) => usize::from(*count),
    };
    let start = (sectors + 1) * 512 + word(image, PAYLOAD_OFFSET)?;
    image
        .get(start..start + word(image, PAYLOAD_LENGTH)?)
        .context("the kernel image is truncated")
}

fn word(bytes: &[u8], offset: usize) -> Result<usize> {
    let field = bytes
        .get(offset..offset + 4)
        .and_then(|field| field.try_into().ok());
    let value = u32::from_le_bytes(field.context("truncated data where a length should be")?);
    usize::try_from(value).context("a length does not fit this machine's words")
}

/// Decompresses by the magic number. The kernel's build appends the unpacked size (4 bytes), which every reader here leaves alone.
fn decompress(payload: &[u8]) -> Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    match payload {
        [0x1f, 0x8b, ..] => {
            flate2::read::GzDecoder::new(payload)
                .read_to_end(&mut unpacked)
                .context("the gzip payload is damaged")?;
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            lzma_rust2::XzReader::new(payload, false)
                .read_to_end(&mut unpacked)
                .context("the xz payload is damaged")?;
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut reader = ruzstd::decoding::StreamingDecoder::new(payload)
                .context("the zstd payload is damaged")?;
            reader
                .read_to_end(&mut unpacked)
                .context("the zstd payload is damaged")?;
        }
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => unpacked = legacy_lz4(blocks)?,
        _ => bail!("the payload's compression is none of gzip, xz, zstd and LZ4"),
    }
    Ok(unpacked)
}

/// LZ4's legacy frame: blocks of up to 8 MiB, each with its compressed length before it.
fn legacy_lz4(mut blocks: &[u8]) -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut unpacked = Vec::new();
    let mut buffer = vec![0; BLOCK];
    while blocks.len() > 4 {
        let length = word(blocks, 0)?;
        let block = blocks
            .get(4..4 + length)
            .context("the LZ4 payload is truncated")?;
        let size = lz4_flex::block::decompress_into(block, &mut buffer)
            .context("the LZ4 payload is damaged")?;
        unpacked.extend_from_slice(&buffer[..size]);
        blocks = &blocks[4 + length..];
    }
    Ok(unpacked)
}

/// Reads a kernel module, whatever the distribution compressed it with.
///
/// # Errors
/// When it cannot be read or unpacked.
pub fn read_module(path: &std::path::Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    decompress(&bytes).with_context(|| format!("cannot unpack {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        let length = u32::try_from(payload.len()).expect("a small payload");
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn elf() -> Vec<u8> {
        b"\x7fELF"
            .iter()
            .copied()
            .chain((0..100_000_u32).flat_map(u32::to_le_bytes))
            .collect()
    }

    #[test]
    fn a_gzip_payload_unpacks() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&elf()).expect("memory");
        let packed = [encoder.finish().expect("memory"), vec![1, 2, 3, 4]].concat();
        assert_eq!(vmlinux_of(&image(&packed)).expect("it unpacks"), elf());
    }

    #[test]
    fn an_lz4_payload_unpacks() {
        let block = lz4_flex::block::compress(&elf());
        let length = u32::try_from(block.len())
            .expect("a small block")
            .to_le_bytes();
        let packed = [
            &[0x02, 0x21, 0x4c, 0x18][..],
            &length,
            &block,
            &[1, 2, 3, 4],
        ]
        .concat();
        assert_eq!(vmlinux_of(&image(&packed)).expect("it unpacks"), elf());
    }

    #[test]
    fn a_truncated_image_is_refused() {
        let mut short = image(&[0x1f, 0x8b, 0, 0]);
        short.truncate(1026);
        assert!(
            vmlinux_of(&short)
                .expect_err("truncated")
                .to_string()
                .contains("truncated")
        );
    }

    #[test]
    fn something_else_is_refused() {
        assert!(
            vmlinux_of(&[0; 4096])
                .expect_err("no header")
                .to_string()
                .contains("not a bzImage")
        );
    }
}
