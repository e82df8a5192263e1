//! What is done in one transaction: all of it becomes durable together, or none of it is done.

use std::time::Duration;

use redb::{ReadableTable, Table, WriteTransaction};

use super::leases::Leases;
use super::state::Shared;
use super::{COMPACTED, CURRENT, LEASES, LOG, LOGGED, META, REVISION};
use crate::store::error::engine;
use crate::store::log::{encode_change, encode_entry};
use crate::store::{Change, Expect, LeaseId, Revision, Room, StoreError};

/// What the writer is asked for. The answer is a number: the commit, the lease, or none that matters.
pub enum What {
    Commit(Vec<Change>),
    Compact(Revision),
    Grant(Duration),
    Renew(LeaseId),
    Revoke(LeaseId),
}

/// Commits whose changes are kept for watchers, and so many more before some are forgotten; with little space
/// it is a part of that.
const KEPT: u64 = 8192;
const FORGOTTEN: u64 = 1024;
/// Bytes of changes that are kept at most; with little space it is a part of that.
const LOG_BYTES: u64 = 32 << 20;
/// Bytes that a batch may add to what is there when there is little space: a status and a deletion need some.
const LITTLE: usize = 4 << 10;

/// How far the store has come.
#[derive(Debug, Clone, Copy)]
pub struct Reached {
    /// The last commit.
    pub revision: Revision,
    /// The last commit whose changes are forgotten.
    pub compacted: Revision,
    /// The next lease.
    pub lease: LeaseId,
    /// Bytes of the changes that are kept.
    pub logged: u64,
}

/// A transaction under way.
pub struct Turn<'a> {
    shared: &'a Shared,
    leases: &'a Leases,
    writing: &'a WriteTransaction,
    room: Room,
    ended: Vec<LeaseId>,
    /// How far it has come.
    pub reached: Reached,
}

