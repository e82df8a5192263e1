//! What the tests' snapshots say of themselves.

use skerry_vmm_api::VmConfig;

use crate::{
    CpuFacts, CpuidLeaf, DeviceFacts, Header, MachineFacts, MemoryFacts, MemoryKind, Parent,
};

/// A header with something in every field.
pub fn header() -> Header {
    Header {
        id: "00112233445566778899aabbccddeeff".into(),
        parent: Some(Parent {
            id: "ffeeddccbbaa99887766554433221100".into(),
            path: "../base".into(),
        }),
        disks_go_on: true,
        created: 1_795_426_550,
        monitor: "0.1.0".into(),
        machine: MachineFacts {
            arch: "x86_64".into(),
            cpus: 2,
            tsc_khz: 2_900_000,
        },
        cpu: CpuFacts {
            vendor: "GenuineIntel".into(),
            model: "A model".into(),
            cpuid: vec![CpuidLeaf(7, 1, [1, 2, 3, u32::MAX])],
        },
        devices: vec![DeviceFacts {
            id: "_disk0".into(),
            kind: "blk".into(),
        }],
        config: VmConfig::default(),
        memory: MemoryFacts {
            kind: MemoryKind::Diff,
            size: 1 << 20,
            data: 4096,
        },
        records: Vec::new(),
    }
}
