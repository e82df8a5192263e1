//! Persistent dirty bitmaps, judged by `qemu-img`.
#![allow(
    clippy::single_range_in_vec_init,
    reason = "lists of ranges are compared"
)]

mod tools;

use serde_json::Value;
use skerry_images::chain::live::Progress;
use skerry_images::chain::{Format, LayerSpec, Stack};
use skerry_images::io::sim::Dice;
use skerry_images::io::{FileOptions, block_on};
use skerry_images::ops::{merge, rebase};
use skerry_images::qcow2::{BitmapInfo, Image, Tracker};
use tools::{Bench, qemu_img, qemu_json};

const SIZE: u64 = 8 << 20;

fn info(bench: &Bench) -> Vec<BitmapInfo> {
    let image = bench.image();
    block_on(&bench.port, image.bitmaps(&bench.port)).expect("bitmaps")
}

/// What QEMU says of the bitmaps: name, granularity, flags.
fn qemu_info(bench: &Bench) -> Vec<(String, u64, Vec<String>)> {
    let info = qemu_json(&["info", "--output=json"], &bench.top());
    let list = info["format-specific"]["data"]["bitmaps"].as_array();
    let text = |v: &Value| v.as_str().expect("text").to_owned();
    let entry = |b: &Value| {
        let flags = b["flags"].as_array().expect("flags");
        (
            text(&b["name"]),
            b["granularity"].as_u64().expect("a number"),
            flags.iter().map(text).collect(),
        )
    };
    list.into_iter().flatten().map(entry).collect()
}

/// What QEMU reads of a bitmap's content: the dirty ranges, by way of a merge into a new image that
/// is read by us. Its own merge fails if it cannot read the bitmap.
fn through_qemu(bench: &Bench, name: &str, granularity: u64) -> Vec<std::ops::Range<u64>> {
    let top = bench.top();
    let g = granularity.to_string();
    qemu_img(&["bitmap", "--add", "-g", &g, &top, "copy"]);
    qemu_img(&["bitmap", "--merge", name, &top, "copy"]);
    bench.check_clean("merged");
    let image = bench.image();
    let trackers = block_on(&bench.port, image.load_bitmaps(&bench.port)).expect("loads");
    let dirty = tracker(&trackers, "copy").map().ranges().collect();
    block_on(&bench.port, image.store_bitmaps(&bench.port, &trackers)).expect("stores");
    block_on(&bench.port, image.bitmap_remove(&bench.port, "copy")).expect("removes");
    dirty
}

fn tracker<'a>(trackers: &'a [Tracker], name: &str) -> &'a Tracker {
    let found = trackers.iter().find(|t| t.name() == name);
    found.expect("a tracker of this name")
}

fn take(bench: &Bench, image: &Image) -> Vec<Tracker> {
    block_on(&bench.port, image.load_bitmaps(&bench.port)).expect("loads")
}

#[test]
fn images_with_bitmaps_of_qemu_are_clean() {
    for options in [
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
    ] {
        let bench = Bench::new(options, SIZE);
        qemu_img(&["bitmap", "--add", &bench.top(), "a"]);
        qemu_img(&["bitmap", "--add", "-g", "512", &bench.top(), "fine"]);
        qemu_img(&["bitmap", "--add", "--disable", &bench.top(), "off"]);
        bench.check_clean(options);
        let is = info(&bench);
        let names: Vec<_> = is.iter().map(|b| (&*b.name, b.enabled, b.in_use)).collect();
        assert_eq!(
            names,
            [
                ("a", true, false),
                ("fine", true, false),
                ("off", false, false)
            ]
        );
        assert_eq!(is[1].granularity, 512);
        assert!(is.iter().all(|b| b.dirty == Some(0)), "{is:?}");
        bench.check_clean(options);
    }
}

