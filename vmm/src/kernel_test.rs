//! Tests of kernel images made here: every way of packing, and headers that lie.

use std::io::Write;

use vm_memory::Bytes;

use super::*;

const RAM: u64 = 16 << 20;
const ADDRESS: u64 = 0x20_0000;
const CODE: &[u8] = b"the kernel's code";

/// An x86-64 ELF with one segment.
fn elf(address: u64, in_memory: u64) -> Vec<u8> {
    let mut image = vec![0; 120];
    image[..5].copy_from_slice(b"\x7fELF\x02");
    image[5..7].copy_from_slice(&[1, 1]);
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &address.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    put(72, &120u64.to_le_bytes());
    for at in [80, 88] {
        put(at, &address.to_le_bytes());
    }
    put(96, &(CODE.len() as u64).to_le_bytes());
    put(104, &in_memory.to_le_bytes());
    image.extend_from_slice(CODE);
    image
}

/// A bzImage around a packed payload.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x236, &1u16.to_le_bytes());
    put(0x248, &0u32.to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(payload);
    image.resize(image.len().max(0x2000), 0);
    image
}

fn load(image: &[u8]) -> Result<(Kernel, GuestMemoryMmap), KernelError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(image).unwrap();
    file.rewind().unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    Kernel::load(&memory, Path::new("k"), &file).map(|kernel| (kernel, memory))
}

fn loaded(image: &[u8]) {
    let (kernel, memory) =
        load(image).unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(&e)));
    assert_eq!(kernel.entry, Entry::Linux64(ADDRESS));
    let mut code = vec![0; CODE.len()];
    memory.read_slice(&mut code, GuestAddress(ADDRESS)).unwrap();
    assert_eq!(code, CODE);
    assert!(kernel.end >= ADDRESS + 0x1000, "bss counts");
}

#[test]
fn an_elf_is_loaded_with_its_bss() {
    loaded(&elf(ADDRESS, 0x1000));
}

#[test]
fn payloads_are_unpacked_however_the_kernels_build_packs_them() {
    let image = elf(ADDRESS, 0x1000);
    let size = (image.len() as u32).to_le_bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&image).unwrap();
    // gzip ends with the size by itself; the build adds it to the others.
    loaded(&bzimage(&gzip.finish().unwrap()));
    let block = lz4_flex::block::compress(&image);
    let mut lz4 = vec![0x02, 0x21, 0x4c, 0x18];
    lz4.extend((block.len() as u32).to_le_bytes());
    lz4.extend(block);
    lz4.extend(size);
    loaded(&bzimage(&lz4));
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    let mut zstd = ruzstd::encoding::compress_to_vec(image.as_slice(), level);
    zstd.extend(size);
    loaded(&bzimage(&zstd));
}

#[test]
fn a_cut_payload_is_refused() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&elf(ADDRESS, 0x1000)).unwrap();
    let packed = gzip.finish().unwrap();
    let error = load(&bzimage(&packed[..packed.len() / 2])).err().unwrap();
    assert!(matches!(error, KernelError::Unpack { .. }), "{error}");
}

#[test]
fn segments_outside_of_kernel_memory_are_refused() {
    for (address, in_memory) in [
        (0x1000, 0x1000),
        (ADDRESS, RAM),
        (RAM - 4, 0x1000),
        (ADDRESS, u64::MAX),
        (u64::MAX - 8, 0x1000),
    ] {
        let error = load(&elf(address, in_memory)).err().unwrap();
        assert!(matches!(error, KernelError::Layout { .. }), "{error}");
        assert!(error.to_string().contains("guest memory"), "{error}");
    }
}

#[test]
fn too_many_headers_are_refused() {
    let mut image = elf(ADDRESS, 0x1000);
    image[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
    assert!(matches!(
        load(&image).err().unwrap(),
        KernelError::Layout { .. }
    ));
}

#[test]
fn every_cut_of_an_elf_is_refused_or_harmless() {
    let image = elf(ADDRESS, 0x1000);
    for len in 0..image.len() {
        assert!(load(&image[..len]).is_err(), "{len} bytes");
    }
}
