//! Containers: processes of an image, apart from others.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Column, Fields, FirstBoot, Parts, Placement, Port, Probe, Published, Quantity, Resource,
    RestartPolicy, WorkloadStatus, probe,
};

/// A container.
pub type Container = Parts<ContainerSpec, WorkloadStatus>;

/// What a container is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerSpec {
    /// Whether it is to run.
    #[serde(default = "super::workload::yes")]
    pub running: bool,
    /// Its image: one of the host's image store by its name, `debian:12`; or the directory of an OCI layout.
    pub image: PathBuf,
    /// What runs in it, instead of the image's own command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// More words for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment, beside the image's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Its share of CPUs: `500m` is half of one.
    #[serde(default = "cpu")]
    pub cpu: Quantity,
    /// Its memory, in bytes.
    #[serde(default = "memory")]
    pub memory: Quantity,
    /// Who it runs as, instead of the image's user: `1000`, `1000:1000`, or names that the image knows.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Where its command runs, instead of the image's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<PathBuf>,
    /// Only volumes of its can be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Directories that stay when it ends, or are the host's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// What it is told, in files that it reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_boot: Option<FirstBoot>,
    /// Its networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Port>,
    /// Ports of the host that are its.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Published>,
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

/// A directory of its own, which is kept as long as the container is declared, or one of the host's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Volume {
    /// Its name, of which there is one a container.
    pub name: String,
    /// Where the container sees it.
    pub path: PathBuf,
    /// The file or directory of the host that it is, below one that `skerry up --share` names. Without one it is
    /// the container's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// The container only reads it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

impl Volume {
    fn check_all(volumes: &[Volume], fields: &mut Fields) {
        if volumes.len() > super::MOST {
            return fields.wrong("spec.volumes", "there may be 64");
        }
        for (n, volume) in volumes.iter().enumerate() {
            let at = format!("spec.volumes[{n}]");
            let twice = volumes[..n].iter().any(|other| other.name == volume.name);
            fields.must(
                super::is_name(&volume.name),
                &format!("{at}.name"),
                "it must be of a-z, 0-9 and -",
            );
            fields.must(
                !twice,
                &format!("{at}.name"),
                "another volume has this name",
            );
            let inside = volume.path.is_absolute() && volume.path.parent().is_some();
            fields.must(inside, &format!("{at}.path"), "it must be an absolute path");
            let absolute = volume.source.as_ref().is_none_or(|path| path.is_absolute());
            fields.must(
                absolute,
                &format!("{at}.source"),
                "it must be an absolute path",
            );
        }
    }
}

fn cpu() -> Quantity {
    Quantity::of(1)
}

fn memory() -> Quantity {
    Quantity::of(128 << 20)
}

impl Resource for Container {
    const KIND: &'static str = "Container";
    const PLURAL: &'static str = "containers";
    const SINGULAR: &'static str = "container";
    const SHORT: &'static [&'static str] = &["ct"];
    const FINALIZERS: &'static [&'static str] = &[super::AGENT];
    const COLUMNS: &'static [Column] = &super::workload_columns!();

    fn check(&self, fields: &mut Fields) {
        let spec = &self.spec;
        fields.must(
            spec.image.is_absolute() || super::is_image(spec.image.to_str().unwrap_or_default()),
            "spec.image",
            "it must be the name of an image, NAME[:TAG], or an absolute path",
        );
        fields.must(spec.cpu.milli() > 0, "spec.cpu", "it must be more than 0");
        fields.must(
            spec.memory.whole() >= 1 << 20,
            "spec.memory",
            "it must be at least 1Mi",
        );
        let absolute = spec
            .working_dir
            .as_ref()
            .is_none_or(|path| path.is_absolute());
        fields.must(absolute, "spec.workingDir", "it must be an absolute path");
        Volume::check_all(&spec.volumes, fields);
        if let Some(first) = &spec.first_boot {
            first.check(fields);
        }
        Port::check_all(&spec.networks, fields);
        Published::check_all(&spec.publish, &spec.networks, fields);
        let reach = probe::Reach {
            commands: true,
            vsock: false,
            networks: &spec.networks,
        };
        let (liveness, readiness) = (&spec.liveness_probe, &spec.readiness_probe);
        reach.check(liveness.as_ref(), readiness.as_ref(), fields);
    }
}
