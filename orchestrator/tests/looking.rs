//! What `skerry image` says of QEMU's images of every shape is what `qemu-img` says.

mod desk;

use desk::{Desk, SHAPES, Subject};

fn every_subject(look: impl Fn(&Desk, &Subject)) {
    let desk = Desk::new();
    for index in 0..SHAPES.len() {
        look(&desk, &desk.subject(index));
    }
}

#[test]
fn map_agrees() {
    every_subject(|desk, s| {
        let theirs = desk.qemu(&format!("map --output json {}", s.file));
        let ours = desk.skerry(&format!("map --output json {} {}", s.file, s.flags));
        assert_eq!(ours.json(), theirs.json(), "{}", s.options);
    });
}

#[test]
fn info_agrees() {
    every_subject(|desk, s| {
        let mut theirs = desk.qemu(&format!("info --output json {}", s.file)).json();
        let ours = desk.skerry(&format!("info --output json {}", s.file));
        let theirs = theirs.as_object_mut().expect("an object");
        // We open nothing that was not named.
        theirs.remove("children");
        theirs.remove("full-backing-filename");
        assert_eq!(ours.json().as_object(), Some(&*theirs), "{}", s.options);
    });
}

#[test]
fn check_agrees() {
    every_subject(|desk, s| {
        let theirs = desk.try_qemu(&format!("check --output json {}", s.file));
        let data = match s.options.contains("data_file") {
            true => format!("--data-file {}.data", s.file),
            false => String::new(),
        };
        let ours = desk.try_skerry(&format!("check --output json {} {data}", s.file));
        assert_eq!(ours.code, theirs.code, "{}", s.options);
        let (mut ours, mut theirs) = (ours.json(), theirs.json());
        for answer in [&mut ours, &mut theirs] {
            // Figures that say how the image is laid out, not whether it is sound.
            let answer = answer.as_object_mut().expect("an object");
            answer.remove("fragmented-clusters");
            if !data.is_empty() {
                answer.remove("allocated-clusters");
            }
        }
        assert_eq!(ours, theirs, "{}", s.options);
    });
}

#[test]
fn measure_agrees() {
    every_subject(|desk, s| {
        for options in [
            "",
            "-o cluster_size=4k",
            "-o extended_l2=on,cluster_size=128k",
        ] {
            let theirs = desk.qemu(&format!(
                "measure -O qcow2 {options} --output json {}",
                s.file
            ));
            let ours = desk.skerry(&format!(
                "measure -O qcow2 {options} --output json {} {}",
                s.file, s.flags
            ));
            let mut theirs = theirs.json();
            theirs.as_object_mut().expect("an object").remove("bitmaps");
            assert_eq!(ours.json(), theirs, "{} {options}", s.options);
        }
    });
    let desk = Desk::new();
    for size in ["0", "1M", "10G", "3T"] {
        for options in [
            "",
            "-o cluster_size=512k,refcount_bits=64",
            "-o preallocation=full",
        ] {
            let args = format!("measure -O qcow2 {options} --output json --size {size}");
            assert_eq!(desk.skerry(&args).json(), desk.qemu(&args).json(), "{args}");
        }
    }
}

#[test]
fn compare_finds_what_differs() {
    let desk = Desk::new();
    desk.skerry("create -q a 8M");
    desk.skerry("create -q -f raw b 8M");
    assert_eq!(desk.try_skerry("compare a -F raw b").code, 0);
    desk.io("qcow2", "a", &["write -P 0 1M 64k"]);
    assert_eq!(desk.try_skerry("compare a -F raw b").code, 0);
    assert_eq!(desk.try_skerry("compare -s a -F raw b").code, 1);
    desk.io("raw", "b", &["write -P 5 5M 1k"]);
    let answer = desk.try_skerry("compare a -F raw b");
    assert_eq!(answer.code, 1);
    assert_eq!(answer.out, desk.try_qemu("compare a -F raw b").out);
    assert_eq!(desk.try_skerry("compare a nowhere").code, 2);
    desk.skerry("create -q long 9M");
    desk.skerry("create -q short 8M");
    assert_eq!(desk.try_skerry("compare short long").code, 0);
    assert_eq!(desk.try_skerry("compare -s short long").code, 1);
    desk.io("qcow2", "long", &["write -P 1 8700k 4k"]);
    assert_eq!(desk.try_skerry("compare short long").code, 1);
}

#[test]
fn check_finds_and_mends_leaks() {
    let desk = Desk::new();
    desk.qemu("create -q -f qcow2 a 8M");
    desk.io("qcow2", "a", &["write -P 1 0 1M"]);
    // Without its first L2 table, what that named is leaked.
    let path = desk.path().join("a");
    let mut bytes = std::fs::read(&path).expect("the image");
    let l1 = u64::from_be_bytes(bytes[40..48].try_into().expect("eight bytes")) as usize;
    bytes[l1..l1 + 8].fill(0);
    std::fs::write(&path, bytes).expect("the image");
    let theirs = desk.try_qemu("check --output json a");
    let ours = desk.try_skerry("check --output json a");
    assert_eq!(ours.code, theirs.code);
    assert_eq!(ours.json()["leaks"], theirs.json()["leaks"]);
    assert_eq!(ours.code, 3);
    let mended = desk.try_skerry("check -r leaks --output json a");
    assert_eq!(mended.code, 0);
    assert_eq!(mended.json()["leaks-fixed"], 17);
    desk.qemu("check a");
}

#[test]
fn a_reader_that_leaves_ends_a_command_without_a_word() {
    use std::process::{Command, Stdio};
    let mut command = Command::new(env!("CARGO_BIN_EXE_skerry"));
    // More than a pipe holds.
    command.args(["completion", "zsh"]);
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("skerry starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("skerry ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
