//! Tests of the flags' syntax.

use proptest::prelude::*;

use super::*;
use crate::config::{CpusConfig, DiskConfig, MemoryConfig, NetConfig, VsockConfig};
use crate::workers::WorkerConfig;

#[test]
fn flags_and_json_give_the_same_configuration() {
    let by_flag: DiskConfig =
        from_str("path=/a,readonly=on,num_queues=4,image_type=raw,id=root").unwrap();
    let by_json: DiskConfig =
        serde_json::from_str(r#"{"path":"/a","readonly":true,"num_queues":4,"image_type":"Raw","id":"root","iommu":false,"pci_segment":0,"rate_limiter_config":null}"#).unwrap();
    assert_eq!(by_flag, by_json);
}

#[test]
fn sizes_ranges_pairs_and_quotes() {
    let memory: MemoryConfig = from_str("size=1G,hugepages=on,hugepage_size=0x200000").unwrap();
    assert_eq!(
        (memory.size, memory.hugepage_size),
        (1 << 30, Some(2 << 20))
    );
    assert_eq!(
        from_str::<MemoryConfig>("size=128M").unwrap().size,
        128 << 20
    );
    let cpus: CpusConfig = from_str("boot_vcpus=2,affinity=[0@[1],1@[2-4,7]]").unwrap();
    assert_eq!(cpus.affinity[1].vcpu, 1);
    assert_eq!(cpus.affinity[1].host_cpus, [2, 3, 4, 7]);
    let disk: DiskConfig = from_str("path=\"/a,b=c\",direct=on").unwrap();
    assert_eq!(disk.path.to_str(), Some("/a,b=c"));
}

#[test]
fn limits_and_workers_are_given_by_flags_as_in_json() {
    let by_flag: DiskConfig = from_str(
        "path=/a,worker=fast,bw_size=1M,bw_refill_time=100,ops_size=10,ops_refill_time=10,ops_one_time_burst=5",
    )
    .unwrap();
    let by_json: DiskConfig = serde_json::from_str(
        r#"{"path":"/a","worker":"fast","rate_limiter_config":{"bandwidth":{"size":1048576,"refill_time":100},
            "ops":{"size":10,"refill_time":10,"one_time_burst":5}}}"#,
    )
    .unwrap();
    assert_eq!(by_flag, by_json);
    for (text, ns) in [("0", 0), ("32000", 32_000), ("inf", u64::MAX)] {
        let option = format!("name=fast,poll-max-ns={text},affinity=[1-2]");
        let worker: WorkerConfig = from_str(&option).unwrap();
        assert_eq!((worker.poll_max_ns.0, &*worker.affinity), (ns, &[1, 2][..]));
        let json = serde_json::to_string(&worker).unwrap();
        assert_eq!(serde_json::from_str::<WorkerConfig>(&json).unwrap(), worker);
    }
    let error = from_str::<WorkerConfig>("name=a,poll-max-ns=often").unwrap_err();
    assert!(error.to_string().contains("`often`"), "{error}");
}

#[test]
fn mistakes_are_named() {
    let refused = |text: &str, words: &[&str]| {
        let message = from_str::<DiskConfig>(text).unwrap_err().to_string();
        for word in words {
            assert!(message.contains(word), "{text}: {message}");
        }
    };
    refused("path=/a,reedonly=on", &["reedonly", "readonly"]);
    refused("path=/a,readonly=yes", &["yes", "on nor off"]);
    refused("path=/a,num_queues=four", &["four", "number"]);
    refused("path=/a,num_queues=70000", &["70000"]);
    refused("path=/a,image_type=qed", &["qed", "Raw"]);
    refused("path=/a,iommu=on", &["does not have this setting"]);
    refused("/a", &["`/a` has no value"]);
    refused("path=/a,path=/b", &["twice"]);
    refused("path=\"/a", &["not closed"]);
    refused("path=/a,", &["comma"]);
    let message = from_str::<VsockConfig>("cid=3").unwrap_err().to_string();
    assert!(message.contains("socket"), "{message}");
    assert!(
        from_str::<CpusConfig>("affinity=[0@[1")
            .unwrap_err()
            .to_string()
            .contains("not closed")
    );
    assert!(from_str::<CpusConfig>(&format!("affinity=[{}", "0@".repeat(100_000))).is_err());
    assert!(
        from_str::<CpusConfig>("affinity=[0@[0-99999]]")
            .unwrap_err()
            .to_string()
            .contains("range")
    );
}

#[test]
fn what_cloud_hypervisors_clients_send_by_default_is_accepted() {
    let json = r#"{"cpus":{"boot_vcpus":1,"max_vcpus":4,"core_scheduling":"Vm","profile":"Host","nested":true},
        "memory":{"size":536870912,"hotplug_size":1073741824,"hotplug_method":"Acpi","thp":true},
        "payload":null,
        "net":[{"tap":"t","ip":"192.168.249.1","mask":"255.255.255.0","fds":null,"vhost_mode":"Client"}],
        "disks":[{"path":"d","disable_io_uring":false,"disable_aio":false,"sparse":true}],
        "debug_console":{"mode":"Off","iobase":233},
        "platform":{"num_pci_segments":1,"iommu_address_width_bits":64,"vfio_p2p_dma":true,"tdx":false}}"#;
    serde_json::from_str::<crate::VmConfig>(json).unwrap();
    for refused in [
        r#"{"net":[{"ip":"10.0.0.1"}]}"#,
        r#"{"platform":{"uuid":"x"}}"#,
        r#"{"debug_console":{"mode":"Tty"}}"#,
    ] {
        assert!(
            serde_json::from_str::<crate::VmConfig>(refused).is_err(),
            "{refused}"
        );
    }
}

#[test]
fn unknown_json_fields_are_named_and_known_foreign_ones_may_be_off() {
    let message = serde_json::from_str::<NetConfig>(r#"{"tap":"t","frobnicate":1}"#)
        .unwrap_err()
        .to_string();
    assert!(message.contains("frobnicate"), "{message}");
    assert!(
        serde_json::from_str::<crate::VmConfig>(
            r#"{"watchdog":false,"devices":null,"debug_console":{"mode":"Off"}}"#
        )
        .is_ok()
    );
    let message = serde_json::from_str::<crate::VmConfig>(r#"{"watchdog":true}"#)
        .unwrap_err()
        .to_string();
    assert!(message.contains("does not have this setting"), "{message}");
}

proptest! {
    #[test]
    fn no_text_panics(text in "[a-z=,\\[\\]\"@0-9-]{0,60}") {
        let _ = from_str::<DiskConfig>(&text);
        let _ = from_str::<CpusConfig>(&text);
    }
}
