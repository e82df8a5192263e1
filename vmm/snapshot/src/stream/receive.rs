//! A stream as it is read, and what becomes of it on disk.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blake3::Hasher;

use super::{
    BEGIN, Begin, END, HEAD, MAGIC, MAX_PAGES, MAX_STATE, MAX_TEXT, PAGE, PAGES, STATE, VERSION,
    link, malformed, of_head,
};
use crate::error::io;
use crate::{
    Directory, MemoryFile, MemoryKind, Parent, Partial, Range, Records, SnapshotError, State,
    Watch, coalesce, memory, watch,
};

/// Bytes of STATE that are set aside before they have come.
const AHEAD: usize = 1 << 20;
/// As many ranges are noted before they are joined first.
const MANY: usize = 4096;

/// A stream that comes in.
pub struct Incoming<R> {
    from: R,
    sum: Hasher,
    begin: Begin,
}

impl<R: Read> Incoming<R> {
    /// Reads its beginning.
    pub fn open(from: R) -> Result<Incoming<R>, SnapshotError> {
        let mut incoming = Incoming {
            from,
            sum: Hasher::new(),
            begin: Begin {
                id: String::new(),
                memory: 0,
                parent: None,
            },
        };
        let mut fixed = [0; 12];
        incoming.fill(&mut fixed)?;
        if fixed[..8] != MAGIC {
            return Err(malformed("it does not begin as one"));
        }
        let version = u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
        if version != VERSION {
            return Err(SnapshotError::StreamVersion {
                found: version,
                known: VERSION,
            });
        }
        let (BEGIN, len @ 0..=MAX_TEXT) = incoming.head()? else {
            return Err(malformed("no beginning"));
        };
        let mut json = vec![0; len];
        incoming.fill(&mut json)?;
        let begin: Begin = serde_json::from_slice(&json)
            .map_err(|_| malformed("a beginning that cannot be read"))?;
        if begin.memory == 0 || !begin.memory.is_multiple_of(PAGE as u64) {
            return Err(malformed("memory that is not whole pages"));
        }
        incoming.begin = begin;
        Ok(incoming)
    }

    /// What it is of.
    pub fn begin(&self) -> &Begin {
        &self.begin
    }

    /// Where it comes from.
    pub fn source(&mut self) -> &mut R {
        &mut self.from
    }

    /// Reads all of it. Only what is whole and was not altered comes to an end here.
    pub fn receive(&mut self, into: &mut Arriving, watch: &dyn Watch) -> Result<(), SnapshotError> {
        let mut buffer = Vec::new();
        loop {
            match self.head()? {
                (PAGES, len) => {
                    let len = len.wrapping_sub(8);
                    if !(PAGE..=MAX_PAGES).contains(&len) || !len.is_multiple_of(PAGE) {
                        return Err(malformed("pages that are not whole, or too many"));
                    }
                    let mut start = [0; 8];
                    self.fill(&mut start)?;
                    buffer.resize(len, 0);
                    self.fill(&mut buffer)?;
                    into.pages(u64::from_le_bytes(start), &buffer)?;
                    watch::step(watch, len as u64)?;
                }
                (STATE, len @ 0..=MAX_STATE) => {
                    let mut state = Vec::with_capacity(len.min(AHEAD));
                    while state.len() < len {
                        // It grows by what comes, not by what is said.
                        let at = state.len();
                        state.resize(len.min(at + AHEAD), 0);
                        self.fill(&mut state[at..])?;
                    }
                    into.state(&state)?;
                    break;
                }
                _ => return Err(malformed("neither pages nor state")),
            }
        }
        if self.head()? != (END, 32) {
            return Err(malformed("no end behind its state"));
        }
        let wanted = self.sum.finalize();
        let mut found = [0; 32];
        self.fill(&mut found)?;
        match wanted == found {
            true => Ok(()),
            false => Err(malformed("its checksum is wrong")),
        }
    }

    /// Fails if something follows its end.
    pub fn finish(&mut self) -> Result<(), SnapshotError> {
        match self.from.read_exact(&mut [0]) {
            Ok(()) => Err(malformed("something follows its end")),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(()),
            Err(e) => Err(link("receive")(e)),
        }
    }

    fn head(&mut self) -> Result<(u8, usize), SnapshotError> {
        let mut fixed = [0; HEAD];
        self.fill(&mut fixed)?;
        Ok(of_head(fixed))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.from.read_exact(bytes).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => malformed("it ends early"),
            _ => link("receive")(e),
        })?;
        self.sum.update(bytes);
        Ok(())
    }
}

