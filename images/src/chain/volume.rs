//! A disk in use: a stack of layers that may be exchanged while requests come in.
//!
//! Every request passes a gate. Who wants to exchange layers closes it, waits until no request is
//! under way, and opens it again: so a request sees the same layers from beginning to end, and
//! nobody pays for that but two counters.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Poll, Waker};

use parking_lot::Mutex;

use super::live::Backup;
use super::{Layer, Stack};
use crate::DirtyMap;
use crate::Result;
use crate::io::{ImageFile, Port, Span};
use crate::qcow2::{Place, Ticket, Tracker};

/// What a request works with. It stays the same while the request is under way.
#[derive(Clone)]
pub struct View {
    /// The layers.
    pub stack: Stack,
    /// Maps that are told of writes when they have ended.
    pub trackers: Vec<Arc<DirtyMap>>,
    /// Bitmaps that are told so, too, and that the top image keeps.
    pub bitmaps: Vec<Tracker>,
    /// A backup that copies what a write is about to overwrite.
    pub backup: Option<Arc<Backup>>,
}

/// Where the bytes of a request are, found without waiting.
pub enum Target<'a> {
    /// At this offset of this file. Given back with [`View::done`].
    File(&'a Arc<ImageFile>, u64, Hold),
    /// Nowhere: they read as zeroes.
    Zeroes,
    /// It takes a task to find out.
    Unknown,
}

/// A request's hold on the layer that it was led to.
#[derive(Debug)]
pub struct Hold {
    layer: u8,
    how: How,
}

#[derive(Debug)]
enum How {
    /// A raw file moves nothing.
    Free,
    /// What was looked up is not reused; the epoch.
    Side(u8),
    /// A first write.
    Ticket(Ticket),
}

impl Hold {
    fn new(layer: usize, how: How) -> Hold {
        // There are at most `MAX_LAYERS`.
        Hold {
            layer: layer as u8,
            how,
        }
    }

    /// The layer's index.
    pub fn layer(&self) -> usize {
        self.layer.into()
    }
}

impl View {
    /// The same, with one more map that is told of writes.
    pub fn tracked(&self, map: Arc<DirtyMap>) -> View {
        let mut view = self.clone();
        view.trackers.push(map);
        view
    }

    /// The same without that map.
    pub fn untracked(&self, map: &Arc<DirtyMap>) -> View {
        let mut view = self.clone();
        view.trackers.retain(|t| !Arc::ptr_eq(t, map));
        view
    }

    /// The same with other layers.
    pub fn on(&self, stack: Stack) -> View {
        View {
            stack,
            ..self.clone()
        }
    }

