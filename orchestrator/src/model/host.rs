//! Hosts: what they have, and whether they take more.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Condition, Fields, Parts, Quantity, Resource, Timestamp};

/// A host.
pub type Host = Parts<HostSpec, HostStatus>;

/// What a host is to do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HostSpec {
    /// It takes nothing new.
    pub unschedulable: bool,
    /// What runs there is to go.
    pub drain: bool,
    /// What keeps workloads away that do not tolerate it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
}

/// What keeps workloads away.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

/// What a host has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HostStatus {
    /// CPUs.
    pub cpus: u32,
    /// Memory for workloads, in bytes.
    pub memory: Quantity,
    /// Free space for disks, in bytes.
    pub disk: Quantity,
    /// Free 2 MiB pages.
    pub hugepages: u64,
    /// Its address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Its kernel.
    pub kernel: String,
    /// The agent's version.
    pub agent: String,
    /// Its KVM can run Linux.
    pub kvm: String,
    /// When its agent was heard last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heard_at: Option<Timestamp>,
    /// `Ready`, or what it is instead.
    pub phase: String,
    /// What is so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl Resource for Host {
    const KIND: &'static str = "Host";
    const PLURAL: &'static str = "hosts";
    const SINGULAR: &'static str = "host";
    const NAMESPACED: bool = false;
    const COLUMNS: &'static [Column] = &[
        Column {
            name: "Status",
            wide: false,
            cell: &["status", "phase"],
        },
        Column {
            name: "CPUs",
            wide: false,
            cell: &["status", "cpus"],
        },
        Column {
            name: "Memory",
            wide: false,
            cell: &["status", "memory"],
        },
        Column {
            name: "Kernel",
            wide: true,
            cell: &["status", "kernel"],
        },
        Column {
            name: "KVM",
            wide: true,
            cell: &["status", "kvm"],
        },
    ];

    fn check(&self, _fields: &mut Fields) {}
}
