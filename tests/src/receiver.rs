//! Whoever receives a snapshot's stream: `skerry snapshot receive` as a process, or one that misbehaves.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use skerry_snapshot::{Answer, Incoming};

use crate::vmm::SHORT;
use crate::{eventually, given};

/// The command with these arguments, run to its end.
pub fn skerry(arguments: &[&str]) -> Output {
    let output = Command::new(given("SKERRY_COMMAND"))
        .args(arguments)
        .output();
    output.expect("skerry starts")
}

/// A running `skerry snapshot receive`. It is killed when dropped.
pub struct Receiver(Option<Child>);

impl Receiver {
    /// One that listens at `url` and makes the snapshot `directory`.
    pub fn start(url: &str, directory: &Path, more: &[&str]) -> Receiver {
        let child = Command::new(given("SKERRY_COMMAND"))
            .args(["snapshot", "receive", "--from", url])
            .arg(directory)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Receiver(Some(child.expect("skerry starts")))
    }

    /// The same at a Unix socket, which is listened on.
    pub fn at(socket: &Path, directory: &Path, more: &[&str]) -> Receiver {
        let receiver = Receiver::start(&unix(socket), directory, more);
        eventually("somebody receives", SHORT, || socket.exists().then_some(()));
        receiver
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("it has not ended")
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        let pid = Pid::from_raw(self.child().id() as i32).expect("a pid");
        kill_process(pid, signal).expect("it is our child");
    }

    /// Waits for its end.
    pub fn end(mut self) -> Output {
        let what = "the receiver ends";
        eventually(what, SHORT, || self.child().try_wait().expect("our child"));
        let child = self.0.take().expect("it has not ended");
        child.wait_with_output().expect("its output")
    }

    /// Waits for its end, which is well; the id that it prints.
    pub fn id(self) -> String {
        let output = self.end();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A socket's address.
pub fn unix(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

/// What becomes of a stream that a test takes in itself.
pub enum Manners {
    /// It is refused at once, with this text.
    Refuse(&'static str),
    /// After so many bytes nothing more is read.
    FallSilent(usize),
    /// After so many bytes the connection is closed.
    HangUp(usize),
    /// After so many bytes it is refused.
    RefuseAfter(usize, &'static str),
    /// All of it is read, and nothing answered.
    SayNothing,
    /// All of it is read, and it is said for ever that it is worked on.
    WorkForEver,
}

/// A receiver that misbehaves, at a socket in `folder`; its address. It holds the connection until it is dropped.
pub struct Bad {
    /// Where it waits.
    pub url: String,
    socket: PathBuf,
    thread: JoinHandle<UnixStream>,
}

impl Bad {
    /// Waits for a stream.
    pub fn start(folder: &Path, manners: Manners) -> Bad {
        let socket = folder.join("bad.sock");
        let listener = UnixListener::bind(&socket).expect("a listener");
        let url = unix(&socket);
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a sender");
            misbehave(stream, &manners)
        });
        Bad {
            url,
            socket,
            thread,
        }
    }

    /// The sender has given up.
    pub fn end(self) {
        drop(self.thread.join().expect("it ends"));
        std::fs::remove_file(self.socket).expect("its socket");
    }
}

fn misbehave(mut stream: UnixStream, manners: &Manners) -> UnixStream {
    let mut incoming = Incoming::open(&stream).expect("a beginning");
    assert!(!incoming.begin().id.is_empty());
    let refuse = |mut stream: &UnixStream, why: &str| {
        let refused = Answer::Refused(why.to_owned()).write(&mut stream);
        refused.expect("the sender listens");
    };
    let accept = |mut stream: &UnixStream| Answer::Accepted.write(&mut stream).expect("sent");
    let mut read = |n: usize| {
        let mut bytes = vec![0; n];
        incoming.source().read_exact(&mut bytes).expect("pages");
    };
    match manners {
        Manners::Refuse(why) => refuse(&stream, why),
        Manners::FallSilent(n) => {
            accept(&stream);
            read(*n);
        }
        Manners::HangUp(n) => {
            accept(&stream);
            read(*n);
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        Manners::RefuseAfter(n, why) => {
            accept(&stream);
            read(*n);
            refuse(&stream, why);
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        Manners::SayNothing => {
            accept(&stream);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        Manners::WorkForEver => {
            accept(&stream);
            let mut from = stream.try_clone().expect("a socket");
            std::thread::spawn(move || std::io::copy(&mut from, &mut std::io::sink()));
            while Answer::Working.write(&mut stream).is_ok() {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
    stream
}
