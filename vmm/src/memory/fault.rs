//! RAM that comes page by page from a snapshot when it is touched, for memory that cannot be mapped from
//! files: huge pages, and what other processes share (userfaultfd).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use skerry_snapshot::{Chain, Range, coalesce};

use super::Ram;
use super::raw::{self, features};

/// One of a snapshot's memory files.
struct Layer {
    file: File,
    ranges: Vec<Range>,
}

/// Where pages come from.
struct Source {
    uffd: OwnedFd,
    ram: Ram,
    page: u64,
    /// The topmost first.
    layers: Vec<Layer>,
    /// Pages that were asked for, in their order.
    asked: Mutex<Vec<Range>>,
    ended: AtomicBool,
}

/// Serves the pages of a machine's RAM, for as long as it lives.
pub struct FaultServer {
    source: Arc<Source>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl FaultServer {
    /// Serves `ram`, nothing of which is there yet, with pages of `page` bytes.
    pub fn start(ram: &Ram, chain: &Chain, page: u64) -> io::Result<FaultServer> {
        use rustix::mm::{UserfaultfdFlags, userfaultfd};
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: whoever touches the ranges waits until the thread below has served it, which it does for as
        // long as the ranges are watched.
        let uffd = unsafe { userfaultfd(flags) }?;
        let wanted = features::MISSING_HUGETLBFS | features::MISSING_SHMEM | features::POISON;
        raw::userfault_api(uffd.as_fd(), wanted)?;
        for (_, piece) in ram.pieces() {
            raw::watch_missing(uffd.as_fd(), piece)?;
        }
        let layers = chain.memory.iter().rev().map(|layer| {
            Ok(Layer {
                file: layer.file().try_clone()?,
                ranges: layer.ranges().to_vec(),
            })
        });
        let source = Arc::new(Source {
            uffd,
            ram: ram.clone(),
            page,
            layers: layers.collect::<io::Result<_>>()?,
            asked: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (shared, bell) = (source.clone(), wake.try_clone()?);
        let thread = std::thread::Builder::new()
            .name("faults".into())
            .spawn(move || shared.serve(&bell))?;
        Ok(FaultServer {
            source,
            wake,
            thread: Some(thread),
        })
    }

    /// Pages that were asked for until now: the working set.
    pub fn asked(&self) -> Vec<Range> {
        coalesce(self.source.asked.lock().clone())
    }

    /// Fetches ranges before they are asked for.
    pub fn fetch(&self, ranges: &[Range]) -> io::Result<()> {
        // They belong to what is needed at first: nobody will ask for them again.
        self.source.asked.lock().extend_from_slice(ranges);
        self.source.fetch(ranges)
    }

    /// Who can fetch while this serves.
    pub(super) fn fetcher(&self) -> impl Fn(Range) -> io::Result<()> + Send + 'static {
        let source = self.source.clone();
        move |range| match source.ended.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => source.fetch(&[range]),
        }
    }

    /// Fetches all that is missing: this may be dropped then, and RAM is like any other from then on.
    pub fn complete(&self) -> io::Result<()> {
        self.source.fetch(&self.source.all())
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.source.ended.store(true, Ordering::Relaxed);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for (_, piece) in self.source.ram.pieces() {
            let _ = raw::unwatch(self.source.uffd.as_fd(), piece);
        }
    }
}

impl Source {
    /// All ranges that any layer has.
    fn all(&self) -> Vec<Range> {
        let ranges = self.layers.iter().flat_map(|layer| &layer.ranges).copied();
        coalesce(ranges.collect())
    }

    fn serve(&self, bell: &OwnedFd) {
        let mut buffer = vec![0; self.page as usize];
        while !self.ended.load(Ordering::Relaxed) {
            match raw::next_fault(self.uffd.as_fd()) {
                Ok(Some(host)) => self.answer(host, &mut buffer),
                Ok(None) => {
                    let mut fds = [
                        PollFd::new(&self.uffd, PollFlags::IN),
                        PollFd::new(bell, PollFlags::IN),
                    ];
                    let _ = poll(&mut fds, None);
                }
                Err(e) => {
                    log::error!("guest memory cannot be fetched any more: {e}");
                    return;
                }
            }
        }
    }

    fn answer(&self, host: u64, buffer: &mut [u8]) {
        let place = self.ram.pieces().into_iter().find(|(_, piece)| {
            (piece.host as u64..piece.host as u64 + piece.len as u64).contains(&host)
        });
        let Some((base, piece)) = place else { return };
        let offset = (host - piece.host as u64) / self.page * self.page;
        let start = base + offset;
        self.asked.lock().push(Range {
            start,
            len: self.page,
        });
        if let Err(e) = self.place(start, piece.host as u64 + offset, buffer) {
            log::error!("guest memory at {start:#x} cannot be fetched: {e}");
            let poisoned =
                raw::poison_page(self.uffd.as_fd(), piece.host as u64 + offset, self.page);
            if let Err(e) = poisoned {
                log::error!("and whoever wants it waits for ever: {e}");
            }
        }
    }

    /// Reads a page of RAM and puts it to its address in our memory.
    fn place(&self, start: u64, host: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        let end = start + self.page;
        // From the bottom up, so that what is above wins.
        for layer in self.layers.iter().rev() {
            let first = layer.ranges.partition_point(|range| range.end() <= start);
            for range in layer.ranges[first..].iter().take_while(|r| r.start < end) {
                let from = range.start.max(start);
                let to = range.end().min(end);
                let into = &mut buffer[(from - start) as usize..(to - start) as usize];
                layer.file.read_exact_at(into, from)?;
            }
        }
        raw::place_page(self.uffd.as_fd(), host, buffer)
    }

    fn fetch(&self, ranges: &[Range]) -> io::Result<()> {
        let mut buffer = vec![0; self.page as usize];
        for (base, piece) in self.ram.pieces() {
            let piece_end = base + piece.len as u64;
            for range in ranges {
                let mut at = range.start.max(base) / self.page * self.page;
                while at < range.end().min(piece_end) {
                    self.place(at, piece.host as u64 + (at - base), &mut buffer)?;
                    at += self.page;
                }
            }
        }
        Ok(())
    }
}
