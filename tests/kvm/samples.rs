//! Snapshots that earlier versions wrote: each format has a sample below `tests/samples`, which every later
//! version restores.
//!
//! A new format needs a new sample: `SKERRY_NEW_SAMPLE=DIR` makes `a_sample_can_be_taken` write one there.

use std::path::{Path, PathBuf};

use skerry_tests::tiny::{self, ALPHABET};
use skerry_tests::vmm::{Builder, SHORT};
use skerry_vmm_api::snapshots::VmSnapshot;
use tempfile::TempDir;

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples")
}

/// Goes on from a snapshot of the smallest guest, which says the rest of the alphabet, and then all of it.
fn goes_on(snapshot: &Path, mode: &str) {
    // Whatever took it had another CPU. The guest is of few instructions, which all CPUs have.
    let option = format!(
        "source_url=file://{},mode={mode},ignore_cpu=on",
        snapshot.display()
    );
    let vmm = Builder::new(&["--no-probe", "--serial", "tty"])
        .flag("--restore", option)
        .start();
    vmm.expect_nth_line(ALPHABET, 2, SHORT);
    let lines = vmm.lines();
    assert!(
        ALPHABET.ends_with(&lines[0]),
        "it began with `{}`",
        lines[0]
    );
}

#[test]
fn a_snapshot_of_every_format_version_goes_on() {
    let mut found = 0;
    for entry in std::fs::read_dir(samples()).expect("the samples") {
        let path = entry.expect("a sample").path();
        if !path.join("state").exists() {
            continue;
        }
        for mode in ["copy", "lazy", "userfault"] {
            goes_on(&path, mode);
        }
        found += 1;
    }
    assert_eq!(
        found,
        skerry_snapshot::FORMAT as usize,
        "a format has no sample"
    );
}

#[test]
fn a_sample_can_be_taken() {
    let folder = TempDir::new().expect("a folder");
    let target = match std::env::var_os("SKERRY_NEW_SAMPLE") {
        Some(target) => PathBuf::from(target),
        None => folder.path().join("sample"),
    };
    // The name is kept in the sample: there it says nothing of whoever took it.
    let kernel = match std::env::var_os("SKERRY_NEW_SAMPLE") {
        Some(_) => PathBuf::from("/tmp/alphabet.elf"),
        None => folder.path().join("alphabet.elf"),
    };
    tiny::write(&kernel);
    let vmm = Builder::new(&["--no-probe", "--serial", "tty", "--console", "off"])
        .flag("--kernel", &kernel)
        .flag("--memory", "size=2M")
        .with_api()
        .start();
    vmm.expect_nth_line(ALPHABET, 2, SHORT);
    let request = serde_json::json!({"destination_url": format!("file://{}", target.display())});
    let request: VmSnapshot = serde_json::from_value(request).expect("a request");
    vmm.api()
        .with(async |c| c.snapshot(&request).await)
        .expect("vm.snapshot");
    drop(vmm);
    goes_on(&target, "lazy");
}
