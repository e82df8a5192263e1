//! Copying a disk into another image.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{extent, is_zero, zeroes};
use crate::chain::live::Progress;
use crate::chain::{Layer, Stack};
use crate::io::{Buffer, Port};
use crate::qcow2::{Image, PackedCluster, pack};
use crate::{Error, Result};

/// What is read and written at a time: a multiple of every cluster size.
pub const PIECE: u64 = 2 << 20;

/// How to copy.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Write compressed clusters.
    pub packed: bool,
    /// Blocks of zeroes of at least so many bytes are not written as data; 0: everything is.
    pub sparse: u64,
    /// The target reads as zeroes where nothing was written: zeroes can be left out.
    pub zeroed: bool,
    /// The source's layers from this one on lie below the target, too: what they have is left out.
    pub shared: Option<usize>,
    /// The target has layers below it that the source does not share: only what differs is written.
    pub differing: bool,
}

/// A copy under way. Several threads may run [`work`](Self::work) at once, each with a port of its
/// own; together they copy everything.
pub struct Convert<'a> {
    source: &'a Stack,
    target: &'a Stack,
    options: ConvertOptions,
    job: &'a Progress,
    size: u64,
    next: AtomicU64,
}

/// What happens to a stretch of the target.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Copy,
    Zero,
    Skip,
}

