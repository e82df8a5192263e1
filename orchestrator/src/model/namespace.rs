//! Namespaces: tenants.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Column, Fields, Resource};

/// A tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Namespace {
    /// Kubernetes's own field; nothing of it is used.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub spec: Map<String, Value>,
    /// How far it has come.
    pub status: NamespaceStatus,
}

/// How far a tenant has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NamespaceStatus {
    /// `Active`.
    pub phase: String,
}

impl Default for NamespaceStatus {
    fn default() -> Self {
        NamespaceStatus {
            phase: "Active".to_owned(),
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
