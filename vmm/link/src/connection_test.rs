//! Connections: they carry bytes, and nobody waits for ever.

use std::thread;

use tempfile::TempDir;

use super::*;

const SOON: Duration = Duration::from_millis(50);

/// Both ends of a connection at an address.
fn both(address: &Address) -> (Connection, Connection) {
    let listener = Listener::bind(address).unwrap();
    let accepting = thread::spawn(move || listener.accept(None, &Hangup::default()).unwrap());
    let near = Connection::connect(address, None, &Hangup::default()).unwrap();
    (near, accepting.join().unwrap())
}

fn unix(folder: &TempDir) -> Address {
    Address::Unix(folder.path().join("socket"))
}

#[test]
fn bytes_arrive_and_the_socket_goes_when_somebody_came() {
    let folder = TempDir::new().unwrap();
    let (mut near, mut far) = both(&unix(&folder));
    assert!(!folder.path().join("socket").exists());
    assert!(near.is_local() && far.is_local());
    near.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    far.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    drop(near);
    assert_eq!(far.read(&mut heard).unwrap(), 0);
}

#[test]
fn who_says_nothing_is_given_up() {
    let folder = TempDir::new().unwrap();
    let (mut near, _far) = both(&unix(&folder));
    near.allow(SOON);
    let heard = near.read(&mut [0]).expect_err("nothing comes");
    assert_eq!(heard.kind(), io::ErrorKind::TimedOut);
    near.allow(SOON);
    let sent = near.write_all(&vec![0; 64 << 20]);
    let sent = sent.expect_err("nobody takes so much");
    assert_eq!(sent.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn who_takes_a_little_now_and_then_is_given_up_as_well() {
    let folder = TempDir::new().unwrap();
    let (mut near, mut far) = both(&unix(&folder));
    let trickle = thread::spawn(move || {
        while matches!(far.read(&mut [0; 4096]), Ok(n) if n > 0) {
            thread::sleep(Duration::from_millis(5));
        }
    });
    near.bound(Some(Instant::now() + SOON));
    // Whatever is allowed for a step.
    near.allow(SILENCE);
    let sent = near.write_all(&vec![0; 64 << 20]);
    let sent = sent.expect_err("it would take minutes");
    assert_eq!(sent.kind(), io::ErrorKind::TimedOut);
    drop(near);
    trickle.join().unwrap();
}

#[test]
fn a_wait_is_ended_from_elsewhere() {
    let folder = TempDir::new().unwrap();
    for address in [unix(&folder), Address::Tcp("127.0.0.1:0".into())] {
        let listener = Listener::bind(&address).unwrap();
        let (hangup, mine) = (Hangup::default(), Hangup::default());
        let theirs = hangup.clone();
        let waiting = thread::spawn(move || listener.accept(None, &theirs).err());
        thread::sleep(SOON);
        hangup.hang_up();
        assert!(waiting.join().unwrap().is_some(), "{address}");
        assert!(!folder.path().join("socket").exists());
        // Also if it was said before.
        mine.hang_up();
        let listener = Listener::bind(&address).unwrap();
        assert!(listener.accept(None, &mine).is_err());
    }
}

#[test]
fn a_connection_is_ended_from_elsewhere() {
    let folder = TempDir::new().unwrap();
    let address = unix(&folder);
    let listener = Listener::bind(&address).unwrap();
    let hangup = Hangup::default();
    let mut near = Connection::connect(&address, None, &hangup).unwrap();
    let mut far = listener.accept(None, &Hangup::default()).unwrap();
    near.write_all(b"x").unwrap();
    hangup.hang_up();
    assert!(hangup.is_hung_up() && near.write_all(b"x").is_err());
    // What was on its way arrives.
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"x");
}

#[test]
fn nobody_there_is_said_with_the_address() {
    let folder = TempDir::new().unwrap();
    let address = unix(&folder);
    let refused = Connection::connect(&address, None, &Hangup::default());
    let refused = refused.err().expect("nobody listens").to_string();
    assert!(refused.contains("cannot reach unix:"), "{refused}");
}
