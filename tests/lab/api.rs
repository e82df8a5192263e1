//! The API with Linux: a whole life, twice in one process.

use std::time::Duration;

use skerry_tests::linux;
use skerry_tests::vmm::{Builder, LONG};
use skerry_vmm_api::endpoints::Operation;
use skerry_vmm_api::requests::VmState;

#[test]
fn create_boot_info_pause_resume_power_button_delete_twice() {
    let vmm = Builder::new(&[]).with_api().start();
    let api = vmm.api();
    let root = linux::root_disk(vmm.path("root.ext4"));
    for round in 1..=2 {
        api.create(&linux::config(root.clone(), ""));
        assert_eq!(api.info().state, VmState::Created);
        api.act(Operation::VmBoot);
        vmm.expect_nth_line("guest: ready", round, LONG);
        let info = api.info();
        assert_eq!(
            (info.state, info.memory_actual_size),
            (VmState::Running, 512 << 20)
        );
        assert!(api.counters()["_disk0"]["read_bytes"] > 0);
        api.act(Operation::VmPause);
        assert_eq!(api.info().state, VmState::Paused);
        std::thread::sleep(Duration::from_millis(500));
        api.act(Operation::VmResume);
        api.act(Operation::VmPowerButton);
        vmm.expect_nth_line("guest: going down: poweroff", round, LONG);
        api.expect_state(VmState::Shutdown, LONG);
        api.act(Operation::VmDelete);
    }
    api.act(Operation::VmmShutdown);
    assert_eq!(vmm.wait(LONG).code, Some(0));
}
