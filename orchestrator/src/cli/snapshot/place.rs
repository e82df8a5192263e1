//! The other end of a snapshot's stream: a connection, or standard input and output.

use std::io::{self, Read};
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skerry_images::chain::live::Progress;
use skerry_link::{Address, Identity, LinkError, security};

use super::Failure;

/// Where a stream comes from or goes to.
#[derive(Debug, Clone)]
pub enum Place {
    /// Standard input or output.
    Standard,
    /// A socket.
    At(Address),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        match text {
            "-" => Ok(Place::Standard),
            text => match Address::parse(text) {
                Ok(address) => Ok(Place::At(address)),
                Err(e) => Err(format!("{e}, or - for a pipe")),
            },
        }
    }
}

/// The flags that say how a connection is secured.
#[derive(Debug, Clone, Args)]
pub struct Secured {
    /// Over TCP: a directory with this host's cert.pem and key.pem, and the ca.pem of both hosts' authority
    #[arg(long, value_name = "DIR", conflicts_with = "insecure")]
    tls_dir: Option<PathBuf>,

    /// Over TCP, carry the guest's memory without TLS
    #[arg(long)]
    insecure: bool,
}

impl Secured {
    /// What secures a connection there.
    pub fn identity(&self, address: &Address) -> Result<Option<Identity>, Failure> {
        security(address, self.tls_dir.as_deref(), self.insecure).map_err(|e| match e {
            LinkError::Insecure => Failure::Asked(
                "tcp without TLS carries the guest's memory in the clear: give --tls-dir DIR with cert.pem, key.pem and ca.pem, or --insecure".into(),
            ),
            e => e.into(),
        })
    }
}

/// Standard input, for as long as it is wanted: who waits for it does not see signals.
pub struct Input<'a>(pub &'a Progress);

/// How often it is asked whether it is wanted.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let input = io::stdin();
        loop {
            if self.0.step(0).is_err() {
                return Err(io::Error::other("interrupted"));
            }
            match poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&TICK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(rustix::io::read(&input, buffer)?),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
