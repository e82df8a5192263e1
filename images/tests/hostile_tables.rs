//! Broken snapshot tables, bitmap directories and what they name: errors, never a panic, a hang or
//! memory without bounds.

mod tools;

use std::os::unix::fs::FileExt;

use skerry_images::chain::{Layer, LayerSpec};
use skerry_images::io::sim::Dice;
use skerry_images::io::{FileOptions, Port, block_on};
use skerry_images::qcow2::check::{Repair, check};
use skerry_images::qcow2::{Header, Image, OpenOptions};
use tools::{Bench, qemu_img};

async fn open(port: &Port, spec: &LayerSpec, for_check: bool) -> Option<std::sync::Arc<Image>> {
    let file = FileOptions {
        unlocked: true,
        ..FileOptions::default()
    };
    let options = OpenOptions {
        for_check,
        ..OpenOptions::default()
    };
    match spec.open_with(port, &file, &options).await.ok()? {
        Layer::Qcow2(image) => Some(image),
        Layer::Raw(_) => None,
    }
}

/// Everything that reads or changes the tables. How it ends does not matter.
async fn use_all(port: &Port, spec: &LayerSpec) {
    if let Some(image) = open(port, spec, true).await {
        let _ = check(&image, port, Repair::None).await;
        let _ = image.snapshots(port).await;
        let _ = image.bitmaps(port).await;
    }
    if let Some(image) = open(port, spec, false).await {
        if let Ok(trackers) = image.load_bitmaps(port).await {
            trackers.iter().for_each(|t| t.mark(0, 100_000));
            let _ = image.store_bitmaps(port, &trackers).await;
        }
        let _ = image.bitmap_clear(port, "fine").await;
        let _ = image.snapshot_apply(port, "one").await;
        let _ = image.snapshot_create(port, "new", (0, 0)).await;
        let _ = image.snapshot_delete(port, "two").await;
        let _ = image.bitmap_remove(port, "b").await;
        let _ = image.bitmap_add(port, "c", 512).await;
        let _ = image.close(port).await;
    }
}

fn image(options: &str) -> (Bench, Vec<u8>, Header) {
    let bench = Bench::new(options, 1 << 20);
    bench.write(0, 200 << 10, 1);
    qemu_img(&["snapshot", "-c", "one", &bench.top()]);
    bench.write(100 << 10, 200 << 10, 2);
    qemu_img(&["snapshot", "-c", "two", &bench.top()]);
    qemu_img(&["bitmap", "--add", "-g", "512", &bench.top(), "fine"]);
    qemu_img(&["bitmap", "--add", &bench.top(), "b"]);
    let image = bench.image();
    let port = &bench.port;
    let trackers = block_on(port, image.load_bitmaps(port)).expect("loads");
    trackers.iter().for_each(|t| t.mark(70_000, 9000));
    block_on(port, image.store_bitmaps(port, &trackers)).expect("stores");
    block_on(port, image.close(port)).expect("closes");
    let header = image.header();
    drop(image);
    let bytes = std::fs::read(bench.top()).expect("the image");
    (bench, bytes, header)
}

#[test]
fn any_byte_may_be_wrong() {
    let rounds = std::env::var("SKERRY_SEQUENCES").map_or(60, |n| n.parse().expect("a number"));
    for options in ["cluster_size=4k", "cluster_size=512,refcount_bits=8"] {
        let (bench, bytes, header) = image(options);
        let mut dice = Dice(77);
        let bitmaps = header.bitmaps.expect("bitmaps");
        let entry = |at: u64| {
            let word = bytes[at as usize..at as usize + 8].try_into();
            u64::from_be_bytes(word.expect("8 bytes"))
        };
        let second = bitmaps.directory_offset + 32;
        let tables = [
            (0, 200),
            (header.snapshots_offset, 160),
            (header.l1_offset, u64::from(header.l1_entries) * 8),
            (entry(header.l1_offset) & 0x00ff_ffff_ffff_fe00, 400),
            (entry(header.snapshots_offset), 64),
            (bitmaps.directory_offset, bitmaps.directory_size),
            (entry(bitmaps.directory_offset), 16),
            (entry(second), 16),
            (header.reftable_offset, 64),
        ];
        for _ in 0..rounds {
            let mut broken = bytes.clone();
            for _ in 0..1 + dice.below(3) {
                let (at, len) = tables[dice.below(tables.len() as u64) as usize];
                let at = (at + dice.below(len.max(1))) as usize;
                if at >= broken.len() {
                    continue;
                }
                broken[at] = match dice.below(3) {
                    0 => 0xff,
                    1 => broken[at] ^ 1 << dice.below(8),
                    _ => dice.number() as u8,
                };
            }
            let file = std::fs::File::create(bench.top()).expect("the image");
            file.write_all_at(&broken, 0).expect("writes");
            drop(file);
            block_on(&bench.port, use_all(&bench.port, &bench.specs[0]));
        }
    }
}

#[test]
fn huge_claims_in_a_huge_hole_are_refused() {
    let (bench, bytes, header) = image("cluster_size=4k");
    let at = header.snapshots_offset as usize;
    let directory = header.bitmaps.expect("bitmaps").directory_offset as usize;
    let claims: [(usize, &[u8]); 5] = [
        // Extra data of 4 GiB, an L1 table of 4 Gi entries, 65536 snapshots.
        (at + 36, &[0xff; 4]),
        (at + 8, &[0xff; 4]),
        (60, &[0, 1, 0, 0]),
        // A bitmap table of 2 Gi entries, extra data of 4 GiB.
        (directory + 8, &[0x7f, 0xff, 0xff, 0xff]),
        (directory + 20, &[0xff; 4]),
    ];
    for (at, claim) in claims {
        let mut broken = bytes.clone();
        broken[at..at + claim.len()].copy_from_slice(claim);
        std::fs::write(bench.top(), &broken).expect("the image");
        let file = std::fs::File::options().write(true).open(bench.top());
        file.and_then(|f| f.set_len(1 << 40)).expect("a hole");
        let port = &bench.port;
        let image = block_on(port, open(port, &bench.specs[0], true)).expect("opens");
        let report = block_on(port, check(&image, port, Repair::None));
        assert!(
            report.is_err() || report.is_ok_and(|r| r.corruptions > 0),
            "{at}"
        );
    }
}
