//! Takes bytes for an image and does everything with it that can be done.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skerry_images::Result;
use skerry_images::chain::{Layer, Stack};
use skerry_images::io::sim::{Dice, SimDisk, Simulator};
use skerry_images::io::{Buffer, ImageFile, Port};
use skerry_images::qcow2::check::{Repair, check};
use skerry_images::qcow2::{Image, OpenOptions};

async fn open(port: &Port, len: u64, for_check: bool) -> Result<Stack> {
    let options = OpenOptions {
        cache: 0,
        for_check,
        ..OpenOptions::default()
    };
    let file = ImageFile::simulated(0, len, false);
    let image = Image::open(port, file, None, &options).await?;
    Ok(Stack::new(vec![Layer::Qcow2(image)]))
}

/// Reads, writes, clears, resizes and closes. Errors are answers, too.
async fn work(port: Port, len: u64) {
    let Ok(stack) = open(&port, len, false).await else {
        return;
    };
    let size = stack.size();
    let data = Buffer::new(8 << 10);
    for at in [0, size / 2 & !511, size.saturating_sub(8 << 10) & !511] {
        let span = data.span().slice(0, size.saturating_sub(at));
        if span.is_empty() {
            continue;
        }
        let _ = stack.read(&port, at, &span).await;
        let _ = stack.write(&port, at, &span).await;
        let _ = stack.zero(&port, at, span.len(), true).await;
        let _ = stack.write(&port, at, &span).await;
        let _ = stack.discard(&port, at, span.len()).await;
    }
    let _ = stack.flush(&port).await;
    let grown = size.saturating_add(1 << 16) / 512 * 512;
    let _ = stack.resize(&port, grown).await;
    let _ = stack.resize(&port, size / 2 / 512 * 512).await;
    if let Layer::Qcow2(image) = stack.top() {
        let _ = image.snapshot_create(&port, "x", (0, 0)).await;
        let _ = image.snapshot_delete(&port, "1").await;
        let _ = image.bitmaps(&port).await;
    }
    let _ = stack.close(&port).await;
}

async fn mend(port: Port, len: u64) {
    for repair in [Repair::None, Repair::Leaks, Repair::All] {
        let Ok(stack) = open(&port, len, true).await else {
            return;
        };
        if let Layer::Qcow2(image) = stack.top() {
            let _ = check(image, &port, repair).await;
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut disk = SimDisk::default();
    disk.add(bytes);
    let len = bytes.len() as u64;
    let mut sim = Simulator::new(disk.clone(), Dice(len));
    let port = sim.port.clone();
    assert!(sim.finish(Box::pin(work(port, len))).is_some(), "it hangs");
    let mut sim = Simulator::new(disk, Dice(len));
    let port = sim.port.clone();
    assert!(sim.finish(Box::pin(mend(port, len))).is_some(), "it hangs");
});
