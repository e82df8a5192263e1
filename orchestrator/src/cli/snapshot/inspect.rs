//! `skerry snapshot inspect`.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use skerry_snapshot::{Directory, Header, MemoryKind, Record};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::{ImageType, NetConfig};

use super::output::{Output, on_a_line, print_json};
use super::{Outcome, bytes, date, disks};

/// Say what a snapshot is of
///
/// Only its header is read: memory, parents and disks may be missing.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The snapshot's directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Answer<'a> {
    directory: &'a Path,
    format: u32,
    #[serde(flatten)]
    header: Header,
}

impl Inspect {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let (format, header) = Directory::new(&self.directory).describe()?;
        let answer = Answer {
            directory: &self.directory,
            format,
            header,
        };
        if self.output.json() {
            print_json(&answer)?;
        } else {
            answer.print();
        }
        Ok(0)
    }
}

/// Prints a line. The snapshot says what is on it: it stays one.
fn line(name: &str, value: impl Display) {
    println!("{name}: {}", on_a_line(&value.to_string()));
}

/// Prints a line below another.
fn below(depth: usize, value: impl Display) {
    println!("{}{}", "    ".repeat(depth), on_a_line(&value.to_string()));
}

impl Answer<'_> {
    fn print(&self) {
        let header = &self.header;
        line("snapshot", self.directory.display());
        line("id", &header.id);
        if let Some(parent) = &header.parent {
            let path = parent.path.display();
            line("builds on", format!("{path} (id {})", parent.id));
        }
        line("taken", format!("{} UTC", date::show(header.created)));
        line("monitor version", &header.monitor);
        line("format version", self.format);
        let (arch, cpus) = (&header.machine.arch, header.machine.cpus);
        let plural = if cpus == 1 { "" } else { "s" };
        let memory = &header.memory;
        let size = bytes::show(memory.size);
        line(
            "machine",
            format!("{arch}, {cpus} CPU{plural}, {size} of memory"),
        );
        match header.machine.tsc_khz {
            0 => line("TSC", "not known"),
            khz => line("TSC", format!("{}.{:03} MHz", khz / 1000, khz % 1000)),
        }
        let (vendor, model) = (&header.cpu.vendor, &header.cpu.model);
        match model.is_empty() {
            true => line("CPU", vendor),
            false => line("CPU", format!("{vendor}, {model}")),
        }
        let kind = match memory.kind {
            MemoryKind::Full => "full",
            MemoryKind::Diff => "diff",
        };
        line(
            "memory",
            format!(
                "{kind}, {} of {size} ({} of {} bytes)",
                bytes::show(memory.data),
                memory.data,
                memory.size
            ),
        );
        print_payload(&header.config);
        println!("Devices:");
        for device in &header.devices {
            below(1, format!("{}: {}", device.id, device.kind));
        }
        print_disks(&header.config);
        print_networks(&header.config.net);
        if let Some(vsock) = &header.config.vsock {
            let (cid, socket) = (vsock.cid, vsock.socket.display());
            line("sockets", format!("context id {cid}, {socket}"));
        }
        print_records(&header.records);
    }
}

fn print_payload(config: &VmConfig) {
    let payload = &config.payload;
    let files = [
        ("kernel", &payload.kernel),
        ("initramfs", &payload.initramfs),
    ];
    for (name, path) in files {
        if let Some(path) = path {
            line(name, path.display());
        }
    }
    if let Some(cmdline) = &payload.cmdline {
        line("command line", cmdline);
    }
}

fn print_disks(config: &VmConfig) {
    if config.disks.is_empty() {
        return;
    }
    println!("Disks, the uppermost layer first:");
    for disk in &config.disks {
        let id = disk.id.as_deref().unwrap_or_default();
        let readonly = if disk.readonly { " (read only)" } else { "" };
        below(1, format!("{id}{readonly}"));
        for layer in disks::layers(disk) {
            let format = match layer.format {
                ImageType::Raw => "raw",
                ImageType::Qcow2 => "qcow2",
            };
            let path = layer.path.display();
            match &layer.data_file {
                None => below(2, format!("{path} ({format})")),
                Some(data) => below(2, format!("{path} ({format}, data in {})", data.display())),
            }
        }
        if let Some(socket) = disk.vhost_socket.as_ref().filter(|_| disk.vhost_user) {
            below(2, format!("served at {}", socket.display()));
        }
    }
}

fn print_networks(networks: &[NetConfig]) {
    if networks.is_empty() {
        return;
    }
    println!("Networks:");
    for net in networks {
        let place = match net.vhost_socket.as_ref().filter(|_| net.vhost_user) {
            Some(socket) => format!("served at {}", socket.display()),
            None => format!("tap {}", net.tap),
        };
        let mac = net.mac.as_ref().map(|mac| format!(", {mac}"));
        let id = net.id.as_deref().unwrap_or_default();
        below(1, format!("{id}: {place}{}", mac.unwrap_or_default()));
    }
}

fn print_records(records: &[Record]) {
    println!("Records:");
    let row = |kind: &str, id: &str, version: &str, len: &str| {
        below(1, format!("{kind:<16} {id:<20} {version:>8} {len:>12}"));
    };
    row("KIND", "ID", "VERSION", "BYTES");
    for r in records {
        row(&r.kind, &r.id, &r.version.to_string(), &r.len.to_string());
    }
}
