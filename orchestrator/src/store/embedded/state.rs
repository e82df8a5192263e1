//! What readers and the writer share: the open file. After a failure the writer opens it anew, and readers
//! that were caught by that look again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use redb::{Database, ReadTransaction, ReadableDatabase, StorageBackend, WriteTransaction};
use tokio::sync::watch;

use super::medium::{Bytes, Medium, Trouble, no_space};
use super::{AT_ONCE, CACHE, COMPACTED, CURRENT, LEASES, LOG, META, REVISION};
use crate::store::error::engine;
use crate::store::log::{decode_change, decode_entry};
use crate::store::{Changed, Entry, LeaseId, Revision, Room, StoreError};

/// Readers wait so long for a file that is opened anew.
const PATIENCE: Duration = Duration::from_secs(2);
/// With less space, in bytes, nothing new is taken.
const LOW: u64 = 4 << 20;
/// With so much, in bytes, there is enough again.
const ENOUGH: u64 = 16 << 20;
/// A file that is no larger is left as it is, in bytes.
const SMALL: u64 = 16 << 20;

/// The open file.
pub struct Shared {
    medium: Box<dyn Medium>,
    trouble: Trouble,
    /// None while it cannot be opened.
    db: RwLock<Option<Database>>,
    /// How often it was opened.
    opened: watch::Sender<u64>,
    /// The last durable commit.
    pub revision: watch::Sender<Revision>,
    short: AtomicBool,
    /// Some space is kept.
    kept: AtomicBool,
}

/// The database in a file, with every table that readers look for.
pub fn database(file: impl StorageBackend) -> Result<Database, StoreError> {
    let failed = "open its file";
    let db = Database::builder()
        .set_cache_size(CACHE)
        .create_with_backend(file)
        .map_err(engine(failed))?;
    let reading = db.begin_read().map_err(engine(failed))?;
    // They are made in one transaction.
    if reading.open_table(LEASES).is_err() {
        let made = db.begin_write().map_err(engine(failed))?;
        made.open_table(CURRENT).map_err(engine(failed))?;
        made.open_table(LOG).map_err(engine(failed))?;
        made.open_table(META).map_err(engine(failed))?;
        made.open_table(LEASES).map_err(engine(failed))?;
        made.commit().map_err(engine(failed))?;
    }
    drop(reading);
    Ok(db)
}

/// A number of the table of numbers.
pub fn number(reading: &ReadTransaction, name: &str) -> Result<u64, StoreError> {
    let table = reading.open_table(META).map_err(engine("read"))?;
    let number = table.get(name).map_err(engine("read"))?;
    Ok(number.map_or(0, |number| number.value()))
}

impl Shared {
    /// Opens a file, or makes it.
    pub fn open(medium: Box<dyn Medium>) -> Result<Shared, StoreError> {
        let shared = Shared {
            medium,
            trouble: Trouble::default(),
            db: RwLock::new(None),
            opened: watch::Sender::new(0),
            revision: watch::Sender::new(Revision(0)),
            short: AtomicBool::new(false),
            kept: AtomicBool::new(false),
        };
        shared.look();
        let mut db = match shared.database() {
            // With the kept space it may work.
            Err(_) if shared.judge().1 => shared.database()?,
            other => other?,
        };
        shrink(&mut db, shared.medium.file().len().unwrap_or(0));
        *shared.db.write() = Some(db);
        let revision = number(&shared.reading()?, REVISION)?;
        shared.revision.send_replace(Revision(revision));
        Ok(shared)
    }

    fn database(&self) -> Result<Database, StoreError> {
        database(Bytes::of(&*self.medium, &self.trouble))
    }

    /// Opens the file anew after a failure. Until that goes well, all that is asked of it fails.
    pub fn open_again(&self) -> Result<(), StoreError> {
        let mut db = self.db.write();
        // The one before is through with the file before the next one looks at it.
        *db = None;
        *db = Some(self.database()?);
        drop(db);
        // What failed is over.
        self.trouble.lock().take();
        self.opened.send_modify(|times| *times += 1);
        Ok(())
    }

    /// Whether something went wrong with the file that nobody looked at yet.
    pub fn has_failed(&self) -> bool {
        self.trouble.lock().is_some()
    }

    /// What went wrong with the file, if it is known; and gives up the kept space if there is no other. True
    /// if that helps.
    pub fn judge(&self) -> (Option<std::io::Error>, bool) {
        let trouble = self.trouble.lock().take();
        let full = trouble.as_ref().is_some_and(no_space);
        if full && !self.short.swap(true, Ordering::Relaxed) {
            log::warn!(
                "there is no space for {}: nothing new is taken",
                self.name()
            );
        }
        let freed = full && self.medium.release();
        if freed {
            self.kept.store(false, Ordering::Relaxed);
        }
        (trouble, freed)
    }

