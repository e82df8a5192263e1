//! The power fails while an image is pulled or prepared: of the store there is what had reached its disk. The store is on
//! a file system in a file; a copy of that file, made when everything was killed, has nothing of the page cache above it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use skerry_tests::host::{Host, processes};
use skerry_tests::random::Random;
use skerry_tests::registry::Registry;
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually};

use crate::image_kills::{killed, prepare_of, pull_of, takes};
use crate::images::{image, must, text};

/// Cuts of each.
const CUTS: u64 = 20;

fn run(program: &str, words: &[&str]) {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    let command = command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let output = command.args(words).output().expect(program);
    assert!(output.status.success(), "{program} {words:?}: {output:?}");
}

/// Puts the host's store on a disk of its own, which writes only what it is told to.
fn on_a_disk(host: &Host) -> PathBuf {
    let (disk, store) = (host.path("store.img"), host.state().join("images"));
    std::fs::create_dir(&store).expect("a folder");
    run("mke2fs", &["-q", "-t", "ext4", text(&disk), "256M"]);
    run(
        "mount",
        &["-o", "loop,commit=300", text(&disk), text(&store)],
    );
    disk
}

/// Looks at the store as it would be after a power cut at this moment.
fn after_a_cut(host: &Host, disk: &Path, look: impl FnOnce(&Path)) {
    let (copy, place) = (host.path("cut.img"), host.path("cut"));
    let written = || {
        disk.metadata()
            .and_then(|found| found.modified())
            .expect("it is there")
    };
    eventually("the disk is copied while nothing is written", SHORT, || {
        let before = written();
        run("cp", &["--sparse=always", text(disk), text(&copy)]);
        (written() == before).then_some(())
    });
    std::fs::create_dir_all(&place).expect("a folder");
    run("mount", &["-o", "loop", text(&copy), text(&place)]);
    look(&place);
    run("umount", &[text(&place)]);
}

/// A command of `skerry image` on a store that was cut, which must go well; what it printed.
fn of(host: &Host, store: &Path, words: &[&str]) -> String {
    host.must(&[&["image"], words, &["--store", text(store)]].concat())
}

#[test]
fn a_pull_is_there_as_a_whole_or_not_at_all_when_the_power_fails() {
    let (host, site, registry) = (Host::start(), Site::new(), Registry::new());
    let disk = on_a_disk(&host);
    let pull = pull_of(&host, &site, &registry);
    let pull: Vec<&str> = pull.iter().map(String::as_str).collect();
    let whole = takes(&host, &pull);
    let mut random = Random::new(13);
    for n in 0..CUTS {
        let _ = image(&host, &["rm", "busybox"], "");
        must(&host, &["gc"]);
        // Every fourth ends before: what was answered is kept.
        let answered = n % 4 == 0;
        let after = random.below(whole.as_micros() as u64 + 1);
        if answered {
            must(&host, &pull);
        } else {
            killed(&host, &pull, Duration::from_micros(after));
        }
        after_a_cut(&host, &disk, |store| {
            of(&host, store, &["verify"]);
            let named = of(&host, store, &["list"]).contains("busybox");
            assert!(named || !answered, "an answered pull is gone");
            if named {
                of(&host, store, &["inspect", "busybox"]);
            }
            // It goes on from there.
            of(&host, store, &pull);
            of(&host, store, &["gc"]);
            of(&host, store, &["verify"]);
        });
    }
}

#[test]
fn what_is_prepared_is_whole_or_goes_when_the_power_fails() {
    let host = Host::start();
    let medium = on_a_disk(&host);
    let prepare = prepare_of(&host);
    let prepare: Vec<&str> = prepare.iter().map(String::as_str).collect();
    let place = host.state().join("images/prepared/web");
    let whole = takes(&host, &prepare);
    let mut random = Random::new(17);
    for n in 0..CUTS {
        let _ = image(&host, &["rm", "--prepared", "web"], "");
        must(&host, &["gc"]);
        let answered = n % 4 == 0;
        let after = random.below(whole.as_micros() as u64 + 1);
        if answered {
            must(&host, &prepare);
        } else {
            killed(&host, &prepare, Duration::from_micros(after));
        }
        after_a_cut(&host, &medium, |store| {
            of(&host, store, &["verify"]);
            let prepared = store.join("prepared/web");
            let ready = prepared.join("ready").exists();
            assert!(ready || !answered, "an answered preparation is gone");
            if ready {
                host.must(&["snapshot", "verify", text(&prepared.join("snapshot"))]);
                run("qemu-img", &["check", text(&prepared.join("disk.qcow2"))]);
            }
            of(&host, store, &["gc"]);
            assert_eq!(prepared.exists(), ready, "a half is collected");
            of(&host, store, &["verify"]);
        });
        eventually("its monitor ends", SHORT, || {
            processes(&place).is_empty().then_some(())
        });
    }
}

#[test]
fn a_cut_takes_what_was_not_written_out_and_nothing_else() {
    let host = Host::start();
    let disk = on_a_disk(&host);
    let files = ["lost", "kept"].map(|name| host.state().join("images").join(name));
    for file in &files {
        std::fs::write(file, "text").expect("written");
    }
    let kept = std::fs::File::open(&files[1]).expect("it is there");
    kept.sync_all().expect("written out");
    std::fs::write(&files[0], "more text").expect("written");
    after_a_cut(&host, &disk, |store| {
        let read = |name: &str| std::fs::read_to_string(store.join(name)).unwrap_or_default();
        assert_eq!((read("lost").as_str(), read("kept").as_str()), ("", "text"));
    });
}
