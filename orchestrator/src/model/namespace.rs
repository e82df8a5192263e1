//! Namespaces: tenants, and how much each may have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Column, Fields, Quantity, Resource};

/// A tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Namespace {
    /// How much it may have.
    pub spec: NamespaceSpec,
    /// How far it has come.
    pub status: NamespaceStatus,
}

/// How much a tenant may have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NamespaceSpec {
    /// The most that all its objects together may want; there is no limit of what is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<Amounts>,
    /// Kubernetes's own fields; nothing of them is used.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// Amounts of what objects want.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Amounts {
    /// CPUs of microVMs and containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Quantity>,
    /// Their memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// The sizes of volumes and of their snapshots, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Quantity>,
    /// How many microVMs and containers there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workloads: Option<Quantity>,
}

/// How far a tenant has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NamespaceStatus {
    /// `Active`.
    pub phase: String,
    /// What its objects want together, of that which is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<Amounts>,
}

impl Default for NamespaceStatus {
    fn default() -> Self {
        NamespaceStatus {
            phase: "Active".to_owned(),
            used: None,
        }
    }
}

impl Resource for Namespace {
    const GROUP: &'static str = "";
    const KIND: &'static str = "Namespace";
    const PLURAL: &'static str = "namespaces";
    const SINGULAR: &'static str = "namespace";
    const SHORT: &'static [&'static str] = &["ns"];
    const NAMESPACED: bool = false;
    const COLUMNS: &'static [Column] = &[Column {
        name: "Status",
        wide: false,
        cell: &["status", "phase"],
    }];

    fn check(&self, _fields: &mut Fields) {}
}
