//! What is refused of a container's specification before anything is made of it.

use std::path::{Component, Path};

use super::bundle::{args, capabilities};
use super::error::ContainerError;
use super::spec::{ContainerSpec, MountSpec, Network, Runtime};

/// How many arguments, variables or mounts there may be.
const MANY: usize = 4096;

/// Looks for what can be refused before anything is made.
pub fn check(spec: &ContainerSpec) -> Result<(), ContainerError> {
    let wrong = |field, value: &str, remedy: &str| ContainerError::spec(field, value, remedy);
    if args(spec).is_empty() {
        return Err(wrong(
            "args",
            "",
            "neither the container nor its image says what to run",
        ));
    }
    for (field, count) in [
        ("args", args(spec).len()),
        ("env", spec.env.len()),
        ("mounts", spec.mounts.len()),
    ] {
        if count > MANY {
            return Err(wrong(
                field,
                &format!("{count} long"),
                &format!("give {MANY} at most"),
            ));
        }
    }
    if let Some(arg) = args(spec).iter().find(|arg| arg.contains('\0')) {
        return Err(wrong("args", arg, "no argument can have a NUL in it"));
    }
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(wrong("env", name, "give a name without '=', and no NUL"));
        }
    }
    if let Some(name) = &spec.hostname {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return Err(wrong(
                "hostname",
                name,
                "give 1 to 64 letters, digits, '-' and '.'",
            ));
        }
    }
    if let Some(dir) = &spec.working_dir {
        absolute("working_dir", dir)?;
    }
    for mount in &spec.mounts {
        match mount {
            MountSpec::Bind { source, target, .. } => {
                absolute("mounts.bind.source", source)?;
                absolute("mounts.bind.target", target)?;
            }
            MountSpec::Memory { target, size } => {
                absolute("mounts.memory.target", target)?;
                if *size == 0 {
                    return Err(wrong("mounts.memory.size", "0", "give at least one byte"));
                }
            }
        }
    }
    if let Network::Path(path) = &spec.network {
        absolute("network.path", path)?;
    }
    if let Some(cgroup) = &spec.cgroup {
        absolute("cgroup", Path::new(cgroup))?;
        if Path::new(cgroup).components().count() < 2 {
            return Err(wrong("cgroup", cgroup, "give one below the root"));
        }
    }
    if spec
        .limits
        .memory
        .is_some_and(|bytes| bytes < 4 << 20 || bytes > i64::MAX as u64)
    {
        let bytes = spec.limits.memory.unwrap_or(0).to_string();
        return Err(wrong(
            "limits.memory",
            &bytes,
            "give at least 4 MiB, in bytes",
        ));
    }
    if spec.limits.cpu_milli == Some(0) {
        return Err(wrong(
            "limits.cpu_milli",
            "0",
            "give at least 1, a thousandth of a CPU",
        ));
    }
    if spec.limits.processes == Some(0) {
        return Err(wrong("limits.processes", "0", "give at least 1"));
    }
    if spec.log.file_size < 4096 || spec.log.files == 0 || spec.log.files > 1000 {
        let log = format!("{} × {} bytes", spec.log.files, spec.log.file_size);
        return Err(wrong(
            "log",
            &log,
            "give 1 to 1000 files of at least 4096 bytes",
        ));
    }
    if spec.seccomp && !spec.no_new_privileges && spec.runtime == Runtime::BuiltIn {
        return Err(wrong(
            "no_new_privileges",
            "false",
            "the runtime that is built in needs it for its filter: use runc, or no seccomp",
        ));
    }
    capabilities(spec).map(|_| ())
}

/// Refuses a path that is not absolute, or leads somewhere else than it says.
pub fn absolute(field: &'static str, path: &Path) -> Result<(), ContainerError> {
    let plain = path.is_absolute()
        && !path.components().any(|part| part == Component::ParentDir)
        && !path
            .as_os_str()
            .to_string_lossy()
            .contains(['\0', '\u{fffd}']);
    match plain {
        true => Ok(()),
        false => Err(ContainerError::spec(
            field,
            path.display().to_string(),
            "give an absolute path without '..', in UTF-8",
        )),
    }
}
