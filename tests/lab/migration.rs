//! Linux on its way from one monitor to another, under a load that checks all that it does.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use skerry_tests::random::Random;
use skerry_tests::vmm::{Builder, LONG, Vmm};
use skerry_tests::{Api, eventually};
use skerry_vmm_api::client::ClientError;
use skerry_vmm_api::config::{ConsoleConfig, ConsoleMode};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::VmState;
use skerry_vmm_api::snapshots::{
    NetIdentity, VmMigrationInfo, VmReceiveMigration, VmSendMigration, VsockIdentity,
};

use crate::loaded::{DISK, Loaded};

/// The socket of a target's vsock.
const VSOCK: &str = "target.vsock";

/// A monitor that waits for a guest, and where.
struct Target {
    vmm: Vmm,
    url: String,
    waiting: JoinHandle<Result<(), ClientError>>,
}

impl Target {
    /// Ends the wait for a source that was killed before it came.
    fn call_off(&self) {
        let socket = Path::new(self.url.trim_start_matches("unix:"));
        let deadline = Instant::now() + Duration::from_secs(5);
        while socket.exists() && !self.waiting.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        if socket.exists() {
            // It may have ended just now.
            let api = self.vmm.api();
            let _ = api.with(async |c| c.act(Operation::VmCancelMigration).await);
        }
    }

    fn new(guest: &Loaded, socket: &Path) -> Target {
        let url = format!("unix:{}", socket.display());
        let vmm = Builder::new(&[]).with_api().start();
        let request = VmReceiveMigration {
            serial: Some(ConsoleConfig {
                mode: ConsoleMode::Tty,
                ..ConsoleConfig::default()
            }),
            net: vec![NetIdentity {
                id: "net".into(),
                tap: Some(guest.bridge.taps[1].clone()),
                ..NetIdentity::default()
            }],
            vsock: Some(VsockIdentity {
                cid: None,
                socket: Some(guest.path(VSOCK)),
            }),
            ..VmReceiveMigration::at(&url)
        };
        let api = vmm.api();
        let waiting =
            std::thread::spawn(move || api.with(async |c| c.receive_migration(&request).await));
        eventually("the target listens", LONG, || socket.exists().then_some(()));
        Target { vmm, url, waiting }
    }

    /// What became of its wait.
    fn waited(waiting: JoinHandle<Result<(), ClientError>>) -> Result<(), ClientError> {
        waiting.join().expect("the waiter ends")
    }
}

fn sending(api: Api, url: &str) -> JoinHandle<Result<VmMigrationInfo, ClientError>> {
    let request = VmSendMigration::to(url);
    std::thread::spawn(move || api.with(async |c| c.send_migration(&request).await))
}

#[test]
fn linux_goes_to_another_monitor_under_load() {
    let (guest, source) = Loaded::start();
    let target = Target::new(&guest, &guest.path("migration.sock"));
    let sent = sending(source.api(), &target.url);
    let info = sent.join().expect("the sender ends");
    println!("{:?}", info.expect("vm.send-migration"));
    Target::waited(target.waiting).expect("the target answers");
    guest.works_through(&target.vmm, &guest.path(VSOCK));
    drop(source);
    guest.ends_well(target.vmm, &guest.path("data.qcow2"), true);
}

/// How many times a side is killed.
const KILLS: u32 = 6;
/// How much later than a whole migration the last time may be, in percent of it.
const BEYOND: u32 = 50;

/// A snapshot that guests are made of, which is sooner than to boot them, and how long a migration of such a
/// guest takes here.
struct Measured {
    guest: Loaded,
    made: u32,
    took: Duration,
}

