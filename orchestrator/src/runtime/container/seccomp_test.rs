//! Tests of the filter of system calls.

use super::*;

#[test]
fn the_filters_compile_and_fit() {
    for admin in [false, true] {
        let filters = filters(admin).unwrap();
        assert_eq!(filters.len(), if admin { 1 } else { 2 });
        assert!(filters.iter().all(|filter| filter.len() < 4096));
    }
}

#[test]
fn the_profile_of_the_bundle_refuses_the_same_calls() {
    let profile = profile(false).unwrap();
    let syscalls = profile.syscalls().as_ref().unwrap();
    let refused = |name: &str| {
        syscalls
            .iter()
            .any(|rule| rule.names().iter().any(|n| n == name))
    };
    for name in ["mount", "bpf", "clone", "clone3", "kexec_load", "unshare"] {
        assert!(refused(name), "{name}");
    }
    let admin = super::profile(true).unwrap();
    let syscalls = admin.syscalls().as_ref().unwrap();
    assert!(
        !syscalls
            .iter()
            .any(|rule| rule.names().iter().any(|n| n == "mount"))
    );
}
