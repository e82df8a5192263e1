//! Power cuts while snapshots and bitmaps change: what is left is sound, every snapshot that is listed
//! is whole, and no bitmap lies.
//!
//! SKERRY_SEQUENCES says how often each shape is tried, SKERRY_SEED how it goes.

use std::future::Future;
use std::pin::Pin;

use skerry_images::chain::{Layer, Stack};
use skerry_images::io::sim::{Dice, SimDisk, Simulator};
use skerry_images::io::{Buffer, ImageFile, Port};
use skerry_images::qcow2::check::{Repair, check};
use skerry_images::qcow2::{CreateOptions, Image, OpenOptions, create};
use skerry_images::{Error, Result};

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

const SIZE: u64 = 96 << 10;

/// Runs one task on a disk to its end.
fn alone<T: 'static>(
    disk: SimDisk,
    dice: &mut Dice,
    task: impl FnOnce(Port) -> Task<T>,
) -> (SimDisk, T) {
    let mut sim = Simulator::new(disk, Dice(dice.number()));
    let task = task(sim.port.clone());
    let result = sim.finish(task).expect("the task ends");
    (sim.disk, result)
}

async fn open(port: &Port, len: u64) -> Result<(Stack, std::sync::Arc<Image>)> {
    let file = ImageFile::simulated(0, len, false);
    let image = Image::open(port, file, None, &OpenOptions::default()).await?;
    let stack = Stack::new(vec![Layer::Qcow2(image.clone())]);
    Ok((stack, image))
}

async fn write(port: &Port, stack: &Stack, at: u64, len: usize, byte: u8) -> Result<()> {
    let mut data = Buffer::new(len);
    data.bytes_mut().fill(byte);
    stack.write(port, at, &data.span()).await
}

async fn read(port: &Port, stack: &Stack) -> Result<Vec<u8>> {
    let buffer = Buffer::new(stack.size() as usize);
    stack.read(port, 0, &buffer.span()).await?;
    Ok(buffer.bytes().to_vec())
}

/// An image of two bytes' content, closed.
fn made(options: CreateOptions, dice: &mut Dice) -> SimDisk {
    let mut disk = SimDisk::default();
    disk.add(&[]);
    let (disk, result) = alone(disk, dice, |port| {
        Box::pin(async move {
            let file = ImageFile::simulated(0, 0, false);
            create(&port, &file, None, &options).await?;
            port.flush(&file).await?;
            let (stack, _) = open(&port, file.end()).await?;
            write(&port, &stack, 0, SIZE as usize / 2, 1).await?;
            stack.close(&port).await
        })
    });
    result.expect("an image");
    disk
}

fn shapes() -> Vec<CreateOptions> {
    let base = CreateOptions {
        cluster_size: 4096,
        ..CreateOptions::new(SIZE)
    };
    let mut shapes = vec![base.clone()];
    shapes.push(CreateOptions {
        cluster_size: 512,
        refcount_bits: 4,
        ..base.clone()
    });
    shapes.push(CreateOptions {
        lazy_refcounts: true,
        ..base.clone()
    });
    shapes.push(CreateOptions {
        cluster_size: 16384,
        extended_l2: true,
        ..base.clone()
    });
    shapes.push(CreateOptions { version: 2, ..base });
    shapes
}

/// QEMU mends it, too: now and then, since that takes a process.
fn qemu_mends(left: &SimDisk, dice: &mut Dice) {
    if !dice.one_in(25) {
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), left.content(0)).expect("the image");
    for repair in [&["-r", "all"][..], &[]] {
        let mut command = std::process::Command::new("qemu-img");
        command.args(["check", "-f", "qcow2"]).args(repair);
        let out = command.arg(file.path()).output().expect("qemu-img runs");
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{repair:?}: {text}");
    }
}

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |n| n.parse().expect("a number"))
}

fn dice() -> Dice {
    Dice(number("SKERRY_SEED", 3))
}

fn rounds() -> impl Iterator<Item = CreateOptions> {
    (0..number("SKERRY_SEQUENCES", 1)).flat_map(|_| shapes())
}

/// Every disk that a power cut while `task` runs may leave, seen by `judge`.
fn cut_through(
    disk: SimDisk,
    dice: &mut Dice,
    task: impl FnOnce(Port) -> Task<Result<()>>,
    mut judge: impl FnMut(SimDisk, &mut Dice),
) {
    let mut sim = Simulator::new(disk, Dice(dice.number()));
    let task = task(sim.port.clone());
    sim.spawn(0, task);
    loop {
        let mut ended = None;
        let more = sim.step(|_, result| ended = Some(result));
        if let Some(result) = ended {
            result.expect("the task succeeds");
        }
        if !more {
            return;
        }
        if dice.one_in(3) {
            judge(sim.disk.cut(dice), dice);
        }
    }
}

/// The state that a snapshot of this name keeps.
fn kept(name: &str) -> Vec<u8> {
    let mut content = vec![0; SIZE as usize];
    content[..SIZE as usize / 2].fill(1);
    if name == "b" {
        content[8192..60_000 / 512 * 512].fill(2);
    }
    content
}

