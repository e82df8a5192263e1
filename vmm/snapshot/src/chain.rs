//! A snapshot with what it builds on: a full one, then diffs.

use std::path::{Path, PathBuf};

use crate::{Directory, Header, MemoryFile, MemoryKind, Parent, SnapshotError, State, Watch};

/// Diffs on top of each other that are followed.
pub const MAX_DEPTH: usize = 64;

/// An opened snapshot.
pub struct Chain {
    /// Its state, without the records of its memory.
    pub state: State,
    /// Memory files: the full one, then diffs, each on top of those before it.
    pub memory: Vec<MemoryFile>,
    /// Their headers, in the same order.
    pub headers: Vec<Header>,
}

impl Chain {
    /// Opens a snapshot and all that it builds on. Checksums of state are compared; those of memory
    /// only by [`verify`](Self::verify).
    pub fn open(directory: &Directory) -> Result<Chain, SnapshotError> {
        let mut state = State::read(&directory.state())?;
        let mut memory = vec![MemoryFile::open(&mut state, &directory.memory())?];
        let mut above = directory.clone();
        let mut header = state.header().clone();
        let mut headers = Vec::new();
        let size = header.memory.size;
        while let Some((parent, path)) = parent_of(&above, &header)? {
            let fail = |what: String| SnapshotError::Parent {
                path: above.path().to_owned(),
                parent: path.clone(),
                what,
            };
            if memory.len() > MAX_DEPTH {
                return Err(fail(format!(
                    "and that chain has more than {MAX_DEPTH} diffs: put what `skerry snapshot merge` makes of one of them in its place"
                )));
            }
            headers.push(header);
            if headers.iter().any(|above| above.id == parent.id) {
                return Err(fail("which builds on it in turn".into()));
            }
            let below = Directory::new(path.clone());
            let mut state = State::read(&below.state()).map_err(|e| match e {
                SnapshotError::Foreign { what, .. } => fail(format!("which is not there: {what}")),
                e => e,
            })?;
            if state.header().id != parent.id {
                return Err(fail("and another snapshot is there now".into()));
            }
            if state.header().memory.size != size {
                return Err(fail("whose memory has another size".into()));
            }
            memory.push(MemoryFile::open(&mut state, &below.memory())?);
            header = state.header().clone();
            above = below;
        }
        headers.push(header);
        headers.reverse();
        memory.reverse();
        Ok(Chain {
            state,
            memory,
            headers,
        })
    }

    /// Bytes of memory that checksums are of.
    pub fn summed(&self) -> u64 {
        self.memory.iter().map(MemoryFile::summed).sum()
    }

    /// Reads all memory files and compares their checksums.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        self.verify_watched(&())
    }

    /// As [`verify`](Self::verify), followed by `watch`: [`summed`](Self::summed) bytes.
    pub fn verify_watched(&self, watch: &dyn Watch) -> Result<(), SnapshotError> {
        self.memory
            .iter()
            .try_for_each(|memory| memory.verify_watched(watch))
    }
}

/// The snapshot below, and where it is. None below a full one.
fn parent_of(
    directory: &Directory,
    header: &Header,
) -> Result<Option<(Parent, PathBuf)>, SnapshotError> {
    match (header.memory.kind, &header.parent) {
        (MemoryKind::Full, _) => Ok(None),
        (MemoryKind::Diff, Some(parent)) => {
            let path = directory.path().join(&parent.path);
            Ok(Some((parent.clone(), path)))
        }
        (MemoryKind::Diff, None) => Err(SnapshotError::Corrupt {
            path: directory.state(),
            what: "it is a diff, and does not say of which snapshot".into(),
        }),
    }
}

/// How a diff at `diff` names its parent at `parent`: relative if they are neighbours, so that they can
/// be moved together.
pub(crate) fn parent_path(diff: &Path, parent: &Path) -> PathBuf {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (diff, parent) = (absolute(diff), absolute(parent));
    match parent.file_name() {
        Some(name) if diff.parent() == parent.parent() => Path::new("..").join(name),
        _ => parent,
    }
}

impl Parent {
    /// The parent `id` at `path` of a diff at `diff`.
    pub fn new(id: &str, path: &Path, diff: &Path) -> Parent {
        Parent {
            id: id.to_owned(),
            path: parent_path(diff, path),
        }
    }
}
