//! Reaching into what runs on a host: commands in containers and VMs, and consoles.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use skerry_tests::host::{Host, processes};
use skerry_tests::terminal::Terminal;
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually, given};

/// A container that stays.
fn container(host: &Host, site: &Site) {
    let manifest = format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: box}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"echo up; while true; do sleep 1; done\"]\n",
        site.layout().display()
    );
    host.must(&["apply", "--wait", "-f", &host.manifest(&manifest)]);
}

/// A VM whose payload does `tasks`.
fn vm(host: &Host, tasks: &str, more: &str) {
    let manifest = format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: web}}\n\
         spec:\n\
         \x20 memory: 64Mi\n\
         \x20 boot: {{kernel: {}, cmdline: \"{tasks}\"}}\n\
         {more}",
        given("SKERRY_PAYLOAD").display()
    );
    host.must(&["apply", "--wait", "-f", &host.manifest(&manifest)]);
}

/// The processes of this host that have a word on their command lines.
fn with_word(word: &str) -> usize {
    processes(std::path::Path::new(word)).len()
}

#[test]
fn a_command_in_a_container_has_its_streams_and_its_exit_code() {
    let (host, site) = (Host::start(), Site::new());
    container(&host, &site);
    let exec = |options: &[&str], command: &[&str], input: &[u8]| {
        let words = [&["exec", "container/box"], options, &["--"], command].concat();
        host.skerry_reading(&words, input)
    };
    let (code, said) = exec(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"], b"");
    assert_eq!(
        (code, said.out.as_str(), said.errors.as_str()),
        (Some(7), "out\n", "err\n")
    );
    // A mebibyte goes in and comes out, and its end is heard.
    let text: String = (0..1 << 15).map(|n| format!("line {n:>25}\n")).collect();
    let (code, said) = exec(&["-i"], &["cat"], text.as_bytes());
    assert!(code == Some(0) && said.out == text, "{code:?}");
    // Without `-i` there is nothing to read.
    let (code, said) = exec(&[], &["cat"], b"not this");
    assert_eq!((code, said.out.as_str()), (Some(0), ""));
    let options = ["--env", "WHO=me", "--workdir", "/tmp"];
    let (_, said) = exec(&options, &["sh", "-c", "echo $WHO; pwd"], b"");
    assert_eq!(said.out, "me\n/tmp\n");
    let (code, said) = exec(&[], &["nowhere"], b"");
    assert!(
        code == Some(1) && said.errors.contains("nowhere"),
        "{said:?}"
    );
    let (code, said) = exec(&[], &["sh", "-c", "kill -9 $$"], b"");
    assert_eq!(code, Some(137), "{said:?}");
    // What has no end ends when nobody reads it any more, as in a pipe.
    let endless = "while true; do echo y; done";
    let mut child = host.command(&["exec", "container/box", "--", "sh", "-c", endless]);
    let mut child = child.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut some = [0; 1 << 16];
    let mut out = child.stdout.take().expect("a pipe");
    out.read_exact(&mut some).expect("it says yes");
    drop(out);
    let status = eventually("it ends", SHORT, || child.try_wait().expect("it is ours"));
    assert_eq!(status.code(), Some(141));
    host.must(&["delete", "container/box"]);
    let gone = host.skerry(&["exec", "container/box", "--", "true"]);
    assert!(gone.errors.contains("not found"), "{gone:?}");
}

#[test]
fn a_command_ends_when_its_user_goes_even_one_that_reads_nothing() {
    let (host, site) = (Host::start(), Site::new());
    container(&host, &site);
    for n in 0..2 {
        // A duration that no other process sleeps for.
        let time = format!("7{}{n}", std::process::id());
        let mut command = host.command(&["exec", "-i", "container/box", "--", "sleep", &time]);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("it starts");
        // It, and the one that asks for it.
        eventually("it runs", SHORT, || (with_word(&time) == 2).then_some(()));
        if n == 1 {
            // More than a pipe takes, so that somebody waits for it to read.
            let stdin = child.stdin.as_mut().expect("a pipe");
            stdin.write_all(&[b'x'; 1 << 18]).expect("it is taken");
        }
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        eventually("it has ended", SHORT, || {
            (with_word(&time) == 0).then_some(())
        });
    }
    host.must(&["delete", "container/box"]);
}

#[test]
fn a_command_has_a_terminal_its_size_and_its_keys() {
    let (host, site) = (Host::start(), Site::new());
    container(&host, &site);
    let mut shell = Terminal::run(&mut host.command(&["exec", "-it", "container/box", "--", "sh"]));
    shell.keys("stty size; tty | head -c 8\n");
    shell.expect("30 100", SHORT);
    shell.expect("/dev/pts", SHORT);
    shell.resize(40, 120);
    eventually("it hears of its new size", SHORT, || {
        let heard = shell.seen().contains("40 120").then_some(());
        shell.keys("stty size\n");
        heard
    });
    // Ctrl-C is the command's, not ours.
    shell.keys("echo begin; sleep 1000; echo code $?\n");
    shell.expect("begin\r\n", SHORT);
    eventually("it is interrupted", SHORT, || {
        let ended = shell.seen().contains("\nafter-all").then_some(());
        shell.keys("\x03echo after-all\n");
        ended
    });
    shell.keys("exit 5\n");
    assert_eq!(shell.end(SHORT).code(), Some(5));
    host.must(&["delete", "container/box"]);
}

#[test]
fn a_vm_without_an_agent_says_what_is_missing() {
    let host = Host::start();
    let exec = |name: &str| host.skerry(&["exec", "vm", name, "--", "uname", "-a"]);
    vm(&host, "run=spin:1 off=wait-power-button", "");
    assert!(exec("web").errors.contains("set `vsock: true`"));
    host.must(&["delete", "vm/web", "--grace", "0"]);
    vm(&host, "run=vsock-listen:5000:1 off=spin", "  vsock: true\n");
    let said = exec("web");
    assert!(said.errors.contains("run `skerry-guest` in it"), "{said:?}");
    host.must(&["delete", "vm/web", "--grace", "0"]);
    // Something else answers there: it gives back what it is sent.
    vm(&host, "run=vsock-listen:997:1 off=spin", "  vsock: true\n");
    let said = eventually("the guest listens", SHORT, || {
        let said = exec("web");
        (!said.errors.contains("no agent listens")).then_some(said)
    });
    assert!(said.errors.contains("is no agent"), "{said:?}");
    host.must(&["delete", "vm/web", "--grace", "0"]);
    let none = host.skerry(&["exec", "host/here", "--", "true"]);
    assert!(none.errors.contains("a host runs nothing"), "{none:?}");
}

#[test]
fn a_vms_console_is_looked_at_by_several_and_typed_to() {
    let mut host = Host::start();
    let tasks = "run=serial-echo:600,serial-echo:600 off=wait-power-button";
    vm(&host, tasks, "");
    let console = |host: &Host| Terminal::run(&mut host.command(&["console", "vm/web"]));
    let (one, two) = (console(&host), console(&host));
    // What was said before anybody looked is shown.
    one.expect("waiting for a line", SHORT);
    two.expect("waiting for a line", SHORT);
    // The agent dies, and the console with it; the monitor goes on, and so does what comes after.
    host.kill();
    one.expect("the console is closed", SHORT);
    assert!(one.end(SHORT).success() && two.end(SHORT).success());
    host.up();
    let (mut one, two) = (console(&host), console(&host));
    one.keys("typed by one of them\n");
    one.expect("typed by one of them", SHORT);
    two.expect("typed by one of them", SHORT);
    one.keys("\x1d");
    assert!(one.end(SHORT).success());
    drop(two);
    let log = host.must(&["logs", "vm/web"]);
    assert!(log.contains("typed by one of them"), "{log}");
    host.must(&["delete", "vm/web", "--grace", "0"]);
    let gone = host.skerry(&["console", "vm/web"]);
    assert!(gone.errors.contains("not found"), "{gone:?}");
    let site = Site::new();
    container(&host, &site);
    let none = host.skerry(&["console", "container/box"]);
    assert!(none.errors.contains("skerry exec -it"), "{none:?}");
    host.must(&["delete", "container/box"]);
}

#[test]
fn what_asks_wrongly_is_refused_before_anything_runs() {
    let (host, site) = (Host::start(), Site::new());
    container(&host, &site);
    let path = "/apis/skerry.io/v1/namespaces/default/containers/box/exec";
    let ask = |method: &str, headers: &str, body: &str| {
        let mut stream = UnixStream::connect(host.state().join("api.sock")).expect("it listens");
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: here\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        )
        .expect("it reads");
        let mut line = String::new();
        let mut lines = BufReader::new(stream);
        lines.read_line(&mut line).expect("it answers");
        line
    };
    let upgrade = "Connection: Upgrade\r\nUpgrade: skerry.exec.v1\r\n";
    let good = r#"{"command": ["true"]}"#;
    assert!(ask("POST", "", good).contains("426"));
    assert!(
        ask(
            "POST",
            "Connection: Upgrade\r\nUpgrade: websocket\r\n",
            good
        )
        .contains("426")
    );
    assert!(ask("GET", upgrade, "").contains("405"));
    assert!(ask("POST", upgrade, "").contains("400"));
    assert!(ask("POST", upgrade, r#"{"command": []}"#).contains("400"));
    assert!(ask("POST", upgrade, r#"{"command": ["a\u0000b"]}"#).contains("400"));
    assert!(ask("POST", upgrade, r#"{"command": ["true"], "tty": true}"#).contains("400"));
    assert!(ask("POST", upgrade, good).contains("101"));
    // A client that speaks no frames ends its command, and nothing else.
    let mut stream = UnixStream::connect(host.state().join("api.sock")).expect("it listens");
    let body = r#"{"command": ["sleep", "1000"]}"#;
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: here\r\n{upgrade}Content-Length: {length}\r\n\r\n{body}"
    )
    .expect("it reads");
    stream.write_all(&[0xff; 4096]).expect("it reads");
    stream.set_read_timeout(Some(SHORT)).expect("a socket");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("it ends");
    let text = String::from_utf8_lossy(&all);
    assert!(text.ends_with("x\0\0\0\u{3}137"), "{text:?}");
    host.must(&["delete", "container/box"]);
}
