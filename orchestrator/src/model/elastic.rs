//! Elastic addresses: an address of the outside that is one workload's, as long as it is said so.

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Condition, Fields, Parts, Resource};

/// An elastic address.
pub type ElasticAddress = Parts<ElasticSpec, ElasticStatus>;

/// Bytes of an interface's name, without the zero behind it.
const INTERFACE: usize = 15;

/// Which address is whose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ElasticSpec {
    /// The address. The host takes it on, and hands on all that is sent to it.
    pub address: Ipv4Addr,
    /// The workload that it is handed on to, and whose packets to the outside come from it.
    pub target: Target,
    /// The host's interface to the outside; that of its default route if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// A workload of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `MicroVM` or `Container`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// How an elastic address is doing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ElasticStatus {
    /// The interface that has it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// The workload's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Ipv4Addr>,
    /// The generation that this is about.
    pub observed_generation: u64,
    /// What is so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Whether an address can be one host's.
fn is_unicast(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback() && !address.is_link_local()
}

/// Whether it can be an interface's name.
fn is_interface(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    (1..=INTERFACE).contains(&name.len()) && name.bytes().all(good)
}

impl Resource for ElasticAddress {
    const KIND: &'static str = "ElasticAddress";
    const PLURAL: &'static str = "elasticaddresses";
    const SINGULAR: &'static str = "elasticaddress";
    const SHORT: &'static [&'static str] = &["eip"];
    const COLUMNS: &'static [Column] = &[
        Column {
            name: "Address",
            wide: false,
            cell: &["spec", "address"],
        },
        Column {
            name: "Target",
            wide: false,
            cell: &["spec", "target", "name"],
        },
        Column {
            name: "At",
            wide: false,
            cell: &["status", "target"],
        },
        Column {
            name: "Interface",
            wide: true,
            cell: &["status", "interface"],
        },
    ];

    fn check(&self, fields: &mut Fields) {
        let spec = &self.spec;
        fields.must(
            is_unicast(spec.address),
            "spec.address",
            "it must be an address that a host can have",
        );
        fields.must(
            matches!(spec.target.kind.as_str(), "MicroVM" | "Container"),
            "spec.target.kind",
            "it must be MicroVM or Container",
        );
        fields.must(
            super::is_name(&spec.target.name),
            "spec.target.name",
            "it must be a workload's name",
        );
        fields.must(
            spec.interface.as_deref().is_none_or(is_interface),
            "spec.interface",
            "it is no name of an interface",
        );
    }
}
