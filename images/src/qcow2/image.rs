//! An open qcow2 image, and how a step gets what it lacks.

use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::Poll;

use parking_lot::{Mutex, MutexGuard};

use super::cache::{Claim, SliceCache};
use super::compress::Unpacked;
use super::entry::{COPIED, Run};
use super::geometry::Geometry;
use super::header::{Header, MAX_HEADER, MAX_REFTABLE, be64, incompatible};
use super::state::{Freed, Held, SECTOR_ENTRIES, Space, State, Stop, Table};
use crate::io::{Buffer, ImageFile, Port, join};
use crate::{Error, Result};

/// How to open an image.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Nothing will be written.
    pub readonly: bool,
    /// Bytes of tables kept in memory.
    pub cache: u64,
    /// Open it even if it is marked corrupt or dirty, without repairing it: for `check`.
    pub for_check: bool,
}

/// What a disk's caches take unless something else is asked for.
pub const DEFAULT_CACHE: u64 = 1 << 20;

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            readonly: false,
            cache: DEFAULT_CACHE,
            for_check: false,
        }
    }
}

/// An open image. All of its functions may be called from several tasks, on several threads.
pub struct Image {
    file: Arc<ImageFile>,
    /// Where the guest's data is: the same file, or an external one.
    data: Arc<ImageFile>,
    geometry: Geometry,
    external: bool,
    size: AtomicU64,
    state: Mutex<State>,
    /// Requests under way, by the parity of the epoch in which they began.
    pub(super) active: [AtomicU32; 2],
    pub(super) unpacked: Mutex<Unpacked>,
}

/// A request under way: what it may have looked up is not reused until it is dropped.
pub struct Guard<'a> {
    image: &'a Image,
    side: u8,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.image.leave(self.side);
    }
}

/// A lock on clusters or tables.
pub(super) struct Lock<'a> {
    image: &'a Image,
    held: Held,
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        self.image.state.lock().let_go(self.held);
    }
}

/// A slice that a task has claimed and not yet loaded.
struct Loading<'a> {
    image: &'a Image,
    table: Table,
    key: u64,
    done: bool,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut state = self.image.state.lock();
        if !self.done {
            state.cache(self.table).abandon(self.key);
        }
        state.wake();
    }
}

impl State {
    pub(super) fn cache(&mut self, table: Table) -> &mut SliceCache {
        match table {
            Table::L2 => &mut self.l2,
            Table::Refs => &mut self.refs,
        }
    }
}

/// Reads the start of a file and parses it as a header.
pub async fn read_header(port: &Port, file: &Arc<ImageFile>) -> Result<Header> {
    let buffer = Buffer::new(MAX_HEADER.min(file.end()) as usize);
    if !buffer.bytes().is_empty() {
        port.read(file, 0, buffer.span()).await?;
    }
    Header::parse(buffer.bytes(), file.path())
}

impl Image {
    /// Opens the image in `file`. `data` is its external data file, if its header says that it has
    /// one.
    pub async fn open(
        port: &Port,
        file: Arc<ImageFile>,
        data: Option<Arc<ImageFile>>,
        options: &OpenOptions,
    ) -> Result<Arc<Image>> {
        let mut header = read_header(port, &file).await?;
        let fail = |what: String| Error::Invalid {
            path: file.path().to_owned(),
            what,
        };
        let external = header.external();
        let data = match (external, data) {
            (false, None) => file.clone(),
            (true, Some(data)) => data,
            (true, None) => {
                return Err(fail(format!(
                    "its data is in another file ({}): name that file with data_file=",
                    header
                        .data_file
                        .as_deref()
                        .unwrap_or("it does not say which")
                )));
            }
            (false, Some(data)) => {
                return Err(fail(format!(
                    "it has no external data file, but {} was given",
                    data.path().display()
                )));
            }
        };
        if !options.readonly && file.readonly() {
            return Err(Error::ReadOnly {
                path: file.path().to_owned(),
            });
        }
        if !options.readonly && !options.for_check && header.needs(incompatible::CORRUPT) {
            return Err(Error::Corrupt {
                path: file.path().to_owned(),
                what: "it is marked as corrupt".into(),
            });
        }
        if file.is_direct() && header.geometry.cluster() < u64::from(file.block_size()) {
            return Err(fail(format!(
                "its clusters are smaller than what O_DIRECT transfers ({}): open it without direct=on",
                file.block_size()
            )));
        }
        let geometry = header.geometry;
        let l1_bytes = u64::from(header.l1_entries) * 8;
        let l1 = read_table(port, &file, header.l1_offset, l1_bytes).await?;
        // Only who writes needs refcounts.
        let reftable_bytes =
            (u64::from(header.reftable_clusters) << geometry.cluster_bits).min(MAX_REFTABLE);
        let reftable = if options.readonly && !options.for_check {
            Vec::new()
        } else {
            read_table(port, &file, header.reftable_offset, reftable_bytes).await?
        };
        if !options.for_check {
            let defect = super::space::refblocks_defect(&reftable, &geometry, file.end());
            if let Some(what) = defect {
                return Err(Error::Corrupt {
                    path: file.path().to_owned(),
                    what,
                });
            }
        }
        if header.version < 3 {
            header.incompatible = 0;
        }
        // Refcounts are needed in order, L2 entries at random: most of the memory is for those.
        let refs = (options.cache / 8).max(geometry.slice());
        let state = State {
            geometry,
            external,
            l1,
            l1_dirty: BTreeSet::new(),
            l2: SliceCache::new(options.cache.saturating_sub(refs), geometry.slice()),
            refs: SliceCache::new(refs, geometry.slice()),
            reftable,
            reftable_dirty: BTreeSet::new(),
            hint: 0,
            untouched: if file.block_device() {
                u64::MAX
            } else {
                geometry.clusters(file.end())
            },
            packed_end: 0,
            unguarded: header.autoclear & super::header::autoclear::BITMAPS != 0,
            freed: Vec::new(),
            limbo: VecDeque::new(),
            epoch: 0,
            held: Vec::new(),
            waiters: Vec::new(),
            header_unsure: false,
            header,
        };
        let image = Arc::new(Image {
            size: AtomicU64::new(state.header.size),
            file,
            data,
            geometry,
            external,
            state: Mutex::new(state),
            active: Default::default(),
            unpacked: Mutex::default(),
        });
        if !options.readonly && !options.for_check {
            image.begin_writing(port).await?;
        }
        Ok(image)
    }

