//! Power cuts at any operation: the store opens and verifies, and what was acknowledged is there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Error, ErrorKind};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::base::base_path;
use super::medium::{Facts, Held, Medium, Output};
use super::tests::{disk, noise};
use super::{Kind, Name, Origin, Store};
use crate::chain::live::Progress;
use crate::io::sim::Dice;

/// Histories, and cuts of each one after another.
const HISTORIES: u64 = 60;
const CUTS: u64 = 4;
/// Operations between two cuts, at most.
const OPERATIONS: u64 = 150;

/// A file's content, and whether it is durable.
#[derive(Debug, Clone)]
struct File {
    bytes: Vec<u8>,
    durable: bool,
}

/// Folders and files in memory, and what of them would survive a power cut.
#[derive(Debug, Default)]
struct Disk {
    files: BTreeMap<u64, File>,
    /// What names lead to now, and what is known to be durable of that.
    names: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    folders: BTreeSet<String>,
    next: u64,
    /// The operation at which the power fails, counted down; never if it is 0.
    cut_in: u64,
    off: bool,
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(".", |(folder, _)| folder)
}

impl Disk {
    fn touch(&mut self) -> io::Result<()> {
        if self.cut_in == 1 {
            self.off = true;
        }
        self.cut_in = self.cut_in.saturating_sub(1);
        match self.off {
            true => Err(Error::other("the power is off")),
            false => Ok(()),
        }
    }

    fn find(&self, path: &str) -> io::Result<&File> {
        let file = self.names.get(path).and_then(|id| self.files.get(id));
        file.ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// The power comes back: any part of what was not made durable is there, or is not.
    fn restart(&mut self, dice: &mut Dice) {
        let paths: BTreeSet<String> = self
            .names
            .keys()
            .chain(self.durable.keys())
            .cloned()
            .collect();
        let mut names = BTreeMap::new();
        for path in paths {
            let (now, safe) = (self.names.get(&path), self.durable.get(&path));
            let id = if dice.one_in(2) { now } else { safe };
            names.extend(id.map(|id| (path, *id)));
        }
        for file in self.files.values_mut().filter(|file| !file.durable) {
            match dice.below(3) {
                0 => file
                    .bytes
                    .truncate(dice.below(file.bytes.len() as u64 + 1) as usize),
                1 => file.bytes.fill(0),
                _ => {}
            }
            file.durable = true;
        }
        self.durable = names.clone();
        self.names = names;
        (self.off, self.cut_in) = (false, 1 + dice.below(OPERATIONS));
    }
}

#[derive(Debug, Clone, Default)]
struct Simulated(Arc<Mutex<Disk>>);

impl Medium for Simulated {
    fn read(&self, path: &str, _limit: u64) -> io::Result<Vec<u8>> {
        self.0.lock().find(path).map(|file| file.bytes.clone())
    }

