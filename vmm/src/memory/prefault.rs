//! Fetches memory in the background, no faster than is wanted, so that the guest soon waits for none of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use skerry_snapshot::Range;

use super::{FaultServer, Ram};

/// Fetched at once.
const PIECE: u64 = 1 << 20;
/// How long an end may take.
const NAP: Duration = Duration::from_millis(20);

/// A thread that fetches. It ends when dropped.
pub struct Prefault {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prefault {
    /// Fetches `ranges` at `bandwidth` bytes a second.
    pub fn start(
        ram: &Ram,
        faults: Option<&FaultServer>,
        ranges: Vec<Range>,
        bandwidth: u64,
    ) -> io::Result<Prefault> {
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let ram = ram.clone();
        type Fetch = Box<dyn Fn(Range) -> io::Result<()> + Send>;
        let fetch: Fetch = match faults {
            Some(faults) => Box::new(faults.fetcher()),
            None => Box::new(move |range| ram.populate(&[range])),
        };
        let thread = std::thread::Builder::new()
            .name("prefault".into())
            .spawn(move || {
                let (begun, mut done) = (Instant::now(), 0u64);
                for piece in ranges.into_iter().flat_map(pieces) {
                    while Duration::from_secs_f64(done as f64 / bandwidth as f64) > begun.elapsed()
                    {
                        if ended.load(Ordering::Relaxed) {
                            return;
                        }
                        std::thread::sleep(NAP);
                    }
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Err(e) = fetch(piece) {
                        log::warn!("memory is not fetched ahead any more: {e}");
                        return;
                    }
                    done += piece.len;
                }
                log::info!("all of the guest's memory is there");
            })?;
        Ok(Prefault {
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for Prefault {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn pieces(range: Range) -> impl Iterator<Item = Range> {
    let starts = (range.start..range.end()).step_by(PIECE as usize);
    starts.map(move |start| Range {
        start,
        len: PIECE.min(range.end() - start),
    })
}
