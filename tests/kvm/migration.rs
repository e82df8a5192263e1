//! A machine goes from one monitor to another while its guest works and checks itself.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use skerry_tests::disk::qemu_img;
use skerry_tests::slow;
use skerry_tests::steady::{PORT, Steady, finish, finish_and_shut_down, started, works};
use skerry_tests::tcp::{certificate, free_port, listened_on};
use skerry_tests::vmm::{Builder, SHORT, Vmm};
use skerry_tests::vsock::EchoServer;
use skerry_tests::{Api, eventually};
use skerry_vmm_api::client::ClientError;
use skerry_vmm_api::config::{ConsoleConfig, ConsoleMode};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::VmState;
use skerry_vmm_api::snapshots::{
    MigratedDisks, VmMigrationInfo, VmReceiveMigration, VmSendMigration, VsockIdentity,
};

/// A monitor that waits for a guest, and where.
struct Target {
    vmm: Vmm,
    url: String,
    waiting: JoinHandle<Result<(), ClientError>>,
    _echo: EchoServer,
}

impl Target {
    /// Waits at a Unix socket.
    fn new(folder: &Path) -> Target {
        let socket = folder.join("migration.sock");
        let url = format!("unix:{}", socket.display());
        let target = Target::at(folder, VmReceiveMigration::at(&url));
        eventually("the target listens", SHORT, || {
            socket.exists().then_some(())
        });
        target
    }

    /// Waits where it is said, with its sockets in `folder`.
    fn at(folder: &Path, request: VmReceiveMigration) -> Target {
        let vmm = Builder::api_only().start();
        let socket = folder.join("vsock");
        let echo = EchoServer::start(&socket, PORT);
        let request = VmReceiveMigration {
            vsock: Some(VsockIdentity {
                cid: None,
                socket: Some(socket),
            }),
            serial: Some(ConsoleConfig {
                mode: ConsoleMode::Tty,
                ..ConsoleConfig::default()
            }),
            ..request
        };
        let (api, url) = (vmm.api(), request.receiver_url.clone());
        let waiting =
            std::thread::spawn(move || api.with(async |c| c.receive_migration(&request).await));
        Target {
            vmm,
            url,
            waiting,
            _echo: echo,
        }
    }

    /// The monitor, whose guest has come.
    fn arrived(self) -> (Vmm, EchoServer) {
        self.waiting
            .join()
            .expect("the waiter ends")
            .expect("vm.receive-migration");
        (self.vmm, self._echo)
    }
}

fn send(api: &Api, request: &VmSendMigration) -> Result<VmMigrationInfo, ClientError> {
    api.with(async |c| c.send_migration(request).await)
}

#[test]
fn a_guest_goes_on_in_another_monitor() {
    let steady = Steady::new();
    let source = started(steady.boot_on(&steady.layered(), ""));
    let target = Target::new(&steady.folder("target"));
    let (api, request) = (source.api(), VmSendMigration::to(&target.url));
    let info = send(&api, &request).expect("vm.send-migration");
    assert!(info.downtime_us > 0 && info.rounds > 0, "{info:?}");
    let (vmm, _echo) = target.arrived();
    works(&vmm);
    assert_eq!(api.info().state, VmState::Shutdown);
    // And on to a third one, with the second one's disks.
    let third = Target::new(&steady.folder("third"));
    send(&vmm.api(), &VmSendMigration::to(&third.url)).expect("vm.send-migration");
    let (third, _echo) = third.arrived();
    works(&third);
    finish_and_shut_down(third);
    qemu_img(
        &["check", "-q", "-f", "qcow2"],
        &[&steady.path("top.qcow2")],
        &[],
    );
}

#[test]
fn its_disks_go_with_it_if_it_is_asked_to() {
    let steady = Steady::new();
    let source = started(steady.boot_on(&steady.layered(), ""));
    let folder = steady.folder("target");
    let socket = folder.join("migration.sock");
    let url = format!("unix:{}", socket.display());
    let request = VmReceiveMigration {
        disk_dir: Some(folder.clone()),
        ..VmReceiveMigration::at(&url)
    };
    let target = Target::at(&folder, request);
    eventually("the target listens", SHORT, || {
        socket.exists().then_some(())
    });
    let request = VmSendMigration {
        disks: MigratedDisks::Stream,
        ..VmSendMigration::to(&url)
    };
    send(&source.api(), &request).expect("vm.send-migration");
    let (vmm, _echo) = target.arrived();
    works(&vmm);
    let disk = vmm.api().info().config.disks.remove(0);
    assert_eq!(disk.path, folder.join("_disk0.0"));
    assert_eq!(disk.backing.len(), 2, "{disk:?}");
    // Nothing of it is the source's any more.
    drop(source);
    for name in ["base.img", "top.qcow2"] {
        std::fs::remove_file(steady.path(name)).expect("the source's layer");
    }
    works(&vmm);
    finish_and_shut_down(vmm);
    // The names inside are still those of the source: nobody follows them.
    let top = folder.join("_disk0.0");
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", ""], &[&top], &[]);
    qemu_img(&["check", "-q", "-f", "qcow2"], &[&top], &[]);
}

