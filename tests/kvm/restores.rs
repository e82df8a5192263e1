//! Restores that are refused: by name, before anything is touched, and with nothing left behind.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use skerry_snapshot::{Header, Records, State};
use skerry_tests::steady::{DISK, Steady, names, started, works};
use skerry_tests::vmm::{Builder, SHORT};
use skerry_tests::{Api, Tap, Vmm};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::VmState;
use skerry_vmm_api::snapshots::{
    AfterSnapshot, DiskOverlay, NetIdentity, RestoreMode, VmRestore, VmSnapshot,
};

/// A snapshot `snap`, and a monitor without a VM that is asked to restore it.
struct Asked {
    steady: Steady,
    layers: PathBuf,
    vmm: Vmm,
    api: Api,
}

impl Asked {
    fn new() -> Asked {
        let steady = Steady::new();
        steady.boot_and_keep("snap");
        Asked::of(steady)
    }

    fn of(steady: Steady) -> Asked {
        let layers = steady.folder("layers");
        let vmm = Builder::api_only().start();
        let api = vmm.api();
        Asked {
            steady,
            layers,
            vmm,
            api,
        }
    }

    fn state(&self) -> PathBuf {
        self.steady.path("snap").join("state")
    }

    fn memory(&self) -> PathBuf {
        self.steady.path("snap").join("memory")
    }

    /// A restore that can be carried out.
    fn good(&self) -> VmRestore {
        self.steady.again("snap", Some(&self.layers))
    }

    /// Changes a file, expects a refusal with `status` that has all `words`, and puts the file back.
    fn refuses_with(&self, file: &Path, bytes: &[u8], status: u16, words: &[&str]) {
        let good = std::fs::read(file).expect("a file");
        std::fs::write(file, bytes).expect("changed");
        self.refuses(&self.good(), status, words);
        std::fs::write(file, good).expect("as it was");
    }

    /// Expects a refusal that leaves nothing.
    fn refuses(&self, restore: &VmRestore, status: u16, words: &[&str]) {
        let everything = || {
            let folders = [
                self.steady.path(""),
                self.steady.path("snap"),
                self.layers.clone(),
            ];
            folders.map(|folder| names(&folder))
        };
        let before = everything();
        let answer = self.api.with(async |c| c.restore(restore).await);
        let error = answer.expect_err("a refusal");
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "`{word}` is not in {text}");
        }
        assert!(Api::is_refusal(&error, status), "{text}");
        assert_eq!(everything(), before, "{text}");
    }

    /// The monitor is as good as before.
    fn restores(self) {
        let good = self.good();
        self.restores_as(&good);
    }

    fn restores_as(self, restore: &VmRestore) {
        self.api.restore(restore);
        works(&self.vmm);
        assert_eq!(self.api.info().state, VmState::Running);
    }
}

#[test]
fn damage_of_the_state() {
    let asked = Asked::new();
    let good = std::fs::read(asked.state()).expect("the state");
    let header = u32::from_le_bytes(good[12..16].try_into().expect("four")) as usize;
    // In the header, in its checksum, in the first record and the last.
    for at in [20, 16 + header + 3, 16 + header + 32, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        asked.refuses_with(
            &asked.state(),
            &bytes,
            400,
            &["state is damaged", "checksum"],
        );
    }
    let (short, mut long) = (&good[..good.len() - 1], good.clone());
    long.push(0);
    asked.refuses_with(
        &asked.state(),
        short,
        400,
        &["state is damaged", "1 bytes early"],
    );
    asked.refuses_with(&asked.state(), &long, 400, &["state is damaged", "follows"]);
    let words = ["state is damaged", "within its header"];
    asked.refuses_with(&asked.state(), &good[..100], 400, &words);
    asked.restores();
}

#[test]
fn states_of_others() {
    let asked = Asked::new();
    let good = std::fs::read(asked.state()).expect("the state");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    asked.refuses_with(
        &asked.state(),
        &with(0, b's'),
        400,
        &["is no snapshot", "begin"],
    );
    let words = ["format version 2", "reads 1 to 1", "it is newer"];
    asked.refuses_with(&asked.state(), &with(8, 2), 400, &words);
    asked.refuses_with(
        &asked.state(),
        &with(8, 0),
        400,
        &["format version 0", "older"],
    );
    asked.refuses_with(&asked.state(), b"", 400, &["is no snapshot", "too short"]);
    let elsewhere = asked.steady.again("layers", None);
    asked.refuses(
        &elsewhere,
        400,
        &["layers/state is no snapshot", "no such file"],
    );
    let nowhere = VmRestore {
        source_url: "/var/lib/snap".into(),
        ..asked.good()
    };
    asked.refuses(&nowhere, 400, &["`/var/lib/snap`", "file:///"]);
    asked.restores();
}

