//! I/O workers: every way of waiting, queues that move while they run, limits, and workers that break.

use std::time::{Duration, Instant};

use skerry_tests::disk::{self, qemu_img};
use skerry_tests::vmm::{Builder, Exit, SHORT, Vmm};
use skerry_tests::{Api, Tap, eventually, inject};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::workers::{PollMax, WorkerInfo};

const SIZE: u64 = 16 << 20;
/// Pure events, adaptive, pure polling.
const WAYS: [&str; 3] = ["0", "32000", "inf"];

fn with_worker(tasks: &str, poll_max: &str, options: &str) -> Builder {
    let vmm = Builder::payload(tasks).flag("--worker", format!("name=w,poll-max-ns={poll_max}"));
    let path = vmm.path("disk.img");
    disk::create(&path, SIZE);
    vmm.flag(
        "--disk",
        format!("path={},worker=w{options}", path.display()),
    )
}

fn workers(api: &Api) -> Vec<WorkerInfo> {
    api.with(async |c| c.workers().await).expect("vm.workers")
}

fn worker(api: &Api, name: &str) -> WorkerInfo {
    let found = workers(api).into_iter().find(|w| w.name == name);
    found.unwrap_or_else(|| panic!("no worker {name}"))
}

fn move_disk(api: &Api, queues: Option<Vec<u16>>, worker: &str) {
    api.with(async |c| c.move_queues("_disk0", queues, worker).await)
        .expect("vm.move-queues");
}

#[test]
fn a_disk_is_exact_in_every_way_of_waiting() {
    for poll_max in WAYS {
        for options in ["", ",num_queues=4", ",direct=on"] {
            for words in ["", " wait=poll", " event-idx=off"] {
                let tasks = format!("run=blk-verify:0:9,blk-discard,reset-dev{words}");
                with_worker(&tasks, poll_max, options).run().all_ok(3);
            }
        }
    }
}

#[test]
fn the_event_index_wraps_in_every_way_of_waiting() {
    // More requests than a 16-bit index counts, of which the driver must neither miss an interrupt nor
    // the device a doorbell.
    for poll_max in WAYS {
        for wait in ["irq", "poll"] {
            // Twice 70000 of them.
            let load = "blk-load:depth=4:bytes=512:order=stride:count=70000";
            with_worker(&format!("run={load} wait={wait}"), poll_max, "")
                .run()
                .all_ok(1);
        }
    }
}

#[test]
fn networks_work_in_every_way_of_waiting() {
    for poll_max in WAYS {
        let (one, two) = (Tap::new(), Tap::multi_queue());
        let task = format!(
            "run=net-ping:0:ip={}:peer={},net-ping:1:ip={}:peer={}",
            one.guest(),
            one.host(),
            two.guest(),
            two.host()
        );
        let exit = Builder::payload(&task)
            .flag("--worker", format!("name=w,poll-max-ns={poll_max}"))
            .flag("--net", format!("tap={},worker=w", one.name))
            .flag("--net", format!("tap={},worker=w,num_queues=4", two.name))
            .run();
        exit.all_ok(2);
    }
}

/// A disk of two layers under a load that checks all that it reads, with three more workers.
fn churning(seed: u64) -> Vmm {
    let tasks = format!("run=blk-churn:0:{seed}:fresh=zero:depth=32,blk-sum");
    let vmm = Builder::payload(&tasks).with_api();
    let (base, top) = (vmm.path("base.img"), vmm.path("top.qcow2"));
    disk::create(&base, SIZE);
    let below = base.display().to_string();
    let words = ["create", "-q", "-f", "qcow2", "-b", &below, "-F", "raw"];
    qemu_img(&words, &[&top], &[]);
    let option = format!("path={},backing=[raw:{below}],num_queues=3", top.display());
    let vmm = vmm
        .flag("--disk", option)
        .flag("--worker", "name=events,poll-max-ns=0")
        .flag("--worker", "name=adaptive")
        .flag("--worker", "name=polled,poll-max-ns=inf")
        .start();
    vmm.expect_line("churn: running", SHORT);
    vmm
}

