//! A stream as it is written.

use std::io::Write;
use std::os::unix::fs::FileExt;

use blake3::Hasher;

use super::{
    BEGIN, Begin, END, MAGIC, MAX_PAGES, MAX_STATE, MAX_TEXT, PAGES, STATE, VERSION, head, link,
};
use crate::error::io;
use crate::{Directory, MemoryFile, Records, SnapshotError, State, Watch, watch};

/// Messages up to this length go together, in bytes.
const SHORT: usize = 64 << 10;

/// Writes a snapshot as a stream.
pub struct StreamWriter<W> {
    to: W,
    sum: Hasher,
    /// What is summed and not yet written.
    pending: Vec<u8>,
}

impl<W: Write> StreamWriter<W> {
    /// Begins it; the receiver can answer to that.
    pub fn begin(to: W, begin: &Begin) -> Result<StreamWriter<W>, SnapshotError> {
        let json = serde_json::to_vec(begin).unwrap_or_default();
        if json.len() > MAX_TEXT {
            return Err(SnapshotError::Unwritable {
                what: "its id is impossibly long".into(),
            });
        }
        let mut writer = StreamWriter {
            to,
            sum: Hasher::new(),
            pending: Vec::with_capacity(2 * SHORT),
        };
        writer.put(&MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        writer.put(&head(BEGIN, json.len()))?;
        writer.put(&json)?;
        writer.flush()?;
        Ok(writer)
    }

    /// Writes whole pages that start at this place of RAM. Some of them may wait for more.
    pub fn pages(&mut self, start: u64, bytes: &[u8]) -> Result<(), SnapshotError> {
        for (index, piece) in (0..).zip(bytes.chunks(MAX_PAGES)) {
            let at = start + index * MAX_PAGES as u64;
            self.put(&head(PAGES, 8 + piece.len()))?;
            self.put(&at.to_le_bytes())?;
            self.put(piece)?;
        }
        Ok(())
    }

    /// Writes a state file without the memory's records, and ends the stream.
    pub fn end(&mut self, state: &[u8]) -> Result<(), SnapshotError> {
        if state.len() > MAX_STATE {
            return Err(SnapshotError::Unwritable {
                what: format!("its state has {} bytes", state.len()),
            });
        }
        self.put(&head(STATE, state.len()))?;
        self.put(state)?;
        self.put(&head(END, 32))?;
        let sum = *self.sum.finalize().as_bytes();
        self.put(&sum)?;
        self.flush()
    }

    /// Where it is written to.
    pub fn to(&mut self) -> &mut W {
        &mut self.to
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.sum.update(bytes);
        if self.pending.len() + bytes.len() > SHORT {
            self.write_pending()?;
        }
        if bytes.len() > SHORT {
            return self.to.write_all(bytes).map_err(link("send"));
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    fn write_pending(&mut self) -> Result<(), SnapshotError> {
        let written = self.to.write_all(&self.pending);
        self.pending.clear();
        written.map_err(link("send"))
    }

    fn flush(&mut self) -> Result<(), SnapshotError> {
        self.write_pending()?;
        self.to.flush().map_err(link("send"))
    }
}

/// A snapshot that is in a directory, to be written as a stream.
pub struct KeptSnapshot {
    state: State,
    memory: MemoryFile,
}

impl KeptSnapshot {
    /// Opens it. What it builds on may be missing.
    pub fn open(directory: &Directory) -> Result<KeptSnapshot, SnapshotError> {
        let mut state = State::read(&directory.state())?;
        let memory = MemoryFile::open(&mut state, &directory.memory())?;
        Ok(KeptSnapshot { state, memory })
    }

    /// What its stream begins with.
    pub fn begin(&self) -> Begin {
        Begin::of(self.state.header())
    }

    /// Compares its checksums; damage is not sent. `watch` follows this and [`write`](Self::write).
    pub fn verify(&self, watch: &dyn Watch) -> Result<(), SnapshotError> {
        let sent: u64 = self.memory.ranges().iter().map(|range| range.len).sum();
        watch.expect(self.memory.summed() + sent);
        self.memory.verify_watched(watch)
    }

    /// Writes what follows the beginning.
    pub fn write(
        mut self,
        to: &mut StreamWriter<impl Write>,
        watch: &dyn Watch,
    ) -> Result<(), SnapshotError> {
        let mut buffer = Vec::with_capacity(MAX_PAGES);
        for range in self.memory.ranges() {
            let mut at = range.start;
            while at < range.end() {
                let len = (range.end() - at).min(MAX_PAGES as u64);
                buffer.resize(len as usize, 0);
                let read = self.memory.file().read_exact_at(&mut buffer, at);
                read.map_err(io("read", self.memory.path()))?;
                to.pages(at, &buffer)?;
                watch::step(watch, len)?;
                at += len;
            }
        }
        let header = self.state.header().clone();
        to.end(&Records::left_of(&mut self.state).encode(header)?)
    }
}
