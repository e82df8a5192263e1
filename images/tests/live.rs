//! Layers come and go under a guest, on a simulated disk whose power is cut at any moment: the chain
//! that is valid then holds everything that was acknowledged and flushed.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use skerry_images::Result;
use skerry_images::chain::live::{self, Progress};
use skerry_images::chain::{Layer, Raw, Stack, Target, View, Volume};
use skerry_images::io::sim::{Dice, SimDisk, Simulator};
use skerry_images::io::{Buffer, ImageFile, Port};
use skerry_images::qcow2::check::{Repair, check};
use skerry_images::qcow2::{CreateOptions, Image, OpenOptions, create};

const SECTOR: u64 = 512;
const JOB: u32 = 1 << 20;

/// Values that a sector may have: the last flushed one, and all that were written since.
#[derive(Clone, Default)]
struct Allowed {
    values: Vec<u8>,
    /// Values that were before these.
    gone: usize,
}

#[derive(Default)]
struct Shared {
    /// By sector.
    allowed: Vec<Allowed>,
    /// Ranges that a request is under way on.
    busy: Vec<(u64, u64)>,
    /// Layers by simulated file, the top first: what the operator would give now.
    chains: Vec<Vec<i32>>,
}

struct World {
    sim: Simulator<Result<()>>,
    shared: Arc<Mutex<Shared>>,
    volume: Arc<Volume>,
    sectors: u64,
    cluster: u64,
    extended: bool,
    job: bool,
    next_tag: u32,
    log: Vec<String>,
}

fn options(size: u64, cluster: u64, extended: bool, below: bool) -> CreateOptions {
    CreateOptions {
        cluster_size: cluster,
        extended_l2: extended,
        backing: below.then(|| ("below".to_owned(), "qcow2".to_owned())),
        ..CreateOptions::new(size)
    }
}

async fn open(port: &Port, id: i32, len: u64, readonly: bool) -> Result<Layer> {
    let file = ImageFile::simulated(id, len, readonly);
    if id == 0 {
        return Ok(Layer::Raw(Arc::new(Raw::new(file))));
    }
    let options = OpenOptions {
        readonly,
        cache: 0,
        for_check: false,
    };
    Image::open(port, file, None, &options)
        .await
        .map(Layer::Qcow2)
}

async fn open_chain(port: &Port, chain: &[(i32, u64)]) -> Result<Stack> {
    let mut layers = Vec::new();
    for (i, (id, len)) in chain.iter().enumerate() {
        layers.push(open(port, *id, *len, i > 0).await?);
    }
    Ok(Stack::new(layers))
}

