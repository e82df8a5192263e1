//! Leases of the embedded engine: how long each still lasts. After a restart each lasts its whole time again,
//! since nobody could renew it meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::store::LeaseId;

/// Leases, by their ends.
#[derive(Default)]
pub struct Leases {
    last: u64,
    held: HashMap<LeaseId, (Duration, Instant)>,
    ends: BTreeMap<(Instant, LeaseId), ()>,
}

impl Leases {
    /// Holds a lease that is kept already.
    pub fn hold(&mut self, lease: LeaseId, ttl: Duration, now: Instant) {
        self.last = self.last.max(lease.0);
        // No lease is longer than what can be counted.
        let end = now.checked_add(ttl).unwrap_or(now);
        if let Some((_, old)) = self.held.insert(lease, (ttl, end)) {
            self.ends.remove(&(old, lease));
        }
        self.ends.insert((end, lease), ());
    }

    /// The name of the next one.
    pub fn next(&self) -> LeaseId {
        LeaseId(self.last + 1)
    }

    /// Lets it last its whole time; false if it is over.
    pub fn renew(&mut self, lease: LeaseId, now: Instant) -> bool {
        let ttl = self.held.get(&lease).map(|(ttl, _)| *ttl);
        ttl.map(|ttl| self.hold(lease, ttl, now)).is_some()
    }

    /// Whether it lasts.
    pub fn holds(&self, lease: LeaseId) -> bool {
        self.held.contains_key(&lease)
    }

    /// Ends it; false if it was over.
    pub fn end(&mut self, lease: LeaseId) -> bool {
        let held = self.held.remove(&lease);
        held.map(|(_, end)| self.ends.remove(&(end, lease)))
            .is_some()
    }

    /// The next end.
    pub fn next_end(&self) -> Option<Instant> {
        self.ends.first_key_value().map(|((end, _), ())| *end)
    }

    /// Those that are over by now.
    pub fn over(&self, now: Instant) -> Vec<LeaseId> {
        let over = self.ends.keys().take_while(|(end, _)| *end <= now);
        over.map(|(_, lease)| *lease).collect()
    }
}
