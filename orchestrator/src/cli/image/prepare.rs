//! `skerry image prepare`.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use skerry_images::chain::live::Progress;
use skerry_images::io::{FileOptions, ImageFile, Port, block_on};
use skerry_images::qcow2::{CreateOptions, create};
use skerry_images::store::{Kind, Name, Store, StoreError};
use skerry_vmm_api::client::Client;
use skerry_vmm_api::snapshots::{AfterSnapshot, SnapshotKind, VmSnapshot};

use super::output::{Output, print_json};
use super::progress::spinner;
use super::store::{StoreFlag, name};
use super::{Failure, Outcome, bytes};
use crate::model::Boot;
use crate::runtime::start_from;

/// Between two looks at the guest's console.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of the console that are looked at.
const CONSOLE: u64 = 16 << 20;
/// How long a monitor may take to answer, and to keep a snapshot.
const ANSWER: Duration = Duration::from_secs(600);

/// Boot a disk image of the store until its guest says something, and keep a snapshot of that: what VMs are then cloned
/// from, in milliseconds.
///
/// A MicroVM with `boot: {snapshot: NAME}` is a clone of it, with the same memory and CPUs.
#[derive(Debug, Args)]
pub struct Prepare {
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    output: Output,
    /// What clones call it [default: the image's name, with - for what is no letter or digit]
    #[arg(long = "as", value_name = "NAME", value_parser = label)]
    name: Option<String>,
    /// Make it anew if it is there
    #[arg(long)]
    force: bool,
    /// What the guest says on its serial port when it is ready
    #[arg(long, value_name = "TEXT", default_value = "login:")]
    until: String,
    /// Seconds that it may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u32,
    /// The kernel: an ELF file or a bzImage [default: the image's]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Its initramfs
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line; what is added to it, if the kernel is the image's
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Memory
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = bytes::parse)]
    memory: u64,
    /// The monitor [default: skerry-vmm beside this program]
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,
    /// Do not find out whether this host's KVM can run Linux: for payloads that need less
    #[arg(long)]
    no_probe: bool,
    /// The disk image
    #[arg(value_name = "IMAGE[:TAG]", value_parser = name)]
    image: Name,
}

fn label(text: &str) -> Result<String, String> {
    match crate::model::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} is no name: it must be of a-z, 0-9, - and ."
        )),
    }
}

