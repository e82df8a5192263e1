//! The runtime that is built in: what runc's command line does, by libcontainer.
//!
//! The library clones the process that it runs in by a bare system call, so it gets processes of its
//! own with one thread: `skerry shim oci …`. They end as soon as the container's process is made.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::default::get_executor;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use seccompiler::BpfProgram;

use super::record;
use super::seccomp;

/// Why the runtime cannot do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum BuiltinError {
    /// The library refused.
    #[error(transparent)]
    Library(#[from] libcontainer::error::LibcontainerError),
    /// The filter of system calls cannot be made.
    #[error("the filter of system calls cannot be made")]
    Filter(#[from] seccompiler::BackendError),
    /// The bundle cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl BuiltinError {
    /// The error and its causes, on one line.
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line.replace('\n', " ")
    }
}

/// Runs a container's program behind the filter of its bundle.
#[derive(Clone)]
struct Filtered {
    inner: Box<dyn Executor>,
    filters: Vec<BpfProgram>,
}

impl Executor for Filtered {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        for filter in &self.filters {
            // The bundle has no_new_privileges with it, so nobody needs a privilege for this.
            let applied = seccompiler::apply_filter(filter);
            applied
                .map_err(|e| ExecutorError::Other(format!("cannot filter system calls: {e}")))?;
        }
        self.inner.exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.inner.validate(spec)
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        self.inner.setup_envs(envs)
    }
}

/// What runs a container's program, as its bundle wants it.
fn executor(bundle: &Path) -> Result<Filtered, BuiltinError> {
    let path = bundle.join("config.json");
    let unreadable = |source| BuiltinError::Bundle {
        path: path.clone(),
        source,
    };
    let spec: Option<Spec> = record::read(&path).map_err(unreadable)?;
    let missing = || unreadable(std::io::Error::from(std::io::ErrorKind::NotFound));
    let spec = spec.ok_or_else(missing)?;
    let filtered = spec
        .linux()
        .as_ref()
        .is_some_and(|linux| linux.seccomp().is_some());
    let process = spec.process().as_ref();
    let admin = process.and_then(|process| process.capabilities().as_ref());
    let admin = admin
        .and_then(|all| all.bounding().as_ref())
        .is_some_and(|all| all.contains(&libcontainer::oci_spec::runtime::Capability::SysAdmin));
    let filters = match filtered {
        true => seccomp::filters(admin)?,
        false => Vec::new(),
    };
    Ok(Filtered {
        inner: get_executor(),
        filters,
    })
}

/// Makes a container, whose process waits to be started. What this process has as its standard input,
/// output and error, the container has. This process must have one thread.
pub fn create(root: &Path, id: &str, bundle: &Path, pid_file: &Path) -> Result<(), BuiltinError> {
    ContainerBuilder::new(id.into(), SyscallType::default())
        .with_executor(executor(bundle)?)
        .with_pid_file(Some(pid_file))?
        .with_root_path(root)?
        .validate_id()?
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    Ok(())
}

/// Starts a container that was made.
pub fn start(root: &Path, id: &str) -> Result<(), BuiltinError> {
    Ok(Container::load(root.join(id))?.start()?)
}

/// Starts another process in a container that runs.
pub fn exec(
    root: &Path,
    id: &str,
    process: &Path,
    pid_file: &Path,
    console_socket: Option<&Path>,
) -> Result<(), BuiltinError> {
    let container = Container::load(root.join(id))?;
    // A link to it is made elsewhere.
    let console = console_socket.map(|path| fs::canonicalize(path).unwrap_or_else(|_| path.into()));
    ContainerBuilder::new(id.into(), SyscallType::default())
        .with_executor(executor(container.bundle())?)
        .with_pid_file(Some(pid_file))?
        .with_root_path(root)?
        .with_console_socket(console)
        .validate_id()?
        .as_tenant()
        .with_detach(true)
        .with_process(Some(process))
        .build()?;
    Ok(())
}
