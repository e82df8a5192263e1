//! The files that a snapshot's disks consist of.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::{DiskConfig, ImageType};

use super::output::on_a_line;

/// A layer of a disk.
pub struct Layer {
    /// Its file.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageType,
    /// The file with its data, if that is not in its own.
    pub data_file: Option<PathBuf>,
}

/// A disk's layers, the uppermost first. One that another process serves has none.
pub fn layers(disk: &DiskConfig) -> Vec<Layer> {
    if disk.vhost_user {
        return Vec::new();
    }
    let top = Layer {
        path: disk.path.clone(),
        format: disk.format(),
        data_file: disk.data_file.clone(),
    };
    let below = disk.backing.iter().map(|layer| {
        let layer = layer.full();
        Layer {
            path: layer.path,
            format: layer.image_type,
            data_file: layer.data_file,
        }
    });
    std::iter::once(top).chain(below).collect()
}

/// What is found of disks.
#[derive(Default)]
pub struct Findings {
    /// Files that are there.
    pub there: usize,
    /// Files that are not, and why.
    pub missing: Vec<String>,
}

/// Looks for the files of all disks. Nothing is opened.
pub fn look(config: &VmConfig) -> Findings {
    let mut findings = Findings::default();
    for disk in &config.disks {
        for layer in layers(disk) {
            for path in std::iter::once(layer.path).chain(layer.data_file) {
                match lacking(&path) {
                    None => findings.there += 1,
                    Some(why) => {
                        let id = disk.id.as_deref().unwrap_or_default();
                        let from = match path.is_relative() {
                            true => " (the monitor's working directory is where it begins)",
                            false => "",
                        };
                        let path = path.display();
                        let missing = format!("disk `{id}` needs {path}{from}, which {why}");
                        findings.missing.push(on_a_line(&missing));
                    }
                }
            }
        }
    }
    findings
}

/// Why a file cannot be a layer. Opening it would tell as well, but a device may act when it is opened.
fn lacking(path: &Path) -> Option<String> {
    use std::os::unix::fs::FileTypeExt;
    let kind = match path.metadata() {
        Ok(found) => found.file_type(),
        Err(e) => return Some(format!("cannot be found: {e}")),
    };
    if !kind.is_file() && !kind.is_block_device() {
        return Some("is neither a file nor a block device".into());
    }
    let readable = access(path, Access::READ_OK);
    readable.err().map(|e| format!("cannot be read: {e}"))
}
