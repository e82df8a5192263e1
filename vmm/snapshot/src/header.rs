//! What can be known of a snapshot without decoding it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use skerry_vmm_api::VmConfig;

/// A BLAKE3 checksum.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sum(pub [u8; 32]);

impl Sum {
    /// Of some bytes.
    pub fn of(bytes: &[u8]) -> Sum {
        Sum(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Sum, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = blake3::Hash::from_hex(&text).map_err(serde::de::Error::custom)?;
        Ok(Sum(*bytes.as_bytes()))
    }
}

/// A snapshot, described.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Names this snapshot and no other: 32 hexadecimal digits.
    pub id: String,
    /// What a diff snapshot builds on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Its disks went on under new layers: the VM was not stopped.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disks_go_on: bool,
    /// When it was taken, in seconds since 1970.
    pub created: u64,
    /// The version of the monitor that took it.
    pub monitor: String,
    /// The machine.
    pub machine: MachineFacts,
    /// What the guest was told of its CPUs.
    pub cpu: CpuFacts,
    /// Its devices, in the order of their slots.
    pub devices: Vec<DeviceFacts>,
    /// Its configuration, with the disks' layers as they were frozen.
    pub config: VmConfig,
    /// Its RAM.
    pub memory: MemoryFacts,
    /// What follows the header, in this order.
    pub records: Vec<Record>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The snapshot that a diff builds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Its id.
    pub id: String,
    /// Its directory; a relative one starts at the diff's.
    pub path: PathBuf,
}

/// The machine, in a few figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineFacts {
    /// The processor architecture.
    pub arch: String,
    /// CPUs.
    pub cpus: u32,
    /// The guest's TSC frequency in kHz; 0 if KVM did not tell.
    pub tsc_khz: u32,
}

/// What the guest was told of its CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuFacts {
    /// The vendor, as CPUID spells it.
    pub vendor: String,
    /// The model's name.
    pub model: String,
    /// CPUID of the first CPU.
    pub cpuid: Vec<CpuidLeaf>,
}

/// One leaf of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf(pub u32, pub u32, pub [u32; 4]);

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFacts {
    /// Its name.
    pub id: String,
    /// What it is.
    pub kind: String,
}

/// How much of RAM a snapshot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryKind {
    /// All of it.
    Full,
    /// What was written since the parent.
    Diff,
}

/// The memory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryFacts {
    /// How much of RAM it has.
    pub kind: MemoryKind,
    /// Bytes of RAM, and of the file.
    pub size: u64,
    /// Bytes of it that the file's ranges list.
    pub data: u64,
}

/// A part of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What it is of: `cpu`, `virtio`, …
    pub kind: String,
    /// Of which one.
    pub id: String,
    /// How its bytes are to be read.
    pub version: u32,
    /// Bytes.
    pub len: u64,
    /// Their checksum.
    pub sum: Sum,
}
