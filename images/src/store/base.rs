//! Disk images in one piece: files that VMs' own layers lie on, and exports.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::chunk::Packer;
use super::error::system;
use super::list::{CHUNKS, Content, Entry};
use super::medium::Output;
use super::packs::{Pack, Packs, data_path};
use super::read::wrong_size;
use super::{Hash, Kind, PATIENCE, Store, StoreError};
use crate::chain::live::Progress;
use crate::io::Buffer;
use crate::ops::is_zero;

/// Threads that read and unpack.
const MOST_THREADS: usize = 8;
/// Chunks that a thread takes at a time.
const PART: usize = 16;

impl Store {
    /// The file with a disk image in one piece, raw and sparse, which is made if it is not there. Whoever uses it
    /// holds a lease of the image: see [`hold`](Self::hold).
    ///
    /// # Errors
    /// If the image is no disk, is damaged, or cannot be written.
    pub fn base(&self, digest: Hash, progress: &Progress) -> Result<PathBuf, StoreError> {
        let _use = self.share()?;
        let path = self.root.join(base_path(digest));
        if self.length(&base_path(digest))?.is_some() {
            return Ok(path);
        }
        // Who makes one makes it for all who wait.
        let _lock = self.lock("bases.lock", true, PATIENCE)?;
        if self.length(&base_path(digest))?.is_some() {
            return Ok(path);
        }
        let manifest = self.manifest(digest)?;
        let Kind::Disk { disk } = &manifest.kind else {
            return Err(StoreError::Kind {
                name: digest.to_string(),
                is: "an OCI image",
                wanted: "a disk",
            });
        };
        let packs = self.packs()?;
        // The disk's own pack, if that is what it was: nobody has compared it with the chunks' names since it was
        // written.
        if let Some(pack) = packs.whole(digest)
            && self.is_sound(&packs, pack, disk, progress)?
            && self.link_base(digest)?
        {
            return Ok(path);
        }
        let temporary = self.temporary();
        let made = self.base_file(&packs, disk, &temporary, progress);
        let named = made.and_then(|()| {
            self.rename(&temporary, &base_path(digest))?;
            self.sync_folders(&[BASES.to_owned()])
        });
        if named.is_err() {
            // On a full disk every byte counts.
            let _ = self.medium.remove(&temporary);
        }
        named.map(|()| path)
    }

