//! A process that writes is killed at any moment: what it acknowledged is there, and no half of anything.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::Embedded;
use super::history::{Model, Random, batch, block_on, check, count};
use crate::store::Store;

/// Kills of all that are run at once, and of each store one after another.
const KILLS: u64 = 1000;
const ON_ONE_STORE: u64 = 10;
const AT_ONCE: u64 = 2;
/// Batches that the writing process has under way.
const UNDER_WAY: u64 = 3;
/// A process lives at most so many microseconds.
const LIFE: u64 = 40_000;
/// Where a child finds its store and its seed.
const STORE: &str = "SKERRY_TEST_STORE";
const SEED: &str = "SKERRY_TEST_SEED";

/// What the killed process does. By itself, without a store, it is nothing.
#[test]
#[ignore = "the other test runs it"]
fn child() {
    let (Some(path), Ok(seed)) = (std::env::var_os(STORE), std::env::var(SEED)) else {
        return;
    };
    let seed = seed.parse().expect("a number");
    block_on(async {
        let store = Arc::new(Embedded::open(Path::new(&path)).expect("a store"));
        let (mut under_way, mut acknowledged) = (VecDeque::new(), 0_u64);
        for number in 0.. {
            // Tasks begin in the order in which they are made.
            let store = store.clone();
            under_way.push_back(tokio::spawn(async move {
                store.commit(batch(seed, number)).await.expect("a commit")
            }));
            if number + 1 >= UNDER_WAY {
                let first = under_way.pop_front().expect("there are some");
                first.await.expect("it does not panic");
                acknowledged += 1;
                let mut out = std::io::stdout().lock();
                writeln!(out, "acknowledged {acknowledged}").expect("somebody listens");
                out.flush().expect("somebody listens");
            }
        }
    });
}

fn start(path: &Path, seed: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", "store::embedded::kills::child"])
        .args(["--ignored", "--nocapture"])
        .env(STORE, path)
        .env(SEED, seed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command.spawn().expect("this program starts")
}

/// One process on a store, and how many batches it acknowledged until it was killed.
fn killed(path: &Path, seed: u64, random: &mut Random) -> u64 {
    let mut child = start(path, seed);
    let out = BufReader::new(child.stdout.take().expect("a pipe"));
    let listener = std::thread::spawn(move || {
        let lines = out.lines().map_while(Result::ok);
        let numbers = lines.filter_map(|line| {
            let number = line.strip_prefix("acknowledged ")?;
            number.parse::<u64>().ok()
        });
        numbers.last().unwrap_or(0)
    });
    std::thread::sleep(Duration::from_micros(random.below(LIFE)));
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    listener.join().expect("it listens")
}

/// A store and several processes, each killed. Says how many of their batches were acknowledged.
fn history(folder: &Path, seed: u64) -> u64 {
    let (mut random, mut model, mut all) = (Random(seed), Model::default(), 0);
    let path = folder.join(format!("store{seed}"));
    for kill in 0..ON_ONE_STORE {
        let seed = seed * ON_ONE_STORE + kill;
        let acknowledged = killed(&path, seed, &mut random);
        all += acknowledged;
        let store = Embedded::open(&path).expect("it opens again");
        block_on(check(
            &store,
            &mut model,
            seed,
            acknowledged,
            acknowledged + UNDER_WAY,
        ));
    }
    for extension in ["", "new", "reserve"] {
        let _ = std::fs::remove_file(path.with_extension(extension));
    }
    all
}

#[test]
fn a_writer_killed_at_any_moment_has_lost_nothing_that_it_acknowledged() {
    // A kill leaves to the kernel what was written, so memory is as good as a disk, and quicker.
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    let folder = tempfile::tempdir_in(place).expect("a folder");
    let stores = count("SKERRY_KILLS", KILLS).div_ceil(ON_ONE_STORE);
    let all: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|first| {
                let folder = folder.path();
                scope.spawn(move || {
                    let seeds = (first..stores).step_by(AT_ONCE as usize);
                    seeds.map(|seed| history(folder, seed)).sum::<u64>()
                })
            })
            .collect();
        let done = threads.into_iter().map(|thread| thread.join());
        done.map(|all| all.expect("nothing was lost")).sum()
    });
    // Kills that come before anything is written prove nothing.
    assert!(all > stores * ON_ONE_STORE, "{all} batches in all");
}
