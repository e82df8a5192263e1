//! The peer: `qemu-img bench`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::BLOCK;
use super::load::Load;

/// Requests a second; none if this `qemu-img` cannot do it that way.
pub fn rate(image: &Path, engine: &str, load: &Load) -> Result<Option<f64>> {
    let mut command = Command::new("qemu-img");
    command
        .args(["bench", "-f", "qcow2", "-t", "writeback", "-i", engine])
        .args(["-c", &load.requests.to_string()])
        .args(["-d", &load.depth.to_string()])
        .args(["-s", &BLOCK.to_string()])
        .args(["-S", &load.stride.to_string()]);
    if load.write {
        command.arg("-w");
    }
    let out = command
        .arg(image)
        .output()
        .context("cannot run qemu-img: install qemu-utils, or give --no-qemu")?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr);
        ensure!(engine != "threads", "qemu-img bench: {why}");
        return Ok(None);
    }
    let seconds = text
        .split("Run completed in ")
        .nth(1)
        .and_then(|t| t.split(' ').next())
        .and_then(|n| n.parse::<f64>().ok())
        .with_context(|| format!("qemu-img bench says: {text}"))?;
    Ok(Some(load.requests as f64 / seconds))
}
