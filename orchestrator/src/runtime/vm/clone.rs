//! A clone: what of a snapshot is its own. Its disks' new layers, its sockets and its port are; its CPUs, its
//! memory's size and its devices are the snapshot's.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use skerry_snapshot::{Directory, Header};
use skerry_vmm_api::config::{ConsoleConfig, ConsoleMode, VmConfig};
use skerry_vmm_api::snapshots::{NetIdentity, RestoreMode, VmPrepare, VmRestore, VsockIdentity};

use super::home::Home;
use crate::model::{MicroVmSpec, Quantity};
use crate::network::Tap;
use crate::runtime::RuntimeError;

/// A clone that can be made: what its snapshot says of it.
pub struct CloneOf {
    source: String,
    config: VmConfig,
}

impl CloneOf {
    /// Of a snapshot, if the spec is that of a clone and fits it.
    ///
    /// # Errors
    /// If the snapshot cannot be read, or is of another machine than `spec`.
    pub fn of(spec: &MicroVmSpec) -> Result<Option<CloneOf>, RuntimeError> {
        let Some(path) = &spec.boot.snapshot else {
            return Ok(None);
        };
        let header = Directory::new(path).header();
        let header = header.map_err(|source| RuntimeError::Snapshot {
            path: path.clone(),
            source,
        })?;
        CloneOf::fitting(path, header, spec).map(Some)
    }

    fn fitting(path: &Path, header: Header, spec: &MicroVmSpec) -> Result<CloneOf, RuntimeError> {
        let config = header.config;
        let unfit = |what: String| {
            let path = path.display();
            RuntimeError::Unfit(format!("the snapshot {path} {what}"))
        };
        let (has, wanted) = (config.memory.size, spec.memory.whole());
        if has != wanted {
            let has = Quantity::of(has);
            let what = format!("has {has} of memory, and `memory` is {}", spec.memory);
            return Err(unfit(format!("{what}: write `memory: {has}`")));
        }
        let cpus = config.cpus.boot_vcpus;
        if cpus != spec.cpus {
            let what = format!("has {cpus} CPUs, and `cpus` is {}", spec.cpus);
            return Err(unfit(format!("{what}: write `cpus: {cpus}`")));
        }
        if config.memory.hugepages != spec.hugepages {
            let (is, word) = match config.memory.hugepages {
                true => ("of 2 MiB pages", "true"),
                false => ("not of 2 MiB pages", "false"),
            };
            return Err(unfit(format!("has memory {is}: write `hugepages: {word}`")));
        }
        let served = config.disks.iter().any(|disk| disk.vhost_user)
            || config.net.iter().any(|net| net.vhost_user)
            || !config.fs.is_empty();
        if served {
            return Err(unfit(
                "has devices that other processes serve, and each clone needs such processes of its own: \
                 take one without them"
                    .to_owned(),
            ));
        }
        let text = path
            .to_str()
            .ok_or_else(|| unfit("has a name that is no UTF-8: give it another".to_owned()))?;
        match (config.net.len(), spec.networks.len()) {
            (has, wanted) if has == wanted => {}
            (0, _) => return Err(unfit("has no network: leave `networks` out".to_owned())),
            (1, _) => {
                return Err(unfit(
                    "has a network, and a clone needs a port of its own: write `networks: [{network: default}]`"
                        .to_owned(),
                ));
            }
            (has, wanted) => {
                return Err(unfit(format!(
                    "has {has} networks, and `networks` has {wanted}: a clone needs as many"
                )));
            }
        }
        if spec.vsock && config.vsock.is_none() {
            return Err(unfit("has no vsock: leave `vsock` out".to_owned()));
        }
        Ok(CloneOf {
            source: format!("file://{text}"),
            config,
        })
    }

    /// What a monitor can have ready for it.
    pub fn size(&self) -> VmPrepare {
        VmPrepare {
            cpus: self.config.cpus.clone(),
            memory: self.config.memory.clone(),
        }
    }

