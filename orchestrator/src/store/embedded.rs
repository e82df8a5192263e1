//! The engine of one host: a file of redb's, one thread that writes, readers that never wait for it.
//!
//! After a failure redb does nothing more with a file: the writer opens it anew, and goes on (`state.rs`).
//! All commits that wait are made durable by one flush, and answered then. Watchers read the log behind the
//! last revision that they have seen, so a slow one costs nothing but its own delay.

mod leases;
mod medium;
mod state;
mod turn;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use redb::{ReadableTable, TableDefinition};
use tokio::sync::{oneshot, watch};

use self::medium::{Medium, OnDisk};
use self::state::Shared;
use self::turn::What;
use self::writer::{Command, Writer};
use super::error::engine;
use super::{
    Change, Changed, Entry, LeaseId, Page, Revision, Room, Store, StoreError, Watch, check,
};

/// Keys and what they hold.
const CURRENT: TableDefinition<&str, &[u8]> = TableDefinition::new("current");
/// Changes, by commit and place in it.
const LOG: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("log");
/// Numbers by name.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Leases and how many milliseconds they last.
const LEASES: TableDefinition<u64, u64> = TableDefinition::new("leases");
/// The last commit.
const REVISION: &str = "revision";
/// The last commit whose changes are forgotten.
const COMPACTED: &str = "compacted";
/// Bytes of the changes that are kept.
const LOGGED: &str = "logged";
/// Memory for pages of the file, in bytes.
const CACHE: usize = 4 << 20;
/// Changes that a watcher takes at once, and then the rest of their commit.
const AT_ONCE: usize = 256;

