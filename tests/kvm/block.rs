//! Disks: every byte written is the byte read, by the guest and by the host.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use skerry_tests::disk;
use skerry_tests::vmm::{Builder, Exit, SHORT};
use skerry_vmm_api::endpoints::Operation;

const SIZE: u64 = 32 << 20;

fn run(tasks: &str, size: u64, options: &str) -> (Exit, String, u64) {
    let vmm = Builder::payload(tasks);
    let path = vmm.path("disk.img");
    disk::create(&path, size);
    let keep = tempfile::NamedTempFile::new().expect("a file");
    std::fs::rename(&path, keep.path()).expect("moved");
    let exit = vmm
        .flag(
            "--disk",
            format!("path={},{options}", keep.path().display())
                .trim_end_matches(',')
                .to_owned(),
        )
        .run();
    (
        exit,
        disk::checksum(keep.path()),
        disk::allocated(keep.path()),
    )
}

#[test]
fn a_whole_disk_is_written_and_read_back_exactly() {
    let (exit, sum, _) = run("run=blk-verify,blk-sum", SIZE, "");
    exit.all_ok(2);
    assert_eq!(
        exit.value("blk-sum", "fnv1a"),
        sum,
        "the host sees other bytes than the guest"
    );
    assert_eq!(exit.value("blk-verify", "bytes"), SIZE.to_string());
}

#[test]
fn so_it_is_by_several_queues() {
    for queues in [2, 4, 16] {
        let (exit, sum, _) = run(
            "run=blk-verify:0:7,blk-sum",
            SIZE,
            &format!("num_queues={queues}"),
        );
        exit.all_ok(2);
        assert_eq!(exit.value("blk-sum", "fnv1a"), sum);
    }
}

#[test]
fn so_it_is_past_the_page_cache() {
    let (exit, sum, _) = run("run=blk-verify:0:3,blk-sum", SIZE, "direct=on");
    exit.all_ok(2);
    assert_eq!(exit.value("blk-sum", "fnv1a"), sum);
}

#[test]
fn so_it_is_without_interrupts_event_idx_or_direct_descriptors() {
    run("run=blk-poll:0:1", SIZE, "").0.all_ok(1);
    run("run=blk-verify:0:2 event-idx=off", SIZE, "")
        .0
        .all_ok(1);
    run("run=blk-indirect:0:3", SIZE, "").0.all_ok(1);
    run(
        "run=blk-verify:0:4:split=odd:depth=32",
        SIZE,
        "queue_size=1024",
    )
    .0
    .all_ok(1);
    run("run=blk-verify:0:5:depth=1", SIZE, "queue_size=4")
        .0
        .all_ok(1);
}

#[test]
fn what_one_machine_wrote_the_next_one_reads() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    disk::create(file.path(), SIZE);
    let option = format!("path={}", file.path().display());
    Builder::payload("run=blk-verify:0:9")
        .flag("--disk", &option)
        .run()
        .all_ok(1);
    Builder::payload("run=blk-read-verify:0:9")
        .flag("--disk", format!("{option},readonly=on"))
        .run()
        .all_ok(1);
}

#[test]
fn discard_frees_and_zeroes_read_as_zeroes() {
    let (exit, ..) = run("run=blk-discard,blk-zeroes", SIZE, "");
    exit.all_ok(2);
}

#[test]
fn a_readonly_disk_refuses_writes_and_stays_as_it_is() {
    let (exit, sum, _) = run("run=blk-ro", SIZE, "readonly=on");
    exit.all_ok(1);
    let empty = tempfile::NamedTempFile::new().expect("a file");
    disk::create(empty.path(), SIZE);
    assert_eq!(sum, disk::checksum(empty.path()));
}

#[test]
fn requests_that_cannot_be_are_refused_and_the_disk_goes_on() {
    run("run=blk-oob,blk-verify", SIZE, "").0.all_ok(2);
}

#[test]
fn a_reset_with_requests_in_flight_loses_nothing() {
    run("run=reset-dev:0:20,blk-verify", SIZE, "").0.all_ok(2);
}

#[test]
fn the_guest_reads_the_serial_number_it_was_given() {
    let (exit, ..) = run("run=blk-info", SIZE, "serial=skerry-0123456789");
    assert_eq!(exit.value("blk-info", "id"), "skerry-0123456789", "{exit}");
}

#[test]
fn a_file_system_that_cannot_zero_a_range_is_written_to() {
    // tmpfs punches holes and does not zero ranges.
    let shm = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file on tmpfs");
    disk::create(shm.path(), SIZE);
    let exit = Builder::payload("run=blk-zeroes,blk-discard,blk-verify")
        .flag("--disk", format!("path={}", shm.path().display()))
        .run();
    exit.all_ok(3);
}

#[test]
fn a_load_of_everything_at_once_stays_exact_until_the_power_button() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("disk.img");
    disk::create(&path, SIZE);
    let vmm = Builder::payload("run=blk-churn:0:5:fresh=zero,blk-sum")
        .flag("--disk", format!("path={},num_queues=2", path.display()))
        .with_api()
        .start();
    vmm.expect_line("churn: running", SHORT);
    vmm.api().act(Operation::VmPowerButton);
    let exit = vmm.wait(SHORT);
    exit.all_ok(2);
    assert_eq!(exit.value("blk-churn", "checked"), SIZE.to_string());
    assert_eq!(exit.value("blk-sum", "fnv1a"), disk::checksum(&path));
    for key in ["written", "read", "zeroed", "discarded", "flushes"] {
        assert_ne!(exit.value("blk-churn", key), "0", "{key}: {exit}");
    }
}

#[test]
fn that_load_knows_what_was_there_before_and_ends_after_its_rounds() {
    let tasks = "run=blk-verify:0:9,blk-churn:0:5:fresh=9:rounds=400:depth=32";
    run(tasks, SIZE, "").0.all_ok(2);
}

#[test]
fn that_load_finds_a_single_byte_that_the_host_changes() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("disk.img");
    disk::create(&path, SIZE);
    let vmm = Builder::payload("run=blk-churn:0:5:fresh=zero")
        .flag("--disk", format!("path={}", path.display()))
        .start();
    vmm.expect_line("churn: running", SHORT);
    let image = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("an image");
    // A byte may hit a block just before it is written: change more, until one is read.
    let start = Instant::now();
    let mut block = 0;
    while !vmm.lines().iter().any(|line| line.contains("fail")) {
        assert!(start.elapsed() < Duration::from_secs(30), "not found");
        let offset = block % (SIZE / 4096) * 4096 + 0x4d2;
        image.write_all_at(&[0x5c], offset).expect("written");
        block += 61;
        std::thread::sleep(Duration::from_millis(1));
    }
    let exit = vmm.wait(SHORT);
    let found = |l: &String| {
        l.starts_with("fail blk-churn reason=mismatch offset=0x") && l.contains("4d0 found=")
    };
    assert!(exit.serial.iter().any(found), "{exit}");
}
