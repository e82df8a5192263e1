//! Copies of QEMU's images of every shape, judged by `qemu-img`.

mod desk;

use desk::{Desk, SHAPES};

const COPIES: [&str; 8] = [
    "-O raw",
    "-O qcow2",
    "-O qcow2 -c",
    "-O qcow2 -o extended_l2=on,cluster_size=16k",
    "-O qcow2 -c -o cluster_size=512,compression_type=zstd",
    "-O qcow2 -S 0 -o compat=v2",
    "-O qcow2 -o cluster_size=2M,refcount_bits=1 -S 64k",
    "-O qcow2 -o preallocation=metadata,lazy_refcounts=on",
];

fn copy_subjects(indices: impl Iterator<Item = usize>) {
    let desk = Desk::new();
    for index in indices {
        let s = desk.subject(index);
        // Each shape meets some of the copies, and each copy many shapes.
        for copy in COPIES.iter().cycle().skip(index).step_by(3).take(3) {
            desk.skerry(&format!(
                "convert --force {copy} {} {} copy",
                s.flags, s.file
            ));
            let format = if copy.contains("raw") { "raw" } else { "qcow2" };
            let same = desk.try_qemu(&format!("compare -f qcow2 -F {format} {} copy", s.file));
            assert_eq!(same.code, 0, "{} {copy}: {}", s.options, same.out);
            desk.skerry(&format!("compare {} {} -F {format} copy", s.flags, s.file));
            if format == "qcow2" {
                let sound = desk.try_qemu("check copy");
                assert_eq!(
                    sound.code, 0,
                    "{} {copy}: {}{}",
                    s.options, sound.out, sound.err
                );
            }
        }
    }
}

#[test]
fn copies_of_even_shapes_hold_the_same() {
    copy_subjects((0..SHAPES.len()).step_by(2));
}

#[test]
fn copies_of_odd_shapes_hold_the_same() {
    copy_subjects((1..SHAPES.len()).step_by(2));
}

#[test]
fn a_copy_on_a_shared_layer_holds_only_what_differs() {
    let desk = Desk::new();
    desk.qemu("create -q -f raw base 8M");
    desk.io("raw", "base", &["write -P 1 0 4M"]);
    desk.qemu("create -q -f qcow2 -b base -F raw mid");
    desk.io("qcow2", "mid", &["write -P 2 1M 64k"]);
    desk.qemu("create -q -f qcow2 -b mid -F qcow2 top");
    desk.io("qcow2", "top", &["write -P 3 2M 64k", "write -z 3M 64k"]);
    desk.skerry("convert -O qcow2 -B raw:base --backing mid --backing raw:base top copy");
    assert_eq!(desk.qemu("compare top copy").code, 0);
    desk.qemu("check copy");
    let own: u64 = desk
        .skerry("map --output json --backing raw:base copy")
        .json()
        .as_array()
        .expect("a list")
        .iter()
        .filter(|e| e["depth"] == 0 && e["present"] == true)
        .map(|e| e["length"].as_u64().expect("a number"))
        .sum();
    assert_eq!(own, 3 * (64 << 10));
    // A layer that holds other things is compared instead.
    desk.qemu("convert -O raw mid other");
    desk.skerry("convert -O qcow2 -B raw:other --backing mid --backing raw:base top copy2");
    assert_eq!(desk.qemu("compare top copy2").code, 0);
}

#[test]
fn an_existing_target_is_overwritten_whole() {
    let desk = Desk::new();
    desk.qemu("create -q -f qcow2 source 8M");
    desk.io("qcow2", "source", &["write -P 1 1M 1M"]);
    desk.qemu("create -q -f qcow2 target 8M");
    desk.io("qcow2", "target", &["write -P 2 0 8M"]);
    desk.skerry("convert -n -O qcow2 source target");
    desk.qemu("compare source target");
    desk.qemu("check target");
    desk.qemu("create -q -f qcow2 small 4M");
    let answer = desk.try_skerry("convert -n -O qcow2 source small");
    assert_eq!(answer.code, 1);
    assert!(answer.err.contains("small"), "{}", answer.err);
}

#[test]
fn what_fails_leaves_no_file() {
    let desk = Desk::new();
    desk.qemu("create -q -f qcow2 source 8M");
    for args in [
        "create -o preallocation=full --backing source half",
        "create -o cluster_size=3k half 1M",
        "create -o preallocation=metadata -f raw half 1M",
        "convert -O raw -c source half",
        "convert -O qcow2 -c -o data_file=half.data source half",
    ] {
        let answer = desk.try_skerry(args);
        assert_eq!(answer.code, 1, "{args}");
        assert!(!desk.exists("half") && !desk.exists("half.data"), "{args}");
    }
}

#[test]
fn formats_and_layers_are_never_guessed() {
    let desk = Desk::new();
    desk.skerry("create -q -f raw raw 1M");
    desk.skerry("create -q --backing raw:raw top");
    for (args, remedy) in [
        ("convert -O raw top copy", "--backing raw:PATH"),
        ("map raw", "raw:raw"),
        ("create top 1M", "--force"),
        ("resize top +1M", "--backing"),
        ("commit top", "--backing"),
    ] {
        let answer = desk.try_skerry(args);
        assert_eq!(answer.code, 1, "{args}");
        assert!(answer.err.contains(remedy), "{args}: {}", answer.err);
        assert!(!desk.exists("copy"));
    }
    let answer = desk.try_skerry("info nowhere");
    assert_eq!(answer.err.lines().count(), 2, "{}", answer.err);
    assert_eq!(desk.try_skerry("check -f raw raw").code, 63);
    assert_eq!(desk.try_skerry("check nowhere").code, 1);
}
