//! Who pulls or prepares an image is killed at any moment: the store verifies, and doing it again makes it good.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use skerry_tests::host::{Host, processes};
use skerry_tests::random::Random;
use skerry_tests::registry::Registry;
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually, given};

use crate::images::{bases, disk, image, must, text};

/// Kills of each.
const KILLS: u64 = 25;

/// Runs a command of `skerry image`, and kills it after some time, if it has not ended; whether it had.
pub fn killed(host: &Host, words: &[&str], after: Duration) -> bool {
    let store = host.state().join("images").display().to_string();
    let all = [&["image"], words, &["--store", &store]].concat();
    let quiet = Stdio::null;
    let mut child = host
        .command(&all)
        .stdin(quiet())
        .stdout(quiet())
        .stderr(quiet())
        .spawn()
        .expect("skerry starts");
    std::thread::sleep(after);
    let ended = child.try_wait().expect("it is ours").is_some();
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    ended
}

/// How long one takes that is not killed.
pub fn takes(host: &Host, words: &[&str]) -> Duration {
    let begun = Instant::now();
    must(host, words);
    begun.elapsed()
}

pub fn names(host: &Host) -> Vec<String> {
    let listed: Value =
        serde_json::from_str(&must(host, &["list", "--output", "json"])).expect("JSON");
    let images = listed.as_array().expect("a list").iter();
    images.map(|image| image["name"].to_string()).collect()
}

/// What is in a folder of the store.
fn inside(host: &Host, folder: &str) -> usize {
    let entries = std::fs::read_dir(host.state().join("images").join(folder));
    entries.map_or(0, Iterator::count)
}

/// What pulls an image, `busybox`, from a registry, where it is now.
pub fn pull_of(host: &Host, site: &Site, registry: &Registry) -> Vec<String> {
    registry.push(&site.layout(), "tools/busybox", "1");
    let reference = format!("{}/tools/busybox:1", registry.address);
    let logins = host.path("config.json");
    let auths = serde_json::json!({"auths": {&registry.address: {"auth": "dGVzdGVyOnNlY3JldA=="}}});
    std::fs::write(&logins, auths.to_string()).expect("written");
    let pull = ["pull", "--plain-http", &reference, "--name", "busybox"];
    let pull = pull.into_iter().chain(["--auth-file", text(&logins)]);
    pull.map(str::to_owned).collect()
}

/// What prepares an image, which is in the store now, as `web`.
pub fn prepare_of(host: &Host) -> Vec<String> {
    let (_, packed) = disk(host, 5);
    must(host, &["import", text(&packed), "--name", "guest"]);
    let (kernel, vmm) = (given("SKERRY_PAYLOAD"), given("SKERRY_VMM"));
    let prepare = [
        &["prepare", "guest", "--as", "web", "--no-probe"][..],
        &["--memory", "64M", "--until", "# steady: round="],
        &["--cmdline", "run=steady:disk=0:say=20 off=acpi"],
        &["--kernel", text(&kernel), "--vmm", text(&vmm)],
    ];
    prepare.concat().into_iter().map(str::to_owned).collect()
}

#[test]
fn a_pull_that_is_killed_at_any_moment_leaves_a_sound_store_and_can_be_done_again() {
    let (host, site, registry) = (Host::start(), Site::new(), Registry::new());
    let pull = pull_of(&host, &site, &registry);
    let pull: Vec<&str> = pull.iter().map(String::as_str).collect();
    let whole = takes(&host, &pull);
    let (mut random, mut early) = (Random::new(7), 0);
    for n in 0..KILLS {
        if n % 3 == 0 {
            let _ = image(&host, &["rm", "busybox"], "");
            must(&host, &["gc"]);
        }
        let after = Duration::from_micros(random.below(whole.as_micros() as u64 + 1));
        early += u64::from(!killed(&host, &pull, after));
        must(&host, &["verify"]);
        // It is there as a whole, or not at all.
        if !names(&host).is_empty() {
            must(&host, &["inspect", "busybox"]);
        }
    }
    assert!(early > KILLS / 4, "{early} kills prove little");
    must(&host, &pull);
    must(&host, &["verify"]);
    must(&host, &["rm", "busybox"]);
    must(&host, &["gc"]);
    for folder in ["packs", "manifests", "tmp", "fetched"] {
        assert_eq!(inside(&host, folder), 0, "{folder}");
    }
}

#[test]
fn a_preparation_that_is_killed_at_any_moment_leaves_nothing_that_a_collection_does_not_take() {
    let host = Host::start();
    let prepare = prepare_of(&host);
    let prepare: Vec<&str> = prepare.iter().map(String::as_str).collect();
    let place = host.state().join("images/prepared/web");
    let whole = takes(&host, &prepare);
    must(&host, &["rm", "--prepared", "web"]);
    let (mut random, mut early) = (Random::new(11), 0);
    for n in 0..KILLS {
        let after = Duration::from_micros(random.below(whole.as_micros() as u64 + 1));
        early += u64::from(!killed(&host, &prepare, after));
        eventually("its monitor ends", SHORT, || {
            processes(&place).is_empty().then_some(())
        });
        must(&host, &["verify"]);
        if place.join("ready").exists() {
            must(&host, &["rm", "--prepared", "web"]);
        }
        // Half of them are done again over what was left.
        if n % 2 == 0 {
            must(&host, &["gc"]);
            assert!(!place.exists() && bases(&host).is_empty());
            assert_eq!((inside(&host, "leases"), inside(&host, "tmp")), (0, 0));
        }
    }
    assert!(early > KILLS / 4, "{early} kills prove little");
    must(&host, &prepare);
    must(&host, &["verify"]);
    must(&host, &["gc"]);
    assert!(place.join("ready").exists() && bases(&host).len() == 1);
    must(&host, &["rm", "--prepared", "web"]);
    must(&host, &["gc"]);
    assert!(!place.exists() && bases(&host).is_empty());
}
