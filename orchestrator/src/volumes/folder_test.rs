//! Folders of volumes: snapshots and what is made of them stay when a volume goes, sizes are kept, and what is not understood is refused.

use skerry_images::io::Buffer;

use super::*;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

fn on_disk<T>(folder: &Folder, layers: &Layers, work: impl AsyncFnOnce(&Port, &Stack) -> T) -> T {
    let (port, specs) = (Port::new(), folder.specs(layers));
    block_on(&port, async {
        let options = FileOptions::default();
        let stack = Stack::open(&port, &specs, &options, DEFAULT_CACHE).await;
        let stack = stack.expect("it opens");
        let done = work(&port, &stack).await;
        stack.close(&port).await.expect("it closes");
        done
    })
}

fn write(folder: &Folder, layers: &Layers, byte: u8) {
    let buffer = Buffer::from_slice(&[byte; BLOCK]);
    on_disk(folder, layers, async |port, stack| {
        stack.write(port, 0, &buffer.span()).await.expect("written");
    });
}

fn first_byte(folder: &Folder, layers: &Layers) -> u8 {
    let buffer = Buffer::new(BLOCK);
    on_disk(folder, layers, async |port, stack| {
        stack.read(port, 0, &buffer.span()).await.expect("read");
    });
    buffer.bytes()[0]
}

/// Puts a layer on top and keeps what is below, as for a snapshot.
fn snapshot(volume: &Folder, kept: &Folder) {
    let mut layers = volume.settled().expect("its layers");
    layers.next = Some(layers.name());
    volume.write(&layers).expect("noted");
    volume.put_on_top(&layers).expect("made");
    kept.keep(volume, &layers).expect("kept");
    volume.note_top(&mut layers).expect("noted");
}

#[test]
fn a_snapshot_and_what_is_made_of_it_stay_when_the_volume_goes() {
    let root = tempfile::tempdir().expect("a folder");
    let folder = |name: &str| Folder::new(root.path().join(name));
    let (volume, kept, back) = (folder("volume"), folder("kept"), folder("back"));
    volume.make(Some(MIB), None, None).expect("made");
    write(&volume, &volume.read().expect("layers"), 1);
    snapshot(&volume, &kept);
    write(&volume, &volume.read().expect("layers"), 2);
    back.make(Some(2 * MIB), None, Some(&kept)).expect("made");
    volume.remove().expect("removed");
    kept.remove().expect("removed");
    let layers = back.settled().expect("layers");
    assert_eq!(first_byte(&back, &layers), 1);
    assert_eq!(back.size(&layers).expect("a size"), 2 * MIB);
    assert_eq!(layers.own.len(), 2);
}

#[test]
fn a_layer_that_was_noted_counts_if_it_is_there() {
    let root = tempfile::tempdir().expect("a folder");
    let volume = Folder::new(root.path().join("volume"));
    volume.make(Some(MIB), None, None).expect("made");
    write(&volume, &volume.read().expect("layers"), 1);
    let mut layers = volume.read().expect("layers");
    layers.next = Some(layers.name());
    volume.write(&layers).expect("noted");
    // Its maker died before it was there …
    assert_eq!(volume.settled().expect("layers").own, ["1.qcow2"]);
    volume.write(&layers).expect("noted");
    volume.put_on_top(&layers).expect("made");
    // … and after that.
    let settled = volume.settled().expect("layers");
    assert_eq!(settled.own, ["2.qcow2", "1.qcow2"]);
    assert_eq!(first_byte(&volume, &settled), 1);
}

#[test]
fn it_is_as_large_as_it_is_to_be_and_no_smaller_than_what_it_begins_as() {
    let root = tempfile::tempdir().expect("a folder");
    let base = root.path().join("base.img");
    fs::write(&base, vec![7; MIB as usize]).expect("written");
    let base = Base {
        path: base,
        format: DiskFormat::Raw,
    };
    let volume = Folder::new(root.path().join("volume"));
    let refused = volume.make(Some(4096), Some(base.clone()), None);
    let refused = refused.expect_err("too small").to_string();
    assert!(refused.contains("at least as many"), "{refused}");
    assert!(!volume.exists() && !root.path().join("volume.partial").exists());
    volume.make(None, Some(base), None).expect("made");
    let size = || {
        volume
            .size(&volume.read().expect("layers"))
            .expect("a size")
    };
    assert_eq!(size(), MIB);
    volume.grow(3 * MIB).expect("larger");
    assert_eq!(size(), 3 * MIB);
    assert_eq!(first_byte(&volume, &volume.read().expect("layers")), 7);
}

#[test]
fn what_is_not_understood_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let volume = Folder::new(root.path().to_owned());
    assert!(!volume.exists() && volume.read().is_err());
    for text in ["", "{", r#"{"own": [], "made": 1, "else": 2}"#] {
        fs::write(root.path().join(MANIFEST), text).expect("written");
        assert!(
            matches!(volume.read(), Err(VolumeError::Manifest { .. })),
            "{text}"
        );
    }
    fs::write(root.path().join(MANIFEST), vec![b' '; 1 << 20]).expect("written");
    assert!(matches!(volume.read(), Err(VolumeError::System { .. })));
}
