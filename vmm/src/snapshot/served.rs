//! Devices that other processes serve (vhost-user): what that rules out for a snapshot, a restore and a migration.
//!
//! A back end maps the guest's memory by itself. Neither the write protection that tells what was written nor
//! whoever fetches missing pages sees what it does there, so memory is copied in the pause and is all there
//! before a back end gets it.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use skerry_devices::virtio::Held;
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::snapshots::{AfterSnapshot, RestoreMode, SnapshotKind, VmRestore, VmSnapshot};

use super::SnapshotRequestError;
use crate::machine::Machine;

const UNSEEN: &str = "is served by another process, whose writes to memory nobody sees: take a full snapshot without track_dirty";
const UNFROZEN: &str = "is a disk that another process writes to, which alone can freeze it: pause the VM (vm.pause), freeze the disk there, and take the snapshot before vm.resume; or take it with after=stop";
const SECRET: &str = "is served by a process that does not hand its state over (VHOST_USER_PROTOCOL_F_DEVICE_STATE): serve it by one that does, such as a current virtiofsd, or detach it first";
const STAYS: &str = "is served by another process, whose writes to memory nobody sees while it runs: pause the VM, take a snapshot (vm.snapshot), and restore that there";

/// Devices that other processes serve: their names and sockets.
fn served(config: &VmConfig) -> impl Iterator<Item = (&str, &Path)> {
    fn named<'a>(id: &'a Option<String>, socket: Option<&'a Path>) -> (&'a str, &'a Path) {
        (
            id.as_deref().unwrap_or_default(),
            socket.unwrap_or(Path::new("")),
        )
    }
    let disks = config.disks.iter().filter(|d| d.vhost_user);
    let nets = config.net.iter().filter(|n| n.vhost_user);
    disks
        .map(|d| named(&d.id, d.vhost_socket.as_deref()))
        .chain(nets.map(|n| named(&n.id, n.vhost_socket.as_deref())))
        .chain(config.fs.iter().map(|f| named(&f.id, Some(&f.socket))))
}

/// Whether another process serves any of its devices, and so maps its memory.
pub fn is_served(config: &VmConfig) -> bool {
    served(config).next().is_some()
}

/// Refuses what cannot be kept. `runs` is whether the guest runs until the snapshot's pause.
pub fn check_keeps(
    machine: &Machine,
    config: &VmConfig,
    request: &VmSnapshot,
    runs: bool,
) -> Result<(), SnapshotRequestError> {
    let unseen = request.track_dirty || request.kind == SnapshotKind::Diff;
    if let Some((id, _)) = served(config).next().filter(|_| unseen) {
        return Err(refusal(id, UNSEEN));
    }
    check_frozen(machine, request.after, runs)?;
    match holding(machine, Held::Secret) {
        Some(id) => Err(refusal(&id, SECRET)),
        None => Ok(()),
    }
}

/// Refuses to keep a machine whose disks may still be written to by others when its snapshot is taken: a back end
/// finishes what the guest asked of it, and writes to its image as it likes.
pub fn check_frozen(
    machine: &Machine,
    after: AfterSnapshot,
    runs: bool,
) -> Result<(), SnapshotRequestError> {
    let thawed = runs && after == AfterSnapshot::Continue;
    match holding(machine, Held::Disk).filter(|_| thawed) {
        Some(id) => Err(refusal(&id, UNFROZEN)),
        None => Ok(()),
    }
}

/// Refuses to let a machine go whose memory others write to.
pub fn check_migrates(config: &VmConfig) -> Result<(), SnapshotRequestError> {
    match served(config).next() {
        Some((id, _)) => Err(refusal(id, STAYS)),
        None => Ok(()),
    }
}

/// Finds what of a restore cannot be with devices that others serve.
pub fn find_problems(config: &VmConfig, request: &VmRestore, problems: &mut Vec<String>) {
    let Some((id, _)) = served(config).next() else {
        return;
    };
    if request.mode == RestoreMode::Lazy {
        problems.push(format!(
            "`{id}` is served by another process, which cannot share memory that is mapped from a snapshot's file: restore with mode=copy or mode=userfault"
        ));
    }
    if request.track_dirty {
        problems.push(format!(
            "`{id}` is served by another process, whose writes to memory nobody sees: restore without track_dirty"
        ));
    }
}

/// Finds sockets that are not there. Whoever listens is not asked: some serve one connection, and end with it.
pub fn find_sockets(config: &VmConfig, problems: &mut Vec<String>) {
    for (id, path) in served(config) {
        let shown = path.display();
        match path.metadata() {
            Ok(found) if found.file_type().is_socket() => {}
            Ok(_) => problems.push(format!(
                "`{id}` is served by another process, and {shown} is no socket: give the one of its back end"
            )),
            Err(e) => problems.push(format!(
                "`{id}` is served by another process, and its socket {shown} cannot be reached ({e}): start its back end, or give another one's socket"
            )),
        }
    }
}

/// Gives devices that others serve other sockets, as far as is asked.
pub fn identify(config: &mut VmConfig, request: &VmRestore, problems: &mut Vec<String>) {
    for identity in &request.disks {
        let mut disks = config.disks.iter_mut();
        match disks.find(|d| d.id.as_ref() == Some(&identity.id)) {
            Some(disk) if disk.vhost_user => {
                disk.vhost_socket = Some(identity.vhost_socket.clone())
            }
            Some(_) => problems.push(format!(
                "no other process serves disk `{}`: leave its socket out",
                identity.id
            )),
            None => problems.push(format!("the snapshot has no disk `{}`", identity.id)),
        }
    }
    for identity in &request.fs {
        let mut directories = config.fs.iter_mut();
        match directories.find(|f| f.id.as_ref() == Some(&identity.id)) {
            Some(fs) => fs.socket.clone_from(&identity.socket),
            None => problems.push(format!(
                "the snapshot has no shared directory `{}`",
                identity.id
            )),
        }
    }
}

/// A device of which another process has such a thing.
fn holding(machine: &Machine, what: Held) -> Option<String> {
    let functions = machine.board().functions().into_iter();
    let mut functions = functions.map(|(_, function)| function);
    let found = functions.find(|function| function.held() == Some(what));
    found.map(|function| function.name().to_owned())
}

fn refusal(id: &str, why: &'static str) -> SnapshotRequestError {
    SnapshotRequestError::Device {
        id: id.to_owned(),
        why,
    }
}
