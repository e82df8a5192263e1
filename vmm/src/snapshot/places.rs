//! Where a machine's files are: its disks' new layers, and all that it opens, wherever the monitor was
//! started.

use std::path::{Path, PathBuf};

use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::{DiskConfig, LayerConfig};
use skerry_vmm_api::snapshots::DiskOverlay;

use crate::disks::DiskError;

/// Bytes of a file's name that are made of two others; file systems take 255, and suffixes come behind.
const MAX_NAME: usize = 230;

/// Where the disks' new layers go: where was asked, or beside the layer that is frozen.
pub fn overlay_paths(
    config: &VmConfig,
    asked: &[DiskOverlay],
    target: &Path,
) -> Result<Vec<DiskOverlay>, DiskError> {
    let id = |disk: &DiskConfig| disk.id.clone().unwrap_or_default();
    for overlay in asked {
        let disk = config.disks.iter().find(|disk| id(disk) == overlay.id);
        let disk = disk.ok_or_else(|| DiskError::NoDisk(overlay.id.clone()))?;
        let what = match (disk.vhost_user, disk.readonly) {
            (true, _) => "another process serves it, and makes its layers",
            (_, true) => "it is read-only, so a new layer would never be written",
            _ => continue,
        };
        return Err(DiskError::Invalid {
            id: overlay.id.clone(),
            what: what.into(),
        });
    }
    let snapshot = stem(target);
    let written = config.disks.iter().filter(|d| is_layered(d));
    let place = |disk: &DiskConfig| {
        let id = id(disk);
        let asked = asked.iter().find(|overlay| overlay.id == id);
        asked.cloned().unwrap_or_else(|| DiskOverlay {
            id,
            path: disk.path.with_file_name(layer_name(disk, &snapshot)),
        })
    };
    Ok(written.map(place).collect())
}

/// Whether a disk is written by this process, and so frozen by a new layer.
pub fn is_layered(disk: &DiskConfig) -> bool {
    !disk.readonly && !disk.vhost_user
}

/// `<file name>-<snapshot>.qcow2`. Of a layer that got its name so, the first part is what it was before, so
/// that names do not grow from snapshot to snapshot.
fn layer_name(disk: &DiskConfig, snapshot: &str) -> String {
    let mut name = stem(&disk.path);
    for layer in &disk.backing {
        let below = stem(&layer.full().path);
        let rest = name.strip_prefix(&below);
        if rest.is_some_and(|rest| rest.starts_with('-')) {
            name = below;
        }
    }
    let room = MAX_NAME.saturating_sub(snapshot.len());
    name.truncate(name.floor_char_boundary(room));
    format!("{name}-{snapshot}.qcow2")
}

fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

/// The same machine for a monitor that was started in another directory.
pub fn absolute(config: &VmConfig) -> VmConfig {
    let mut config = config.clone();
    let whole = |path: &mut PathBuf| {
        if let Ok(absolute) = std::path::absolute(&path) {
            *path = absolute;
        }
    };
    for disk in config.disks.iter_mut() {
        if disk.vhost_user {
            disk.vhost_socket.iter_mut().for_each(whole);
            continue;
        }
        whole(&mut disk.path);
        disk.data_file.iter_mut().for_each(whole);
        for layer in &mut disk.backing {
            let mut full = layer.full();
            whole(&mut full.path);
            full.data_file.iter_mut().for_each(whole);
            *layer = LayerConfig::Full(full);
        }
    }
    let nets = config.net.iter_mut();
    nets.filter_map(|net| net.vhost_socket.as_mut())
        .chain(config.fs.iter_mut().map(|fs| &mut fs.socket))
        .for_each(whole);
    let payload = &mut config.payload;
    [&mut payload.kernel, &mut payload.initramfs]
        .into_iter()
        .flatten()
        .for_each(whole);
    if let Some(vsock) = &mut config.vsock {
        whole(&mut vsock.socket);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(layers: &[&str]) -> DiskConfig {
        let mut layers = layers.iter();
        DiskConfig {
            path: layers.next().unwrap().into(),
            id: Some("d".into()),
            backing: layers.map(|l| LayerConfig::Text((*l).into())).collect(),
            ..DiskConfig::default()
        }
    }

    #[test]
    fn names_do_not_grow() {
        assert_eq!(
            layer_name(&disk(&["/vm/base.img"]), "one"),
            "base-one.qcow2"
        );
        let two = disk(&["/vm/base-one.qcow2", "raw:/vm/base.img"]);
        assert_eq!(layer_name(&two, "two"), "base-two.qcow2");
        let three = disk(&[
            "/vm/base-two.qcow2",
            "/vm/base-one.qcow2",
            "raw:/vm/base.img",
        ]);
        assert_eq!(layer_name(&three, "three"), "base-three.qcow2");
        // A name of its own stays.
        let own = disk(&["/vm/web.qcow2", "raw:/images/base.img"]);
        assert_eq!(layer_name(&own, "one"), "web-one.qcow2");
        let longer = disk(&["/vm/baseline.qcow2", "raw:/images/base.img"]);
        assert_eq!(layer_name(&longer, "one"), "baseline-one.qcow2");
        let long = disk(&[&format!("/vm/{}.img", "ä".repeat(120))]);
        let name = layer_name(&long, "one");
        assert!(
            name.len() <= MAX_NAME + 7 && name.ends_with("ä-one.qcow2"),
            "{name}"
        );
    }

    #[test]
    fn layers_of_other_disks_are_refused() {
        let mut config = VmConfig::default();
        config.disks.push(disk(&["/vm/base.img"]));
        let asked = |id: &str| DiskOverlay {
            id: id.into(),
            path: "/vm/x".into(),
        };
        let paths = |config: &VmConfig, id| {
            overlay_paths(config, &[asked(id)], Path::new("/snapshots/one"))
        };
        assert_eq!(paths(&config, "d").unwrap(), [asked("d")]);
        assert!(matches!(paths(&config, "e"), Err(DiskError::NoDisk(id)) if id == "e"));
        config.disks[0].readonly = true;
        assert!(matches!(
            paths(&config, "d"),
            Err(DiskError::Invalid { .. })
        ));
    }

    #[test]
    fn disks_that_others_serve_have_no_layers_but_sockets() {
        let mut config = VmConfig::default();
        config.disks.push(DiskConfig {
            vhost_user: true,
            vhost_socket: Some("disk.sock".into()),
            ..disk(&[""])
        });
        let paths = overlay_paths(&config, &[], Path::new("/snapshots/one"));
        assert_eq!(paths.unwrap(), []);
        let asked = DiskOverlay {
            id: "d".into(),
            path: "/vm/x".into(),
        };
        let refused = overlay_paths(&config, &[asked], Path::new("/snapshots/one"));
        assert!(matches!(refused, Err(DiskError::Invalid { .. })));
        let here = std::env::current_dir().unwrap();
        let socket = absolute(&config).disks.remove(0).vhost_socket;
        assert_eq!(socket, Some(here.join("disk.sock")));
    }

    #[test]
    fn paths_become_absolute() {
        let mut config = VmConfig::default();
        config.disks.push(disk(&["top.qcow2", "raw:base.img"]));
        let absolute = absolute(&config);
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute.disks[0].path, here.join("top.qcow2"));
        let below = absolute.disks[0].backing[0].full();
        assert_eq!(below.path, here.join("base.img"));
    }
}
