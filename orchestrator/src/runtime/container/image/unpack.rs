//! One layer of an image, from its archive into a directory that an overlay can have as a lower one.
//!
//! An archive is hostile: names are resolved inside the directory (`rooted.rs`), what it may unpack to
//! is bounded, and its digests are compared before anybody uses the result.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType, PaxExtensions};

use super::error::ImageError;
use super::layout::{Layer, Packing, hex};
use super::rooted::{Attributes, Rooted, names, own, times};

/// How long a name, a link or a set of extended records may be, in bytes.
const RECORDS: u64 = 1 << 20;
/// The largest history that a zstd stream may refer to, as a power of two.
const WINDOW: u32 = 27;
/// What marks a file as deleted.
const WHITEOUT: &[u8] = b".wh.";
/// What marks a directory whose contents of below are deleted.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// How much a layer may unpack to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the archive, unpacked.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes: 32 << 30,
            entries: 4_000_000,
        }
    }
}

/// Unpacks a layer into an empty directory. `below` are the layers under it, the topmost first: a
/// directory that the archive only implies gets its attributes from there.
pub fn unpack(
    layer: &Layer,
    blob: impl Read,
    into: &Path,
    below: &[PathBuf],
    limits: Limits,
) -> Result<(), ImageError> {
    let over = Rc::new(Cell::new(false));
    let failed = |source: io::Error| match over.get() {
        true => ImageError::TooMuch {
            layer: layer.blob.clone(),
            what: "bytes",
            limit: limits.bytes,
        },
        false => ImageError::Archive {
            layer: layer.blob.clone(),
            source,
        },
    };
    let packed = Summed::new(blob, u64::MAX, Rc::new(Cell::new(false)));
    let mut stream = Summed::new(
        Unpacked::new(layer.packing, packed).map_err(failed)?,
        limits.bytes,
        over.clone(),
    );
    let below = below.iter().map(|path| Rooted::open(path));
    let below = below
        .collect::<io::Result<Vec<_>>>()
        .map_err(ImageError::system("open a layer below", into))?;
    let mut tree = Tree {
        layer,
        root: Rooted::open(into).map_err(ImageError::system("open", into))?,
        below,
        times: Vec::new(),
    };
    let root = Attributes {
        uid: 0,
        gid: 0,
        mode: 0o755,
    };
    let root = tree
        .below
        .first()
        .and_then(|below| below.attributes(Path::new("")))
        .unwrap_or(root);
    tree.root
        .set_root(root)
        .map_err(ImageError::system("change", into))?;
    tree.fill(&mut stream, limits, &failed)?;
    // What follows the archive's end counts for its digest.
    io::copy(&mut stream, &mut io::sink()).map_err(failed)?;
    let (unpacked, diff_id) = stream.end();
    let mut packed = unpacked.into_inner();
    io::copy(&mut packed, &mut io::sink()).map_err(failed)?;
    let (_, blob) = packed.end();
    for (expected, found, what) in [
        (&layer.blob, blob, "its sha256 is another"),
        (
            &layer.diff_id,
            diff_id,
            "unpacked, its sha256 is not what the configuration says",
        ),
    ] {
        if *expected != found {
            return Err(ImageError::Digest {
                digest: expected.clone(),
                why: what.into(),
            });
        }
    }
    Ok(())
}

/// A blob's archive, as far as the limits go.
pub fn archive<'a>(
    packing: Packing,
    blob: impl Read + 'a,
    limits: Limits,
) -> io::Result<Box<dyn Read + 'a>> {
    let unpacked = Unpacked::new(packing, blob)?;
    let over = Rc::new(Cell::new(false));
    Ok(Box::new(Summed::new(unpacked, limits.bytes, over)))
}

/// A stream of bytes that are counted and summed.
struct Summed<R> {
    inner: R,
    sum: Sha256,
    left: u64,
    over: Rc<Cell<bool>>,
}

impl<R: Read> Summed<R> {
    fn new(inner: R, left: u64, over: Rc<Cell<bool>>) -> Summed<R> {
        Summed {
            inner,
            sum: Sha256::new(),
            left,
            over,
        }
    }

    fn end(self) -> (R, String) {
        (self.inner, hex(&self.sum.finalize()))
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => {
                self.over.set(true);
                return Err(io::Error::other("there is more than there may be"));
            }
        }
        self.sum.update(&buffer[..n]);
        Ok(n)
    }
}