fn lens(disk: &SimDisk, chain: &[i32]) -> Vec<(i32, u64)> {
    chain.iter().map(|id| (*id, disk.len(*id))).collect()
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice(seed);
        let extended = dice.one_in(2);
        let cluster = if extended {
            16 << 10
        } else {
            512 << dice.below(4)
        };
        let sectors = (cluster / SECTOR * (4 + dice.below(12))).min(256);
        let size = sectors * SECTOR;
        let mut disk = SimDisk::default();
        let base: Vec<u8> = (0..sectors)
            .flat_map(|s| [s as u8 | 1; SECTOR as usize])
            .collect();
        disk.add(&base);
        for _ in 0..8 {
            disk.add(&[]);
        }
        let mut sim = Simulator::new(disk, dice);
        let port = sim.port.clone();
        let volume = Arc::new(Mutex::new(None));
        let made = volume.clone();
        let work = async move {
            for id in [1, 2] {
                let file = ImageFile::simulated(id, 0, false);
                create(&port, &file, None, &options(size, cluster, extended, true)).await?;
                port.flush(&file).await?;
                let mut layers = vec![open(&port, id, file.end(), false).await?];
                if id == 2 {
                    layers.push(open(&port, 1, 1 << 20, true).await?);
                }
                layers.push(open(&port, 0, size, true).await?);
                *made.lock() = Some(Volume::new(Stack::new(layers), 0));
            }
            Ok(())
        };
        sim.finish(Box::pin(work)).expect("ends").expect("a chain");
        let volume = volume.lock().take().expect("a volume");
        let allowed = (0..sectors)
            .map(|s| Allowed {
                values: vec![s as u8 | 1],
                gone: 0,
            })
            .collect();
        let shared = Shared {
            allowed,
            busy: Vec::new(),
            chains: vec![vec![2, 1, 0]],
        };
        World {
            sim,
            shared: Arc::new(Mutex::new(shared)),
            volume,
            sectors,
            cluster,
            extended,
            job: false,
            next_tag: 0,
            log: Vec::new(),
        }
    }

    /// Begins one guest request.
    fn guest(&mut self) {
        let dice = &mut self.sim.dice;
        let first = dice.below(self.sectors);
        let count = (1 + dice.below(self.cluster / SECTOR * 2)).min(self.sectors - first);
        let (kind, value) = (dice.below(8), dice.number() as u8 | 1);
        let overlaps = |(a, n): &(u64, u64)| *a < first + count && first < a + n;
        if kind < 7 && self.shared.lock().busy.iter().any(overlaps) {
            return;
        }
        let (shared, volume, port) = (
            self.shared.clone(),
            self.volume.clone(),
            self.sim.port.clone(),
        );
        self.next_tag += 1;
        let (offset, len) = (first * SECTOR, count * SECTOR);
        if kind == 7 {
            self.log.push("flush".into());
            let flush = async move {
                enter(&volume).await;
                // What was acknowledged before the flush began is durable when it has ended.
                let before: Vec<usize> = shared
                    .lock()
                    .allowed
                    .iter()
                    .map(|a| a.gone + a.values.len())
                    .collect();
                let busy = shared.lock().busy.clone();
                let result = volume.view().stack.flush(&port).await;
                if result.is_ok() {
                    let mut shared = shared.lock();
                    for (sector, n) in before.into_iter().enumerate() {
                        let under_way =
                            |(a, n): &(u64, u64)| (*a..a + n).contains(&(sector as u64));
                        if !busy.iter().any(under_way) {
                            let allowed = &mut shared.allowed[sector];
                            let old = (n - 1).saturating_sub(allowed.gone);
                            allowed.values.drain(..old);
                            allowed.gone += old;
                        }
                    }
                }
                volume.end();
                result
            };
            self.sim.spawn(self.next_tag, Box::pin(flush));
            return;
        }
        self.log.push(format!(
            "{} {first}+{count} {value}",
            if kind < 6 { "write" } else { "zero" }
        ));
        let value = if kind < 6 { value } else { 0 };
        {
            let mut shared = self.shared.lock();
            shared.busy.push((first, count));
            for sector in first..first + count {
                shared.allowed[sector as usize].values.push(value);
            }
        }
        let write = async move {
            enter(&volume).await;
            let view = volume.view();
            let result = if value == 0 {
                view.zero(&port, offset, len, true).await
            } else {
                let mut data = Buffer::new(len as usize);
                data.bytes_mut().fill(value);
                write(&view, &port, offset, &data).await
            };
            view.written(offset, len);
            shared.lock().busy.retain(|b| *b != (first, count));
            volume.end();
            result
        };
        self.sim.spawn(self.next_tag, Box::pin(write));
    }

    /// Begins work on the layers.
    fn work(&mut self) {
        // Of several that are valid, the operator gives the first.
        self.shared.lock().chains.truncate(1);
        let chain = self.shared.lock().chains[0].clone();
        let lens: HashMap<i32, u64> = chain
            .iter()
            .map(|id| (*id, self.sim.disk.len(*id)))
            .collect();
        let (shared, volume, port) = (
            self.shared.clone(),
            self.volume.clone(),
            self.sim.port.clone(),
        );
        let free = (1..9).find(|id| !chain.contains(id));
        let progress = Arc::new(Progress::default());
        if self.sim.dice.one_in(8) {
            progress.cancel();
        }
        let index = 1 + self.sim.dice.below(8) as usize;
        let (size, cluster, extended) = (self.sectors * SECTOR, self.cluster, self.extended);
        let kind = self.sim.dice.below(4);
        self.log
            .push(format!("job {kind} {index} on {chain:?} free {free:?}"));
        self.job = true;
        // While it is under way the chain of before is valid; what else is, each says.
        let task: std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>> = match kind {
            0 if free.is_some() && chain.len() < 6 => {
                let id = free.unwrap_or_default();
                Box::pin(async move {
                    let file = ImageFile::simulated(id, 0, false);
                    port.set_len(&file, 0).await?;
                    create(&port, &file, None, &options(size, cluster, extended, true)).await?;
                    port.flush(&file).await?;
                    let layer = open(&port, id, file.end(), false).await?;
                    let mut new = vec![id];
                    new.extend(&chain);
                    let ready = || {
                        shared.lock().chains = vec![new];
                        Ok(())
                    };
                    live::put_on_top(&port, &volume, layer, ready)
                        .await
                        .map(drop)
                })
            }
            1 if chain.len() >= 2 => Box::pin(async move {
                let below = open(&port, chain[1], lens[&chain[1]], false).await?;
                live::commit_active(&port, &volume, below, &progress).await?;
                // The old one still is, with its top empty.
                shared.lock().chains = vec![chain[1..].to_vec(), chain];
                Ok(())
            }),
            2 if chain.len() >= 3 && index + 1 < chain.len() => Box::pin(async move {
                let below = open(&port, chain[index + 1], lens[&chain[index + 1]], false).await?;
                let above = match index {
                    1 => volume.view().stack.top().clone(),
                    _ => open(&port, chain[index - 1], lens[&chain[index - 1]], false).await?,
                };
                live::commit(&port, &volume, index, above, below, &progress).await?;
                let mut new = chain.clone();
                new.remove(index);
                shared.lock().chains = vec![new, chain];
                Ok(())
            }),
            _ if chain.len() >= 2 => Box::pin(async move {
                let base = (index + 1).max(2).min(chain.len());
                live::stream(&port, &volume, base, &progress).await?;
                let mut new = vec![chain[0]];
                new.extend(&chain[base..]);
                shared.lock().chains = vec![new, chain];
                Ok(())
            }),
            _ => {
                self.job = false;
                return;
            }
        };
        self.sim.spawn(JOB, task);
    }

    /// Cuts the power and looks at what is left.
    fn cut(&mut self, seed: u64) {
        let left = self.sim.disk.cut(&mut self.sim.dice);
        let shared = self.shared.lock();
        for chain in &shared.chains {
            let story = || format!("seed {seed}, chain {chain:?}\n{}", self.log.join("\n"));
            // A raw disk alone has been written in place; every layer is looked at.
            let mut sim: Simulator<Result<()>> = Simulator::new(left.clone(), Dice(seed));
            let port = sim.port.clone();
            let content = Buffer::new((self.sectors * SECTOR) as usize);
            let (span, lens) = (content.span(), lens(&left, chain));
            let look = async move {
                for (id, len) in lens.iter().filter(|(id, _)| *id != 0) {
                    let options = OpenOptions {
                        readonly: true,
                        cache: 0,
                        for_check: true,
                    };
                    let file = ImageFile::simulated(*id, *len, true);
                    let image = Image::open(&port, file, None, &options).await?;
                    let report = check(&image, &port, Repair::None).await?;
                    assert_eq!(report.corruptions, 0, "file {id}: {:?}", report.messages);
                }
                let stack = open_chain(&port, &lens).await?;
                stack.read(&port, 0, &span).await?;
                Ok(())
            };
            match sim.finish(Box::pin(look)) {
                Some(Ok(())) => {}
                other => panic!("{other:?}\n{}", story()),
            }
            for (sector, allowed) in shared.allowed.iter().enumerate() {
                let at = sector * SECTOR as usize;
                for byte in &content.bytes()[at..at + SECTOR as usize] {
                    assert!(
                        allowed.values.contains(byte),
                        "sector {sector} is {byte}, not of {:?}\n{}",
                        allowed.values,
                        story()
                    );
                }
            }
        }
    }

    fn run(&mut self, seed: u64, steps: u64) {
        for step in 0..steps {
            while self.sim.live() < 4 {
                self.guest();
                if self.sim.dice.one_in(4) {
                    break;
                }
            }
            if !self.job && self.sim.dice.one_in(60) {
                self.work();
            }
            let mut ended = Vec::new();
            let more = self.sim.step(|tag, result| ended.push((tag, result)));
            for (tag, result) in ended {
                if tag == JOB {
                    self.job = false;
                    self.log.push(format!("job ended {result:?}"));
                }
                match result {
                    Ok(()) | Err(skerry_images::Error::Cancelled) => {}
                    Err(e) => panic!("{e}\nseed {seed} step {step}\n{}", self.log.join("\n")),
                }
            }
            assert!(
                more || self.sim.live() == 0,
                "stuck: seed {seed} step {step}\n{}",
                self.log.join("\n")
            );
            if step % 7 == 0 {
                self.cut(seed);
            }
        }
    }
}

/// Writes as the monitor's queues do: past all tasks where that can be.
async fn write(view: &View, port: &Port, offset: u64, data: &Buffer) -> Result<()> {
    let span = data.span();
    match view.write(offset, span.len(), true) {
        Target::File(file, host, hold) => {
            let file = file.clone();
            let written = port.write(&file, host, span).await;
            view.done(hold, written.is_ok());
            written
        }
        _ => view.write_slowly(port, offset, &span).await,
    }
}

async fn enter(volume: &Volume) {
    while !volume.begin() {
        volume.opened().await;
    }
}

#[test]
fn no_flushed_byte_is_lost_while_layers_come_and_go() {
    let histories = std::env::var("SKERRY_LIVE_HISTORIES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(16);
    let first: u64 = std::env::var("SKERRY_SEED")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1);
    for seed in first..first + histories {
        World::new(seed).run(seed, 1500);
    }
}
