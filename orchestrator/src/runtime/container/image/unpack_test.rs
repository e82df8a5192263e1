//! Tests of unpacking: what layers make, and what hostile ones do not.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use proptest::prelude::*;
use rustix::fs::{FileType, getxattr};

use super::*;

/// An archive that is made entry by entry, as wrong as it is wanted.
#[derive(Default)]
struct Archived(Vec<u8>);

impl Archived {
    fn entry(self, kind: u8, name: &str, link: &str, data: &[u8]) -> Archived {
        self.owned(kind, name, link, data, 0o644, (0, 0))
    }

    fn owned(
        mut self,
        kind: u8,
        name: &str,
        link: &str,
        data: &[u8],
        mode: u32,
        owner: (u64, u64),
    ) -> Archived {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(EntryType::new(kind));
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_000_000);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &str) -> Archived {
        self.entry(b'0', name, "", data.as_bytes())
    }

    fn directory(self, name: &str) -> Archived {
        self.owned(b'5', name, "", b"", 0o755, (0, 0))
    }

    fn bytes(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length += 1;
        }
        all.extend(format!("{length} {key}=").as_bytes());
        all.extend(*value);
        all.push(b'\n');
    }
    all
}

struct Unpacking {
    home: tempfile::TempDir,
    result: Result<(), ImageError>,
}

impl Unpacking {
    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("layer").join(name)
    }

    fn error(self) -> String {
        self.result.unwrap_err().to_string()
    }
}

fn unpack_as(archive: &[u8], packed: &[u8], packing: Packing, limits: Limits) -> Unpacking {
    let home = tempfile::tempdir().unwrap();
    let blob = home.path().join("blob");
    fs::write(&blob, packed).unwrap();
    let into = home.path().join("layer");
    fs::create_dir(&into).unwrap();
    let layer = Layer {
        blob: hex(&Sha256::digest(packed)),
        size: packed.len() as u64,
        packing,
        diff_id: hex(&Sha256::digest(archive)),
    };
    let result = unpack(&layer, File::open(&blob).unwrap(), &into, &[], limits);
    Unpacking { home, result }
}

fn unpacked(archive: Archived) -> Unpacking {
    let archive = archive.bytes();
    unpack_as(&archive, &archive, Packing::Plain, Limits::default())
}

#[test]
fn files_links_owners_and_modes_are_kept() {
    let records = pax(&[("SCHILY.xattr.user.color", b"green"), ("mtime", b"12345.5")]);
    let archive = Archived::default()
        .owned(b'5', "./srv/", "", b"", 0o1777, (7, 8))
        .entry(b'x', "records", "", &records)
        .owned(b'0', "srv/file", "", b"text", 0o4755, (33, 34))
        .entry(b'1', "srv/again", "srv/file", b"")
        .entry(b'2', "srv/link", "/etc/passwd", b"")
        .entry(b'6', "srv/fifo", "", b"");
    let done = unpacked(archive);
    done.result.as_ref().unwrap();
    let file = fs::metadata(done.path("srv/file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (33, 34));
    assert_eq!(file.permissions().mode() & 0o7777, 0o4755);
    assert_eq!(file.mtime(), 12345);
    assert_eq!(fs::read(done.path("srv/again")).unwrap(), b"text");
    assert_eq!(
        fs::metadata(done.path("srv/again")).unwrap().ino(),
        file.ino()
    );
    assert_eq!(
        fs::read_link(done.path("srv/link")).unwrap(),
        Path::new("/etc/passwd")
    );
    let folder = fs::metadata(done.path("srv")).unwrap();
    assert_eq!(
        (folder.uid(), folder.mode() & 0o7777, folder.mtime()),
        (7, 0o1777, 1_000_000)
    );
    let mut value = [0; 16];
    let length = getxattr(done.path("srv/file"), "user.color", &mut value).unwrap();
    assert_eq!(&value[..length], b"green");
}

#[test]
fn long_names_are_of_both_kinds() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let other = "p".repeat(200);
    let archive = Archived::default()
        .entry(b'L', "././@LongLink", "", format!("{long}\0").as_bytes())
        .file("short", "one")
        .entry(b'x', "records", "", &pax(&[("path", other.as_bytes())]))
        .file("short", "two");
    let done = unpacked(archive);
    done.result.as_ref().unwrap();
    assert_eq!(fs::read(done.path(&long)).unwrap(), b"one");
    assert_eq!(fs::read(done.path(&other)).unwrap(), b"two");
}

#[test]
fn every_packing_gives_the_same() {
    let archive = Archived::default().file("file", "text").bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&archive[..], 1).unwrap();
    for (packing, packed) in [
        (Packing::Plain, &archive),
        (Packing::Gzip, &gzip),
        (Packing::Zstd, &zstd),
    ] {
        let done = unpack_as(&archive, packed, packing, Limits::default());
        done.result.as_ref().unwrap();
        assert_eq!(fs::read(done.path("file")).unwrap(), b"text", "{packing:?}");
    }
}

