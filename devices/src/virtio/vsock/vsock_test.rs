//! Tests of the whole device: a miniature driver, a real worker and real Unix sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use proptest::prelude::*;

use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use guest::{CID, GUEST_ALLOC, Guest, Ports, pattern};

#[path = "guest_test.rs"]
mod guest;

fn stream(path: &Path) -> UnixStream {
    patient(UnixStream::connect(path).unwrap())
}

fn patient(stream: UnixStream) -> UnixStream {
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit).unwrap();
    stream.set_write_timeout(limit).unwrap();
    stream
}

/// Reads the handshake's answer, byte by byte, so that nothing behind it is taken.
fn answer(stream: &mut UnixStream) -> u32 {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    line.strip_prefix("OK ")
        .unwrap()
        .trim_end()
        .parse()
        .unwrap()
}

/// A host program connects to a port of the guest, which accepts.
fn host_connects(guest: &mut Guest, port: u32) -> (UnixStream, Ports) {
    let mut stream = stream(&guest.socket);
    writeln!(stream, "CONNECT {port}").unwrap();
    let known: Vec<Ports> = guest.peers.keys().copied().collect();
    guest.pump_until("a request", |g| g.peers.len() > known.len());
    let mut new = guest.peers.keys().filter(|p| !known.contains(p));
    let ports = *new.next().unwrap();
    assert_eq!(ports.1, port);
    assert_eq!(answer(&mut stream), ports.0);
    (stream, ports)
}

/// A guest program connects to a port of the host, where a program listens.
fn guest_connects(guest: &mut Guest, ports: Ports) -> UnixStream {
    let path = format!("{}_{}", guest.socket.display(), ports.0);
    let listener = UnixListener::bind(path).unwrap();
    assert!(guest.connect(ports));
    patient(listener.accept().unwrap().0)
}

fn read_all(mut stream: UnixStream) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn assert_ended(stream: &mut UnixStream) {
    match stream.read(&mut [0; 16]) {
        Ok(0) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("not ended: {other:?}"),
    }
}

#[test]
fn the_device_shows_its_cid_and_its_queues() {
    let guest = Guest::stopped();
    assert_eq!(guest.device.config(), CID.to_le_bytes());
    assert_eq!(guest.device.device_type(), 19);
    assert_eq!(guest.device.queue_sizes(), [128; 3]);
    assert_eq!(guest.device.features(), features::COMMON | 1);
}

#[test]
fn a_host_program_connects_and_what_it_wrote_ahead_arrives() {
    let mut guest = Guest::new();
    let mut stream = stream(&guest.socket);
    stream.write_all(b"CONNECT 52\nhello").unwrap();
    guest.pump_until("data", |g| g.peers.values().any(|p| p.received == b"hello"));
    let ports = *guest.peers.keys().next().unwrap();
    assert_eq!(answer(&mut stream), ports.0);
    guest.send(ports, Op::Data, 0, b"welcome");
    let mut bytes = [0; 7];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"welcome");
}

#[test]
fn a_request_that_the_guest_refuses_closes_the_host_program() {
    let mut guest = Guest::new();
    guest.accepting = false;
    let mut stream = stream(&guest.socket);
    stream.write_all(b"CONNECT 52\n").unwrap();
    guest.pump_until("a request", |g| !g.requests.is_empty());
    let request = guest.requests.pop_front().unwrap();
    guest.send((request.src_port, 52), Op::Reset, 0, &[]);
    assert_ended(&mut stream);
}

#[test]
fn a_host_program_that_sends_garbage_is_closed() {
    let guest = Guest::new();
    for garbage in [&b"GET / HTTP/1.1\r\n"[..], &[b'x'; 100], &[0xff; 32]] {
        let mut stream = stream(&guest.socket);
        let _ = stream.write_all(garbage);
        assert_ended(&mut stream);
    }
}

#[test]
fn a_host_program_that_says_nothing_is_closed_after_a_while() {
    let guest = Guest::new();
    // The read itself is the wait.
    assert_ended(&mut stream(&guest.socket));
}

