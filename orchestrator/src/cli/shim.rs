//! `skerry shim`: the process that looks after one container, and what developers drive it by.
//!
//! It is hidden: the agent starts it. By hand, containers are made and looked at without an agent.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::output::print_json;
use crate::runtime::container::{
    ContainerError, ContainerSpec, Containers, ExecEvent, ExecSpec, MountSpec, Network, Runtime,
    State, TerminalSize, builtin, shim, signal_number,
};

/// Look after a container
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Shim {
    /// The container's directory
    #[arg(long, required = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What a runtime does, with runc's command line
    Oci(Oci),
    /// Prepare an image, make a container of it and start it
    Run(Run),
    /// Start a container that has ended
    Start(Named),
    /// What a container is doing
    State(Named),
    /// Wait for a container's end; ends with its exit code
    Wait(Named),
    /// Send a signal
    Kill {
        #[command(flatten)]
        named: Named,
        /// The signal, by name or number
        signal: String,
    },
    /// Ask a container to end, then kill it
    Stop {
        #[command(flatten)]
        named: Named,
        /// How many seconds it has
        #[arg(long, default_value_t = 10.0)]
        grace: f64,
    },
    /// Run a command in a container
    Exec(Exec),
    /// Where a container's output is
    Logs(Named),
    /// End a container and remove all of it
    Delete(Named),
    /// All containers; ends what killed shims have left
    Adopt(Root),
    /// Remove all images and layers that no container uses
    Prune {
        #[command(flatten)]
        root: Root,
        /// An image's digest that is kept
        #[arg(long)]
        keep: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Oci {
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    log: PathBuf,
    #[command(subcommand)]
    what: OciWhat,
}

#[derive(Debug, Subcommand)]
enum OciWhat {
    Create {
        #[arg(long)]
        bundle: PathBuf,
        #[arg(long)]
        pid_file: PathBuf,
        id: String,
    },
    Start {
        id: String,
    },
    Exec {
        #[arg(long)]
        detach: bool,
        #[arg(long)]
        process: PathBuf,
        #[arg(long)]
        pid_file: PathBuf,
        #[arg(long)]
        console_socket: Option<PathBuf>,
        id: String,
    },
}

#[derive(Debug, Args)]
struct Root {
    /// Where containers and images are kept
    #[arg(long, default_value = "/var/lib/skerry")]
    root: PathBuf,
}

#[derive(Debug, Args)]
struct Named {
    #[command(flatten)]
    root: Root,
    /// The container's name
    #[arg(long)]
    id: String,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    named: Named,
    /// The OCI image layout
    #[arg(long)]
    layout: PathBuf,
    /// The image's name in it
    #[arg(long)]
    image: Option<String>,
    /// A specification as JSON, without the image; flags override it
    #[arg(long)]
    spec: Option<String>,
    /// Set a variable
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Mount something of the host
    #[arg(long, value_name = "SOURCE:TARGET[:ro]")]
    bind: Vec<String>,
    /// Join a network namespace, or the host's: a path, or `host`
    #[arg(long)]
    network: Option<String>,
    /// Bytes of memory
    #[arg(long)]
    memory: Option<u64>,
    /// Thousandths of a CPU
    #[arg(long)]
    cpu_milli: Option<u32>,
    /// Processes
    #[arg(long)]
    pids: Option<u32>,
    /// Run as this user
    #[arg(long)]
    user: Option<String>,
    /// Make the root read-only
    #[arg(long)]
    read_only: bool,
    /// A program with runc's command line, instead of what is built in
    #[arg(long)]
    oci_runtime: Option<PathBuf>,
    /// Wait for the container's end, print its output, remove it, and end with its exit code
    #[arg(long)]
    rm: bool,
    /// What to run instead of the image's entry point
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
struct Exec {
    #[command(flatten)]
    named: Named,
    /// Give the command a terminal
    #[arg(long)]
    tty: bool,
    /// Pass standard input on
    #[arg(long)]
    input: bool,
    /// Run as this user
    #[arg(long)]
    user: Option<String>,
    /// Set a variable
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Shim {
    /// Does what the command line says.
    pub fn run(self) -> ExitCode {
        let said = match (self.dir, self.what) {
            (Some(dir), _) => shim::run(&dir).map(|()| 0),
            (None, Some(What::Oci(oci))) => oci.run(),
            (None, Some(what)) => what.run().map_err(|e| e.chain()),
            (None, None) => Ok(2),
        };
        said.map(ExitCode::from).unwrap_or_else(|why| {
            eprintln!("skerry: {why}");
            ExitCode::FAILURE
        })
    }
}

impl Oci {
    /// Errors go to the log, as runc's do: standard error is the container's.
    fn run(self) -> Result<u8, String> {
        let done = match &self.what {
            OciWhat::Create {
                bundle,
                pid_file,
                id,
            } => builtin::create(&self.root, id, bundle, pid_file),
            OciWhat::Start { id } => builtin::start(&self.root, id),
            OciWhat::Exec {
                process,
                pid_file,
                console_socket,
                id,
                ..
            } => builtin::exec(&self.root, id, process, pid_file, console_socket.as_deref()),
        };
        Ok(match done {
            Ok(()) => 0,
            Err(e) => {
                // Without a log the exit code has to do.
                let _ = std::fs::write(&self.log, e.chain());
                1
            }
        })
    }
}

fn variables(all: &[String]) -> Vec<(String, String)> {
    let split = all
        .iter()
        .map(|one| one.split_once('=').unwrap_or((one, "")));
    split
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

impl What {
    fn run(self) -> Result<u8, ContainerError> {
        let root = |named: &Named| Containers::new(&named.root.root);
        match self {
            What::Oci(_) => {}
            What::Run(run) => return run.run(),
            What::Start(named) => root(&named)?.start(&named.id)?,
            What::State(named) => show(&root(&named)?.state(&named.id)?),
            What::Wait(named) => {
                let state = root(&named)?.wait(&named.id, Duration::from_secs(86_400))?;
                show(&state);
                return Ok(code(&state));
            }
            What::Kill { named, signal } => {
                let number = signal_number(&signal).ok_or_else(|| ContainerError::Spec {
                    field: "signal",
                    value: signal,
                    remedy: "give a name as TERM, or a number".into(),
                })?;
                root(&named)?.signal(&named.id, number)?;
            }
            What::Stop { named, grace } => {
                let grace = Duration::try_from_secs_f64(grace).unwrap_or_default();
                show(&root(&named)?.stop(&named.id, grace)?);
            }
            What::Exec(exec) => return exec.run(),
            What::Logs(named) => println!("{}", root(&named)?.logs(&named.id)?.display()),
            What::Delete(named) => root(&named)?.delete(&named.id)?,
            What::Adopt(root) => {
                for found in Containers::new(&root.root)?.adopt()? {
                    let image = found.spec.map(|spec| spec.image.digest).unwrap_or_default();
                    let state = serde_json::to_string(&found.state).unwrap_or_default();
                    println!("{} {image} {state}", found.id);
                }
            }
            What::Prune { root, keep } => {
                let keep: HashSet<String> = keep.into_iter().collect();
                println!("{}", Containers::new(&root.root)?.prune(&keep)?);
            }
        }
        Ok(0)
    }
}

impl Run {
    fn run(self) -> Result<u8, ContainerError> {
        let id = &self.named.id;
        let containers = Containers::new(&self.named.root.root)?;
        let image = containers.prepare(&self.layout, self.image.as_deref())?;
        let image = containers.image(&image.digest)?.unwrap_or(image);
        let mut spec = ContainerSpec::of(image);
        if let Some(json) = &self.spec {
            spec = merged(spec, json)?;
        }
        if !self.command.is_empty() {
            spec.command = Some(self.command);
        }
        spec.env.extend(variables(&self.env));
        for bind in &self.bind {
            let (bind, read_only) = match bind.strip_suffix(":ro") {
                Some(bind) => (bind, true),
                None => (bind.as_str(), false),
            };
            let (source, target) = bind.split_once(':').unwrap_or((bind, bind));
            spec.mounts.push(MountSpec::Bind {
                source: source.into(),
                target: target.into(),
                read_only,
            });
        }
        match self.network.as_deref() {
            None => {}
            Some("host") => spec.network = Network::Host,
            Some(path) => spec.network = Network::Path(path.into()),
        }
        spec.limits.memory = self.memory.or(spec.limits.memory);
        spec.limits.cpu_milli = self.cpu_milli.or(spec.limits.cpu_milli);
        spec.limits.processes = self.pids.or(spec.limits.processes);
        spec.user = self.user.or(spec.user);
        spec.read_only |= self.read_only;
        if let Some(program) = self.oci_runtime {
            spec.runtime = Runtime::Program(program);
        }
        containers.create(id, &spec)?;
        if let Err(e) = containers.start(id) {
            if self.rm {
                containers.delete(id)?;
            }
            return Err(e);
        }
        if !self.rm {
            return Ok(0);
        }
        let state = containers.wait(id, Duration::from_secs(86_400))?;
        if let Ok(text) = std::fs::read(containers.logs(id)?) {
            // Nobody may be reading.
            let _ = std::io::stdout().write_all(&text);
        }
        containers.delete(id)?;
        Ok(code(&state))
    }
}

/// The fields of a document in the place of a specification's.
fn merged(spec: ContainerSpec, json: &str) -> Result<ContainerSpec, ContainerError> {
    let wrong = |e: serde_json::Error| ContainerError::Spec {
        field: "spec",
        value: json.into(),
        remedy: e.to_string(),
    };
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(json).map_err(wrong)?;
    let mut whole = serde_json::to_value(spec).map_err(wrong)?;
    for (name, value) in fields {
        whole[name] = value;
    }
    serde_json::from_value(whole).map_err(wrong)
}

impl Exec {
    fn run(self) -> Result<u8, ContainerError> {
        let containers = Containers::new(&self.named.root.root)?;
        let size = TerminalSize {
            rows: 24,
            columns: 80,
        };
        let spec = ExecSpec {
            args: self.command,
            env: variables(&self.env),
            user: self.user,
            terminal: self.tty.then_some(size),
            ..ExecSpec::default()
        };
        let mut exec = containers.exec(&self.named.id, &spec)?;
        let mut input = exec.input().map_err(|source| ContainerError::System {
            what: "talk to the command in",
            path: self.named.root.root.clone(),
            source,
        })?;
        if self.tty {
            // It has that size already; resizing is tried out so.
            let _ = input.resize(size);
        }
        // It ends with the process, and a command that reads no more is no failure.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let read = match self.input {
                    true => std::io::stdin().read(&mut buffer),
                    false => Ok(0),
                };
                match read {
                    Ok(0) | Err(_) => break,
                    Ok(n) => {
                        if input.write(&buffer[..n]).is_err() {
                            return;
                        }
                    }
                }
            }
            let _ = input.close();
        });
        loop {
            // Nobody may be reading.
            match exec.event()? {
                ExecEvent::Output(bytes) => {
                    let _ = std::io::stdout().write_all(&bytes);
                    let _ = std::io::stdout().flush();
                }
                ExecEvent::Error(bytes) => {
                    let _ = std::io::stderr().write_all(&bytes);
                }
                ExecEvent::Exit(code) => return Ok(code as u8),
            }
        }
    }
}

fn code(state: &State) -> u8 {
    match state {
        State::Exited(exit) => exit.code as u8,
        _ => 1,
    }
}

fn show(state: &State) {
    // It is text and numbers, so it can be written.
    let _ = print_json(state);
}
