//! The system calls that containers have no use for: what they are, and the filter that refuses them.
//!
//! The list is what reaches the whole host (its clock, modules, mounts, namespaces, keys, tracing) or
//! is a usual way around a container's walls. A program with runc's command line gets it in the bundle.

use std::collections::BTreeMap;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Refused to everybody.
const HOST: &[(&str, i64)] = &[
    ("acct", libc::SYS_acct),
    ("add_key", libc::SYS_add_key),
    ("bpf", libc::SYS_bpf),
    ("clock_adjtime", libc::SYS_clock_adjtime),
    ("clock_settime", libc::SYS_clock_settime),
    ("adjtimex", libc::SYS_adjtimex),
    ("delete_module", libc::SYS_delete_module),
    ("finit_module", libc::SYS_finit_module),
    ("init_module", libc::SYS_init_module),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("kcmp", libc::SYS_kcmp),
    ("kexec_file_load", libc::SYS_kexec_file_load),
    ("kexec_load", libc::SYS_kexec_load),
    ("keyctl", libc::SYS_keyctl),
    ("lookup_dcookie", libc::SYS_lookup_dcookie),
    ("move_pages", libc::SYS_move_pages),
    ("nfsservctl", libc::SYS_nfsservctl),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("quotactl", libc::SYS_quotactl),
    ("quotactl_fd", libc::SYS_quotactl_fd),
    ("reboot", libc::SYS_reboot),
    ("request_key", libc::SYS_request_key),
    ("settimeofday", libc::SYS_settimeofday),
    ("swapoff", libc::SYS_swapoff),
    ("swapon", libc::SYS_swapon),
    ("syslog", libc::SYS_syslog),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("vhangup", libc::SYS_vhangup),
    #[cfg(target_arch = "x86_64")]
    ("ioperm", libc::SYS_ioperm),
    #[cfg(target_arch = "x86_64")]
    ("iopl", libc::SYS_iopl),
    #[cfg(target_arch = "x86_64")]
    ("uselib", libc::SYS_uselib),
    #[cfg(target_arch = "x86_64")]
    ("ustat", libc::SYS_ustat),
    #[cfg(target_arch = "x86_64")]
    ("sysfs", libc::SYS_sysfs),
    #[cfg(target_arch = "x86_64")]
    ("modify_ldt", libc::SYS_modify_ldt),
];

/// Refused to those without `CAP_SYS_ADMIN`. The kernel would let some of it pass in a new user
/// namespace.
const SPACES: &[(&str, i64)] = &[
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fsopen", libc::SYS_fsopen),
    ("fspick", libc::SYS_fspick),
    ("mount", libc::SYS_mount),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("move_mount", libc::SYS_move_mount),
    ("open_tree", libc::SYS_open_tree),
    ("pivot_root", libc::SYS_pivot_root),
    ("setns", libc::SYS_setns),
    ("umount2", libc::SYS_umount2),
    ("unshare", libc::SYS_unshare),
];

/// The flags of `clone` that make namespaces.
const CLONE_NEW: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The profile, as a bundle has it. `admin` is for containers with `CAP_SYS_ADMIN`.
pub fn profile(admin: bool) -> Result<LinuxSeccomp, OciSpecError> {
    let mut syscalls = vec![rule(names(HOST), libc::EPERM, None)?];
    if !admin {
        syscalls.push(rule(names(SPACES), libc::EPERM, None)?);
        for flag in CLONE_NEW {
            let flag = LinuxSeccompArgBuilder::default()
                .index(0usize)
                .value(flag as u64)
                .value_two(flag as u64)
                .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
                .build()?;
            syscalls.push(rule(vec!["clone".into()], libc::EPERM, Some(flag))?);
        }
        // Its flags are in memory, where no filter sees them. C libraries fall back to clone.
        syscalls.push(rule(vec!["clone3".into()], libc::ENOSYS, None)?);
    }
    let arch = match cfg!(target_arch = "aarch64") {
        true => Arch::ScmpArchAarch64,
        false => Arch::ScmpArchX86_64,
    };
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActAllow)
        .architectures(vec![arch])
        .syscalls(syscalls)
        .build()
}

fn names(table: &[(&str, i64)]) -> Vec<String> {
    table.iter().map(|(name, _)| name.to_string()).collect()
}

fn rule(
    names: Vec<String>,
    errno: i32,
    arg: Option<LinuxSeccompArg>,
) -> Result<LinuxSyscall, OciSpecError> {
    let rule = LinuxSyscallBuilder::default()
        .names(names)
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(errno as u32);
    match arg {
        Some(arg) => rule.args(vec![arg]).build(),
        None => rule.build(),
    }
}

/// The filter of the same profile, for the runtime that is built in: two, since a filter has one
/// error to answer with.
pub fn filters(admin: bool) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let spaces = match admin {
        true => &[],
        false => SPACES,
    };
    for (_, number) in HOST.iter().chain(spaces) {
        refused.insert(*number, Vec::new());
    }
    let mut filters = Vec::new();
    if !admin {
        let rules = CLONE_NEW.iter().map(|flag| {
            let flag = *flag as u64;
            let masked = SeccompCmpOp::MaskedEq(flag);
            let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, masked, flag)?;
            SeccompRule::new(vec![condition])
        });
        let rules = rules.collect::<Result<Vec<_>, _>>()?;
        refused.insert(libc::SYS_clone, rules);
        let missing = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        filters.push(filter(missing, libc::ENOSYS)?);
    }
    filters.push(filter(refused, libc::EPERM)?);
    #[cfg(target_arch = "x86_64")]
    for filter in &mut filters {
        without_x32(filter);
    }
    Ok(filters)
}

fn filter(
    refused: BTreeMap<i64, Vec<SeccompRule>>,
    errno: i32,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = match cfg!(target_arch = "aarch64") {
        true => TargetArch::aarch64,
        false => TargetArch::x86_64,
    };
    SeccompFilter::new(
        refused,
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        arch,
    )?
    .try_into()
}

/// Puts a check before a filter that refuses the numbers of the x32 ABI: the same calls by other
/// numbers.
#[cfg(target_arch = "x86_64")]
fn without_x32(filter: &mut BpfProgram) {
    use seccompiler::sock_filter;
    const X32: u32 = 0x4000_0000;
    let check = [
        // The call's number is the first word of what a filter sees.
        sock_filter {
            code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
            jt: 0,
            jf: 0,
            k: 0,
        },
        sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: X32,
        },
        sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        },
    ];
    filter.splice(0..0, check);
}

#[cfg(test)]
#[path = "seccomp_test.rs"]
mod tests;
