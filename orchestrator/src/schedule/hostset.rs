//! A set of hosts as bits, with a summary of its words: quick to walk when it is nearly empty.

/// A host's place in the cluster's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostIndex(pub(super) u32);

impl HostIndex {
    /// As an index of a table.
    pub(super) fn at(self) -> usize {
        self.0 as usize
    }
}

const BITS: usize = u64::BITS as usize;

/// A set of hosts.
#[derive(Debug, Clone, Default)]
pub(super) struct HostSet {
    /// A bit a host.
    words: Vec<u64>,
    /// A bit for each word that is not 0.
    summary: Vec<u64>,
}

impl HostSet {
    /// Adds a host.
    pub fn insert(&mut self, host: HostIndex) {
        let word = host.at() / BITS;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
            self.summary.resize(word / BITS + 1, 0);
        }
        self.words[word] |= 1 << (host.at() % BITS);
        self.summary[word / BITS] |= 1 << (word % BITS);
    }

    /// Takes a host out, if it is in.
    pub fn remove(&mut self, host: HostIndex) {
        let word = host.at() / BITS;
        let Some(bits) = self.words.get_mut(word) else {
            return;
        };
        *bits &= !(1 << (host.at() % BITS));
        if *bits == 0 {
            self.summary[word / BITS] &= !(1 << (word % BITS));
        }
    }

    /// Puts a host in, or takes it out.
    pub fn set(&mut self, host: HostIndex, within: bool) {
        match within {
            true => self.insert(host),
            false => self.remove(host),
        }
    }

    /// Whether a host is in.
    pub fn contains(&self, host: HostIndex) -> bool {
        let bits = self.words.get(host.at() / BITS).copied().unwrap_or(0);
        bits >> (host.at() % BITS) & 1 == 1
    }

    /// Whether none is in.
    pub fn is_empty(&self) -> bool {
        self.summary.iter().all(|&bits| bits == 0)
    }

    /// How many are in.
    pub fn len(&self) -> usize {
        self.words
            .iter()
            .map(|bits| bits.count_ones() as usize)
            .sum()
    }

    /// Keeps those that are also in `other`.
    pub fn intersect(&mut self, other: &HostSet) {
        self.combine(other, |mine, theirs| mine & theirs);
    }

    /// Takes out all that are in `other`.
    pub fn subtract(&mut self, other: &HostSet) {
        self.combine(other, |mine, theirs| mine & !theirs);
    }

    /// Adds all that are in `other`.
    pub fn unite(&mut self, other: &HostSet) {
        if other.words.len() > self.words.len() {
            self.words.resize(other.words.len(), 0);
            self.summary.resize(other.summary.len(), 0);
        }
        self.combine(other, |mine, theirs| mine | theirs);
    }

    fn combine(&mut self, other: &HostSet, how: impl Fn(u64, u64) -> u64) {
        self.summary.fill(0);
        for (i, word) in self.words.iter_mut().enumerate() {
            *word = how(*word, other.words.get(i).copied().unwrap_or(0));
            self.summary[i / BITS] |= u64::from(*word != 0) << (i % BITS);
        }
    }

    /// How many are in both.
    pub fn common(&self, other: &HostSet) -> usize {
        let both = self.words.iter().zip(&other.words);
        both.map(|(a, b)| (a & b).count_ones() as usize).sum()
    }

    /// The hosts in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = HostIndex> {
        ones(&self.summary).flat_map(|word| {
            let bits = std::slice::from_ref(&self.words[word]);
            ones(bits).map(move |bit| HostIndex((word * BITS + bit) as u32))
        })
    }
}

impl FromIterator<HostIndex> for HostSet {
    fn from_iter<T: IntoIterator<Item = HostIndex>>(hosts: T) -> Self {
        let mut set = HostSet::default();
        hosts.into_iter().for_each(|host| set.insert(host));
        set
    }
}

/// The positions of the bits that are 1.
fn ones(words: &[u64]) -> impl Iterator<Item = usize> {
    words.iter().enumerate().flat_map(|(i, &word)| {
        let mut rest = word;
        std::iter::from_fn(move || {
            (rest != 0).then(|| {
                let bit = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                i * BITS + bit
            })
        })
    })
}

#[cfg(test)]
#[path = "hostset_test.rs"]
mod tests;
