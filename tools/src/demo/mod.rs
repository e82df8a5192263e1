//! `cargo xtask demo`: a newcomer's first minute. Builds everything, boots Linux, and shows it at work.
mod inside;
mod network;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use crate::packages;
use crate::probe::{Probe, probe};
use crate::progress::Step;
use crate::{cargo, guest, lab, workspace};

/// How the demo is shown.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// In the lab, even where this host's KVM could run it
    #[arg(long)]
    in_lab: bool,
    /// Only the part that needs a KVM which can run Linux: this monitor … (what the demo starts in the lab)
    #[arg(long, hide = true, requires = "guest")]
    inside: Option<PathBuf>,
    /// … with this guest
    #[arg(long, hide = true)]
    guest: Option<PathBuf>,
}

/// Runs the demo, here or in the lab.
///
/// # Errors
/// When something cannot be built, or the guest does not do what it should.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let (Some(vmm), Some(folder)) = (&arguments.inside, &arguments.guest) {
        return inside::show(
            vmm,
            &guest::Guest {
                folder: folder.clone(),
            },
            true,
        );
    }
    packages::ensure(&packages::NETWORK)?;
    let step = Step::start("Building skerry-vmm (release)");
    let vmm = cargo::vmm()?;
    step.done("");
    let guest = guest::build()?;
    let step = Step::start("Trying this host's KVM: skerry-vmm --probe-only");
    let found = probe(&vmm)?;
    step.done(if matches!(found, Probe::Capable) {
        "it runs Linux"
    } else {
        "it cannot run Linux"
    });
    match found {
        Probe::Capable if !arguments.in_lab => return inside::show(&vmm, &guest, false),
        Probe::Capable => eprintln!("    As asked for, the demo runs in the lab."),
        Probe::Incapable(why) => {
            eprintln!("    {}", why.replace('\n', "\n    "));
            eprintln!(
                "    So the demo runs itself in the lab: a machine emulated by QEMU (TCG), whose KVM can."
            );
        }
    }
    in_lab(&vmm, &guest.folder)
}

fn in_lab(vmm: &Path, guest: &Path) -> Result<ExitCode> {
    let words = [
        workspace::this_program()?.into_os_string(),
        "demo".into(),
        "--inside".into(),
        vmm.into(),
        "--guest".into(),
        guest.into(),
    ];
    lab::run(&lab::Arguments::for_command(words.into()))
}