#[test]
fn snapshots_are_there_as_a_whole_or_not_at_all() {
    let mut dice = dice();
    for options in rounds() {
        let version = options.version;
        let disk = made(options, &mut dice);
        let len = disk.len(0);
        let history = |port: Port| -> Task<Result<()>> {
            Box::pin(async move {
                let (stack, image) = open(&port, len).await?;
                image.snapshot_create(&port, "a", (1, 1)).await?;
                write(&port, &stack, 8192, 60_000 / 512 * 512 - 8192, 2).await?;
                stack.flush(&port).await?;
                image.snapshot_create(&port, "b", (1, 1)).await?;
                image.snapshot_apply(&port, "a").await?;
                image.snapshot_delete(&port, "a").await?;
                image.snapshot_apply(&port, "b").await?;
                image.snapshot_delete(&port, "b").await
            })
        };
        cut_through(disk, &mut dice, history, |left, dice| {
            qemu_mends(&left, dice);
            let len = left.len(0);
            let (_, verdict) = alone(left, dice, |port| {
                Box::pin(async move {
                    let (stack, image) = open(&port, len).await?;
                    let now = read(&port, &stack).await?;
                    let report = check(&image, &port, Repair::None).await?;
                    // Version 2 cannot say that it was not closed.
                    if report.corruptions > 0 && version > 2 {
                        return Err(Error::Unsupported {
                            path: "".into(),
                            what: report.messages.join("\n"),
                        });
                    }
                    if report.corruptions > 0 {
                        check(&image, &port, Repair::All).await?;
                    } else {
                        check(&image, &port, Repair::Leaks).await?;
                    }
                    let len = image.file().end();
                    drop((stack, image));
                    let (stack, image) = open(&port, len).await?;
                    for snapshot in image.snapshots(&port).await? {
                        image.snapshot_apply(&port, &snapshot.name).await?;
                        assert!(
                            read(&port, &stack).await? == kept(&snapshot.name),
                            "{} is broken",
                            snapshot.name
                        );
                    }
                    image.close(&port).await?;
                    let report = check(&image, &port, Repair::None).await?;
                    assert!(report.clean(), "{:?}", report.messages);
                    Ok(now)
                })
            });
            let now = verdict.unwrap_or_else(|e| panic!("version {version}: {e}"));
            let whole = [kept("a"), kept("b")].contains(&now);
            // While it is written, the disk may be anything in between.
            let between = now
                .iter()
                .zip(&kept("a"))
                .zip(&kept("b"))
                .all(|((n, a), b)| n == a || n == b);
            assert!(whole || between);
        });
    }
}

#[test]
fn bitmaps_never_lie() {
    let mut dice = dice();
    let granularity = 4096;
    for options in rounds().filter(|o| o.version > 2) {
        let disk = made(options, &mut dice);
        let len = disk.len(0);
        // The bitmap begins when the disk is what `kept("a")` says.
        let history = |port: Port| -> Task<Result<()>> {
            Box::pin(async move {
                let (stack, image) = open(&port, len).await?;
                image.bitmap_add(&port, "t", granularity).await?;
                for round in 0..2u64 {
                    let trackers = image.load_bitmaps(&port).await?;
                    let at = 8192 + round * 30_208;
                    trackers[0].mark(at, 5120);
                    write(&port, &stack, at, 5120, 2).await?;
                    image.store_bitmaps(&port, &trackers).await?;
                }
                // Nobody tracks this.
                write(&port, &stack, 60_416, 512, 3).await?;
                stack.close(&port).await?;
                image.bitmap_remove(&port, "t").await
            })
        };
        let (mut seen, mut consistent) = (0, 0);
        cut_through(disk, &mut dice, history, |left, dice| {
            qemu_mends(&left, dice);
            let len = left.len(0);
            let (_, verdict) = alone(left, dice, |port| {
                Box::pin(async move {
                    let (stack, image) = open(&port, len).await?;
                    let now = read(&port, &stack).await?;
                    let report = check(&image, &port, Repair::Leaks).await?;
                    assert!(report.corruptions == 0, "{:?}", report.messages);
                    let len = image.file().end();
                    drop((stack, image));
                    let (_, image) = open(&port, len).await?;
                    let known = image.bitmaps(&port).await?;
                    let trackers = image.load_bitmaps(&port).await?;
                    image.store_bitmaps(&port, &trackers).await?;
                    image.close(&port).await?;
                    let report = check(&image, &port, Repair::None).await?;
                    assert!(report.clean(), "{:?}", report.messages);
                    Ok((now, known, trackers))
                })
            });
            let (now, known, trackers) = verdict.unwrap_or_else(|e: Error| panic!("{e}"));
            seen += usize::from(!known.is_empty());
            for tracker in trackers {
                consistent += 1;
                let mut noted = vec![false; SIZE as usize];
                tracker
                    .map()
                    .ranges()
                    .for_each(|r| noted[r.start as usize..r.end as usize].fill(true));
                let before = kept("a");
                let told = (0..now.len()).all(|i| now[i] == before[i] || noted[i]);
                assert!(told, "the bitmap does not know of a change");
            }
        });
        assert!(seen > 0 && consistent > 0 && consistent < seen);
    }
}
