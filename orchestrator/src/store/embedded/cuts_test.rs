//! Power cuts, and files that fail: what was acknowledged is there, and the store goes on by itself.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::StorageBackend;

use super::Embedded;
use super::history::{Model, Random, batch, block_on, check, count};
use super::medium::Medium;
use crate::store::{Change, Expect, Room, Store, StoreError};

/// Power cuts, and histories of failures.
const CUTS: u64 = 300;
const FAILURES: u64 = 100;
/// Cuts of one disk, one after another.
const PARTS: u64 = 3;
/// Operations of a disk between two cuts, at most.
const OPERATIONS: u64 = 300;
/// Batches of a history of failures.
const BATCHES: u64 = 40;
/// Bytes of a disk that is soon full.
const CAPACITY: u64 = 24 << 20;
/// Bytes of what fills it.
const LARGE: usize = 20_000;
/// What a disk writes at once, in bytes.
const SECTOR: usize = 512;
/// What a file system hands out at once, in bytes.
const PAGE: usize = 4096;
/// Space that is kept.
const RESERVE: u64 = 1 << 20;

/// A disk in memory that knows what would survive a power cut.
#[derive(Debug)]
struct Disk {
    now: Vec<u8>,
    safe: Vec<u8>,
    /// Writes since the last sync, by place.
    unsafe_writes: Vec<(usize, Vec<u8>)>,
    /// Pages that hold something: only these take space.
    taken: BTreeSet<usize>,
    capacity: u64,
    reserved: bool,
    random: Random,
    /// The operation in which the power fails, counted down; never if it is 0.
    cut_in: u64,
    /// What the power cut left.
    left: Option<Vec<u8>>,
    /// The operation that fails, counted down; none if it is 0.
    fails_in: u64,
}

impl Disk {
    fn with(bytes: Vec<u8>, seed: u64) -> Disk {
        Disk {
            safe: bytes.clone(),
            now: bytes,
            unsafe_writes: Vec::new(),
            taken: BTreeSet::new(),
            capacity: u64::MAX,
            reserved: false,
            random: Random(seed),
            cut_in: 0,
            left: None,
            fails_in: 0,
        }
    }

    /// An operation that changes something: it may be the one that fails.
    fn touch(&mut self) -> io::Result<()> {
        let failed = || io::Error::from_raw_os_error(libc::EIO);
        let (cuts, fails) = (self.cut_in == 1, self.fails_in == 1);
        self.cut_in = self.cut_in.saturating_sub(1);
        self.fails_in = self.fails_in.saturating_sub(1);
        if cuts {
            self.cut();
        }
        match fails || self.left.is_some() {
            true => Err(failed()),
            false => Ok(()),
        }
    }

