//! The store as its users see it.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::chain::live::Progress;
use crate::chain::{Format, LayerSpec, Stack};
use crate::io::sim::Dice;
use crate::io::{FileOptions, Port, block_on};

const MIB: usize = 1 << 20;
/// Nobody else is there.
const AT_ONCE: Duration = Duration::ZERO;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// Bytes that no packer makes smaller.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&dice.number().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A raw disk.
pub fn disk(path: &Path) -> Stack {
    let options = FileOptions {
        readonly: true,
        ..FileOptions::default()
    };
    let spec = LayerSpec::new(Format::Raw, path);
    block_on(
        &Port::new(),
        Stack::open(&Port::new(), &[spec], &options, 1 << 20),
    )
    .expect("a disk")
}

struct Place {
    folder: TempDir,
    store: Store,
}

impl Place {
    fn new() -> Place {
        let folder = TempDir::new().expect("a folder");
        let store = Store::open(&folder.path().join("store")).expect("a store");
        Place { folder, store }
    }

    fn import(&self, as_name: &str, bytes: &[u8]) -> Imported {
        let path = self.folder.path().join("source");
        fs::write(&path, bytes).expect("written");
        let (origin, progress) = (Origin::default(), Progress::default());
        let imported = self
            .store
            .import_disk(&name(as_name), &disk(&path), origin, &progress);
        imported.expect("imported")
    }

    fn oci(&self, as_name: &str, blobs: &[(&str, &[u8])]) -> Result<Imported, StoreError> {
        let blobs = blobs.iter().map(|(digest, bytes)| {
            let bytes: Box<dyn Read> = Box::new(*bytes);
            (digest.to_string(), bytes)
        });
        let (origin, progress) = (Origin::default(), Progress::default());
        self.store
            .import_oci(&name(as_name), "sha256:m", blobs, origin, &progress)
    }

    fn read(&self, of: &str) -> Vec<u8> {
        let image = self.store.image(&name(of)).expect("an image");
        let mut bytes = Vec::new();
        for content in image.manifest.kind.contents() {
            let mut reader = self.store.reader(content).expect("a reader");
            reader.read_to_end(&mut bytes).expect("it is whole");
        }
        bytes
    }

    fn packs(&self, end: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(self.folder.path().join("store/packs")).expect("packs");
        let files = files.map(|file| file.expect("a file").path());
        files
            .filter(|path| path.to_string_lossy().ends_with(end))
            .collect()
    }

    /// Changes a byte in the middle of the largest file of packs that ends with this.
    fn damage(&self, end: &str) {
        let files = self.packs(end).into_iter();
        let victim = files.max_by_key(|path| fs::metadata(path).map(|m| m.len()).ok());
        let victim = victim.expect("a pack");
        let mut bytes = fs::read(&victim).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&victim, &bytes).expect("written");
    }

    fn verified(&self) -> Verified {
        self.store
            .verify(&Progress::default())
            .expect("it can be read")
    }

    fn is_sound(&self) {
        let found = self.verified();
        assert!(found.damages.is_empty(), "{:?}", found.damages);
    }
}

#[test]
fn a_disk_comes_out_as_it_went_in_and_its_zeroes_take_nothing() {
    let place = Place::new();
    let mut bytes = noise(1, 3 * MIB);
    bytes.extend(vec![0; 4 * MIB]);
    bytes.extend(vec![7; MIB + 512]);
    let imported = place.import("one", &bytes);
    assert_eq!(imported.size, bytes.len() as u64);
    assert!(imported.added < 4 * MIB as u64 + 8192, "{imported:?}");
    assert_eq!(place.read("one:latest"), bytes);
    let base = place
        .store
        .base(imported.digest, &Progress::default())
        .expect("a base");
    assert_eq!(fs::read(&base).expect("read"), bytes);
    use std::os::unix::fs::MetadataExt;
    let taken = fs::metadata(&base).expect("it is there").blocks() * 512;
    assert!(taken < 5 * MIB as u64, "{taken}");
    place.is_sound();
}

#[test]
fn what_images_have_alike_is_kept_once() {
    let place = Place::new();
    let mut bytes = noise(2, 16 * MIB);
    let first = place.import("one", &bytes);
    // The same again, under another name, is the same image.
    let again = place.import("two", &bytes);
    assert_eq!((again.digest, again.added), (first.digest, 0));
    // A tenth is another one's.
    bytes[4 * MIB..4 * MIB + MIB * 16 / 10].copy_from_slice(&noise(3, MIB * 16 / 10));
    let other = place.import("three", &bytes);
    assert!(other.added * 100 < 15 * first.size, "{other:?}");
    assert_eq!(place.read("three"), bytes);
}

