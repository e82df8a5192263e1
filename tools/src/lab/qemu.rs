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
/// emulated time, and the emulated TSC trusted, because it is the host's.
const KERNEL_WORDS: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic intel_iommu=on mitigations=off apparmor=0 audit=0 \
                            nokaslr tsc=reliable nowatchdog no_timer_check cryptomgr.notests rcupdate.rcu_expedited=1 \
                            random.trust_cpu=on 8250.nr_uarts=1";

/// How QEMU came to its end.
pub enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// Killed, because the time was over.
    TimedOut,
}

/// Starts the lab, passes on the command's output until QEMU ends, or kills it when the time is over.
///
/// # Errors
/// When QEMU cannot be started or watched.
pub fn run(lab: &Lab, run: &Run, arguments: &Arguments) -> Result<Ended> {
    let (stdout, stdout_inside) = UnixStream::pair().context("cannot make a socket pair")?;
    let (stderr, stderr_inside) = UnixStream::pair().context("cannot make a socket pair")?;
    let log = File::create(run.control.join(LOG)).context("cannot make QEMU's log")?;
    let mut command = command_line(lab, run, arguments);
    for (name, socket) in [
        (inside::STDOUT_PORT, &stdout_inside),
        (inside::STDERR_PORT, &stderr_inside),
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
    drop((stdout_inside, stderr_inside));
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
    let passed_on = pass_on(&qemu, [stdout, stderr], deadline);
    if !matches!(passed_on, Ok(true)) {
        qemu.kill().context("cannot kill QEMU")?;
    }
    let status = qemu.wait().context("cannot wait for QEMU")?;
    Ok(if passed_on? {
        Ended::Exited(status)
    } else {
        Ended::TimedOut
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

/// Copies the two ports to this program's stdout and stderr until QEMU has ended; false when the deadline came first.
fn pass_on(qemu: &Child, mut ports: [UnixStream; 2], deadline: Instant) -> Result<bool> {
    let process = Pid::from_child(qemu);
    let process = pidfd_open(process, PidfdFlags::empty()).context("cannot watch QEMU")?;
    let mut open = [true, true];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let ready = wait_for(
            &[ports[0].as_fd(), ports[1].as_fd(), process.as_fd()],
            &[open[0], open[1], true],
            left,
        )?;
        let mut quiet = true;
        for (index, port) in ports
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| ready[*index])
        {
            quiet = false;
            open[index] = copy_some(port, index == 0)?;
        }
        if quiet && ready[2] {
            return Ok(true);
        }
    }
}

/// Which of the descriptors have something to say; those not asked for stay silent.
fn wait_for(
    descriptors: &[BorrowedFd<'_>; 3],
    wanted: &[bool; 3],
    at_most: Duration,
) -> Result<[bool; 3]> {
    let mut polled: Vec<(usize, PollFd<'_>)> = Vec::with_capacity(3);
    for index in (0..3).filter(|index| wanted[*index]) {
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
    let mut ready = [false; 3];
    for ((index, _), entry) in polled.iter().zip(&list) {
        ready[*index] = !entry.revents().is_empty();
    }
    Ok(ready)
}

fn copy_some(port: &mut UnixStream, to_stdout: bool) -> Result<bool> {
    let mut buffer = [0; 16384];
    // A reset connection is how a killed QEMU says goodbye.
    let count = port.read(&mut buffer).unwrap_or(0);
    let bytes = &buffer[..count];
    let written = if to_stdout {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush())
    } else {
        std::io::stderr().lock().write_all(bytes)
    };
    written.context("cannot pass the lab's output on")?;
    Ok(count > 0)
}
