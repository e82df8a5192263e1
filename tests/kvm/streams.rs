//! Serial port, console, entropy.

use std::io::{BufRead, BufReader, Write};

use skerry_tests::vmm::{Builder, SHORT};

#[test]
fn random_numbers_come() {
    Builder::payload("run=rng").run().all_ok(1);
}

#[test]
fn what_is_typed_on_the_serial_port_comes_back() {
    let mut vmm = Builder::payload("run=serial-echo:30").start();
    vmm.expect_line("hello", SHORT);
    vmm.type_text("the quick brown fox jumps over the lazy dog, twice, beyond one FIFO\n");
    vmm.wait(SHORT).all_ok(1);
}

#[test]
fn what_is_typed_on_the_console_comes_back() {
    // The console on standard streams, the serial port in a file.
    let vmm = Builder::new(&["--no-probe", "--console", "tty"]);
    let serial = vmm.path("serial");
    let mut vmm = vmm
        .flag("--serial", format!("file={}", serial.display()))
        .flag("--kernel", skerry_tests::given("SKERRY_PAYLOAD"))
        .flag("--cmdline", "run=console-write:ready,console-echo:30")
        .start();
    vmm.expect_line("ready", SHORT);
    vmm.type_text("a line for the console\n");
    vmm.expect_line("a line for the console", SHORT);
    let text = skerry_tests::eventually("the payload is done", SHORT, || {
        std::fs::read_to_string(&serial)
            .ok()
            .filter(|t| t.contains("done"))
    });
    assert!(text.contains("done ok=2 fail=0"), "{text}");
}

#[test]
fn a_pty_is_named_by_vm_info_and_works() {
    let vmm = Builder::new(&["--no-probe", "--console", "off", "--serial", "pty"])
        .flag("--kernel", skerry_tests::given("SKERRY_PAYLOAD"))
        // It stays until it was heard: what a terminal still holds goes with its other side.
        .flag("--cmdline", "run=serial-echo:30 off=wait-power-button")
        .with_api()
        .start();
    let pty = vmm.api().info().config.serial.file.expect("a pty");
    let mut host = std::fs::File::options()
        .read(true)
        .write(true)
        .open(pty)
        .expect("the pty opens");
    host.write_all(b"over the pty\n").expect("the guest reads");
    let lines = BufReader::new(host).lines();
    let found = lines
        .map_while(Result::ok)
        .take(20)
        .any(|l| l.contains("done ok=1 fail=0"));
    assert!(found, "the payload did not get the line");
}

#[test]
fn a_reader_that_does_not_read_stops_nobody() {
    // The serial port is a pipe that nobody reads: it fills up, and the tasks go on to the end.
    let vmm = Builder::new(&["--no-probe"]);
    let pipe = vmm.path("pipe");
    let status = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .expect("mkfifo");
    assert!(status.success());
    let _idle = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&pipe)
        .expect("the pipe opens");
    let exit = vmm
        .flag("--serial", format!("file={}", pipe.display()))
        .flag("--console", "null")
        .flag("--kernel", skerry_tests::given("SKERRY_PAYLOAD"))
        .flag("--cmdline", format!("run={}", ["mem"; 500].join(",")))
        .run();
    assert_eq!(exit.code, Some(0), "{exit}");
}
