//! Restoring a snapshot: what would be done, and everything that stands in the way.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use skerry_devices::virtio::net::Tap;
use skerry_snapshot::{Chain, Directory, Header, MemoryFile, Range, WorkingSet, coalesce};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::DiskConfig;
use skerry_vmm_api::snapshots::{DiskOverlay, RestoreMode, VmRestore, directory};

use super::places::is_layered;
use super::{Kept, Origin, SnapshotRequestError, served};
use crate::arch;
use crate::disks;
use crate::memory::Restored;
use crate::shell::Offer;
use crate::validate;

/// Written by a restore in place: the disks went on without the snapshot.
const USED: &str = "used";

/// A restore, decided.
pub struct Plan {
    /// What it is made of.
    pub chain: Chain,
    /// The machine's state.
    pub kept: Kept,
    /// What the machine is now.
    pub config: VmConfig,
    /// New layers that have to be made: their disks' sizes and what is below is in the configuration.
    overlays: Vec<(usize, PathBuf)>,
    directory: Directory,
    /// Disks will be written without new layers.
    in_place: bool,
}

impl Plan {
    /// Finds out what a request comes to. Damage is an error; what does not fit this host is listed.
    pub fn make(
        request: &VmRestore,
        offer: &Offer,
    ) -> Result<(Plan, Vec<String>), SnapshotRequestError> {
        let path = directory(&request.source_url)
            .ok_or_else(|| SnapshotRequestError::Url(request.source_url.clone()))?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let directory = Directory::new(path);
        let mut chain = Chain::open(&directory)?;
        let mut kept = Kept::take(&mut chain.state)?;
        if request.ignore_cpu {
            for cpu in &mut kept.cpus {
                arch::accommodate(cpu, &offer.features);
            }
        }
        let all_read = request.mode == RestoreMode::Copy && !request.dry_run;
        if request.verify || all_read {
            chain.verify()?;
        }
        let mut config = chain.state.header().config.clone();
        let mut problems = Vec::new();
        identify(&mut config, request, &mut problems);
        let overlays = overlays(&mut config, request, &mut problems);
        let written = config.disks.iter().filter(|d| is_layered(d)).count();
        let plan = Plan {
            chain,
            kept,
            in_place: request.in_place && overlays.len() < written,
            config,
            overlays,
            directory,
        };
        plan.find_problems(request, offer, &mut problems);
        Ok((plan, problems))
    }

    fn find_problems(&self, request: &VmRestore, offer: &Offer, problems: &mut Vec<String>) {
        let header = self.chain.state.header();
        fits(header, &self.config, problems);
        if !request.ignore_cpu {
            find_lacking(
                header,
                offer,
                "restore it on a host that has them, or with ignore_cpu=on if the guest can do without",
                problems,
            );
        }
        served::find_problems(&self.config, request, problems);
        if request.mode == RestoreMode::Userfault && request.track_dirty {
            problems.push(
                "memory that is fetched page by page cannot be tracked meanwhile: restore with mode=lazy or mode=copy"
                    .into(),
            );
        }
        if request.mode == RestoreMode::Lazy && self.config.memory.hugepages {
            problems.push(
                "huge pages cannot be mapped from a snapshot's file: restore with mode=copy".into(),
            );
        }
        for disk in self.config.disks.iter().filter(|disk| !disk.vhost_user) {
            let made = |layer: &Path| self.overlays.iter().any(|(_, path)| path == layer);
            let layers = disk.backing.iter().map(|layer| layer.full().path);
            for path in std::iter::once(disk.path.clone()).chain(layers) {
                if !made(&path)
                    && let Err(e) = open_layer(&path)
                {
                    problems.push(format!(
                        "disk layer {} cannot be opened: {e}",
                        path.display()
                    ));
                }
            }
        }
        for (made, (_, path)) in self.overlays.iter().enumerate() {
            let shown = path.display();
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            if self.overlays[..made].iter().any(|(_, other)| other == path) {
                problems.push(format!("{shown} cannot be a new layer of two disks"));
            } else if path.symlink_metadata().is_ok() {
                problems.push(format!(
                    "{shown} is there already: give the name of a new layer"
                ));
            } else if folder.is_some_and(|folder| !folder.is_dir()) {
                problems.push(format!("there is no folder for the new layer {shown}"));
            }
        }
        if self.in_place && header.disks_go_on {
            problems.push(
                "its VM went on after it, with new layers on its disks, which in_place=true would break: give overlay_dir=DIR for new layers".into(),
            );
        }
        // New layers would be of no use then: what is below them changed.
        if self.config.disks.iter().any(is_layered) && self.used().exists() {
            problems.push(format!(
                "its disks went on without it, as {} says: put them back as they were, and remove that file",
                self.used().display()
            ));
        }
    }

    fn used(&self) -> PathBuf {
        self.directory.path().join(USED)
    }

    /// Makes the new layers.
    pub fn make_overlays(&self) -> Result<(), SnapshotRequestError> {
        if self.in_place {
            let path = self.used();
            let made = File::create_new(&path)
                .and_then(|file| file.sync_all())
                .and_then(|()| File::open(self.directory.path())?.sync_all());
            made.map_err(|source| SnapshotRequestError::Mark { path, source })?;
        }
        for (made, (index, path)) in self.overlays.iter().enumerate() {
            if let Some(disk) = self.config.disks.get(*index)
                && let Err(e) = disks::create_overlay_of(disk, path)
            {
                // What is at this one's path may be somebody else's.
                self.remove(&self.overlays[..made]);
                return Err(e.into());
            }
        }
        Ok(())
    }

    /// Removes the new layers, since nothing came of the restore.
    pub fn remove_overlays(&self) {
        self.remove(&self.overlays);
    }

