//! `cargo xtask demo`: a newcomer's first minute. Builds everything, boots Linux, and shows it at work.
mod host;
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
    #[arg(long, hide = true, requires_all = ["guest", "command"])]
    inside: Option<PathBuf>,
    /// … with this guest
    #[arg(long, hide = true)]
    guest: Option<PathBuf>,
    /// … and this command
    #[arg(long, hide = true)]
    command: Option<PathBuf>,
}

/// Runs the demo, here or in the lab.
///
/// # Errors
/// When something cannot be built, or the guest does not do what it should.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let (Some(vmm), Some(folder), Some(command)) =
        (&arguments.inside, &arguments.guest, &arguments.command)
    {
        let guest = guest::Guest {
            folder: folder.clone(),
        };
        return show(vmm, &guest, command, true);
    }
    packages::ensure(&packages::NETWORK)?;
    packages::ensure(&packages::CONTAINERS[..1])?;
    let step = Step::start("Building skerry-vmm (release), and skerry");
    let vmm = cargo::vmm()?;
    let command = cargo::command()?;
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
        Probe::Capable if !arguments.in_lab => return show(&vmm, &guest, &command, false),
        Probe::Capable => eprintln!("    As asked for, the demo runs in the lab."),
        Probe::Incapable(why) => {
            eprintln!("    {}", why.replace('\n', "\n    "));
            eprintln!(
                "    So the demo runs itself in the lab: a machine emulated by QEMU (TCG), whose KVM can."
            );
        }
    }
    in_lab(&vmm, &guest.folder, &command)
}

/// All that there is to see, where KVM can run Linux.
fn show(vmm: &Path, guest: &guest::Guest, command: &Path, in_lab: bool) -> Result<ExitCode> {
    inside::show(vmm, guest)?;
    host::show(command, vmm, guest)?;
    if in_lab {
        println!(
            "This ran in the lab, on an emulated CPU (QEMU TCG): what was shown is real, the times are the emulator's."
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn in_lab(vmm: &Path, guest: &Path, command: &Path) -> Result<ExitCode> {
    let words = [
        workspace::this_program()?.into_os_string(),
        "demo".into(),
        "--inside".into(),
        vmm.into(),
        "--guest".into(),
        guest.into(),
        "--command".into(),
        command.into(),
    ];
    lab::run(&lab::Arguments::for_command(words.into()))
}
