//! MicroVMs: a monitor each.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Bandwidth, Column, Fields, FirstBoot, Parts, Placement, Probe, Published, Quantity, Resource,
    RestartPolicy, Share, Tier, WorkloadStatus, probe,
};

/// A microVM.
pub type MicroVM = Parts<MicroVmSpec, WorkloadStatus>;

/// What a microVM is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MicroVmSpec {
    /// Whether it is to run.
    #[serde(default = "super::workload::yes")]
    pub running: bool,
    /// Its CPUs.
    #[serde(default = "one")]
    pub cpus: u32,
    /// Its memory, in bytes: `512Mi`.
    #[serde(default = "memory")]
    pub memory: Quantity,
    /// Its memory is of 2 MiB pages.
    #[serde(default)]
    pub hugepages: bool,
    /// How CPUs are shared.
    #[serde(default)]
    pub tier: Tier,
    /// What it starts from.
    #[serde(default)]
    pub boot: Boot,
    /// Its disks, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Its networks, in order: one for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Port>,
    /// Directories of the host's that it shares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// What it is told when it starts for the first time, on a disk that is its last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_boot: Option<FirstBoot>,
    /// Ports of the host that are its.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Published>,
    /// It has a vsock.
    #[serde(default)]
    pub vsock: bool,
    /// What happens when it ends.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Whether it lives: it is ended if it does not, and started again as its policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness_probe: Option<Probe>,
    /// Whether it is ready, which its condition `Ready` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<Probe>,
    /// Where it may run.
    #[serde(default)]
    pub placement: Placement,
}

fn one() -> u32 {
    1
}

fn memory() -> Quantity {
    Quantity::of(256 << 20)
}

/// What a VM starts from: a kernel, or a snapshot. If neither is given, the newest kernel in the file system of its first
/// disk with an `image`, with that disk as its root.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Boot {
    /// The kernel: an ELF file or a bzImage of the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Its initramfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// Its command line; what is added to it, if the kernel is the image's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cmdline: String,
    /// The snapshot that it is a clone of, instead: its directory, or the name of one that `skerry image prepare` made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<PathBuf>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Disk {
    /// Its name, of which there is one a VM.
    pub name: String,
    /// The image that it begins as. It is only read: what the VM writes goes to a layer of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// The disk image of the host's image store that it begins as, instead of a file: `debian:12`. The VM stays on what
    /// the name meant at its first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The format of the file `base`.
    #[serde(default)]
    pub format: DiskFormat,
    /// Its size, if it begins empty or is to be larger than its base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// The name of a Volume of the same namespace that it is, instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The VM only reads it.
    #[serde(default)]
    pub readonly: bool,
}

/// How an image is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// As it is.
    Raw,
    /// QEMU's.
    #[default]
    Qcow2,
}

/// Whether it can be the name of an image of the store.
pub(super) fn is_image(text: &str) -> bool {
    text.parse::<skerry_images::store::Name>().is_ok()
}

/// A network, an address in it, and how much goes through.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Port {
    /// The network: one of its namespace, or `default`, which every host has.
    pub network: String,
    /// The address; chosen if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// How much goes through, if it is not what the network says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
}

impl Port {
    /// Says what is wrong with a workload's networks.
    pub(super) fn check_all(ports: &[Port], fields: &mut Fields) {
        fields.must(
            ports.len() <= crate::network::MOST,
            "spec.networks",
            "there may be 8",
        );
        fn name(port: &Port) -> &str {
            match port.network.as_str() {
                "" => crate::network::DEFAULT,
                name => name,
            }
        }
        for (n, port) in ports.iter().take(crate::network::MOST).enumerate() {
            let at = format!("spec.networks[{n}].network");
            fields.must(
                super::is_name(name(port)),
                &at,
                "it must be a network's name of a-z, 0-9 and -",
            );
            let twice = ports[..n].iter().any(|other| name(other) == name(port));
            fields.must(!twice, &at, "it is in this network already");
            if let Some(bandwidth) = &port.bandwidth {
                bandwidth.check(&format!("spec.networks[{n}].bandwidth"), fields);
            }
            let good =
                port.address.is_empty() || port.address.parse::<std::net::Ipv4Addr>().is_ok();
            fields.must(
                good,
                &format!("spec.networks[{n}].address"),
                "it must be an IPv4 address",
            );
        }
    }
}

/// The disk that a VM is told by what it is.
pub const SEED: &str = "cidata";
/// What the monitor takes.
const MAX_CPUS: u32 = 254;
const MIN_MEMORY: u64 = 16 << 20;

