//! A container's `config.json` (OCI runtime specification 1.0) from its image and its specification.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    BoxBuilder, Capabilities, Capability, Linux, LinuxBuilder, LinuxCapabilities,
    LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxMemoryBuilder,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimitBuilder, PosixRlimitType, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::cgroup::CgroupVersion;
use super::check::absolute;
use super::error::ContainerError;
use super::passwd::Identity;
use super::seccomp;
use super::spec::{
    ContainerSpec, ExecSpec, MountSpec, Network, PROCESSES, ResourceLimits, Runtime,
};

/// Where the root file system is in a bundle.
pub const ROOT: &str = "rootfs";
/// Where programs are looked for if the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The period of CPU time, in microseconds.
const PERIOD: u64 = 100_000;
/// The least CPU time of a period that the kernel takes, in microseconds.
const LEAST_QUOTA: i64 = 1000;
/// How many files a container's process may have open, and how many if it raises that.
const FILES: (u64, u64) = (1024, 524_288);

/// What a container gets if nothing else is said: Docker's set without `CAP_MKNOD`. Where cgroups
/// are of version 2, nothing would keep a device that it makes from being used.
const CAPABILITIES: [Capability; 13] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Parts of /proc and /sys that tell of the host: seen as empty.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/security",
];

/// Parts of /proc and /sys that change the host: only read.
const READ_ONLY: [&str; 6] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/sys/fs/cgroup",
];

/// What is known of the host and of the container when its bundle is made.
#[derive(Debug, Clone)]
pub struct Circumstances {
    /// Who it runs as.
    pub identity: Identity,
    /// Its cgroup.
    pub cgroup: String,
    /// Which cgroups the host has.
    pub cgroups: CgroupVersion,
    /// Whether the kernel counts what is swapped.
    pub swap_counted: bool,
    /// How many files this process may have open: nobody may raise that.
    pub files: u64,
}

/// What runs: the image's entry point and arguments, as far as nothing else is said.
pub fn args(spec: &ContainerSpec) -> Vec<String> {
    let config = spec.image.config.config().as_ref();
    let entrypoint = config
        .and_then(|config| config.entrypoint().clone())
        .unwrap_or_default();
    let cmd = config
        .and_then(|config| config.cmd().clone())
        .unwrap_or_default();
    match (&spec.command, &spec.args) {
        (Some(command), args) => {
            let args = args.iter().flatten();
            command.iter().chain(args).cloned().collect()
        }
        (None, Some(args)) => entrypoint.iter().chain(args).cloned().collect(),
        (None, None) => entrypoint.into_iter().chain(cmd).collect(),
    }
}

/// The user that is meant, by name or number.
pub fn user(spec: &ContainerSpec) -> &str {
    let config = spec.image.config.config().as_ref();
    let image = config.and_then(|config| config.user().as_deref());
    spec.user.as_deref().or(image).unwrap_or("")
}

/// The working directory that is meant.
pub fn working_dir(spec: &ContainerSpec) -> PathBuf {
    let config = spec.image.config.config().as_ref();
    let image = config.and_then(|config| config.working_dir().as_ref());
    let image = image.filter(|dir| dir.starts_with('/')).map(PathBuf::from);
    spec.working_dir
        .clone()
        .or(image)
        .unwrap_or_else(|| "/".into())
}

/// The signal that asks the container to end: the image's, or SIGTERM.
pub fn stop_signal(spec: &ContainerSpec) -> Option<&str> {
    let config = spec.image.config.config().as_ref();
    config.and_then(|config| config.stop_signal().as_deref())
}

fn env(spec: &ContainerSpec) -> Vec<String> {
    let config = spec.image.config.config().as_ref();
    let image = config
        .and_then(|config| config.env().clone())
        .unwrap_or_default();
    let mut env = vec![PATH.to_string()];
    let host = spec.hostname.iter().map(|name| format!("HOSTNAME={name}"));
    let own = spec
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    for variable in image
        .into_iter()
        .filter(|v| !v.contains('\0'))
        .chain(host)
        .chain(own)
    {
        set(&mut env, variable);
    }
    env
}

/// Sets a variable, `NAME=value`, in the place of an earlier one.
fn set(env: &mut Vec<String>, variable: String) {
    let Some((name, _)) = variable.split_once('=') else {
        return;
    };
    let same = |other: &String| {
        other
            .split_once('=')
            .is_some_and(|(other, _)| other == name)
    };
    match env.iter().position(same) {
        Some(place) => env[place] = variable,
        None => env.push(variable),
    }
}

