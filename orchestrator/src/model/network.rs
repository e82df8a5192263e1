//! Networks of tenants: a bridge with addresses of its own on each host that they are on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Condition, Fields, Parts, Quantity, Resource};
use crate::network::{Limits, Subnet, Subnet6};

/// A network.
pub type Network = Parts<NetworkSpec, NetworkStatus>;

/// The finalizer of whoever removes a network from the host.
pub const NETWORK: &str = "skerry.io/network";

/// What a network is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its IPv4 addresses: `10.90.0.0/24`. Chosen if left out. The first is the gateway's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// It has IPv6 addresses beside those.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ipv6: bool,
    /// Its IPv6 addresses: `fd00:1:2:3::/64`. Chosen if left out, where it is to have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<String>,
    /// What leaves it does so with the host's address, and nobody outside begins to speak with those inside.
    pub nat: bool,
    /// How much goes through each port of it, if the workload does not say otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
}

impl Default for NetworkSpec {
    fn default() -> NetworkSpec {
        NetworkSpec {
            subnet: None,
            ipv6: false,
            subnet6: None,
            nat: true,
            bandwidth: None,
        }
    }
}

/// How much goes through a port, in bits a second; as much as there is if it is not said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Bandwidth {
    /// To the workload: `100M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Quantity>,
    /// From the workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Quantity>,
}

/// Bits a second: less lets no connection live, and more is no limit.
const LEAST: u64 = 64_000;
const MOST: u64 = 1_000_000_000_000;

impl Bandwidth {
    /// Says what is wrong with it.
    pub(super) fn check(&self, at: &str, fields: &mut Fields) {
        for (name, value) in [("ingress", self.ingress), ("egress", self.egress)] {
            let good = value.is_none_or(|value| (LEAST..=MOST).contains(&value.whole()));
            fields.must(
                good,
                &format!("{at}.{name}"),
                "it must be 64k to 1T: bits a second",
            );
        }
    }

    /// The limits that it means.
    pub fn limits(&self) -> Limits {
        Limits {
            ingress: self.ingress.map(Quantity::whole),
            egress: self.egress.map(Quantity::whole),
        }
    }
}

/// How a network is doing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NetworkStatus {
    /// Its bridge on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bridge: String,
    /// Its IPv4 addresses.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subnet: String,
    /// Its IPv6 addresses, if it has any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subnet6: String,
    /// How many IPv4 addresses workloads have.
    pub addresses_used: u32,
    /// The generation that this is about.
    pub observed_generation: u64,
    /// What is so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl Resource for Network {
    const KIND: &'static str = "Network";
    const PLURAL: &'static str = "networks";
    const SINGULAR: &'static str = "network";
    const SHORT: &'static [&'static str] = &["net", "nets"];
    const FINALIZERS: &'static [&'static str] = &[NETWORK];
    const COLUMNS: &'static [Column] = &[
        Column {
            name: "Subnet",
            wide: false,
            cell: &["status", "subnet"],
        },
        Column {
            name: "Subnet6",
            wide: true,
            cell: &["status", "subnet6"],
        },
        Column {
            name: "Used",
            wide: false,
            cell: &["status", "addressesUsed"],
        },
        Column {
            name: "Bridge",
            wide: true,
            cell: &["status", "bridge"],
        },
    ];

    fn check(&self, fields: &mut Fields) {
        let spec = &self.spec;
        if let Some(Err(e)) = spec.subnet.as_ref().map(|text| text.parse::<Subnet>()) {
            fields.wrong("spec.subnet", e.to_string());
        }
        if let Some(Err(e)) = spec.subnet6.as_ref().map(|text| text.parse::<Subnet6>()) {
            fields.wrong("spec.subnet6", e.to_string());
        }
        if let Some(bandwidth) = &spec.bandwidth {
            bandwidth.check("spec.bandwidth", fields);
        }
    }
}
