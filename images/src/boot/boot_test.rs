//! What is found in disks made by mke2fs, with tables written here.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::*;

const MIB: u64 = 1 << 20;

/// A file system of 8 MiB with these files.
fn file_system(folder: &Path, files: &[(&str, &str)]) -> Vec<u8> {
    let (tree, image) = (folder.join("tree"), folder.join("fs"));
    let _ = fs::remove_dir_all(&tree);
    let _ = fs::remove_file(&image);
    fs::create_dir(&tree).unwrap();
    for (name, text) in files {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let made = Command::new("mke2fs")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&tree)
        .arg(&image)
        .arg("8M")
        .status();
    assert!(made.expect("mke2fs, of e2fsprogs").success());
    fs::read(image).unwrap()
}

fn disk(len: u64, parts: &[(u64, &[u8])]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at).unwrap();
    }
    file
}

/// A boot record with these partitions: type, first sector, sectors.
fn boot_record(entries: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    for (n, (kind, first, sectors)) in entries.iter().enumerate() {
        let entry = &mut sector[446 + 16 * n..][..16];
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// A GPT's header and entries, for sector 1; `count` is what the header says.
fn gpt_of(count: u32, entries: &[(u32, u64, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; 512 + 128 * 128];
    bytes[..8].copy_from_slice(b"EFI PART");
    bytes[72..80].copy_from_slice(&2u64.to_le_bytes());
    bytes[80..84].copy_from_slice(&count.to_le_bytes());
    bytes[84..88].copy_from_slice(&128u32.to_le_bytes());
    for (number, first, last) in entries {
        let entry = &mut bytes[512 + 128 * (*number as usize - 1)..][..128];
        entry[..16].fill(7);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
    }
    bytes
}

fn text(copy: impl FnOnce(&File) -> Result<(), BootError>) -> String {
    let mut file = tempfile::tempfile().unwrap();
    copy(&file).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

const ROOT: &[(&str, &str)] = &[
    ("etc/os-release", "ID=test\n"),
    ("boot/vmlinuz-6.1.0-9-amd64", "old"),
    ("boot/vmlinuz-6.1.0-56-amd64", "new"),
    ("boot/vmlinuz-0-rescue-x", "rescue"),
    ("boot/initrd.img-6.1.0-9-amd64", "old initrd"),
    ("boot/initrd.img-6.1.0-56-amd64", "new initrd"),
];

#[test]
fn the_newest_kernel_and_its_initramfs_are_found_on_a_disk_without_partitions() {
    let folder = tempfile::tempdir().unwrap();
    let root = file_system(folder.path(), ROOT);
    let found = find(disk(8 * MIB, &[(0, &root)])).unwrap();
    assert_eq!(found.partition, None);
    assert_eq!(found.kernel(), "/boot/vmlinuz-6.1.0-56-amd64");
    assert_eq!(text(|file| found.copy_kernel(file)), "new");
    assert_eq!(text(|file| found.copy_initramfs(file)), "new initrd");
}

#[test]
fn partitions_of_both_kinds_are_looked_at_and_a_boot_partition_too() {
    let folder = tempfile::tempdir().unwrap();
    let root = file_system(folder.path(), ROOT);
    let records = boot_record(&[(0xef, 34, 100), (0x83, 2048, 16384)]);
    let found = find(disk(12 * MIB, &[(0, &records), (MIB, &root)])).unwrap();
    assert_eq!(found.partition, Some(2));

    let bare = file_system(folder.path(), &[("usr/lib/os-release", "ID=test\n")]);
    let boot = [("vmlinuz-6", "kernel"), ("initramfs-6.img", "initramfs")];
    let boot = file_system(folder.path(), &boot);
    let table = gpt_of(128, &[(3, 2048, 18431), (14, 18432, 34815)]);
    let record = boot_record(&[(0xee, 1, u32::MAX)]);
    let parts = [
        (0, &record[..]),
        (512, &table),
        (MIB, &boot),
        (9 * MIB, &bare),
    ];
    let found = find(disk(20 * MIB, &parts)).unwrap();
    assert_eq!(found.partition, Some(14));
    assert_eq!(text(|file| found.copy_kernel(file)), "kernel");
    assert_eq!(text(|file| found.copy_initramfs(file)), "initramfs");
}

#[test]
fn what_has_no_linux_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let no_kernel = file_system(folder.path(), &[("etc/os-release", "ID=test\n")]);
    let no_root = file_system(folder.path(), &[("hello", "you")]);
    let refused = |disk: File| find(disk).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(refused(disk(8 * MIB, &[(0, &no_kernel)])).contains("no /boot/vmlinuz-VERSION"));
    for disk in [disk(8 * MIB, &[(0, &no_root)]), disk(0, &[]), disk(3, &[])] {
        assert!(refused(disk).contains("no partition with an ext4"));
    }
}

#[test]
fn tables_and_superblocks_that_lie_are_refused_without_room_being_made() {
    let folder = tempfile::tempdir().unwrap();
    let root = file_system(folder.path(), ROOT);
    let record = boot_record(&[(0xee, 1, u32::MAX)]);
    let all = [(1, 0, u64::MAX), (2, u64::MAX, 0), (3, 5, u64::MAX - 1)];
    let table = gpt_of(u32::MAX, &all);
    let lies = disk(8 * MIB, &[(0, &record), (512, &table)]);
    assert!(matches!(find(lies), Err(BootError::NoRoot)));
    // Blocks, and blocks of a group: 4 billion of the largest, or one for each.
    for (at, value) in [(1024 + 0x4, u32::MAX), (1024 + 0x150, u32::MAX)] {
        let lies = disk(8 * MIB, &[(0, &root), (at, &value.to_le_bytes())]);
        assert!(find(lies).is_err());
    }
}

#[test]
fn versions_are_compared_by_their_numbers() {
    let mut versions = [
        "6.1.0-9",
        "6.1.0-56",
        "5.10",
        "6.1",
        "6.1.0-056b",
        "6.01.0-56a",
        "10",
        "",
    ];
    versions.sort_by(|a, b| compare(a, b));
    assert_eq!(
        versions,
        [
            "",
            "5.10",
            "6.1",
            "6.1.0-9",
            "6.1.0-56",
            "6.01.0-56a",
            "6.1.0-056b",
            "10"
        ]
    );
}

#[test]
fn a_file_beyond_what_is_read_ends_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let root = file_system(folder.path(), ROOT);
    // A disk that was cut: the files' blocks are gone.
    let mut cut = disk(0, &[]);
    cut.write_all(&root[..2 * MIB as usize]).unwrap();
    assert!(find(cut).is_err());
}