#[test]
fn damage_of_the_memory() {
    let asked = Asked::new();
    let good = std::fs::read(asked.memory()).expect("the memory");
    let words = ["memory is damaged", "67104768 bytes instead of 67108864"];
    asked.refuses_with(&asked.memory(), &good[..good.len() - 4096], 400, &words);
    // A byte that is not zero, so that a range has it.
    let at = good.iter().rposition(|byte| *byte != 0).expect("some data");
    let mut bytes = good.clone();
    bytes[at] ^= 1;
    std::fs::write(asked.memory(), bytes).expect("changed");
    let words = [
        "memory is damaged",
        "checksum",
        &format!("{:#x}", at >> 20 << 20),
    ];
    let verified = VmRestore {
        verify: true,
        ..asked.good()
    };
    asked.refuses(&verified, 400, &words);
    // Without being asked where all of it is read anyway.
    let copied = VmRestore {
        mode: RestoreMode::Copy,
        ..asked.good()
    };
    asked.refuses(&copied, 400, &words);
    std::fs::write(asked.memory(), good).expect("as it was");
    asked.restores();
}

#[test]
fn disks_that_are_not_what_they_were() {
    let asked = Asked::new();
    let mut restore = asked.good();
    restore.overlay_dir = None;
    asked.refuses(&restore, 400, &[DISK, "overlay_dir=DIR", "in_place=true"]);
    restore.overlay_dir = Some(asked.steady.path("nowhere"));
    asked.refuses(&restore, 400, &["no folder", "nowhere/_disk0.qcow2"]);
    restore = asked.good();
    restore.overlays = vec![DiskOverlay {
        id: "data".into(),
        path: asked.steady.path("data"),
    }];
    asked.refuses(&restore, 400, &["no disk `data`"]);
    let occupied = asked.layers.join("_disk0.qcow2");
    std::fs::write(&occupied, "precious").expect("a file");
    asked.refuses(
        &asked.good(),
        400,
        &["_disk0.qcow2 is there already", "new layer"],
    );
    assert_eq!(std::fs::read(&occupied).expect("a file"), b"precious");
    std::fs::remove_file(&occupied).expect("a file");
    let (base, gone) = (asked.steady.path("base.img"), asked.steady.path("gone.img"));
    std::fs::rename(&base, &gone).expect("renamed");
    let words = ["base.img cannot be opened", "No such file"];
    asked.refuses(&asked.good(), 400, &words);
    std::fs::rename(&gone, &base).expect("renamed");
    asked.restores();
}

#[test]
fn networks_that_are_not_there() {
    let (steady, tap) = (Steady::new(), Tap::new());
    let vmm = started(
        steady
            .boot("")
            .flag("--net", format!("tap={},id=net", tap.name)),
    );
    steady.keep(&vmm.api(), "snap");
    drop(vmm);
    let asked = Asked::of(steady);
    let identity = |id: &str, tap: &str| NetIdentity {
        id: id.into(),
        tap: Some(tap.into()),
        ..NetIdentity::default()
    };
    let with = |net| VmRestore {
        net: vec![net],
        ..asked.good()
    };
    let unknown = with(identity("eth0", &tap.name));
    asked.refuses(&unknown, 400, &["no network `eth0`"]);
    let words = ["no network interface `skt-missing`", "give another one"];
    asked.refuses(&with(identity("net", "skt-missing")), 400, &words);
    asked.restores();
}

#[test]
fn what_is_found_out_late_leaves_nothing_either() {
    let (steady, tap) = (Steady::new(), Tap::new());
    let net = format!("tap={}", tap.name);
    let vmm = started(steady.boot("").flag("--net", &net));
    vmm.api().keep(&VmSnapshot {
        after: AfterSnapshot::Stop,
        ..steady.full("snap")
    });
    drop(vmm);
    let asked = Asked::of(steady);
    let other = Builder::payload("off=spin").flag("--net", &net).start();
    other.expect_line("done", SHORT);
    asked.refuses(&asked.good(), 500, &["cannot boot", &tap.name, "in use"]);
    drop(other);
    let socket = asked.steady.path("vsock");
    let listener = UnixListener::bind(&socket).expect("a listener");
    asked.refuses(&asked.good(), 500, &["somebody listens", "vsock"]);
    let in_place = VmRestore {
        in_place: true,
        overlay_dir: None,
        ..asked.good()
    };
    asked.refuses(&in_place, 500, &["somebody listens", "vsock"]);
    drop(listener);
    asked.restores();
}