    /// What its monitor is asked for. Whoever it is, its layers and sockets are in its own folder.
    pub fn request(&self, uid: &str, home: &Home, taps: &[Tap]) -> VmRestore {
        let config = &self.config;
        let silent = |mode| matches!(mode, ConsoleMode::Off | ConsoleMode::Null);
        let serial = ConsoleConfig {
            mode: ConsoleMode::Socket,
            socket: Some(home.console_socket()),
            file: Some(home.console()),
            ..ConsoleConfig::default()
        };
        let console = |mode, file| {
            Some(ConsoleConfig {
                mode,
                file,
                ..ConsoleConfig::default()
            })
        };
        // What it says goes to its log, by the way that it speaks.
        let (serial, console) = match (config.serial.mode, config.console.mode) {
            (_, ConsoleMode::Off) => (Some(serial), None),
            (mode, _) if silent(mode) => (None, console(ConsoleMode::File, Some(home.console()))),
            _ => (Some(serial), console(ConsoleMode::Null, None)),
        };
        let net = config.net.iter().zip(taps).filter_map(|(net, tap)| {
            Some(NetIdentity {
                id: net.id.clone()?,
                tap: Some(tap.name.clone()),
                mac: Some(tap.mac.to_string()),
                vhost_socket: None,
            })
        });
        VmRestore {
            resume: true,
            // Memory of huge pages cannot be mapped from a file.
            mode: match config.memory.hugepages || config.memory.shared {
                true => RestoreMode::Userfault,
                false => RestoreMode::Lazy,
            },
            overlay_dir: Some(home.layers()),
            net: net.collect(),
            vsock: config.vsock.as_ref().map(|_| VsockIdentity {
                cid: Some(cid(uid)),
                socket: Some(home.vsock()),
            }),
            serial,
            console,
            ..VmRestore::of(&self.source)
        }
    }
}

/// A vsock's address: most likely no other clone's here. 0 to 2 and the last are not to be had.
fn cid(uid: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    3 + hasher.finish() % u64::from(u32::MAX - 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut VmConfig)) -> VmRestore {
        let mut config = VmConfig::default();
        config.console.mode = ConsoleMode::Off;
        change(&mut config);
        let clone = CloneOf {
            source: "file:///s".to_owned(),
            config,
        };
        clone.request("an-uid", &Home::new(Path::new("/vms"), "an-uid"), &[])
    }

    #[test]
    fn what_a_guest_says_goes_to_its_log_by_the_way_that_it_speaks() {
        let modes = |change: fn(&mut VmConfig)| {
            let request = request(change);
            [request.serial, request.console].map(|one| one.map(|config| config.mode))
        };
        let socket = Some(ConsoleMode::Socket);
        assert_eq!(modes(|c| c.serial.mode = ConsoleMode::File), [socket, None]);
        let console = modes(|c| {
            c.serial.mode = ConsoleMode::Null;
            c.console.mode = ConsoleMode::Pty;
        });
        assert_eq!(console, [None, Some(ConsoleMode::File)]);
        // Its console's device stays, and is silent.
        let both = modes(|c| {
            c.serial.mode = ConsoleMode::Tty;
            c.console.mode = ConsoleMode::Pty;
        });
        assert_eq!(both, [socket, Some(ConsoleMode::Null)]);
    }

    #[test]
    fn memory_is_mapped_where_it_can_be() {
        assert_eq!(request(|_| {}).mode, RestoreMode::Lazy);
        let huge = request(|c| c.memory.hugepages = true);
        assert_eq!(huge.mode, RestoreMode::Userfault);
    }

    #[test]
    fn each_has_an_address_of_its_own_in_the_range_of_guests() {
        let cids: Vec<u64> = (0..1000).map(|n| cid(&format!("uid-{n}"))).collect();
        assert!(
            cids.iter()
                .all(|cid| (3..u64::from(u32::MAX)).contains(cid))
        );
        let all: std::collections::BTreeSet<_> = cids.iter().collect();
        assert_eq!(all.len(), 1000);
        // It has the same one after each start.
        assert_eq!(cid("uid-1"), cids[1]);
    }
}
