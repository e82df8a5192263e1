//! Slices of tables in memory: L2 tables, or refblocks. Bounded; clean ones make room for others.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// Keys are small numbers: one multiplication spreads them well enough.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, n: u64) {
        let mixed = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

struct Slot {
    key: u64,
    data: Box<[u8]>,
    dirty: bool,
    /// Counts changes: what was written while it changed again is not clean.
    version: u64,
    /// Was used since the hand came by.
    used: bool,
    /// Somebody is about to change it, and must find it.
    pins: u32,
}

/// What a task that lacks a slice has to do.
pub(super) enum Claim {
    /// It is there by now.
    Present,
    /// Another task loads it.
    Loading,
    /// Load it, then [`SliceCache::insert`] or [`SliceCache::abandon`].
    Yours,
    /// Everything is dirty: write back first.
    Full,
}

/// A dirty slice as it was when captured.
pub(super) struct Captured {
    pub key: u64,
    pub version: u64,
    pub data: Box<[u8]>,
}

/// Slices that even the smallest cache holds: those of one step on several tables.
const FEWEST: u64 = 8;

pub(super) struct SliceCache {
    slots: Vec<Slot>,
    index: HashMap<u64, u32, BuildHasherDefault<KeyHasher>>,
    loading: HashSet<u64>,
    capacity: usize,
    hand: usize,
    dirty: usize,
}

impl SliceCache {
    /// At most `bytes` in slices of `slice` bytes, but never fewer than a few.
    pub fn new(bytes: u64, slice: u64) -> SliceCache {
        SliceCache {
            slots: Vec::new(),
            index: HashMap::default(),
            loading: HashSet::new(),
            capacity: (bytes / slice).max(FEWEST) as usize,
            hand: 0,
            dirty: 0,
        }
    }

    /// Changes how much is kept. What is too much goes when something else comes.
    pub fn set_capacity(&mut self, bytes: u64, slice: u64) {
        self.capacity = (bytes / slice).max(FEWEST) as usize;
        while self.slots.len() > self.capacity && self.evict() {}
    }

    /// Looks at a slice.
    #[inline]
    pub fn get(&mut self, key: u64) -> Option<&[u8]> {
        let slot = &mut self.slots[*self.index.get(&key)? as usize];
        slot.used = true;
        Some(&slot.data)
    }

    /// Changes a slice.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut [u8]> {
        let slot = &mut self.slots[*self.index.get(&key)? as usize];
        slot.used = true;
        slot.version += 1;
        if !std::mem::replace(&mut slot.dirty, true) {
            self.dirty += 1;
        }
        Some(&mut slot.data)
    }

    /// Keeps a slice that is there until it is unpinned.
    pub fn pin(&mut self, key: u64) {
        if let Some(i) = self.index.get(&key) {
            self.slots[*i as usize].pins += 1;
        }
    }

    /// Undoes one [`pin`](Self::pin).
    pub fn unpin(&mut self, key: u64) {
        if let Some(i) = self.index.get(&key) {
            let pins = &mut self.slots[*i as usize].pins;
            *pins = pins.saturating_sub(1);
        }
    }

    /// Slices that were changed and not written back.
    pub fn dirty(&self) -> usize {
        self.dirty
    }

    /// Takes the right to load a slice, and the room for it.
    pub fn claim(&mut self, key: u64) -> Claim {
        if self.index.contains_key(&key) {
            return Claim::Present;
        }
        if self.loading.contains(&key) {
            return Claim::Loading;
        }
        while self.slots.len() + self.loading.len() >= self.capacity {
            if !self.evict() {
                return Claim::Full;
            }
        }
        self.loading.insert(key);
        Claim::Yours
    }

    /// Whether a task is loading a slice.
    pub fn is_loading(&self, key: u64) -> bool {
        self.loading.contains(&key)
    }

    /// Whether a claim would find room.
    pub fn room(&self) -> bool {
        self.slots.len() + self.loading.len() < self.capacity
            || self.slots.iter().any(|s| !s.dirty && s.pins == 0)
    }

    /// Drops a clean slice that was not used lately.
    fn evict(&mut self) -> bool {
        for _ in 0..2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[self.hand];
            if slot.dirty || slot.pins > 0 || std::mem::take(&mut slot.used) {
                continue;
            }
            let key = slot.key;
            self.index.remove(&key);
            self.slots.swap_remove(self.hand);
            if let Some(moved) = self.slots.get(self.hand) {
                self.index.insert(moved.key, self.hand as u32);
            }
            return true;
        }
        false
    }

    /// Puts in a slice that was claimed.
    pub fn insert(&mut self, key: u64, data: Box<[u8]>) {
        self.loading.remove(&key);
        self.index.insert(key, self.slots.len() as u32);
        self.slots.push(Slot {
            key,
            data,
            dirty: false,
            version: 0,
            used: true,
            pins: 0,
        });
    }

    /// Gives a claim up.
    pub fn abandon(&mut self, key: u64) {
        self.loading.remove(&key);
    }

    /// Copies of all dirty slices.
    pub fn capture(&self) -> Vec<Captured> {
        if self.dirty == 0 {
            return Vec::new();
        }
        let dirty = self.slots.iter().filter(|s| s.dirty);
        let mut captured: Vec<Captured> = dirty
            .map(|s| Captured {
                key: s.key,
                version: s.version,
                data: s.data.clone(),
            })
            .collect();
        captured.sort_unstable_by_key(|c| c.key);
        captured
    }

    /// A captured slice was written: it is clean unless it changed since.
    pub fn written(&mut self, captured: &Captured) {
        if let Some(i) = self.index.get(&captured.key) {
            let slot = &mut self.slots[*i as usize];
            if slot.version == captured.version && std::mem::replace(&mut slot.dirty, false) {
                self.dirty -= 1;
            }
        }
    }

    /// Forgets everything, dirty or not.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.index.clear();
        self.dirty = 0;
        self.hand = 0;
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|s| s.data.len() as u64).sum()
    }
}

impl super::Image {
    /// Changes how many bytes of tables are kept in memory.
    pub(crate) fn set_cache(&self, bytes: u64) {
        let slice = self.geometry().slice();
        let (l2, refs) = shares(bytes, slice);
        let mut state = self.state();
        state.l2.set_capacity(l2, slice);
        state.refs.set_capacity(refs, slice);
    }
}

/// How memory is divided between L2 tables and refblocks. Refcounts are needed in order, L2 entries
/// at random: most of it is for those.
fn shares(bytes: u64, slice: u64) -> (u64, u64) {
    let refs = (bytes / 8).max(slice);
    (bytes.saturating_sub(refs), refs)
}
