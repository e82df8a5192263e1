//! A process that imports and collects is killed at any moment: the store verifies, and what it acknowledged is there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::tests::{disk, noise};
use super::{Name, Origin, Store};
use crate::chain::live::Progress;
use crate::io::sim::Dice;

/// Kills, and how long a process lives at most, in microseconds.
const KILLS: u64 = 40;
const LIFE: u64 = 60_000;
/// Where a child finds its store and its seed.
const STORE: &str = "SKERRY_TEST_IMAGES";
const SEED: &str = "SKERRY_TEST_SEED";

fn name(n: u64) -> Name {
    format!("image{n}").parse().expect("a name")
}

/// What the killed process does. By itself, without a store, it is nothing.
#[test]
#[ignore = "the other test runs it"]
fn child() {
    let (Some(folder), Ok(seed)) = (std::env::var_os(STORE), std::env::var(SEED)) else {
        return;
    };
    let folder = PathBuf::from(folder);
    let mut dice = Dice(seed.parse().expect("a number"));
    let store = Store::open(&folder.join("store")).expect("a store");
    loop {
        let (n, image) = (dice.below(4), dice.below(4));
        let say = |what: &str| {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{what} {n} {image}").expect("somebody listens");
            out.flush().expect("somebody listens");
        };
        if dice.one_in(3) {
            store.collect(Duration::ZERO).expect("nobody else is here");
            continue;
        }
        say("begins");
        let source = disk(&folder.join(format!("disk{image}")));
        let (origin, progress) = (Origin::default(), Progress::default());
        let imported = store.import_disk(&name(n), &source, origin, &progress);
        let digest = imported.expect("imported").digest;
        store.hold("child", "disk", digest).expect("held");
        store.base(digest, &progress).expect("a base");
        say("did");
    }
}

/// Runs one until it is killed; what its names may mean afterwards.
fn killed(folder: &Path, seed: u64, may: &mut BTreeMap<u64, Vec<Option<u64>>>) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "store::kills::child"])
        .args(["--ignored", "--nocapture"])
        .env(STORE, folder)
        .env(SEED, seed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this program starts");
    let out = BufReader::new(child.stdout.take().expect("a pipe"));
    let listener =
        std::thread::spawn(move || out.lines().map_while(Result::ok).collect::<Vec<_>>());
    std::thread::sleep(Duration::from_micros(Dice(seed).below(LIFE)));
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    let mut done = 0;
    for line in listener.join().expect("it listens") {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |n: usize| words.get(n).and_then(|word| word.parse::<u64>().ok());
        match (words.first(), number(1), number(2)) {
            (Some(&"begins"), Some(n), Some(image)) => {
                may.entry(n).or_insert_with(|| vec![None]).push(Some(image))
            }
            (Some(&"did"), Some(n), Some(image)) => {
                may.insert(n, vec![Some(image)]);
                done += 1;
            }
            _ => {}
        }
    }
    done
}

#[test]
fn who_is_killed_at_any_moment_has_lost_nothing_that_it_acknowledged() {
    // A kill leaves to the kernel what was written, so memory is as good as a disk, and quicker.
    let memory = Path::new("/dev/shm");
    let place = match memory.is_dir() {
        true => memory.to_owned(),
        false => std::env::temp_dir(),
    };
    let folder = tempfile::tempdir_in(place).expect("a folder");
    let bytes: Vec<Vec<u8>> = (0..4_u64)
        .map(|n| [noise(n, 700 << 10), noise(n / 2, 700 << 10)].concat())
        .collect();
    for (n, bytes) in bytes.iter().enumerate() {
        std::fs::write(folder.path().join(format!("disk{n}")), bytes).expect("written");
    }
    let (mut may, mut done, mut kills) = (BTreeMap::new(), 0, 0);
    // On a busy host a process may be killed before it has begun.
    while kills < KILLS || (done < 10 && kills < KILLS * 20) {
        done += killed(folder.path(), kills, &mut may);
        kills += 1;
        let store = Store::open(&folder.path().join("store")).expect("it opens");
        let found = store.verify(&Progress::default()).expect("it can be read");
        assert!(
            found.damages.is_empty(),
            "kill {kills}: {:?}",
            found.damages
        );
        for (n, images) in &mut may {
            let means = store.image(&name(*n)).ok().map(|image| {
                let base = store
                    .base(image.named.digest, &Progress::default())
                    .expect("a base");
                let is = std::fs::read(base).expect("read");
                bytes
                    .iter()
                    .position(|bytes| *bytes == is)
                    .expect("an image that was imported") as u64
            });
            assert!(
                images.contains(&means),
                "kill {kills}: {n} means {means:?}, may {images:?}"
            );
            *images = vec![means];
        }
    }
    assert!(
        done >= 10,
        "{done} imports in {kills} processes prove little"
    );
}
