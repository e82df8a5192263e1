//! Tests of consoles that can be attached to.

use std::time::Duration;

use super::*;
use crate::sandbox::Mode;

/// A console, whose thread may do what it may in a monitor: one call more would end the test.
struct Place {
    folder: tempfile::TempDir,
    attached: Option<Attached>,
    console: UnixStream,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let (socket, log) = (folder.path().join("socket"), folder.path().join("log"));
        let attached = Attached::start(&socket, Some(&log), Sandbox::new(Mode::Enforce)).unwrap();
        Place {
            console: attached.descriptor().unwrap().into(),
            folder,
            attached: Some(attached),
        }
    }

    fn client(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join("socket")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }
}

fn read(client: &mut UnixStream, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    client.read_exact(&mut buffer).unwrap();
    buffer
}

#[test]
fn all_see_what_is_said_and_may_type() {
    let mut place = Place::new();
    place.console.write_all(b"before ").unwrap();
    let (mut one, mut two) = (place.client(), place.client());
    assert_eq!(read(&mut one, 7), b"before ");
    assert_eq!(read(&mut two, 7), b"before ");
    place.console.write_all(b"after").unwrap();
    assert_eq!(read(&mut one, 5), b"after");
    assert_eq!(read(&mut two, 5), b"after");
    one.write_all(b"a").unwrap();
    assert_eq!(read(&mut place.console, 1), b"a");
    two.write_all(b"b").unwrap();
    assert_eq!(read(&mut place.console, 1), b"b");
    drop(one);
    place.console.write_all(b"!").unwrap();
    assert_eq!(read(&mut two, 1), b"!");
    drop(place.attached.take());
    assert_eq!(two.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(place.file("log"), b"before after!");
    assert!(!place.folder.path().join("socket").exists());
}

#[test]
fn one_that_does_not_read_holds_up_nobody_and_the_log_is_bounded() {
    let mut place = Place::new();
    let silent = place.client();
    let line = [b'x'; 1 << 10];
    // More than the log may have, and far more than a client may be behind.
    for _ in 0..(LOG >> 10) + 10 {
        place.console.write_all(&line).unwrap();
    }
    let mut late = place.client();
    assert_eq!(read(&mut late, HISTORY), vec![b'x'; HISTORY]);
    drop(place.attached.take());
    assert!((1..=LOG).contains(&(place.file("log").len() as u64)));
    let all = place.file("log").len() + place.file("log.1").len();
    assert_eq!(all as u64, LOG + (10 << 10));
    drop(silent);
}

#[test]
fn a_socket_in_use_is_refused_and_an_ended_monitors_is_taken() {
    let place = Place::new();
    let path = place.folder.path().join("socket");
    let again = Attached::start(&path, None, Sandbox::new(Mode::Enforce));
    assert!(again.is_err_and(|e| e.to_string().contains("give another path")));
    let left = place.folder.path().join("left");
    drop(UnixListener::bind(&left).unwrap());
    Attached::start(&left, None, Sandbox::new(Mode::Enforce)).unwrap();
}