#[test]
fn one_that_never_fits_is_slowed_down_and_goes_in_the_end() {
    // The guest writes all of its 8 MiB anew in less time than the link takes to carry them, however busy the
    // host is.
    const RATE: u64 = 64 << 20;
    let steady = Steady::new();
    let disk = format!("path={}", steady.path("base.img").display());
    let source = started(steady.boot_on(&disk, ":mem=8:dirty=2048"));
    let folder = steady.folder("target");
    let target = Target::new(&folder);
    let near = steady.path("near.sock");
    slow::link(&near, &folder.join("migration.sock"), RATE);
    let request = VmSendMigration {
        // No guest stands still for so short.
        downtime_ms: 0,
        ..VmSendMigration::to(&format!("unix:{}", near.display()))
    };
    let info = send(&source.api(), &request).expect("vm.send-migration");
    println!("{info:?}");
    assert!(info.throttled_percent > 0, "{info:?}");
    let (vmm, _echo) = target.arrived();
    works(&vmm);
    finish_and_shut_down(vmm);
}

#[test]
fn a_cancelled_one_stays_where_it_is() {
    let steady = Steady::new();
    let disk = format!("path={}", steady.path("base.img").display());
    let source = started(steady.boot_on(&disk, ":mem=32:dirty=8192"));
    let target = Target::new(&steady.folder("target"));
    let request = VmSendMigration {
        // It never comes to that.
        downtime_ms: 0,
        ..VmSendMigration::to(&target.url)
    };
    let api = source.api();
    api.refused(Operation::VmCancelMigration, "", 409, &["no migration"]);
    let sending = {
        let api = source.api();
        std::thread::spawn(move || send(&api, &request))
    };
    eventually("the migration is under way", SHORT, || {
        api.with(async |c| c.act(Operation::VmCancelMigration).await)
            .ok()
    });
    let refused = sending.join().expect("the sender ends");
    assert!(
        refused.is_err_and(|e| Api::is_refusal(&e, 409)),
        "it was not cancelled"
    );
    let failed = target.waiting.join().expect("the waiter ends");
    assert!(failed.is_err(), "the target has it, too");
    works(&source);
    finish(source);
}

#[test]
fn one_that_does_not_fit_is_refused_and_stays() {
    let steady = Steady::new();
    let source = started(steady.boot(""));
    let api = source.api();
    let nowhere = r#"{"destination_url": "unix:/nobody/listens/here"}"#;
    api.refused(Operation::VmSendMigration, nowhere, 500, &["cannot reach"]);
    let open = r#"{"destination_url": "tcp:127.0.0.1:9"}"#;
    api.refused(
        Operation::VmSendMigration,
        open,
        400,
        &["tls_dir", "insecure"],
    );
    let wrong = r#"{"destination_url": "127.0.0.1"}"#;
    api.refused(Operation::VmSendMigration, wrong, 400, &["unix:", "tcp:"]);
    // Its socket is in use: by the source.
    let vmm = Builder::api_only().start();
    let socket = steady.path("taken.sock");
    let url = format!("unix:{}", socket.display());
    let waiting = {
        let (api, request) = (vmm.api(), VmReceiveMigration::at(&url));
        std::thread::spawn(move || api.with(async |c| c.receive_migration(&request).await))
    };
    eventually("the target listens", SHORT, || {
        socket.exists().then_some(())
    });
    let refused = send(&api, &VmSendMigration::to(&url)).expect_err("the target cannot have it");
    let text = refused.to_string();
    assert!(text.contains("goes on here"), "{text}");
    assert!(waiting.join().expect("the waiter ends").is_err());
    works(&source);
    finish(source);
}