#[test]
fn qemu_reads_what_we_make_and_change() {
    for options in [
        "compat=1.1",
        "cluster_size=512",
        "extended_l2=on",
        "lazy_refcounts=on",
    ] {
        let bench = Bench::new(options, SIZE);
        let (image, port) = (bench.image(), &bench.port);
        block_on(port, image.bitmap_add(port, "one", 65536)).expect("adds");
        block_on(port, image.bitmap_add(port, "two", 4096)).expect("adds");
        block_on(port, image.bitmap_add(port, "three", 512)).expect("adds");
        block_on(port, image.bitmap_enable(port, "two", false)).expect("disables");
        block_on(port, image.bitmap_remove(port, "three")).expect("removes");
        block_on(port, image.bitmap_clear(port, "one")).expect("clears");
        block_on(port, image.bitmap_add(port, "one", 65536)).expect_err("twice");
        block_on(port, image.bitmap_add(port, "odd", 65535)).expect_err("not a power of two");
        block_on(port, image.close(port)).expect("closes");
        drop(image);
        bench.check_clean(options);
        let auto = |on: bool| if on { vec!["auto".to_owned()] } else { vec![] };
        let is = qemu_info(&bench);
        let should = [
            ("one".to_owned(), 65536, auto(true)),
            ("two".to_owned(), 4096, auto(false)),
        ];
        assert_eq!(is, should, "{options}");
        let image = bench.image();
        for name in ["one", "two"] {
            block_on(port, image.bitmap_remove(port, name)).expect("removes");
        }
        block_on(port, image.close(port)).expect("closes");
        drop(image);
        bench.check_clean(options);
        assert!(qemu_info(&bench).is_empty());
    }
}

#[test]
fn what_was_tracked_comes_back_by_qemu_too() {
    for (options, granularity) in [
        ("cluster_size=512", 512),
        ("compat=1.1", 65536),
        ("compat=1.1", 512),
    ] {
        let bench = Bench::new(options, SIZE - 512);
        let (image, port) = (bench.image(), &bench.port);
        block_on(port, image.bitmap_add(port, "t", granularity)).expect("adds");
        drop(image);
        let mut dice = Dice(9);
        let mut model = vec![false; SIZE.div_ceil(granularity) as usize];
        for _ in 0..4 {
            let stack = bench.stack();
            let image = bench.image_of(&stack);
            let trackers = take(&bench, &image);
            assert!(info_of(&bench, &image)[0].in_use);
            for _ in 0..3 {
                let at = dice.below(SIZE / 512 - 3000) * 512;
                let most = if dice.one_in(2) { 3 } else { 2900 };
                let len = 512 * (1 + dice.below(most));
                bench.write_to(&stack, at, len as usize, 1);
                trackers[0].mark(at, len);
                model[(at / granularity) as usize..(at + len).div_ceil(granularity) as usize]
                    .fill(true);
            }
            block_on(port, image.store_bitmaps(port, &trackers)).expect("stores");
            block_on(port, image.close(port)).expect("closes");
        }
        bench.check_clean(options);
        let mut is = vec![false; model.len()];
        for range in through_qemu(&bench, "t", granularity) {
            is[(range.start / granularity) as usize..range.end.div_ceil(granularity) as usize]
                .fill(true);
        }
        assert!(is == model, "{options}");
        bench.check_clean(options);
    }
}

fn info_of(bench: &Bench, image: &Image) -> Vec<BitmapInfo> {
    block_on(&bench.port, image.bitmaps(&bench.port)).expect("bitmaps")
}

#[test]
fn what_nobody_tracked_is_in_use_and_only_removable() {
    let bench = Bench::new("compat=1.1", SIZE);
    qemu_img(&["bitmap", "--add", &bench.top(), "a"]);
    qemu_img(&["bitmap", "--add", "--disable", &bench.top(), "off"]);
    bench.write(0, 512, 1);
    bench.check_clean("written");
    let is = info(&bench);
    assert_eq!((is[0].in_use, is[0].enabled), (true, false));
    assert!(!is[1].in_use);
    assert_eq!(qemu_info(&bench)[0].2, ["in-use", "auto"]);
    let (image, port) = (bench.image(), &bench.port);
    assert!(take(&bench, &image).is_empty());
    block_on(port, image.bitmap_clear(port, "a")).expect_err("in use");
    block_on(port, image.bitmap_enable(port, "a", true)).expect_err("in use");
    block_on(port, image.bitmap_remove(port, "a")).expect("removes");
    drop(image);
    bench.check_clean("removed");
    qemu_img(&["bitmap", "--enable", &bench.top(), "off"]);
}

