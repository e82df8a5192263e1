//! What must not be lost: files that exist, images that others have open.

mod desk;

use desk::Desk;

#[test]
fn a_failed_command_leaves_the_file_that_it_was_to_replace() {
    let desk = Desk::new();
    desk.skerry("create keep.qcow2 16M");
    desk.io("qcow2", "keep.qcow2", &["write -P 7 0 64k"]);
    desk.qemu("convert -O raw keep.qcow2 before.raw");
    for failing in [
        "create --force -f raw -o preallocation=metadata keep.qcow2 16M",
        "create --force -o data_file=/no/such/place keep.qcow2 16M",
        "create --force --backing raw:nothing.raw keep.qcow2 16M",
        "convert --force -f raw -c -O raw before.raw keep.qcow2",
        "create --force --backing keep.qcow2 keep.qcow2 16M",
    ] {
        let answer = desk.try_skerry(failing);
        assert_ne!(answer.code, 0, "{failing}");
        assert!(!answer.err.is_empty());
        desk.qemu("compare -f qcow2 -F raw keep.qcow2 before.raw");
    }
    let left = std::fs::read_dir(desk.path()).expect("a folder").count();
    assert_eq!(left, 2, "something was left behind");
    desk.skerry("create --force keep.qcow2 32M");
    assert!(desk.qemu("info keep.qcow2").out.contains("32 MiB"));
}

#[test]
fn nothing_is_written_without_a_lock() {
    let desk = Desk::new();
    desk.skerry("create a.qcow2 16M");
    let file = skerry_images::io::ImageFile::open(
        &desk.path().join("a.qcow2"),
        &skerry_images::io::FileOptions::default(),
    )
    .expect("a lock");
    desk.skerry("info -U a.qcow2");
    for writing in [
        "resize -U a.qcow2 +1M",
        "snapshot -U -c x a.qcow2",
        "check -U -r all a.qcow2",
    ] {
        let answer = desk.try_skerry(writing);
        assert_ne!(answer.code, 0, "{writing}");
        assert!(
            answer.err.contains("in use by another process"),
            "{}",
            answer.err
        );
    }
    drop(file);
}

#[test]
fn a_copy_onto_an_overlay_wants_what_lies_below_it() {
    let desk = Desk::new();
    std::fs::write(desk.path().join("base.raw"), vec![7; 4 << 20]).expect("a base");
    desk.skerry("create source.qcow2 4M");
    desk.io("qcow2", "source.qcow2", &["write -P 1 0 64k"]);
    desk.qemu("create -f qcow2 -o cluster_size=4k -b base.raw -F raw over.qcow2");
    let answer = desk.try_skerry("convert -n -O qcow2 source.qcow2 over.qcow2");
    assert_ne!(answer.code, 0);
    assert!(
        answer.err.contains("base.raw") && answer.err.contains("-B"),
        "{}",
        answer.err
    );
    desk.skerry("convert -n -O qcow2 -B raw:base.raw source.qcow2 over.qcow2");
    desk.qemu("compare -f qcow2 -F qcow2 source.qcow2 over.qcow2");
}

#[test]
fn an_image_whose_tables_count_as_free_is_not_written() {
    let desk = Desk::new();
    desk.qemu("create -f qcow2 broken.qcow2 16M");
    desk.skerry("create source.qcow2 16M");
    desk.io("qcow2", "source.qcow2", &["write -P 1 0 64k"]);
    let path = desk.path().join("broken.qcow2");
    let mut bytes = std::fs::read(&path).expect("an image");
    bytes[2 << 16..3 << 16].fill(0);
    std::fs::write(&path, &bytes).expect("an image");
    let answer = desk.try_skerry("convert -n -O qcow2 source.qcow2 broken.qcow2");
    assert_ne!(answer.code, 0);
    assert!(
        answer.err.contains("broken.qcow2") && answer.err.contains("free space"),
        "{}",
        answer.err
    );
    assert_eq!(
        std::fs::read(&path).expect("an image"),
        bytes,
        "it was written"
    );
}