    /// The guest disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// The file with the tables.
    pub fn file(&self) -> &Arc<ImageFile> {
        &self.file
    }

    /// The file with the guest's data: the same, or an external one.
    pub fn data_file(&self) -> &Arc<ImageFile> {
        &self.data
    }

    /// The fixed sizes.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A copy of the header as it is now.
    pub fn header(&self) -> Header {
        self.state.lock().header.clone()
    }

    /// Bytes of tables in memory, without the L1 and the refcount table.
    pub fn cached(&self) -> u64 {
        let state = self.state.lock();
        state.l2.bytes() + state.refs.bytes()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn external(&self) -> bool {
        self.external
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn corrupt(&self, what: impl Into<String>) -> Error {
        Error::Corrupt {
            path: self.path().to_owned(),
            what: what.into(),
        }
    }

    pub(super) fn invalid(&self, what: impl Into<String>) -> Error {
        Error::Invalid {
            path: self.path().to_owned(),
            what: what.into(),
        }
    }

    /// Begins a request: see [`leave`](Self::leave).
    pub fn enter(&self) -> u8 {
        // The epoch changes under the same lock, so a request is counted in the epoch that it sees.
        let state = self.state.lock();
        self.enter_locked(&state)
    }

    pub(super) fn enter_locked(&self, state: &State) -> u8 {
        let side = (state.epoch & 1) as u8;
        self.active[usize::from(side)].fetch_add(1, Ordering::SeqCst);
        side
    }

    /// Ends a request that [`enter`](Self::enter) or [`try_read`](Self::try_read) began. Space that
    /// was freed meanwhile may be reused from here on.
    pub fn leave(&self, side: u8) {
        self.active[usize::from(side & 1)].fetch_sub(1, Ordering::SeqCst);
    }

    /// Begins a request that ends with the guard.
    pub fn guard(&self) -> Guard<'_> {
        Guard {
            side: self.enter(),
            image: self,
        }
    }

    /// Looks up a place without waiting: none if a table has to be read first. The request has begun
    /// if there is an answer.
    #[inline]
    pub fn try_read(&self, offset: u64, len: u64) -> Option<(Run, u8)> {
        let mut state = self.state.lock();
        let run = state.map(offset, len).ok()?;
        let side = (state.epoch & 1) as u8;
        self.active[usize::from(side)].fetch_add(1, Ordering::SeqCst);
        Some((run, side))
    }

    /// Looks up where `len` bytes can be written in place, without waiting. The request has begun if
    /// there is an answer.
    pub fn try_write(&self, offset: u64, len: u64) -> Option<(u64, u8)> {
        let mut state = self.state.lock();
        let host = state.map_in_place(offset, len)?;
        let side = (state.epoch & 1) as u8;
        self.active[usize::from(side)].fetch_add(1, Ordering::SeqCst);
        Some((host, side))
    }

    /// Whether a flush has no tables to write: flushing the files is enough then.
    pub fn is_clean(&self) -> bool {
        self.state.lock().clean()
    }

    /// Where the bytes from `offset` are, and for how many of `len` that goes on. The caller has
    /// begun a request.
    pub async fn map(&self, port: &Port, offset: u64, len: u64) -> Result<Run> {
        self.with(port, |s| s.map(offset, len)).await
    }

    /// Does a step, getting what it lacks until it can be done.
    pub(super) async fn with<R>(
        &self,
        port: &Port,
        mut step: impl FnMut(&mut State) -> std::result::Result<R, Stop>,
    ) -> Result<R> {
        loop {
            let stop = {
                let mut state = self.state.lock();
                match step(&mut state) {
                    Ok(result) => return Ok(result),
                    Err(stop) => stop,
                }
            };
            match stop {
                Stop::Again => yield_now().await,
                Stop::Corrupt(what) => return Err(self.corrupt(what)),
                Stop::Load(table, key) => self.load(port, table, key).await?,
                Stop::Region(region) => self.add_region(port, region).await?,
            }
        }
    }

    /// Waits until `ready` gives something.
    pub(super) async fn until<R>(&self, mut ready: impl FnMut(&mut State) -> Option<R>) -> R {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            match ready(&mut state) {
                Some(result) => Poll::Ready(result),
                None => {
                    state.waiters.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Waits for a lock.
    pub(super) async fn hold(
        &self,
        space: Space,
        first: u64,
        last: u64,
        exclusive: bool,
    ) -> Lock<'_> {
        let held = Held {
            space,
            first,
            last,
            exclusive,
        };
        self.until(|s| s.try_hold(held).then_some(())).await;
        Lock { image: self, held }
    }

    async fn load(&self, port: &Port, table: Table, key: u64) -> Result<()> {
        let g = self.geometry;
        let (claim, dirty) = {
            let mut state = self.state.lock();
            let cache = state.cache(table);
            (cache.claim(key), cache.dirty() > 0)
        };
        match claim {
            Claim::Present => return Ok(()),
            // Writing back makes room.
            Claim::Full if dirty => return self.commit(port, false, true).await,
            // All of it is being loaded or is about to change.
            Claim::Full => {
                let room = |s: &mut State| {
                    let cache = s.cache(table);
                    (cache.room() || cache.dirty() > 0).then_some(())
                };
                self.until(room).await;
                return Ok(());
            }
            // Whatever comes of it, the step looks again.
            Claim::Loading => {
                self.until(|s| (!s.cache(table).is_loading(key)).then_some(()))
                    .await;
                return Ok(());
            }
            Claim::Yours => {}
        }
        let mut loading = Loading {
            image: self,
            table,
            key,
            done: false,
        };
        let (per, base) = {
            let state = self.state.lock();
            match table {
                Table::L2 => {
                    let per = g.slices();
                    (per, state.l2_table((key / per) as usize))
                }
                Table::Refs => {
                    let per = g.slices();
                    let base = state.reftable.get((key / per) as usize).copied();
                    (per, base.unwrap_or(0))
                }
            }
        };
        if base == 0 || !base.is_multiple_of(g.cluster()) {
            return Err(self.corrupt(format!("a table is at {base:#x}, not at a cluster's start")));
        }
        let buffer = Buffer::new(g.slice() as usize);
        let offset = base + key % per * g.slice();
        port.read(&self.file, offset, buffer.span()).await?;
        let mut state = self.state.lock();
        state.cache(table).insert(key, buffer.bytes().into());
        loading.done = true;
        drop(state);
        Ok(())
    }

    /// Makes the L2 table of an L1 entry exist and be ours alone.
    pub(super) async fn own_table(&self, port: &Port, index: usize) -> Result<()> {
        let ours = |s: &State| s.l1.get(index).is_some_and(|e| e & COPIED != 0);
        if ours(&self.state.lock()) {
            return Ok(());
        }
        let _lock = self.hold(Space::L1, index as u64, index as u64, true).await;
        let old = {
            let state = self.state.lock();
            if ours(&state) {
                return Ok(());
            }
            if index >= state.l1.len() {
                return Err(self.invalid("the write is beyond the L1 table"));
            }
            state.l2_table(index)
        };
        let (cluster, _, _) = self.with(port, |s| s.allocate(1)).await?;
        let offset = cluster << self.geometry.cluster_bits;
        let table = Buffer::new(self.geometry.cluster() as usize);
        let written = async {
            if old != 0 {
                // Its slices in memory are clean: a shared table is never changed.
                port.read(&self.file, old, table.span()).await?;
            }
            port.write(&self.file, offset, table.span()).await
        };
        if let Err(e) = written.await {
            self.give_back(port, cluster, 1).await;
            return Err(e);
        }
        let mut state = self.state.lock();
        state.l1[index] = offset | COPIED;
        state.l1_dirty.insert(index / SECTOR_ENTRIES);
        if old != 0 {
            let first = old >> self.geometry.cluster_bits;
            state.freed.push(Freed { first, count: 1 });
        }
        Ok(())
    }

    /// Gives back clusters that were allocated and that nothing ever referred to.
    pub(super) async fn give_back(&self, port: &Port, first: u64, count: u64) {
        for cluster in first..first + count {
            // If this fails they are leaked, which `check -r leaks` mends.
            let _ = self.with(port, |s| s.set_refcount(cluster, 0)).await;
        }
    }

    /// Makes a refblock for a part of the file that has none.
    async fn add_region(&self, port: &Port, region: u64) -> Result<()> {
        let g = self.geometry;
        let _lock = self.hold(Space::Header, 0, 0, true).await;
        let (exists, covered) = {
            let state = self.state.lock();
            let entry = state.reftable.get(region as usize).copied();
            (entry.is_some_and(|e| e != 0), entry.is_some())
        };
        if exists {
            return Ok(());
        }
        if region == 0 {
            return Err(self.corrupt("its own header has no refcount"));
        }
        if !covered {
            return self.grow_reftable(port, region).await;
        }
        // Nothing in this part is in use, so the block can be its first cluster.
        let cluster = region * g.refblock_entries();
        self.check_place(cluster)?;
        let mut block = Buffer::new(g.cluster() as usize);
        super::geometry::set_refcount(block.bytes_mut(), g.refcount_order, 0, 1);
        port.write(&self.file, cluster << g.cluster_bits, block.span())
            .await?;
        let mut state = self.state.lock();
        state.reftable[region as usize] = cluster << g.cluster_bits;
        state
            .reftable_dirty
            .insert(region as usize / SECTOR_ENTRIES);
        state.untouched = state.untouched.max(cluster + 1);
        Ok(())
    }

    /// Makes a larger refcount table, behind everything that the old one covers.
    pub(super) async fn grow_reftable(&self, port: &Port, region: u64) -> Result<()> {
        let g = self.geometry;
        let old_len = self.state.lock().reftable.len() as u64;
        let region = region.max(old_len);
        let wanted = (region + 2).max(old_len + old_len / 2);
        let clusters = g.clusters(wanted * 8);
        if clusters << g.cluster_bits > MAX_REFTABLE {
            return Err(self.invalid("the file cannot grow further: its refcount table is full"));
        }
        let per = g.refblock_entries();
        let mut blocks = 1;
        while blocks * per < blocks + clusters {
            blocks += 1;
        }
        let start = region * per;
        let used = blocks + clusters;
        self.check_place(start + used)?;
        let mut content = Buffer::new((used << g.cluster_bits) as usize);
        for i in 0..used {
            let block = (i / per) << g.cluster_bits;
            let block = &mut content.bytes_mut()[block as usize..];
            super::geometry::set_refcount(block, g.refcount_order, i % per, 1);
        }
        let mut table = self.state.lock().reftable.clone();
        table.resize((clusters << g.cluster_bits) as usize / 8, 0);
        for i in 0..blocks {
            table[(region + i) as usize] = (start + i) << g.cluster_bits;
        }
        let at = (blocks << g.cluster_bits) as usize;
        for (place, entry) in content.bytes_mut()[at..].chunks_exact_mut(8).zip(&table) {
            place.copy_from_slice(&entry.to_be_bytes());
        }
        port.write(&self.file, start << g.cluster_bits, content.span())
            .await?;
        // The table holds entries of blocks that may not be durable: all are from here on.
        port.flush(&self.file).await?;
        let old = self.header();
        self.change_header(port, |header| {
            header.reftable_offset = (start + blocks) << g.cluster_bits;
            header.reftable_clusters = clusters as u32;
        })
        .await?;
        let mut state = self.state.lock();
        state.reftable = table;
        state.reftable_dirty.clear();
        state.untouched = state.untouched.max(start + used);
        state.freed.push(Freed {
            first: old.reftable_offset >> g.cluster_bits,
            count: old.reftable_clusters.into(),
        });
        Ok(())
    }
}

/// Lets other tasks go on.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Reads a table of big-endian numbers.
pub(super) async fn read_table(
    port: &Port,
    file: &Arc<ImageFile>,
    offset: u64,
    bytes: u64,
) -> Result<Vec<u64>> {
    if bytes == 0 {
        return Ok(Vec::new());
    }
    if offset.saturating_add(bytes) > file.end().next_multiple_of(2 << 20) {
        return Err(Error::Corrupt {
            path: file.path().to_owned(),
            what: format!("a table of {bytes} bytes at {offset:#x} is beyond the file's end"),
        });
    }
    let buffer = Buffer::new(bytes as usize);
    join([port.read(file, offset, buffer.span())]).await?;
    let entries = buffer.bytes().chunks_exact(8);
    Ok(entries.map(|e| be64(e, 0)).collect())
}