impl<'a> Convert<'a> {
    /// A copy of `source`, as far as it goes, to the start of `target`.
    pub fn new(
        source: &'a Stack,
        target: &'a Stack,
        options: ConvertOptions,
        job: &'a Progress,
    ) -> Result<Convert<'a>> {
        let fail = |what: String| Error::Invalid {
            path: target.top().file().path().to_owned(),
            what,
        };
        if source.size() > target.size() {
            return Err(fail(format!(
                "it holds {} bytes, and the source has {}",
                target.size(),
                source.size()
            )));
        }
        if options.packed {
            match target.top() {
                Layer::Raw(_) => return Err(fail("raw images cannot be compressed".into())),
                Layer::Qcow2(image) if image.header().external() => {
                    return Err(fail(
                        "an external data file cannot hold compressed data".into(),
                    ));
                }
                Layer::Qcow2(_) => {}
            }
        }
        job.expect(source.size());
        Ok(Convert {
            source,
            target,
            options,
            job,
            size: source.size(),
            next: AtomicU64::new(0),
        })
    }

    /// Copies pieces until there are no more.
    pub async fn work(&self, port: &Port) -> Result<()> {
        let mut buffers = Vec::new();
        buffers.push(Buffer::new(PIECE as usize));
        if self.options.differing {
            buffers.push(Buffer::new(PIECE as usize));
        }
        loop {
            let at = self.next.fetch_add(PIECE, Ordering::Relaxed);
            if at >= self.size {
                return Ok(());
            }
            let len = PIECE.min(self.size - at);
            let copied = self.copy(port, at, len, &buffers).await;
            if let Err(e) = copied.and_then(|()| self.job.step(len)) {
                // The other threads have nothing more to do.
                self.next.store(self.size, Ordering::Relaxed);
                return Err(e);
            }
        }
    }

    /// The blocks that zeroes are looked for in.
    fn unit(&self) -> u64 {
        let unit = match self.target.top() {
            Layer::Qcow2(image) if self.options.packed => image.geometry().cluster(),
            Layer::Qcow2(image) => image.geometry().unit(),
            Layer::Raw(_) => 4096,
        };
        unit.max(self.options.sparse.next_power_of_two().min(PIECE))
    }

    async fn copy(&self, port: &Port, start: u64, len: u64, buffers: &[Buffer]) -> Result<()> {
        let end = start + len;
        let unit = self.unit();
        for (from, to, fate) in self.fates(port, start, end, unit).await? {
            let part = |b: &Buffer| b.part((from - start) as usize, (to - from) as usize);
            match fate {
                Fate::Skip => continue,
                Fate::Zero => self.zero(port, from, to - from).await?,
                Fate::Copy => {
                    self.source.read(port, from, &part(&buffers[0])).await?;
                    let bytes = &buffers[0].bytes()[(from - start) as usize..(to - start) as usize];
                    let mut runs = Vec::new();
                    if self.options.sparse > 0 {
                        zeroes::runs(bytes, from, unit, |at, len, zero| {
                            runs.push((at, len, zero));
                        });
                    } else {
                        runs.push((from, to - from, false));
                    }
                    for (at, len, zero) in runs {
                        if zero {
                            self.zero(port, at, len).await?;
                        } else {
                            self.store(port, start, at, len, buffers).await?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What is to be done with each stretch from `start` to `end`.
    async fn fates(
        &self,
        port: &Port,
        start: u64,
        end: u64,
        unit: u64,
    ) -> Result<Vec<(u64, u64, Fate)>> {
        let layers = self.source.layers();
        let shared = self.options.shared.unwrap_or(usize::MAX);
        let mut fates: Vec<(u64, u64, Fate)> = Vec::new();
        let mut at = start;
        while at < end {
            let found = extent(port, layers, at, end - at).await?;
            let below = found.depth >= shared || !found.present && found.depth + 1 >= shared;
            let fate = match found.zero {
                _ if below => Fate::Skip,
                true if self.options.sparse > 0 => Fate::Zero,
                _ => Fate::Copy,
            };
            let next = at + found.len;
            match fates.last_mut() {
                Some((_, to, was)) if *was == fate => *to = next,
                _ => fates.push((at, next, fate)),
            }
            at = next;
        }
        if self.options.shared.is_none() {
            fates = whole_blocks(&fates, start, end, unit);
        }
        Ok(fates)
    }

    async fn zero(&self, port: &Port, at: u64, len: u64) -> Result<()> {
        if self.options.zeroed {
            return Ok(());
        }
        self.target.zero(port, at, len, true).await
    }

    /// Writes what the first buffer, which starts at `start`, has at `at`.
    async fn store(
        &self,
        port: &Port,
        start: u64,
        at: u64,
        len: u64,
        buffers: &[Buffer],
    ) -> Result<()> {
        if let [_, below, ..] = buffers {
            let span = below.part((at - start) as usize, len as usize);
            self.target.read(port, at, &span).await?;
            let range = (at - start) as usize..(at - start + len) as usize;
            if buffers[0].bytes()[range.clone()] == below.bytes()[range] {
                return Ok(());
            }
        }
        match self.target.top() {
            Layer::Qcow2(image) if self.options.packed => {
                self.store_packed(port, image, start, at, len, &buffers[0])
                    .await
            }
            _ => {
                let span = buffers[0].part((at - start) as usize, len as usize);
                self.target.write(port, at, &span).await
            }
        }
    }

    async fn store_packed(
        &self,
        port: &Port,
        image: &Image,
        start: u64,
        at: u64,
        len: u64,
        buffer: &Buffer,
    ) -> Result<()> {
        let cluster = image.geometry().cluster();
        let kind = image.header().compression;
        let end = at + len;
        let mut packed: Vec<PackedCluster> = Vec::new();
        // Clusters that do not become smaller, in runs.
        let mut plain: Vec<(u64, u64)> = Vec::new();
        let mut add_plain = |from: u64, to: u64| match plain.last_mut() {
            Some((_, end)) if *end == from => *end = to,
            _ => plain.push((from, to)),
        };
        let mut from = at;
        while from < end {
            let to = ((from / cluster + 1) * cluster).min(end);
            let bytes = &buffer.bytes()[(from - start) as usize..(to - start) as usize];
            let whole = to - from == cluster;
            let result = if self.options.sparse > 0 && is_zero(bytes) && self.options.zeroed {
                from = to;
                continue;
            } else if whole {
                pack(kind, bytes)
            } else if to == image.size() && from.is_multiple_of(cluster) {
                // The disk ends within the cluster.
                let mut padded = bytes.to_vec();
                padded.resize(cluster as usize, 0);
                pack(kind, &padded)
            } else {
                None
            };
            match result {
                Some(bytes) => packed.push((from, bytes)),
                None => add_plain(from, to),
            }
            from = to;
        }
        let refused = image.write_packed_clusters(port, packed).await?;
        for from in refused {
            add_plain(from, (from + cluster).min(end));
        }
        for (from, to) in plain {
            let span = buffer.part((from - start) as usize, (to - from) as usize);
            self.target.write(port, from, &span).await?;
        }
        Ok(())
    }
}

/// What is copied, extended to whole blocks, so that nothing is read from the target; between that,
/// zeroes.
fn whole_blocks(
    fates: &[(u64, u64, Fate)],
    start: u64,
    end: u64,
    unit: u64,
) -> Vec<(u64, u64, Fate)> {
    let mut whole: Vec<(u64, u64, Fate)> = Vec::new();
    let mut done = start;
    for (from, to, _) in fates.iter().filter(|f| f.2 == Fate::Copy) {
        let from = (from & !(unit - 1)).max(done);
        let to = to.next_multiple_of(unit).min(end);
        if from > done {
            whole.push((done, from, Fate::Zero));
        }
        match whole.last_mut() {
            Some((_, end, Fate::Copy)) if *end == from => *end = to,
            _ if from < to => whole.push((from, to, Fate::Copy)),
            _ => {}
        }
        done = done.max(to);
    }
    if done < end {
        whole.push((done, end, Fate::Zero));
    }
    whole
}