#[test]
fn whiteouts_become_marks_of_an_overlay() {
    let archive = Archived::default()
        .directory("etc")
        .file("etc/.wh.gone", "")
        .directory("var")
        .file("var/.wh..wh..opq", "")
        .file("var/kept", "x")
        .file(".wh.replaced", "")
        .directory("replaced")
        .file(".wh..wh.plnk", "");
    let done = unpacked(archive);
    done.result.as_ref().unwrap();
    let gone = fs::metadata(done.path("etc/gone")).unwrap();
    assert_eq!(
        FileType::from_raw_mode(gone.mode()),
        FileType::CharacterDevice
    );
    assert_eq!(gone.rdev(), 0);
    assert!(done.path("var/kept").exists());
    for folder in ["var", "replaced"] {
        let mut value = [0; 4];
        let length = getxattr(done.path(folder), "trusted.overlay.opaque", &mut value).unwrap();
        assert_eq!(&value[..length], b"y", "{folder}");
    }
    assert!(!done.path(".wh..wh.plnk").exists());
}

#[test]
fn a_path_with_dots_is_refused_and_an_absolute_one_stays_inside() {
    for name in ["../out", "a/../../out", "..", "a/.."] {
        let done = unpacked(Archived::default().file(name, "x"));
        assert!(!done.home.path().join("out").exists());
        assert!(done.error().contains("leads out of the layer"), "{name}");
    }
    let done = unpacked(Archived::default().file("/skerry-test-inside", "x"));
    done.result.as_ref().unwrap();
    assert!(done.path("skerry-test-inside").exists());
    assert!(!Path::new("/skerry-test-inside").exists());
}

#[test]
fn nothing_is_written_through_links_that_lead_out() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    for target in [target.to_string(), format!("../../../../../..{target}")] {
        let archive = Archived::default()
            .entry(b'2', "way", &target, b"")
            .file("way/file", "x")
            .entry(b'2', "there", &format!("{target}/there"), b"")
            .file("there", "x")
            .entry(b'2', "folder", &target, b"")
            .owned(b'5', "folder", "", b"", 0o777, (1, 1))
            .file("folder/inside", "x");
        let done = unpacked(archive);
        // What the link leads to inside of the layer is not there, or is made there.
        let _ = &done.result;
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert_eq!(
            fs::metadata(outside.path()).unwrap().uid(),
            rustix::process::getuid().as_raw()
        );
    }
}

#[test]
fn hard_links_to_what_is_outside_are_refused() {
    for target in ["/etc/hostname", "../blob", "none"] {
        let done = unpacked(Archived::default().entry(b'1', "link", target, b""));
        assert!(!done.path("link").exists());
        let error = done.error();
        assert!(error.contains("link"), "{target}: {error}");
    }
    let through =
        Archived::default()
            .entry(b'2', "etc", "/etc", b"")
            .entry(b'1', "link", "etc/passwd", b"");
    assert!(
        unpacked(through)
            .error()
            .contains("which the layer has not")
    );
}

#[test]
fn devices_are_left_out_of_dev_and_refused_elsewhere() {
    let done = unpacked(
        Archived::default()
            .directory("dev")
            .entry(b'3', "dev/null", "", b""),
    );
    done.result.as_ref().unwrap();
    assert!(!done.path("dev/null").exists());
    for kind in [b'3', b'4'] {
        let done = unpacked(Archived::default().entry(kind, "disk", "", b""));
        assert!(done.error().contains("is a device"));
    }
}

#[test]
fn marks_of_overlays_in_an_archive_are_not_taken_over() {
    let records = pax(&[
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.overlay.whiteout", b"y"),
    ]);
    let done = unpacked(
        Archived::default()
            .entry(b'x', "r", "", &records)
            .directory("folder"),
    );
    done.result.as_ref().unwrap();
    let mut names = [0u8; 1024];
    let length = rustix::fs::listxattr(done.path("folder"), &mut names).unwrap();
    let names = String::from_utf8_lossy(&names[..length]).into_owned();
    assert!(!names.contains("overlay"), "{names}");
}

