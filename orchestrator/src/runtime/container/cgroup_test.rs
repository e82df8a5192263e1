//! Tests of cgroups: their names and what is read of them.

use super::*;

#[test]
fn hierarchies_of_both_versions_are_found_once() {
    let mountinfo = "\
30 20 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw
33 30 0:27 / /mnt/again rw - cgroup cgroup rw,cpu
34 30 0:29 /part /mnt/part rw - cgroup cgroup rw,pids
broken
";
    let found = hierarchies(mountinfo);
    let places = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/uni fied"];
    assert_eq!(found, places.map(PathBuf::from));
}

#[test]
fn a_counter_is_found_by_its_whole_name() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("memory.events");
    fs::write(&path, "low 0\noom 3\noom_kill 2\noom_kill_group 7\n").unwrap();
    assert_eq!(counter(&path, "oom_kill"), Some(2));
    assert_eq!(counter(&path, "none"), None);
}
