//! What each sector of a guest's disk may hold, now and after a power cut.

/// Time in events: nothing happens at the same time as something else.
pub type Time = u64;

/// What an operation leaves in a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    Zero,
    /// The layer below, or zeroes behind its end.
    Below,
    /// A pattern of this number and the sector's.
    Tag(u32),
}

/// One operation that changes sectors.
#[derive(Debug, Clone)]
struct Change {
    value: Value,
    start: Time,
    end: Option<Time>,
    /// A flush that began after its end has ended.
    durable: bool,
    /// It may have happened or not, also after it was acknowledged: a discard, or a failed write.
    weak: bool,
}

/// The number of a change.
pub type Id = usize;

/// The sectors and the changes that each may show.
pub struct Allowed {
    changes: Vec<Change>,
    sectors: Vec<Vec<Id>>,
    /// All changes of each: what a long read may show.
    all: Vec<Vec<Id>>,
    /// Sectors of the layer below.
    below: u64,
}

const BELOW: u32 = 0xbe10_0000;

/// The content of a sector, word by word.
fn word(tag: u32, sector: u64) -> u64 {
    u64::from(tag) << 32 | sector
}

/// Fills `bytes`, which begin at `sector`, with the pattern of `tag`.
pub fn paint(bytes: &mut [u8], sector: u64, tag: u32) {
    for (i, chunk) in bytes.chunks_mut(8).enumerate() {
        let word = word(tag, sector + i as u64 / 64);
        chunk.copy_from_slice(&word.to_le_bytes());
    }
}

/// The layer below.
pub fn below(sectors: u64) -> Vec<u8> {
    let mut bytes = vec![0; sectors as usize * 512];
    paint(&mut bytes, 0, BELOW);
    bytes
}

impl Allowed {
    /// A disk on which only the layer below shows.
    pub fn new(sectors: u64, below: u64) -> Allowed {
        Allowed {
            changes: vec![Change {
                value: Value::Below,
                start: 0,
                end: Some(0),
                durable: true,
                weak: false,
            }],
            sectors: vec![vec![0]; sectors as usize],
            all: vec![vec![0]; sectors as usize],
            below,
        }
    }

    /// Sectors of the disk.
    pub fn len(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// A change begins.
    pub fn begin(&mut self, now: Time, at: u64, len: u64, value: Value, weak: bool) -> Id {
        self.changes.push(Change {
            value,
            start: now,
            end: None,
            durable: false,
            weak,
        });
        let id = self.changes.len() - 1;
        let end = (at + len).min(self.len());
        for sectors in [&mut self.sectors, &mut self.all] {
            for sector in &mut sectors[at as usize..end as usize] {
                sector.push(id);
            }
        }
        id
    }

    /// A change is acknowledged, or has failed.
    pub fn end(&mut self, now: Time, id: Id, ok: bool) {
        self.changes[id].end = Some(now);
        self.changes[id].weak |= !ok;
    }

    /// A flush that began at `start` has ended.
    pub fn flushed(&mut self, start: Time) {
        for change in &mut self.changes {
            change.durable |= !change.weak && change.end.is_some_and(|end| end < start);
        }
        let changes = &self.changes;
        for sector in &mut self.sectors {
            if sector.len() > 1 {
                Allowed::prune(changes, sector, |c| c.durable);
            }
        }
    }

    /// Drops what a change that `rules` has certainly replaced.
    fn prune(changes: &[Change], sector: &mut Vec<Id>, rules: impl Fn(&Change) -> bool) {
        let ruling = sector.iter().map(|id| &changes[*id]).filter(|c| rules(c));
        let since = ruling.map(|c| c.start).max().unwrap_or(0);
        sector.retain(|id| changes[*id].end.is_none_or(|end| end >= since));
    }

    /// Makes the disk longer, with zeroes, or shorter. It is durable.
    pub fn resize(&mut self, now: Time, sectors: u64) {
        let old = self.len();
        self.sectors.resize(sectors as usize, Vec::new());
        self.all.resize(sectors as usize, Vec::new());
        if sectors > old {
            let id = self.begin(now, old, sectors - old, Value::Zero, false);
            self.changes[id].end = Some(now);
            self.changes[id].durable = true;
        }
    }

    /// What is wrong with `bytes`, read from `at` on after a power cut, if anything. Sectors behind
    /// the end are zeroes: the disk was growing.
    pub fn after_cut(&self, at: u64, bytes: &[u8]) -> Result<(), String> {
        for (i, sector) in bytes.chunks(512).enumerate() {
            let n = at + i as u64;
            match self.sectors.get(n as usize) {
                Some(changes) => self.judge(n, sector, changes)?,
                None if sector.iter().all(|b| *b == 0) => {}
                None => return Err(format!("sector {n} is new, and not zero")),
            }
        }
        Ok(())
    }

    /// The changes that a range may show now, for a read that begins.
    pub fn candidates(&self, at: u64, len: u64) -> Vec<Vec<Id>> {
        self.sectors[at as usize..(at + len) as usize].to_vec()
    }

    /// What is wrong with `bytes`, read from `at` on by a request that began at `start`, when the
    /// candidates were `before`, if anything.
    pub fn in_life(
        &self,
        at: u64,
        bytes: &[u8],
        start: Time,
        before: &[Vec<Id>],
    ) -> Result<(), String> {
        for (i, sector) in bytes.chunks(512).enumerate() {
            let n = at + i as u64;
            let Some(changes) = self.all.get(n as usize) else {
                continue;
            };
            let mut changes = changes.clone();
            changes.extend(before.get(i).into_iter().flatten());
            Allowed::prune(&self.changes, &mut changes, |c| {
                !c.weak && c.end.is_some_and(|end| end < start)
            });
            self.judge(n, sector, &changes)?;
        }
        Ok(())
    }

    fn judge(&self, n: u64, bytes: &[u8], changes: &[Id]) -> Result<(), String> {
        let words = || {
            let words = bytes.chunks_exact(8);
            words.map(|c| c.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
        };
        let first = words().next().unwrap_or(0);
        if words().any(|w| w != first) {
            return Err(format!("sector {n} is torn"));
        }
        let fits = changes.iter().any(|id| match self.changes[*id].value {
            Value::Zero => first == 0,
            Value::Below if n >= self.below => first == 0,
            Value::Below => first == word(BELOW, n),
            Value::Tag(tag) => first == word(tag, n),
        });
        if fits {
            return Ok(());
        }
        let allowed: Vec<_> = changes.iter().map(|id| &self.changes[*id]).collect();
        let tag = (first >> 32) as u32;
        Err(format!(
            "sector {n} holds tag {tag:#x} of sector {}; allowed are {allowed:#?}",
            first as u32
        ))
    }
}
