//! `skerry snapshot send`.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use skerry_link::{Address, Connection, Hangup};
use skerry_snapshot::{Answer, Directory, KeptSnapshot, SnapshotError, StreamWriter};

use super::place::{Place, Secured};
use super::progress::Bar;
use super::watch::Watched;
use super::{Failure, Outcome};

/// Send a snapshot to somebody who receives it
///
/// Its own directory only: what a diff builds on is sent by itself, and before it. Its checksums are compared first.
#[derive(Debug, Args)]
pub struct Send {
    /// The snapshot's directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Where it is received: unix:PATH or tcp:HOST:PORT; or - to store the stream, on standard output
    #[arg(long, value_name = "WHERE")]
    to: Place,

    #[command(flatten)]
    secured: Secured,

    #[command(flatten)]
    bar: Bar,
}

impl Send {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let kept = KeptSnapshot::open(&Directory::new(&self.directory))?;
        match &self.to {
            Place::Standard => self.store(kept)?,
            Place::At(address) => self.send(kept, address)?,
        }
        Ok(0)
    }

    fn store(&self, kept: KeptSnapshot) -> Result<(), Failure> {
        let output = std::io::stdout();
        if output.is_terminal() {
            let what =
                "a snapshot is nothing for a terminal: send standard output to a file or a pipe";
            return Err(Failure::Asked(what.into()));
        }
        Ok(self.bar.watch("Sending", |progress| {
            let watch = Watched(progress);
            kept.verify(&watch)?;
            let mut writer = StreamWriter::begin(output.lock(), &kept.begin())?;
            kept.write(&mut writer, &watch)
        })?)
    }

    fn send(&self, kept: KeptSnapshot, address: &Address) -> Result<(), Failure> {
        let identity = self.secured.identity(address)?;
        let hangup = Hangup::default();
        let interrupt = || hangup.hang_up();
        let sent = self.bar.watch_waiting("Sending", interrupt, |progress| {
            let watch = Watched(progress);
            kept.verify(&watch)?;
            let begin = kept.begin();
            let connection = Connection::connect(address, identity, &hangup)?;
            let mut writer = StreamWriter::begin(connection, &begin)?;
            Answer::accepted(writer.to())?;
            let written = kept.write(&mut writer, &watch);
            written.map_err(|e| Answer::why_not(e, writer.to()))?;
            // Now and then it says that it works on it; an interruption ends the wait.
            while !Answer::is_durable(writer.to(), &begin.id)? {}
            Ok(())
        });
        sent.map_err(|e: Failure| match hangup.is_hung_up() {
            true => SnapshotError::Cancelled.into(),
            false => e,
        })
    }
}
