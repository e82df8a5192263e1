//! `skerry simulate`: a trace from files, one by chance, and what is said of bad ones.

use std::process::{Command, Output};

use serde_json::Value;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/samples/packing");

fn simulate(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skerry"));
    let output = command.arg("simulate").args(args).output();
    output.expect("the command")
}

fn json(args: &[&str]) -> Value {
    let output = simulate(&[args, &["--output", "json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Without what is measured by a clock.
fn timeless(mut report: Value) -> Value {
    for policy in report["policies"].as_array_mut().expect("policies") {
        let policy = policy.as_object_mut().expect("a policy");
        assert!(policy.remove("placements_per_second").is_some());
        assert!(policy.remove("placements_per_cpu_second").is_some());
        assert!(policy.remove("latency_us").is_some());
    }
    report
}

fn sample() -> [String; 2] {
    [format!("{SAMPLES}/vm.csv"), format!("{SAMPLES}/types.csv")]
}

#[test]
fn the_sample_is_played_alike_every_time() {
    let [vms, types] = sample();
    let args = [&vms, "--types", &types, "--hosts", "6"];
    let first = timeless(json(&args));
    assert_eq!(first, timeless(json(&args)));
    assert_eq!(first["policies"].as_array().map(Vec::len), Some(4));
    for policy in first["policies"].as_array().unwrap() {
        let [placed, rejected] = ["placed", "rejected"].map(|name| policy[name].as_u64().unwrap());
        assert_eq!(Some(placed + rejected), first["arrivals"].as_u64());
        assert_eq!(policy["first_rejection"]["happened"], true);
    }
}

#[test]
fn a_trace_by_chance_is_saved_as_it_is_read() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().display().to_string();
    let args = ["--hosts", "5", "--seed", "9", "--policy", "skerry"];
    let first = timeless(json(&[&args[..], &["--save", &path]].concat()));
    let [vms, types] = ["vm.csv", "types.csv"].map(|name| format!("{path}/{name}"));
    let again = json(&[
        &vms, "--types", &types, "--hosts", "5", "--policy", "skerry",
    ]);
    let again = timeless(again);
    assert_eq!(first["arrivals"], again["arrivals"]);
    assert_eq!(
        first["policies"][0]["placed"],
        again["policies"][0]["placed"]
    );
    let table = simulate(&args);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.contains("placements/s") && table.contains("skerry"),
        "{table}"
    );
    assert!(!table.contains("worst-fit"), "{table}");
}

#[test]
fn what_cannot_be_played_is_refused_with_the_file_and_the_line() {
    let [vms, types] = sample();
    let said = |args: &[&str]| {
        let output = simulate(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let swapped = said(&[&types, "--types", &vms]);
    assert!(
        swapped.contains("vm.csv, line 1: there is no column machineId"),
        "{swapped}"
    );
    let missing = said(&["/nowhere.csv", "--types", &types]);
    assert!(missing.contains("cannot read /nowhere.csv"), "{missing}");
    assert!(missing.contains("because: No such file"), "{missing}");
    assert!(said(&[&vms]).contains("--types"), "types are missing");
    let machine = said(&[&vms, "--types", &types, "--machine", "77"]);
    assert!(machine.contains("has no machineId 77"), "{machine}");
    assert!(said(&["--hosts", "0"]).contains("--hosts"));
    assert!(said(&["--host-shape", "cpus=0"]).contains("from 1 to 4096"));
}
