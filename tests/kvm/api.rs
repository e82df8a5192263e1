//! The API: a VM's whole life, and what is refused in each state.

use std::time::Duration;

use skerry_tests::vmm::{Builder, SHORT};
use skerry_tests::{Tap, disk, given};
use skerry_vmm_api::VmConfig;
use skerry_vmm_api::config::{ConsoleConfig, ConsoleMode, DiskConfig, NetConfig};
use skerry_vmm_api::endpoints::{Operation, ROOT};
use skerry_vmm_api::requests::VmState;

fn config(cmdline: &str) -> VmConfig {
    let mut config = VmConfig::default();
    config.memory.size = 128 << 20;
    config.payload.kernel = Some(given("SKERRY_PAYLOAD"));
    config.payload.cmdline = Some(cmdline.into());
    config.console.mode = ConsoleMode::Off;
    config.serial = ConsoleConfig {
        mode: ConsoleMode::Tty,
        ..ConsoleConfig::default()
    };
    config
}

#[test]
fn a_whole_life_twice_in_one_process() {
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    let disk = vmm.path("disk.img");
    disk::create(&disk, 4 << 20);
    for round in 1..=2 {
        let mut config = config("run=ticker:1000 off=spin");
        config.disks.push(DiskConfig {
            path: disk.clone(),
            ..DiskConfig::default()
        });
        api.create(&config);
        assert_eq!(api.info().state, VmState::Created);
        api.act(Operation::VmBoot);
        vmm.expect_nth_line("tick 3", round, SHORT);
        let info = api.info();
        assert_eq!(info.state, VmState::Running);
        assert_eq!(info.memory_actual_size, 128 << 20);
        assert!(info.device_tree.contains_key("_disk0"), "{info:?}");
        assert!(api.counters().contains_key("_disk0"));
        api.act(Operation::VmPause);
        assert_eq!(api.info().state, VmState::Paused);
        let before = vmm.lines().len();
        std::thread::sleep(Duration::from_millis(400));
        assert!(vmm.lines().len() <= before + 1, "a paused machine goes on");
        api.act(Operation::VmResume);
        let last = vmm
            .lines()
            .iter()
            .filter(|l| l.starts_with("tick "))
            .count();
        skerry_tests::eventually("it ticks again", SHORT, || {
            (vmm.lines()
                .iter()
                .filter(|l| l.starts_with("tick "))
                .count()
                > last + 2)
                .then_some(())
        });
        api.act(Operation::VmDelete);
        api.refused(Operation::VmInfo, "", 404, &["vm.create"]);
    }
    api.act(Operation::VmmShutdown);
    assert_eq!(vmm.wait(SHORT).code, Some(0));
}

#[test]
fn the_power_button_reaches_the_guest_and_its_end_is_seen() {
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    for round in 1..=2 {
        api.create(&config("off=wait-power-button"));
        api.act(Operation::VmBoot);
        vmm.expect_nth_line("waiting for the power button", round, SHORT);
        api.act(Operation::VmPause);
        api.act(Operation::VmResume);
        api.act(Operation::VmPowerButton);
        api.expect_state(VmState::Shutdown, SHORT);
        // A VM that was shut down boots again.
        api.act(Operation::VmBoot);
        api.expect_state(VmState::Running, SHORT);
        api.act(Operation::VmShutdown);
        assert_eq!(api.info().state, VmState::Shutdown);
        api.act(Operation::VmDelete);
        // The next round's lines are counted with both boots of this one.
        let waiting = vmm
            .lines()
            .iter()
            .filter(|l| l.contains("waiting for the power button"))
            .count();
        if waiting > round {
            break;
        }
    }
}