#[test]
fn a_mebibyte_goes_both_ways_and_a_slow_reader_holds_the_guest_back() {
    let mut guest = Guest::new();
    let (stream, ports) = host_connects(&mut guest, 1000);
    let data = pattern(1 << 20, 1);
    let (go, may_read) = channel();
    let mut writer = stream.try_clone().unwrap();
    let to_write = data.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&to_write).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut reader = stream;
    let reading = thread::spawn(move || {
        may_read.recv().unwrap();
        let (mut all, mut piece) = (Vec::<u8>::new(), [0; 777]);
        loop {
            match reader.read(&mut piece).unwrap() {
                0 => return all,
                n => all.extend(&piece[..n]),
            }
        }
    });
    guest.pump_while(writing);
    guest.pump_until("the host's end", |g| g.peers[&ports].shut == SHUTDOWN_SEND);
    assert!(guest.peers[&ports].received == data);
    // Nobody reads: the guest can send what fits here and into the socket, and no more.
    let mut left = &data[..];
    while guest.peers[&ports].credit() > 0 {
        left = guest.send_some(ports, left);
        guest.sent_all();
        while guest.pump() {}
    }
    assert!(!left.is_empty());
    go.send(()).unwrap();
    guest.send_all(ports, left);
    guest.send(ports, Op::Shutdown, SHUTDOWN_SEND, &[]);
    assert!(guest.pump_while(reading) == data);
    let counters = guest.device.counters();
    assert_eq!(
        counters[..3],
        [
            ("rx_bytes", 1 << 20),
            ("tx_bytes", 1 << 20),
            ("connections", 1)
        ]
    );
}

#[test]
fn a_guest_program_connects_to_whoever_listens_on_the_host() {
    let mut guest = Guest::new();
    let mut stream = guest_connects(&mut guest, (80, 4000));
    guest.send((80, 4000), Op::Data, 0, b"ping");
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    stream.write_all(b"pong").unwrap();
    guest.pump_until("data", |g| g.peers[&(80, 4000)].received == b"pong");
}

#[test]
fn a_port_of_the_host_where_nobody_listens_is_reset() {
    let mut guest = Guest::new();
    assert!(!guest.connect((81, 4000)));
    assert!(guest.peers[&(81, 4000)].reset);
}

#[test]
fn a_host_program_that_shut_down_its_sending_side_still_receives() {
    let mut guest = Guest::new();
    let (mut stream, ports) = host_connects(&mut guest, 7);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.pump_until("the end", |g| g.peers[&ports].shut == SHUTDOWN_SEND);
    assert_eq!(guest.peers[&ports].received, b"question");
    guest.send(ports, Op::Data, 0, b"answer");
    guest.send(ports, Op::Shutdown, SHUTDOWN_BOTH, &[]);
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all, "answer");
    guest.pump_until("the reset", |g| g.peers[&ports].reset);
}

#[test]
fn a_guest_program_that_shut_down_its_sending_side_still_receives() {
    let mut guest = Guest::new();
    let (mut stream, ports) = host_connects(&mut guest, 7);
    guest.send(ports, Op::Data, 0, b"question");
    guest.send(ports, Op::Shutdown, SHUTDOWN_SEND, &[]);
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all, "question");
    stream.write_all(b"answer").unwrap();
    drop(stream);
    guest.pump_until("the end", |g| g.peers[&ports].shut == SHUTDOWN_BOTH);
    assert_eq!(guest.peers[&ports].received, b"answer");
}

