//! Images of every shape that `qemu-img` makes: we read them as it does, and find them clean.

mod tools;

use std::path::{Path, PathBuf};

use skerry_images::chain::{Format, LayerSpec};
use skerry_images::io::sim::Dice;
use tools::{Bench, qemu_img};

const SIZE: u64 = 3 << 20;

/// Content with data that packs, data that does not, zeroes and holes.
fn content(path: &Path, seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut bytes = vec![0; SIZE as usize + 512];
    let end = bytes.len();
    for piece in bytes[..end].chunks_mut(48 << 10) {
        match dice.below(4) {
            0 => piece.fill(dice.number() as u8),
            1 => {
                for word in piece.chunks_mut(8) {
                    word.copy_from_slice(&dice.number().to_le_bytes()[..word.len()]);
                }
            }
            2 => {
                let n = piece.len().min(5000);
                piece[..n].fill(7);
            }
            _ => {}
        }
    }
    std::fs::write(path, &bytes).expect("the content");
    bytes
}

/// Makes `top.qcow2` from seeded content, with `convert`'s arguments; the content.
fn converted(bench: &Bench, args: &[&str], options: &str, seed: u64) -> Vec<u8> {
    let raw = bench.dir.path().join("content.raw");
    let bytes = content(&raw, seed);
    let raw = raw.display().to_string();
    let top = bench.top();
    let common = ["-f", "raw", "-O", "qcow2", "-o", options, &raw, &top];
    qemu_img(&[&["convert"][..], args, &common].concat());
    bytes
}

/// We and `qemu-img` read the same, and it is what went in.
fn same(bench: &Bench, should: &[u8], story: &str) {
    assert!(bench.read() == should, "{story}: what we read differs");
    assert!(bench.read_raw() == should, "{story}: what it reads differs");
    bench.check_clean(story);
}

#[test]
fn every_cluster_size() {
    for bits in 9..=21 {
        let bench = Bench::empty();
        let options = format!("cluster_size={}", 1 << bits);
        let should = converted(&bench, &[], &options, bits);
        same(&bench, &should, &options);
    }
}

#[test]
fn every_refcount_width() {
    for order in 0..=6 {
        let bench = Bench::empty();
        let options = format!("refcount_bits={},cluster_size=512", 1 << order);
        let should = converted(&bench, &[], &options, order);
        same(&bench, &should, &options);
    }
}

#[test]
fn both_kinds_of_compression_in_every_cluster_size() {
    for bits in (9..=21).step_by(2) {
        for kind in ["zlib", "zstd"] {
            let bench = Bench::empty();
            let options = format!("cluster_size={},compression_type={kind}", 1 << bits);
            let should = converted(&bench, &["-c"], &options, bits);
            same(&bench, &should, &options);
        }
    }
}

#[test]
fn every_other_option() {
    let all = [
        "compat=0.10",
        "lazy_refcounts=on",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "extended_l2=on,cluster_size=2M",
        "extended_l2=on,lazy_refcounts=on,refcount_bits=64",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "preallocation=metadata,extended_l2=on",
        "preallocation=metadata,cluster_size=512,refcount_bits=64",
    ];
    for options in all {
        let bench = Bench::empty();
        let should = converted(&bench, &["-S", "4k"], options, 5);
        same(&bench, &should, options);
        let size = SIZE.to_string();
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            options,
            &bench.top(),
            &size,
        ]);
        same(&bench, &vec![0; SIZE as usize], options);
    }
    let bench = Bench::empty();
    let should = converted(&bench, &["-c"], "extended_l2=on,compression_type=zstd", 6);
    same(&bench, &should, "extended_l2, zstd");
    let bench = Bench::empty();
    let should = converted(&bench, &["-c"], "compat=0.10", 7);
    same(&bench, &should, "compat=0.10, zlib");
}

#[test]
fn external_data_files() {
    for more in [
        "",
        ",data_file_raw=on",
        ",extended_l2=on",
        ",data_file_raw=on,preallocation=metadata",
    ] {
        let mut bench = Bench::empty();
        let data = bench.dir.path().join("data");
        let options = format!("data_file={}{more}", data.display());
        let size = (SIZE + 512).to_string();
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &options,
            &bench.top(),
            &size,
        ]);
        let raw = bench.dir.path().join("content.raw");
        let should = content(&raw, 8);
        let raw = raw.display().to_string();
        qemu_img(&[
            "convert",
            "-n",
            "-f",
            "raw",
            "-O",
            "qcow2",
            &raw,
            &bench.top(),
        ]);
        bench.specs[0].data_file = Some(data.clone());
        same(&bench, &should, more);
        if more.contains("raw") {
            // It may write whole clusters.
            let data = std::fs::read(&data).expect("the data");
            assert!(data[..should.len()] == should, "{more}");
        }
        bench.write(512, 300_032, 9);
        let mut should = should;
        should[512..512 + 300_032].fill(9);
        same(&bench, &should, more);
    }
}

/// An overlay on an overlay on a raw image, each smaller or larger than the next.
#[test]
fn chains_of_different_sizes() {
    for (middle, top) in [("2M", "5M"), ("5M", "2M"), ("1M", "3M")] {
        for options in [
            "compat=1.1",
            "extended_l2=on",
            "compat=0.10",
            "cluster_size=512",
        ] {
            let mut bench = Bench::empty();
            let dir: PathBuf = bench.dir.path().into();
            content(&dir.join("base"), 3);
            let (base, mid) = (
                dir.join("base").display().to_string(),
                dir.join("mid").display().to_string(),
            );
            let create = ["create", "-q", "-f", "qcow2", "-o", options];
            qemu_img(&[&create[..], &["-b", &base, "-F", "raw", &mid, middle]].concat());
            qemu_img(&[&create[..], &["-b", &mid, "-F", "qcow2", &bench.top(), top]].concat());
            bench.specs.push(LayerSpec::new(Format::Qcow2, mid));
            bench.specs.push(LayerSpec::new(Format::Raw, base));
            let story = format!("{options} {middle} {top}");
            assert!(bench.read() == bench.read_raw(), "{story}");
            bench.write(70_144, 200_192, 1);
            assert!(bench.read() == bench.read_raw(), "{story}, written");
            bench.check_clean(&story);
        }
    }
}

#[test]
fn snapshots_and_bitmaps_do_not_show() {
    let bench = Bench::empty();
    let mut should = converted(&bench, &[], "cluster_size=4k", 11);
    qemu_img(&["snapshot", "-c", "s", &bench.top()]);
    qemu_img(&["bitmap", "--add", "-g", "512", &bench.top(), "b"]);
    same(&bench, &should, "as made");
    bench.write(0, 1 << 20, 5);
    should[..1 << 20].fill(5);
    same(&bench, &should, "written");
    qemu_img(&["bitmap", "--remove", &bench.top(), "b"]);
    same(&bench, &should, "removed");
}
