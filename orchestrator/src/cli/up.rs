//! `skerry up`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::failure::exit_code;
use crate::network::Subnet;
use crate::telemetry::logs::{self, LogFormat};
use crate::up::{Options, run};

/// Run this host: its store, its API, and what is declared to run here
#[derive(Debug, Args)]
pub struct Up {
    /// Where everything is kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/skerry")]
    state: PathBuf,
    /// Serve clients with certificates here too, such as kubectl
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// This host's name [default: the system's]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// The monitor [default: skerry-vmm beside this program]
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,
    /// What makes containers' namespaces, with runc's command line [default: built in]
    #[arg(long, value_name = "FILE")]
    oci_runtime: Option<PathBuf>,
    /// Let containers mount, and VMs share, what is below this directory (repeatable)
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// What serves directories to VMs [default: virtiofsd, where distributions put it]
    #[arg(long, value_name = "FILE")]
    virtiofsd: Option<PathBuf>,
    /// The addresses of the network `default`
    #[arg(long, value_name = "SUBNET", default_value_t = Subnet::default())]
    subnet: Subnet,
    /// The addresses of services
    #[arg(long, value_name = "SUBNET", default_value = "10.96.0.0/16")]
    service_subnet: Subnet,
    /// Let elastic addresses be of this subnet, and of no other that is not given (repeatable)
    #[arg(long, value_name = "SUBNET")]
    elastic: Vec<Subnet>,
    /// Keep so many monitors ready for clones of snapshots
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=1000))]
    warm: u16,
    /// Do not find out whether this host's KVM can run Linux: for payloads that need less
    #[arg(long)]
    no_probe: bool,
    /// How lines of log are written; RUST_LOG chooses levels
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

impl Up {
    /// Does it.
    pub fn run(self) -> ExitCode {
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .to_lowercase();
        let host = self.host.unwrap_or(name);
        logs::start(self.log_format, &host);
        let beside = std::env::current_exe().unwrap_or_default();
        let options = Options {
            state: self.state,
            listen: self.listen,
            host,
            oci_runtime: self.oci_runtime,
            subnet: self.subnet,
            service_subnet: self.service_subnet,
            elastic: self.elastic,
            share: self.share,
            virtiofsd: self.virtiofsd,
            probe: !self.no_probe,
            warm: self.warm.into(),
            vmm: self
                .vmm
                .unwrap_or_else(|| beside.with_file_name("skerry-vmm")),
        };
        exit_code(run(options).map(|()| 0).map_err(Into::into), 1)
    }
}