#[test]
fn over_tcp_both_sides_show_certificates_of_one_authority() {
    let steady = Steady::new();
    let source = started(steady.boot(""));
    let (trusted, foreign) = (
        certificate(steady.folder("trusted")),
        certificate(steady.folder("foreign")),
    );
    let at = |port: u16| VmReceiveMigration {
        tls_dir: Some(trusted.clone()),
        ..VmReceiveMigration::at(&format!("tcp:127.0.0.1:{port}"))
    };
    let request = |target: &Target, directory: &Path| VmSendMigration {
        tls_dir: Some(directory.to_owned()),
        ..VmSendMigration::to(&target.url)
    };
    let port = free_port();
    let target = Target::at(&steady.folder("first"), at(port));
    listened_on(port);
    send(&source.api(), &request(&target, &foreign)).expect_err("it is of another authority");
    assert!(target.waiting.join().expect("the waiter ends").is_err());
    works(&source);
    let port = free_port();
    let target = Target::at(&steady.folder("second"), at(port));
    listened_on(port);
    send(&source.api(), &request(&target, &trusted)).expect("vm.send-migration");
    let (vmm, _echo) = target.arrived();
    finish_and_shut_down(vmm);
}

#[test]
fn a_target_that_never_gets_ready_is_given_up() {
    const ACCEPT: [u8; 9] = [1, 0, 0, 0, 0, 0, 0, 0, 0];
    let steady = Steady::new();
    let source = started(steady.boot(""));
    let socket = steady.path("migration.sock");
    let listener = UnixListener::bind(&socket).expect("a listener");
    // It takes whatever comes, and says nothing but that it will.
    let taking = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a source");
        stream.write_all(&ACCEPT).expect("it listens");
        std::io::copy(&mut stream, &mut std::io::sink())
    });
    let begun = Instant::now();
    let url = format!("unix:{}", socket.display());
    let refused = send(&source.api(), &VmSendMigration::to(&url)).expect_err("nobody has it");
    assert!(refused.to_string().contains("timed out"), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(50), "{begun:?}");
    taking.join().expect("it ends").expect("all of it");
    assert_eq!(source.api().info().state, VmState::Running);
    works(&source);
    finish(source);
}

/// Numbers that look random and are the same in every run.
fn seeded(seed: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(seed), |x| {
        Some(
            x.wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407),
        )
    })
    .skip(1)
    .map(|x| x >> 33)
}

/// How many times a side is killed, and within which time.
const KILLS: usize = 8;
const WITHIN_US: u64 = 150_000;

#[test]
fn a_target_killed_at_any_moment_leaves_the_guest_at_its_source() {
    let steady = Steady::new();
    let mut source = Some(started(steady.boot("")));
    for (round, random) in seeded(1).take(KILLS).enumerate() {
        let vmm = source.take().unwrap_or_else(|| started(steady.boot("")));
        let target = Target::new(&steady.folder(&format!("target{round}")));
        let (api, request) = (vmm.api(), VmSendMigration::to(&target.url));
        let sending = std::thread::spawn(move || send(&api, &request));
        std::thread::sleep(Duration::from_micros(random % WITHIN_US));
        // Killed, and waited for.
        drop(target.vmm);
        let sent = sending.join().expect("the sender ends");
        let came = target.waiting.join().expect("the waiter ends");
        let state = vmm.api().info().state;
        match sent {
            // The guest ran there, and died there.
            Ok(_) => assert_eq!(state, VmState::Shutdown),
            Err(e) => {
                assert!(came.is_err(), "both have it");
                assert_eq!(state, VmState::Running, "{e}");
                works(&vmm);
                source = Some(vmm);
            }
        }
    }
    if let Some(vmm) = source {
        finish(vmm);
    }
}

#[test]
fn a_source_killed_at_any_moment_leaves_at_most_one_guest_and_it_is_whole() {
    let (mut went_on, mut died) = (0, 0);
    for random in seeded(2).take(KILLS) {
        let steady = Steady::new();
        let source = started(steady.boot(""));
        let target = Target::new(&steady.folder("target"));
        let (api, request) = (source.api(), VmSendMigration::to(&target.url));
        let sending = std::thread::spawn(move || send(&api, &request));
        std::thread::sleep(Duration::from_micros(random % WITHIN_US));
        drop(source);
        let _ = sending.join().expect("the sender ends");
        match target.waiting.join().expect("the waiter ends") {
            Ok(()) => {
                works(&target.vmm);
                finish_and_shut_down(target.vmm);
                went_on += 1;
            }
            Err(_) => {
                target
                    .vmm
                    .api()
                    .refused(Operation::VmPause, "", 404, &["no VM"]);
                died += 1;
            }
        }
    }
    println!("{went_on} went on at the target, {died} died with their source");
}