impl Prepare {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let store = self.store.open()?;
        let as_name = match &self.name {
            Some(name) => name.clone(),
            None => {
                let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
                self.image
                    .to_string()
                    .to_lowercase()
                    .chars()
                    .map(plain)
                    .collect()
            }
        };
        let place = std::path::absolute(store.prepared(&as_name));
        let place = place.map_err(failed("find", store.root()))?;
        let text = place
            .to_str()
            .filter(|text| !text.contains([',', '[', ']', '"']));
        if text.is_none() {
            return Err(Failure::Asked(format!(
                "{} has a comma, bracket or quote, which monitors' flags cannot have: use another --store",
                place.display()
            )));
        }
        let _use = store.share()?;
        if store.prepared_snapshot(&as_name).is_some() && !self.force {
            return Err(Failure::Asked(format!(
                "{as_name} is prepared already: give it another name with --as, or make it anew with --force"
            )));
        }
        // Also what was not finished.
        store.remove_prepared(&as_name)?;
        let (base, boot) = self.base(&store, &as_name)?;
        let mut folder = DirBuilder::new();
        folder
            .recursive(true)
            .mode(0o700)
            .create(&place)
            .map_err(failed("make", &place))?;
        let made = self.make(&place, &base, &boot);
        let made = made.and_then(|took| {
            store.keep_prepared(&as_name)?;
            Ok(took)
        });
        if made.is_err() {
            // The failure is what is told.
            let _ = store.remove_prepared(&as_name);
        }
        let took = made?;
        if self.output.json() {
            print_json(&serde_json::json!({
                "name": as_name,
                "snapshot": place.join("snapshot"),
                "ready_ms": took.as_millis() as u64,
            }))?;
            return Ok(0);
        }
        println!(
            "{as_name} is prepared: its guest was ready after {:.1} s. boot: {{snapshot: {as_name}}}",
            took.as_secs_f64()
        );
        Ok(0)
    }

    /// The image in one piece, leased for what is prepared, and what it starts from.
    fn base(&self, store: &Store, as_name: &str) -> Result<(PathBuf, Boot), Failure> {
        let image = store.image(&self.image)?;
        if !matches!(image.manifest.kind, Kind::Disk { .. }) {
            return Err(Failure::Images(StoreError::Kind {
                name: image.name.to_string(),
                is: "an OCI image: make a disk of it with `skerry image convert-oci`",
                wanted: "a disk",
            }));
        }
        store.hold(&Store::prepared_lease(as_name), "disk", image.named.digest)?;
        let progress = Progress::default();
        let base = store.base(image.named.digest, &progress)?;
        let absolute = |path: &Path| std::path::absolute(path).map_err(failed("find", path));
        let given = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
        let mut boot = Boot {
            kernel: given(&self.kernel)?,
            initramfs: given(&self.initramfs)?,
            cmdline: self.cmdline.clone(),
            snapshot: None,
        };
        if boot.kernel.is_none() {
            let found = store.find_boot(image.named.digest, &progress)?;
            start_from(&mut boot, &found, 0);
            boot.kernel = given(&boot.kernel)?;
            boot.initramfs = given(&boot.initramfs)?;
        }
        Ok((absolute(&base)?, boot))
    }

    /// Boots it and keeps the snapshot; how long the guest took.
    fn make(&self, place: &Path, base: &Path, boot: &Boot) -> Result<Duration, Failure> {
        let disk = place.join("disk.qcow2");
        layer(&disk, base)?;
        let console = place.join("console.log");
        let (socket, log) = (place.join("api.sock"), place.join("monitor.log"));
        let beside = std::env::current_exe()
            .unwrap_or_default()
            .with_file_name("skerry-vmm");
        let vmm = self.vmm.clone().unwrap_or(beside);
        let mut command = Command::new(&vmm);
        command
            .args(["--api-socket", &format!("path={}", socket.display())])
            .args(["--cpus", &format!("boot={}", self.cpus)])
            .args(["--memory", &format!("size={}", self.memory)])
            .args([
                "--serial",
                &format!("file={}", console.display()),
                "--console",
                "off",
            ]);
        let (disk, base) = (disk.display(), base.display());
        let flag = format!("path={disk},image_type=qcow2,backing=[raw:{base}],id=root,serial=root");
        command.args(["--disk", &flag]);
        for (flag, file) in [("--kernel", &boot.kernel), ("--initramfs", &boot.initramfs)] {
            if let Some(file) = file {
                command.arg(flag).arg(file);
            }
        }
        if !boot.cmdline.is_empty() {
            command.args(["--cmdline", &boot.cmdline]);
        }
        if self.no_probe {
            command.arg("--no-probe");
        }
        // Whatever becomes of us, the monitor ends: nobody else knows it.
        // SAFETY: between fork and exec this does one system call, which neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(|| {
                let kill = Some(rustix::process::Signal::KILL);
                Ok(rustix::process::set_parent_process_death_signal(kill)?)
            });
        }
        let said = File::create(&log).map_err(failed("make", &log))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said);
        let mut monitor = Monitor(command.spawn().map_err(failed("start", &vmm))?);
        let waits = spinner("the guest starts");
        let took = self.wait(&mut monitor, &console, &log)?;
        waits.set_message("it is ready".to_owned());
        keep(&socket, &place.join("snapshot"))?;
        Ok(took)
    }

    /// Waits until the guest has said what it is to say.
    fn wait(&self, monitor: &mut Monitor, console: &Path, log: &Path) -> Result<Duration, Failure> {
        let (begun, limit) = (Instant::now(), Duration::from_secs(self.timeout.into()));
        let text = |path: &Path| {
            let mut bytes = Vec::new();
            let file = File::open(path).map(|file| std::io::Read::take(file, CONSOLE));
            // It is there when the monitor has begun.
            let _ = file.and_then(|mut file| std::io::Read::read_to_end(&mut file, &mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        };
        loop {
            if text(console).contains(&self.until) {
                return Ok(begun.elapsed());
            }
            let ended = monitor.0.try_wait().map_err(failed("wait for", console))?;
            if let Some(status) = ended {
                let said = text(log);
                let said = said.lines().next_back().unwrap_or_default();
                return Err(Failure::Asked(format!(
                    "the guest ended before it was ready ({status}): {said}"
                )));
            }
            if begun.elapsed() > limit {
                let said = text(console);
                let last = said.lines().next_back().unwrap_or_default();
                return Err(Failure::Asked(format!(
                    "the guest did not say {:?} within {} s: it said {last:?} last; see --until and --timeout",
                    self.until, self.timeout
                )));
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// A monitor that ends with us.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Keeps a snapshot, and ends the VM with it.
fn keep(socket: &Path, to: &Path) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(failed("start", Path::new("a runtime")))?;
    let request = VmSnapshot {
        destination_url: format!("file://{}", to.display()),
        kind: SnapshotKind::Full,
        after: AfterSnapshot::Stop,
        track_dirty: false,
        live: false,
        overlays: Vec::new(),
        tls_dir: None,
        insecure: false,
    };
    let client = Client::new(socket);
    let asked =
        runtime.block_on(async { tokio::time::timeout(ANSWER, client.snapshot(&request)).await });
    match asked {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(Failure::Asked(format!("the snapshot cannot be kept: {e}"))),
        Err(_) => Err(Failure::Asked("the monitor does not answer".into())),
    }
}

/// A layer on the image in one piece, for what the guest writes until it is ready.
fn layer(path: &Path, base: &Path) -> Result<(), Failure> {
    let options = FileOptions {
        readonly: true,
        unlocked: true,
        ..FileOptions::default()
    };
    let size = ImageFile::open(base, &options)?.end().next_multiple_of(512);
    let below = (base.display().to_string(), "raw".to_owned());
    let (file, port) = (ImageFile::create(path)?, Port::new());
    Ok(block_on(&port, async {
        create(&port, &file, None, &CreateOptions::overlay(size, below)).await?;
        port.flush(&file).await
    })?)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::System { what, path, source }
}