#[test]
fn a_guest_program_that_stops_receiving_breaks_the_host_programs_pipe() {
    let mut guest = Guest::new();
    let (mut stream, ports) = host_connects(&mut guest, 7);
    guest.send(ports, Op::Shutdown, SHUTDOWN_RECEIVE, &[]);
    guest.sent_all();
    assert_eq!(
        stream.write(b"x").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    drop(stream);
    guest.pump_until("the end", |g| g.peers[&ports].shut == SHUTDOWN_BOTH);
}

#[test]
fn what_the_guest_sent_before_it_closed_reaches_a_late_reader() {
    let mut guest = Guest::new();
    let (stream, ports) = host_connects(&mut guest, 7);
    // More than the socket takes, so that some of it waits in the device.
    let data = pattern(1 << 20, 2);
    let mut left = &data[..];
    while guest.peers[&ports].credit() > 0 {
        left = guest.send_some(ports, left);
        guest.sent_all();
        while guest.pump() {}
    }
    guest.send(ports, Op::Shutdown, SHUTDOWN_BOTH, &[]);
    guest.pump_until("the reset", |g| g.peers[&ports].reset);
    let reading = read_all(stream);
    let got = guest.pump_while(reading);
    assert!(got == data[..data.len() - left.len()]);
}

#[test]
fn what_a_host_program_sent_before_it_closed_reaches_a_slow_guest() {
    let mut guest = Guest::new();
    let (mut stream, ports) = host_connects(&mut guest, 7);
    guest.peers.get_mut(&ports).unwrap().hold = true;
    let data = pattern(150_000, 3);
    stream.write_all(&data).unwrap();
    drop(stream);
    guest.pump_until("a full window", |g| {
        g.peers[&ports].received.len() as u32 == GUEST_ALLOC
    });
    guest.release(ports);
    guest.pump_until("the end", |g| g.peers[&ports].shut == SHUTDOWN_BOTH);
    assert!(guest.peers[&ports].received == data);
}

#[test]
fn a_stalled_connection_does_not_hold_up_another() {
    let mut guest = Guest::new();
    let (mut stalled, stalled_ports) = host_connects(&mut guest, 1);
    guest.peers.get_mut(&stalled_ports).unwrap().hold = true;
    stalled.write_all(&pattern(150_000, 4)).unwrap();
    guest.pump_until("a full window", |g| {
        g.peers[&stalled_ports].received.len() as u32 == GUEST_ALLOC
    });
    // The other direction is stalled too: nobody reads what the guest sends.
    let data = pattern(1 << 20, 4);
    let mut left = &data[..];
    while guest.peers[&stalled_ports].credit() > 0 {
        left = guest.send_some(stalled_ports, left);
        guest.sent_all();
        while guest.pump() {}
    }
    let (mut stream, ports) = host_connects(&mut guest, 2);
    let reading = read_all(stream.try_clone().unwrap());
    guest.send_all(ports, &data);
    guest.send(ports, Op::Shutdown, SHUTDOWN_SEND, &[]);
    assert!(guest.pump_while(reading) == data);
    stream.write_all(b"done").unwrap();
    guest.pump_until("data", |g| g.peers[&ports].received == b"done");
}

#[test]
fn sockets_wait_until_the_guest_has_buffers() {
    let mut guest = Guest::stopped();
    guest.start();
    let mut stream = stream(&guest.socket);
    stream.write_all(b"CONNECT 5\n").unwrap();
    guest.offer_buffers(1);
    guest.pump_until("a request", |g| !g.peers.is_empty());
    let ports = *guest.peers.keys().next().unwrap();
    let data = pattern(100_000, 5);
    stream.write_all(&data).unwrap();
    guest.pump_until("data", |g| g.peers[&ports].received.len() == data.len());
    assert!(guest.peers[&ports].received == data);
}

#[test]
fn a_stop_in_mid_stream_loses_nothing() {
    let mut guest = Guest::new();
    let (stream, ports) = host_connects(&mut guest, 9);
    let data = pattern(2 << 20, 6);
    let reading = read_all(stream.try_clone().unwrap());
    let (mut writer, to_write) = (stream, data.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&to_write).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut left = &data[..];
    let mut stops = 0;
    while !left.is_empty() {
        left = guest.send_some(ports, left);
        if left.len() + stops * 200_000 < data.len() {
            stops += 1;
            guest.stop();
            // A packet that is offered while nothing runs is found when it runs again.
            left = guest.send_some(ports, left);
            guest.start();
        }
        if guest.peers[&ports].credit() == 0 {
            guest.pump_until("credit", |g| g.peers[&ports].credit() > 0);
        }
    }
    assert!(stops > 5);
    guest.send(ports, Op::Shutdown, SHUTDOWN_SEND, &[]);
    guest.pump_while(writing);
    assert!(guest.pump_while(reading) == data);
    guest.pump_until("the host's end", |g| {
        g.peers[&ports].shut & SHUTDOWN_SEND != 0
    });
    assert!(guest.peers[&ports].received == data);
}

#[test]
fn many_connections_echo_at_once_through_pauses() {
    let mut guest = Guest::new();
    let clients: Vec<_> = (0..32)
        .map(|seed| {
            let mut stream = stream(&guest.socket);
            thread::spawn(move || {
                let data = pattern(100_000, seed);
                stream.write_all(b"CONNECT 7\n").unwrap();
                answer(&mut stream);
                let mut writer = stream.try_clone().unwrap();
                let reading = read_all(stream);
                writer.write_all(&data).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
                assert!(reading.join().unwrap() == data);
            })
        })
        .collect();
    let mut echoed = std::collections::HashMap::<Ports, usize>::new();
    let mut finished = 0;
    let started = std::time::Instant::now();
    for round in 1u32.. {
        assert!(started.elapsed() < Duration::from_secs(60));
        let moved = guest.pump();
        if round.is_multiple_of(500) {
            guest.stop();
            guest.start();
        }
        let all: Vec<Ports> = guest.peers.keys().copied().collect();
        for ports in all {
            let done = echoed.entry(ports).or_default();
            let data = guest.peers[&ports].received[*done..].to_vec();
            *done += data.len() - guest.send_some(ports, &data).len();
            let peer = &guest.peers[&ports];
            let over = peer.shut & SHUTDOWN_SEND != 0 && *done == peer.received.len();
            if over && !peer.closed {
                guest.peers.get_mut(&ports).unwrap().closed = true;
                guest.send(ports, Op::Shutdown, SHUTDOWN_BOTH, &[]);
                finished += 1;
            }
        }
        if finished == 32 {
            break;
        }
        if !moved {
            guest.pause();
        }
    }
    for client in clients {
        guest.pump_while(client);
    }
}

#[test]
fn a_stop_of_the_event_queue_alone_leaves_the_connections_running() {
    let mut guest = Guest::new();
    let (mut stream, ports) = host_connects(&mut guest, 9);
    assert!(guest.device.stop_queue(2).is_some());
    assert!(guest.device.stop_queue(2).is_none());
    stream.write_all(b"still here").unwrap();
    guest.pump_until("data", |g| g.peers[&ports].received == b"still here");
}

#[test]
fn a_reset_drops_the_connections_and_the_device_starts_over() {
    let mut guest = Guest::new();
    let (mut stream, ports) = host_connects(&mut guest, 9);
    guest.stop();
    guest.device.reset();
    assert_ended(&mut stream);
    guest.start();
    guest.peers.remove(&ports);
    guest.send(ports, Op::Data, 0, b"late");
    guest.pump_until("a reset", |g| !g.strays.is_empty());
    host_connects(&mut guest, 9);
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let mut guest = Guest::stopped();
    guest.age();
    guest.offer_buffers(16);
    guest.start();
    guest.offer_event_buffer();
    assert_eq!(guest.event(), 0, "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
    // A pause is no restore.
    guest.stop();
    guest.start();
    guest.offer_event_buffer();
    host_connects(&mut guest, 1);
}

#[test]
fn a_host_program_waits_until_a_restored_guest_has_ended_what_is_gone() {
    let mut guest = Guest::stopped();
    guest.age();
    guest.offer_buffers(16);
    for _ in 0..4 {
        guest.offer_event_buffer();
    }
    let mut early = stream(&guest.socket);
    writeln!(early, "CONNECT 9").unwrap();
    guest.start();
    assert_eq!(guest.event(), 0, "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
    // The driver has not dealt with it yet: other connections come about, its own wait.
    guest_connects(&mut guest, (70, 1));
    guest.pump_until("an answer", |g| g.peers[&(70, 1)].open);
    assert!(guest.requests.is_empty() && guest.peers.len() == 1);
    // A pause forgets nothing.
    guest.stop();
    guest.start();
    guest_connects(&mut guest, (71, 1));
    guest.pump_until("an answer", |g| g.peers[&(71, 1)].open);
    assert!(guest.requests.is_empty() && guest.peers.len() == 2);
    guest.offer_event_buffer();
    guest.pump_until("a request", |g| g.peers.len() == 3);
    assert!(answer(&mut early) > 0);
}

#[test]
fn hostile_packets_are_answered_or_dropped_and_others_go_on() {
    let mut guest = Guest::new();
    let (mut good, good_ports) = host_connects(&mut guest, 1);
    guest.send_raw(&[]);
    guest.send_raw(&[0xff; 43]);
    guest.send_raw(&[0xff; 44]);
    let header = guest.header((9, 9), Op::Data);
    for hostile in [
        Header {
            src_cid: 99,
            ..header
        },
        Header {
            dst_cid: 77,
            ..header
        },
        Header { kind: 2, ..header },
        Header { op: 0, ..header },
        Header { op: 200, ..header },
        Header {
            len: u32::MAX,
            ..header
        },
        Header {
            op: Op::Response as u16,
            ..header
        },
        Header {
            op: Op::Shutdown as u16,
            flags: u32::MAX,
            ..header
        },
    ] {
        guest.send_raw(&hostile.bytes());
    }
    guest.sent_all();
    // All but the one with another sender's address are reset, from where they were sent to.
    guest.pump_until("resets", |g| g.strays.len() == 7);
    assert_eq!(guest.strays.iter().filter(|h| h.src_cid == 77).count(), 1);
    type Case = (&'static str, fn(&mut Header));
    let cases: [Case; 6] = [
        ("length beyond the buffers", |h| h.len = 1),
        ("credit", |h| h.len = u32::MAX),
        ("operation", |h| h.op = 8),
        ("no operation", |h| h.op = 0),
        ("second request", |h| h.op = Op::Request as u16),
        ("response to nothing", |h| h.op = Op::Response as u16),
    ];
    for (name, spoil) in cases {
        let (mut stream, ports) = host_connects(&mut guest, 2);
        let mut header = guest.header(ports, Op::Data);
        spoil(&mut header);
        guest.send_raw(&header.bytes());
        guest.pump_until(name, |g| g.peers[&ports].reset);
        assert_ended(&mut stream);
    }
    good.write_all(b"fine").unwrap();
    guest.pump_until("data", |g| g.peers[&good_ports].received == b"fine");
}

#[test]
fn a_guest_that_exceeds_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (_stream, ports) = host_connects(&mut guest, 1);
    let data = pattern(100_000, 7);
    for _ in 0..20 {
        guest.send(ports, Op::Data, 0, &data);
    }
    guest.sent_all();
    let peer = guest.peers.get_mut(&ports).unwrap();
    *peer = guest::Peer::default();
    guest.pump_until("the reset", |g| g.peers[&ports].reset);
}

#[test]
fn a_socket_file_is_removed_with_its_device() {
    let guest = Guest::stopped();
    let path = guest.socket.clone();
    assert!(path.exists());
    drop(guest.device);
    assert!(!path.exists());
}

#[test]
fn a_device_that_runs_can_be_dropped_and_closes_its_connections() {
    let mut guest = Guest::new();
    let (mut stream, _) = host_connects(&mut guest, 1);
    let path = guest.socket.clone();
    drop(guest);
    assert!(!path.exists());
    assert_ended(&mut stream);
}

#[test]
fn a_socket_file_that_is_another_ones_by_now_stays() {
    let guest = Guest::stopped();
    std::fs::remove_file(&guest.socket).unwrap();
    let _other = UnixListener::bind(&guest.socket).unwrap();
    let path = guest.socket.clone();
    drop(guest.device);
    assert!(path.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "the file outlives its listener");
    let first = Vsock::new(3, &path).unwrap();
    let error = Vsock::new(4, &path).map(drop).unwrap_err();
    assert!(matches!(error, VsockError::InUse(_)));
    assert!(error.to_string().contains("choose another path"), "{error}");
    drop(first);
    std::fs::write(&path, "a file").unwrap();
    let error = Vsock::new(3, &path).map(drop).unwrap_err();
    assert!(matches!(error, VsockError::NotASocket(_)));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    let long = dir.path().join("x".repeat(100));
    let error = Vsock::new(3, &long).map(drop).unwrap_err();
    assert!(matches!(error, VsockError::PathTooLong(_)));
    let error = Vsock::new(3, &dir.path().join("no/such"))
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, VsockError::System { .. }));
    for cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
        let error = Vsock::new(cid, &dir.path().join("t"))
            .map(drop)
            .unwrap_err();
        assert!(matches!(error, VsockError::Cid(_)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn garbage_from_the_guest_never_stops_the_device(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..60)) {
        let mut guest = Guest::new();
        for mut packet in packets {
            // Some get further if their first fields are right.
            if packet.len() > 60 {
                packet[..8].copy_from_slice(&CID.to_le_bytes());
                packet[8..16].copy_from_slice(&2u64.to_le_bytes());
                let op = packet[30] % 9;
                packet[28..32].copy_from_slice(&[1, 0, op, 0]);
            }
            guest.send_raw(&packet);
        }
        guest.sent_all();
    }
}
