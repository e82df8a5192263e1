//! An OCI image of this host's static busybox, made on the fly.

use std::fs;
use std::io::{Error, Result};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Programs that the image has, beside `sh`.
const APPLETS: [&str; 27] = [
    "cat", "chmod", "dd", "echo", "env", "grep", "head", "hostname", "id", "ip", "kill", "ls",
    "ping", "mkdir", "mknod", "mount", "printf", "ps", "pwd", "seq", "sleep", "stty", "tail",
    "touch", "true", "tty", "wc",
];

/// This host's busybox, which has to be linked statically.
fn busybox() -> Result<Vec<u8>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("busybox"));
    let found = found.filter_map(|path| fs::read(path).ok()).next();
    let remedy = "install Debian's package busybox-static";
    let program = found.ok_or_else(|| Error::other(format!("no busybox: {remedy}")))?;
    let loader = b"/lib64/ld-linux";
    if program.windows(loader.len()).any(|bytes| bytes == loader) {
        return Err(Error::other(format!(
            "this busybox needs libraries: {remedy}"
        )));
    }
    Ok(program)
}

/// Makes an OCI image layout with one image, `busybox`, of two layers: this host's static busybox, and files.
///
/// # Errors
/// If there is no such busybox, or the layout cannot be written.
pub fn layout(path: &Path) -> Result<()> {
    fs::create_dir_all(path.join("blobs/sha256"))?;
    let mut base = tar::Builder::new(Vec::new());
    for (folder, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("tmp", 0o1777),
        ("root", 0o700),
    ] {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        base.append_data(&mut header, folder, &b""[..])?;
    }
    let program = busybox()?;
    let mut entry = header(tar::EntryType::Regular, 0o755, program.len());
    base.append_data(&mut entry, "bin/busybox", &program[..])?;
    for applet in APPLETS.iter().chain(&["sh"]) {
        let mut entry = header(tar::EntryType::Symlink, 0o777, 0);
        base.append_link(&mut entry, format!("bin/{applet}"), "busybox")?;
    }
    file(
        &mut base,
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/tmp:/bin/sh\n",
    )?;
    file(&mut base, "etc/below", "of the layer below")?;
    let mut top = tar::Builder::new(Vec::new());
    file(&mut top, "etc/.wh.below", "")?;
    file(&mut top, "etc/above", "of the layer above")?;
    let layers = [base.into_inner()?, top.into_inner()?];
    let diff_ids = layers
        .each_ref()
        .map(|layer| format!("sha256:{}", digest(layer)));
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let layers = [blob(path, kind, &layers[0])?, blob(path, kind, &layers[1])?];
    let config = json!({
        "architecture": match std::env::consts::ARCH { "aarch64" => "arm64", _ => "amd64" },
        "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin", "FROM=image"], "WorkingDir": "/srv/made"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob(
        path,
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    )?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let mut manifest = blob(path, kind, manifest.to_string().as_bytes())?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "busybox"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(path.join("index.json"), index.to_string())?;
    let version = json!({"imageLayoutVersion": "1.0.0"});
    fs::write(path.join("oci-layout"), version.to_string())
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header
}

fn file(layer: &mut tar::Builder<Vec<u8>>, name: &str, text: &str) -> Result<()> {
    let mut entry = header(tar::EntryType::Regular, 0o644, text.len());
    layer.append_data(&mut entry, name, text.as_bytes())
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn blob(layout: &Path, kind: &str, bytes: &[u8]) -> Result<Value> {
    let digest = digest(bytes);
    fs::write(layout.join("blobs/sha256").join(&digest), bytes)?;
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
}