pub(super) fn capabilities(spec: &ContainerSpec) -> Result<Capabilities, ContainerError> {
    let named = |field: &'static str, name: &String| {
        let upper = name.to_ascii_uppercase();
        let full = match upper.starts_with("CAP_") {
            true => upper,
            false => format!("CAP_{upper}"),
        };
        serde_json::from_value::<Capability>(full.into()).map_err(|_| {
            ContainerError::spec(
                field,
                name,
                "give names as CAP_NET_ADMIN; capabilities(7) has them",
            )
        })
    };
    let mut all = CAPABILITIES.into_iter().collect::<Capabilities>();
    for name in &spec.drop_capabilities {
        match name.eq_ignore_ascii_case("all") {
            true => all.clear(),
            false => {
                all.remove(&named("drop_capabilities", name)?);
            }
        }
    }
    for name in &spec.add_capabilities {
        all.insert(named("add_capabilities", name)?);
    }
    Ok(all)
}

fn privileges(
    spec: &ContainerSpec,
    identity: &Identity,
) -> Result<LinuxCapabilities, ContainerError> {
    let all = capabilities(spec)?;
    // As by execve(2): whoever is not root has only the bounding set, for programs with set-uid.
    let mine = match identity.uid {
        0 => all.clone(),
        _ => Capabilities::default(),
    };
    let none = Capabilities::default();
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(all)
        .effective(mine.clone())
        .permitted(mine)
        .inheritable(none.clone())
        .ambient(none)
        .build()?)
}

/// Whether a container may do what the host's administrator may.
pub fn is_admin(spec: &ContainerSpec) -> Result<bool, ContainerError> {
    Ok(capabilities(spec)?.contains(&Capability::SysAdmin))
}

/// The whole of `config.json`.
pub fn build(spec: &ContainerSpec, id: &str, host: &Circumstances) -> Result<Spec, ContainerError> {
    let root = RootBuilder::default()
        .path(ROOT)
        .readonly(spec.read_only)
        .build()?;
    let mut mounts = system_mounts()?;
    if host.cgroups == CgroupVersion::One && spec.runtime == Runtime::BuiltIn {
        // The library mounts them so that their limits can be written.
        mounts.retain(|mount| mount.typ().as_deref() != Some("cgroup"));
    }
    for mount in &spec.mounts {
        mounts.push(own_mount(mount)?);
    }
    // A network of the host comes with the host's name.
    let own_name = spec.network != Network::Host;
    let hostname = spec
        .hostname
        .clone()
        .unwrap_or_else(|| id.chars().take(63).collect());
    let bundle = SpecBuilder::default()
        .version("1.0.2")
        .root(root)
        .mounts(mounts)
        .process(process(spec, host)?)
        .linux(linux(spec, host, own_name)?)
        .annotations(HashMap::from([(
            "io.skerry.container".to_string(),
            id.to_string(),
        )]));
    let mut bundle = match own_name {
        true => bundle.hostname(hostname),
        false => bundle,
    }
    .build()?;
    if !own_name {
        bundle.set_hostname(None);
    }
    Ok(bundle)
}

fn process(spec: &ContainerSpec, host: &Circumstances) -> Result<Process, ContainerError> {
    let identity = &host.identity;
    let most = host.files;
    let user = UserBuilder::default()
        .uid(identity.uid)
        .gid(identity.gid)
        .additional_gids(identity.groups.clone())
        .build()?;
    let files = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(FILES.0.min(most))
        .hard(FILES.1.min(most))
        .build()?;
    Ok(ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(args(spec))
        .env(env(spec))
        .cwd(working_dir(spec))
        .capabilities(privileges(spec, identity)?)
        .rlimits(vec![files])
        .no_new_privileges(spec.no_new_privileges)
        .build()?)
}

/// A further process of a running container, as `process.json`.
pub fn exec_process(
    bundle: &Spec,
    exec: &ExecSpec,
    spec: &ContainerSpec,
    identity: Option<Identity>,
) -> Result<Process, ContainerError> {
    if exec.args.is_empty() || exec.args.iter().any(|arg| arg.contains('\0')) {
        return Err(ContainerError::spec(
            "exec.args",
            "",
            "give a command, without NULs",
        ));
    }
    let missing = || ContainerError::spec("process", "", "the bundle has none");
    let mut process = bundle.process().clone().ok_or_else(missing)?;
    process.set_args(Some(exec.args.clone()));
    process.set_terminal(Some(exec.terminal.is_some()));
    if let Some(size) = exec.terminal {
        let size = BoxBuilder::default()
            .height(u64::from(size.rows))
            .width(u64::from(size.columns))
            .build()?;
        process.set_console_size(Some(size));
    }
    let mut env = process.env().clone().unwrap_or_default();
    if exec.terminal.is_some() && !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    for (name, value) in &exec.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(ContainerError::spec(
                "exec.env",
                name,
                "give a name without '=', and no NUL",
            ));
        }
        set(&mut env, format!("{name}={value}"));
    }
    process.set_env(Some(env));
    if let Some(dir) = &exec.working_dir {
        absolute("exec.working_dir", dir)?;
        process.set_cwd(dir.clone());
    }
    if let Some(identity) = identity {
        let user = UserBuilder::default()
            .uid(identity.uid)
            .gid(identity.gid)
            .additional_gids(identity.groups.clone())
            .build()?;
        process.set_user(user);
        process.set_capabilities(Some(privileges(spec, &identity)?));
    }
    Ok(process)
}

