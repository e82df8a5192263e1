//! Commands and the console of a Linux guest, from its host's command line.

use std::process::Stdio;

use skerry_tests::eventually;
use skerry_tests::host::Host;
use skerry_tests::linux;
use skerry_tests::terminal::Terminal;
use skerry_tests::vmm::LONG;

#[test]
fn a_guest_with_the_agent_runs_commands_and_its_console_is_typed_to() {
    let host = Host::machine_for_linux();
    let manifest = format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: web}}\n\
         spec:\n\
         \x20 memory: 512Mi\n\
         \x20 vsock: true\n\
         \x20 boot: {{kernel: {}, initramfs: {}, cmdline: \"{} skerry.do=shell\"}}\n\
         \x20 disks: [{{name: root, base: {}, format: raw}}]\n",
        linux::file("vmlinux").display(),
        linux::file("initramfs.cpio").display(),
        linux::COMMAND_LINE,
        linux::root_disk(host.path("root.ext4")).display(),
    );
    host.must(&["apply", "-f", &host.manifest(&manifest)]);
    host.until("vm", "web", LONG, |status| status["phase"] == "Running");
    let exec = |options: &[&str], words: &[&str], input: &[u8]| {
        let all = [&["exec", "vm/web"], options, &["--"], words].concat();
        host.skerry_reading(&all, input)
    };
    let said = eventually("the guest's agent listens", LONG, || {
        let (code, said) = exec(&[], &["uname", "-a"], b"");
        (code == Some(0)).then_some(said)
    });
    assert!(said.out.starts_with("Linux skerry-guest 6."), "{said:?}");
    let (code, said) = exec(
        &["-i"],
        &["sh", "-c", "cat; echo err >&2; exit 7"],
        b"there and back",
    );
    assert_eq!(
        (code, said.out.as_str(), said.errors.as_str()),
        (Some(7), "there and back", "err\n")
    );
    // More than vsock's window, and back.
    let data = vec![b'x'; 1 << 20];
    let (code, said) = exec(&["-i"], &["cat"], &data);
    assert!(code == Some(0) && said.out.as_bytes() == data);
    let mut shell = Terminal::run(&mut host.command(&["exec", "-it", "vm/web", "--", "sh"]));
    shell.keys("stty size; exit 5\n");
    shell.expect("30 100", LONG);
    assert_eq!(shell.end(LONG).code(), Some(5));
    // Whoever goes ends the command.
    let mut command = host.command(&["exec", "vm/web", "--", "sleep", "4242"]);
    let mut child = command.stdin(Stdio::null()).spawn().expect("it starts");
    let line = || {
        exec(&[], &["sh", "-c", "cat /proc/[0-9]*/cmdline"], b"")
            .1
            .out
    };
    eventually("it runs", LONG, || {
        line().contains("sleep\x004242").then_some(())
    });
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    eventually("it has ended", LONG, || {
        (!line().contains("sleep\x004242")).then_some(())
    });
    // The console has a shell on it.
    let mut console = Terminal::run(&mut host.command(&["console", "vm/web"]));
    console.expect("guest: ready", LONG);
    console.keys("echo typed $((6 * 7))\n");
    console.expect("typed 42", LONG);
    console.keys("\x1d");
    assert!(console.end(LONG).success());
    host.must(&["delete", "vm/web", "--grace", "0"]);
}
