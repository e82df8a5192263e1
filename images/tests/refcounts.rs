//! Refblocks that lie, tables that are longer than what a refblock counts, and what lies behind a
//! disk's end.

mod tools;

use std::os::unix::fs::FileExt;

use serde_json::Value;
use skerry_images::chain::Layer;
use skerry_images::io::block_on;
use skerry_images::qcow2::OpenOptions;
use skerry_images::qcow2::check::{Repair, Report, check};
use tools::{Bench, qemu_img};

const CLUSTER: u64 = 4096;

/// Checks with our own.
fn our_check(bench: &Bench, repair: Repair) -> Report {
    let file = skerry_images::io::FileOptions {
        readonly: repair == Repair::None,
        unlocked: true,
        ..Default::default()
    };
    let options = OpenOptions {
        readonly: repair == Repair::None,
        for_check: true,
        ..OpenOptions::default()
    };
    let open = bench.specs[0].open_with(&bench.port, &file, &options);
    let Layer::Qcow2(image) = block_on(&bench.port, open).expect("opens") else {
        panic!("the top is qcow2");
    };
    block_on(&bench.port, check(&image, &bench.port, repair)).expect("a report")
}

fn patch(bench: &Bench, at: u64, bytes: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(bench.top());
    file.expect("the image")
        .write_all_at(bytes, at)
        .expect("writes");
}

fn number_at(bench: &Bench, at: u64) -> u64 {
    let mut bytes = [0; 8];
    let file = std::fs::File::open(bench.top()).expect("the image");
    file.read_exact_at(&mut bytes, at).expect("reads");
    u64::from_be_bytes(bytes)
}

#[test]
fn refblocks_that_cannot_be_are_refused_and_mended() {
    for second in ["same", "beyond", "askew"] {
        let bench = Bench::new("cluster_size=4096", 1 << 20);
        bench.write(0, 200_000, 7);
        let table = number_at(&bench, 48);
        let first = number_at(&bench, table);
        let wrong = match second {
            "same" => first,
            "beyond" => 1 << 40,
            _ => first + 512,
        };
        patch(&bench, table + 8, &wrong.to_be_bytes());
        let (port, specs) = (&bench.port, &bench.specs);
        let options = skerry_images::io::FileOptions {
            unlocked: true,
            ..Default::default()
        };
        let open = skerry_images::chain::Stack::open(port, specs, &options, 1 << 20);
        let refused = block_on(port, open).err().expect("it is refused");
        assert!(refused.to_string().contains("refblock"), "{refused}");
        assert!(our_check(&bench, Repair::None).corruptions > 0, "{second}");
        our_check(&bench, Repair::All);
        bench.check_clean(second);
        assert!(bench.read()[..200_000].iter().all(|b| *b == 7));
    }
}

#[test]
fn full_refblocks_are_passed_over() {
    let bench = Bench::new("cluster_size=4096", 64 << 20);
    bench.write(0, 100_000, 7);
    // All of the first part of the file is in use: leaks.
    let block = number_at(&bench, number_at(&bench, 48));
    let ones: Vec<u8> = [0, 1].repeat(CLUSTER as usize / 2);
    patch(&bench, block, &ones);
    bench.write(1 << 20, 100_000, 8);
    assert_eq!(our_check(&bench, Repair::Leaks).corruptions, 0);
    bench.check_clean("after the leaks are mended");
    assert!(bench.read()[1 << 20..][..100_000].iter().all(|b| *b == 8));
}

#[test]
fn tables_longer_than_a_refblock_counts_find_their_place() {
    // A refblock counts 64 clusters, itself among them, and an L1 entry covers 32 KiB.
    let bench = Bench::new("cluster_size=512,refcount_bits=64", 1 << 20);
    bench.write(0, 1 << 20, 7);
    for size in [256 << 20, 1 << 30] {
        let stack = bench.stack();
        block_on(&bench.port, stack.resize(&bench.port, size)).expect("grows");
        bench.write_to(&stack, size - 512, 512, 9);
        block_on(&bench.port, stack.close(&bench.port)).expect("closes");
        bench.check_clean("grown");
    }
}

