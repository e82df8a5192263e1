//! Sockets between host and guest, in both directions.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use skerry_tests::vmm::{Builder, SHORT, assert_gone};
use skerry_tests::vsock::{connect, echo};

#[test]
fn the_host_connects_and_a_mebibyte_comes_back() {
    let vmm = Builder::payload("run=vsock-listen:5000:2");
    let socket = vmm.path("v.sock");
    let vmm = vmm
        .flag("--vsock", format!("cid=3,socket={}", socket.display()))
        .start();
    vmm.expect_line("hello", SHORT);
    let data: Vec<u8> = (0..1 << 20)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for _ in 0..2 {
        let mut stream = connect(&socket, 5000, SHORT);
        echo(&mut stream, &data);
    }
    vmm.wait(SHORT).all_ok(1);
    assert_gone(&socket);
}

#[test]
fn the_guest_connects_and_a_mebibyte_comes_back() {
    let vmm = Builder::payload("run=vsock-connect:7000:bytes=1048576");
    let socket = vmm.path("v.sock");
    let listener = UnixListener::bind(vmm.path("v.sock_7000")).expect("a listener");
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the guest connects");
        let mut buffer = vec![0; 64 << 10];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(n) => stream.write_all(&buffer[..n]).expect("the guest reads"),
            }
        }
    });
    vmm.flag("--vsock", format!("cid=3,socket={}", socket.display()))
        .run()
        .all_ok(1);
    echo.join().expect("the echo ends");
}

#[test]
fn a_port_that_nobody_serves_is_refused_at_once() {
    let vmm = Builder::payload("run=vsock-connect:7001,rng");
    let socket = vmm.path("v.sock");
    let exit = vmm
        .flag("--vsock", format!("cid=3,socket={}", socket.display()))
        .run();
    assert!(
        exit.serial
            .iter()
            .any(|l| l.starts_with("fail vsock-connect")),
        "{exit}"
    );
    exit.ok("rng");
}
