//! Services: one address for several workloads.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Condition, Fields, HttpAction, Parts, Protocol, Resource, TcpAction};

/// A service.
pub type Service = Parts<ServiceSpec, ServiceStatus>;

/// Ports of a service.
const PORTS: usize = 16;
/// Milliseconds between checks, or of a check.
const MILLIS: std::ops::RangeInclusive<u32> = 50..=60_000;
/// Checks in a row that count.
const THRESHOLD: u32 = 100;

/// Who is behind a service, and where it is reached.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// The labels of the workloads that it is served by, all of its own namespace.
    pub selector: BTreeMap<String, String>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Its address, of the hosts' subnet for services; chosen if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Ports of the host that are this service's, in the order of `ports`: the first is handed on to the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<u16>,
    /// How it is found out who can serve. Without it, whoever runs and is ready can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// A port of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The service's port.
    pub port: u16,
    /// The workloads' port; the same if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// What is sent to it.
    #[serde(default)]
    pub protocol: Protocol,
}

impl ServicePort {
    /// The workloads' port.
    pub fn target(&self) -> u16 {
        self.target_port.unwrap_or(self.port)
    }
}

/// A question to each workload behind a service, asked again and again: exactly one of `tcpSocket` and `httpGet`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HealthCheck {
    /// A port that takes connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpAction>,
    /// An HTTP request, answered by a status of 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpAction>,
    /// How often it is asked, in milliseconds.
    pub interval_millis: u32,
    /// How long an answer may take, in milliseconds.
    pub timeout_millis: u32,
    /// It cannot serve after so many bad answers in a row.
    pub failures: u32,
    /// It can serve again after so many good answers in a row.
    pub successes: u32,
}

impl Default for HealthCheck {
    fn default() -> HealthCheck {
        HealthCheck {
            tcp_socket: None,
            http_get: None,
            interval_millis: 250,
            timeout_millis: 250,
            failures: 2,
            successes: 1,
        }
    }
}

/// How a service is doing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ServiceStatus {
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// How many of its endpoints can serve.
    pub healthy: u32,
    /// Those whom its selector names, and who have an address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// The generation that this is about.
    pub observed_generation: u64,
    /// What is so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A workload behind a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// The workload: `container/web-1`.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Whether it can serve.
    pub healthy: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl HealthCheck {
    fn check(&self, fields: &mut Fields) {
        let at = "spec.healthCheck";
        fields.must(
            self.tcp_socket.is_some() != self.http_get.is_some(),
            at,
            "give one of tcpSocket and httpGet",
        );
        for (name, found) in [
            ("intervalMillis", self.interval_millis),
            ("timeoutMillis", self.timeout_millis),
        ] {
            fields.must(
                MILLIS.contains(&found),
                &format!("{at}.{name}"),
                "it must be 50 to 60000",
            );
        }
        for (name, found) in [("failures", self.failures), ("successes", self.successes)] {
            fields.must(
                (1..=THRESHOLD).contains(&found),
                &format!("{at}.{name}"),
                "it must be 1 to 100",
            );
        }
        let more = "it must be more than 0";
        if let Some(tcp) = &self.tcp_socket {
            fields.must(tcp.port > 0, &format!("{at}.tcpSocket.port"), more);
        }
        if let Some(http) = &self.http_get {
            fields.must(http.port > 0, &format!("{at}.httpGet.port"), more);
            http.check_path(&format!("{at}.httpGet.path"), fields);
        }
    }
}

