//! `skerry snapshot receive`.

use std::error::Error;
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use clap::Args;
use skerry_link::{Address, Connection, Hangup, Listener};
use skerry_snapshot::{Answer, Arriving, Incoming, SnapshotError, Watch};

use super::place::{Input, Place, Secured};
use super::progress::Bar;
use super::watch::Watched;
use super::{Failure, Outcome};

/// How often a sender hears that its snapshot is worked on.
const BEAT: Duration = Duration::from_secs(5);
/// How long a sender is waited for that was refused.
const PARTING: Duration = Duration::from_secs(5);
/// Bytes that are read from a connection at once.
const AT_ONCE: usize = 256 << 10;

/// Take one snapshot in that somebody sends, and print its id
///
/// A monitor sends one with vm.snapshot to the same address, and hears when it is durable here. What was cut or altered on its way does not become a snapshot.
#[derive(Debug, Args)]
pub struct Receive {
    /// Where to listen: unix:PATH or tcp:HOST:PORT; or - for a stored stream on standard input
    #[arg(long, value_name = "WHERE")]
    from: Place,

    /// The snapshot's directory, which must not exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// What a diff builds on: the directory of that snapshot
    #[arg(long, value_name = "DIR")]
    parent: Option<PathBuf>,

    #[command(flatten)]
    secured: Secured,

    #[command(flatten)]
    bar: Bar,
}

impl Receive {
    /// Does it.
    pub fn run(&self) -> Outcome {
        let id = match &self.from {
            Place::Standard => self.bar.watch("Receiving", |progress| {
                let input = BufReader::with_capacity(AT_ONCE, Input(progress));
                self.stored(input, &Watched(progress))
            })?,
            Place::At(address) => self.listen(address)?,
        };
        println!("{}", super::output::on_a_line(&id));
        Ok(0)
    }

    /// Takes a stream that nobody waits with.
    fn stored(&self, input: impl Read, watch: &dyn Watch) -> Result<String, SnapshotError> {
        let mut incoming = Incoming::open(input)?;
        let mut arriving = self.make(&incoming, watch)?;
        incoming.receive(&mut arriving, watch)?;
        incoming.finish()?;
        arriving.complete()
    }

    fn make<R: Read>(
        &self,
        incoming: &Incoming<R>,
        watch: &dyn Watch,
    ) -> Result<Arriving, SnapshotError> {
        let begin = incoming.begin();
        // All of it at most.
        watch.expect(begin.memory);
        Arriving::make(begin, &self.directory, self.parent.as_deref())
    }

    /// Takes what the first one sends who comes.
    fn listen(&self, address: &Address) -> Result<String, Failure> {
        let identity = self.secured.identity(address)?;
        let hangup = Hangup::default();
        let interrupt = || hangup.hang_up();
        let received = self.bar.watch_waiting("Receiving", interrupt, |progress| {
            // Whoever is asked to end from here on takes the socket along.
            let listener = Listener::bind(address)?;
            let connection = listener.accept(identity, &hangup)?;
            let mut reader = BufReader::with_capacity(AT_ONCE, connection);
            let received = self.over(&mut reader, &Watched(progress));
            let sender = reader.get_mut();
            match &received {
                Ok(id) => {
                    if let Err(e) = Answer::Done(id.clone()).write(sender) {
                        let why = causes(&e);
                        eprintln!("skerry: the sender did not hear that it is durable: {why}");
                    }
                }
                Err(e) => {
                    if Answer::Refused(causes(e)).write(sender).is_ok() {
                        sender.part(PARTING);
                    }
                }
            }
            received.map_err(Failure::from)
        });
        received.map_err(|e| match hangup.is_hung_up() {
            true => SnapshotError::Cancelled.into(),
            false => e,
        })
    }

    fn over(
        &self,
        reader: &mut BufReader<Connection>,
        watch: &dyn Watch,
    ) -> Result<String, SnapshotError> {
        let mut incoming = Incoming::open(&mut *reader)?;
        let mut arriving = self.make(&incoming, watch)?;
        Answer::Accepted.write(incoming.source().get_mut())?;
        incoming.receive(&mut arriving, watch)?;
        complete(arriving, reader.get_mut())
    }
}

/// Makes it durable, and says so long as that takes that it is worked on.
fn complete(arriving: Arriving, sender: &mut Connection) -> Result<String, SnapshotError> {
    std::thread::scope(|scope| {
        let (end, ended) = channel::<()>();
        let work = scope.spawn(move || {
            let completed = arriving.complete();
            drop(end);
            completed
        });
        while ended.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
            // It becomes a snapshot even if its sender is gone: all of it is here.
            let _ = Answer::Working.write(sender);
        }
        match work.join() {
            Ok(completed) => completed,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// An error with its causes, for whoever sent.
fn causes(error: &SnapshotError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
