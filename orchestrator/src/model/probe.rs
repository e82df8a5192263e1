//! Probes: how it is found out whether a workload does what it is for, in the words of Kubernetes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fields, Port};

/// Seconds of a delay, a period or a timeout: a day.
const SECONDS: u32 = 86_400;
/// Probes in a row that count.
const THRESHOLD: u32 = 1000;
/// Words of a command, and bytes of all of them.
const WORDS: usize = 256;
const BYTES: usize = 16 << 10;
/// Bytes of a path.
const PATH: usize = 2048;

/// How it is found out whether a workload does what it is for: by exactly one of `exec`, `httpGet`,
/// `tcpSocket` and `vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Probe {
    /// A command in the container, which is to end with 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecAction>,
    /// An HTTP request to its address, answered by a status of 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpAction>,
    /// A port of its address that takes connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpAction>,
    /// A port of the VM's vsock that takes connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockAction>,
    /// So many seconds after its start it is probed for the first time.
    pub initial_delay_seconds: u32,
    /// How often it is probed, in seconds.
    pub period_seconds: u32,
    /// How long an answer may take, in seconds.
    pub timeout_seconds: u32,
    /// It is well after so many good answers in a row.
    pub success_threshold: u32,
    /// It is not well after so many bad answers in a row.
    pub failure_threshold: u32,
}

impl Default for Probe {
    fn default() -> Probe {
        Probe {
            exec: None,
            http_get: None,
            tcp_socket: None,
            vsock: None,
            initial_delay_seconds: 0,
            period_seconds: 10,
            timeout_seconds: 1,
            success_threshold: 1,
            failure_threshold: 3,
        }
    }
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecAction {
    /// Its words. No shell reads them.
    pub command: Vec<String>,
}

/// An HTTP request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpAction {
    /// The path.
    #[serde(default = "root")]
    pub path: String,
    /// The port.
    pub port: u16,
}

impl HttpAction {
    /// Says what is wrong with its path.
    pub(super) fn check_path(&self, at: &str, fields: &mut Fields) {
        let path = &self.path;
        let printed = path.bytes().all(|byte| byte.is_ascii_graphic());
        fields.must(
            path.starts_with('/') && path.len() <= PATH && printed,
            at,
            "it must begin with /, be of printed ASCII characters, and have 2048 of them at most",
        );
    }
}

/// A TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpAction {
    /// The port.
    pub port: u16,
}

/// A port of a vsock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockAction {
    /// The port.
    pub port: u32,
}

fn root() -> String {
    "/".to_owned()
}

/// What a workload can be asked by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach<'a> {
    /// Commands can be run in it.
    pub commands: bool,
    /// It has a vsock.
    pub vsock: bool,
    /// Its networks.
    pub networks: &'a [Port],
}