    fn read_at(&self, path: &str, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let disk = self.0.lock();
        let bytes = &disk.find(path)?.bytes;
        let found = bytes.get(at as usize..at as usize + len);
        found
            .map(<[u8]>::to_vec)
            .ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    fn facts(&self, path: &str) -> io::Result<Option<Facts>> {
        let disk = self.0.lock();
        let Some(id) = disk.names.get(path) else {
            return Ok(None);
        };
        let len = disk.find(path)?.bytes.len() as u64;
        Ok(Some(Facts {
            len,
            taken: len,
            names: disk.names.values().filter(|other| *other == id).count() as u64,
            id: *id,
        }))
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn Output>> {
        self.write(path, &[])?;
        let id = self.0.lock().names.get(path).copied();
        Ok(Box::new(Piece(
            self.clone(),
            id.ok_or(ErrorKind::NotFound)?,
        )))
    }

    fn punch(&self, path: &str, stretches: &[(u64, u64)]) -> io::Result<()> {
        let mut disk = self.0.lock();
        let id = *disk.names.get(path).ok_or(ErrorKind::NotFound)?;
        for (at, len) in stretches {
            disk.touch()?;
            let file = disk.files.get_mut(&id).ok_or(ErrorKind::NotFound)?;
            file.bytes[*at as usize..(at + len) as usize].fill(0);
        }
        Ok(())
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.touch()?;
        let id = *disk.names.get(from).ok_or(ErrorKind::NotFound)?;
        match disk.names.contains_key(to) {
            true => Err(ErrorKind::AlreadyExists.into()),
            false => {
                disk.names.insert(to.to_owned(), id);
                Ok(())
            }
        }
    }

    fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.touch()?;
        disk.next += 1;
        let id = disk.next;
        let file = File {
            bytes: bytes.to_vec(),
            durable: false,
        };
        disk.files.insert(id, file);
        disk.names.insert(path.to_owned(), id);
        Ok(())
    }

    fn sync(&self, paths: &[String]) -> io::Result<()> {
        let mut disk = self.0.lock();
        for path in paths {
            disk.touch()?;
            let id = *disk.names.get(path).ok_or(ErrorKind::NotFound)?;
            disk.files.entry(id).and_modify(|file| file.durable = true);
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.touch()?;
        let id = disk.names.remove(from).ok_or(ErrorKind::NotFound)?;
        disk.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.touch()?;
        disk.names
            .remove(path)
            .map(drop)
            .ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let disk = self.0.lock();
        let below = format!("{folder}/");
        let all = disk.names.keys().chain(&disk.folders);
        let names = all.filter_map(|path| path.strip_prefix(&below));
        let direct = names.map(|rest| rest.split('/').next().unwrap_or(rest).to_owned());
        Ok(direct.collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn make_folder(&self, folder: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.touch()?;
        disk.folders.insert(folder.to_owned());
        Ok(())
    }

    fn sync_folders(&self, folders: &[String]) -> io::Result<()> {
        let mut disk = self.0.lock();
        for folder in folders {
            disk.touch()?;
            let of = |path: &String| folder_of(path) == folder;
            disk.durable.retain(|path, _| !of(path));
            let names: Vec<_> = disk
                .names
                .iter()
                .filter(|(path, _)| of(path))
                .map(|(p, i)| (p.clone(), *i))
                .collect();
            disk.durable.extend(names);
        }
        Ok(())
    }

    fn lock(&self, _name: &str, _alone: bool, _patience: Duration) -> io::Result<Option<Held>> {
        Ok(Some(Box::new(())))
    }
}

/// A file that is written piece by piece.
struct Piece(Simulated, u64);

impl Piece {
    fn change(&self, act: impl FnOnce(&mut File)) -> io::Result<()> {
        let mut disk = self.0.0.lock();
        disk.touch()?;
        disk.files.entry(self.1).and_modify(act);
        Ok(())
    }
}

impl Output for Piece {
    fn stretch(&self, len: u64) -> io::Result<()> {
        self.change(|file| {
            file.bytes.resize(len as usize, 0);
            file.durable = false;
        })
    }

    fn reserve(&self, _at: u64, _len: u64) -> io::Result<()> {
        self.change(|_| ())
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.change(|file| {
            let end = at as usize + bytes.len();
            file.bytes.resize(file.bytes.len().max(end), 0);
            file.bytes[at as usize..end].copy_from_slice(bytes);
            file.durable = false;
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.change(|file| file.durable = true)
    }
}

/// What is known of each name: the images that it may mean. The last is acknowledged, if only one is there.
#[derive(Default)]
struct Model(BTreeMap<String, Vec<Option<u64>>>);

fn image(folder: &Path, seed: u64) -> crate::chain::Stack {
    let path = folder.join(format!("disk{seed}"));
    if !path.exists() {
        // Neighbours share what they have.
        let bytes = [noise(seed, 600 << 10), noise(seed / 2, 600 << 10)].concat();
        std::fs::write(&path, bytes).expect("written");
    }
    disk(&path)
}

/// From this seed on, what is imported is no disk.
const OCI: u64 = 100;

/// The blobs of an OCI image; neighbours share what they have.
fn blobs(seed: u64) -> &'static [Vec<u8>; 2] {
    static ALL: LazyLock<[[Vec<u8>; 2]; 4]> = LazyLock::new(|| {
        [0, 1, 2, 3].map(|n| [noise(OCI + n, 100 << 10), noise(OCI + n / 2, 400 << 10)])
    });
    &ALL[(seed - OCI) as usize]
}

fn pull(
    store: &Store,
    name: &Name,
    blobs: &[Vec<u8>],
) -> Result<super::Imported, super::StoreError> {
    let (origin, progress) = (Origin::default(), Progress::default());
    let blobs = blobs.iter().enumerate().map(|(n, bytes)| {
        let bytes: Box<dyn io::Read> = Box::new(&bytes[..]);
        (format!("sha256:{n}"), bytes)
    });
    store.import_oci(name, "sha256:m", blobs, origin, &progress)
}

/// Does something; false if the power failed.
fn act(store: &Store, model: &mut Model, dice: &mut Dice, folder: &Path) -> bool {
    let name = format!("image{}:latest", dice.below(3));
    let parsed: Name = name.parse().expect("a name");
    let before = model.0.entry(name).or_insert_with(|| vec![None]);
    let (after, done) = match dice.below(7) {
        0..3 => {
            let seed = dice.below(8);
            let (origin, progress) = (Origin::default(), Progress::default());
            let imported = store.import_disk(&parsed, &image(folder, seed), origin, &progress);
            (Some(Some(seed)), imported.is_ok())
        }
        3 => {
            let seed = OCI + dice.below(4);
            let imported = pull(store, &parsed, blobs(seed));
            (Some(Some(seed)), imported.is_ok())
        }
        4 => match store.image(&parsed) {
            // A VM comes and goes.
            Ok(found) if matches!(found.manifest.kind, Kind::Disk { .. }) => {
                let digest = found.named.digest;
                let based = store
                    .hold("a-vm", "disk", digest)
                    .and_then(|()| store.base(digest, &Progress::default()))
                    .and_then(|_| store.release("a-vm"));
                (None, based.is_ok())
            }
            _ => (None, true),
        },
        5 => match store.remove(&parsed) {
            Err(super::StoreError::NoImage { .. }) => (None, true),
            removed => (Some(None), removed.is_ok()),
        },
        _ => (None, store.collect(Duration::ZERO).is_ok()),
    };
    match (after, done) {
        (Some(after), true) => *before = vec![after],
        (Some(after), false) => before.push(after),
        (None, _) => {}
    }
    done
}

/// After the power has come back: all is sound, and each name means what it may.
fn check(store: &Store, model: &mut Model, folder: &Path, seed: u64) {
    let found = store.verify(&Progress::default()).expect("it can be read");
    assert!(
        found.damages.is_empty(),
        "history {seed}: {:?}",
        found.damages
    );
    for (name, may) in &mut model.0 {
        let image_found = store.image(&name.parse().expect("a name")).ok();
        let means = image_found.map(|found| {
            let mut bytes = Vec::new();
            for content in found.manifest.kind.contents() {
                let mut reader = store.reader(content).expect("a reader");
                io::Read::read_to_end(&mut reader, &mut bytes).expect("it is whole");
            }
            if let Kind::Oci { .. } = found.manifest.kind {
                let same = |seed: &u64| bytes == blobs(*seed).concat();
                return (OCI..OCI + 4)
                    .find(same)
                    .expect("an image that was imported");
            }
            // What it may be in one piece is the same.
            let base = store.medium.read(&base_path(found.named.digest), u64::MAX);
            assert!(
                base.is_err() || base.is_ok_and(|base| base == bytes),
                "history {seed}: the disk in one piece is another"
            );
            let same = |n: &u64| {
                bytes == std::fs::read(folder.join(format!("disk{n}"))).unwrap_or_default()
            };
            (0..8).find(same).expect("an image that was imported")
        });
        assert!(
            may.contains(&means),
            "history {seed}: {name} means {means:?}, and may mean {may:?}"
        );
        *may = vec![means];
    }
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut acts = 0;
    for seed in 0..HISTORIES {
        let (mut dice, mut model) = (Dice(seed), Model::default());
        let simulated = Simulated::default();
        for _ in 0..CUTS {
            simulated.0.lock().restart(&mut dice);
            // The power may fail while it is opened, too.
            let open = || Store::on(Path::new("/nowhere"), Arc::new(simulated.clone()));
            if let Ok(store) = open() {
                while act(&store, &mut model, &mut dice, folder.path()) {
                    acts += 1;
                }
            }
            simulated.0.lock().restart(&mut dice);
            simulated.0.lock().cut_in = 0;
            let store = open().expect("it opens");
            check(&store, &mut model, folder.path(), seed);
        }
    }
    assert!(acts > HISTORIES, "{acts} acts in all prove little");
}
