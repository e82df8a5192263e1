//! Images that `skerry image` makes and changes, judged by `qemu-img`.

mod desk;

use desk::Desk;

#[test]
fn qemu_accepts_images_of_every_option() {
    let desk = Desk::new();
    let options = [
        "",
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-o compat=0.10",
        "-o compat=v3,lazy_refcounts=on",
        "-o refcount_bits=1",
        "-o refcount_bits=64",
        "-o extended_l2=on",
        "-o extended_l2=on,cluster_size=2M,compression_type=zstd",
        "-o preallocation=metadata",
        "-o preallocation=falloc",
        "-o preallocation=full",
        "-o data_file=ours.data",
        "-o data_file=ours.data,data_file_raw=on",
    ];
    for option in options {
        desk.skerry(&format!("create -q --force {option} ours 8M"));
        desk.io("qcow2", "ours", &["write -P 3 1M 200k", "read -P 0 4M 1M"]);
        let check = desk.try_qemu("check ours");
        assert_eq!(check.code, 0, "{option}: {}{}", check.out, check.err);
    }
}

/// A layer with data, and an image on it.
fn stacked() -> Desk {
    let desk = Desk::new();
    desk.qemu("create -q -f raw base 8M");
    desk.io("raw", "base", &["write -P 1 0 4M"]);
    desk.skerry("create -q --backing raw:base top");
    desk.io(
        "qcow2",
        "top",
        &["write -P 2 1M 100k", "write -P 3 6M 64k", "write -z 2M 1M"],
    );
    desk.qemu("convert -O raw top before");
    desk
}

#[test]
fn an_overlay_has_subclusters_and_the_layers_size() {
    let desk = stacked();
    let info = desk.qemu("info --output json top").json();
    assert_eq!(info["virtual-size"], 8 << 20);
    assert_eq!(info["cluster-size"], 128 << 10);
    assert_eq!(info["format-specific"]["data"]["extended-l2"], true);
    assert_eq!(info["backing-filename"], "base");
    assert_eq!(info["backing-filename-format"], "raw");
}

#[test]
fn commit_merges_into_the_layer_below() {
    let desk = stacked();
    desk.skerry("commit -q --backing raw:base top");
    assert_eq!(desk.qemu("compare -F raw top before").code, 0);
    assert_eq!(desk.qemu("compare -f raw -F raw base before").code, 0);
    desk.qemu("check top");
    let own = desk
        .skerry("map --output json --backing raw:base top")
        .json();
    assert!(
        own.as_array()
            .expect("a list")
            .iter()
            .all(|e| e["depth"] == 1)
    );
}

#[test]
fn commit_grows_a_smaller_layer() {
    let desk = stacked();
    desk.skerry("create -q --backing top upper 12M");
    desk.io("qcow2", "upper", &["write -P 9 10M 1M", "write -P 8 0 64k"]);
    desk.qemu("convert -O raw upper after");
    desk.skerry("commit -q -d --backing top --backing raw:base upper");
    assert_eq!(desk.qemu("compare -F raw top after").code, 0);
    desk.qemu("check top");
}

#[test]
fn rebase_keeps_what_the_image_reads_as() {
    let desk = stacked();
    desk.qemu("create -q -f qcow2 other 6M");
    desk.io(
        "qcow2",
        "other",
        &[
            "write -P 1 0 1M",
            "write -P 5 3M 2M",
            "write -P 6 5900k 64k",
        ],
    );
    desk.skerry("rebase --backing raw:base -b other top");
    assert_eq!(
        desk.qemu("info --output json top").json()["backing-filename"],
        "other"
    );
    assert_eq!(desk.qemu("compare -F raw top before").code, 0);
    desk.qemu("check top");
    desk.skerry("rebase --backing other -b '' top");
    let info = desk.qemu("info --output json top").json();
    assert_eq!(info.get("backing-filename"), None);
    assert_eq!(desk.qemu("compare -F raw top before").code, 0);
    desk.qemu("check top");
}

#[test]
fn an_unsafe_rebase_changes_only_the_name() {
    let desk = stacked();
    std::fs::rename(desk.path().join("base"), desk.path().join("moved")).expect("renamed");
    desk.skerry("rebase -u -b raw:moved top");
    assert_eq!(desk.qemu("compare -F raw top before").code, 0);
}

#[test]
fn resize_shows_zeroes_and_shrinks_only_when_told() {
    let desk = stacked();
    desk.io("raw", "base", &["truncate 12M", "write -P 7 9M 1M"]);
    desk.skerry("resize -q --backing raw:base top +2M");
    desk.io("qcow2", "top", &["read -P 0 8M 2M", "read -P 1 0 1M"]);
    assert_eq!(desk.try_skerry("resize --backing raw:base top 4M").code, 1);
    desk.skerry("resize -q --shrink --backing raw:base top -6M");
    assert_eq!(
        desk.qemu("info --output json top").json()["virtual-size"],
        4 << 20
    );
    desk.qemu("check top");
    desk.skerry("resize -q --backing raw:base top 8M");
    desk.io("qcow2", "top", &["read -P 0 4M 4M"]);
}

#[test]
fn snapshots_come_back() {
    let desk = Desk::new();
    desk.skerry("create -q a 8M");
    desk.io("qcow2", "a", &["write -P 1 0 1M"]);
    desk.skerry("snapshot -c one a");
    desk.io("qcow2", "a", &["write -P 2 512k 2M"]);
    desk.qemu("snapshot -c two a");
    let (theirs, ours) = (
        desk.qemu("info --output json a").json(),
        desk.skerry("info --output json a").json(),
    );
    let names = |list: &serde_json::Value| -> Vec<String> {
        let list = list.as_array().expect("a list");
        list.iter().map(|s| s["name"].to_string()).collect()
    };
    assert_eq!(names(&ours["snapshots"]), names(&theirs["snapshots"]));
    desk.skerry("snapshot -a one a");
    desk.io("qcow2", "a", &["read -P 1 0 1M", "read -P 0 1M 2M"]);
    desk.skerry("snapshot -d two a");
    desk.qemu("check a");
    desk.skerry("snapshot -d one a");
    desk.qemu("check a");
    assert_eq!(
        desk.skerry("snapshot -l --output json a").json(),
        serde_json::json!([])
    );
    assert_eq!(desk.try_skerry("snapshot -a one a").code, 1);
}

#[test]
fn bitmaps_are_shared_with_qemu() {
    let desk = Desk::new();
    desk.skerry("create -q a 8M");
    desk.skerry("bitmap --add a ours -g 32k");
    desk.qemu("bitmap --add a theirs");
    desk.skerry("bitmap --disable a theirs");
    let ours = desk.skerry("bitmap --list --output json a").json();
    let info = desk.qemu("info --output json a").json();
    assert_eq!(ours, info["format-specific"]["data"]["bitmaps"]);
    desk.skerry("bitmap --clear a ours");
    desk.skerry("bitmap --remove a theirs");
    desk.qemu("bitmap --remove a ours");
    desk.qemu("check a");
}

#[test]
fn bench_leaves_a_sound_image_with_the_pattern() {
    let desk = Desk::new();
    desk.skerry("create -q a 16M");
    let answer = desk
        .skerry("bench -w --pattern 7 -c 4096 -d 16 --output json a")
        .json();
    assert_eq!(answer["requests"], 4096);
    desk.qemu("check a");
    desk.io("qcow2", "a", &["read -P 7 0 16M"]);
    desk.skerry("bench --random -c 2000 -s 64k a");
}
