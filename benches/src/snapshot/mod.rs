//! `skerry-bench snapshot`: how soon a machine goes on from a snapshot, and how long it stands still for one.

mod pause;
mod restore;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::machine::tsc_khz;
use crate::peer::{Kind, Peer, PeerArguments};
use crate::report::{Report, ReportArguments};
use crate::size::Size;

/// `skerry-bench snapshot`.
#[derive(Args)]
pub struct SnapshotArguments {
    #[command(flatten)]
    peers: PeerArguments,
    #[command(flatten)]
    report: ReportArguments,
    /// Times that each is measured, in turns
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Sizes of the guests that are restored
    #[arg(long, value_delimiter = ',', default_value = "256M,1G,4G,8G")]
    sizes: Vec<Size>,
    /// MiB that a guest that is restored has touched
    #[arg(long, default_value_t = 8)]
    touched: u64,
    /// Where the snapshots are kept: a file system like that of real ones
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Measure only this
    #[arg(long)]
    only: Option<Part>,
    /// Small guests and few runs: to see that it works, and for --check
    #[arg(long, conflicts_with_all = ["runs", "sizes"])]
    quick: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Going on from a snapshot.
    Restore,
    /// Standing still for one.
    Pause,
}

/// All that both parts need.
struct Bench {
    kernel: PathBuf,
    monitors: Vec<Peer>,
    tsc_khz: u64,
    /// Where snapshots are kept, until the end.
    folder: tempfile::TempDir,
    runs: usize,
    sizes: Vec<Size>,
    touched: u64,
}

/// Measures and prints.
pub fn run(arguments: &SnapshotArguments) -> Result<()> {
    const QUICK_RUNS: usize = 3;
    let monitors = arguments.peers.monitors()?;
    let drives = |kind| matches!(kind, Kind::Skerry | Kind::Firecracker);
    if let Some(other) = monitors.iter().find(|m| !drives(m.kind)) {
        bail!("{}'s snapshots are not driven here", other.kind.name());
    }
    if monitors.is_empty() {
        bail!("no monitor to measure: pass --vmm PATH or --peer firecracker=PATH");
    }
    let quick = arguments.quick;
    let sizes = match quick {
        true => vec![Size::mib(256), Size::mib(1024)],
        false => arguments.sizes.clone(),
    };
    let directory = std::path::absolute(&arguments.directory).context("the directory")?;
    let mut report = Report::new(&arguments.report, arguments.peers.host()?);
    let bench = Bench {
        kernel: arguments.peers.kernel()?,
        monitors,
        tsc_khz: tsc_khz(),
        folder: tempfile::tempdir_in(&directory)
            .with_context(|| directory.display().to_string())?,
        runs: if quick { QUICK_RUNS } else { arguments.runs },
        sizes,
        touched: arguments.touched,
    };
    if arguments.only != Some(Part::Pause) {
        bench.restores(&mut report)?;
    }
    if arguments.only != Some(Part::Restore) {
        bench.pauses(&mut report)?;
    }
    report.finish()
}
