//! The agent runs commands, over a Unix socket where there is no vsock.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use skerry_exec::wire::{receive, receive_json, send, send_json};
use skerry_exec::{ExecSpec, Kind, Reply, Request, TerminalSize};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(30);

/// An agent, which ends with its test.
struct Agent {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Agent {
    fn start() -> Agent {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix:{}", folder.path().join("agent").display());
        let child = Command::new(env!("CARGO_BIN_EXE_skerry-guest"))
            .args(["--listen", &address])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Agent { child, folder }
    }

    fn connect(&self) -> UnixStream {
        let path = self.folder.path().join("agent");
        let stream = eventually("it listens", || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn ask(&self, spec: ExecSpec) -> (UnixStream, Reply) {
        let mut stream = self.connect();
        send_json(&mut stream, Kind::Request, &Request::Exec(spec)).unwrap();
        let reply = receive_json(&mut stream, Kind::Answer).unwrap();
        (stream, reply)
    }

    fn run(&self, spec: ExecSpec) -> UnixStream {
        let (stream, reply) = self.ask(spec);
        assert_eq!(reply, Reply::Done);
        stream
    }
}

fn command(words: &[&str]) -> ExecSpec {
    ExecSpec {
        args: words.iter().map(ToString::to_string).collect(),
        ..ExecSpec::default()
    }
}

/// All that comes until the end: output, errors, exit code.
fn rest(stream: &mut UnixStream) -> (String, String, i32) {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    loop {
        match receive(stream).unwrap() {
            Some((Kind::Output, bytes)) => output.extend(bytes),
            Some((Kind::Error, bytes)) => errors.extend(bytes),
            Some((Kind::Exit, code)) => {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                let code = serde_json::from_slice(&code).unwrap();
                return (text(output), text(errors), code);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_command_has_its_streams_its_surroundings_and_its_exit_code() {
    let agent = Agent::start();
    let mut spec = command(&["sh", "-c", "cat; echo $WHO >&2; pwd >&2; exit 9"]);
    spec.env = vec![("WHO".to_owned(), "me".to_owned())];
    spec.working_dir = Some("/tmp".into());
    let mut stream = agent.run(spec);
    send(&mut stream, Kind::Input, b"one ").unwrap();
    send(&mut stream, Kind::Input, b"two").unwrap();
    send(&mut stream, Kind::Input, b"").unwrap();
    let found = rest(&mut stream);
    assert_eq!(found, ("one two".to_owned(), "me\n/tmp\n".to_owned(), 9));
    let mut stream = agent.run(command(&["sh", "-c", "kill -TERM $$"]));
    assert_eq!(rest(&mut stream).2, 143);
}

#[test]
fn a_command_has_a_terminal() {
    let agent = Agent::start();
    let mut spec = command(&["sh", "-c", "stty size; read line; stty size; tty"]);
    spec.terminal = Some(TerminalSize {
        rows: 30,
        columns: 100,
    });
    let mut stream = agent.run(spec);
    let size = TerminalSize {
        rows: 40,
        columns: 120,
    };
    send_json(&mut stream, Kind::Resize, &size).unwrap();
    send(&mut stream, Kind::Input, b"go on\n").unwrap();
    let (output, _, code) = rest(&mut stream);
    assert!(
        output.contains("40 120") && output.contains("/dev/pts/"),
        "{output}"
    );
    assert_eq!(code, 0);
    // Ctrl-C is a signal to it.
    let mut spec = command(&["sleep", "1000"]);
    spec.terminal = Some(size);
    let mut stream = agent.run(spec);
    send(&mut stream, Kind::Input, b"\x03").unwrap();
    assert_eq!(rest(&mut stream).2, 130);
}

#[test]
fn whoever_goes_ends_the_command_and_all_that_it_started() {
    let agent = Agent::start();
    for reads_nothing in [false, true] {
        let time = format!("6{}{}", std::process::id(), u8::from(reads_nothing));
        let both = format!("sleep {time} & exec sleep {time}");
        let running = || {
            let entries = std::fs::read_dir("/proc").unwrap().flatten();
            let lines = entries.filter_map(|one| std::fs::read(one.path().join("cmdline")).ok());
            let wanted = format!("sleep\0{time}\0");
            lines.filter(|line| line == wanted.as_bytes()).count()
        };
        let mut stream = agent.run(command(&["sh", "-c", &both]));
        eventually("both run", || (running() == 2).then_some(()));
        if reads_nothing {
            // More than a pipe and a socket take: somebody waits for it to be read.
            stream
                .set_write_timeout(Some(Duration::from_millis(200)))
                .unwrap();
            while send(&mut stream, Kind::Input, &[b'x'; 1 << 15]).is_ok() {}
        }
        stream.shutdown(Shutdown::Both).unwrap();
        drop(stream);
        eventually("both have ended", || (running() == 0).then_some(()));
    }
}

#[test]
fn what_cannot_be_done_is_said_and_nonsense_ends_a_connection_alone() {
    let agent = Agent::start();
    let refused = |spec| match agent.ask(spec).1 {
        Reply::Refused(why) => why,
        Reply::Done => panic!("it runs"),
    };
    assert!(refused(command(&["/nowhere/to/be/found"])).contains("cannot run"));
    assert!(refused(command(&[])).contains("no command"));
    let mut other = command(&["true"]);
    other.user = Some("somebody".to_owned());
    assert!(refused(other).contains("su somebody"));
    let mut nonsense = agent.connect();
    nonsense.write_all(&[0xff; 64]).unwrap();
    assert!(!matches!(receive(&mut nonsense), Ok(Some(_))));
    // As many as may run, and one more.
    let mut held: Vec<_> = (0..32).map(|_| agent.run(command(&["cat"]))).collect();
    assert!(refused(command(&["true"])).contains("wait for one"));
    held.pop();
    eventually("there is room again", || {
        (agent.ask(command(&["true"])).1 == Reply::Done).then_some(())
    });
}
