//! QEMU for the lab: its command line, and its run with the command's output passed on as it comes.
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal};

use super::prepare::Lab;
use super::{Arguments, Duration, Run, inside};

/// The console's log, in the run's folder.
pub const CONSOLE: &str = "console.log";
/// What QEMU itself said, in the run's folder.
pub const LOG: &str = "qemu.log";

/// The lab kernel's command line: quiet (its serial port is slow), dead at once when it panics, no security checks that cost
/// emulated time, and the emulated TSC trusted, because it is the host's. Its tick is periodic: QEMU now and then loses a
/// timer's interrupt while a guest runs; the next one makes up for it, where a timer that is set once would be waited for
/// for ever.
const KERNEL_WORDS: &str = "console=ttyS0 highres=off nohz=off loglevel=5 panic=-1 oops=panic intel_iommu=on mitigations=off apparmor=0 audit=0 \
                            nokaslr tsc=reliable nowatchdog no_timer_check cryptomgr.notests rcupdate.rcu_expedited=1 \
                            random.trust_cpu=on 8250.nr_uarts=1";

/// How QEMU came to its end.
pub enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// Killed, because the time was over.
    TimedOut,
    /// Killed, because the lab's kernel ran no programs any more.
    StoodStill,
}

/// The lab is given up when nothing ran in it for so long: if the emulator breaks down, nothing in the lab can end it.
pub const STILL: Duration = Duration::from_secs(120);

/// Why QEMU is not waited for any longer.
#[derive(Clone, Copy)]
enum Over {
    Ended,
    Late,
    Still,
}

/// Starts the lab, passes on the command's output until QEMU ends, or kills it when the time is over.
///
/// # Errors
/// When QEMU cannot be started or watched.
pub fn run(lab: &Lab, run: &Run, arguments: &Arguments) -> Result<Ended> {
    let (stdout, stdout_inside) = UnixStream::pair().context("cannot make a socket pair")?;
    let (stderr, stderr_inside) = UnixStream::pair().context("cannot make a socket pair")?;
    let (pulse, pulse_inside) = UnixStream::pair().context("cannot make a socket pair")?;
    let log = File::create(run.control.join(LOG)).context("cannot make QEMU's log")?;
    let mut command = command_line(lab, run, arguments);
    for (name, socket) in [
        (inside::STDOUT_PORT, &stdout_inside),
        (inside::STDERR_PORT, &stderr_inside),
        (inside::PULSE_PORT, &pulse_inside),
    ] {
        rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())
            .context("cannot pass a socket on")?;
        command
            .arg("-chardev")
            .arg(format!("socket,id={name},fd={}", socket.as_raw_fd()));
        command
            .arg("-device")
            .arg(format!("virtserialport,chardev={name},name={name}"));
    }
    command
        .args(&arguments.qemu)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    // SAFETY: between fork and exec this makes one system call (prctl), which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let mut qemu = command.spawn().context("cannot start qemu-system-x86_64")?;
    drop((stdout_inside, stderr_inside, pulse_inside));
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
    let over = pass_on(&qemu, [stdout, stderr, pulse], deadline);
    if !matches!(over, Ok(Over::Ended)) {
        qemu.kill().context("cannot kill QEMU")?;
    }
    let status = qemu.wait().context("cannot wait for QEMU")?;
    Ok(match over? {
        Over::Ended => Ended::Exited(status),
        Over::Late => Ended::TimedOut,
        Over::Still => Ended::StoodStill,
    })
}

