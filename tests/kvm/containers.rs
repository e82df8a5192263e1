//! What containers do: run, log, end, run again, run commands, and the same with runc.

use std::fs;

use skerry_tests::Site;
use skerry_tests::containers::said;

/// Both runtimes.
const RUNTIMES: [&[&str]; 2] = [&[], &["--oci-runtime", "runc"]];

#[test]
fn a_container_runs_its_command_and_tells_its_end() {
    let site = Site::new();
    for runtime in RUNTIMES {
        let one = site.container();
        let script =
            "echo out; echo err >&2; pwd; echo $FROM $MINE; cat /etc/above /etc/below; exit 7";
        let words = [runtime, &["--env", "MINE=too", "--", "sh", "-c", script]].concat();
        one.started(&words);
        let end = one.ended();
        assert_eq!(
            (&end["code"], &end["signal"]),
            (&7.into(), &().into()),
            "{end}"
        );
        let log = one.log();
        for line in ["out", "err", "/srv/made", "image too"] {
            assert!(log.lines().any(|found| found == line), "{line}: {log}");
        }
        assert!(
            log.contains("of the layer above") && log.contains("can't open"),
            "{log}"
        );
        one.removed();
    }
}

#[test]
fn a_container_that_ended_starts_again_with_what_it_wrote() {
    let site = Site::new();
    let one = site.container();
    one.started(&[
        "--",
        "sh",
        "-c",
        "echo again >> /root/file; wc -l < /root/file",
    ]);
    one.ended();
    let again = one.ask("start", &[]);
    assert!(again.status.success(), "{}", said(&again));
    one.ended();
    assert_eq!(one.log(), "1\n2");
    one.removed();
    let other = site.container();
    other.started(&["--", "sh", "-c", "ls /root"]);
    other.ended();
    assert_eq!(other.log(), "");
    other.removed();
}

#[test]
fn commands_run_in_a_container_with_their_streams() {
    let site = Site::new();
    for runtime in RUNTIMES {
        let one = site.container();
        one.started(&[runtime, &["--", "sleep", "1000"]].concat());
        let done = one.exec(&[
            "--env",
            "A=b",
            "--",
            "sh",
            "-c",
            "echo $A; echo e >&2; exit 9",
        ]);
        assert_eq!(done.status.code(), Some(9), "{}", said(&done));
        assert_eq!(
            (&done.stdout[..], &done.stderr[..]),
            (&b"b\n"[..], &b"e\n"[..])
        );
        let data = vec![b'x'; 300_000];
        let words = ["exec", "--id", &one.id, "--input", "--", "cat"];
        let echoed = site.shim_reading(&words, &data);
        assert_eq!(echoed.stdout, data, "{:?}", echoed.status);
        let tty = one.exec(&["--tty", "--", "sh", "-c", "tty; stty size"]);
        let text = String::from_utf8_lossy(&tty.stdout).replace("\r\n", "\n");
        assert_eq!(text, "/dev/pts/0\n24 80\n");
        let user = one.exec(&["--user", "web", "--", "id", "-u"]);
        assert_eq!(user.stdout, b"33\n");
        let none = one.exec(&["--", "no-such-program"]);
        assert!(said(&none).contains("no-such-program"), "{}", said(&none));
        one.removed();
    }
}

#[test]
fn a_command_is_killed_when_nobody_listens_to_it() {
    let site = Site::new();
    let one = site.container();
    one.started(&["--", "sleep", "1000"]);
    let mut listener = std::process::Command::new(skerry_tests::given("SKERRY_COMMAND"))
        .args(["shim", "exec", "--id", &one.id, "--root"])
        .arg(site.root())
        .args(["--", "sleep", "2000"])
        .spawn()
        .unwrap();
    let listed = || String::from_utf8(one.exec(&["--", "ps"]).stdout).unwrap();
    let limit = std::time::Duration::from_secs(10);
    let running = || listed().contains("sleep 2000");
    skerry_tests::eventually("the command runs", limit, || running().then_some(()));
    listener.kill().unwrap();
    listener.wait().unwrap();
    skerry_tests::eventually("the command ends", limit, || (!running()).then_some(()));
    one.removed();
}

