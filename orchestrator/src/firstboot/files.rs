//! A container's files with what a VM finds on its disk.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Seed, SeedError};

/// Writes a container's files into a folder of the host's: each, and where the container sees it, to be read alone.
///
/// # Errors
/// If they cannot be written.
pub fn write_files(folder: &Path, seed: &Seed) -> Result<Vec<(PathBuf, PathBuf)>, SeedError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| SeedError::Write { path, source }
    };
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o755);
    builder.create(folder).map_err(failed(folder))?;
    let metadata = json!({
        "instanceId": seed.instance_id,
        "hostname": seed.hostname,
        "sshKeys": seed.ssh_keys,
        "userData": seed.user_data,
    });
    let keys: String = seed.ssh_keys.iter().map(|key| format!("{key}\n")).collect();
    let mut files = Vec::new();
    for (name, target, text) in [
        ("hostname", "/etc/hostname", format!("{}\n", seed.hostname)),
        (
            "metadata.json",
            "/run/skerry/metadata.json",
            format!("{metadata:#}\n"),
        ),
        ("authorized_keys", "/run/skerry/authorized_keys", keys),
    ] {
        let path = folder.join(name);
        // A container that runs sees the file that it began with: another one takes its place.
        let new = folder.join(format!("{name}.new"));
        fs::write(&new, text).map_err(failed(&new))?;
        fs::rename(&new, &path).map_err(failed(&path))?;
        files.push((path, PathBuf::from(target)));
    }
    Ok(files)
}
