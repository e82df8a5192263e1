//! Claims of whole hosts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Fields, Parts, Placement, Resource, WorkloadStatus};

/// A claim of a whole host.
pub type BareMetal = Parts<BareMetalSpec, WorkloadStatus>;

/// Which host is claimed: it is drained, and nothing else runs there until the claim is deleted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct BareMetalSpec {
    /// Which hosts would do.
    pub placement: Placement,
}

impl Resource for BareMetal {
    const KIND: &'static str = "BareMetal";
    const PLURAL: &'static str = "baremetals";
    const SINGULAR: &'static str = "baremetal";
    const SHORT: &'static [&'static str] = &["bm"];
    const FINALIZERS: &'static [&'static str] = &[super::AGENT];
    const COLUMNS: &'static [Column] = &super::workload_columns!();

    fn check(&self, _fields: &mut Fields) {}
}
