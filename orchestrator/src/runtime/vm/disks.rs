//! A VM's disks: a layer of its own on each base, made once and kept as long as the VM is declared.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use skerry_images::Error;
use skerry_images::chain::LayerSpec;
use skerry_images::io::{FileOptions, ImageFile, Port, block_on};
use skerry_images::qcow2::{CreateOptions, create, read_header};

use super::home::Home;
use crate::firstboot::{Seed, write_disk};
use crate::model::{Disk, DiskFormat, MicroVmSpec, SEED};
use crate::runtime::{RuntimeError, system};
use crate::volumes::Chains;

/// What the monitor is told of each disk: its flag. Those that are volumes are in `chains`.
pub fn ensure(
    home: &Home,
    spec: &MicroVmSpec,
    chains: &Chains,
) -> Result<Vec<String>, RuntimeError> {
    let one = |disk: &Disk| match chains.get(&disk.name) {
        Some(layers) => volume(disk, layers),
        None => ensure_one(home, disk),
    };
    spec.disks.iter().map(one).collect()
}

/// The flag of a disk that is a volume.
fn volume(disk: &Disk, layers: &[LayerSpec]) -> Result<String, RuntimeError> {
    for layer in layers {
        quotable(&disk.name, &layer.path)?;
    }
    let mut below = layers
        .iter()
        .map(|layer| format!("{}:{}", layer.format.name(), layer.path.display()));
    // It always has a layer of its own on top.
    let _top = below.next();
    let below: Vec<String> = below.collect();
    let path = layers.first().map(|top| top.path.display().to_string());
    let (id, path) = (&disk.name, path.unwrap_or_default());
    let below = match below.is_empty() {
        true => String::new(),
        false => format!(",backing=[{}]", below.join(",")),
    };
    let readonly = if disk.readonly { ",readonly=on" } else { "" };
    Ok(format!(
        "path={path},image_type=qcow2{below}{readonly},id={id},serial={id}"
    ))
}

/// The flag of the disk that tells a VM what it is, which is its last.
pub fn seed(home: &Home, seed: Option<&Seed>) -> Result<Option<String>, RuntimeError> {
    let Some(seed) = seed else { return Ok(None) };
    let path = home.seed();
    write_disk(&path, seed)?;
    let path = path.display();
    Ok(Some(format!(
        "path={path},image_type=raw,readonly=on,id={SEED},serial={SEED}"
    )))
}

fn ensure_one(home: &Home, disk: &Disk) -> Result<String, RuntimeError> {
    let base = disk.base.as_deref();
    for path in [base].into_iter().flatten() {
        quotable(&disk.name, path)?;
    }
    let format = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    let id = &disk.name;
    if let (true, Some(base)) = (disk.readonly, base) {
        let path = base.display();
        return Ok(format!(
            "path={path},image_type={format},readonly=on,id={id},serial={id}"
        ));
    }
    let path = home.disk(&disk.name);
    if !path.exists() {
        make(&path, disk, format)?;
    }
    let below = base.map_or(String::new(), |base| {
        format!(",backing=[{format}:{}]", base.display())
    });
    Ok(format!(
        "path={},image_type=qcow2{below},id={id},serial={id}",
        path.display()
    ))
}

/// A path in a flag cannot have what separates flags.
fn quotable(disk: &str, path: &Path) -> Result<(), RuntimeError> {
    let text = path.to_str().unwrap_or("\u{fffd}");
    match text.contains([',', '[', ']', '"', '\u{fffd}']) {
        true => Err(RuntimeError::Unfit(format!(
            "disk `{disk}`: its path {} has a comma, bracket or quote: give it another name",
            path.display()
        ))),
        false => Ok(()),
    }
}

fn make(path: &Path, disk: &Disk, format: &str) -> Result<(), RuntimeError> {
    let failed = |source: Error| RuntimeError::Disk {
        disk: disk.name.clone(),
        source,
    };
    let port = Port::new();
    let below = match &disk.base {
        Some(base) => {
            let options = FileOptions {
                readonly: true,
                unlocked: true,
                ..FileOptions::default()
            };
            let file = ImageFile::open(base, &options).map_err(failed)?;
            Some(match disk.format {
                DiskFormat::Raw => file.end().next_multiple_of(512),
                DiskFormat::Qcow2 => {
                    block_on(&port, read_header(&port, &file))
                        .map_err(failed)?
                        .size
                }
            })
        }
        None => None,
    };
    let wanted = disk.size.map(|size| size.whole().next_multiple_of(512));
    let size = match (wanted, below) {
        (Some(wanted), Some(below)) if wanted < below => {
            return Err(RuntimeError::Unfit(format!(
                "disk `{}`: its size is {wanted} bytes, and its base has {below}: a disk cannot be smaller than its base",
                disk.name
            )));
        }
        (Some(wanted), _) => wanted,
        (None, below) => below.unwrap_or(0),
    };
    let options = match &disk.base {
        Some(base) => CreateOptions::overlay(size, (base.display().to_string(), format.to_owned())),
        None => CreateOptions::new(size),
    };
    // It gets its name when it is whole.
    let partial = path.with_extension("partial");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial);
    drop(file.map_err(system(format!("make {}", partial.display())))?);
    let written = ImageFile::open(&partial, &FileOptions::default()).and_then(|file| {
        block_on(&port, async {
            create(&port, &file, None, &options).await?;
            port.flush(&file).await
        })
    });
    if let Err(e) = written {
        // On a full disk every byte counts.
        let _ = std::fs::remove_file(&partial);
        return Err(failed(e));
    }
    std::fs::rename(&partial, path).map_err(system(format!("name {}", path.display())))
}
