//! Networks: the host's own IP stack answers the guest, through a tap.

use skerry_tests::vmm::Builder;
use skerry_tests::{Tap, disk};

#[test]
fn the_host_answers_pings_of_every_size() {
    let tap = Tap::new();
    let task = format!(
        "run=net-info,net-ping:ip={}:peer={}",
        tap.guest(),
        tap.host()
    );
    let exit = Builder::payload(&task)
        .flag(
            "--net",
            format!("tap={},mac=52:54:00:aa:bb:cc,mtu=1400", tap.name),
        )
        .run();
    exit.all_ok(2);
    assert_eq!(exit.value("net-info", "mac"), "52:54:00:aa:bb:cc");
    assert_eq!(exit.value("net-info", "mtu"), "1400");
}

#[test]
fn so_it_does_on_every_queue_pair() {
    let tap = Tap::multi_queue();
    let task = format!(
        "run=net-info,net-ping:ip={}:peer={}",
        tap.guest(),
        tap.host()
    );
    let exit = Builder::payload(&task)
        .flag("--net", format!("tap={},num_queues=4", tap.name))
        .run();
    exit.all_ok(2);
    assert_eq!(exit.value("net-info", "pairs"), "2");
}

#[test]
fn two_networks_and_a_disk_do_not_disturb_each_other() {
    let (one, two) = (Tap::new(), Tap::new());
    let task = format!(
        "run=net-ping:0:ip={}:peer={},net-ping:1:ip={}:peer={},blk-verify",
        one.guest(),
        one.host(),
        two.guest(),
        two.host()
    );
    let vmm = Builder::payload(&task);
    let path = vmm.path("d");
    disk::create(&path, 8 << 20);
    let exit = vmm
        .flag("--net", format!("tap={}", one.name))
        .flag("--net", format!("tap={}", two.name))
        .flag("--disk", format!("path={}", path.display()))
        .run();
    exit.all_ok(3);
}

#[test]
fn the_kernel_serves_a_network_where_it_can_and_is_asked_for_by_name_where_not() {
    let tap = Tap::new();
    let task = format!("run=net-ping:ip={}:peer={}", tap.guest(), tap.host());
    let exit = Builder::payload(&task)
        .flag("--net", format!("tap={},vhost=on", tap.name))
        .run();
    match std::path::Path::new("/dev/vhost-net").exists() {
        true => exit.all_ok(1),
        false => exit.refused(1, &["/dev/vhost-net", "load the module vhost_net"]),
    };
    let options = format!("tap={},vhost=on,ops_size=1,ops_refill_time=1", tap.name);
    let limited = Builder::payload("run=mem").flag("--net", options).run();
    limited.refused(1, &["_net0", "without limits"]);
}