#[test]
fn bombs_are_bounded() {
    let limits = Limits {
        bytes: 1 << 20,
        entries: 10,
    };
    let large = Archived::default()
        .entry(b'0', "zeros", "", &vec![0; 4 << 20])
        .bytes();
    let packed = zstd::encode_all(&large[..], 1).unwrap();
    let done = unpack_as(&large, &packed, Packing::Zstd, limits);
    assert!(done.error().contains("more than 1048576 bytes"));
    let mut many = Archived::default();
    for number in 0..11 {
        many = many.file(&format!("file-{number}"), "");
    }
    let many = many.bytes();
    let done = unpack_as(&many, &many, Packing::Plain, limits);
    assert!(done.error().contains("more than 10 entries"));
    let records = Archived::default()
        .entry(b'x', "r", "", &vec![b'x'; 2 << 20])
        .file("f", "");
    assert!(unpacked(records).error().contains("records of one entry"));
    let deep = "d/".repeat(400);
    let archive = Archived::default().entry(b'x', "r", "", &pax(&[("path", deep.as_bytes())]));
    assert!(
        unpacked(archive.directory("d"))
            .error()
            .contains("is no path")
    );
}

#[test]
fn what_follows_an_archive_is_bounded_too() {
    let mut archive = Archived::default().file("file", "x").bytes();
    archive.extend(vec![0; 4 << 20]);
    let limits = Limits {
        bytes: 1 << 20,
        entries: 10,
    };
    assert!(
        unpack_as(&archive, &archive, Packing::Plain, limits)
            .error()
            .contains("more than")
    );
}

#[test]
fn blobs_that_are_not_what_their_digests_say_are_refused() {
    let archive = Archived::default().file("file", "x").bytes();
    let home = tempfile::tempdir().unwrap();
    let blob = home.path().join("blob");
    fs::write(&blob, &archive).unwrap();
    let right = hex(&Sha256::digest(&archive));
    let wrong = "0".repeat(64);
    for (number, (blob_digest, diff_id)) in
        [(&wrong, &right), (&right, &wrong)].into_iter().enumerate()
    {
        let into = home.path().join(number.to_string());
        fs::create_dir(&into).unwrap();
        let layer = Layer {
            blob: blob_digest.clone(),
            size: archive.len() as u64,
            packing: Packing::Plain,
            diff_id: diff_id.clone(),
        };
        let file = File::open(&blob).unwrap();
        let error = unpack(&layer, file, &into, &[], Limits::default()).unwrap_err();
        assert!(matches!(error, ImageError::Digest { .. }), "{error}");
    }
}

#[test]
fn a_directory_that_is_only_implied_is_as_in_the_layer_below() {
    let below = unpacked(Archived::default().owned(b'5', "tmp", "", b"", 0o1777, (5, 6)));
    let home = tempfile::tempdir().unwrap();
    let archive = Archived::default().file("tmp/new/file", "x").bytes();
    let blob = home.path().join("blob");
    fs::write(&blob, &archive).unwrap();
    let into = home.path().join("layer");
    fs::create_dir(&into).unwrap();
    let digest = hex(&Sha256::digest(&archive));
    let layer = Layer {
        blob: digest.clone(),
        size: archive.len() as u64,
        packing: Packing::Plain,
        diff_id: digest,
    };
    let below = [below.path("")];
    unpack(
        &layer,
        File::open(&blob).unwrap(),
        &into,
        &below,
        Limits::default(),
    )
    .unwrap();
    let tmp = fs::metadata(into.join("tmp")).unwrap();
    assert_eq!((tmp.uid(), tmp.gid(), tmp.mode() & 0o7777), (5, 6, 0o1777));
    assert_eq!(
        fs::metadata(into.join("tmp/new")).unwrap().mode() & 0o7777,
        0o755
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Bytes changed anywhere in an archive: it is unpacked inside, or refused.
    #[test]
    fn broken_archives_do_not_panic(
        changes in proptest::collection::vec((0usize..6000, any::<u8>()), 1..20),
        packing in 0usize..3,
    ) {
        let mut archive = Archived::default()
            .directory("a")
            .file("a/file", "some text")
            .entry(b'x', "r", "", &pax(&[("path", b"a/other"), ("mtime", b"5")]))
            .file("b", "more")
            .entry(b'2', "link", "a/file", b"")
            .entry(b'1', "hard", "a/file", b"")
            .bytes();
        let length = archive.len();
        for (place, byte) in changes {
            archive[place % length] = byte;
        }
        // What a hostile archive has right is its checksums.
        for block in archive.chunks_exact_mut(512) {
            if &block[257..262] == b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let archive = match packing {
            1 => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(&archive).unwrap();
                (archive, gzip.finish().unwrap())
            }
            2 => {
                let packed = zstd::encode_all(&archive[..], 1).unwrap();
                (archive, packed)
            }
            _ => (archive.clone(), archive),
        };
        let packing = [Packing::Plain, Packing::Gzip, Packing::Zstd][packing];
        let limits = Limits { bytes: 1 << 20, entries: 100 };
        let _ = unpack_as(&archive.0, &archive.1, packing, limits).result;
    }
}
