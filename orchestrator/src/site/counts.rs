//! What the agent and the scheduler count.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a site counts.
#[derive(Debug, Default)]
pub struct SiteCounts {
    /// Looks at workloads, each with the next step.
    pub turns: AtomicU64,
    /// Those that failed, and are tried again.
    pub failed_turns: AtomicU64,
    /// Workloads that were given a place.
    pub placed: AtomicU64,
    /// Looks that found none.
    pub unplaced: AtomicU64,
}

/// One more.
pub(super) fn one_more(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