impl Resource for Service {
    const KIND: &'static str = "Service";
    const PLURAL: &'static str = "services";
    const SINGULAR: &'static str = "service";
    const SHORT: &'static [&'static str] = &["svc"];
    const COLUMNS: &'static [Column] = &[
        Column {
            name: "Address",
            wide: false,
            cell: &["status", "address"],
        },
        Column {
            name: "Healthy",
            wide: false,
            cell: &["status", "healthy"],
        },
        Column {
            name: "Published",
            wide: true,
            cell: &["spec", "publish"],
        },
    ];

    fn check(&self, fields: &mut Fields) {
        let spec = &self.spec;
        fields.must(
            !spec.selector.is_empty(),
            "spec.selector",
            "give the labels of the workloads that serve",
        );
        let labels = spec.selector.len() <= super::MOST;
        fields.must(labels, "spec.selector", "there may be 64");
        if spec.ports.is_empty() || spec.ports.len() > PORTS {
            return fields.wrong("spec.ports", "there must be 1 to 16");
        }
        for (n, port) in spec.ports.iter().enumerate() {
            let at = format!("spec.ports[{n}]");
            let more = "it must be more than 0";
            fields.must(port.port > 0, &format!("{at}.port"), more);
            fields.must(port.target() > 0, &format!("{at}.targetPort"), more);
            let same = |other: &ServicePort| {
                (other.port, other.protocol) == (port.port, port.protocol)
                    || (!port.name.is_empty() && other.name == port.name)
            };
            let twice = spec.ports[..n].iter().any(same);
            fields.must(!twice, &at, "another port has this name or number");
            let named = port.name.is_empty() || super::is_name(&port.name);
            let what = "it must be of a-z, 0-9 and -";
            fields.must(named, &format!("{at}.name"), what);
        }
        fields.must(
            spec.publish.len() <= spec.ports.len(),
            "spec.publish",
            "there are more of them than `ports`",
        );
        for (n, port) in spec.publish.iter().enumerate() {
            let at = format!("spec.publish[{n}]");
            fields.must(*port > 0, &at, "it must be more than 0");
        }
        if let Some(check) = &spec.health_check {
            check.check(fields);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::model::{ElasticAddress, Kind, Service, kind_of};

    fn wrong(kind: &Kind, spec: &Value) -> Vec<String> {
        let Value::Object(body) = json!({"spec": spec}) else {
            unreachable!("it is an object")
        };
        match kind.accept(body) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.into_iter().map(|error| error.field).collect(),
        }
    }

    #[test]
    fn what_is_wrong_with_a_service_is_said_with_its_field() {
        let kind = kind_of::<Service>();
        let good = json!({
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
            "publish": [8000],
            "healthCheck": {"httpGet": {"port": 8080}},
        });
        assert_eq!(wrong(kind, &good), Vec::<String>::new());
        for (path, value, field) in [
            ("selector", json!({}), "spec.selector"),
            ("ports", json!([]), "spec.ports"),
            ("ports", json!([{"port": 0}]), "spec.ports[0].port"),
            ("ports", json!([{"port": 1}, {"port": 1}]), "spec.ports[1]"),
            ("publish", json!([1, 2, 3]), "spec.publish"),
            ("publish", json!([0]), "spec.publish[0]"),
            ("address", json!("10.96.0.300"), "spec.address"),
            ("healthCheck", json!({}), "spec.healthCheck"),
            (
                "healthCheck",
                json!({"tcpSocket": {"port": 80}, "intervalMillis": 1}),
                "spec.healthCheck.intervalMillis",
            ),
            (
                "healthCheck",
                json!({"httpGet": {"port": 80, "path": "/a b"}}),
                "spec.healthCheck.httpGet.path",
            ),
        ] {
            let mut spec = good.clone();
            spec[path] = value;
            let found = wrong(kind, &spec);
            let said = found.first().map_or("", String::as_str);
            assert!(said.starts_with(field), "{path}: {found:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_elastic_address_is_said_with_its_field() {
        let kind = kind_of::<ElasticAddress>();
        let good =
            json!({"address": "203.0.113.7", "target": {"kind": "Container", "name": "web"}});
        assert_eq!(wrong(kind, &good), Vec::<String>::new());
        for (path, value, field) in [
            ("address", json!("127.0.0.1"), "spec.address"),
            ("address", json!("224.0.0.1"), "spec.address"),
            (
                "target",
                json!({"kind": "Host", "name": "web"}),
                "spec.target.kind",
            ),
            (
                "target",
                json!({"kind": "Container", "name": ""}),
                "spec.target.name",
            ),
            ("interface", json!("a/b"), "spec.interface"),
        ] {
            let mut spec = good.clone();
            spec[path] = value;
            assert_eq!(wrong(kind, &spec), [field], "{path}");
        }
    }
}