fn finish(vmm: Vmm) -> Exit {
    vmm.api().act(Operation::VmPowerButton);
    let exit = vmm.wait(SHORT);
    exit.all_ok(2);
    exit
}

#[test]
fn a_thousand_moves_under_load_lose_and_double_nothing() {
    let vmm = churning(11);
    let api = vmm.api();
    let names = ["events", "polled", "adaptive", "io"];
    for i in 0..1000usize {
        let queues = match i % 5 {
            4 => None,
            queue => Some(vec![queue as u16 % 3]),
        };
        move_disk(&api, queues, names[(i / 2) % 4]);
        if i % 250 == 0 {
            let moved = names[(i / 2) % 4];
            assert!(
                !worker(&api, moved).queues.is_empty(),
                "{:?}",
                workers(&api)
            );
        }
    }
    let all: Vec<_> = workers(&api).into_iter().flat_map(|w| w.queues).collect();
    let mut names: Vec<_> = all.iter().map(|q| q.name.as_str()).collect();
    names.retain(|name| name.starts_with("_disk0/"));
    names.sort();
    assert_eq!(names, ["_disk0/0", "_disk0/1", "_disk0/2"]);
    finish(vmm);
}

#[test]
fn layers_and_pauses_come_while_queues_are_polled_for_ever() {
    let vmm = churning(12);
    let api = vmm.api();
    move_disk(&api, None, "polled");
    for i in 0..12 {
        api.snapshot("_disk0", &vmm.path(&format!("layer{i}.qcow2")));
        api.act(Operation::VmPause);
        api.act(Operation::VmResume);
        let job = api.commit("_disk0", 0);
        let job = api.expect_job(&job, SHORT);
        assert!(job.error.is_empty(), "{job:?}");
    }
    finish(vmm);
}

#[test]
fn a_worker_that_breaks_needs_a_reset_and_is_started_anew() {
    let vmm = with_worker("run=blk-survive,blk-verify", "0", "")
        .with_api()
        .start();
    vmm.expect_line("survive: ready", SHORT);
    inject::close_ring(vmm.pid(), "w");
    vmm.expect_line("survive: needs reset", SHORT);
    let exit = vmm.wait(SHORT);
    exit.all_ok(2);
    assert!(exit.errors.contains("I/O worker broke down"), "{exit}");
}

#[test]
fn a_worker_that_breaks_in_a_pause_is_started_anew_and_nobody_notices() {
    let vmm = with_worker("run=blk-load:depth=4:ms=4000,blk-verify", "0", "")
        .with_api()
        .start();
    vmm.expect_line("load: begin", SHORT);
    let api = vmm.api();
    api.act(Operation::VmPause);
    inject::close_ring(vmm.pid(), "w");
    // Not by the API: the monitor closes the ring's descriptor once more, and it is to be nobody else's.
    eventually("the worker is gone", SHORT, || {
        (!inject::has_thread(vmm.pid(), "w")).then_some(())
    });
    assert!(!worker(&api, "w").alive);
    api.act(Operation::VmResume);
    assert!(worker(&api, "w").alive);
    vmm.wait(SHORT).all_ok(2);
}

