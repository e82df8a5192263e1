//! The io_uring driver carries out what tasks ask for, many at a time.

use skerry_images::chain::{Format, LayerSpec, Stack};
use skerry_images::io::uring::{Driver, Ended};
use skerry_images::io::{Buffer, FileOptions, ImageFile, Port, Tasks, block_on};
use skerry_images::qcow2::{CreateOptions, create};

const PIECE: u64 = 24 << 10;
const PIECES: u64 = 200;

#[test]
fn many_tasks_write_and_read_one_image() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let path = dir.path().join("image");
    let port = Port::new();
    let stack = block_on(&port, async {
        let file = ImageFile::create(&path)?;
        create(&port, &file, None, &CreateOptions::new(PIECE * PIECES)).await?;
        drop(file);
        let spec = LayerSpec::new(Format::Qcow2, &path);
        Stack::open(&port, &[spec], &FileOptions::default(), 1 << 20).await
    })
    .expect("an image");
    let mut driver = Driver::new(32, port.clone()).expect("a ring");
    let mut tasks = Tasks::new(Box::new(|| {}));
    for i in 0..PIECES {
        let (stack, port) = (stack.clone(), port.clone());
        tasks.spawn(
            i as u32,
            Box::pin(async move {
                let buffer = Buffer::from_slice(&[i as u8 + 1; PIECE as usize]);
                stack.write(&port, i * PIECE, &buffer.span()).await?;
                let back = Buffer::new(PIECE as usize);
                stack.read(&port, i * PIECE, &back.span()).await?;
                stack.flush(&port).await?;
                Ok::<_, skerry_images::Error>(back.bytes() == buffer.bytes())
            }),
        );
    }
    let mut same = 0;
    let ended = driver.run(&mut tasks, |ended| {
        if let Ended::Task(_, result) = ended {
            same += u64::from(result.expect("no error"));
        }
    });
    ended.expect("the ring works");
    assert_eq!(same, PIECES);
}

#[test]
fn transfers_past_the_tables_end_with_their_bytes() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let path = dir.path().join("raw");
    let file = ImageFile::create(&path).expect("a file");
    let mut driver = Driver::new(8, Port::new()).expect("a ring");
    let mut tasks: Tasks<()> = Tasks::new(Box::new(|| {}));
    let ones = Buffer::from_slice(&[1; 4096]);
    for i in 0..100 {
        let begun = driver.write(i, &file, u64::from(i) * 4096, ones.span());
        begun.expect("begun");
    }
    let mut moved = 0;
    let ended = driver.run(&mut tasks, |ended| {
        if let Ended::Transfer(_, n) = ended {
            moved += n;
        }
    });
    ended.expect("the ring works");
    assert_eq!(moved, 100 * 4096);
    assert_eq!(std::fs::read(&path).expect("the file"), vec![1; 100 * 4096]);
}
