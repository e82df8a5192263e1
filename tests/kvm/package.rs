//! The Debian package: what is in it, and that it installs on a clean system and works there.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use skerry_tests::given;

/// Runs a command, which need not go well.
fn output(command: &mut Command) -> Output {
    let run = command.stdin(Stdio::null()).output();
    run.unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// The same, which must go well; what it printed.
fn must(command: &mut Command) -> String {
    let output = output(command);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{errors}");
    said
}

/// A command inside a system, with processes and mounts of its own.
fn inside(system: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    let proc = format!("--mount-proc={}", system.join("proc").display());
    command.args([
        "--fork",
        "--kill-child",
        "--pid",
        "--mount",
        &proc,
        "chroot",
    ]);
    command.arg(system).args(words);
    command.env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

#[test]
fn the_package_installs_on_a_clean_system_and_its_doctor_runs_there() {
    let package = given("SKERRY_PACKAGE");
    let folder = tempfile::tempdir().expect("a folder");
    let system = folder.path();
    must(
        Command::new("tar")
            .arg("-xf")
            .arg(given("SKERRY_CLEAN_SYSTEM"))
            .arg("-C")
            .arg(system),
    );
    std::fs::copy(&package, system.join("skerry.deb")).expect("copied");
    must(&mut inside(system, &["dpkg", "--install", "/skerry.deb"]));
    for path in [
        "usr/bin/skerry-vmm",
        "usr/lib/systemd/system/skerry.service",
        "usr/share/bash-completion/completions/skerry",
        "usr/share/skerry/alerts.yaml",
        "etc/default/skerry",
    ] {
        assert!(system.join(path).exists(), "{path}");
    }
    // Manual pages are not unpacked on systems that want none.
    let listed = must(Command::new("dpkg-deb").arg("--contents").arg(&package));
    for page in ["skerry.1", "skerry-up.1", "skerry-doctor.1"] {
        assert!(
            listed.contains(&format!("/man1/{page}")),
            "{page}: {listed}"
        );
    }
    let version = must(&mut inside(system, &["skerry", "--version"]));
    assert!(version.starts_with("skerry "), "{version}");
    must(&mut inside(system, &["skerry-vmm", "--version"]));
    // There is no KVM in it: VMs do not run there, and it says what to do.
    let doctor = output(&mut inside(
        system,
        &["skerry", "doctor", "--output", "json"],
    ));
    assert_eq!(doctor.status.code(), Some(1), "{doctor:?}");
    let report: Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("findings");
    let finding = |name: &str| {
        let found = findings.iter().find(|one| one["name"] == name);
        found.unwrap_or_else(|| panic!("{name}: {report}"))
    };
    assert_eq!(finding("kvm")["verdict"], "missing");
    assert_eq!(finding("io_uring")["verdict"], "good");
    for one in findings {
        let well = one["verdict"] == "good";
        assert_eq!(well, one["remedy"].is_null(), "{one}");
    }
    must(&mut inside(system, &["dpkg", "--purge", "skerry"]));
    assert!(!system.join("usr/bin/skerry").exists() && !system.join("etc/default/skerry").exists());
}

#[test]
fn the_service_is_one_that_ends_no_workload() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/skerry.service");
    let unit = std::fs::read_to_string(path).expect("a unit");
    for line in [
        "KillMode=process",
        "Restart=always",
        "WantedBy=multi-user.target",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    // It starts what there is, with options that there are.
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/bin/skerry "));
    let words = start
        .expect("a command")
        .replace("$SKERRY_OPTIONS", "--help");
    let words: Vec<&str> = words.split_whitespace().collect();
    must(Command::new(given("SKERRY_COMMAND")).args(words));
}