#[test]
fn a_pause_in_the_middle_of_io_loses_nothing() {
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    let disk = vmm.path("disk.img");
    disk::create(&disk, 64 << 20);
    let mut config = config("run=blk-verify:0:5,blk-verify:0:6");
    config.disks.push(DiskConfig {
        path: disk,
        num_queues: 2,
        ..DiskConfig::default()
    });
    api.create(&config);
    api.act(Operation::VmBoot);
    let mut pauses = 0;
    while api.info().state != VmState::Shutdown {
        if api.with(async |c| c.act(Operation::VmPause).await).is_ok() {
            pauses += 1;
            api.act(Operation::VmResume);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(pauses > 5, "only {pauses} pauses");
    vmm.expect_line("done ok=2 fail=0", SHORT);
}

#[test]
fn a_reboot_keeps_the_configuration() {
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    api.create(&config("run=cpus off=spin"));
    api.act(Operation::VmBoot);
    vmm.expect_nth_line("done ok=1", 1, SHORT);
    api.act(Operation::VmReboot);
    vmm.expect_nth_line("done ok=1", 2, SHORT);
    assert_eq!(api.info().state, VmState::Running);
}

#[test]
fn each_state_refuses_what_it_cannot_do() {
    use Operation::*;
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    for operation in [
        VmBoot,
        VmInfo,
        VmCounters,
        VmPause,
        VmResume,
        VmShutdown,
        VmReboot,
        VmPowerButton,
        VmDelete,
    ] {
        api.refused(operation, "", 404, &["vm.create"]);
    }
    api.create(&config("off=spin"));
    let json = serde_json::to_string(&config("")).expect("JSON");
    api.refused(VmCreate, &json, 409, &["vm.delete"]);
    for operation in [VmCounters, VmPause, VmShutdown, VmReboot, VmPowerButton] {
        api.refused(operation, "", 405, &["not booted", "vm.boot"]);
    }
    api.refused(VmResume, "", 405, &["not booted"]);
    api.act(VmBoot);
    api.refused(VmBoot, "", 405, &["running"]);
    api.refused(VmResume, "", 405, &["running"]);
    api.refused(
        VmAddNet,
        r#"{"tap":"x"}"#,
        405,
        &["running", "only disks", "before vm.boot"],
    );
    api.act(VmPause);
    api.refused(VmPause, "", 405, &["paused", "vm.resume"]);
    api.refused(VmPowerButton, "", 405, &["paused", "vm.resume"]);
    api.act(VmShutdown);
    api.refused(VmPause, "", 405, &["shut down"]);
}

#[test]
fn malformed_requests_are_refused_with_the_field() {
    use Operation::*;
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    api.refused(VmCreate, "", 400, &["EOF"]);
    api.refused(VmCreate, "{", 400, &["EOF"]);
    api.refused(VmCreate, r#"{"frobnicate":1}"#, 400, &["frobnicate"]);
    api.refused(
        VmCreate,
        r#"{"disks":[{"path":"a"},{"path":"b","qos":1}]}"#,
        400,
        &["disks[1].qos"],
    );
    api.refused(
        VmCreate,
        r#"{"cpus":{"boot_vcpus":"two"}}"#,
        400,
        &["cpus.boot_vcpus"],
    );
    api.refused(
        VmCreate,
        r#"{"balloon":{"size":1024}}"#,
        400,
        &["balloon", "does not have this setting"],
    );
    api.refused(VmCreate, r#"{"cpus":{"boot_vcpus":1}}"#, 400, &["kernel"]);
    api.refused(
        VmCreate,
        r#"{"payload":{"kernel":"k"},"cpus":{"boot_vcpus":65}}"#,
        400,
        &["boot=65", "1 to 64"],
    );
    api.refused(VmCreate, &"x".repeat(2 << 20), 413, &["1048576"]);
    api.refused(VmInfo, "", 404, &["vm.create"]);
    // What cannot boot says why, with the whole chain, and can be corrected.
    let mut broken = config("");
    broken.payload.kernel = Some("/no/kernel".into());
    api.create(&broken);
    api.refused(
        VmBoot,
        "",
        500,
        &["cannot boot", "/no/kernel", "No such file"],
    );
    api.act(VmDelete);
    api.create(&config("off=spin"));
    api.act(VmBoot);
}

#[test]
fn devices_are_added_and_removed_before_boot() {
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    let tap = Tap::new();
    let path = vmm.path("disk.img");
    disk::create(&path, 4 << 20);
    api.create(&config("run=pci,blk-info,net-info off=spin"));
    let disk = DiskConfig {
        path: path.clone(),
        id: Some("data".into()),
        ..DiskConfig::default()
    };
    let net = NetConfig {
        tap: tap.name.clone(),
        ..NetConfig::default()
    };
    api.with(async |c| {
        c.add_disk(&disk).await?;
        c.add_disk(&DiskConfig {
            id: Some("spare".into()),
            path: "/no/disk".into(),
            ..DiskConfig::default()
        })
        .await?;
        c.add_net(&net).await?;
        c.remove_device("spare").await
    })
    .expect("devices are added");
    api.refused(
        Operation::VmAddDisk,
        r#"{"path":"x","id":"data"}"#,
        409,
        &["data", "another id"],
    );
    api.refused(Operation::VmAddDisk, r#"{"id":"nothing"}"#, 400, &["path="]);
    api.refused(
        Operation::VmRemoveDevice,
        r#"{"id":"spare"}"#,
        404,
        &["spare", "vm.info"],
    );
    api.act(Operation::VmBoot);
    vmm.expect_line("done ok=3 fail=0", SHORT);
    let info = api.info();
    assert_eq!(info.config.disks.len(), 1);
    assert!(
        info.device_tree.contains_key("data") && info.device_tree.contains_key("_net0"),
        "{info:?}"
    );
}

#[test]
fn the_openapi_document_is_served_and_names_every_endpoint() {
    let vmm = Builder::api_only().start();
    let api = vmm.api();
    let (status, body) = api
        .with(async |c| c.raw(Operation::OpenApi, Vec::new()).await)
        .expect("an answer");
    assert_eq!(status, 200);
    let document: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(
        document["servers"][0]["url"],
        format!("http://localhost{ROOT}")
    );
    for path in ["/vmm.ping", "/vm.create", "/vm.add-net", "/vm.power-button"] {
        assert!(document["paths"].get(path).is_some(), "{path}");
    }
}

#[test]
fn a_vm_of_the_flags_is_seen_by_the_api_and_ends_the_process() {
    let vmm = Builder::payload("off=wait-power-button").with_api().start();
    vmm.expect_line("waiting for the power button", SHORT);
    let api = vmm.api();
    assert_eq!(api.info().state, VmState::Running);
    api.act(Operation::VmPowerButton);
    assert_eq!(vmm.wait(SHORT).code, Some(0));
}

#[test]
fn answers_have_the_form_that_cloud_hypervisors_client_parses() {
    use std::io::{Read, Write};
    // It takes all of the status line behind the version for the code, and looks for the length by
    // this spelling.
    let vmm = Builder::api_only().start();
    vmm.api();
    let mut stream =
        std::os::unix::net::UnixStream::connect(vmm.path("api.sock")).expect("connected");
    let request =
        format!("GET {ROOT}/vmm.ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 \r\n"), "{answer}");
    assert!(answer.contains("\r\nContent-Length: "), "{answer}");
}