    /// Where `len` bytes from `offset` can be read.
    #[inline]
    pub fn read(&self, offset: u64, len: u64) -> Target<'_> {
        for (i, layer) in self.stack.layers().iter().enumerate() {
            if offset + len > layer.size() {
                return Target::Unknown;
            }
            let image = match layer {
                Layer::Raw(raw) => {
                    return Target::File(raw.file(), offset, Hold::new(i, How::Free));
                }
                Layer::Qcow2(image) => image,
            };
            let Some((run, side)) = image.try_read(offset, len) else {
                return Target::Unknown;
            };
            match run.place {
                Place::Data(host) if run.len >= len => {
                    return Target::File(image.data_file(), host, Hold::new(i, How::Side(side)));
                }
                _ => image.leave(side),
            }
            match run.place {
                Place::Zero if run.len >= len => return Target::Zeroes,
                Place::Hole if run.len >= len => {}
                _ => return Target::Unknown,
            }
        }
        Target::Zeroes
    }

    /// Where `len` bytes from `offset` can be written without anything being read or copied first. With
    /// `first` that may be a new place, to which the tables lead when the disk is flushed.
    #[inline]
    pub fn write(&self, offset: u64, len: u64, first: bool) -> Target<'_> {
        if self.backup.is_some() {
            return Target::Unknown;
        }
        match self.stack.top() {
            Layer::Raw(raw) => Target::File(raw.file(), offset, Hold::new(0, How::Free)),
            Layer::Qcow2(image) => {
                if let Some((host, side)) = image.try_write(offset, len) {
                    let hold = Hold::new(0, How::Side(side));
                    return Target::File(image.data_file(), host, hold);
                }
                match first.then(|| image.begin_write(offset, len)).flatten() {
                    Some((host, ticket)) => {
                        let hold = Hold::new(0, How::Ticket(ticket));
                        Target::File(image.data_file(), host, hold)
                    }
                    None => Target::Unknown,
                }
            }
        }
    }

    /// The file whose flush makes all that was written durable, if that is enough.
    pub fn flush(&self) -> Option<&Arc<ImageFile>> {
        match self.stack.top() {
            Layer::Raw(raw) => Some(raw.file()),
            Layer::Qcow2(image) => {
                let one = Arc::ptr_eq(image.file(), image.data_file());
                (one && image.is_clean()).then(|| image.file())
            }
        }
    }

    /// A request that was led to a file has ended, well or not.
    #[inline]
    pub fn done(&self, hold: Hold, well: bool) {
        let layer = self.stack.layers().get(hold.layer());
        match (layer, hold.how) {
            (Some(Layer::Qcow2(image)), How::Side(side)) => image.leave(side),
            (Some(Layer::Qcow2(image)), How::Ticket(ticket)) => image.end_write(ticket, well),
            _ => {}
        }
    }

    /// A write has ended, well or not.
    #[inline]
    pub fn written(&self, offset: u64, len: u64) {
        for tracker in &self.trackers {
            tracker.mark(offset, len);
        }
        for bitmap in &self.bitmaps {
            bitmap.mark(offset, len);
        }
    }

    /// Saves what a write is about to overwrite, if a backup wants it.
    async fn before_write(&self, port: &Port, offset: u64, len: u64) {
        if let Some(backup) = &self.backup {
            backup.before_write(port, &self.stack, offset, len).await;
        }
    }

    /// Reads, waiting for whatever that takes.
    pub async fn read_slowly(&self, port: &Port, offset: u64, span: &Span) -> Result<()> {
        self.stack.read(port, offset, span).await.map(drop)
    }

    /// Writes, waiting for whatever that takes.
    pub async fn write_slowly(&self, port: &Port, offset: u64, span: &Span) -> Result<()> {
        self.before_write(port, offset, span.len()).await;
        self.stack.write(port, offset, span).await
    }

    /// Zeroes a range.
    pub async fn zero(&self, port: &Port, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.before_write(port, offset, len).await;
        self.stack.zero(port, offset, len, unmap).await
    }

    /// Discards a range.
    pub async fn discard(&self, port: &Port, offset: u64, len: u64) -> Result<()> {
        self.before_write(port, offset, len).await;
        self.stack.discard(port, offset, len).await
    }
}

/// A disk in use.
pub struct Volume {
    view: Mutex<Arc<View>>,
    generation: AtomicU64,
    size: AtomicU64,
    readonly: bool,
    block_size: u32,
    memory_align: u32,
    /// Bytes of tables that the layers together keep in memory.
    cache: u64,
    active: AtomicU32,
    closed: AtomicBool,
    waiters: Mutex<Vec<Waker>>,
}

/// The gate is closed, and no request is under way. Opens when dropped.
pub struct Drained<'a>(&'a Volume);

impl Drop for Drained<'_> {
    fn drop(&mut self) {
        self.0.closed.store(false, Ordering::SeqCst);
        self.0.wake();
    }
}