/// A snapshot that is being made of a stream. Dropped before [`complete`](Self::complete), it leaves nothing.
pub struct Arriving {
    partial: Partial,
    memory: File,
    path: PathBuf,
    begin: Begin,
    parent: Option<Parent>,
    ranges: Vec<Range>,
    /// Ranges are joined when there are so many.
    many: usize,
    state: Option<State>,
}

impl Arriving {
    /// Makes room for it at `target`. A diff needs the snapshot that it builds on, `parent`; to any other that
    /// means nothing.
    pub fn make(
        begin: &Begin,
        target: &Path,
        parent: Option<&Path>,
    ) -> Result<Arriving, SnapshotError> {
        let parent = match (&begin.parent, parent) {
            (None, _) => None,
            (Some(id), None) => {
                return Err(SnapshotError::NoParent { id: id.clone() });
            }
            (Some(id), Some(path)) => Some(found_parent(id, path, begin.memory, target)?),
        };
        let partial = Partial::create(target)?;
        let memory = partial.create_memory(begin.memory)?;
        Ok(Arriving {
            path: partial.directory().memory(),
            partial,
            memory,
            begin: begin.clone(),
            parent,
            ranges: Vec::new(),
            many: MANY,
            state: None,
        })
    }

    fn pages(&mut self, start: u64, bytes: &[u8]) -> Result<(), SnapshotError> {
        let len = bytes.len() as u64;
        let end = start.checked_add(len);
        if !start.is_multiple_of(PAGE as u64) || end.is_none_or(|end| end > self.begin.memory) {
            return Err(malformed("pages beyond its memory, or between two"));
        }
        let written = self.memory.write_all_at(bytes, start);
        written.map_err(io("write", &self.path))?;
        match self.ranges.last_mut() {
            Some(last) if last.end() == start => last.len += len,
            _ => self.ranges.push(Range { start, len }),
        }
        if self.ranges.len() >= self.many {
            self.ranges = coalesce(std::mem::take(&mut self.ranges));
            self.many = MANY.max(2 * self.ranges.len());
        }
        Ok(())
    }

    fn state(&mut self, mut bytes: &[u8]) -> Result<(), SnapshotError> {
        let state = State::from_reader(&mut bytes, Path::new("the stream's state"))?;
        let header = state.header();
        let is_diff = header.memory.kind == MemoryKind::Diff;
        if Begin::of(header) != self.begin || is_diff != self.begin.parent.is_some() {
            return Err(malformed("the state of another snapshot"));
        }
        if header.records.iter().any(memory::is_record) {
            return Err(malformed("records of the memory, which are the receiver's"));
        }
        self.state = Some(state);
        Ok(())
    }

    /// Makes it durable and gives it its name, once all of it has been received; its id.
    pub fn complete(self) -> Result<String, SnapshotError> {
        let Some(mut state) = self.state else {
            return Err(malformed("it ends early"));
        };
        let mut header = state.header().clone();
        let mut records = Records::left_of(&mut state);
        let ranges = coalesce(self.ranges);
        MemoryFile::record(&mut records, &self.path, &self.memory, &ranges)?;
        header.memory.data = ranges.iter().map(|range| range.len).sum();
        header.parent = self.parent;
        self.partial.complete(records, header)?;
        Ok(self.begin.id)
    }
}

/// The parent `id`, which has to be at `path`, of a diff at `target`.
fn found_parent(
    id: &str,
    path: &Path,
    memory: u64,
    target: &Path,
) -> Result<Parent, SnapshotError> {
    let fail = |what: String| SnapshotError::Parent {
        path: target.to_owned(),
        parent: path.to_owned(),
        what,
    };
    let header = Directory::new(path).header()?;
    if header.id != id {
        let found = &header.id;
        return Err(fail(format!(
            "which is the snapshot {found}, not {id}: give the directory of that one"
        )));
    }
    if header.memory.size != memory {
        return Err(fail("whose memory has another size".into()));
    }
    Ok(Parent::new(id, path, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_ranges_take_little_room() {
        const PAGES: u64 = 1024;
        let folder = tempfile::TempDir::new().unwrap();
        let begin = Begin {
            id: "i".into(),
            memory: PAGES * PAGE as u64,
            parent: None,
        };
        let mut arriving = Arriving::make(&begin, &folder.path().join("snap"), None).unwrap();
        for round in 0..20 {
            for at in (0..PAGES).step_by(2) {
                let start = (at + round % 2) * PAGE as u64;
                arriving.pages(start, &[round as u8; PAGE]).unwrap();
            }
        }
        assert!(arriving.ranges.len() < MANY);
        assert_eq!(coalesce(std::mem::take(&mut arriving.ranges)).len(), 1);
    }
}