impl Measured {
    fn new() -> Measured {
        let (guest, vmm) = Loaded::start();
        let request = format!("file://{}", guest.path("snap").display());
        let request = serde_json::json!({ "destination_url": request });
        let request = serde_json::from_value(request).expect("a request");
        vmm.api().keep(&request);
        drop(vmm);
        let mut measured = Measured {
            guest,
            made: 0,
            took: Duration::ZERO,
        };
        let (source, _) = measured.again();
        let target = measured.target();
        let begun = Instant::now();
        let sent = sending(source.api(), &target.url).join();
        sent.expect("the sender ends").expect("vm.send-migration");
        Target::waited(target.waiting).expect("the target answers");
        measured.took = begun.elapsed();
        println!("a migration takes {:?}", measured.took);
        measured
    }

    /// A guest that works, and its disk.
    fn again(&mut self) -> (Vmm, PathBuf) {
        self.made += 1;
        let layers = self.guest.path(&format!("layers{}", self.made));
        let vmm = (self.guest).restored(&self.guest.path("snap"), "copy", &layers);
        self.guest.works(&vmm);
        (vmm, layers.join(format!("{DISK}.qcow2")))
    }

    /// A monitor that waits for a guest, at a socket of its own.
    fn target(&mut self) -> Target {
        self.made += 1;
        let socket = self.guest.path(&format!("migration{}.sock", self.made));
        Target::new(&self.guest, &socket)
    }

    /// Moments in a migration and after it, each in a share of the time of its own.
    fn moments(&self, mut random: Random) -> [Duration; KILLS as usize] {
        let share = self.took * (100 + BEYOND) / 100 / KILLS;
        let mut at = 0;
        [(); KILLS as usize].map(|()| {
            let moment = share * at + share * random.below(1000) as u32 / 1000;
            at += 1;
            moment
        })
    }
}

#[test]
fn linux_runs_in_exactly_one_monitor_when_its_target_is_killed_at_any_moment() {
    let mut measured = Measured::new();
    let (mut running, mut stayed, mut died) = (None, 0, 0);
    for moment in measured.moments(Random::new(3)) {
        let (source, image) = running.take().unwrap_or_else(|| measured.again());
        let target = measured.target();
        let sent = sending(source.api(), &target.url);
        std::thread::sleep(moment);
        // Killed, and waited for.
        drop(target.vmm);
        let sent = sent.join().expect("the sender ends");
        let came = Target::waited(target.waiting);
        let state = source.api().info().state;
        match sent {
            // It ran there, and died there.
            Ok(_) => {
                assert_eq!(state, VmState::Shutdown);
                died += 1;
            }
            Err(e) => {
                assert!(came.is_err(), "both have it");
                assert_eq!(state, VmState::Running, "{e}");
                measured.guest.works(&source);
                running = Some((source, image));
                stayed += 1;
            }
        }
    }
    println!("{stayed} stayed at the source, {died} died at their target");
    if let Some((source, image)) = running {
        measured.guest.ends_well(source, &image, false);
    }
}

#[test]
fn linux_is_whole_at_its_target_or_died_with_its_source_killed_at_any_moment() {
    let mut measured = Measured::new();
    let (mut went_on, mut died) = (0, 0);
    let late = measured.took * 4;
    let moments = measured.moments(Random::new(4)).into_iter();
    // Both ends are seen, also when the host was busier meanwhile.
    for moment in moments.chain([Duration::ZERO, late]) {
        if moment == Duration::ZERO && died > 0 || moment == late && went_on > 0 {
            continue;
        }
        let (source, image) = measured.again();
        let target = measured.target();
        let sent = sending(source.api(), &target.url);
        std::thread::sleep(moment);
        drop(source);
        let _ = sent.join().expect("the sender ends");
        target.call_off();
        match Target::waited(target.waiting) {
            Ok(()) => {
                let vsock = measured.guest.path(VSOCK);
                measured.guest.works_through(&target.vmm, &vsock);
                measured.guest.ends_well(target.vmm, &image, true);
                went_on += 1;
            }
            Err(_) => {
                let api = target.vmm.api();
                api.refused(Operation::VmPause, "", 404, &["no VM"]);
                died += 1;
            }
        }
    }
    println!("{went_on} went on at the target, {died} died with their source");
    assert!(went_on > 0 && died > 0, "only one of the ends was seen");
}
