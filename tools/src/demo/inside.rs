//! The demo itself, where KVM can run Linux: boots a guest, talks to it by every road, and shuts it down.
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::network::Tap;
use super::watch::Watch;
use crate::command;
use crate::guest::Guest;
use crate::progress::Step;

const BOOT_LIMIT: Duration = Duration::from_secs(240);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);
const MAC: &str = "52:54:00:5c:e4:47";
const VSOCK_PORT: u32 = 5000;

/// Everything that exists only while the demo runs. Removed when dropped, whatever happened.
struct Session {
    tap: Tap,
    folder: PathBuf,
}

impl Session {
    fn create(guest: &Guest) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("skerry-demo-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let session = Tap::create().map(|tap| Self {
            tap,
            folder: folder.clone(),
        });
        let session = session.inspect_err(|_| drop(fs::remove_dir(&folder)))?;
        let disk = guest.root_disk();
        fs::copy(&disk, session.disk())
            .with_context(|| format!("cannot copy {}", disk.display()))?;
        Ok(session)
    }

    fn disk(&self) -> PathBuf {
        self.folder.join("root.ext4")
    }

    fn api(&self) -> PathBuf {
        self.folder.join("api.sock")
    }

    fn vsock(&self) -> PathBuf {
        self.folder.join("vsock.sock")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("xtask: cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// The monitor's process; killed when dropped while it still runs.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            // It may end by itself in this very moment.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Boots the guest, uses it, shuts it down and sums up.
///
/// # Errors
/// At the first thing that is missing.
pub fn show(vmm: &Path, guest: &Guest) -> Result<()> {
    let session = Session::create(guest)?;
    let mut summary = Summary::default();

    let step = Step::start("Booting Linux on skerry-vmm");
    let mut command = command_line(vmm, guest, &session);
    println!("$ {}", command::shown(&command));
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start skerry-vmm")?;
    let mut monitor = Monitor(child);
    let serial = monitor
        .0
        .stdout
        .take()
        .context("skerry-vmm has no output")?;
    let mut watch = Watch::start(serial);
    let ready = watch.wait_for("ready", BOOT_LIMIT)?;
    step.done("ready");
    for (what, words) in [
        ("its kernel", "kernel "),
        ("its disk", "disk vda "),
        ("a file on that disk", "file /etc/motd-skerry: "),
        ("its address", "address eth0 "),
        ("its vsock", "vsock cid 3 "),
        ("its source of randomness", "rng ok"),
    ] {
        let fact = watch
            .find(words)
            .with_context(|| format!("the guest did not show {what}"))?;
        summary.add(what, &fact.text, fact.after);
    }
    if !watch
        .find("address eth0")
        .is_some_and(|fact| fact.text.contains(&session.tap.guest_with_prefix()))
    {
        bail!(
            "the guest's address is not {}",
            session.tap.guest_with_prefix()
        );
    }
    summary.add("ready", "all services up", ready.after);

    let said = ping(&session.tap.guest())?;
    summary.add("ping", &said, watch.elapsed());
    let said = echo(&session.vsock())?;
    summary.add("vsock", &said, watch.elapsed());

    let step = Step::start("Pressing the power button: PUT /api/v1/vm.power-button");
    press_power_button(&session.api())?;
    watch.wait_for("power button", ANSWER_LIMIT)?;
    let status = wait_for_end(&mut monitor.0, SHUTDOWN_LIMIT)?;
    watch.finish();
    if !status.success() {
        bail!("skerry-vmm ended with {status} instead of exit code 0");
    }
    step.done("the guest powered off, skerry-vmm ended with exit code 0");
    summary.add(
        "power button",
        "clean shutdown, exit code 0",
        started.elapsed(),
    );

    drop(session);
    summary.print();
    Ok(())
}

fn command_line(vmm: &Path, guest: &Guest, session: &Session) -> Command {
    let option = |name: &str, path: PathBuf| format!("{name}={}", path.display());
    let words = format!(
        "console=ttyS0 quiet panic=-1 root=/dev/vda skerry.ip={} skerry.gw={}",
        session.tap.guest_with_prefix(),
        session.tap.host()
    );
    let mut command = Command::new(vmm);
    command
        .arg("--api-socket")
        .arg(option("path", session.api()));
    command
        .arg("--kernel")
        .arg(guest.vmlinux())
        .arg("--initramfs")
        .arg(guest.initramfs())
        .args(["--cmdline", &words]);
    command.args(["--cpus", "boot=2", "--memory", "size=512M"]);
    command
        .arg("--disk")
        .arg(format!("{},image_type=raw", option("path", session.disk())));
    command
        .arg("--net")
        .arg(format!("tap={},mac={MAC}", session.tap.name));
    command
        .arg("--vsock")
        .arg(format!("cid=3,{}", option("socket", session.vsock())));
    command.args(["--rng", "--serial", "tty", "--console", "off"]);
    command
}

/// Three pings; what ping says about them.
fn ping(address: &str) -> Result<String> {
    let step = Step::start(format!("Pinging the guest: ping -c 3 {address}"));
    let said = command::read(Command::new("ping").args(["-c", "3", "-W", "5", address]))?;
    let line = said
        .lines()
        .find(|line| line.contains("packets transmitted"))
        .unwrap_or("no summary from ping");
    if !line.contains(" 0% packet loss") {
        bail!("not every ping came back: {line}");
    }
    step.done(line);
    Ok(line.to_owned())
}

/// One line through the monitor's vsock socket to the guest's echo server and back.
fn echo(socket: &Path) -> Result<String> {
    const WORDS: &str = "Hello over vsock";
    let step = Step::start(format!(
        "Talking over vsock: CONNECT {VSOCK_PORT} on {}",
        socket.display()
    ));
    let mut stream = connect(socket)?;
    writeln!(stream, "CONNECT {VSOCK_PORT}").context("cannot write to the vsock socket")?;
    let mut reader = BufReader::new(
        stream
            .try_clone()
            .context("cannot duplicate the vsock socket")?,
    );
    let answer = read_line(&mut reader)?;
    if !answer.starts_with("OK ") {
        bail!("skerry-vmm answered `{answer}` to CONNECT {VSOCK_PORT} instead of `OK <port>`");
    }
    writeln!(stream, "{WORDS}").context("cannot write to the guest")?;
    let back = read_line(&mut reader)?;
    if back != WORDS {
        bail!("the guest echoed `{back}` instead of `{WORDS}`");
    }
    step.done(&format!("echoed: {back}"));
    Ok(format!("`{WORDS}` came back"))
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream
        .set_read_timeout(Some(ANSWER_LIMIT))
        .context("cannot set a time limit")?;
    Ok(stream)
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    let size = reader
        .read_line(&mut line)
        .with_context(|| format!("no answer within {} s", ANSWER_LIMIT.as_secs()))?;
    if size == 0 {
        bail!("the connection was closed without an answer");
    }
    Ok(line.trim_end().to_owned())
}

fn press_power_button(socket: &Path) -> Result<()> {
    let mut stream = connect(socket)?;
    let request = "PUT /api/v1/vm.power-button HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    stream
        .write_all(request.as_bytes())
        .context("cannot write to the API socket")?;
    let status = read_line(&mut BufReader::new(stream))?;
    if !status.starts_with("HTTP/1.1 2") {
        bail!("the API answered `{status}` to the power button");
    }
    Ok(())
}

/// Waits for a child, with a limit.
fn wait_for_end(child: &mut Child, at_most: Duration) -> Result<ExitStatus> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .context("cannot watch skerry-vmm")?;
    let limit = Timespec {
        tv_sec: i64::try_from(at_most.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))
        .context("cannot wait for skerry-vmm")?;
    if ready == 0 {
        bail!(
            "skerry-vmm still runs {} s after the power button",
            at_most.as_secs()
        );
    }
    child.wait().context("cannot wait for skerry-vmm")
}

/// What was seen, and when.
#[derive(Default)]
struct Summary(Vec<(String, String, Duration)>);

impl Summary {
    fn add(&mut self, what: &str, seen: &str, after: Duration) {
        self.0.push((what.to_owned(), seen.to_owned(), after));
    }

    fn print(&self) {
        println!("\nSeen, with the time since skerry-vmm started:");
        for (what, seen, after) in &self.0 {
            println!("  {:>6.1} s  {what:<25} {seen}", after.as_secs_f64());
        }
    }
}