    /// Makes a disk's own pack its file in one piece; false if there is no such pack, or its file system cannot do
    /// that.
    pub(super) fn link_base(&self, digest: Hash) -> Result<bool, StoreError> {
        let packs = self.packs()?;
        let Some(pack) = packs.whole(digest) else {
            return Ok(false);
        };
        match self.medium.link(&data_path(&pack.name), &base_path(digest)) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(_) => return Ok(false),
        }
        self.sync_folders(&[BASES.to_owned()]).map(|()| true)
    }

    /// Whether a disk's own pack is still that disk.
    fn is_sound(
        &self,
        packs: &Packs<'_>,
        pack: &Pack,
        disk: &Content,
        progress: &Progress,
    ) -> Result<bool, StoreError> {
        let path = data_path(&pack.name);
        if self.length(&path)? != Some(disk.size) {
            return Ok(false);
        }
        let sound = AtomicBool::new(true);
        self.walk(packs, disk, progress, |_, _, part| {
            if !sound.load(Ordering::Relaxed) {
                return Ok(());
            }
            let len = part.iter().map(|(_, entry)| entry.len as usize).sum();
            let at = part.first().map_or(0, |(at, _)| *at);
            let bytes = self.medium.read_at(&path, at, len);
            let mut rest = &bytes.map_err(system("read", path.as_str()))?[..];
            for (_, entry) in part {
                let (chunk, next) = rest.split_at(entry.len as usize);
                let is = match entry.hash {
                    Hash::ZEROES => is_zero(chunk),
                    hash => Hash::of(chunk) == hash,
                };
                sound.fetch_and(is, Ordering::Relaxed);
                rest = next;
            }
            Ok(())
        })?;
        Ok(sound.into_inner())
    }

    fn base_file(
        &self,
        packs: &Packs<'_>,
        disk: &Content,
        path: &str,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        let file = self.medium.create(path).map_err(system("make", path))?;
        self.write(packs, disk, &*file, progress)?;
        file.sync().map_err(system("write out", path))
    }

    /// Writes a disk's content to an empty file; zeroes become holes.
    ///
    /// # Errors
    /// If something of it is damaged, or cannot be written.
    pub fn write_disk(
        &self,
        disk: &Content,
        file: &File,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        self.write(&self.packs()?, disk, file, progress)
    }

    fn write(
        &self,
        packs: &Packs<'_>,
        disk: &Content,
        file: &dyn Output,
        progress: &Progress,
    ) -> Result<(), StoreError> {
        let failed = || system("write", "a disk in one piece");
        file.stretch(disk.size).map_err(failed())?;
        let (mut packer, mut at) = (Packer::new()?, 0);
        for list in &disk.lists {
            let entries = packs.entries(&mut packer, *list)?;
            for run in entries.chunk_by(|one, next| one.is_zeroes() == next.is_zeroes()) {
                let len: u64 = run.iter().map(|entry| u64::from(entry.len)).sum();
                if run.first().is_some_and(|entry| !entry.is_zeroes()) {
                    file.reserve(at, len).map_err(failed())?;
                }
                at += len;
            }
            if at > disk.size {
                return Err(wrong_size(*list));
            }
        }
        self.walk(packs, disk, progress, |packer, buffer, part| {
            // Neighbours are written together.
            for run in part.chunk_by(|(_, one), (_, next)| one.is_zeroes() == next.is_zeroes()) {
                let Some((start, first)) = run.first() else {
                    continue;
                };
                if first.is_zeroes() {
                    continue;
                }
                let mut len = 0;
                for (_, entry) in run {
                    let bytes = packs.chunk(packer, entry.hash)?;
                    if bytes.len() != entry.len as usize {
                        return Err(wrong_size(entry.hash));
                    }
                    buffer.bytes_mut()[len..len + bytes.len()].copy_from_slice(&bytes);
                    len += bytes.len();
                }
                let written = file.write(&buffer.bytes()[..len], *start);
                written.map_err(failed())?;
            }
            Ok(())
        })
    }

    /// Does something for each part of a disk, of some chunks with their places there, by several threads. Each has a
    /// buffer that a part fits into.
    fn walk(
        &self,
        packs: &Packs<'_>,
        disk: &Content,
        progress: &Progress,
        act: impl Fn(&mut Packer, &mut Buffer, &[(u64, Entry)]) -> Result<(), StoreError> + Sync,
    ) -> Result<(), StoreError> {
        progress.expect(disk.size);
        let mut packer = Packer::new()?;
        let mut start = 0;
        for list in &disk.lists {
            let entries = packs.entries(&mut packer, *list)?;
            let mut places = Vec::with_capacity(CHUNKS);
            for entry in entries {
                places.push((start, entry));
                start += u64::from(entry.len);
            }
            if start > disk.size {
                return Err(wrong_size(*list));
            }
            let parts: Vec<&[(u64, Entry)]> = places.chunks(PART).collect();
            let longest = places.iter().map(|(_, entry)| entry.len).max().unwrap_or(0);
            let next = AtomicUsize::new(0);
            let work = || -> Result<(), StoreError> {
                let mut packer = Packer::new()?;
                let mut buffer = Buffer::new(PART * longest as usize);
                while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    act(&mut packer, &mut buffer, part)?;
                    let len = part.iter().map(|(_, entry)| u64::from(entry.len)).sum();
                    progress.step(len).map_err(|_| StoreError::Cancelled)?;
                }
                Ok(())
            };
            // One more than there are CPUs: one waits for the disk now and then.
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            let threads = (cpus + 1).min(MOST_THREADS).min(parts.len());
            std::thread::scope(|scope| {
                let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
                let mut result = work();
                for other in others {
                    result = result.and(other.join().unwrap_or(Err(StoreError::Cancelled)));
                }
                result
            })?;
        }
        match start == disk.size {
            true => Ok(()),
            false => Err(wrong_size(Hash::ZEROES)),
        }
    }
}

/// Their folder.
pub const BASES: &str = "bases";

/// The file with a disk in one piece.
pub fn base_path(digest: Hash) -> String {
    format!("{BASES}/{digest}.raw")
}
