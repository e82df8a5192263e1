//! Seeded histories of batches, and what a store must be after any part of one.

use std::collections::BTreeMap;

use super::Embedded;
use crate::store::{Change, Changed, Expect, Revision, Store, StoreError};

/// Keys that a history is about.
const KEYS: u64 = 24;
/// Changes of a batch, at most.
const CHANGES: u64 = 5;
/// One value in so many is long.
const RARELY: u64 = 12;
const SHORT: u64 = 300;
const LONG: u64 = 12_000;

/// Numbers that only their seed decides (splitmix64).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next one, less than `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// A batch of a seed's history.
pub fn batch(seed: u64, number: u64) -> Vec<Change> {
    let mut random = Random(seed ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut keys = std::collections::BTreeSet::new();
    for _ in 0..=random.below(CHANGES) {
        keys.insert(random.below(KEYS));
    }
    let changes = keys.into_iter().map(|key| {
        let key = format!("key/{key:02}");
        if random.below(4) == 0 {
            return Change::delete(key, Expect::Anything);
        }
        let limit = match random.below(RARELY) {
            0 => LONG,
            _ => SHORT,
        };
        let length = random.below(limit) as usize;
        let mut value = format!("{seed} {number} ").into_bytes();
        value.resize(value.len() + length, b'x');
        Change::put(key, Expect::Anything, value)
    });
    changes.collect()
}

/// What a store must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    pub revision: Revision,
    pub holds: BTreeMap<String, Vec<u8>>,
}

impl Model {
    /// Makes a batch; the changes that a watcher sees of it.
    pub fn apply(&mut self, batch: Vec<Change>) -> Vec<Changed> {
        let mut seen = Vec::new();
        let revision = Revision(self.revision.0 + 1);
        for Change { key, value, .. } in batch {
            let before = match &value {
                Some(value) => self.holds.insert(key.clone(), value.clone()),
                None => self.holds.remove(&key),
            };
            if value.is_some() || before.is_some() {
                seen.push(Changed {
                    revision,
                    key,
                    value,
                    before,
                });
            }
        }
        if !seen.is_empty() {
            self.revision = revision;
        }
        seen
    }
}

/// Sees that a store is as a model is after some whole batches of a history: at least `least` of them and at
/// most `most`. The model is brought there.
pub async fn check(store: &Embedded, model: &mut Model, seed: u64, least: u64, most: u64) {
    let page = store.list("", "", usize::MAX).await.expect("listed");
    let begun = model.revision;
    let (mut number, mut changes) = (0, Vec::new());
    while number < least || (model.revision < page.revision && number < most) {
        changes.extend(model.apply(batch(seed, number)));
        number += 1;
    }
    assert_eq!(
        page.revision, model.revision,
        "seed {seed}: {least} batches were acknowledged, {most} begun"
    );
    let holds = page.entries.into_iter();
    let holds: BTreeMap<_, _> = holds.map(|entry| (entry.key, entry.value)).collect();
    assert!(holds == model.holds, "seed {seed}: half a batch, or none");
    // And a watcher from before sees every change of it once, in order.
    let mut watch = match store.watch("", begun).await {
        Ok(watch) => watch,
        // It was forgotten, which only long histories see.
        Err(StoreError::Compacted { oldest }) => {
            assert!(oldest < model.revision);
            return;
        }
        Err(e) => panic!("seed {seed}: {e}"),
    };
    let mut seen = Vec::new();
    while seen.len() < changes.len() {
        seen.extend(watch.next().await.expect("changes").0);
    }
    assert!(seen == changes, "seed {seed}: the log is another");
}

/// Works in a runtime of its own.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

/// How many histories are run: what the environment says, or else `usual`.
pub fn count(variable: &str, usual: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(usual, |text| text.parse().expect("a number"))
}
