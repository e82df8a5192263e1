//! A load of small requests on a disk, by the engine and a ring.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use skerry_images::chain::{Hold, LayerSpec, Stack, Target, View, Volume};
use skerry_images::io::uring::{Driver, Ended};
use skerry_images::io::{Buffer, FileOptions, Port, Quick, Span, Tasks, block_on};
use skerry_images::qcow2::DEFAULT_CACHE;

use super::BLOCK;

/// What is asked of a disk.
pub struct Load {
    /// Bytes of the disk that are used.
    pub span: u64,
    /// Requests.
    pub requests: u64,
    /// Of these, under way at a time.
    pub depth: u32,
    /// They write.
    pub write: bool,
    /// From one request's offset to the next one's, modulo `span`: `qemu-img bench` has no other
    /// way to look random, so all take this one.
    pub stride: u64,
}

impl Load {
    /// A load that touches each block once before it comes to any again, in an order that defeats
    /// read-ahead.
    pub fn strided(span: u64, requests: u64, depth: u32, write: bool) -> Load {
        // The golden ratio of the blocks, made odd: coprime to a power of two.
        let blocks = span / BLOCK;
        let stride = ((blocks as f64 * 0.618_033_988_75) as u64 | 1) * BLOCK;
        Load {
            span,
            requests,
            depth,
            write,
            stride,
        }
    }
}

/// An open disk with a ring.
pub struct Open {
    volume: Arc<Volume>,
    view: Arc<View>,
    driver: Driver,
    port: Port,
    tasks: Tasks<skerry_images::Result<()>>,
    /// One buffer for each request under way.
    spans: Vec<(Buffer, Span)>,
    holds: Vec<Option<Hold>>,
    quick: Quick,
}

impl Open {
    /// Opens the layers of a disk, the top first.
    pub fn new(specs: &[LayerSpec], load: &Load) -> Result<Open> {
        let port = Port::new();
        let options = FileOptions::default();
        let stack = block_on(&port, Stack::open(&port, specs, &options, DEFAULT_CACHE))?;
        let volume = Volume::new(stack, DEFAULT_CACHE);
        let buffer = || {
            let buffer = Buffer::new(BLOCK as usize);
            let span = buffer.span();
            (buffer, span)
        };
        Ok(Open {
            view: volume.view(),
            volume,
            driver: Driver::new(64, port.clone())?,
            port,
            tasks: Tasks::new(Box::new(|| {})),
            spans: (0..load.depth).map(|_| buffer()).collect(),
            holds: (0..load.depth).map(|_| None).collect(),
            quick: Quick::default(),
        })
    }

    /// Carries a load out; requests a second.
    pub fn run(&mut self, load: &Load) -> Result<f64> {
        let begun = Instant::now();
        let mut free: Vec<u32> = (0..load.depth).collect();
        let (mut offset, mut begun_requests, mut ended_requests) = (0, 0, 0);
        let mut failed = None;
        while ended_requests < load.requests {
            while begun_requests < load.requests
                && let Some(tag) = free.pop()
            {
                let ended = self.begin(tag, offset, load.write)?;
                offset = (offset + load.stride) % load.span;
                begun_requests += 1;
                if ended {
                    ended_requests += 1;
                    free.push(tag);
                }
            }
            if ended_requests == load.requests {
                break;
            }
            let (view, holds) = (&self.view, &mut self.holds);
            self.driver.turn(&mut self.tasks, |ended| {
                let (tag, good) = match ended {
                    Ended::Transfer(tag, moved) => (tag, moved == BLOCK as i32),
                    Ended::Task(tag, result) => (tag, result.is_ok()),
                };
                if let Some(hold) = holds[tag as usize].take() {
                    view.done(hold, good);
                }
                if !good {
                    failed = Some(tag);
                }
                free.push(tag);
                ended_requests += 1;
            })?;
            ensure!(failed.is_none(), "a request failed");
        }
        Ok(load.requests as f64 / begun.elapsed().as_secs_f64())
    }

    /// True if the request ended at once.
    fn begin(&mut self, tag: u32, offset: u64, write: bool) -> Result<bool> {
        let span = &self.spans[tag as usize].1;
        let target = if write {
            self.view.write(offset, BLOCK, true)
        } else {
            self.view.read(offset, BLOCK)
        };
        match target {
            Target::File(file, host, hold) => {
                if write {
                    // SAFETY: the buffer is ours and nobody looks at it; the view holds the file,
                    // which was not opened with O_DIRECT.
                    let moved = unsafe { self.quick.write(file.id(), span.vecs(), host) };
                    if let Some(moved) = moved {
                        ensure!(moved == BLOCK as i32, "a write was cut short: {moved}");
                        self.view.done(hold, true);
                        return Ok(true);
                    }
                }
                self.holds[tag as usize] = Some(hold);
                if write {
                    self.driver.write(tag, file, host, span.clone())?;
                } else {
                    self.driver.read(tag, file, host, span.clone())?;
                }
            }
            Target::Zeroes | Target::Unknown => {
                let (view, port, span) = (self.view.clone(), self.port.clone(), span.clone());
                self.tasks.spawn(
                    tag,
                    Box::pin(async move {
                        if write {
                            view.write_slowly(&port, offset, &span).await
                        } else {
                            view.read_slowly(&port, offset, &span).await
                        }
                    }),
                );
            }
        }
        Ok(false)
    }

    /// Leaves the images clean.
    pub fn close(self) -> Result<()> {
        block_on(&self.port, self.volume.close(&self.port))?;
        Ok(())
    }
}