fn command_line(lab: &Lab, run: &Run, arguments: &Arguments) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.args([
        "-accel",
        "tcg,thread=multi,tb-size=512",
        "-M",
        "q35",
        "-cpu",
        "max",
    ]);
    command.args([
        "-smp",
        &arguments.cpus.to_string(),
        "-m",
        &arguments.memory.to_string(),
    ]);
    command.args(["-device", "intel-iommu,intremap=on,eim=on"]);
    command
        .arg("-kernel")
        .arg(&lab.kernel)
        .arg("-initrd")
        .arg(&lab.initramfs);
    command.args(["-append", KERNEL_WORDS]);
    command.arg("-chardev").arg(option(
        "file,id=console,path=",
        &run.control.join(CONSOLE),
        "",
    ));
    command.args(["-serial", "chardev:console"]);
    command.args([
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=1",
        "-device",
        "virtio-serial-pci",
    ]);
    command.args([
        "-virtfs",
        "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
    ]);
    for (tag, folder) in [("control", &run.control), ("out", &run.out)] {
        let rest = format!(",mount_tag={tag},security_model=none,multidevs=remap");
        command
            .arg("-virtfs")
            .arg(option("local,path=", folder, &rest));
    }
    command
}

/// QEMU's option syntax wants commas in values doubled.
fn option(before: &str, path: &Path, after: &str) -> OsString {
    let mut option = OsString::from(before);
    option.push(path.to_string_lossy().replace(',', ",,"));
    option.push(after);
    option
}

/// Copies the first two ports to this program's stdout and stderr until QEMU has ended, or is not to be waited for.
fn pass_on(qemu: &Child, mut ports: [UnixStream; 3], deadline: Instant) -> Result<Over> {
    let process = Pid::from_child(qemu);
    let process = pidfd_open(process, PidfdFlags::empty()).context("cannot watch QEMU")?;
    let mut open = [true; 3];
    let mut beat = None;
    loop {
        let now = Instant::now();
        let still = beat.map(|at: Instant| at + STILL);
        if now >= deadline {
            return Ok(Over::Late);
        }
        if still.is_some_and(|still| now >= still) {
            return Ok(Over::Still);
        }
        let until = still.map_or(deadline, |still| still.min(deadline));
        let ready = wait_for(
            &[
                ports[0].as_fd(),
                ports[1].as_fd(),
                ports[2].as_fd(),
                process.as_fd(),
            ],
            &[open[0], open[1], open[2], true],
            until - now,
        )?;
        let mut quiet = true;
        for (index, port) in ports
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| ready[*index])
        {
            quiet = false;
            let mut buffer = [0; 16384];
            // A reset connection is how a killed QEMU says goodbye.
            let count = port.read(&mut buffer).unwrap_or(0);
            open[index] = count > 0;
            match index {
                0 => {
                    let mut stdout = std::io::stdout().lock();
                    stdout
                        .write_all(&buffer[..count])
                        .and_then(|()| stdout.flush())
                }
                1 => std::io::stderr().lock().write_all(&buffer[..count]),
                _ => {
                    beat = Some(Instant::now());
                    Ok(())
                }
            }
            .context("cannot pass the lab's output on")?;
        }
        if quiet && ready[3] {
            return Ok(Over::Ended);
        }
    }
}

/// Which of the descriptors have something to say; those not asked for stay silent.
fn wait_for(
    descriptors: &[BorrowedFd<'_>; 4],
    wanted: &[bool; 4],
    at_most: Duration,
) -> Result<[bool; 4]> {
    let mut polled: Vec<(usize, PollFd<'_>)> = Vec::with_capacity(4);
    for index in (0..4).filter(|index| wanted[*index]) {
        polled.push((index, PollFd::new(&descriptors[index], PollFlags::IN)));
    }
    let timeout = Timespec {
        tv_sec: i64::try_from(at_most.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: at_most.subsec_nanos().into(),
    };
    let mut list: Vec<PollFd<'_>> = polled.iter().map(|(_, entry)| entry.clone()).collect();
    match poll(&mut list, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error).context("cannot wait for the lab"),
    }
    let mut ready = [false; 4];
    for ((index, _), entry) in polled.iter().zip(&list) {
        ready[*index] = !entry.revents().is_empty();
    }
    Ok(ready)
}