impl Resource for MicroVM {
    const KIND: &'static str = "MicroVM";
    const PLURAL: &'static str = "microvms";
    const SINGULAR: &'static str = "microvm";
    const SHORT: &'static [&'static str] = &["vm", "vms"];
    const FINALIZERS: &'static [&'static str] = &[super::AGENT];
    const COLUMNS: &'static [Column] = &super::workload_columns!();

    fn check(&self, fields: &mut Fields) {
        let spec = &self.spec;
        fields.must(
            (1..=MAX_CPUS).contains(&spec.cpus),
            "spec.cpus",
            "it must be 1 to 254",
        );
        fields.must(
            spec.memory.whole() >= MIN_MEMORY,
            "spec.memory",
            "it must be at least 16Mi",
        );
        match (&spec.boot.kernel, &spec.boot.snapshot) {
            (None, None) => fields.must(
                spec.disks.iter().any(|disk| disk.image.is_some()),
                "spec.boot",
                "give a kernel, a snapshot, or a disk with an image that has a kernel",
            ),
            (Some(_), Some(_)) => fields.wrong(
                "spec.boot.snapshot",
                "a clone has the kernel of its snapshot: give one of both",
            ),
            _ => {}
        }
        if spec.boot.snapshot.is_some() {
            let whole = "a clone has that of its snapshot: leave it out";
            let boot = &spec.boot;
            fields.must(boot.initramfs.is_none(), "spec.boot.initramfs", whole);
            fields.must(boot.cmdline.is_empty(), "spec.boot.cmdline", whole);
            let disks = "a clone has the disks of its snapshot: leave `disks` out";
            fields.must(spec.disks.is_empty(), "spec.disks", disks);
            let shares = "a clone has the devices of its snapshot, and those cannot be shares: leave `shares` out";
            fields.must(spec.shares.is_empty(), "spec.shares", shares);
            let told = "a clone has booted: let it ask the metadata service";
            fields.must(spec.first_boot.is_none(), "spec.firstBoot", told);
        }
        let named =
            |path: &PathBuf| path.is_absolute() || path.to_str().is_some_and(super::is_name);
        fields.must(
            spec.boot.snapshot.as_ref().is_none_or(named),
            "spec.boot.snapshot",
            "it must be an absolute path, or the name of what was prepared",
        );
        for (at, path) in [
            ("kernel", &spec.boot.kernel),
            ("initramfs", &spec.boot.initramfs),
        ] {
            let absolute = path.as_ref().is_none_or(|path| path.is_absolute());
            fields.must(
                absolute,
                &format!("spec.boot.{at}"),
                "it must be an absolute path",
            );
        }
        fields.must(
            spec.disks.len() <= super::MOST,
            "spec.disks",
            "there may be 64",
        );
        for (n, disk) in spec.disks.iter().take(super::MOST).enumerate() {
            let at = format!("spec.disks[{n}]");
            fields.must(
                super::is_name(&disk.name),
                &format!("{at}.name"),
                "it must be of a-z, 0-9 and -",
            );
            let own = disk.base.is_some() || disk.image.is_some() || disk.size.is_some();
            match &disk.volume {
                None => fields.must(
                    own,
                    &at,
                    "give a base image, a volume, or a size for an empty disk",
                ),
                Some(volume) => {
                    let named = format!("{at}.volume");
                    fields.must(super::is_name(volume), &named, "it must be a volume's name");
                    fields.must(
                        !own,
                        &named,
                        "a volume has a size and content of its own: leave the others out",
                    );
                    let mut before = spec.disks[..n].iter();
                    let twice = before.any(|other| other.volume.as_ref() == Some(volume));
                    fields.must(!twice, &named, "another disk is this volume");
                }
            }
            fields.must(
                disk.base.is_none() || disk.image.is_none(),
                &format!("{at}.image"),
                "give a file or an image of the store, not both",
            );
            fields.must(
                disk.image.as_deref().is_none_or(super::is_image),
                &format!("{at}.image"),
                "it must be the name of an image, NAME[:TAG]",
            );
            let absolute = disk.base.as_ref().is_none_or(|path| path.is_absolute());
            fields.must(
                absolute,
                &format!("{at}.base"),
                "it must be an absolute path",
            );
            let twice = spec.disks[..n].iter().any(|other| other.name == disk.name);
            fields.must(!twice, &format!("{at}.name"), "another disk has this name");
        }
        if let Some(first) = &spec.first_boot {
            first.check(fields);
            let taken = spec.disks.iter().any(|disk| disk.name == SEED);
            fields.must(
                !taken,
                "spec.disks",
                "`cidata` is the name of the disk for `firstBoot`",
            );
        }
        Share::check_all(&spec.shares, fields);
        Port::check_all(&spec.networks, fields);
        Published::check_all(&spec.publish, &spec.networks, fields);
        let reach = probe::Reach {
            commands: false,
            // A clone has the vsock of its snapshot, wherever that is.
            vsock: spec.vsock && spec.boot.snapshot.is_none(),
            networks: &spec.networks,
        };
        let (liveness, readiness) = (&spec.liveness_probe, &spec.readiness_probe);
        reach.check(liveness.as_ref(), readiness.as_ref(), fields);
    }
}
