//! The state file: a header that can be read alone, then records.
//!
//! ```text
//! 0   8  "SKERRYVM"
//! 8   4  format version, little-endian
//! 12  4  bytes of the header
//! 16  …  the header, JSON
//!    32  BLAKE3 of all of the above
//!     …  the records' bytes, one behind the other
//! ```

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::io;
use crate::{Header, Record, SnapshotError, Sum, open};

/// The version that is written.
pub const FORMAT: u32 = 1;
/// The oldest version that is read.
pub const OLDEST_FORMAT: u32 = 1;

const MAGIC: [u8; 8] = *b"SKERRYVM";
const FIXED: usize = 16;
const SUM: usize = 32;
/// Bounds what a hostile file can make us allocate.
const MAX_HEADER: u64 = 16 << 20;
const MAX_STATE: u64 = 256 << 20;
/// What is set aside before any of it has come.
const AHEAD: u64 = 1 << 20;

/// Records to be written.
#[derive(Default)]
pub struct Records {
    list: Vec<Record>,
    bytes: Vec<u8>,
    /// What could not be put.
    failed: Option<String>,
}

impl Records {
    /// Adds a record of bytes.
    pub fn put(&mut self, kind: &str, id: &str, version: u32, bytes: &[u8]) {
        self.list.push(Record {
            kind: kind.to_owned(),
            id: id.to_owned(),
            version,
            len: bytes.len() as u64,
            sum: Sum::of(bytes),
        });
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds a record of a value.
    pub fn put_value(&mut self, kind: &str, id: &str, version: u32, value: &impl Serialize) {
        match serde_json::to_vec(value) {
            Ok(bytes) => self.put(kind, id, version, &bytes),
            Err(e) => self.failed = Some(format!("{kind} `{id}` is not to be put in JSON: {e}")),
        }
    }

    /// Those of a state that nobody has taken yet, as they are.
    pub(crate) fn left_of(state: &mut State) -> Records {
        let mut records = Records::default();
        for record in state.header().records.clone() {
            if let Some((version, bytes)) = state.take(&record.kind, &record.id) {
                records.put(&record.kind, &record.id, version, bytes);
            }
        }
        records
    }

    /// Writes the state file of `header`, whose list of records is filled in here.
    pub fn write(self, path: &Path, header: Header) -> Result<(), SnapshotError> {
        let bytes = self.encode(header)?;
        let written = || -> std::io::Result<()> {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                // Registers may hold secrets, as memory does.
                .mode(0o600)
                .open(path)?;
            file.write_all(&bytes)?;
            file.sync_all()
        };
        written().map_err(io("write", path))
    }

    /// The bytes of the state file of `header`. An error if they could not be read again.
    pub fn encode(self, mut header: Header) -> Result<Vec<u8>, SnapshotError> {
        let unwritable = |what: String| Err(SnapshotError::Unwritable { what });
        if let Some(what) = self.failed {
            return unwritable(what);
        }
        header.records = self.list;
        let json = match serde_json::to_vec(&header) {
            Ok(json) => json,
            // A path that is no text, most likely.
            Err(e) => return unwritable(format!("its header is not to be put in JSON: {e}")),
        };
        for (what, len, most) in [
            ("header", json.len() as u64, MAX_HEADER),
            ("state", self.bytes.len() as u64, MAX_STATE),
        ] {
            if len > most {
                return unwritable(format!("its {what} has {len} bytes, and {most} are read"));
            }
        }
        let mut head = Vec::with_capacity(FIXED + json.len() + SUM);
        head.extend(MAGIC);
        head.extend(FORMAT.to_le_bytes());
        head.extend((json.len() as u32).to_le_bytes());
        head.extend(json);
        head.extend(Sum::of(&head).0);
        head.extend(self.bytes);
        Ok(head)
    }
}

/// A state file that was read and found whole.
pub struct State {
    path: PathBuf,
    header: Header,
    bytes: Vec<u8>,
    /// Records that nobody has taken yet, and where their bytes are.
    left: VecDeque<(usize, Range<usize>)>,
}

impl State {
    /// Reads the header alone.
    pub fn read_header(path: &Path) -> Result<Header, SnapshotError> {
        State::describe(path).map(|(_, header)| header)
    }

    /// Reads the format version and the header.
    pub fn describe(path: &Path) -> Result<(u32, Header), SnapshotError> {
        read_header(&mut open_state(path)?, path)
    }

    /// Reads the file and checks every sum in it.
    pub fn read(path: &Path) -> Result<State, SnapshotError> {
        let mut file = open_state(path)?;
        State::from_reader(&mut file, path)
    }

