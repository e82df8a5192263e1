//! The verdict on an image that was closed.

use std::path::Path;
use std::process::Command;

use skerry_images::chain::{Layer, LayerSpec};
use skerry_images::io::{FileOptions, Port, block_on};
use skerry_images::qcow2::OpenOptions;
use skerry_images::qcow2::check::{Repair, check};

use super::{Data, Shape};

/// `qemu-img` and our own check call the image clean, and `qemu-img` identical with the model.
pub fn judge(dir: &Path, specs: &[LayerSpec], shape: &Shape, model: &[u8]) -> Result<(), String> {
    let top = dir.join("top.qcow2");
    let plain = dir.join("model.raw");
    if shape.data == Data::Raw {
        let raw = std::fs::read(dir.join("data")).map_err(|e| e.to_string())?;
        if raw != model {
            let same = raw.iter().zip(model).take_while(|(a, b)| a == b).count();
            return Err(format!(
                "the raw data file is not what the guest sees: {:#x} and {:#x} bytes, of which {same:#x} are the same",
                raw.len(),
                model.len()
            ));
        }
    }
    let port = Port::new();
    let file = FileOptions {
        readonly: true,
        unlocked: true,
        ..FileOptions::default()
    };
    let options = OpenOptions {
        readonly: true,
        for_check: true,
        ..OpenOptions::default()
    };
    let opened = block_on(&port, specs[0].open_with(&port, &file, &options));
    let Layer::Qcow2(image) = opened.map_err(|e| e.to_string())? else {
        return Err("the top is qcow2".into());
    };
    let report = block_on(&port, check(&image, &port, Repair::None)).map_err(|e| e.to_string())?;
    if !report.clean() {
        return Err(report.messages.join("\n"));
    }
    std::fs::write(&plain, model).map_err(|e| e.to_string())?;
    // Both at once: on two cores, half of the time.
    let check = qemu_img(&["check".as_ref(), "-fqcow2".as_ref(), top.as_ref()]);
    let compare = ["compare", "-fraw", "-Fqcow2"].map(AsRef::as_ref);
    let compare = qemu_img(&[&compare[..], &[plain.as_ref(), top.as_ref()]].concat());
    for child in [check, compare] {
        let out = child
            .and_then(|c| c.wait_with_output())
            .map_err(|e| e.to_string())?;
        if !out.status.success() {
            let (out, err) = (&out.stdout, &out.stderr);
            let text = [out, err].map(|b| String::from_utf8_lossy(b));
            return Err(text.concat());
        }
    }
    Ok(())
}

fn qemu_img(args: &[&std::ffi::OsStr]) -> std::io::Result<std::process::Child> {
    Command::new("qemu-img")
        .args(args)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
}
