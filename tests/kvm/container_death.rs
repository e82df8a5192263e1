//! Shims and containers that are killed: whoever comes next ends what is left, to the last process.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use skerry_tests::containers::{cgroups, said};
use skerry_tests::{Site, eventually};

const LIMIT: Duration = Duration::from_secs(10);

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// Whether a process has ended; it need not have been reaped by whoever does that here.
fn is_gone(pid: i32) -> Option<()> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    matches!(state, None | Some('Z' | 'X')).then_some(())
}

#[test]
fn a_second_agent_finds_what_the_first_one_started() {
    let site = Site::new();
    let (runs, ended) = (site.container(), site.container());
    runs.started(&["--", "sleep", "1000"]);
    ended.started(&["--", "sh", "-c", "exit 3"]);
    ended.ended();
    // Each command is an agent of its own.
    let found = String::from_utf8(site.shim(&["adopt"]).stdout).unwrap();
    let line = |id: &str| found.lines().find(|line| line.starts_with(id)).unwrap();
    assert!(line(&runs.id).contains(r#""state":"running""#), "{found}");
    assert!(line(&ended.id).contains(r#""code":3"#), "{found}");
    assert!(runs.exec(&["--", "true"]).status.success());
    for one in [runs, ended] {
        one.removed();
    }
}

#[test]
fn a_killed_shims_container_is_ended_by_whoever_adopts_it() {
    let site = Site::new();
    for runtime in [&[][..], &["--oci-runtime", "runc"]] {
        let one = site.container();
        one.started(&[runtime, &["--", "sh", "-c", "sleep 1000 & sleep 1000"]].concat());
        let (shim, init) = (one.shim(), one.init());
        kill(shim);
        eventually("the shim is missed", LIMIT, || {
            (one.state()["state"] == "lost").then_some(())
        });
        assert!(is_gone(init).is_none());
        let found = String::from_utf8(site.shim(&["adopt"]).stdout).unwrap();
        assert!(found.contains("was killed"), "{found}");
        eventually("the container ends", LIMIT, || is_gone(init));
        assert_eq!(cgroups(&one.id), Vec::<std::path::PathBuf>::new());
        assert_eq!(one.state()["code"], 137);
        // It can run again.
        let again = one.ask("start", &[]);
        assert!(again.status.success(), "{}", said(&again));
        one.removed();
    }
}

#[test]
fn a_container_whose_shim_was_killed_is_removed_without_being_adopted() {
    let site = Site::new();
    let one = site.container();
    one.started(&["--", "sleep", "1000"]);
    let init = one.init();
    kill(one.shim());
    one.removed();
    eventually("the container ends", LIMIT, || is_gone(init));
}

#[test]
fn a_container_that_is_killed_ends_as_any_other() {
    let site = Site::new();
    let one = site.container();
    one.started(&["--", "sh", "-c", "sleep 1000 & sleep 1000"]);
    kill(one.init());
    let end = one.ended();
    assert_eq!((&end["code"], &end["signal"]), (&137.into(), &9.into()));
    assert_eq!(cgroups(&one.id), Vec::<std::path::PathBuf>::new());
    one.removed();
}

#[test]
fn a_running_container_is_removed_at_once_and_again() {
    let site = Site::new();
    let one = site.container();
    one.started(&[
        "--",
        "sh",
        "-c",
        "trap '' TERM; while :; do sleep 0.05; done",
    ]);
    one.removed();
    one.removed();
}

#[test]
fn what_is_killed_while_it_starts_leaves_nothing() {
    let site = Site::new();
    for round in 0..20 {
        let one = site.container();
        let layout = site.layout();
        let mut start = std::process::Command::new(skerry_tests::given("SKERRY_COMMAND"))
            .args(["shim", "run", "--id", &one.id, "--root"])
            .arg(site.root())
            .arg("--layout")
            .arg(layout)
            .args(["--", "sleep", "1000"])
            .spawn()
            .unwrap();
        // The agent is killed at another moment of the start each time; its shim goes on, or has not begun.
        std::thread::sleep(Duration::from_millis(round * 3));
        let _ = start.kill();
        start.wait().unwrap();
        site.shim(&["adopt"]);
        one.removed();
    }
}

#[test]
fn a_shim_that_is_killed_while_it_starts_leaves_nothing() {
    let site = Site::new();
    let first = site.container();
    first.started(&["--", "true"]);
    first.removed();
    for round in 0..20 {
        let one = site.container();
        let layout = site.layout();
        let mut start = std::process::Command::new(skerry_tests::given("SKERRY_COMMAND"))
            .args(["shim", "run", "--id", &one.id, "--root"])
            .arg(site.root())
            .arg("--layout")
            .arg(layout)
            .args(["--", "sleep", "1000"])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let run = site
            .root()
            .join("containers")
            .join(&one.id)
            .join("run.json");
        let ended = &mut false;
        eventually("its shim begins", LIMIT, || {
            *ended = start.try_wait().unwrap().is_some();
            (*ended || run.exists()).then_some(())
        });
        std::thread::sleep(Duration::from_millis(round));
        let shim = one.shim();
        kill(shim);
        start.wait().unwrap();
        eventually("the shim ends", LIMIT, || is_gone(shim));
        site.shim(&["adopt"]);
        one.removed();
    }
}
