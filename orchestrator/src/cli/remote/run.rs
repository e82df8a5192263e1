//! `skerry run`: a workload in one line.

use std::path::{Path, PathBuf};
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
    /// Its kernel [default: that of its first --image]
    #[arg(long, value_name = "FILE", required_unless_present_any = ["snapshot", "image"])]
    kernel: Option<PathBuf>,
    /// Its initramfs
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line; what is added to it, if the kernel is an image's
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
    /// A disk on this image of the host's store, before those of files; repeatable
    #[arg(long, value_name = "NAME[:TAG]")]
    image: Vec<String>,
    /// A volume as a disk; repeatable
    #[arg(long, value_name = "NAME")]
    volume: Vec<String>,
    /// A network that it is on
    #[arg(long, value_name = "NAME")]
    network: Vec<String>,
    #[command(flatten)]
    told: Told,
    /// Start it again when it ends: Always, OnFailure, Never
    #[arg(long, value_name = "WHEN", default_value = "Always")]
    restart: String,
    /// Let a port of the host be its, such as 8080:80 or 5353:53/udp; repeatable
    #[arg(short, long, value_name = "[IP:]HOSTPORT:PORT[/udp]")]
    publish: Vec<Published>,
}

/// What cloud-init finds on the VM's last disk.
#[derive(Debug, Args)]
struct Told {
    /// A file of public keys whose owners may log in, such as ~/.ssh/id_ed25519.pub; repeatable
    #[arg(long, value_name = "FILE")]
    ssh_key: Vec<PathBuf>,
    /// What its host is called [default: its name]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// What its cloud-init is to do
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
}

impl Told {
    /// The field `firstBoot`; none if nothing of it is said.
    fn first_boot(&self) -> Result<Option<Value>, Failure> {
        let said = self.hostname.is_some() || self.user_data.is_some() || !self.ssh_key.is_empty();
        if !said {
            return Ok(None);
        }
        let mut keys = Vec::new();
        for file in &self.ssh_key {
            let text = text_of(file)?;
            let lines = text.lines().map(str::trim);
            let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
            keys.extend(lines.map(str::to_owned));
        }
        let user_data = self.user_data.as_deref().map(text_of).transpose()?;
        let mut first = json!({"sshKeys": keys});
        if let Some(name) = &self.hostname {
            first["hostname"] = name.as_str().into();
        }
        if let Some(text) = user_data {
            first["userData"] = text.into();
        }
        Ok(Some(first))
    }
}

fn text_of(file: &Path) -> Result<String, Failure> {
    let read = std::fs::read_to_string(file);
    read.map_err(|e| Failure::Asked(format!("cannot read {}: {e}", file.display())))
}

#[derive(Debug, Args)]
struct RunContainer {
    /// Its name
    name: String,
    /// Its image: the directory of an OCI layout, or an image of the host's store by its name
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

/// An image that is no directory here is one of the host's store.
fn image(path: PathBuf) -> PathBuf {
    match path.is_dir() || path.is_absolute() {
        true => absolute(path),
        false => path,
    }
}

/// Those that were named. Who has a port of the host has an address for it, whatever was named.
fn networks(named: &[String], publish: &[Published]) -> Value {
    match named.is_empty() && !publish.is_empty() {
        true => json!([{"network": "default"}]),
        false => named.iter().map(|name| json!({"network": name})).collect(),
    }
}

impl RunVm {
    fn spec(self) -> Result<Value, Failure> {
        let told = self.told.first_boot()?;
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
        let images = self.image.into_iter().map(|name| json!({"image": name}));
        let files = self
            .disk
            .into_iter()
            .map(|path| json!({"base": absolute(path)}));
        let named = images.chain(files).enumerate().map(|(n, mut disk)| {
            disk["name"] = format!("disk{n}").into();
            disk
        });
        let mut disks: Vec<Value> = named.collect();
        let volumes = self.volume.iter();
        disks.extend(volumes.map(|name| json!({"name": name, "volume": name})));
        let mut spec = json!({
            "cpus": self.cpus,
            "memory": self.memory,
            "boot": boot,
            "disks": disks,
            "networks": networks(&self.network, &self.publish),
            "publish": self.publish,
            "restartPolicy": self.restart,
        });
        if let Some(told) = told {
            spec["firstBoot"] = told;
        }
        Ok(spec)
    }
}

impl Run {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask(&self.remote.clone(), async move |client| {
            let (of, name, spec) = match self.what {
                What::Vm(vm) => ("microvms", vm.name.clone(), vm.spec()?),
                What::Container(container) => {
                    let spec = json!({
                        "image": image(container.image),
                        "command": container.command,
                        "cpu": container.cpu,
                        "memory": container.memory,
                        "networks": networks(&[], &container.publish),
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
