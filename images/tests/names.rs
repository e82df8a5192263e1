//! Power cuts while the name of the layer below changes: a header shows the old name or the new one,
//! never a part of one.
//!
//! SKERRY_SEQUENCES says how often each shape is tried, SKERRY_SEED how it goes.

use std::pin::Pin;

use skerry_images::Result;
use skerry_images::io::sim::{Dice, SimDisk, Simulator};
use skerry_images::io::{ImageFile, Port};
use skerry_images::qcow2::{CreateOptions, Image, OpenOptions, create, read_header};

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// A name and a format.
type Name = Option<(String, String)>;

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |n| n.parse().expect("a number"))
}

fn alone<T: 'static>(disk: SimDisk, task: impl FnOnce(Port) -> Task<T>) -> (SimDisk, T) {
    let mut sim = Simulator::new(disk, Dice(1));
    let task = task(sim.port.clone());
    let result = sim.finish(task).expect("the task ends");
    (sim.disk, result)
}

fn name(byte: u8, len: usize, format: &str) -> Name {
    let text = String::from_utf8(vec![byte; len]).expect("a letter");
    Some((text, format.into()))
}

/// An image as we make it.
fn ours(cluster_size: u64, version: u32) -> Vec<u8> {
    let mut disk = SimDisk::default();
    disk.add(&[]);
    let options = CreateOptions {
        cluster_size,
        version,
        backing: name(b'o', 30, "raw"),
        ..CreateOptions::new(1 << 16)
    };
    let (disk, made) = alone(disk, |port| {
        Box::pin(async move {
            let file = ImageFile::simulated(0, 0, false);
            create(&port, &file, None, &options).await
        })
    });
    made.expect("an image");
    disk.content(0)
}

/// One as QEMU makes it: names of features reach across the first sector, and the name is behind them.
fn qemu_s(cluster_size: u64, version: u32) -> Vec<u8> {
    let dir = tempfile::TempDir::new().expect("a directory");
    let path = dir.path().join("image");
    let compat = if version < 3 { "0.10" } else { "1.1" };
    let done = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b"])
        .arg("o".repeat(30))
        .arg("-o")
        .arg(format!("cluster_size={cluster_size},compat={compat}"))
        .arg(&path)
        .arg("65536")
        .status();
    assert!(done.expect("qemu-img runs").success());
    std::fs::read(path).expect("the image")
}

/// What a header says that must not be torn: the name, its format, and how many bitmaps there are.
type Said = (Option<String>, Option<String>, Option<u32>);

async fn said(port: Port, len: u64) -> Result<Said> {
    let header = read_header(&port, &ImageFile::simulated(0, len, true)).await?;
    let bitmaps = header.bitmaps.map(|b| b.count);
    Ok((header.backing, header.backing_format, bitmaps))
}

fn look(disk: SimDisk) -> (SimDisk, Said) {
    let len = disk.len(0);
    let (disk, said) = alone(disk, |port| Box::pin(said(port, len)));
    (disk, said.expect("the header is whole"))
}

/// A change of the header.
#[derive(Debug, Clone)]
enum Change {
    Name(Name),
    AddBitmap,
    RemoveBitmap,
    Grow,
}

async fn carry_out(port: Port, len: u64, change: Change) -> Result<()> {
    let file = ImageFile::simulated(0, len, false);
    let image = Image::open(&port, file, None, &OpenOptions::default()).await?;
    let changed = match change {
        Change::Name(name) => image.set_backing_name(&port, name).await,
        Change::AddBitmap => image.bitmap_add(&port, "b", 4096).await,
        Change::RemoveBitmap => image.bitmap_remove(&port, "b").await,
        Change::Grow => image.resize(&port, image.size() + 512, &[]).await,
    };
    let closed = image.close(&port).await;
    changed.and(closed)
}

/// Carries a change out with power cuts, at first with errors, too; the disk afterwards.
fn cut_through(disk: SimDisk, change: &Change, dice: &mut Dice) -> SimDisk {
    let (disk, before) = look(disk);
    let len = disk.len(0);
    let mut seen = Vec::new();
    let mut run = |faults| {
        let mut sim = Simulator::new(disk.clone(), Dice(dice.number()));
        sim.faults = faults;
        let task = carry_out(sim.port.clone(), len, change.clone());
        sim.spawn(0, Box::pin(task));
        let mut ended = None;
        while sim.step(|_, result| ended = Some(result)) {
            for _ in 0..3 {
                seen.push(look(sim.disk.cut(dice)).1);
            }
        }
        (sim.disk, ended.expect("it ends"))
    };
    // What fails is tried again by the next flush.
    let _ = run(12);
    let (disk, result) = run(0);
    result.unwrap_or_else(|e| panic!("{change:?}: {e}"));
    let (disk, after) = look(disk);
    for said in &seen {
        let whole = *said == before || *said == after;
        assert!(whole, "{change:?} shows {said:?}");
    }
    match change {
        Change::Name(name) => assert_eq!(after.0, name.as_ref().map(|n| n.0.clone())),
        _ => assert_eq!(after.0, before.0),
    }
    disk
}

#[test]
fn a_name_is_the_old_one_or_the_new_one_at_every_moment() {
    let mut dice = Dice(number("SKERRY_SEED", 5));
    for _ in 0..number("SKERRY_SEQUENCES", 3) {
        for (cluster, version, made) in [
            (512, 3, ours as fn(u64, u32) -> Vec<u8>),
            (4096, 3, ours),
            (4096, 2, ours),
            (65536, 3, ours),
            (4096, 3, qemu_s),
            (65536, 2, qemu_s),
            (65536, 3, qemu_s),
        ] {
            let long = |byte| match cluster {
                512 => name(byte, 200, "qcow2"),
                _ => name(byte, 1000, "qcow2"),
            };
            // This crosses the first sector only with a bitmap.
            let crossing = if cluster == 512 { 230 } else { 350 };
            let mut changes = vec![
                Change::Name(name(b'a', 20, "raw")),
                Change::Name(long(b'b')),
                Change::AddBitmap,
                Change::Name(long(b'c')),
                Change::Grow,
                Change::RemoveBitmap,
                Change::Name(long(b'd')),
                Change::Name(name(b'e', crossing, "raw")),
                Change::AddBitmap,
                Change::Name(None),
                Change::Name(name(b'f', crossing, "raw")),
                Change::RemoveBitmap,
                Change::Name(long(b'g')),
                Change::Name(name(b'h', 25, "qcow2")),
                Change::Grow,
            ];
            if version < 3 {
                changes.retain(|c| !matches!(c, Change::AddBitmap | Change::RemoveBitmap));
            }
            let mut disk = SimDisk::default();
            disk.add(&made(cluster, version));
            for change in &changes {
                disk = cut_through(disk, change, &mut dice);
                disk.settle();
            }
        }
    }
}
