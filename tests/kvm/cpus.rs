//! CPUs and memory as the guest finds them.

use skerry_tests::vmm::Builder;

#[test]
fn one_to_64_cpus_start() {
    for cpus in [1, 2, 4, 17, 64] {
        let exit = Builder::payload(&format!("run=cpus:{cpus}"))
            .flag("--cpus", format!("boot={cpus}"))
            .run();
        exit.all_ok(1);
    }
}

#[test]
fn memory_continues_above_4_gib() {
    let exit = Builder::payload_with_memory("run=mem", "size=5G").run();
    exit.all_ok(1);
    let above = exit
        .serial
        .iter()
        .any(|l| l.starts_with("# mem 0x100000000..0x180000000 type=1"));
    assert!(above, "{exit}");
}

#[test]
fn timers_and_wired_interrupts_arrive() {
    Builder::payload("run=timer,serial-irq,rtc").run().all_ok(3);
}

#[test]
fn a_cpu_runs_where_it_is_pinned() {
    Builder::payload("run=spin:1")
        .flag("--cpus", "boot=2,affinity=[0@[0],1@[1]]")
        .run()
        .all_ok(1);
}