/// A layer's blob as the archive in it.
enum Unpacked<R: Read> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Unpacked<R> {
    fn new(packing: Packing, blob: R) -> io::Result<Unpacked<R>> {
        let blob = BufReader::with_capacity(64 << 10, blob);
        Ok(match packing {
            Packing::Plain => Unpacked::Plain(blob.into_inner()),
            // The decoder reads the buffer itself.
            Packing::Gzip => Unpacked::Gzip(Box::new(MultiGzDecoder::new(blob))),
            Packing::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(blob)?;
                decoder.window_log_max(WINDOW)?;
                Unpacked::Zstd(decoder)
            }
        })
    }

    /// The blob's stream. What was buffered of it is summed already.
    fn into_inner(self) -> R {
        match self {
            Unpacked::Plain(blob) => blob,
            Unpacked::Gzip(decoder) => decoder.into_inner().into_inner(),
            Unpacked::Zstd(decoder) => decoder.finish().into_inner(),
        }
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Unpacked::Plain(blob) => blob.read(buffer),
            Unpacked::Gzip(decoder) => decoder.read(buffer),
            Unpacked::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// What records before an entry say of it.
#[derive(Debug, Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    size: Option<u64>,
    mtime: Option<u64>,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// The directory that is being filled.
struct Tree<'a> {
    layer: &'a Layer,
    root: Rooted,
    below: Vec<Rooted>,
    /// When directories were changed last: filling them changes that.
    times: Vec<(PathBuf, u64)>,
}

type Stream<'s, R> = tar::Entry<'s, R>;