#[test]
fn a_dry_run_lists_all_that_is_in_the_way_and_makes_nothing() {
    let asked = Asked::new();
    let mut restore = VmRestore {
        dry_run: true,
        ..asked.good()
    };
    let dry = |restore: &VmRestore| {
        let before = (asked.steady.names(), names(&asked.layers));
        let problems = asked.api.restore(restore).problems;
        assert_eq!((asked.steady.names(), names(&asked.layers)), before);
        asked
            .api
            .refused(Operation::VmInfo, "", 404, &["vm.create"]);
        problems
    };
    assert_eq!(dry(&restore), Vec::<String>::new());
    restore.net = vec![NetIdentity {
        id: "eth0".into(),
        ..NetIdentity::default()
    }];
    restore.overlays = vec![DiskOverlay {
        id: DISK.into(),
        path: asked.state(),
    }];
    let base = asked.steady.path("base.img");
    let away = asked.steady.path("away.img");
    std::fs::rename(&base, &away).expect("renamed");
    let problems = dry(&restore);
    for words in [
        "no network `eth0`",
        "state is there already",
        "base.img cannot be opened",
    ] {
        let named = problems.iter().any(|problem| problem.contains(words));
        assert!(named, "`{words}` is not in {problems:?}");
    }
    assert_eq!(problems.len(), 3, "{problems:?}");
    std::fs::rename(&away, &base).expect("renamed");
    asked.restores();
}

/// Writes a snapshot's state anew with a changed description, as if the monitor had.
fn describe_as(path: &Path, change: impl FnOnce(&mut Header)) {
    let mut state = State::read(path).expect("the state");
    let mut header = state.header().clone();
    let mut records = Records::default();
    for record in std::mem::take(&mut header.records) {
        let (version, bytes) = state.take(&record.kind, &record.id).expect("a record");
        records.put(&record.kind, &record.id, version, bytes);
    }
    change(&mut header);
    std::fs::remove_file(path).expect("the state");
    records.write(path, header).expect("written");
}

#[test]
fn what_this_host_lacks() {
    let asked = Asked::new();
    describe_as(&asked.state(), |header| {
        header.config.memory.hugepages = true
    });
    asked.refuses(&asked.good(), 400, &["huge pages", "mode=copy"]);
    describe_as(&asked.state(), |header| {
        header.config.memory.hugepages = false;
        header.machine.arch = "riscv64".into();
    });
    asked.refuses(&asked.good(), 400, &["riscv64", "x86_64"]);
    describe_as(&asked.state(), |header| {
        header.machine.arch = "x86_64".into()
    });
    asked.restores();
}

#[test]
fn features_that_this_host_lacks_unless_the_guest_can_do_without() {
    let asked = Asked::new();
    describe_as(&asked.state(), |header| {
        // Leaf 7: no CPU has all that its EDX could say.
        let leaf = header.cpu.cpuid.iter_mut().find(|leaf| leaf.0 == 7);
        leaf.expect("a leaf").2[3] = u32::MAX;
    });
    let words = ["lacks CPU features", "0x7.0 EDX", "ignore_cpu=on"];
    asked.refuses(&asked.good(), 400, &words);
    let restore = VmRestore {
        ignore_cpu: true,
        ..asked.good()
    };
    asked.restores_as(&restore);
}

#[test]
fn diffs_whose_parents_are_gone() {
    let steady = Steady::new();
    let vmm = started(steady.boot(""));
    let api = vmm.api();
    steady.keep(&api, "other");
    api.keep(&VmSnapshot {
        track_dirty: true,
        ..steady.full("full")
    });
    api.keep(&steady.diff("snap"));
    drop(vmm);
    let asked = Asked::of(steady);
    let [other, full, away] = ["other", "full", "away"].map(|name| asked.steady.path(name));
    let rename = |from: &Path, to: &Path| std::fs::rename(from, to).expect("renamed");
    rename(&full, &away);
    asked.refuses(
        &asked.good(),
        400,
        &["builds on", "full", "which is not there"],
    );
    rename(&other, &full);
    asked.refuses(
        &asked.good(),
        400,
        &["builds on", "full", "another snapshot"],
    );
    rename(&full, &other);
    rename(&away, &full);
    asked.restores();
}
