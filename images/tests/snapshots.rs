//! Internal snapshots, judged by `qemu-img`.

mod tools;

use skerry_images::io::block_on;
use skerry_images::qcow2::Image;
use tools::{Bench, qemu_img, qemu_json};

fn image(bench: &Bench) -> std::sync::Arc<Image> {
    bench.image()
}

#[test]
fn qemu_finds_what_we_keep() {
    for options in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "extended_l2=on,cluster_size=16k",
        "refcount_bits=2",
        "lazy_refcounts=on",
    ] {
        let bench = Bench::new(options, 4 << 20);
        bench.write(0, 1 << 20, 1);
        let top = image(&bench);
        let made = block_on(
            &bench.port,
            top.snapshot_create(&bench.port, "first", (1_700_000_000, 5)),
        )
        .unwrap_or_else(|e| panic!("{options}: {e}"));
        assert_eq!(made.id, "1");
        drop(top);
        bench.write(512 << 10, 1 << 20, 2);
        bench.check_clean(options);
        let info = qemu_json(&["info", "--output=json"], &bench.top());
        let snapshot = &info["snapshots"][0];
        assert_eq!(snapshot["name"], "first", "{options}");
        assert_eq!(snapshot["date-sec"], 1_700_000_000, "{options}");
        let old = bench.dir.path().join("old.raw");
        qemu_img(&[
            "convert",
            "-l",
            "first",
            "-O",
            "raw",
            &bench.top(),
            &old.display().to_string(),
        ]);
        let old = std::fs::read(old).expect("the snapshot's content");
        assert!(
            old[..1 << 20].iter().all(|b| *b == 1) && old[1 << 20..].iter().all(|b| *b == 0),
            "{options}"
        );
        let top = image(&bench);
        block_on(&bench.port, top.snapshot_apply(&bench.port, "first"))
            .unwrap_or_else(|e| panic!("{options}: {e}"));
        drop(top);
        bench.check_clean(options);
        assert_eq!(bench.read_raw(), old, "{options}");
        let top = image(&bench);
        block_on(&bench.port, top.snapshot_delete(&bench.port, "1"))
            .unwrap_or_else(|e| panic!("{options}: {e}"));
        assert!(
            block_on(&bench.port, top.snapshots(&bench.port))
                .expect("a list")
                .is_empty()
        );
        drop(top);
        bench.check_clean(options);
        assert_eq!(bench.read_raw(), old, "{options}");
    }
}

#[test]
fn we_apply_and_delete_what_qemu_made() {
    for options in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=4k,refcount_bits=4",
    ] {
        let bench = Bench::new(options, 3 << 20);
        bench.write(0, 1 << 20, 7);
        qemu_img(&["snapshot", "-c", "one", &bench.top()]);
        bench.write(1 << 20, 1 << 20, 8);
        qemu_img(&["snapshot", "-c", "two", &bench.top()]);
        bench.write(0, 3 << 20, 9);
        let top = image(&bench);
        let port = &bench.port;
        let list = block_on(port, top.snapshots(port)).expect("a list");
        assert_eq!(
            list.iter().map(|s| &*s.name).collect::<Vec<_>>(),
            ["one", "two"]
        );
        assert_eq!(list[0].size, 3 << 20);
        block_on(port, top.snapshot_apply(port, "two"))
            .unwrap_or_else(|e| panic!("{options}: {e}"));
        block_on(port, top.snapshot_delete(port, "one"))
            .unwrap_or_else(|e| panic!("{options}: {e}"));
        drop(top);
        bench.check_clean(options);
        let raw = bench.read_raw();
        assert!(raw[..1 << 20].iter().all(|b| *b == 7));
        assert!(raw[1 << 20..2 << 20].iter().all(|b| *b == 8));
        assert!(raw[2 << 20..].iter().all(|b| *b == 0));
        qemu_img(&["snapshot", "-a", "two", &bench.top()]);
        qemu_img(&["snapshot", "-d", "two", &bench.top()]);
        bench.check_clean(options);
    }
}

#[test]
fn an_older_size_comes_back() {
    let bench = Bench::new("compat=1.1", 1 << 20);
    bench.write(0, 1 << 20, 3);
    let port = &bench.port;
    let top = image(&bench);
    block_on(port, top.snapshot_create(port, "small", (0, 0))).expect("a snapshot");
    drop(top);
    let stack = bench.stack();
    block_on(port, stack.resize(port, 2 << 30)).expect("grows");
    block_on(port, stack.close(port)).expect("closes");
    drop(stack);
    bench.check_clean("grown");
    let top = image(&bench);
    block_on(port, top.snapshot_apply(port, "small")).expect("applies");
    assert_eq!(top.size(), 1 << 20);
    drop(top);
    bench.check_clean("applied");
    assert_eq!(bench.read_raw(), vec![3; 1 << 20]);
}

#[test]
fn narrow_refcounts_refuse_before_anything_changes() {
    let bench = Bench::new("refcount_bits=1", 1 << 20);
    bench.write(0, 1 << 20, 3);
    let before = std::fs::read(bench.top()).expect("the image");
    let top = image(&bench);
    let port = &bench.port;
    let e = block_on(port, top.snapshot_create(port, "no", (0, 0))).expect_err("too narrow");
    assert!(e.to_string().contains("refcounts of 1 bits"), "{e}");
    drop(top);
    assert!(before == std::fs::read(bench.top()).expect("the image"));
}

#[test]
fn compressed_clusters_are_kept_too() {
    let bench = Bench::new("compat=1.1", 1 << 20);
    bench.pack(0, 1 << 20, 5);
    let port = &bench.port;
    let top = image(&bench);
    block_on(port, top.snapshot_create(port, "packed", (0, 0))).expect("a snapshot");
    drop(top);
    bench.check_clean("created");
    bench.write(0, 300_032, 6);
    bench.check_clean("written");
    let top = image(&bench);
    block_on(port, top.snapshot_apply(port, "packed")).expect("applies");
    block_on(port, top.snapshot_delete(port, "packed")).expect("deletes");
    drop(top);
    bench.check_clean("applied");
    assert_eq!(bench.read_raw(), vec![5; 1 << 20]);
}
