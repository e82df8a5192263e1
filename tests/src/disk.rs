//! Disk images, and what a guest has left on them.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crate::eventually;

/// Makes a sparse image of `size` bytes.
pub fn create(path: &Path, size: u64) {
    File::create(path)
        .and_then(|f| f.set_len(size))
        .expect("an image");
}

/// FNV-1a (64 bits) of a whole image, as the payload prints it.
pub fn checksum(path: &Path) -> String {
    let mut file = File::open(path).expect("an image");
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).expect("an image");
        if n == 0 {
            return format!("{hash:#018x}");
        }
        for byte in &buffer[..n] {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Bytes that an image occupies.
pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).expect("an image").blocks() * 512
}

/// Runs `qemu-img`, which must succeed: its words, then files, then more words. What it prints.
pub fn qemu_img(before: &[&str], files: &[&Path], after: &[&str]) -> String {
    let out = std::process::Command::new("qemu-img")
        .args(before)
        .args(files)
        .args(after)
        .output()
        .expect("qemu-img runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "qemu-img {before:?} {files:?}: {text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    text
}

/// Panics unless a qcow2 image that a dead monitor left has no corruption: at most leaked clusters, which
/// `qemu-img check` says by 3.
pub fn check(image: &Path) {
    let run = || {
        std::process::Command::new("qemu-img")
            .args(["check", "-f", "qcow2"])
            .arg(image)
            .output()
            .expect("qemu-img runs")
    };
    // The kernel lets go of a dead process's ring, and of the locks of files in it, a little later.
    let out = eventually("the locks are gone", Duration::from_secs(60), || {
        let out = run();
        let locked = String::from_utf8_lossy(&out.stderr).contains("lock");
        (!locked).then_some(out)
    });
    assert!(
        matches!(out.status.code(), Some(0 | 3)),
        "{}: {}{}",
        image.display(),
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}