#[test]
fn what_lies_behind_the_end_does_not_show_when_the_disk_grows() {
    for options in [
        "cluster_size=65536",
        "cluster_size=65536,extended_l2=on",
        "cluster_size=65536,compat=0.10",
    ] {
        for packed in [false, true] {
            let bench = Bench::new(options, 128 << 10);
            match packed {
                false => bench.write(0, 128 << 10, 7),
                true => bench.pack(0, 128 << 10, 7),
            }
            // Only the header tells of the size: the rest stays.
            patch(&bench, 24, &(66_048u64).to_be_bytes());
            let stack = bench.stack();
            block_on(&bench.port, stack.resize(&bench.port, 128 << 10)).expect("grows");
            block_on(&bench.port, stack.close(&bench.port)).expect("closes");
            let content = bench.read();
            assert!(content[..66_048].iter().all(|b| *b == 7), "{options}");
            let unit = if options.contains("extended") {
                2048
            } else {
                65536
            };
            let end = 66_048usize.next_multiple_of(unit);
            assert!(content[66_048..end].iter().all(|b| *b == 0), "{options}");
            bench.check_clean(options);
        }
    }
}

/// Both checks' numbers.
fn numbers(bench: &Bench) -> [[u64; 7]; 2] {
    let out = std::process::Command::new("qemu-img")
        .args(["check", "--output=json", "-f", "qcow2", &bench.top()])
        .output()
        .expect("qemu-img runs");
    let theirs: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let number = |name: &str| theirs[name].as_u64().unwrap_or(0);
    let ours = our_check(bench, Repair::None);
    [
        [
            ours.corruptions,
            ours.leaks,
            ours.total_clusters,
            ours.allocated_clusters,
            ours.compressed_clusters,
            ours.fragmented_clusters,
            ours.image_end,
        ],
        [
            number("corruptions"),
            number("leaks"),
            number("total-clusters"),
            number("allocated-clusters"),
            number("compressed-clusters"),
            number("fragmented-clusters"),
            number("image-end-offset"),
        ],
    ]
}

#[test]
fn the_numbers_of_a_check_are_those_of_qemu_s() {
    for options in [
        "cluster_size=512",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=4096,compat=0.10",
        "cluster_size=65536",
        "cluster_size=65536,extended_l2=on",
        "cluster_size=65536,data_file",
        "cluster_size=2M,lazy_refcounts=on",
    ] {
        let external = options.contains("data_file");
        let mut bench = Bench::empty();
        let data = bench.dir.path().join("data").display().to_string();
        let options = options.replace("data_file", &format!("data_file={data}"));
        bench.specs[0].data_file = external.then(|| (&data).into());
        let top = bench.top();
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, &top, "4M"]);
        for commands in [
            &["write 0 700k", "write 2M 300k"][..],
            &["write 900k 10k", "write 800k 20k", "discard 100k 200k"],
            &["write -z 2M 128k", "write -z -u 2200k 64k"],
            &["write -c 3M 64k", "write -c 3200k 64k"],
        ] {
            for command in commands {
                // Not every image can do everything.
                let _ = std::process::Command::new("qemu-io")
                    .args(["-f", "qcow2", "-c", command, &top])
                    .output()
                    .expect("qemu-io runs");
            }
            let [ours, theirs] = numbers(&bench);
            assert_eq!(ours, theirs, "{options} after {commands:?}");
        }
        if !external {
            qemu_img(&["snapshot", "-c", "s", &top]);
            let [ours, theirs] = numbers(&bench);
            assert_eq!(ours, theirs, "{options} with a snapshot");
        }
    }
    // What an L1 entry led to is leaked.
    let bench = Bench::new("cluster_size=65536", 4 << 20);
    bench.write(0, 1 << 20, 1);
    patch(&bench, number_at(&bench, 40), &[0; 8]);
    let [ours, theirs] = numbers(&bench);
    assert_eq!(ours, theirs, "with leaks");
    assert_eq!(ours[1], 17);
}
