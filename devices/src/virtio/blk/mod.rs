//! virtio-blk (virtio 1.3 §5.2) on a volume of image layers.

mod job;
mod request;
mod ring;
mod slot;
mod source;

use std::sync::Arc;

use super::features;
use super::queue::QueueState;
use super::running::Running;
use super::served::Served;
use super::{QueueIndex, QueueStart, StartError, VirtioDevice};
use crate::limit::Limiter;
pub use job::run_on;
use skerry_images::chain::Volume;
use source::{BlkCounters, BlkQueue};

/// A sector, the unit of everything in virtio-blk, whatever the block size (virtio 1.3 §5.2).
pub const SECTOR: u64 = 512;

const F_SEG_MAX: u32 = 2;
const F_RO: u32 = 5;
const F_BLK_SIZE: u32 = 6;
const F_FLUSH: u32 = 9;
const F_MQ: u32 = 12;
const F_DISCARD: u32 = 13;
const F_WRITE_ZEROES: u32 = 14;

/// Segments of one discard or write-zeroes request.
const MAX_SEGMENTS: u32 = 4;
/// Sectors of one such segment (8 MiB). Where a file system cannot zero a range, zeroes are written:
/// this bounds how long one request takes, and so how long a pause waits.
const MAX_SEGMENT_SECTORS: u32 = 1 << 14;

/// The length of the identity string (virtio 1.3 §5.2.6).
const ID_LEN: usize = 20;

/// A block device.
pub struct Blk {
    volume: Arc<Volume>,
    id: [u8; ID_LEN],
    queue_sizes: Vec<u16>,
    queue_size: u16,
    running: Vec<Option<Running<Served<BlkQueue>>>>,
    counters: Vec<Arc<BlkCounters>>,
    limiter: Option<Arc<Limiter>>,
}

impl Blk {
    /// A device on `volume` with `queues` queues of `queue_size` descriptors. `serial` is what the
    /// guest reads as its identity, cut to 20 bytes.
    pub fn new(volume: Arc<Volume>, serial: &str, queues: u16, queue_size: u16) -> Blk {
        let mut id = [0; ID_LEN];
        let n = serial.len().min(ID_LEN);
        id[..n].copy_from_slice(&serial.as_bytes()[..n]);
        Blk {
            volume,
            queue_size,
            id,
            queue_sizes: vec![queue_size; queues.into()],
            running: (0..queues).map(|_| None).collect(),
            counters: (0..queues).map(|_| Arc::default()).collect(),
            limiter: None,
        }
    }

    /// The same with limits, which its queues share.
    pub fn limited(self, limiter: Option<Arc<Limiter>>) -> Blk {
        Blk { limiter, ..self }
    }
}

/// struct virtio_blk_config (virtio 1.3 §5.2.4).
fn config(volume: &Volume, queues: u16, queue_size: u16) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    let block_sectors = volume.block_size() / SECTOR as u32;
    put(0, &(volume.size() / SECTOR).to_le_bytes());
    // A request also carries its header and its status.
    put(
        12,
        &u32::from(queue_size.saturating_sub(2).max(1)).to_le_bytes(),
    );
    put(20, &volume.block_size().to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &MAX_SEGMENT_SECTORS.to_le_bytes());
    put(40, &MAX_SEGMENTS.to_le_bytes());
    put(44, &block_sectors.to_le_bytes());
    put(48, &MAX_SEGMENT_SECTORS.to_le_bytes());
    put(52, &MAX_SEGMENTS.to_le_bytes());
    // write_zeroes_may_unmap: a hole reads as zeroes.
    put(56, &[1]);
    config
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u16 {
        2
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut bits = features::COMMON | 1 << F_SEG_MAX | 1 << F_BLK_SIZE | 1 << F_FLUSH;
        if self.queue_sizes.len() > 1 {
            bits |= 1 << F_MQ;
        }
        if self.volume.readonly() {
            bits |= 1 << F_RO;
        } else {
            bits |= 1 << F_DISCARD | 1 << F_WRITE_ZEROES;
        }
        bits
    }

    fn config(&self) -> Vec<u8> {
        let queues = self.queue_sizes.len() as u16;
        config(&self.volume, queues, self.queue_size).to_vec()
    }

    fn start_queue(&mut self, index: QueueIndex, start: QueueStart) -> Result<(), StartError> {
        let Some(place @ None) = self.running.get_mut(usize::from(index)) else {
            return Err(StartError::Index(index));
        };
        let (volume, id, counters) = (
            self.volume.clone(),
            self.id,
            self.counters[usize::from(index)].clone(),
        );
        let write_through = !features::has(start.features, F_FLUSH);
        let task = BlkQueue::new(volume, id, write_through, counters, self.limiter.clone());
        let task = task.map_err(|source| StartError::Host {
            what: "cannot make an eventfd",
            source,
        })?;
        *place = Some(Served::start(start, |_| task)?);
        Ok(())
    }

    fn stop_queue(&mut self, index: QueueIndex) -> Option<QueueState> {
        let running = self.running.get_mut(usize::from(index))?.take()?;
        Some(running.stop()?.state())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let sum = |field: fn(&BlkCounters) -> &super::Counter| {
            self.counters.iter().map(|c| field(c).get()).sum()
        };
        vec![
            ("read_bytes", sum(|c| &c.read_bytes)),
            ("read_ops", sum(|c| &c.read_ops)),
            ("write_bytes", sum(|c| &c.write_bytes)),
            ("write_ops", sum(|c| &c.write_ops)),
        ]
    }
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod tests;
