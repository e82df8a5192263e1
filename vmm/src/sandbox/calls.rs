//! The system calls of each kind of thread.

use libc::*;
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::ThreadKind;

/// What every thread needs: memory, locks, time, its own end, and messages.
const COMMON: &[c_long] = &[
    SYS_brk,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_madvise,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_read,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_yield,
    SYS_sigaltstack,
    SYS_tgkill,
    SYS_write,
];

/// Making doorbells and interrupts, and the machine's KVM calls while it runs.
const VCPU: &[c_long] = &[SYS_eventfd2, SYS_fcntl];

/// The ring, taps and sockets; and what images need that the ring lacks.
const WORKER: &[c_long] = &[
    SYS_accept4,
    SYS_connect,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_epoll_wait,
    SYS_fallocate,
    SYS_fcntl,
    SYS_fsync,
    SYS_ftruncate,
    SYS_getcwd,
    SYS_getrusage,
    SYS_getsockopt,
    SYS_io_uring_enter,
    SYS_preadv2,
    SYS_preadv,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_renameat2,
    SYS_sendmsg,
    SYS_sendto,
    SYS_shutdown,
    SYS_writev,
];

const API: &[c_long] = &[
    SYS_accept4,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_wait,
    SYS_fcntl,
    SYS_getsockopt,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_shutdown,
    SYS_writev,
];

/// Those who attach, and a log that is copied when it is full.
const CONSOLE: &[c_long] = &[
    SYS_accept4,
    SYS_fcntl,
    SYS_ftruncate,
    SYS_poll,
    SYS_ppoll,
    SYS_pread64,
    SYS_recvfrom,
    SYS_sendto,
];

// From <asm-generic/ioctls.h>.
const FIONBIO: u64 = 0x5421;

/// Building a machine anew for a boot or reboot: files, memory, threads, sockets, KVM.
const MONITOR: &[c_long] = &[
    SYS_access,
    SYS_bind,
    SYS_clone,
    SYS_clone3,
    SYS_dup,
    SYS_epoll_create1,
    SYS_eventfd2,
    SYS_faccessat2,
    SYS_fdatasync,
    SYS_fstat,
    SYS_getsockname,
    SYS_io_uring_register,
    SYS_io_uring_setup,
    SYS_ioctl,
    SYS_listen,
    SYS_lseek,
    SYS_lstat,
    SYS_membarrier,
    SYS_memfd_create,
    SYS_newfstatat,
    SYS_openat,
    SYS_pipe2,
    SYS_poll,
    SYS_ppoll,
    SYS_prctl,
    SYS_pread64,
    SYS_prlimit64,
    SYS_readlink,
    SYS_rename,
    SYS_rt_sigaction,
    SYS_rt_sigtimedwait,
    SYS_sched_getaffinity,
    SYS_sched_setaffinity,
    SYS_seccomp,
    SYS_setsockopt,
    SYS_socket,
    SYS_socketpair,
    SYS_set_robust_list,
    SYS_stat,
    SYS_statx,
    SYS_sysinfo,
    SYS_unlink,
    SYS_copy_file_range,
    SYS_mkdir,
    SYS_rmdir,
    SYS_unlinkat,
    SYS_userfaultfd,
];

// From <linux/kvm.h>.
const KVM_RUN: u64 = 0xae80;
const KVM_SIGNAL_MSI: u64 = 0x4020_aea5;
const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;
const KVM_IRQFD: u64 = 0x4020_ae76;
const KVM_IOEVENTFD: u64 = 0x4040_ae79;

/// What a CPU is asked for when it is saved, on its own thread; from <linux/kvm.h>.
const KVM_GET: [u64; 11] = [
    0x8090_ae81, // KVM_GET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0xc008_ae88, // KVM_GET_MSRS
    0x8400_ae8e, // KVM_GET_LAPIC
    0x8004_ae98, // KVM_GET_MP_STATE
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0x8080_aea1, // KVM_GET_DEBUGREGS
    0x0000_aea3, // KVM_GET_TSC_KHZ
    0x9000_aea4, // KVM_GET_XSAVE
    0x8188_aea6, // KVM_GET_XCRS
    0x0000_aead, // KVM_KVMCLOCK_CTRL
];

// From <linux/if_tun.h>.
const TUNSETQUEUE: u64 = 0x4004_54d9;

type Rules = Vec<(i64, Vec<SeccompRule>)>;

/// The calls that a thread of `kind` may make.
pub fn of(kind: ThreadKind) -> Rules {
    let free = |lists: &[&[c_long]]| -> Rules {
        lists
            .iter()
            .flat_map(|list| list.iter())
            .map(|call| (*call, Vec::new()))
            .collect()
    };
    match kind {
        ThreadKind::Monitor => free(&[COMMON, WORKER, API, MONITOR]),
        ThreadKind::Api => free(&[COMMON, API]),
        ThreadKind::Vcpu => {
            let calls = [
                KVM_RUN,
                KVM_SIGNAL_MSI,
                KVM_SET_GSI_ROUTING,
                KVM_IRQFD,
                KVM_IOEVENTFD,
            ];
            with_ioctls(free(&[COMMON, VCPU]), &[&calls[..], &KVM_GET].concat())
        }
        // Typed characters interrupt the guest from here, and tap queues are switched.
        ThreadKind::Worker => {
            let mut rules = with_ioctls(free(&[COMMON, WORKER]), &[KVM_SIGNAL_MSI, TUNSETQUEUE]);
            rules.push((SYS_socket, only(0, AF_UNIX as u64)));
            rules
        }
        ThreadKind::Console => with_ioctls(free(&[COMMON, CONSOLE]), &[FIONBIO]),
        ThreadKind::Signals => free(&[COMMON, &[SYS_rt_sigtimedwait]]),
    }
}

fn with_ioctls(mut rules: Rules, calls: &[u64]) -> Rules {
    const REQUEST: u8 = 1;
    let allowed = calls.iter().flat_map(|call| only(REQUEST, *call));
    rules.push((SYS_ioctl, allowed.collect()));
    rules
}

/// A call whose argument `index` is `value`.
fn only(index: u8, value: u64) -> Vec<SeccompRule> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]));
    rule.into_iter().collect()
}
