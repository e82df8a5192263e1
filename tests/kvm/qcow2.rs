//! qcow2 disks: what a guest writes is what it reads, and what `qemu-img` finds in the image.

use std::path::Path;

use skerry_tests::disk::{self, qemu_img};
use skerry_tests::vmm::{Builder, Exit};

const SIZE: &str = "32M";

/// Runs tasks on a disk that `create` makes in a folder; judges the image afterwards.
fn run(tasks: &str, create: &[&str], options: &str) -> Exit {
    let folder = tempfile::TempDir::new().expect("a folder");
    let top = folder.path().join("top.qcow2");
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    arguments.extend_from_slice(create);
    qemu_img(&arguments, &[&top], &[SIZE]);
    run_on(
        tasks,
        &top,
        &format!("path={},image_type=qcow2,{options}", top.display()),
    )
}

fn run_on(tasks: &str, top: &Path, option: &str) -> Exit {
    let exit = Builder::payload(tasks)
        .flag("--disk", option.trim_end_matches(','))
        .run();
    exit.all_ok(
        tasks
            .split("run=")
            .nth(1)
            .map_or(0, |t| t.split(' ').next().unwrap_or("").split(',').count()),
    );
    qemu_img(&["check", "-q", "-f", "qcow2"], &[top], &[]);
    if tasks.contains("blk-sum") {
        let plain = top.with_extension("raw");
        qemu_img(
            &["convert", "-O", "raw", "-f", "qcow2"],
            &[top, &plain],
            &[],
        );
        assert_eq!(exit.value("blk-sum", "fnv1a"), disk::checksum(&plain));
    }
    exit
}

#[test]
fn a_whole_disk_is_written_and_read_back_exactly() {
    run("run=blk-verify,blk-sum", &[], "");
}

#[test]
fn so_it_is_with_every_shape_of_image() {
    for options in [
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=128k",
        "lazy_refcounts=on",
        "compat=0.10",
        "refcount_bits=1",
        "refcount_bits=64,cluster_size=4k",
    ] {
        run(
            "run=blk-verify:0:3:split=odd,blk-sum",
            &["-o", options],
            "num_queues=2",
        );
    }
}

#[test]
fn so_it_is_past_the_page_cache_and_with_tiny_caches() {
    run(
        "run=blk-verify:0:5:depth=32,blk-sum",
        &["-o", "cluster_size=4k"],
        "direct=on",
    );
    run(
        "run=blk-verify:0:6:depth=32,blk-sum",
        &["-o", "cluster_size=4k"],
        "cache_size=0,num_queues=4",
    );
}

#[test]
fn discards_zeroes_and_refusals_work_as_on_raw_disks() {
    run("run=blk-discard,blk-zeroes,blk-oob,blk-info", &[], "");
    run(
        "run=blk-discard,blk-zeroes,blk-oob",
        &["-o", "extended_l2=on,cluster_size=64k"],
        "",
    );
}

#[test]
fn layers_show_through_where_the_top_has_nothing() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (base, mid, top) = (path("base.img"), path("mid.qcow2"), path("top.qcow2"));
    disk::create(&base, 32 << 20);
    Builder::payload("run=blk-verify:0:9")
        .flag("--disk", format!("path={}", base.display()))
        .run()
        .all_ok(1);
    let create = |image: &Path, below: &Path, format: &str| {
        let below = below.display().to_string();
        qemu_img(
            &["create", "-q", "-f", "qcow2", "-b", &below, "-F", format],
            &[image],
            &[],
        );
    };
    create(&mid, &base, "raw");
    create(&top, &mid, "qcow2");
    let chain = format!("backing=[{},raw:{}]", mid.display(), base.display());
    let before = disk::checksum(&base);
    let option = format!("path={},{chain}", top.display());
    run_on("run=blk-read-verify:0:9", &top, &option);
    run_on("run=blk-verify:0:4:limit=9000000,blk-sum", &top, &option);
    assert_eq!(disk::checksum(&base), before, "a layer below was written");
    let info = qemu_img(&["map", "-f", "qcow2", "--output=json"], &[&mid], &[]);
    assert!(!info.contains("\"depth\": 0, \"present\": true"), "{info}");
}

#[test]
fn images_that_cannot_be_used_are_refused_by_name() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let refused = |option: String, words: &[&str]| {
        Builder::payload("off=acpi")
            .flag("--disk", option)
            .run()
            .refused(1, words);
    };
    let raw = path("raw.img");
    disk::create(&raw, 1 << 20);
    refused(
        format!("path={},image_type=qcow2", raw.display()),
        &["raw.img", "not a qcow2 image", "raw:"],
    );
    let top = path("top.qcow2");
    let name = raw.display().to_string();
    qemu_img(
        &["create", "-q", "-f", "qcow2", "-b", &name, "-F", "raw"],
        &[&top],
        &[],
    );
    refused(
        format!("path={},image_type=qcow2", top.display()),
        &[
            "top.qcow2",
            "lies on another image",
            "raw.img",
            "backing layer",
        ],
    );
    refused(
        format!("path={},backing=[raw:/no/such]", top.display()),
        &["/no/such"],
    );
    refused(
        format!("path={},backing=[raw:{name},raw:{name}]", top.display()),
        &["raw.img", "hides all layers below"],
    );
    let luks = path("luks.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2"], &[&luks], &["1M"]);
    let mut bytes = std::fs::read(&luks).expect("an image");
    bytes[35] = 2;
    std::fs::write(&luks, &bytes).expect("an image");
    refused(
        format!("path={},image_type=qcow2", luks.display()),
        &["luks.qcow2", "LUKS"],
    );
    bytes[35] = 0;
    bytes[72] = 0x80;
    std::fs::write(&luks, &bytes).expect("an image");
    refused(
        format!("path={},image_type=qcow2", luks.display()),
        &["incompatible bit 63"],
    );
}
