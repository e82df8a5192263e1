//! Two VMs and two containers that are declared together: they run and reach each other, whoever is killed, and after a
//! reboot; and the stock client shows and deletes them.

use std::path::Path;
use std::time::Duration;

use skerry_stage::{ADDRESSES, container};

use crate::eventually;
use crate::host::{Host, kill, processes};

const WORKLOADS: [(&str, &str); 4] = [
    ("vm", "vm-one"),
    ("vm", "vm-two"),
    ("container", "one"),
    ("container", "two"),
];

/// What the VMs are, and how it is seen that they work.
pub struct Together<'a> {
    /// The VMs `vm-one` and `vm-two`.
    pub vms: String,
    /// The image's layout of the containers.
    pub image: &'a Path,
    /// What a VM says again and again when it reaches a peer, if it does.
    pub goes_on: Option<fn(&str) -> String>,
    /// What it says once.
    pub says: &'a str,
    /// How long all of it may take to start.
    pub limit: Duration,
}

impl Together<'_> {
    /// Lets them live through everything, and go.
    pub fn live(&self, mut host: Host) {
        let manifest = host.manifest(&format!("{}{}", self.vms, self.containers()));
        host.must(&["apply", "--wait", "-f", &manifest]);
        self.work(&host);
        let shown = host.kubectl_must(&["get", "vms,containers"]);
        for (_, name) in WORKLOADS {
            let line = shown.lines().find(|line| line.contains(name));
            assert!(line.is_some_and(|line| line.contains("Running")), "{shown}");
        }

        // The agent.
        let monitors = host.monitors();
        host.kill();
        assert_eq!(host.monitors(), monitors);
        host.up();
        self.work(&host);
        assert_eq!(host.monitors(), monitors);
        self.restarted(&host, [0, 0, 0, 0]);

        // A monitor, and a container.
        self.kill_one(&host, "vms", "vm", "vm-one");
        self.kill_one(&host, "containers/containers", "container", "two");
        self.restarted(&host, [1, 0, 0, 1]);
        self.work(&host);

        // The host.
        host.reboot();
        for (kind, name) in WORKLOADS {
            host.until(kind, name, self.limit, |s| s["phase"] == "Running");
        }
        self.work(&host);

        let uids = WORKLOADS.map(|(kind, name)| {
            let object = host.object(kind, name);
            text(&object["metadata"]["uid"]).to_owned()
        });
        // The payload listens to no power button meanwhile.
        host.kubectl_must(&["delete", "--grace-period=1", "-f", &manifest]);
        assert_eq!(host.left(uids.iter()), Vec::<String>::new());
    }

    fn containers(&self) -> String {
        container("one", self.image, ADDRESSES[2]) + &container("two", self.image, ADDRESSES[3])
    }

    /// Waits until everybody has reached everybody, from now on.
    fn work(&self, host: &Host) {
        for (at, (kind, name)) in WORKLOADS.into_iter().enumerate() {
            let workload = format!("{kind}/{name}");
            let line: fn(&str) -> String = match (kind, self.goes_on) {
                ("container", _) => |peer| format!("reaches {peer}"),
                (_, Some(line)) => line,
                (_, None) => {
                    eventually(
                        &format!("{workload} says {}", self.says),
                        self.limit,
                        || {
                            let log = host.must(&["logs", &workload]);
                            log.contains(self.says).then_some(())
                        },
                    );
                    continue;
                }
            };
            let count = |peer: &str| {
                let log = host.must(&["logs", &workload]);
                log.lines()
                    .filter(|said| said.contains(&line(peer)))
                    .count()
            };
            for (_, peer) in ADDRESSES.iter().enumerate().filter(|(peer, _)| *peer != at) {
                let before = count(peer);
                eventually(&format!("{workload} reaches {peer}"), self.limit, || {
                    (count(peer) > before).then_some(())
                });
            }
        }
    }

    /// Kills what runs a workload, and waits until it runs again.
    fn kill_one(&self, host: &Host, folder: &str, kind: &str, name: &str) {
        let restarts = |object: &serde_json::Value| object["restarts"].as_u64().expect("a number");
        let object = host.object(kind, name);
        let (uid, before) = (
            text(&object["metadata"]["uid"]),
            restarts(&object["status"]),
        );
        let running = processes(&host.state().join(folder).join(uid));
        let [process] = running[..] else {
            panic!("{kind} {name} is run by {running:?}");
        };
        kill(process);
        host.until(kind, name, self.limit, |status| {
            status["phase"] == "Running" && restarts(status) == before + 1
        });
    }

    fn restarted(&self, host: &Host, wanted: [u64; 4]) {
        let restarts =
            WORKLOADS.map(|(kind, name)| host.object(kind, name)["status"]["restarts"].as_u64());
        assert_eq!(restarts, wanted.map(Some));
    }
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().expect("text")
}