impl<'a> Turn<'a> {
    /// One that begins where the last one has come to.
    pub fn new(
        shared: &'a Shared,
        leases: &'a Leases,
        writing: &'a WriteTransaction,
        reached: Reached,
    ) -> Turn<'a> {
        Turn {
            room: shared.room(),
            shared,
            leases,
            writing,
            ended: Vec::new(),
            reached,
        }
    }

    /// Does what is asked, or refuses it.
    ///
    /// # Errors
    /// If the store fails: then nothing of the whole turn is done.
    pub fn act(&mut self, what: &What) -> Result<Result<u64, StoreError>, StoreError> {
        let result = match what {
            What::Commit(changes) => self.commit(changes).map(|revision| revision.0),
            What::Compact(upto) => self.forget((*upto).min(self.reached.revision)).map(|()| 0),
            What::Grant(ttl) => self.grant(*ttl),
            // Renewals change nothing that is kept.
            What::Renew(lease) => Err(StoreError::Lease(*lease)),
            What::Revoke(lease) => match self.holds(*lease) {
                true => self.end_lease(*lease).map(|()| 0),
                false => Err(StoreError::Lease(*lease)),
            },
        };
        match result {
            Err(e @ (StoreError::Engine { .. } | StoreError::Damaged { .. })) => Err(e),
            result => Ok(result),
        }
    }

    fn holds(&self, lease: LeaseId) -> bool {
        self.leases.holds(lease) && !self.ended.contains(&lease)
    }

    fn grant(&mut self, ttl: Duration) -> Result<u64, StoreError> {
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let lease = self.reached.lease.0;
        let mut table = self.writing.open_table(LEASES).map_err(engine("write"))?;
        table.insert(lease, millis).map_err(engine("write"))?;
        self.reached.lease.0 += 1;
        Ok(lease)
    }

    /// Makes a batch, if all is as it expects. What refuses it does so before anything is written.
    fn commit(&mut self, changes: &[Change]) -> Result<Revision, StoreError> {
        let mut current = self.writing.open_table(CURRENT).map_err(engine("write"))?;
        let mut effective = Vec::with_capacity(changes.len());
        let (mut new, mut more) = (false, 0);
        for change in changes {
            if let Some(lease) = change.lease
                && !self.holds(lease)
            {
                return Err(StoreError::Lease(lease));
            }
            let found = current.get(change.key.as_str()).map_err(engine("read"))?;
            let found = match found {
                Some(bytes) => Some(self.shared.entry(&change.key, bytes.value())?.0),
                None => None,
            };
            let modified = found.as_ref().map(|entry| entry.modified);
            let good = match change.expect {
                Expect::Anything => true,
                Expect::Absent => modified.is_none(),
                Expect::At(revision) => modified == Some(revision),
            };
            if !good {
                return Err(StoreError::Conflict {
                    key: change.key.clone(),
                    found: modified,
                });
            }
            let length = change.value.as_ref().map_or(0, Vec::len);
            let before = found.as_ref().map_or(0, |entry| entry.value.len());
            new |= found.is_none() && change.value.is_some();
            more += length.saturating_sub(before);
            // What is gone already needs no change.
            if change.value.is_some() || found.is_some() {
                effective.push((change, found));
            }
        }
        if self.room == Room::Short && (new || more > LITTLE) {
            return Err(StoreError::Full(self.shared.name()));
        }
        if effective.is_empty() {
            return Ok(self.reached.revision);
        }
        let revision = Revision(self.reached.revision.0 + 1);
        let mut log = self.writing.open_table(LOG).map_err(engine("write"))?;
        for (place, (change, found)) in (0..).zip(effective) {
            let key = change.key.as_str();
            match &change.value {
                Some(value) => {
                    let created = found.as_ref().map_or(revision, |entry| entry.created);
                    let bytes = encode_entry(value, created, revision, change.lease);
                    current
                        .insert(key, bytes.as_slice())
                        .map_err(engine("write"))?;
                }
                None => {
                    current.remove(key).map_err(engine("write"))?;
                }
            }
            let before = found.as_ref().map(|entry| entry.value.as_slice());
            let bytes = encode_change(key, change.value.as_deref(), before);
            self.reached.logged += bytes.len() as u64;
            log.insert((revision.0, place), bytes.as_slice())
                .map_err(engine("write"))?;
        }
        self.note_revision(revision)?;
        Ok(revision)
    }

    fn note_revision(&mut self, revision: Revision) -> Result<(), StoreError> {
        let mut meta = self.writing.open_table(META).map_err(engine("write"))?;
        meta.insert(REVISION, revision.0).map_err(engine("write"))?;
        meta.insert(LOGGED, self.reached.logged)
            .map_err(engine("write"))?;
        self.reached.revision = revision;
        Ok(())
    }

    /// A lease is over: its keys go.
    pub fn end_lease(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        self.ended.push(lease);
        let mut leases = self.writing.open_table(LEASES).map_err(engine("write"))?;
        leases.remove(lease.0).map_err(engine("write"))?;
        let mut current = self.writing.open_table(CURRENT).map_err(engine("write"))?;
        let keys = self.keys_of(&current, lease)?;
        if keys.is_empty() {
            return Ok(());
        }
        let revision = Revision(self.reached.revision.0 + 1);
        let mut log = self.writing.open_table(LOG).map_err(engine("write"))?;
        for (place, (key, value)) in (0..).zip(keys) {
            current.remove(key.as_str()).map_err(engine("write"))?;
            let bytes = encode_change(&key, None, Some(&value));
            self.reached.logged += bytes.len() as u64;
            log.insert((revision.0, place), bytes.as_slice())
                .map_err(engine("write"))?;
        }
        self.note_revision(revision)
    }

    fn keys_of(
        &self,
        current: &Table<&str, &[u8]>,
        lease: LeaseId,
    ) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let mut keys = Vec::new();
        for item in current.iter().map_err(engine("read"))? {
            let (key, bytes) = item.map_err(engine("read"))?;
            let (entry, held) = self.shared.entry(key.value(), bytes.value())?;
            if held == Some(lease) {
                keys.push((entry.key, entry.value));
            }
        }
        Ok(keys)
    }

    /// Forgets old changes if there are many, or if they take much space.
    pub fn forget_old(&mut self) -> Result<(), StoreError> {
        let (kept, forgotten, bytes) = match self.room {
            Room::Enough => (KEPT, FORGOTTEN, LOG_BYTES),
            Room::Short => (KEPT / 32, FORGOTTEN / 32, LOG_BYTES / 32),
        };
        let last = self.reached.revision.0;
        if last > self.reached.compacted.0 + kept + forgotten {
            self.forget(Revision(last - kept))?;
        }
        if self.reached.logged > bytes {
            let upto = self.behind(self.reached.logged - bytes / 2)?;
            self.forget(upto.min(self.reached.revision))?;
        }
        Ok(())
    }

    /// The commit up to which the oldest changes take so many bytes.
    fn behind(&self, bytes: u64) -> Result<Revision, StoreError> {
        let log = self.writing.open_table(LOG).map_err(engine("read"))?;
        let mut passed = 0;
        for item in log.iter().map_err(engine("read"))? {
            let (at, change) = item.map_err(engine("read"))?;
            passed += change.value().len() as u64;
            if passed >= bytes {
                return Ok(Revision(at.value().0));
            }
        }
        Ok(self.reached.revision)
    }

    /// Forgets changes up to a commit.
    fn forget(&mut self, upto: Revision) -> Result<(), StoreError> {
        if upto <= self.reached.compacted {
            return Ok(());
        }
        let mut log = self.writing.open_table(LOG).map_err(engine("write"))?;
        let mut bytes = 0;
        log.retain_in(..(upto.0 + 1, 0), |_, change| {
            bytes += change.len() as u64;
            false
        })
        .map_err(engine("write"))?;
        self.reached.logged = self.reached.logged.saturating_sub(bytes);
        let mut meta = self.writing.open_table(META).map_err(engine("write"))?;
        for (name, number) in [(COMPACTED, upto.0), (LOGGED, self.reached.logged)] {
            meta.insert(name, number).map_err(engine("write"))?;
        }
        self.reached.compacted = upto;
        Ok(())
    }
}