/// The engine.
pub struct Embedded {
    shared: Arc<Shared>,
    commands: Mutex<Option<std::sync::mpsc::Sender<Command>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Embedded {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// If it is in use, damaged, or cannot be written.
    pub fn open(path: &Path) -> Result<Embedded, StoreError> {
        Embedded::on(Box::new(OnDisk::open(path)?))
    }

    fn on(medium: Box<dyn Medium>) -> Result<Embedded, StoreError> {
        let shared = Arc::new(Shared::open(medium)?);
        let (commands, receiver) = std::sync::mpsc::channel();
        let writer = Writer::new(shared.clone())?;
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(engine("start its thread"))?;
        Ok(Embedded {
            shared,
            commands: Mutex::new(Some(commands)),
            writer: Mutex::new(Some(thread)),
        })
    }

    /// Lets the writer do something, and waits for its answer.
    async fn ask(&self, what: What) -> Result<u64, StoreError> {
        let (answer, wait) = oneshot::channel();
        let sent = match &*self.commands.lock() {
            Some(commands) => commands.send(Command { what, answer }).is_ok(),
            None => false,
        };
        match sent {
            true => wait.await.map_err(|_| StoreError::Closed)?,
            false => Err(StoreError::Closed),
        }
    }

    /// At most `limit` entries of a prefix behind a key, and whether there are more.
    fn page(
        &self,
        table: &impl ReadableTable<&'static str, &'static [u8]>,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<(Vec<Entry>, bool), StoreError> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = match after > prefix {
            true => Excluded(after),
            false => Included(prefix),
        };
        let mut entries = Vec::new();
        let range = table.range::<&str>((start, Unbounded));
        for item in range.map_err(engine("read"))? {
            let (key, bytes) = item.map_err(engine("read"))?;
            let key = key.value();
            if !key.starts_with(prefix) {
                break;
            }
            if entries.len() == limit {
                return Ok((entries, true));
            }
            entries.push(self.shared.entry(key, bytes.value())?.0);
        }
        Ok((entries, false))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Its end is seen by the writer, which does what is still asked of it.
        self.commands.lock().take();
        if let Some(writer) = self.writer.lock().take() {
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let found = self.shared.read(|reading| {
            let table = reading.open_table(CURRENT).map_err(engine("read"))?;
            let found = table.get(key).map_err(engine("read"))?;
            let entry = found.map(|bytes| self.shared.entry(key, bytes.value()));
            entry.transpose()
        });
        Ok(found.await?.map(|(entry, _)| entry))
    }

    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Page, StoreError> {
        let page = self.shared.read(|reading| {
            let revision = Revision(state::number(reading, REVISION)?);
            let table = reading.open_table(CURRENT).map_err(engine("read"))?;
            let (entries, more) = self.page(&table, prefix, after, limit)?;
            Ok(Page {
                entries,
                more,
                revision,
            })
        });
        page.await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<Revision, StoreError> {
        check(&changes)?;
        self.ask(What::Commit(changes)).await.map(Revision)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let revision = self.shared.revision.subscribe();
        if from > *revision.borrow() {
            return Err(StoreError::Future(from));
        }
        // What is forgotten already is told at once.
        let compacted = self
            .shared
            .read(|reading| state::number(reading, COMPACTED));
        let compacted = Revision(compacted.await?);
        if from < compacted {
            return Err(StoreError::Compacted { oldest: compacted });
        }
        Ok(Box::new(LogWatch {
            shared: self.shared.clone(),
            revision,
            prefix: prefix.to_owned(),
            seen: from,
        }))
    }

    async fn compact(&self, upto: Revision) -> Result<(), StoreError> {
        self.ask(What::Compact(upto)).await.map(drop)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask(What::Grant(ttl)).await.map(LeaseId)
    }

    async fn renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(What::Renew(lease)).await.map(drop)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(What::Revoke(lease)).await.map(drop)
    }

    fn room(&self) -> Room {
        self.shared.room()
    }
}

/// A watcher, which reads the log.
struct LogWatch {
    shared: Arc<Shared>,
    revision: watch::Receiver<Revision>,
    prefix: String,
    seen: Revision,
}

#[async_trait]
impl Watch for LogWatch {
    async fn next(&mut self) -> Result<(Vec<Changed>, Revision), StoreError> {
        loop {
            if *self.revision.borrow_and_update() > self.seen {
                let (mut changes, reached) = self.shared.changes(self.seen).await?;
                self.seen = reached;
                changes.retain(|change| change.key.starts_with(&self.prefix));
                if !changes.is_empty() {
                    return Ok((changes, reached));
                }
            } else if self.revision.changed().await.is_err() {
                return Err(StoreError::Closed);
            }
        }
    }
}

#[cfg(test)]
#[path = "embedded/history_test.rs"]
mod history;

#[cfg(test)]
#[path = "embedded/kills_test.rs"]
mod kills;

#[cfg(test)]
#[path = "embedded/cuts_test.rs"]
mod cuts;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[test]
    fn it_does_what_every_engine_must() {
        let folder = tempfile::tempdir().expect("a folder");
        conformance::suite(|name| {
            let store = Embedded::open(&folder.path().join(name));
            Arc::new(store.expect("a store"))
        });
    }

    /// What is said again and again of the same things takes no more and more space.
    #[test]
    fn the_file_does_not_grow_with_every_change() {
        use crate::store::{Change, Expect};
        const KEYS: usize = 50;
        let place = Path::new("/dev/shm");
        let place = if place.is_dir() {
            place
        } else {
            Path::new("/tmp")
        };
        let folder = tempfile::tempdir_in(place).expect("a folder");
        let path = folder.path().join("store");
        let store = Arc::new(Embedded::open(&path).expect("a store"));
        let length = || std::fs::metadata(&path).expect("a file").len();
        let rounds = history::count("SKERRY_UPDATES", 10_000) / KEYS as u64;
        let change = |bytes: usize| {
            let store = store.clone();
            async move {
                let all = (0..KEYS).map(|key| {
                    let value = vec![7; bytes];
                    let change = Change::put(format!("key/{key}"), Expect::Anything, value);
                    store.commit(vec![change])
                });
                for done in futures_util::future::join_all(all).await {
                    done.expect("a commit");
                }
            }
        };
        history::block_on(async {
            for _ in 0..rounds {
                change(1500).await;
            }
            assert!(length() <= 96 << 20, "{} bytes", length());
            // Long ones are forgotten sooner.
            for _ in 0..20 {
                change(100_000).await;
            }
            assert!(length() <= 192 << 20, "{} bytes", length());
            for _ in 0..100 {
                change(10).await;
            }
        });
        eprintln!("{} updates: {} bytes", rounds * KEYS as u64, length());
        // And what is not used any more is given back when the file is opened.
        drop(store);
        let before = length();
        drop(Embedded::open(&path).expect("it opens again"));
        assert!(length() < before, "{before} bytes, and then {}", length());
        eprintln!("opened again: {} bytes", length());
    }

    #[test]
    fn a_file_in_use_or_of_something_else_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store");
        let _held = Embedded::open(&path).expect("a store");
        assert!(Embedded::open(&path).is_err());
        let other = folder.path().join("other");
        std::fs::write(&other, vec![7; 10_000]).expect("written");
        assert!(Embedded::open(&other).is_err());
    }
}