    /// Looks how much space there is.
    pub fn look(&self) -> Room {
        let available = self.medium.available();
        let short = match self.short.load(Ordering::Relaxed) {
            _ if available >= ENOUGH => !self.keeps_space(),
            true => true,
            false => available < LOW,
        };
        if self.short.swap(short, Ordering::Relaxed) != short {
            match short {
                true => log::warn!(
                    "{available} bytes are left for {}: nothing new is taken until there is more",
                    self.name()
                ),
                false => log::info!("there is space for {} again", self.name()),
            }
        }
        self.room()
    }

    /// Sees to it that some space is kept for bad days.
    fn keeps_space(&self) -> bool {
        let kept = self.kept.load(Ordering::Relaxed) || self.medium.reserve().is_ok();
        self.kept.store(kept, Ordering::Relaxed);
        kept
    }

    /// Whether there was enough space when it was looked at last.
    pub fn room(&self) -> Room {
        match self.short.load(Ordering::Relaxed) {
            true => Room::Short,
            false => Room::Enough,
        }
    }

    /// What it is called in messages.
    pub fn name(&self) -> String {
        self.medium.name()
    }

    /// A transaction that reads.
    pub fn reading(&self) -> Result<ReadTransaction, StoreError> {
        match &*self.db.read() {
            Some(db) => db.begin_read().map_err(engine("read")),
            None => Err(StoreError::Closed),
        }
    }

    /// A transaction that writes.
    pub fn writing(&self) -> Result<WriteTransaction, StoreError> {
        match &*self.db.read() {
            Some(db) => db.begin_write().map_err(engine("write")),
            None => Err(StoreError::Closed),
        }
    }

    /// Reads; once more if the file was opened anew meanwhile.
    pub async fn read<T>(
        &self,
        read: impl Fn(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut opened = self.opened.subscribe();
        let once = || read(&self.reading()?);
        match once() {
            Err(StoreError::Engine { .. } | StoreError::Closed) => {
                let _ = tokio::time::timeout(PATIENCE, opened.changed()).await;
                once()
            }
            other => other,
        }
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::Damaged {
            path: self.name(),
            what: what.to_owned(),
        }
    }

    /// An entry of the table of what is current.
    pub fn entry(&self, key: &str, bytes: &[u8]) -> Result<(Entry, Option<LeaseId>), StoreError> {
        decode_entry(key, bytes).ok_or_else(|| self.damaged("an entry is too short"))
    }

    /// Changes behind a commit, in whole commits, and the commit that they lead to.
    pub async fn changes(&self, behind: Revision) -> Result<(Vec<Changed>, Revision), StoreError> {
        self.read(|reading| self.changes_in(reading, behind)).await
    }

    fn changes_in(
        &self,
        reading: &ReadTransaction,
        behind: Revision,
    ) -> Result<(Vec<Changed>, Revision), StoreError> {
        let compacted = Revision(number(reading, COMPACTED)?);
        if behind < compacted {
            return Err(StoreError::Compacted { oldest: compacted });
        }
        let last = Revision(number(reading, REVISION)?);
        let log = reading.open_table(LOG).map_err(engine("read"))?;
        let mut changes: Vec<Changed> = Vec::new();
        for item in log.range((behind.0 + 1, 0)..).map_err(engine("read"))? {
            let (at, bytes) = item.map_err(engine("read"))?;
            let revision = Revision(at.value().0);
            let reached = changes.last().map(|change| change.revision);
            if let Some(reached) = reached
                && changes.len() >= AT_ONCE
                && revision > reached
            {
                return Ok((changes, reached));
            }
            let change = decode_change(revision, bytes.value());
            changes.push(change.ok_or_else(|| self.damaged("a change is cut short"))?);
        }
        Ok((changes, last))
    }
}

/// Gives space back that a large file does not use. That it cannot is no harm.
fn shrink(db: &mut Database, length: u64) {
    if length <= SMALL {
        return;
    }
    let used = || {
        let stats = db.begin_write().ok()?.stats().ok()?;
        Some(stats.allocated_pages() * stats.page_size() as u64)
    };
    if used().is_some_and(|used| used < length / 2)
        && let Err(e) = db.compact()
    {
        log::warn!("the store's file stays as long as it is: {e}");
    }
}
