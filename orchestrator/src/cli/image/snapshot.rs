//! `skerry image snapshot`.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;
use skerry_images::chain::Layer;
use skerry_images::io::{Port, block_on};
use skerry_images::qcow2::Snapshot as Saved;

use super::layers::Source;
use super::output::{Output, print_json};
use super::{Failure, Outcome, bytes, date};

/// List, make, apply or delete internal snapshots.
#[derive(Debug, Args)]
pub struct Snapshot {
    #[command(flatten)]
    what: What,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Args)]
#[group(required = false, multiple = false)]
struct What {
    /// List them (what is done if nothing is said)
    #[arg(short, long)]
    list: bool,

    /// Keep the disk as it is now, under this name
    #[arg(short, long, value_name = "NAME")]
    create: Option<String>,

    /// Make the disk what it was then
    #[arg(short, long, value_name = "NAME")]
    apply: Option<String>,

    /// Forget it, and free what only it holds
    #[arg(short, long, value_name = "NAME")]
    delete: Option<String>,
}

/// A snapshot, as qemu-img says it in JSON.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Answer {
    id: String,
    name: String,
    vm_state_size: u64,
    date_sec: u32,
    date_nsec: u32,
    vm_clock_sec: u64,
    vm_clock_nsec: u64,
}

impl From<&Saved> for Answer {
    fn from(saved: &Saved) -> Answer {
        Answer {
            id: saved.id.clone(),
            name: saved.name.clone(),
            vm_state_size: saved.vm_state,
            date_sec: saved.date.0,
            date_nsec: saved.date.1,
            vm_clock_sec: saved.clock / 1_000_000_000,
            vm_clock_nsec: saved.clock % 1_000_000_000,
        }
    }
}

impl Snapshot {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let port = Port::new();
        block_on(&port, self.act(&port))
    }

    async fn act(&self, port: &Port) -> Outcome {
        let what = &self.what;
        let list = what.create.is_none() && what.apply.is_none() && what.delete.is_none();
        let Layer::Qcow2(image) = self.source.open_alone(port, list, false).await? else {
            return Err(Failure::Asked(format!(
                "{} is raw, and a raw image holds no snapshots: convert it to qcow2 first",
                self.source.file.display()
            )));
        };
        if list {
            let saved = image.snapshots(port).await?;
            let answers: Vec<Answer> = saved.iter().map(Answer::from).collect();
            if self.output.json() {
                print_json(&answers)?;
            } else {
                print_table(&answers);
            }
            return Ok(0);
        }
        if let Some(name) = &what.create {
            // A clock before 1970 is not set at all.
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let date = (now.as_secs() as u32, now.subsec_nanos());
            image.snapshot_create(port, name, date).await?;
        }
        if let Some(name) = &what.apply {
            image.snapshot_apply(port, name).await?;
        }
        if let Some(name) = &what.delete {
            image.snapshot_delete(port, name).await?;
        }
        image.close(port).await?;
        Ok(0)
    }
}

/// Prints snapshots as a table; times are UTC.
pub fn print_table(snapshots: &[Answer]) {
    if snapshots.is_empty() {
        return;
    }
    println!("Snapshot list:");
    println!(
        "{:<7} {:<16} {:>8} {:>20} {:>15}",
        "ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK"
    );
    for s in snapshots {
        let clock = format!(
            "{:04}:{:02}:{:02}.{:03}",
            s.vm_clock_sec / 3600,
            s.vm_clock_sec / 60 % 60,
            s.vm_clock_sec % 60,
            s.vm_clock_nsec / 1_000_000
        );
        // What the image says stays on its line.
        println!(
            "{:<7} {:<16} {:>8} {:>20} {clock:>15}",
            s.id.escape_debug().to_string(),
            s.name.escape_debug().to_string(),
            bytes::show(s.vm_state_size),
            date::show(s.date_sec.into()),
        );
    }
}