#[test]
fn a_container_is_asked_to_end_before_it_is_killed() {
    let site = Site::new();
    let polite = site.container();
    let script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    polite.started(&["--", "sh", "-c", script]);
    let ready = || polite.log().contains("ready").then_some(());
    skerry_tests::eventually("it is ready", std::time::Duration::from_secs(10), ready);
    let stopped = polite.ask("stop", &["--grace", "20"]);
    assert!(stopped.status.success(), "{}", said(&stopped));
    let end = polite.ended();
    assert_eq!(
        (&end["code"], polite.log().as_str()),
        (&5.into(), "ready\nbye")
    );
    let deaf = site.container();
    deaf.started(&[
        "--",
        "sh",
        "-c",
        "trap '' TERM; while :; do sleep 0.05; done",
    ]);
    deaf.ask("stop", &["--grace", "0.2"]);
    assert_eq!(deaf.ended()["signal"], 9);
    for one in [polite, deaf] {
        one.removed();
    }
}

#[test]
fn signals_reach_the_first_process() {
    let site = Site::new();
    let one = site.container();
    let script = "trap 'exit 11' USR1; echo ready; while :; do sleep 0.05; done";
    one.started(&["--", "sh", "-c", script]);
    let limit = std::time::Duration::from_secs(10);
    skerry_tests::eventually("it is ready", limit, || {
        one.log().contains("ready").then_some(())
    });
    assert!(one.ask("kill", &["USR1"]).status.success());
    assert_eq!(one.ended()["code"], 11);
    one.removed();
}

#[test]
fn files_of_the_host_are_seen_where_they_are_mounted() {
    let site = Site::new();
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("file"), "of the host").unwrap();
    let path = host.path().to_str().unwrap();
    let (read, write) = (format!("{path}:/ro:ro"), format!("{path}:/rw"));
    let one = site.container();
    let script = "cat /ro/file; touch /ro/new || touch /rw/new";
    one.started(&["--bind", &read, "--bind", &write, "--", "sh", "-c", script]);
    assert_eq!(one.ended()["code"], 0);
    assert!(one.log().contains("of the host") && one.log().contains("Read-only"));
    one.removed();
    assert!(host.path().join("new").exists());
}

#[test]
fn long_output_is_kept_in_bounded_files() {
    let site = Site::new();
    let one = site.container();
    let spec = r#"{"log": {"file_size": 65536, "files": 3}}"#;
    one.started(&["--spec", spec, "--", "seq", "100000"]);
    one.ended();
    let folder = site.root().join("containers").join(&one.id);
    let logs = ["log", "log.1", "log.2"].map(|name| fs::read_to_string(folder.join(name)).unwrap());
    assert!(logs.iter().all(|log| log.len() <= 65536));
    assert!(!folder.join("log.3").exists());
    assert!(logs[0].ends_with(" stdout F 100000\n"));
    one.removed();
}

#[test]
fn what_cannot_run_says_why_and_leaves_nothing_but_its_name() {
    let site = Site::new();
    let cases: [(&[&str], &str); 5] = [
        (&["--", "no-such-program"], "no-such-program"),
        (&["--user", "nobody-here", "--", "true"], "no such user"),
        (
            &["--bind", "/no/such/place:/a", "--", "true"],
            "/no/such/place",
        ),
        (
            &["--network", "/no/such/space", "--", "true"],
            "/no/such/space",
        ),
        (
            &["--oci-runtime", "/no/such/runtime", "--", "true"],
            "/no/such/runtime",
        ),
    ];
    for (words, reason) in cases {
        let one = site.container();
        let output = one.run(words);
        assert!(
            !output.status.success() && said(&output).contains(reason),
            "{}",
            said(&output)
        );
        assert_eq!(one.state()["state"], "created", "{words:?}");
        one.removed();
    }
    let none = site.container();
    let output = none.ask("start", &[]);
    assert!(
        said(&output).contains("there is no container"),
        "{}",
        said(&output)
    );
    none.removed();
}

#[test]
fn images_are_unpacked_once_and_removed_when_nobody_has_them() {
    let site = Site::new();
    let one = site.container();
    one.started(&["--", "true"]);
    one.ended();
    let layers = || fs::read_dir(site.root().join("layers")).unwrap().count();
    assert_eq!(layers(), 2);
    // A layout is not needed any more.
    fs::remove_dir_all(site.layout()).unwrap();
    assert_eq!(site.shim(&["prune"]).stdout, b"0\n");
    assert!(one.ask("start", &[]).status.success());
    one.ended();
    one.removed();
    assert_eq!(site.shim(&["prune"]).stdout, b"2\n");
    assert_eq!(layers(), 0);
}
