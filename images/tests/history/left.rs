//! What a power cut left: whether it is sound, holds what it must, and works on.

use skerry_images::chain::Layer;
use skerry_images::io::sim::{Dice, SimDisk};
use skerry_images::io::{Buffer, Port};
use skerry_images::qcow2::check::{Repair, Report, check};
use skerry_images::qcow2::incompatible;

use super::allowed::{Allowed, paint};
use super::shape::Shape;
use super::{TOP, alone, open};

type Verdict<T> = Result<T, String>;

fn why(e: skerry_images::Error) -> String {
    match std::error::Error::source(&e) {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    }
}

/// Checks the image; also whether it is marked as dirty.
async fn look(port: &Port, shape: &Shape, len: u64, repair: Repair) -> Verdict<(Report, bool)> {
    let stack = open(port, shape, len, true).await.map_err(why)?;
    let Layer::Qcow2(image) = stack.top() else {
        return Err("the top is no image".into());
    };
    let dirty = image.header().needs(incompatible::DIRTY);
    let report = check(image, port, repair).await.map_err(why)?;
    Ok((report, dirty))
}

/// Nothing could damage data. Version 2 has no dirty bit: a cut while a snapshot comes or goes leaves
/// clusters that are copied before they are written, without need.
fn sound(report: &Report, shape: &Shape) -> bool {
    let harmless = |m: &String| m.ends_with("lacks the COPIED flag") || !m.starts_with("ERROR");
    report.corruptions == 0
        || shape.version < 3 && shape.snapshots && report.messages.iter().all(harmless)
}

async fn read_all(port: &Port, stack: &skerry_images::chain::Stack) -> Verdict<Buffer> {
    let buffer = Buffer::new(stack.size() as usize);
    stack.read(port, 0, &buffer.span()).await.map_err(why)?;
    Ok(buffer)
}

/// Says what is wrong with `disk`, which a power cut left, if anything.
pub fn judge(
    disk: SimDisk,
    shape: &Shape,
    allowed: &Allowed,
    sizes: &[u64],
    dice: &mut Dice,
) -> Verdict<()> {
    let len = disk.len(TOP);
    let (own, seed) = (shape.clone(), Dice(dice.number()));
    let (disk, checked) = alone(disk, seed, |port| {
        Box::pin(async move { look(&port, &own, len, Repair::None).await })
    });
    let (report, dirty) = checked?;
    if !sound(&report, shape) && !dirty {
        return Err(format!("the check says:\n{}", report.messages.join("\n")));
    }
    let (own, seed) = (shape.clone(), Dice(dice.number()));
    let (mut disk, opened) = alone(disk, seed, |port| {
        Box::pin(async move {
            let stack = open(&port, &own, len, false).await.map_err(why)?;
            read_all(&port, &stack).await
        })
    });
    let content = opened?;
    let size = content.bytes().len() as u64 / 512;
    if !sizes.contains(&size) {
        return Err(format!("the disk has {size} sectors, and not {sizes:?}"));
    }
    allowed.after_cut(0, content.bytes())?;
    if dirty {
        let (own, seed, len) = (shape.clone(), Dice(dice.number()), disk.len(TOP));
        let (rebuilt, checked) = alone(disk, seed, |port| {
            Box::pin(async move { look(&port, &own, len, Repair::None).await })
        });
        disk = rebuilt;
        let (report, dirty) = checked?;
        if !report.clean() || dirty {
            return Err(format!("rebuilt, it has:\n{}", report.messages.join("\n")));
        }
    }
    if dice.one_in(8) {
        works_on(disk, shape, content, dice)?;
    }
    Ok(())
}

/// Writes to what is left, mends it, and looks again.
fn works_on(disk: SimDisk, shape: &Shape, before: Buffer, dice: &mut Dice) -> Verdict<()> {
    let size = before.bytes().len() as u64 / 512;
    let mut expected = before.bytes().to_vec();
    let mut pieces = Vec::new();
    for tag in 0..4 {
        let at = dice.below(size);
        let len = (1 + dice.below(64)).min(size - at);
        let mut data = Buffer::new(len as usize * 512);
        paint(data.bytes_mut(), at, 0xaf7e_0000 + tag);
        expected[at as usize * 512..][..data.bytes().len()].copy_from_slice(data.bytes());
        pieces.push((at * 512, data));
    }
    let (own, len) = (shape.clone(), disk.len(TOP));
    let (disk, written) = alone(disk, Dice(dice.number()), |port| {
        Box::pin(async move {
            let stack = open(&port, &own, len, false).await.map_err(why)?;
            for (at, data) in &pieces {
                stack.write(&port, *at, &data.span()).await.map_err(why)?;
            }
            stack.flush(&port).await.map_err(why)?;
            stack.close(&port).await.map_err(why)
        })
    });
    written?;
    let (own, len) = (shape.clone(), disk.len(TOP));
    let (disk, checked) = alone(disk, Dice(dice.number()), |port| {
        Box::pin(async move {
            let (report, _) = look(&port, &own, len, Repair::Leaks).await?;
            let stack = open(&port, &own, len, true).await.map_err(why)?;
            let after = read_all(&port, &stack).await?;
            Verdict::Ok((report, after))
        })
    });
    let (report, after) = checked?;
    if !sound(&report, shape) {
        let messages = report.messages.join("\n");
        return Err(format!("after writing on, the check says:\n{messages}"));
    }
    if after.bytes() != expected {
        return Err("after writing on, the content is not what was written".into());
    }
    let (own, len) = (shape.clone(), disk.len(TOP));
    let (_, checked) = alone(disk, Dice(dice.number()), |port| {
        Box::pin(async move { look(&port, &own, len, Repair::None).await })
    });
    let (report, _) = checked?;
    if report.leaks > 0 || !sound(&report, shape) {
        let messages = report.messages.join("\n");
        return Err(format!("mended, the check says:\n{messages}"));
    }
    Ok(())
}