#[test]
fn blobs_that_are_shifted_share_their_chunks() {
    let place = Place::new();
    let bytes = noise(4, 8 * MIB);
    let shifted = [&b"something before it"[..], &bytes].concat();
    let first = place.oci("one", &[("sha256:a", &bytes)]).expect("imported");
    let second = place
        .oci("two", &[("sha256:b", &shifted)])
        .expect("imported");
    assert!(second.added * 4 < first.added, "{second:?}");
    assert_eq!(place.read("two"), shifted);
    place.is_sound();
}

#[test]
fn a_source_that_breaks_leaves_no_name() {
    struct Broken(usize);
    impl Read for Broken {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let n = into.len().min(self.0);
            self.0 -= n;
            into[..n].fill(9);
            match n {
                0 => Err(std::io::Error::other("torn off")),
                n => Ok(n),
            }
        }
    }
    let place = Place::new();
    let blob: Box<dyn Read> = Box::new(Broken(3 * MIB));
    let (origin, progress) = (Origin::default(), Progress::default());
    let blobs = [("sha256:a".to_owned(), blob)];
    let failed = place
        .store
        .import_oci(&name("one"), "sha256:m", blobs, origin, &progress);
    assert!(matches!(failed, Err(StoreError::Source(_))), "{failed:?}");
    assert!(place.store.names().expect("names").is_empty());
    let left = fs::read_dir(place.folder.path().join("store/tmp")).expect("tmp");
    assert_eq!(left.count(), 0);
}

#[test]
fn garbage_is_what_neither_a_name_nor_a_lease_leads_to() {
    let place = Place::new();
    let bytes = noise(5, 2 * MIB);
    let one = place.import("one", &bytes);
    place.import("two", &noise(6, 2 * MIB));
    place.store.hold("a-vm", "disk", one.digest).expect("held");
    let base = place
        .store
        .base(one.digest, &Progress::default())
        .expect("a base");
    place.store.remove(&name("one")).expect("removed");
    assert!(place.store.image(&name("one")).is_err());
    let done = place.store.collect(AT_ONCE).expect("collected");
    // Nobody has the other one in one piece; its pack has that.
    let other = Collected {
        bases: 1,
        ..Collected::default()
    };
    assert_eq!(done, other, "its user has it still");
    assert!(base.exists());
    place.store.release("a-vm").expect("released");
    let done = place.store.collect(AT_ONCE).expect("collected");
    // The stretches and their list.
    assert_eq!((done.images, done.chunks, done.bases), (1, 33, 1));
    assert!(!base.exists());
    assert_eq!(place.read("two"), noise(6, 2 * MIB));
    place.is_sound();
}

#[test]
fn what_was_prepared_stays_and_what_was_not_finished_is_garbage() {
    let place = Place::new();
    let one = place.import("one", &noise(9, MIB));
    place.store.remove(&name("one")).expect("removed");
    for prepared in ["whole", "half"] {
        let folder = place.store.prepared(prepared);
        fs::create_dir_all(folder.join("snapshot")).expect("a folder");
        let lease = Store::prepared_lease(prepared);
        place.store.hold(&lease, "disk", one.digest).expect("held");
    }
    fs::write(place.store.prepared("whole").join("ready"), "").expect("written");
    place.store.collect(AT_ONCE).expect("collected");
    assert!(place.store.prepared_snapshot("whole").is_some());
    assert!(!place.store.prepared("half").exists());
    assert_eq!(place.store.holders().expect("leases"), ["prepared.whole"]);
    assert!(place.store.remove_prepared("whole").expect("removed"));
    assert!(!place.store.remove_prepared("whole").expect("none"));
    let done = place.store.collect(AT_ONCE).expect("collected");
    assert_eq!(done.images, 1);
}

#[test]
fn who_uses_the_store_keeps_the_collection_away() {
    let place = Place::new();
    let held = place.store.share().expect("shared");
    let other = Store::open(place.store.root()).expect("another");
    assert!(matches!(
        other.collect(AT_ONCE),
        Err(StoreError::Busy { .. })
    ));
    drop(held);
    other.collect(AT_ONCE).expect("nobody uses it");
}

#[test]
fn what_is_damaged_is_found_refused_and_brought_anew() {
    let place = Place::new();
    let bytes = noise(7, 2 * MIB);
    let imported = place.import("one", &bytes);
    place.damage(".data");
    // It was in one piece from the beginning. Made again, it is compared.
    let base = || place.store.base(imported.digest, &Progress::default());
    place.store.collect(AT_ONCE).expect("collected");
    assert!(matches!(base(), Err(StoreError::Damaged { .. })));
    let found = place.verified();
    assert_eq!(found.damages.len(), 1, "{found:?}");
    assert_eq!(found.damages[0].image, "one:latest");
    assert_eq!(place.store.drop_damaged(&found).expect("dropped"), 1);
    let again = place.import("one", &bytes);
    assert_eq!(again.chunks, 1, "all else is there");
    place.is_sound();
    assert_eq!(place.read("one"), bytes);
    assert_eq!(fs::read(base().expect("a base")).expect("read"), bytes);
}

