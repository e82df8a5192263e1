//! What it costs that somebody looks: at `skerry top`, at the page, or at both.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::Bench;
use super::host::Host;
use crate::cpu::Used;
use crate::report::{Better, Report, Target};
use crate::stats::Samples;

/// Percent of a CPU that `skerry up` and `skerry top` may use together.
const MOST: f64 = 2.0;
/// How often the page asks.
const PAGE: Duration = Duration::from_secs(2);
/// Until what was just started does what it does from then on.
const SETTLED: Duration = Duration::from_secs(5);

/// `skerry top` on a terminal of its own. It ends with this value.
struct Top {
    child: Child,
    /// Our side: what it draws is read and thrown away.
    _screen: std::thread::JoinHandle<()>,
}

impl Top {
    fn start(host: &Host, skerry: &std::path::Path) -> Result<Top> {
        let (ours, theirs) = terminal().context("a terminal")?;
        let copy = || theirs.try_clone().map(Stdio::from);
        let mut command = Command::new(skerry);
        command.arg("top").arg("--socket").arg(host.socket());
        command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
        let child = command.env("TERM", "xterm").spawn();
        let child = child.context("skerry top")?;
        let mut screen = std::fs::File::from(ours);
        let drawn = std::thread::spawn(move || {
            // It fails as soon as nobody has the other side.
            let _ = std::io::copy(&mut screen, &mut std::io::sink());
        });
        Ok(Top {
            child,
            _screen: drawn,
        })
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A terminal's both sides.
fn terminal() -> Result<(OwnedFd, OwnedFd)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name, flags, Mode::empty())?;
    let size = Winsize {
        ws_row: 40,
        ws_col: 150,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&theirs, size)?;
    Ok((ours, theirs))
}

impl Bench {
    /// What host, monitors and `skerry top` use of the CPUs while somebody looks at so many VMs that do nothing.
    pub(super) fn looking(
        &self,
        vms: usize,
        rounds: usize,
        time: Duration,
        report: &mut Report,
    ) -> Result<()> {
        let mut samples = ["nobody", "skerry top", "/ui", "both"].map(Samples::new);
        let host = self.host(0)?;
        let sent: Result<Vec<_>> = (0..vms)
            .map(|n| host.clone(&format!("vm{n}"), &self.snapshot, self.memory))
            .collect();
        let declared: Result<Vec<_>> = sent?
            .into_iter()
            .map(|sent| host.declared(sent, "microvms"))
            .collect();
        let declared = declared?;
        host.heard(&declared, Instant::now())?;
        host.settled(&declared)?;
        for _ in 0..rounds {
            for (samples, (with_top, with_page)) in
                samples
                    .iter_mut()
                    .zip([(false, false), (true, false), (false, true), (true, true)])
            {
                let top = match with_top {
                    true => Some(Top::start(&host, &self.programs.skerry)?),
                    false => None,
                };
                let ids = host.monitors(&self.programs.vmm);
                let used = || -> Result<[u64; 3]> {
                    let top = top
                        .as_ref()
                        .map(|top| Used::by(top.child.id()))
                        .transpose()?;
                    // One that ends meanwhile has no part in this.
                    let monitors = ids.iter().filter_map(|id| Used::by(*id).ok());
                    Ok([
                        host.used()?.all(),
                        top.unwrap_or_default().all(),
                        monitors.map(Used::all).sum(),
                    ])
                };
                wait(&host, SETTLED, with_page)?;
                let (before, begun) = (used()?, Instant::now());
                let looks = wait(&host, time, with_page)?;
                let (after, spent) = (used()?, begun.elapsed().as_nanos() as f64);
                let share = |n: usize| {
                    let used = after.get(n).zip(before.get(n));
                    used.map_or(0.0, |(after, before)| {
                        after.saturating_sub(*before) as f64 / spent * 100.0
                    })
                };
                samples.add(share(0) + share(1));
                samples.add_beside("skerry up", share(0));
                samples.add_beside("skerry top", share(1));
                samples.add_beside("monitors", share(2));
                samples.add_beside("looks", looks as f64);
            }
        }
        host.delete(&declared)?;
        let title = format!("looking: `skerry up` and `skerry top` with {vms} VMs");
        let targets = ["skerry top", "/ui", "both"].map(|name| Target::median(name, MOST));
        let unit = "% of a CPU";
        report.add_aimed(&title, unit, Better::Lower, &samples, Vec::new(), &targets);
        Ok(())
    }
}

/// Lets time pass, in which the page asks if it is open; how often.
fn wait(host: &Host, time: Duration, with_page: bool) -> Result<usize> {
    let (begun, mut looks) = (Instant::now(), 0);
    while begun.elapsed() < time {
        if with_page {
            host.usage()?;
            looks += 1;
        }
        std::thread::sleep(PAGE.min(time.saturating_sub(begun.elapsed())));
    }
    Ok(looks)
}