#[test]
fn workers_are_shown_set_and_refused_by_name() {
    let vmm = with_worker("run=blk-verify,spin:600000", "inf", ",num_queues=2")
        .with_api()
        .start();
    vmm.expect_line("ok blk-verify", SHORT);
    let api = vmm.api();
    let names: Vec<_> = workers(&api).into_iter().map(|w| w.name).collect();
    assert_eq!(names, ["io", "w"]);
    assert_eq!(worker(&api, "w").poll_max_ns, PollMax::INFINITE);
    assert!(worker(&api, "w").alive);
    api.with(async |c| c.set_worker("w", PollMax(5000)).await)
        .expect("vm.set-worker");
    assert_eq!(worker(&api, "w").poll_max_ns, PollMax(5000));
    let refused = |operation, body: &str, status, words: &[&str]| {
        api.refused(operation, body, status, words);
    };
    let moves = Operation::VmMoveQueues;
    refused(
        moves,
        r#"{"id":"_disk0","worker":"x"}"#,
        404,
        &["`x`", "io, w"],
    );
    refused(moves, r#"{"id":"_disk7","worker":"w"}"#, 404, &["_disk7"]);
    refused(
        moves,
        r#"{"id":"_disk0","worker":"w","queues":[2]}"#,
        400,
        &["no queue 2", "it has 2"],
    );
    refused(
        Operation::VmSetWorker,
        r#"{"name":"w","poll_max_ns":"often"}"#,
        400,
        &["often"],
    );
    refused(
        Operation::VmSetWorker,
        r#"{"name":"v","poll_max_ns":0}"#,
        404,
        &["`v`"],
    );
}

#[test]
fn a_cap_on_polling_is_kept_and_all_is_exact() {
    let vmm = with_worker("run=blk-verify,spin:600000", "inf", "")
        .flag("--poll-cap", "10")
        .with_api()
        .start();
    vmm.expect_line("ok blk-verify", SHORT);
    let api = vmm.api();
    let (before, begun) = (worker(&api, "w").polled_ns, Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    let spent = worker(&api, "w").polled_ns - before;
    let share = spent as f64 / begun.elapsed().as_nanos() as f64;
    // Without a cap it would be all of it; a thread that lost the processor counts as polling.
    assert!(share < 0.3, "{share}");
}

#[test]
fn limits_are_kept_exactly_and_nothing_is_lost() {
    // Ten operations in ten milliseconds are a thousand in a second.
    let rates = [
        (",ops_size=10,ops_refill_time=10", 4096, 1000.0),
        (",bw_size=4M,bw_refill_time=1000", 16384, 256.0),
    ];
    for poll_max in WAYS {
        for (limit, bytes, expected) in rates {
            let tasks = format!("run=blk-load:depth=8:warm=1200:ms=2000:bytes={bytes}");
            let vmm = with_worker(&tasks, poll_max, limit).start();
            // By the host's clock: the guest may not know how fast its own is.
            vmm.expect_line("load: begin", SHORT);
            let begun = Instant::now();
            vmm.expect_line("load: end", SHORT);
            let seconds = begun.elapsed().as_secs_f64();
            let exit = vmm.wait(SHORT);
            exit.all_ok(1);
            let ops: f64 = exit.value("blk-load", "ops").parse().expect("a number");
            let rate = ops / seconds;
            // On a busy host it may get less, never more.
            let share = rate / expected;
            let kept = (0.85..1.1).contains(&share);
            assert!(
                kept,
                "poll_max={poll_max}{limit}: {rate} and not {expected}"
            );
        }
    }
    with_worker(
        "run=blk-verify",
        "inf",
        ",num_queues=2,ops_size=200,ops_refill_time=10",
    )
    .run()
    .all_ok(1);
}

#[test]
fn a_limited_network_answers_later_and_loses_nothing() {
    let tap = Tap::new();
    let task = format!("run=net-ping:ip={}:peer={}", tap.guest(), tap.host());
    let option = format!("tap={},ops_size=20,ops_refill_time=20", tap.name);
    let exit = Builder::payload(&task).flag("--net", option).run();
    exit.all_ok(1);
}

#[test]
fn workers_that_cannot_be_are_refused() {
    let refused = |flags: &[(&str, &str)], words: &[&str]| {
        let mut vmm = Builder::payload("run=mem");
        for (name, value) in flags {
            vmm = vmm.flag(name, *value);
        }
        vmm.run().refused(1, words);
    };
    refused(&[("--worker", "name=w/x")], &["w/x", "letters"]);
    refused(
        &[("--worker", "name=w"), ("--worker", "name=w")],
        &["two workers", "`w`"],
    );
    refused(
        &[("--disk", "path=/dev/null,worker=w")],
        &["_disk0", "--worker name=w"],
    );
    refused(
        &[("--worker", "name=w,affinity=[999]")],
        &["worker `w`", "999"],
    );
    refused(&[("--poll-cap", "0")], &["percent"]);
    let option = "path=/dev/null,ops_size=0,ops_refill_time=1";
    refused(&[("--disk", option)], &["_disk0", "at least 1"]);
}
