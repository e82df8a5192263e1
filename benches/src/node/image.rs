//! A container's image for both runtimes: this host's static busybox, as an OCI layout and as runc's bundle.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What runs in it.
pub const COMMAND: [&str; 3] = ["/bin/sh", "-c", "echo x"];

/// The program, if this host has one that needs no libraries.
pub fn busybox() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut found = std::env::split_paths(&path).map(|folder| folder.join("busybox"));
    let loader = b"/lib64/ld-linux";
    found.find(|path| {
        let program = fs::read(path).unwrap_or(loader.to_vec());
        !program.windows(loader.len()).any(|bytes| bytes == loader)
    })
}

/// runc's bundle in `folder`, and the layout beside it; their paths.
pub fn make(busybox: &Path, folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let (bundle, layout) = (folder.join("bundle"), folder.join("layout"));
    let root = bundle.join("rootfs");
    fs::create_dir_all(root.join("bin")).context("a root")?;
    for name in ["dev", "proc", "sys", "etc", "tmp"] {
        fs::create_dir(root.join(name)).context("a root")?;
    }
    fs::copy(busybox, root.join("bin/busybox")).context("busybox")?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).context("a link")?;
    let layer = folder.join("layer.tar");
    let packed = Command::new("tar")
        .arg("-cf")
        .arg(&layer)
        .arg("-C")
        .arg(&root)
        .arg(".")
        .status();
    ensure!(
        packed.is_ok_and(|status| status.success()),
        "tar is missing or failed"
    );
    write_layout(&layout, &fs::read(&layer).context("the layer")?)?;
    Ok((layout, bundle))
}

/// runc's own configuration, with our command.
pub fn configure(runc: &Path, bundle: &Path) -> Result<()> {
    let made = Command::new(runc)
        .arg("spec")
        .arg("--bundle")
        .arg(bundle)
        .output();
    let made = made.context("runc")?;
    if !made.status.success() {
        bail!("runc spec: {}", String::from_utf8_lossy(&made.stderr));
    }
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?).context("runc's spec")?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(COMMAND);
    fs::write(&path, config.to_string()).context("runc's spec")
}

fn write_layout(layout: &Path, layer: &[u8]) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).context("a layout")?;
    let blob = |kind: &str, bytes: &[u8]| -> Result<Value> {
        let digest = Sha256::digest(bytes);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&digest), bytes).context("a blob")?;
        let kind = format!("application/vnd.oci.image.{kind}");
        Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
    };
    let layer = blob("layer.v1.tar", layer)?;
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Cmd": COMMAND, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = blob("config.v1+json", config.to_string().as_bytes())?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] });
    let manifest = blob("manifest.v1+json", manifest.to_string().as_bytes())?;
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).context("an index")?;
    let version = json!({ "imageLayoutVersion": "1.0.0" });
    fs::write(layout.join("oci-layout"), version.to_string()).context("a layout")
}
