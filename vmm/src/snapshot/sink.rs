//! Where a snapshot goes: into a directory, or over a connection to somebody who keeps it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use skerry_link::{Address, Connection, Hangup, Identity, SILENCE, security};
use skerry_snapshot::{
    Answer, Begin, Header, MemoryFile, Partial, Range, Records, SnapshotError, StreamWriter,
};
use skerry_vmm_api::snapshots::{VmSnapshot, directory};

use super::SnapshotRequestError;
use crate::memory::Ram;

/// Bytes of memory that are copied at a time: how soon it is seen that nobody wants them any more.
const DIRECTORY_PIECE: u64 = 16 << 20;
const STREAM_PIECE: u64 = 1 << 20;
/// How long a receiver may say that it makes a snapshot durable.
const DURABLE: Duration = Duration::from_secs(3600);
/// How long a receiver that hung up may take to say why.
const WHY: Duration = Duration::from_secs(1);

/// Where a snapshot goes.
pub enum Sink {
    /// A directory on this host.
    Directory(Kept),
    /// Somebody who keeps it.
    Stream(Box<Sent>),
}

/// A directory that is being made.
pub struct Kept {
    partial: Partial,
    target: PathBuf,
    memory: File,
}

/// A stream that is being sent.
pub struct Sent {
    address: Address,
    identity: Option<Identity>,
    begin: Begin,
    hangup: Hangup,
    /// None until somebody has taken it on.
    writer: Option<StreamWriter<Connection>>,
    buffer: Vec<u8>,
}

impl Sink {
    /// Prepares the snapshot of `begin`. Nothing goes over a connection yet, which `hangup` will end.
    pub fn open(
        request: &VmSnapshot,
        begin: Begin,
        hangup: Hangup,
    ) -> Result<Sink, SnapshotRequestError> {
        let url = &request.destination_url;
        if let Some(target) = directory(url) {
            let target = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
            let partial = Partial::create(&target)?;
            let memory = partial.create_memory(begin.memory)?;
            return Ok(Sink::Directory(Kept {
                partial,
                target,
                memory,
            }));
        }
        let address =
            Address::parse(url).map_err(|_| SnapshotRequestError::Destination(url.to_owned()))?;
        Ok(Sink::Stream(Box::new(Sent {
            identity: security(&address, request.tls_dir.as_deref(), request.insecure)?,
            address,
            begin,
            hangup,
            writer: None,
            buffer: Vec::new(),
        })))
    }

    /// What it is called: new layers of disks are called after that.
    pub fn name(&self) -> &Path {
        match self {
            Sink::Directory(kept) => &kept.target,
            Sink::Stream(sent) => Path::new(&sent.begin.id),
        }
    }

    /// Its directory, if that is on this host.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Sink::Directory(kept) => Some(&kept.target),
            Sink::Stream(_) => None,
        }
    }

    /// Bytes of memory that [`write`](Self::write) is to be given at a time.
    pub fn piece(&self) -> u64 {
        match self {
            Sink::Directory(_) => DIRECTORY_PIECE,
            Sink::Stream(_) => STREAM_PIECE,
        }
    }

    /// Finds somebody who takes it on.
    pub fn connect(&mut self) -> Result<(), SnapshotRequestError> {
        let Sink::Stream(sent) = self else {
            return Ok(());
        };
        let connection = Connection::connect(&sent.address, sent.identity.take(), &sent.hangup)?;
        connection.allow(SILENCE);
        let mut writer = StreamWriter::begin(connection, &sent.begin)?;
        Answer::accepted(writer.to())?;
        sent.writer = Some(writer);
        Ok(())
    }

    /// Writes a piece of memory. The guest may change it meanwhile.
    pub fn write(&mut self, ram: &Ram, piece: Range) -> Result<(), SnapshotRequestError> {
        match self {
            Sink::Directory(kept) => {
                let written = ram.write_to(&kept.memory, &[piece]);
                written.map_err(|source| SnapshotRequestError::Write {
                    path: kept.partial.directory().memory(),
                    source,
                })
            }
            Sink::Stream(sent) => {
                let writer = sent.writer.as_mut().ok_or_else(nobody)?;
                ram.copy_out(piece, &mut sent.buffer);
                writer.to().allow(SILENCE);
                let written = writer.pages(piece.start, &sent.buffer);
                written.map_err(|e| why(writer.to(), e).into())
            }
        }
    }

    /// However slowly it is taken, what is written from now on is so within `limit`, or fails.
    pub fn bound(&mut self, limit: Option<Duration>) {
        if let Sink::Stream(sent) = self
            && let Some(writer) = &mut sent.writer
        {
            writer.to().bound(limit.map(|limit| Instant::now() + limit));
        }
    }

    /// Makes it durable, or waits until it is so where it went.
    pub fn finish(
        self,
        mut records: Records,
        header: Header,
        ranges: &[Range],
    ) -> Result<(), SnapshotRequestError> {
        match self {
            Sink::Directory(kept) => {
                let path = kept.partial.directory().memory();
                MemoryFile::record(&mut records, &path, &kept.memory, ranges)?;
                Ok(kept.partial.complete(records, header)?)
            }
            Sink::Stream(sent) => {
                let Sent { writer, begin, .. } = *sent;
                let mut writer = writer.ok_or_else(nobody)?;
                let state = records.encode(header)?;
                writer.to().allow(SILENCE);
                let ended = writer.end(&state);
                ended.map_err(|e| why(writer.to(), e))?;
                Ok(until_durable(writer.to(), &begin.id)?)
            }
        }
    }
}

fn until_durable(connection: &mut Connection, id: &str) -> Result<(), SnapshotError> {
    connection.bound(Some(Instant::now() + DURABLE));
    loop {
        connection.allow(SILENCE);
        if Answer::is_durable(connection, id)? {
            return Ok(());
        }
    }
}

/// Nothing more could be sent: a receiver that hung up may have said why.
fn why(connection: &mut Connection, error: SnapshotError) -> SnapshotError {
    connection.bound(Some(Instant::now() + WHY));
    Answer::why_not(error, connection)
}

fn nobody() -> SnapshotError {
    SnapshotError::Refused("nobody has taken it on".into())
}