impl Volume {
    /// A disk of these layers, which keep tables of `cache` bytes in memory, all together.
    pub fn new(stack: Stack, cache: u64) -> Arc<Volume> {
        stack.share_cache(cache);
        let files = || stack.layers().iter().map(Layer::data_file);
        Arc::new(Volume {
            generation: AtomicU64::new(0),
            size: AtomicU64::new(stack.size()),
            readonly: stack.top().file().readonly(),
            cache,
            block_size: files().map(|f| f.block_size()).max().unwrap_or(512),
            memory_align: files().map(|f| f.memory_align()).max().unwrap_or(1),
            active: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            waiters: Mutex::default(),
            view: Mutex::new(Arc::new(View {
                stack,
                trackers: Vec::new(),
                bitmaps: Vec::new(),
                backup: None,
            })),
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Whether writes are refused.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// What offsets and lengths of requests are multiples of.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// What addresses of transfers are multiples of, where the page cache is bypassed.
    pub fn memory_align(&self) -> u32 {
        self.memory_align
    }

    /// Begins a request. False if the gate is closed: wait for [`opened`](Self::opened).
    #[inline]
    pub fn begin(&self) -> bool {
        self.active.fetch_add(1, Ordering::SeqCst);
        if !self.closed.load(Ordering::SeqCst) {
            return true;
        }
        self.end();
        false
    }

    /// Whether the gate is closed: whoever has begun begins nothing more, and ends soon.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Ends a request.
    #[inline]
    pub fn end(&self) {
        let last = self.active.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.closed.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Looks up the view again if it changed. The caller has begun a request.
    #[inline]
    pub fn refresh(&self, view: &mut Arc<View>, generation: &mut u64) {
        let now = self.generation.load(Ordering::Acquire);
        if now != *generation {
            *view = self.view();
            *generation = now;
        }
    }

    /// The view as it is now.
    pub fn view(&self) -> Arc<View> {
        self.view.lock().clone()
    }

    fn wake(&self) {
        for waker in self.waiters.lock().drain(..) {
            waker.wake();
        }
    }

    /// Waits until `ready`.
    async fn until(&self, ready: impl Fn() -> bool) {
        poll_fn(|cx| {
            if ready() {
                return Poll::Ready(());
            }
            self.waiters.lock().push(cx.waker().clone());
            // It may have become so before the waker was there.
            if ready() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Waits until the gate is open.
    pub async fn opened(&self) {
        self.until(|| !self.closed.load(Ordering::SeqCst)).await;
    }

    /// Closes the gate and waits until no request is under way.
    pub async fn drain(&self) -> Drained<'_> {
        self.until(|| {
            let free = Ordering::SeqCst;
            self.closed
                .compare_exchange(false, true, free, free)
                .is_ok()
        })
        .await;
        let drained = Drained(self);
        self.until(|| self.active.load(Ordering::SeqCst) == 0).await;
        drained
    }

    /// Puts another view in place, which the next request will see.
    pub fn exchange(&self, _drained: &Drained<'_>, view: View) {
        self.size.store(view.stack.size(), Ordering::Release);
        view.stack.share_cache(self.cache);
        *self.view.lock() = Arc::new(view);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes the view: `change` gets the one in place.
    pub fn change(&self, drained: &Drained<'_>, change: impl FnOnce(&View) -> View) {
        let view = change(&self.view());
        self.exchange(drained, view);
    }

    /// Changes the disk's size while requests wait.
    pub async fn resize(&self, port: &Port, size: u64) -> Result<()> {
        let drained = self.drain().await;
        let mut view = View::clone(&self.view());
        view.stack.resize(port, size).await?;
        for bitmap in &mut view.bitmaps {
            bitmap.resize(size);
        }
        self.exchange(&drained, view);
        Ok(())
    }

    /// Takes the bitmaps that the top image keeps, from before the first request.
    pub async fn load_bitmaps(&self, port: &Port) -> Result<()> {
        let drained = self.drain().await;
        let bitmaps = self.view().stack.load_bitmaps(port).await?;
        self.change(&drained, |view| View {
            bitmaps,
            ..view.clone()
        });
        Ok(())
    }

    /// Begins to note what is written in a bitmap that the top image keeps.
    pub async fn add_bitmap(&self, port: &Port, name: &str, granularity: u64) -> Result<()> {
        let drained = self.drain().await;
        let mut view = View::clone(&self.view());
        let tracker = Tracker::new(name.into(), granularity.ilog2(), true, self.size());
        add_bitmaps(port, view.stack.top(), std::slice::from_ref(&tracker)).await?;
        view.bitmaps.push(tracker);
        self.exchange(&drained, view);
        Ok(())
    }

    /// Removes a bitmap.
    pub async fn remove_bitmap(&self, port: &Port, name: &str) -> Result<()> {
        let drained = self.drain().await;
        let mut view = View::clone(&self.view());
        view.bitmaps.retain(|b| b.name() != name);
        // Also one that a crash left in use, and that nobody has loaded.
        if let Layer::Qcow2(image) = view.stack.top() {
            image.bitmap_remove(port, name).await?;
        }
        self.exchange(&drained, view);
        Ok(())
    }

    /// Leaves the images clean. No request is under way any more.
    pub async fn close(&self, port: &Port) -> Result<()> {
        let view = self.view();
        view.stack.store_bitmaps(port, &view.bitmaps).await?;
        view.stack.close(port).await
    }
}

/// Makes bitmaps in an image, in use: somebody notes in memory what they are about. A raw image keeps
/// none, so these are lost at the end.
pub(super) async fn add_bitmaps(port: &Port, layer: &Layer, bitmaps: &[Tracker]) -> Result<()> {
    let Layer::Qcow2(image) = layer else {
        return Ok(());
    };
    if bitmaps.is_empty() {
        return Ok(());
    }
    for bitmap in bitmaps {
        image
            .bitmap_add(port, &bitmap.name(), bitmap.map().granularity())
            .await?;
    }
    // This marks them as in use. They are empty, and those in memory are ours.
    image.load_bitmaps(port).await.map(drop)
}

/// Removes bitmaps from an image that is not on top any more.
pub(super) async fn remove_bitmaps(port: &Port, layer: &Layer, bitmaps: &[Tracker]) -> Result<()> {
    if let Layer::Qcow2(image) = layer {
        for bitmap in bitmaps {
            image.bitmap_remove(port, &bitmap.name()).await?;
        }
    }
    Ok(())
}