fn linux(
    spec: &ContainerSpec,
    host: &Circumstances,
    own_name: bool,
) -> Result<Linux, ContainerError> {
    let mut namespaces = Vec::new();
    let mut kinds = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Cgroup,
    ];
    if own_name {
        kinds.push(LinuxNamespaceType::Uts);
    }
    for kind in kinds {
        namespaces.push(LinuxNamespaceBuilder::default().typ(kind).build()?);
    }
    let network = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
    match &spec.network {
        Network::New => namespaces.push(network.build()?),
        Network::Path(path) => namespaces.push(network.path(path.clone()).build()?),
        Network::Host => {}
    }
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .resources(resources(&spec.limits, host.swap_counted)?)
        .cgroups_path(&host.cgroup)
        .masked_paths(MASKED.map(String::from))
        .readonly_paths(READ_ONLY.map(String::from));
    let linux = match spec.seccomp {
        true => linux.seccomp(seccomp::profile(is_admin(spec)?)?),
        false => linux,
    };
    Ok(linux.build()?)
}

fn resources(limits: &ResourceLimits, swap_counted: bool) -> Result<LinuxResources, OciSpecError> {
    let nothing = LinuxDeviceCgroupBuilder::default()
        .allow(false)
        .access("rwm")
        .build()?;
    let pids = LinuxPidsBuilder::default()
        .limit(i64::from(limits.processes.unwrap_or(PROCESSES)))
        .build()?;
    let mut resources = LinuxResourcesBuilder::default()
        .devices(vec![nothing])
        .pids(pids);
    if let Some(bytes) = limits.memory {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let memory = LinuxMemoryBuilder::default().limit(bytes);
        let memory = match swap_counted {
            true => memory.swap(bytes),
            false => memory,
        };
        resources = resources.memory(memory.build()?);
    }
    let mut cpu = LinuxCpuBuilder::default();
    let mut any = false;
    if let Some(milli) = limits.cpu_milli {
        let quota = i64::from(milli) * (PERIOD as i64) / 1000;
        cpu = cpu.quota(quota.max(LEAST_QUOTA)).period(PERIOD);
        any = true;
    }
    if let Some(milli) = limits.cpu_request_milli {
        let shares = u64::from(milli) * 1024 / 1000;
        cpu = cpu.shares(shares.clamp(2, 262_144));
        any = true;
    }
    if let Some(cpus) = &limits.cpus {
        cpu = cpu.cpus(cpus);
        any = true;
    }
    if any {
        resources = resources.cpu(cpu.build()?);
    }
    resources.build()
}

fn mount(
    target: &Path,
    kind: &str,
    source: &Path,
    options: &[&str],
) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(
            options
                .iter()
                .map(|option| option.to_string())
                .collect::<Vec<_>>(),
        )
        .build()
}

fn system_mounts() -> Result<Vec<Mount>, OciSpecError> {
    const QUIET: [&str; 3] = ["nosuid", "noexec", "nodev"];
    let all: [(&str, &str, &str, &[&str]); 7] = [
        ("/proc", "proc", "proc", &QUIET),
        (
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        (
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        ("/dev/mqueue", "mqueue", "mqueue", &QUIET),
        (
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        (
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ];
    let all = all.into_iter();
    all.map(|(target, kind, source, options)| {
        mount(Path::new(target), kind, Path::new(source), options)
    })
    .collect()
}

fn own_mount(own: &MountSpec) -> Result<Mount, OciSpecError> {
    match own {
        MountSpec::Bind {
            source,
            target,
            read_only,
        } => {
            let mut options = vec!["rbind", "rprivate", "nosuid", "nodev"];
            if *read_only {
                options.push("ro");
            }
            mount(target, "bind", source, &options)
        }
        MountSpec::Memory { target, size } => {
            let size = format!("size={size}");
            let options = ["nosuid", "nodev", "mode=1777", &size];
            mount(target, "tmpfs", Path::new("tmpfs"), &options)
        }
    }
}

#[cfg(test)]
#[path = "bundle_test.rs"]
mod tests;