#[test]
fn a_resize_keeps_bitmaps() {
    let bench = Bench::new("cluster_size=4k", SIZE);
    for (name, granularity) in [("a", "512"), ("off", "4096")] {
        qemu_img(&["bitmap", "--add", "-g", granularity, &bench.top(), name]);
    }
    let port = &bench.port;
    let image = bench.image();
    let trackers = take(&bench, &image);
    trackers[0].mark(4096, 8192);
    block_on(port, image.store_bitmaps(port, &trackers)).expect("stores");
    block_on(port, image.bitmap_enable(port, "off", false)).expect("disables");
    drop(image);
    for size in [SIZE * 9, SIZE / 2 + 512] {
        let stack = bench.stack();
        block_on(port, stack.resize(port, size)).expect("resizes");
        block_on(port, stack.close(port)).expect("closes");
        drop(stack);
        bench.check_clean("resized");
        assert_eq!(through_qemu(&bench, "a", 512), [4096..12288]);
        assert_eq!(qemu_info(&bench)[1].2, Vec::<String>::new());
    }
}

#[test]
fn an_applied_snapshot_makes_all_dirty() {
    let bench = Bench::new("compat=1.1", SIZE);
    let (image, port) = (bench.image(), &bench.port);
    block_on(port, image.snapshot_create(port, "s", (0, 0))).expect("a snapshot");
    block_on(port, image.bitmap_add(port, "a", 65536)).expect("adds");
    block_on(port, image.snapshot_apply(port, "s")).expect("applies");
    drop(image);
    bench.check_clean("applied");
    assert_eq!(through_qemu(&bench, "a", 65536), [0..SIZE]);
}

#[test]
fn an_external_data_file_can_have_bitmaps() {
    let mut bench = Bench::empty();
    let data = bench.dir.path().join("data.raw");
    let options = format!("data_file={},data_file_raw=on", data.display());
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &options,
        &bench.top(),
        "1M",
    ]);
    bench.specs[0].data_file = Some(data);
    let (image, port) = (bench.image(), &bench.port);
    block_on(port, image.bitmap_add(port, "a", 65536)).expect("adds");
    let trackers = take(&bench, &image);
    trackers[0].mark(0, 1);
    block_on(port, image.store_bitmaps(port, &trackers)).expect("stores");
    block_on(port, image.close(port)).expect("closes");
    drop(image);
    bench.check_clean("stored");
    assert_eq!(through_qemu(&bench, "a", 65536), [0..65536]);
}

#[test]
fn a_merge_marks_what_it_writes_and_a_rebase_nothing() {
    let mut bench = Bench::empty();
    let dir = bench.dir.path().to_owned();
    let (top, below) = (bench.top(), dir.join("below").display().to_string());
    let create = ["create", "-q", "-f", "qcow2"];
    qemu_img(&[&create[..], &[&below, "8M"]].concat());
    qemu_img(&[&create[..], &["-b", &below, "-F", "qcow2", &top, "8M"]].concat());
    for image in [&top, &below] {
        qemu_img(&["bitmap", "--add", image, "a"]);
    }
    let below = LayerSpec::new(Format::Qcow2, dir.join("below"));
    bench.specs.push(below.clone());
    let (port, stack) = (&bench.port, bench.stack());
    let trackers = block_on(port, stack.load_bitmaps(port)).expect("loads");
    bench.write_to(&stack, 1 << 20, 1 << 20, 1);
    trackers[0].mark(1 << 20, 1 << 20);
    block_on(port, stack.store_bitmaps(port, &trackers)).expect("stores");
    let progress = Progress::default();
    let old = &stack.layers()[1..];
    let moved = rebase(port, stack.top(), old, &[], &progress);
    block_on(port, moved).expect("rebases");
    block_on(port, stack.close(port)).expect("closes");
    let top = stack.top().clone();
    drop(stack);
    let options = FileOptions {
        unlocked: true,
        ..FileOptions::default()
    };
    let opened = block_on(port, below.open(port, &options, 0)).expect("opens");
    let layers = [top.clone(), opened.clone()];
    block_on(port, merge(port, &layers, &progress)).expect("merges");
    for layer in layers {
        let stack = Stack::new(vec![layer]);
        let trackers = block_on(port, stack.load_bitmaps(port)).expect("loads");
        let dirty: Vec<_> = trackers[0].map().ranges().collect();
        assert_eq!(dirty, [1 << 20..2 << 20]);
        block_on(port, stack.store_bitmaps(port, &trackers)).expect("stores");
        block_on(port, stack.close(port)).expect("closes");
    }
    bench.check_clean("merged");
}
