//! What containers may not do, and may not use.

use skerry_tests::Site;
use skerry_tests::containers::said;

#[test]
fn limits_are_the_cgroups() {
    let site = Site::new();
    for runtime in [&[][..], &["--oci-runtime", "runc"]] {
        let one = site.container();
        let limits = ["--memory", "33554432", "--cpu-milli", "250", "--pids", "50"];
        one.started(&[runtime, &limits, &["--", "sleep", "1000"]].concat());
        let memory = one.cgroup(("memory", "memory.limit_in_bytes"), "memory.max");
        assert_eq!(memory, "33554432");
        let pids = one.cgroup(("pids", "pids.max"), "pids.max");
        assert_eq!(pids, "50");
        let cpu = one.cgroup(("cpu", "cpu.cfs_quota_us"), "cpu.max");
        assert_eq!(cpu.split(' ').next(), Some("25000"));
        one.removed();
    }
}

#[test]
fn running_out_of_memory_is_told() {
    let site = Site::new();
    let command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"];
    for runtime in [&[][..], &["--oci-runtime", "runc"]] {
        let one = site.container();
        one.started(&[runtime, &["--memory", "16777216", "--"], &command].concat());
        let end = one.ended();
        assert_eq!(
            (&end["code"], &end["oom_kills"]),
            (&137.into(), &1.into()),
            "{end}"
        );
        one.removed();
    }
    // Also of a process that is not the first.
    let one = site.container();
    let script = format!("{}; exit 4", command.join(" "));
    one.started(&["--memory", "16777216", "--", "sh", "-c", &script]);
    let end = one.ended();
    assert_eq!(
        (&end["code"], &end["oom_kills"]),
        (&4.into(), &1.into()),
        "{end}"
    );
    one.removed();
}

#[test]
fn more_processes_than_there_may_be_are_refused() {
    let site = Site::new();
    let one = site.container();
    let script = "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 100 & done; echo all";
    one.started(&["--pids", "10", "--", "sh", "-c", script]);
    one.ended();
    assert!(one.log().contains("can't fork"), "{}", one.log());
    one.removed();
}

#[test]
fn a_container_cannot_reach_the_host() {
    let site = Site::new();
    for runtime in [&[][..], &["--oci-runtime", "runc"]] {
        let one = site.container();
        one.started(&[runtime, &["--", "sleep", "1000"]].concat());
        let refused = [
            "mount -t tmpfs none /tmp",
            "mknod /tmp/disk b 8 0",
            "echo 1 > /proc/sys/kernel/panic",
            "echo b > /proc/sysrq-trigger",
            "mkdir /sys/fs/cgroup/new",
            "mkdir /sys/fs/cgroup/memory/new",
            "echo -1 > /sys/fs/cgroup/memory/memory.limit_in_bytes",
            "echo max > /sys/fs/cgroup/memory.max",
            "cat /dev/kvm",
            "ip link add type dummy",
            "kill -9 1 && kill -0 1 && false",
        ];
        for command in refused {
            let done = one.exec(&["--", "sh", "-c", command]);
            assert!(!done.status.success(), "{command}: {}", said(&done));
        }
        let held = one.exec(&[
            "--",
            "grep",
            "-E",
            "^(NoNewPrivs|Seccomp):",
            "/proc/self/status",
        ]);
        let held = String::from_utf8_lossy(&held.stdout).replace('\t', " ");
        assert_eq!(held, "NoNewPrivs: 1\nSeccomp: 2\n");
        // Nobody else is seen, and the loopback is all of its network.
        let seen = one.exec(&["--", "ps"]);
        assert_eq!(String::from_utf8_lossy(&seen.stdout).lines().count(), 3);
        let links = one.exec(&["--", "ip", "-o", "link"]);
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        assert!(
            links.lines().count() == 1 && links.contains("lo: <LOOPBACK,UP"),
            "{links}"
        );
        assert_eq!(one.state()["state"], "running");
        one.removed();
    }
}

#[test]
fn a_container_cannot_write_the_program_that_makes_it() {
    let site = Site::new();
    let one = site.container();
    // A script whose interpreter is whatever runs it: that is skerry, on its way into the container.
    let script = "printf '#!/proc/self/exe\\n' > /tmp/itself; chmod 755 /tmp/itself; sleep 1000";
    one.started(&["--", "sh", "-c", script]);
    let program = format!("/proc/{}/exe", one.shim());
    let before = std::fs::metadata(&program).unwrap();
    let error = std::fs::set_permissions(&program, before.permissions()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let done = one.exec(&["--", "/tmp/itself"]);
    assert!(!done.status.success(), "{}", said(&done));
    one.removed();
}

#[test]
fn a_read_only_root_is_not_written() {
    let site = Site::new();
    let one = site.container();
    let spec = r#"{"mounts": [{"memory": {"target": "/scratch", "size": 65536}}]}"#;
    let script = "exec 2>&1; touch /file; touch /scratch/file; echo $?";
    one.started(&["--read-only", "--spec", spec, "--", "sh", "-c", script]);
    one.ended();
    assert_eq!(one.log(), "touch: /file: Read-only file system\n0");
    one.removed();
}
