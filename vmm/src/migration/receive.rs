//! The target of a migration.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use skerry_link::{Address, Hangup, Identity, Listener, security};
use skerry_snapshot::{Header, Range, State};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::DiskConfig;
use skerry_vmm_api::snapshots::{MigratedDisks, VmReceiveMigration, VmRestore};

use super::MigrationError;
use super::files::Incoming;
use super::wire::{Kind, Link, Message, is_gone};
use crate::memory::{self, Ram};
use crate::shell::{Offer, Shell};
use crate::snapshot::{Kept, find_lacking, fits, identify};
use crate::validate;

/// A target that waits.
pub struct Receiving {
    listener: Listener,
    security: Option<Identity>,
    disk_dir: Option<PathBuf>,
    identity: VmRestore,
}

/// How a source greets.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The machine.
    pub header: Header,
    /// What becomes of its disks.
    pub disks: MigratedDisks,
}

/// A guest that has come, all of it but its disks.
pub struct Arrival {
    link: Link,
    files: Option<Incoming>,
    /// The VM for it.
    pub shell: Shell,
    /// Its memory.
    pub ram: Ram,
    /// Its state.
    pub kept: Kept,
    /// Its configuration here.
    pub config: VmConfig,
}

/// Begins to wait.
pub fn listen(request: &VmReceiveMigration) -> Result<Receiving, MigrationError> {
    let address = Address::parse(&request.receiver_url)?;
    let security = security(&address, request.tls_dir.as_deref(), request.insecure)?;
    Ok(Receiving {
        security,
        disk_dir: request.disk_dir.clone(),
        listener: Listener::bind(&address)?,
        identity: VmRestore {
            net: request.net.clone(),
            vsock: request.vsock.clone(),
            serial: request.serial.clone(),
            console: request.console.clone(),
            ..VmRestore::of("")
        },
    })
}

impl Receiving {
    /// Receives a guest, unless `hangup` ends that. On a thread of its own.
    pub fn receive(
        self,
        kvm: &Kvm,
        offer: &Arc<Offer>,
        hangup: &Hangup,
    ) -> Result<Arrival, MigrationError> {
        let arrived = self.take_in(kvm, offer, hangup);
        arrived.map_err(|e| match hangup.is_hung_up() {
            true => MigrationError::Cancelled,
            false => e,
        })
    }

    fn take_in(
        self,
        kvm: &Kvm,
        offer: &Arc<Offer>,
        hangup: &Hangup,
    ) -> Result<Arrival, MigrationError> {
        let mut link = Link::new(self.listener.accept(self.security, hangup)?);
        let mut files = self.disk_dir.map(Incoming::new);
        let arrived = receive(&mut link, &self.identity, &mut files, kvm, offer);
        match arrived {
            Ok((shell, ram, kept, config)) => Ok(Arrival {
                files,
                link,
                shell,
                ram,
                kept,
                config,
            }),
            Err(e) => {
                let _ = link.send(Kind::Failed, e.to_string().as_bytes());
                Err(e)
            }
        }
    }
}

