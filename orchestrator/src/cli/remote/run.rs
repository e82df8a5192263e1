//! `skerry run`: a workload in one line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::apply::apply;
use super::manifest::Declared;
use super::wait::until_ready;
use super::{Failure, Remote, ask, kind};
use crate::model::Published;

/// Run a VM or a container
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A microVM
    Vm(RunVm),
    /// A container
    Container(RunContainer),
}

#[derive(Debug, Args)]
struct RunVm {
    /// Its name
    name: String,
    /// Its kernel
    #[arg(long, value_name = "FILE", required_unless_present = "snapshot")]
    kernel: Option<PathBuf>,
    /// Its initramfs
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// A snapshot that it is a clone of
    #[arg(long, value_name = "DIR", conflicts_with = "kernel")]
    snapshot: Option<PathBuf>,
    /// CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Memory
    #[arg(long, value_name = "SIZE", default_value = "256Mi")]
    memory: String,
    /// A disk on this qcow2 image, which is only read; repeatable
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// Start it again when it ends: Always, OnFailure, Never
    #[arg(long, value_name = "WHEN", default_value = "Always")]
    restart: String,
    /// Let a port of the host be its, such as 8080:80 or 5353:53/udp; repeatable
    #[arg(short, long, value_name = "[IP:]HOSTPORT:PORT[/udp]")]
    publish: Vec<Published>,
}

#[derive(Debug, Args)]
struct RunContainer {
    /// Its name
    name: String,
    /// Its image: the directory of an OCI layout
    image: PathBuf,
    /// What runs in it, instead of the image's own command
    #[arg(last = true)]
    command: Vec<String>,
    /// Its share of CPUs
    #[arg(long, value_name = "AMOUNT", default_value = "1")]
    cpu: String,
    /// Memory
    #[arg(long, value_name = "SIZE", default_value = "128Mi")]
    memory: String,
    /// Start it again when it ends: Always, OnFailure, Never
    #[arg(long, value_name = "WHEN", default_value = "Always")]
    restart: String,
    /// Let a port of the host be its, such as 8080:80 or 5353:53/udp; repeatable
    #[arg(short, long, value_name = "[IP:]HOSTPORT:PORT[/udp]")]
    publish: Vec<Published>,
}

/// As the host sees it.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Who has a port of the host has an address for it.
fn networks(publish: &[Published]) -> Value {
    match publish.is_empty() {
        true => json!([]),
        false => json!([{"network": "default"}]),
    }
}

impl RunVm {
    fn spec(self) -> Value {
        let mut boot = Map::new();
        for (name, path) in [
            ("kernel", self.kernel),
            ("initramfs", self.initramfs),
            ("snapshot", self.snapshot),
        ] {
            if let Some(path) = path {
                boot.insert(name.into(), json!(absolute(path)));
            }
        }
        boot.insert("cmdline".into(), self.cmdline.into());
        let disks = self
            .disk
            .into_iter()
            .enumerate()
            .map(|(n, path)| json!({"name": format!("disk{n}"), "base": absolute(path)}));
        json!({
            "cpus": self.cpus,
            "memory": self.memory,
            "boot": boot,
            "disks": disks.collect::<Vec<_>>(),
            "networks": networks(&self.publish),
            "publish": self.publish,
            "restartPolicy": self.restart,
        })
    }
}

impl Run {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask(&self.remote.clone(), async move |client| {
            let (of, name, spec) = match self.what {
                What::Vm(vm) => ("microvms", vm.name.clone(), vm.spec()),
                What::Container(container) => {
                    let spec = json!({
                        "image": absolute(container.image),
                        "command": container.command,
                        "cpu": container.cpu,
                        "memory": container.memory,
                        "networks": networks(&container.publish),
                        "publish": container.publish,
                        "restartPolicy": container.restart,
                    });
                    ("containers", container.name, spec)
                }
            };
            let kind = kind(of).map_err(Failure::Asked)?;
            let namespace = self.remote.namespace.clone();
            let value = json!({
                "apiVersion": kind.api_version(),
                "kind": kind.kind,
                "metadata": {"name": name, "namespace": namespace},
                "spec": spec,
            });
            let declared = Declared {
                kind,
                namespace,
                name,
                value,
            };
            let what = apply(&client, &declared).await?;
            let limit = Duration::from_secs(120);
            until_ready(&client, kind, &declared.namespace, &declared.name, limit).await?;
            println!("{}/{} {what}, and runs", kind.singular, declared.name);
            Ok(0)
        })
    }
}
