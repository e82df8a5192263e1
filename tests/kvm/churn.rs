//! Seeded histories of live work on a disk, while a guest reads, writes, zeroes and discards all over it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use skerry_tests::disk::{self, qemu_img};
use skerry_tests::vmm::{Builder, LONG, SHORT, Vmm};
use skerry_tests::{Api, Exit};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::{DiskJobInfo, DiskJobState, VmDiskBackup};

const DISK: &str = "_disk0";
const SIZE: u64 = 24 << 20;
const STEPS: usize = 12;

/// What images are made like.
const SHAPES: [&str; 3] = [
    "cluster_size=64k",
    "extended_l2=on,cluster_size=128k",
    "cluster_size=4k,lazy_refcounts=on",
];

/// A linear congruential generator: choices need no more.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        const FACTOR: u64 = 0x5851_f42d_4c95_7f2d;
        self.0 = self.0.wrapping_mul(FACTOR).wrapping_add(1);
        (self.0 >> 33) as usize % bound
    }
}

/// A disk of three layers under load, and what is done to it.
struct History {
    folder: tempfile::TempDir,
    random: Random,
    vmm: Vmm,
    api: Api,
    size: u64,
    backups: Vec<PathBuf>,
    /// For the message when something fails.
    steps: Vec<String>,
}

impl History {
    fn start(seed: u64, options: &str) -> History {
        // Small caches flush for nearly every request, which in memory costs nothing.
        let folder = match options.contains("cache_size") {
            true => tempfile::TempDir::new_in("/dev/shm"),
            false => tempfile::TempDir::new(),
        };
        let folder = folder.expect("a folder");
        let mut random = Random(seed);
        let path = |name: &str| folder.path().join(name);
        let (base, mid, top) = (path("base.img"), path("mid.qcow2"), path("top.qcow2"));
        disk::create(&base, SIZE);
        overlay(&mid, &base, "raw", SHAPES[random.below(3)]);
        overlay(&top, &mid, "qcow2", SHAPES[random.below(3)]);
        let option = format!(
            "path={},backing=[{},raw:{}],num_queues=2{options}",
            top.display(),
            mid.display(),
            base.display()
        );
        let load = format!("run=blk-churn:0:{seed}:fresh=zero:depth=32,blk-sum");
        let vmm = Builder::payload(&load)
            .flag("--disk", option)
            .with_api()
            .start();
        vmm.expect_line("churn: running", SHORT);
        let api = vmm.api();
        History {
            folder,
            random,
            vmm,
            api,
            size: SIZE,
            backups: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Waits for a job, or cancels it on its way.
    fn settle(&mut self, job: &DiskJobInfo) -> DiskJobState {
        let cancels = self.random.below(3) == 0;
        if cancels {
            // Any moment of the job is as good as another.
            std::thread::sleep(Duration::from_millis(self.random.below(40) as u64));
            let cancelled = self.api.with(async |c| c.disk_cancel(job.job).await);
            cancelled.expect("vm.disk-cancel");
        }
        let job = self.api.expect_job(job, LONG);
        let good =
            job.state == DiskJobState::Done || cancels && job.state == DiskJobState::Cancelled;
        assert!(good, "{job:?} after {:?}", self.steps);
        job.state
    }

    fn step(&mut self, number: usize) {
        let layers = self.api.layers(DISK);
        let path = |name: &str| self.folder.path().join(format!("{name}{number}.qcow2"));
        let (layer, backup) = (path("layer"), path("backup"));
        let what = match self.random.below(10) {
            4..=6 if layers > 1 => {
                let layer = self.random.below(layers - 1);
                let job = self.api.commit(DISK, layer);
                format!("commit {layer} {:?}", self.settle(&job))
            }
            7 if layers > 1 => {
                let base = self.random.below(layers - 1) + 2;
                let base = (base < layers).then_some(base);
                let job = self.api.stream(DISK, base);
                format!("stream {base:?} {:?}", self.settle(&job))
            }
            8 => {
                self.size += (self.random.below(3) as u64 + 1) << 19;
                let size = self.size;
                let grown = self.api.with(async |c| c.resize_disk(DISK, size).await);
                grown.expect("vm.resize-disk");
                format!("resize {size}")
            }
            9 => {
                let request = VmDiskBackup {
                    id: DISK.into(),
                    path: backup,
                    bitmap: None,
                    backing: None,
                };
                let job = self.api.with(async |c| c.disk_backup(&request).await);
                let state = self.settle(&job.expect("vm.disk-backup"));
                if state == DiskJobState::Done {
                    self.backups.push(request.path);
                }
                format!("backup {state:?}")
            }
            _ => {
                self.api.snapshot(DISK, &layer);
                "snapshot".into()
            }
        };
        self.steps.push(format!("{what} of {layers}"));
        let lines = self.vmm.lines();
        let failed = lines.iter().any(|line| line.starts_with("fail"));
        assert!(!failed, "{lines:#?} after {:?}", self.steps);
    }

    /// Lets the guest check everything, and checks what is left.
    fn end(self) -> Exit {
        let last = self.api.info().config.disks[0].path.clone();
        self.api.act(Operation::VmPowerButton);
        let exit = self.vmm.wait(SHORT);
        let steps = self.steps;
        assert_eq!(exit.code, Some(0), "{exit} after {steps:?}");
        exit.all_ok(2);
        assert_eq!(exit.value("blk-churn", "capacity"), self.size.to_string());
        let is_raw = last.extension().is_some_and(|name| name == "img");
        let format = if is_raw { "raw" } else { "qcow2" };
        let images = self.backups.iter().chain((!is_raw).then_some(&last));
        for image in images {
            qemu_img(&["check", "-q", "-f", "qcow2"], &[image], &[]);
        }
        let plain = self.folder.path().join("plain");
        let convert = ["convert", "-O", "raw", "-f", format];
        qemu_img(&convert, &[&last, &plain], &[]);
        let sum = disk::checksum(&plain);
        assert_eq!(exit.value("blk-sum", "fnv1a"), sum, "after {steps:?}");
        exit
    }
}

fn overlay(path: &Path, below: &Path, format: &str, shape: &str) {
    let below = below.display().to_string();
    let words = [
        "create", "-q", "-f", "qcow2", "-o", shape, "-b", &below, "-F", format,
    ];
    qemu_img(&words, &[path], &[]);
}

fn history(seed: u64, options: &str) {
    let mut history = History::start(seed, options);
    for number in 0..STEPS {
        history.step(number);
    }
    history.end();
}

#[test]
fn a_disk_stays_exact_through_any_history_of_live_work() {
    history(1, "");
    history(2, "");
}

#[test]
fn so_it_does_with_the_smallest_caches() {
    history(2, ",cache_size=0");
}

#[test]
fn so_it_does_past_the_page_cache() {
    history(3, ",direct=on");
}
