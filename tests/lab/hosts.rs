//! A host whose VMs are Linux, beside containers.

use skerry_stage::{ADDRESSES, linux};
use skerry_tests::host::Host;
use skerry_tests::linux::COMMAND_LINE;
use skerry_tests::together::Together;
use skerry_tests::vmm::LONG;
use skerry_tests::{Site, given};

#[test]
fn linux_and_containers_declared_together_live_through_deaths_and_a_reboot() {
    let site = Site::new();
    let guest = given("SKERRY_GUEST_DIR");
    let vm = |name: &str, address: &str| linux(name, &guest, COMMAND_LINE, address);
    let together = Together {
        vms: vm("vm-one", ADDRESSES[0]) + &vm("vm-two", ADDRESSES[1]),
        image: &site.layout(),
        goes_on: Some(|peer| format!("guest: reaches {peer}")),
        says: "guest: ready",
        limit: LONG,
    };
    together.live(Host::machine_for_linux());
}