    /// The power fails: of what was not synced, some sectors are there and some are not. Nothing works then.
    fn cut(&mut self) {
        let mut left = self.safe.clone();
        if self.random.below(2) == 0 {
            left.resize(self.now.len(), 0);
        }
        for (place, bytes) in &self.unsafe_writes {
            for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                let at = place + n * SECTOR;
                if self.random.below(2) == 0 && at + sector.len() <= left.len() {
                    left[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        self.left.get_or_insert(left);
    }

    fn available(&self) -> u64 {
        let reserved = if self.reserved { RESERVE } else { 0 };
        let used = (self.taken.len() * PAGE) as u64;
        self.capacity.saturating_sub(used + reserved)
    }
}

#[derive(Debug, Clone)]
struct Simulated(Arc<Mutex<Disk>>);

impl Simulated {
    fn with(disk: Disk) -> Simulated {
        Simulated(Arc::new(Mutex::new(disk)))
    }

    fn open(&self) -> Embedded {
        Embedded::on(Box::new(self.clone())).expect("it opens")
    }
}

impl Medium for Simulated {
    fn file(&self) -> Box<dyn StorageBackend> {
        Box::new(self.clone())
    }

    fn available(&self) -> u64 {
        self.0.lock().available()
    }

    fn reserve(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        if !disk.reserved && disk.available() < RESERVE {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        disk.reserved = true;
        Ok(())
    }

    fn release(&self) -> bool {
        std::mem::take(&mut self.0.lock().reserved)
    }

    fn name(&self) -> String {
        "a simulated disk".to_owned()
    }
}

impl StorageBackend for Simulated {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock();
        let found = disk.now.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.touch()?;
        disk.now.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.touch()?;
        let length = disk.now.len();
        disk.safe.resize(length, 0);
        for (at, bytes) in std::mem::take(&mut disk.unsafe_writes) {
            disk.safe[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (at, mut disk) = (offset as usize, self.0.lock());
        let pages = at / PAGE..(at + data.len()).div_ceil(PAGE);
        let new = pages.clone().filter(|page| !disk.taken.contains(page));
        if (new.count() * PAGE) as u64 > disk.available() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        disk.taken.extend(pages);
        // What is being written when the power fails may be there, too.
        disk.unsafe_writes.push((at, data.to_vec()));
        disk.touch()?;
        let place = disk.now.get_mut(at..at + data.len());
        place
            .ok_or(io::ErrorKind::UnexpectedEof)?
            .copy_from_slice(data);
        Ok(())
    }
}

#[test]
fn a_power_cut_at_any_moment_takes_nothing_that_was_acknowledged() {
    for first in 0..count("SKERRY_CUTS", CUTS).div_ceil(PARTS) {
        let (mut bytes, mut model, mut random) = (Vec::new(), Model::default(), Random(first));
        for part in 0..PARTS {
            let seed = first * PARTS + part;
            let disk = Simulated::with(Disk::with(bytes, seed));
            let store = disk.open();
            disk.0.lock().cut_in = 1 + random.below(OPERATIONS);
            let acknowledged = block_on(async {
                for number in 0.. {
                    if store.commit(batch(seed, number)).await.is_err() {
                        return number;
                    }
                }
                unreachable!("the power fails")
            });
            drop(store);
            bytes = disk.0.lock().left.take().expect("the power failed");
            let disk = Simulated::with(Disk::with(bytes, seed));
            let store = disk.open();
            block_on(check(
                &store,
                &mut model,
                seed,
                acknowledged,
                acknowledged + 1,
            ));
            drop(store);
            bytes = std::mem::take(&mut disk.0.lock().now);
        }
    }
}

#[test]
fn a_store_whose_file_fails_goes_on_and_says_what_was_not_done() {
    for seed in 0..count("SKERRY_FAILURES", FAILURES) {
        let disk = Simulated::with(Disk::with(Vec::new(), seed));
        let (store, mut model, mut random) = (disk.open(), Model::default(), Random(seed));
        block_on(async {
            let mut watch = store.watch("", model.revision).await.expect("a watch");
            let (mut changes, mut failures) = (Vec::new(), 0);
            for number in 0..BATCHES {
                if random.below(4) == 0 {
                    disk.0.lock().fails_in = 1 + random.below(20);
                }
                let result = store.commit(batch(seed, number)).await;
                let found = store
                    .list("", "", usize::MAX)
                    .await
                    .expect("it can be read");
                let mut next = model.clone();
                let seen = next.apply(batch(seed, number));
                match result {
                    Ok(revision) => assert_eq!(revision, next.revision),
                    Err(StoreError::Unwritten(_)) => {
                        failures += 1;
                        assert_eq!(found.revision, model.revision, "seed {seed}");
                        continue;
                    }
                    Err(StoreError::Unsure(_)) => {
                        failures += 1;
                        if found.revision == model.revision {
                            continue;
                        }
                    }
                    Err(e) => panic!("seed {seed}: {e}"),
                }
                changes.extend(seen);
                model = next;
                assert_eq!(found.revision, model.revision, "seed {seed}");
            }
            assert!(failures < BATCHES / 2, "seed {seed}: {failures} failures");
            // The watch that was there all the time has seen all of it.
            let mut seen = Vec::new();
            while seen.len() < changes.len() {
                seen.extend(watch.next().await.expect("changes").0);
            }
            assert!(seen == changes, "seed {seed}: the log is another");
        });
    }
}

#[test]
fn a_full_disk_takes_nothing_new_lets_things_go_and_is_well_again_with_space() {
    let disk = Simulated::with(Disk::with(Vec::new(), 0));
    disk.0.lock().capacity = CAPACITY;
    let store = disk.open();
    let put = |n: u64, bytes| {
        let key = format!("new/{n}");
        store.commit(vec![Change::put(key, Expect::Absent, vec![7; bytes])])
    };
    block_on(async {
        let mut kept = 0;
        let refused = loop {
            match put(kept, LARGE).await {
                Ok(_) => kept += 1,
                Err(e) => break e,
            }
        };
        let text = refused.to_string();
        assert!(
            text.contains("full") && text.contains("make space"),
            "{text}"
        );
        assert_eq!(store.room(), Room::Short);
        let mut watch = store
            .watch("", crate::store::Revision(kept))
            .await
            .expect("a watch");
        // Nothing new is taken, however small, but what is there is changed, and goes.
        assert!(matches!(put(kept, 1).await, Err(StoreError::Full(_))));
        for n in 0..kept {
            let key = format!("new/{n}");
            let entry = store.get(&key).await.expect("read").expect("there");
            let change = Change::put(&key, Expect::At(entry.modified), vec![8; LARGE + 100]);
            let at = store
                .commit(vec![change])
                .await
                .expect("it is changed a little");
            let gone = Change::delete(&key, Expect::At(at));
            store.commit(vec![gone]).await.expect("it goes");
            assert!(!watch.next().await.expect("changes").0.is_empty());
        }
        assert!(matches!(put(kept, 1).await, Err(StoreError::Full(_))));
        disk.0.lock().capacity = u64::MAX;
        put(kept, LARGE).await.expect("there is space again");
        assert_eq!(store.room(), Room::Enough);
        assert!(disk.0.lock().reserved);
    });
}