    /// Reads it from anywhere; messages call it `path`.
    pub fn from_reader(file: &mut impl Read, path: &Path) -> Result<State, SnapshotError> {
        let (_, header) = read_header(file, path)?;
        let corrupt = |what: String| SnapshotError::Corrupt {
            path: path.to_owned(),
            what,
        };
        let wanted = header.records.iter().try_fold(0u64, |sum, record| {
            sum.checked_add(record.len).filter(|sum| *sum <= MAX_STATE)
        });
        let wanted = wanted.ok_or_else(|| corrupt("its records are impossibly long".into()))?;
        let mut bytes = Vec::with_capacity(wanted.min(AHEAD) as usize);
        // One byte more tells whether it ends where it should.
        let read = file.take(wanted + 1).read_to_end(&mut bytes);
        read.map_err(io("read", path))?;
        if bytes.len() as u64 != wanted {
            let what = if (bytes.len() as u64) < wanted {
                format!("it ends {} bytes early", wanted - bytes.len() as u64)
            } else {
                "something follows its last record".into()
            };
            return Err(corrupt(what));
        }
        let mut left = VecDeque::with_capacity(header.records.len());
        let mut names = HashSet::with_capacity(header.records.len());
        let mut at = 0;
        for (index, record) in header.records.iter().enumerate() {
            let range = at..at + record.len as usize;
            at = range.end;
            if !names.insert((&record.kind, &record.id)) {
                return Err(corrupt(format!(
                    "it has {} `{}` twice",
                    record.kind, record.id
                )));
            }
            if Sum::of(&bytes[range.clone()]) != record.sum {
                return Err(corrupt(format!(
                    "the checksum of {} `{}` is wrong",
                    record.kind, record.id
                )));
            }
            left.push_back((index, range));
        }
        Ok(State {
            path: path.to_owned(),
            header,
            bytes,
            left,
        })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Takes a record's bytes, if it is there, with their version.
    pub fn take(&mut self, kind: &str, id: &str) -> Option<(u32, &[u8])> {
        let records = &self.header.records;
        let matches = |(index, _): &(usize, Range<usize>)| {
            let record = &records[*index];
            record.kind == kind && record.id == id
        };
        let at = self.left.iter().position(matches)?;
        let (index, range) = self.left.remove(at)?;
        Some((records[index].version, &self.bytes[range]))
    }

    /// Takes the bytes of a record that may be there, in the version that this program knows.
    pub fn take_bytes(
        &mut self,
        kind: &'static str,
        id: &str,
        version: u32,
    ) -> Result<Option<&[u8]>, SnapshotError> {
        let path = self.path.clone();
        match self.take(kind, id) {
            Some((found, _)) if found != version => Err(of_version(path, kind, id, found, version)),
            found => Ok(found.map(|(_, bytes)| bytes)),
        }
    }

    /// Takes a record that must be there, in the version that this program knows.
    pub fn take_value<T: DeserializeOwned>(
        &mut self,
        kind: &'static str,
        id: &str,
        version: u32,
    ) -> Result<T, SnapshotError> {
        let path = self.path.clone();
        let corrupt = |what: String| SnapshotError::Corrupt { path, what };
        match self.take(kind, id) {
            None => Err(corrupt(format!("it has no {kind} `{id}`"))),
            Some((found, _)) if found != version => {
                Err(of_version(self.path.clone(), kind, id, found, version))
            }
            Some((_, bytes)) => serde_json::from_slice(bytes)
                .map_err(|e| corrupt(format!("its {kind} `{id}` cannot be read: {e}"))),
        }
    }

    /// Fails if there is a record that nobody took.
    pub fn finish(&self) -> Result<(), SnapshotError> {
        match self.left.front() {
            None => Ok(()),
            Some((index, _)) => {
                let record = &self.header.records[*index];
                Err(SnapshotError::Leftover {
                    path: self.path.clone(),
                    kind: record.kind.clone(),
                    id: record.id.clone(),
                })
            }
        }
    }
}

fn of_version(path: PathBuf, kind: &str, id: &str, found: u32, known: u32) -> SnapshotError {
    SnapshotError::Corrupt {
        path,
        what: format!("its {kind} `{id}` is of version {found}, and this program knows {known}"),
    }
}

fn open_state(path: &Path) -> Result<File, SnapshotError> {
    let foreign = |what: &str| SnapshotError::Foreign {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    match open::regular(path) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(foreign("it is no regular file")),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(foreign("there is no such file"))
        }
        Err(e) => Err(io("open", path)(e)),
    }
}

/// The format version, and the header.
fn read_header(file: &mut impl Read, path: &Path) -> Result<(u32, Header), SnapshotError> {
    let mut fixed = [0; FIXED];
    let foreign = |what: &str| SnapshotError::Foreign {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    let corrupt = |what: String| SnapshotError::Corrupt {
        path: path.to_owned(),
        what,
    };
    file.read_exact(&mut fixed).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => foreign("it is too short for a header"),
        _ => io("read", path)(e),
    })?;
    if fixed[..8] != MAGIC {
        return Err(foreign("it does not begin as one"));
    }
    let word =
        |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let found = word(8);
    if !(OLDEST_FORMAT..=FORMAT).contains(&found) {
        return Err(SnapshotError::Version {
            path: path.to_owned(),
            found,
            oldest: OLDEST_FORMAT,
            newest: FORMAT,
            advice: if found > FORMAT {
                "it is newer"
            } else {
                "it is older; the versions in between restore it and take it anew"
            },
        });
    }
    let len = u64::from(word(12));
    if len > MAX_HEADER {
        return Err(corrupt(format!(
            "its header of {len} bytes is impossibly long"
        )));
    }
    let mut rest = Vec::with_capacity((len + SUM as u64).min(AHEAD) as usize);
    let read = file.take(len + SUM as u64).read_to_end(&mut rest);
    read.map_err(io("read", path))?;
    if rest.len() as u64 != len + SUM as u64 {
        return Err(corrupt("it ends within its header".into()));
    }
    let (json, sum) = rest.split_at(len as usize);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&fixed).update(json);
    if hasher.finalize().as_bytes() != sum {
        return Err(corrupt("the checksum of its header is wrong".into()));
    }
    let header = serde_json::from_slice(json)
        .map_err(|e| corrupt(format!("its header cannot be read: {e}")))?;
    Ok((found, header))
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