impl Tree<'_> {
    fn fill(
        &mut self,
        stream: &mut impl Read,
        limits: Limits,
        failed: &dyn Fn(io::Error) -> ImageError,
    ) -> Result<(), ImageError> {
        // The library would read names and records of any length into memory.
        let mut archive = Archive::new(stream);
        let entries = archive.entries().map_err(failed)?.raw(true);
        let mut said = Said::default();
        let mut count = 0;
        for entry in entries {
            let mut entry = entry.map_err(failed)?;
            count += 1;
            if count > limits.entries {
                return Err(ImageError::TooMuch {
                    layer: self.layer.blob.clone(),
                    what: "entries",
                    limit: limits.entries,
                });
            }
            match entry.header().entry_type() {
                EntryType::GNULongName => said.path = Some(self.name(&mut entry, failed)?),
                EntryType::GNULongLink => said.link = Some(self.name(&mut entry, failed)?),
                EntryType::XHeader => {
                    let text = self.records(&mut entry, failed)?;
                    self.note(&mut said, &text)?;
                }
                // Comments of the whole archive.
                EntryType::XGlobalHeader => {}
                _ => self.entry(entry, std::mem::take(&mut said), failed)?,
            }
        }
        // The deepest first does not matter: setting a time changes no directory above.
        for (path, mtime) in &self.times {
            // A later entry may have replaced the directory.
            let _ = self.root.set_directory_time(path, *mtime);
        }
        Ok(())
    }

    fn records<R: Read>(
        &self,
        entry: &mut Stream<'_, R>,
        failed: &dyn Fn(io::Error) -> ImageError,
    ) -> Result<Vec<u8>, ImageError> {
        let mut text = Vec::new();
        entry
            .take(RECORDS + 1)
            .read_to_end(&mut text)
            .map_err(failed)?;
        match text.len() as u64 > RECORDS {
            true => Err(ImageError::TooMuch {
                layer: self.layer.blob.clone(),
                what: "bytes in the records of one entry",
                limit: RECORDS,
            }),
            false => Ok(text),
        }
    }

    fn name<R: Read>(
        &self,
        entry: &mut Stream<'_, R>,
        failed: &dyn Fn(io::Error) -> ImageError,
    ) -> Result<Vec<u8>, ImageError> {
        let mut name = self.records(entry, failed)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn note(&self, said: &mut Said, text: &[u8]) -> Result<(), ImageError> {
        let wrong = |why: &str| self.refusal(b"(extended records)", why.into());
        for record in PaxExtensions::new(text) {
            let record = record.map_err(|_| wrong("are malformed"))?;
            let key = record
                .key()
                .map_err(|_| wrong("have a name that is no text"))?;
            let value = record.value_bytes();
            let number = || {
                let text = std::str::from_utf8(value).ok();
                let whole = text.and_then(|text| text.split('.').next());
                whole.and_then(|whole| whole.parse::<u64>().ok())
            };
            match key {
                "path" => said.path = Some(value.to_vec()),
                "linkpath" => said.link = Some(value.to_vec()),
                "uid" => said.uid = number(),
                "gid" => said.gid = number(),
                "size" => said.size = number(),
                "mtime" => said.mtime = number(),
                key if key.starts_with("GNU.sparse.") => {
                    return Err(wrong("are of a sparse file: pack the layer without holes"));
                }
                key => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.")
                        && kept_xattr(name)
                    {
                        said.xattrs.push((name.into(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    fn refusal(&self, path: &[u8], why: String) -> ImageError {
        let shown = path.len().min(200);
        ImageError::Entry {
            layer: self.layer.blob.clone(),
            entry: String::from_utf8_lossy(&path[..shown]).into_owned(),
            why,
        }
    }

    fn entry<R: Read>(
        &mut self,
        mut entry: Stream<'_, R>,
        said: Said,
        failed: &dyn Fn(io::Error) -> ImageError,
    ) -> Result<(), ImageError> {
        let raw = said
            .path
            .clone()
            .unwrap_or_else(|| entry.path_bytes().into_owned());
        let refuse = |why: String| self.refusal(&raw, why);
        let cannot = |what: &str| {
            let what = what.to_string();
            let layer = self.layer.blob.clone();
            let entry = String::from_utf8_lossy(&raw[..raw.len().min(200)]).into_owned();
            move |e: io::Error| ImageError::Entry {
                layer,
                entry,
                why: format!("cannot be {what}: {e}"),
            }
        };
        let header = entry.header().clone();
        let size = header.entry_size().map_err(failed)?;
        if said.size.is_some_and(|said| said != size) {
            return Err(refuse(
                "has two sizes: pack the layer with GNU headers".into(),
            ));
        }
        // Some tools leave fields empty that are zero.
        let blank = |field: &[u8]| field.iter().all(|byte| matches!(byte, 0 | b' '));
        let id = |said: Option<u64>, found: io::Result<u64>, field: &[u8]| {
            let found = if blank(field) { Some(0) } else { found.ok() };
            let id = said.or(found).and_then(|id| u32::try_from(id).ok());
            id.filter(|id| *id != u32::MAX)
        };
        let fields = header.as_old();
        let uid = id(said.uid, header.uid(), &fields.uid);
        let gid = id(said.gid, header.gid(), &fields.gid);
        let (Some(uid), Some(gid)) = (uid, gid) else {
            return Err(refuse("has no valid owner".into()));
        };
        let attributes = Attributes {
            uid,
            gid,
            mode: header.mode().map_err(failed)? & 0o7777,
        };
        let mtime = said.mtime.unwrap_or_else(|| header.mtime().unwrap_or(0));
        let path = names(&raw).ok_or_else(|| {
            refuse("leads out of the layer or is no path: nothing of it is used".into())
        })?;
        let kind = match header.entry_type() {
            EntryType::Regular if raw.ends_with(b"/") => EntryType::Directory,
            kind => kind,
        };
        let Some(name) = path.file_name() else {
            // The root itself.
            if kind != EntryType::Directory {
                return Err(refuse("is the root, but no directory".into()));
            }
            self.root.set_root(attributes).map_err(cannot("changed"))?;
            self.times.push((path, mtime));
            return Ok(());
        };
        if kind.is_character_special() || kind.is_block_special() {
            // A container has its own /dev. Elsewhere a device would be a way out of it.
            return match path.starts_with("dev") {
                true => Ok(()),
                false => Err(refuse("is a device, which containers are not given".into())),
            };
        }
        let below = &self.below;
        let mut inherit = |way: &Path| below.iter().find_map(|below| below.attributes(way));
        let place = self
            .root
            .place(&path, &mut inherit)
            .map_err(cannot("made"))?;
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(&path, name.as_bytes(), &mut inherit, &cannot);
        }
        let link = || {
            let link = said.link.clone();
            link.or_else(|| entry.link_name_bytes().map(|link| link.into_owned()))
        };
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                let mut file = place.file().map_err(cannot("made"))?;
                let copied = io::copy(&mut entry, &mut file).map_err(failed)?;
                if copied != size {
                    return Err(refuse(format!("ends after {copied} of {size} bytes")));
                }
                own(file.as_fd(), attributes).map_err(cannot("given to its owner"))?;
                set_xattrs(file.as_fd(), &said.xattrs).map_err(cannot("given its attributes"))?;
                rustix::fs::futimens(&file, &times(mtime))
                    .map_err(|e| cannot("given its time")(e.into()))?;
            }
            EntryType::Directory => {
                let hides = place.is_whiteout().map_err(cannot("looked at"))?;
                let made = place.directory(attributes).map_err(cannot("made"))?;
                set_xattrs(made.as_fd(), &said.xattrs).map_err(cannot("given its attributes"))?;
                if hides {
                    opaque(made.as_fd()).map_err(cannot("marked"))?;
                }
                self.times.push((path, mtime));
            }
            EntryType::Symlink => {
                let target = link().filter(|target| !target.is_empty() && !target.contains(&0));
                let target = target.ok_or_else(|| refuse("is a link to nothing".into()))?;
                let target = OsStr::from_bytes(&target);
                place.symlink(target, attributes).map_err(cannot("made"))?;
            }
            EntryType::Link => {
                let target = link().and_then(|target| names(&target));
                let target = target.ok_or_else(|| {
                    refuse("is a link that leads out of the layer: nothing of it is used".into())
                })?;
                let shown = target.display().to_string();
                let target = self.root.existing(&target).map_err(|e| {
                    refuse(format!(
                        "is a link to {shown:?}, which the layer has not: {e}"
                    ))
                })?;
                if target.is_whiteout().map_err(cannot("looked at"))? {
                    return Err(refuse(format!("is a link to {shown:?}, which is deleted")));
                }
                place.link(&target).map_err(cannot("linked"))?;
            }
            EntryType::Fifo => place.fifo(attributes).map_err(cannot("made"))?,
            EntryType::GNUSparse => {
                return Err(refuse("is sparse: pack the layer without holes".into()));
            }
            other => {
                let kind = char::from(other.as_byte()).escape_default();
                return Err(refuse(format!("is of unknown kind '{kind}'")));
            }
        }
        Ok(())
    }

    /// What a layer says is deleted of those below.
    fn whiteout<F: FnOnce(io::Error) -> ImageError>(
        &self,
        path: &Path,
        name: &[u8],
        inherit: &mut dyn FnMut(&Path) -> Option<Attributes>,
        cannot: &dyn Fn(&str) -> F,
    ) -> Result<(), ImageError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if name == OPAQUE {
            let directory = self.root.directory(parent).map_err(cannot("opened"))?;
            return opaque(directory.as_fd()).map_err(cannot("marked"));
        }
        if name.starts_with(b".wh..wh.") {
            // The bookkeeping of aufs.
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(self.refusal(name, "is a whiteout of no name".into()));
        }
        let hidden = parent.join(OsStr::from_bytes(hidden));
        let place = self.root.place(&hidden, inherit).map_err(cannot("made"))?;
        if place.is_directory().map_err(cannot("looked at"))? {
            let directory = self.root.directory(&hidden).map_err(cannot("opened"))?;
            return opaque(directory.as_fd()).map_err(cannot("marked"));
        }
        // What this layer has itself stays.
        match place.is_taken().map_err(cannot("looked at"))? {
            true => Ok(()),
            false => place.whiteout().map_err(cannot("marked as deleted")),
        }
    }
}

/// Whether an extended attribute of an archive is set. An overlay's own would change what is seen.
fn kept_xattr(name: &str) -> bool {
    match name {
        "security.capability" | "system.posix_acl_access" | "system.posix_acl_default" => true,
        name => name.starts_with("user.") && !name.starts_with("user.overlay."),
    }
}

fn set_xattrs(file: BorrowedFd<'_>, xattrs: &[(String, Vec<u8>)]) -> io::Result<()> {
    for (name, value) in xattrs {
        match rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            // Not every file system has them.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Marks a directory of an overlay's layer: of those below nothing is seen in it.
fn opaque(directory: BorrowedFd<'_>) -> io::Result<()> {
    let name = "trusted.overlay.opaque";
    Ok(rustix::fs::fsetxattr(
        directory,
        name,
        b"y",
        XattrFlags::empty(),
    )?)
}

#[cfg(test)]
#[path = "unpack_test.rs"]
mod tests;