    fn remove(&self, overlays: &[(usize, PathBuf)]) {
        for (_, path) in overlays {
            let _ = std::fs::remove_file(path);
        }
        if self.in_place {
            let _ = std::fs::remove_file(self.used());
        }
    }

    /// What memory has data.
    pub fn ranges(&self) -> Vec<Range> {
        let layers = self.chain.memory.iter().flat_map(MemoryFile::ranges);
        coalesce(layers.copied().collect())
    }

    /// Fetches what the guest is known to need at first, if that was recorded. It is only sooner for it.
    pub fn fetch_working_set(&self, memory: &Restored) {
        let header = self.chain.state.header();
        match WorkingSet::read(&self.directory, &header.id, header.memory.size) {
            Ok(Some(ranges)) => {
                if let Err(e) = memory.fetch(&ranges) {
                    log::warn!("the working set was not fetched: {e}");
                }
            }
            Ok(None) => {}
            Err(e) => log::warn!("{e}"),
        }
    }

    /// What a diff of the machine builds on.
    pub fn origin(&self) -> Origin {
        Origin {
            id: self.chain.state.header().id.clone(),
            path: Some(self.directory.path().to_owned()),
        }
    }
}

/// Opening a FIFO must not block the monitor.
fn open_layer(path: &Path) -> std::io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// Finds what of a guest's CPUs this host lacks, and says what to do about it.
pub fn find_lacking(header: &Header, offer: &Offer, remedy: &str, problems: &mut Vec<String>) {
    if header.machine.arch != std::env::consts::ARCH {
        // There is nothing to compare.
        return;
    }
    problems.extend(
        arch::lacking(&header.cpu, &offer.features)
            .into_iter()
            .map(|what| format!("this host lacks {what}, which the guest uses: {remedy}")),
    );
}

/// Finds what of a described machine this host lacks, its CPUs' features and its disks apart.
pub fn fits(header: &Header, config: &VmConfig, problems: &mut Vec<String>) {
    let facts = &header.machine;
    if facts.arch != std::env::consts::ARCH {
        let here = std::env::consts::ARCH;
        problems.push(format!("it is of {}, and this host is {here}", facts.arch));
        return;
    }
    let cpus = config.cpus.boot_vcpus;
    if facts.cpus != cpus || header.memory.size != config.memory.size {
        problems.push(format!(
            "its description contradicts itself: {} CPUs and {} bytes of RAM, and a configuration of {cpus} and {}",
            facts.cpus, header.memory.size, config.memory.size
        ));
    }
    if let Err(e) = validate::check(&mut config.clone()) {
        problems.push(e.to_string());
    }
    for net in config.net.iter().filter(|net| !net.vhost_user) {
        if !Tap::exists(&net.tap) {
            problems.push(format!(
                "there is no network interface `{}`: make it, or give another one",
                net.tap
            ));
        }
    }
    served::find_sockets(config, problems);
}

/// Makes a configuration the one of another VM, as far as is asked.
pub fn identify(config: &mut VmConfig, request: &VmRestore, problems: &mut Vec<String>) {
    for identity in &request.net {
        let net = config
            .net
            .iter_mut()
            .find(|n| n.id.as_ref() == Some(&identity.id));
        match net {
            Some(net) => identity.apply(net),
            None => problems.push(format!("the snapshot has no network `{}`", identity.id)),
        }
    }
    served::identify(config, request, problems);
    if let Some(identity) = &request.vsock {
        match &mut config.vsock {
            Some(vsock) => {
                vsock.cid = identity.cid.unwrap_or(vsock.cid);
                if let Some(socket) = &identity.socket {
                    vsock.socket.clone_from(socket);
                }
            }
            None => problems.push("the snapshot has no sockets (vsock)".into()),
        }
    }
    if let Some(serial) = &request.serial {
        config.serial = serial.clone();
    }
    if let Some(console) = &request.console {
        config.console = console.clone();
    }
}

/// Puts new layers into a configuration; those that have to be made.
fn overlays(
    config: &mut VmConfig,
    request: &VmRestore,
    problems: &mut Vec<String>,
) -> Vec<(usize, PathBuf)> {
    let mut made = Vec::new();
    for DiskOverlay { id, .. } in &request.overlays {
        let mut disks = config.disks.iter();
        match disks.find(|disk| disk.id.as_ref() == Some(id)) {
            Some(disk) if disk.vhost_user => problems.push(format!(
                "another process serves disk `{id}`, and makes its layers: leave it out of overlays"
            )),
            Some(_) => {}
            None => problems.push(format!("the snapshot has no disk `{id}`")),
        }
    }
    for (index, disk) in config
        .disks
        .iter_mut()
        .enumerate()
        .filter(|(_, d)| is_layered(d))
    {
        let id = disk.id.clone().unwrap_or_default();
        let asked = request.overlays.iter().find(|overlay| overlay.id == id);
        let path = match (asked, &request.overlay_dir) {
            (Some(overlay), _) => overlay.path.clone(),
            (None, Some(folder)) => folder.join(format!("{id}.qcow2")),
            (None, None) if request.in_place => continue,
            (None, None) => {
                problems.push(format!(
                    "disk `{id}` would be written, and with it the snapshot: give overlay_dir=DIR for a new layer, or in_place=true to use the snapshot up"
                ));
                continue;
            }
        };
        put_on(disk, path.clone());
        made.push((index, path));
    }
    made
}

/// Puts a new qcow2 layer on a disk's configuration.
fn put_on(disk: &mut DiskConfig, path: PathBuf) {
    let below = disks::top_layer(disk);
    disk.backing.insert(0, below);
    disk.path = path;
    disk.image_type = Some(skerry_vmm_api::config::ImageType::Qcow2);
    disk.data_file = None;
}