impl Reach<'_> {
    /// Says what is wrong with a workload's probes.
    pub fn check(self, liveness: Option<&Probe>, readiness: Option<&Probe>, fields: &mut Fields) {
        if let Some(probe) = liveness {
            self.check_one(probe, "spec.livenessProbe", fields);
            fields.must(
                probe.success_threshold == 1,
                "spec.livenessProbe.successThreshold",
                "it must be 1: what is started again begins well",
            );
        }
        if let Some(probe) = readiness {
            self.check_one(probe, "spec.readinessProbe", fields);
        }
    }

    fn check_one(self, probe: &Probe, at: &str, fields: &mut Fields) {
        let given = [
            probe.exec.is_some(),
            probe.http_get.is_some(),
            probe.tcp_socket.is_some(),
            probe.vsock.is_some(),
        ];
        fields.must(
            given.into_iter().filter(|given| *given).count() == 1,
            at,
            "give one of exec, httpGet, tcpSocket and vsock",
        );
        for (name, found, least, most) in [
            (
                "initialDelaySeconds",
                probe.initial_delay_seconds,
                0,
                SECONDS,
            ),
            ("periodSeconds", probe.period_seconds, 1, SECONDS),
            ("timeoutSeconds", probe.timeout_seconds, 1, SECONDS),
            ("successThreshold", probe.success_threshold, 1, THRESHOLD),
            ("failureThreshold", probe.failure_threshold, 1, THRESHOLD),
        ] {
            fields.must(
                (least..=most).contains(&found),
                &format!("{at}.{name}"),
                &format!("it must be {least} to {most}"),
            );
        }
        if let Some(exec) = &probe.exec {
            self.check_command(&exec.command, &format!("{at}.exec"), fields);
        }
        if let Some(http) = &probe.http_get {
            self.check_port(http.port.into(), &format!("{at}.httpGet"), fields);
            http.check_path(&format!("{at}.httpGet.path"), fields);
        }
        if let Some(tcp) = &probe.tcp_socket {
            self.check_port(tcp.port.into(), &format!("{at}.tcpSocket"), fields);
        }
        if let Some(vsock) = &probe.vsock {
            fields.must(
                self.vsock,
                &format!("{at}.vsock"),
                "it has no vsock: give a VM that boots a kernel `vsock: true`",
            );
            let good = vsock.port > 0;
            fields.must(good, &format!("{at}.vsock.port"), "it must be more than 0");
        }
    }

    fn check_command(self, command: &[String], at: &str, fields: &mut Fields) {
        fields.must(
            self.commands,
            at,
            "commands run in containers only: probe a VM by httpGet, tcpSocket or vsock",
        );
        let bytes: usize = command.iter().map(String::len).sum();
        let named = command.first().is_some_and(|program| !program.is_empty());
        fields.must(
            named && command.len() <= WORDS && bytes <= BYTES,
            &format!("{at}.command"),
            "it must be a program and its arguments, 256 words and 16 KiB at most",
        );
    }

    fn check_port(self, port: u32, at: &str, fields: &mut Fields) {
        fields.must(
            !self.networks.is_empty(),
            at,
            "it has no address to be asked at: give it `networks: [{network: default}]`",
        );
        fields.must(port > 0, &format!("{at}.port"), "it must be more than 0");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::model::{Container, Kind, MicroVM, kind_of};

    /// The fields that are wrong with a probe of a workload with a network.
    fn wrong(kind: &Kind, probe: &Value) -> Vec<String> {
        let spec = json!({
            "image": "/image",
            "networks": [{"network": "default"}],
            "livenessProbe": probe,
        });
        wrong_in(kind, spec)
    }

    fn wrong_in(kind: &Kind, mut spec: Value) -> Vec<String> {
        if *kind == *kind_of::<MicroVM>() {
            spec["boot"] = json!({"kernel": "/kernel"});
            spec.as_object_mut().map(|spec| spec.remove("image"));
        }
        let Value::Object(body) = json!({"spec": spec}) else {
            unreachable!("it is an object")
        };
        match kind.accept(body) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.into_iter().map(|error| error.field).collect(),
        }
    }

    #[test]
    fn a_probe_is_taken_with_what_was_left_out() {
        let kind = kind_of::<Container>();
        let spec = json!({"image": "/image", "readinessProbe": {"exec": {"command": ["true"]}}});
        let Value::Object(body) = json!({"spec": spec}) else {
            unreachable!("it is an object")
        };
        let body = kind.accept(body).expect("it can be");
        let probe = &body["spec"]["readinessProbe"];
        assert_eq!(
            (&probe["periodSeconds"], &probe["failureThreshold"]),
            (&json!(10), &json!(3))
        );
    }

    #[test]
    fn what_is_wrong_with_a_probe_is_said_with_its_field() {
        let container = kind_of::<Container>();
        for (probe, field) in [
            (json!({}), ""),
            (
                json!({"exec": {"command": ["true"]}, "tcpSocket": {"port": 1}}),
                "",
            ),
            (json!({"exec": {"command": []}}), ".exec.command"),
            (
                json!({"exec": {"command": vec!["a"; 300]}}),
                ".exec.command",
            ),
            (json!({"tcpSocket": {"port": 0}}), ".tcpSocket.port"),
            (json!({"tcpSocket": {"port": 70_000}}), ".tcpSocket.port"),
            (
                json!({"httpGet": {"port": 80, "path": "x"}}),
                ".httpGet.path",
            ),
            (
                json!({"httpGet": {"port": 80, "path": "/a b"}}),
                ".httpGet.path",
            ),
            (
                json!({"httpGet": {"port": 80, "path": "/\r\nx: y"}}),
                ".httpGet.path",
            ),
            (json!({"vsock": {"port": 5}}), ".vsock"),
            (
                json!({"tcpSocket": {"port": 1}, "periodSeconds": 0}),
                ".periodSeconds",
            ),
            (
                json!({"tcpSocket": {"port": 1}, "successThreshold": 2}),
                ".successThreshold",
            ),
            (
                json!({"tcpSocket": {"port": 1}, "failureThreshold": 1001}),
                ".failureThreshold",
            ),
        ] {
            let field = format!("spec.livenessProbe{field}");
            assert_eq!(wrong(container, &probe), [field], "{probe}");
        }
        let good = json!({"httpGet": {"port": 80, "path": "/health?deep=1"}});
        assert_eq!(wrong(container, &good), Vec::<String>::new());
    }

    #[test]
    fn a_vm_is_asked_by_its_network_or_its_vsock_and_only_where_it_has_one() {
        let vm = kind_of::<MicroVM>();
        let exec = json!({"exec": {"command": ["true"]}});
        assert_eq!(wrong(vm, &exec), ["spec.livenessProbe.exec"]);
        let vsock = json!({"vsock": {"port": 5000}});
        assert_eq!(wrong(vm, &vsock), ["spec.livenessProbe.vsock"]);
        let with = json!({"vsock": true, "readinessProbe": vsock});
        assert_eq!(wrong_in(vm, with), Vec::<String>::new());
        let alone = json!({"readinessProbe": {"tcpSocket": {"port": 22}}});
        assert_eq!(wrong_in(vm, alone), ["spec.readinessProbe.tcpSocket"]);
    }
}