fn receive(
    link: &mut Link,
    identity: &VmRestore,
    files: &mut Option<Incoming>,
    kvm: &Kvm,
    offer: &Arc<Offer>,
) -> Result<(Shell, Ram, Kept, VmConfig), MigrationError> {
    let (Kind::Hello, hello) = link.answer()? else {
        return Err(MigrationError::Protocol("no greeting"));
    };
    let Hello { header, disks } = serde_json::from_slice(&hello)
        .map_err(|_| MigrationError::Protocol("a greeting that cannot be read"))?;
    let mut problems = Vec::new();
    if disks == MigratedDisks::Stream && files.is_none() {
        problems.push(MigrationError::NoDiskDir.to_string());
    }
    let mut config = header.config.clone();
    identify(&mut config, identity, &mut problems);
    fits(&header, &config, &mut problems);
    find_lacking(
        &header,
        offer,
        "send it to a host that has them",
        &mut problems,
    );
    let prepared = if problems.is_empty() {
        let made = Shell::new(kvm, offer, header.machine.cpus, &config.memory);
        made.and_then(|shell| {
            let ram = memory::create(&config.memory, &shell.place)?;
            Ok((shell, ram))
        })
        .map_err(|e| problems.push(e.to_string()))
        .ok()
    } else {
        None
    };
    let Some((shell, ram)) = prepared else {
        let list = serde_json::to_vec(&problems).unwrap_or_default();
        link.send(Kind::Refuse, &list)?;
        return Err(MigrationError::Refused(problems));
    };
    link.send(Kind::Accept, &[])?;
    let mut pages = Vec::new();
    let state = loop {
        match link.receive(&mut pages)? {
            Message::Pages(start) => {
                let len = pages.len() as u64;
                let end = start.checked_add(len);
                if end.is_none_or(|end| end > ram.size()) {
                    return Err(MigrationError::Protocol("pages beyond the guest's memory"));
                }
                ram.copy_in(Range { start, len }, &pages);
            }
            Message::Data(at) => match files {
                Some(files) => files.data(at, &pages)?,
                None => return Err(MigrationError::NoDiskDir),
            },
            Message::Other(Kind::File, announced) => match files {
                Some(files) if disks == MigratedDisks::Stream => files.begin(&announced)?,
                _ => return Err(MigrationError::Protocol("files that nobody asked for")),
            },
            Message::Other(Kind::State, state) => break state,
            Message::Other(Kind::Cancel, _) => return Err(MigrationError::Cancelled),
            Message::Other(..) => return Err(MigrationError::Protocol("neither pages nor state")),
        }
    };
    let mut state = State::from_reader(&mut state.as_slice(), Path::new("the migration's state"))?;
    let same = state.header().id == header.id && state.header().memory.size == ram.size();
    if !same || state.header().machine.cpus != header.machine.cpus {
        return Err(MigrationError::Protocol("a state of another machine"));
    }
    // Layers may have come and gone since the greeting, and nothing else.
    let now = &state.header().config.disks;
    let names = |disks: &[DiskConfig]| -> Vec<_> { disks.iter().map(|d| d.id.clone()).collect() };
    if names(now) != names(&config.disks) {
        return Err(MigrationError::Protocol("other disks than it greeted with"));
    }
    for (disk, now) in config.disks.iter_mut().zip(now) {
        disk.path.clone_from(&now.path);
        disk.image_type = now.image_type;
        disk.data_file.clone_from(&now.data_file);
        disk.backing.clone_from(&now.backing);
    }
    validate::check(&mut config).map_err(|e| MigrationError::Refused(vec![e.to_string()]))?;
    if let (MigratedDisks::Stream, Some(files)) = (disks, files) {
        files.settle(&mut config.disks)?;
    }
    let kept = Kept::take(&mut state)?;
    Ok((shell, ram, kept, config))
}

/// What is left of an arrival when its machine was built of it.
pub struct Decision(Link, Option<Incoming>);

impl Arrival {
    /// Parts it from its link.
    pub fn split(self) -> (Decision, Shell, Ram, Kept, VmConfig) {
        (
            Decision(self.link, self.files),
            self.shell,
            self.ram,
            self.kept,
            self.config,
        )
    }
}

impl Decision {
    /// The machine could not be built.
    pub fn failed(mut self, why: &str) {
        self.1 = None;
        let _ = self.0.send(Kind::Failed, why.as_bytes());
        self.0.end();
    }

    fn keep_files(&mut self) {
        if let Some(files) = self.1.take() {
            files.keep();
        }
    }

    /// The machine is there and has its disks. Ok if it is to run now; else what there is of it is to be
    /// dropped, and [`gone`](Self::gone) is to be called.
    pub fn wait(&mut self) -> Result<(), MigrationError> {
        self.0.send(Kind::Ready, &[])?;
        match self.0.answer() {
            Ok((Kind::Go, _)) => {
                // Said before the first instruction: if it is lost with this process, then so is the guest.
                self.keep_files();
                let _ = self.0.send(Kind::Running, &[]);
                Ok(())
            }
            Ok((Kind::Cancel, _)) => Err(MigrationError::Cancelled),
            Ok(_) => Err(MigrationError::Protocol("no GO")),
            Err(e) if self.0.tells_the_end() && is_gone(&e) => {
                log::warn!("the source is gone: the VM goes on here");
                self.keep_files();
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Nothing of the guest is left here.
    pub fn gone(mut self) {
        self.1 = None;
        let _ = self.0.send(Kind::Cancel, &[]);
        self.0.end();
    }
}
