//! What a check of an image found.

/// Messages that a report keeps; the rest is only counted.
const KEPT: usize = 1000;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong and could damage data.
    pub corruptions: u64,
    /// Clusters that nothing refers to, but whose refcount says otherwise.
    pub leaks: u64,
    /// Corruptions that were mended.
    pub corruptions_fixed: u64,
    /// Leaks that were mended.
    pub leaks_fixed: u64,
    /// Guest clusters in all.
    pub total_clusters: u64,
    /// Guest clusters with data.
    pub allocated_clusters: u64,
    /// Of these, compressed.
    pub compressed_clusters: u64,
    /// Of these, not right behind their neighbour.
    pub fragmented_clusters: u64,
    /// Where the last cluster in use ends.
    pub image_end: u64,
    /// The first findings, in words.
    pub messages: Vec<String>,
}

impl Report {
    /// Keeps a message.
    pub(super) fn say(&mut self, message: impl FnOnce() -> String) {
        if self.messages.len() < KEPT {
            self.messages.push(message());
        }
    }

    /// One more corruption.
    pub(super) fn corrupt(&mut self, message: impl FnOnce() -> String) {
        self.corruptions += 1;
        self.say(|| format!("ERROR {}", message()));
    }

    /// Nothing is wrong, not even a leak.
    pub fn clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0
    }
}