#[test]
fn a_disk_in_one_piece_that_is_damaged_goes_with_its_chunk() {
    let place = Place::new();
    let bytes = noise(17, 2 * MIB);
    let imported = place.import("one", &bytes);
    let base = || place.store.base(imported.digest, &Progress::default());
    base().expect("a base");
    place.damage(".data");
    let found = place.verified();
    assert_eq!(place.store.drop_damaged(&found).expect("dropped"), 1);
    assert!(matches!(base(), Err(StoreError::Damaged { .. })));
    place.import("one", &bytes);
    assert_eq!(fs::read(base().expect("a base")).expect("read"), bytes);
}

#[test]
fn a_damaged_index_stops_the_collection_until_it_is_dropped() {
    let place = Place::new();
    let bytes = noise(18, 2 * MIB);
    place.import("one", &bytes);
    place.damage(".index");
    assert!(matches!(
        place.store.collect(AT_ONCE),
        Err(StoreError::Pack { .. })
    ));
    let found = place.verified();
    assert!(found.damages.len() >= 2, "{found:?}");
    assert_eq!(place.store.drop_damaged(&found).expect("dropped"), 1);
    place.import("one", &bytes);
    place.is_sound();
    place.store.collect(AT_ONCE).expect("collected");
    assert_eq!(place.read("one"), bytes);
}

#[test]
fn what_is_not_wanted_of_a_pack_gives_its_space_back() {
    let place = Place::new();
    let mut bytes = noise(19, 16 * MIB);
    place.import("one", &bytes);
    bytes[..12 * MIB].copy_from_slice(&noise(20, 12 * MIB));
    let two = place.import("two", &bytes);
    // A quarter of it was there.
    assert!(two.added < 13 * MIB as u64, "{two:?}");
    let taken = || {
        use std::os::unix::fs::MetadataExt;
        let files = place.packs("").into_iter();
        files
            .map(|path| fs::metadata(path).expect("it is there").blocks() * 512)
            .sum::<u64>()
    };
    let before = taken();
    place.store.remove(&name("one")).expect("removed");
    let done = place.store.collect(AT_ONCE).expect("collected");
    assert!(done.bytes > 11 * MIB as u64, "{done:?}");
    assert!(taken() + 11 * MIB as u64 <= before);
    place.is_sound();
    assert_eq!(place.read("two"), bytes);
    // What is left of the pack is nobody's disk in one piece.
    let base = place.store.base(two.digest, &Progress::default());
    assert_eq!(fs::read(base.expect("a base")).expect("read"), bytes);
    let again = place.store.collect(AT_ONCE).expect("collected");
    assert_eq!(again.chunks, 0);
}

#[test]
fn a_disk_that_the_store_knows_hardly_anything_of_is_in_one_piece_at_once() {
    let place = Place::new();
    use std::os::unix::fs::MetadataExt;
    let linked = |of: &Imported| {
        let base = place.store.base(of.digest, &Progress::default());
        fs::metadata(base.expect("a base")).expect("it").nlink() > 1
    };
    let one = place.import("one", &noise(21, 4 * MIB));
    let two = place.import("two", &noise(22, 4 * MIB));
    assert!(linked(&one) && linked(&two));
    // A half of it is known, so only the other half is kept.
    let three = place.import("three", &[noise(21, 2 * MIB), noise(23, 2 * MIB)].concat());
    assert!(!linked(&three) && three.added < 3 * MIB as u64);
}

#[test]
fn a_store_of_another_version_is_left_alone() {
    let place = Place::new();
    fs::write(place.store.root().join("store.json"), r#"{"version":3}"#).expect("written");
    let opened = Store::open(place.store.root());
    assert!(matches!(opened, Err(StoreError::Version { found: 3, .. })));
    // One from before there were packs says what to do.
    fs::write(place.store.root().join("store.json"), r#"{"version":1}"#).expect("written");
    let refused = Store::open(place.store.root()).expect_err("it is refused");
    assert!(
        refused.to_string().contains("import them anew"),
        "{refused}"
    );
}

#[test]
fn hostile_records_are_refused_without_a_panic() {
    let place = Place::new();
    let imported = place.import("one", &noise(8, MIB));
    let manifest = place.store.root().join(manifest_path(imported.digest));
    for text in [
        "",
        "{}",
        "[1]",
        "\u{0}",
        r#"{"version":2,"kind":"disk","disk":{"size":-1,"lists":[]}}"#,
    ] {
        fs::write(&manifest, text).expect("written");
        assert!(place.store.image(&name("one")).is_err(), "{text:?}");
        assert_eq!(place.verified().damages.len(), 1);
        // Nothing may go that may still be meant.
        assert!(place.store.collect(AT_ONCE).is_err());
    }
    for bytes in [&b""[..], &[0; 35], &[0xff; 36], &[0; 36 * 8193]] {
        assert!(list::decode(Hash::of(bytes), bytes).is_err());
    }
}
