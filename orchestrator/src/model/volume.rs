//! Volumes: disks that are nobody's. A VM that names one has it as long as it runs, and it stays when the VM goes.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Condition, DiskFormat, Fields, Parts, Quantity, Resource, Timestamp, is_name};

/// A volume.
pub type Volume = Parts<VolumeSpec, VolumeStatus>;

/// What a volume is to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeSpec {
    /// Its size in bytes: `10Gi`. It can be made larger at any time, and never smaller. What it begins as has one, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// What it begins as; empty if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VolumeSource>,
}

/// What a volume begins as: a snapshot, or an image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct VolumeSource {
    /// The name of a VolumeSnapshot of the same namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub volume_snapshot: String,
    /// An image of the host's, which is only read and must stay as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// The image's format.
    pub format: DiskFormat,
}

/// How far a volume has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VolumePhase {
    /// It is not made yet; its condition says why.
    #[default]
    Pending,
    /// It is there, and nobody has it.
    Available,
    /// A VM has it.
    Attached,
}

/// How a volume is doing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct VolumeStatus {
    /// How far it has come.
    pub phase: VolumePhase,
    /// Where its files are.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The VM that has it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub attached_to: String,
    /// The uid of that VM.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub attached_uid: String,
    /// The size that a VM sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// What it takes on the host's disk, with what it shares with its snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<Quantity>,
    /// The generation that this is about.
    pub observed_generation: u64,
    /// What is so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl Resource for Volume {
    const KIND: &'static str = "Volume";
    const PLURAL: &'static str = "volumes";
    const SINGULAR: &'static str = "volume";
    const SHORT: &'static [&'static str] = &["vol"];
    const FINALIZERS: &'static [&'static str] = &[super::AGENT];
    const COLUMNS: &'static [Column] = &[
        column("Phase", &["status", "phase"]),
        column("Size", &["status", "size"]),
        column("Used", &["status", "used"]),
        column("Attached to", &["status", "attachedTo"]),
        Column {
            name: "Host",
            wide: true,
            cell: &["status", "host"],
        },
    ];

    fn check(&self, fields: &mut Fields) {
        let spec = &self.spec;
        let size = spec.size.map(Quantity::whole);
        fields.must(
            size.is_none_or(|size| (SMALLEST..=LARGEST).contains(&size)),
            "spec.size",
            "it must be 1Mi to 1024Ti",
        );
        match &spec.source {
            None => fields.must(size.is_some(), "spec.size", "an empty volume needs a size"),
            Some(source) => source.check(fields),
        }
    }

    fn check_change(&self, before: &Self, fields: &mut Fields) {
        let (old, new) = (&before.spec, &self.spec);
        fields.must(
            old.source == new.source,
            "spec.source",
            "it is what the volume began as: make another volume",
        );
        let has = before.status.as_ref().and_then(|status| status.size);
        if let (Some(has), Some(wanted)) = (old.size.max(has), new.size)
            && wanted < has
        {
            let what = format!(
                "it has {has} and cannot be made smaller, as its last bytes may be in use: make a smaller volume \
                 and copy what is in it"
            );
            fields.wrong("spec.size", what);
        }
    }
}

/// Sizes that a volume may have.
const SMALLEST: u64 = 1 << 20;
const LARGEST: u64 = 1 << 50;

const fn column(name: &'static str, cell: &'static [&'static str]) -> Column {
    Column {
        name,
        wide: false,
        cell,
    }
}

impl VolumeSource {
    fn check(&self, fields: &mut Fields) {
        match (&self.image, self.volume_snapshot.as_str()) {
            (None, "") => fields.wrong("spec.source", "give `volumeSnapshot` or `image`"),
            (Some(_), name) if !name.is_empty() => {
                fields.wrong("spec.source", "give one of `volumeSnapshot` and `image`");
            }
            (Some(image), _) => fields.must(
                image.is_absolute(),
                "spec.source.image",
                "it must be an absolute path",
            ),
            (None, name) => fields.must(
                is_name(name),
                "spec.source.volumeSnapshot",
                "it must be the name of a VolumeSnapshot",
            ),
        }
    }
}

/// A snapshot of a volume.
pub type VolumeSnapshot = Parts<VolumeSnapshotSpec, VolumeSnapshotStatus>;

/// Of what a snapshot is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct VolumeSnapshotSpec {
    /// The name of a volume of the same namespace.
    pub volume: String,
}

/// How far a snapshot has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct VolumeSnapshotStatus {
    /// `Pending` until it is taken, and `Ready` from then on.
    pub phase: SnapshotPhase,
    /// Where its files are.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The size that a volume of it has at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// What it takes on the host's disk, with what it shares with volumes and other snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<Quantity>,
    /// When it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Timestamp>,
    /// The generation that this is about.
    pub observed_generation: u64,
    /// What is so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// How far a snapshot has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SnapshotPhase {
    /// It is not taken yet; its condition says why.
    #[default]
    Pending,
    /// It is kept.
    Ready,
}

impl Resource for VolumeSnapshot {
    const KIND: &'static str = "VolumeSnapshot";
    const PLURAL: &'static str = "volumesnapshots";
    const SINGULAR: &'static str = "volumesnapshot";
    const SHORT: &'static [&'static str] = &["vs"];
    const FINALIZERS: &'static [&'static str] = &[super::AGENT];
    const COLUMNS: &'static [Column] = &[
        column("Phase", &["status", "phase"]),
        column("Volume", &["spec", "volume"]),
        column("Size", &["status", "size"]),
        column("Used", &["status", "used"]),
        Column {
            name: "Taken",
            wide: true,
            cell: &["status", "takenAt"],
        },
    ];

    fn check(&self, fields: &mut Fields) {
        fields.must(
            is_name(&self.spec.volume),
            "spec.volume",
            "it must be the name of a volume",
        );
    }

    fn check_change(&self, before: &Self, fields: &mut Fields) {
        fields.must(
            self.spec.volume == before.spec.volume,
            "spec.volume",
            "a snapshot is of one volume: make another snapshot",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(size: u64) -> Volume {
        Parts {
            spec: VolumeSpec {
                size: Some(Quantity::of(size)),
                source: None,
            },
            status: None,
        }
    }

    fn wrong(before: &Volume, after: &Volume) -> Vec<String> {
        let mut fields = Fields::default();
        after.check(&mut fields);
        after.check_change(before, &mut fields);
        fields.errors.into_iter().map(|one| one.field).collect()
    }

    #[test]
    fn a_volume_grows_and_never_shrinks_also_when_its_size_is_not_said() {
        let (small, large) = (volume(1 << 20), volume(2 << 20));
        assert!(wrong(&small, &large).is_empty());
        assert_eq!(wrong(&large, &small), ["spec.size"]);
        let mut grown = small.clone();
        grown.spec.size = None;
        grown.status = Some(VolumeStatus {
            size: large.spec.size,
            ..VolumeStatus::default()
        });
        assert_eq!(wrong(&grown, &small), ["spec.size"]);
    }

    #[test]
    fn what_it_began_as_is_one_thing_and_stays_it() {
        let empty = volume(1 << 20);
        let mut other = empty.clone();
        other.spec.source = Some(VolumeSource {
            volume_snapshot: "monday".to_owned(),
            ..VolumeSource::default()
        });
        assert_eq!(wrong(&empty, &other), ["spec.source"]);
        let mut both = other.clone();
        if let Some(source) = &mut both.spec.source {
            source.image = Some("/image".into());
        }
        assert_eq!(wrong(&both, &both), ["spec.source"]);
    }
}
