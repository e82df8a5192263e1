//! Tests of the configuration's rules.

use skerry_vmm_api::workers::{PollMax, TokenBucketConfig, WorkerConfig};

use super::*;

fn config() -> VmConfig {
    let mut config = VmConfig::default();
    config.payload.kernel = Some("k".into());
    config
}

fn refused(change: impl FnOnce(&mut VmConfig), words: &[&str]) {
    let mut config = config();
    change(&mut config);
    let message = check(&mut config).expect_err("accepted").to_string();
    for word in words {
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn a_plain_machine_is_accepted_and_its_devices_named() {
    let mut config = config();
    let disk = DiskConfig {
        path: "d".into(),
        ..DiskConfig::default()
    };
    let named = DiskConfig {
        id: Some("_disk0".into()),
        ..disk.clone()
    };
    config.disks = vec![disk.clone(), named, disk];
    check(&mut config).unwrap();
    let ids: Vec<_> = config.disks.iter().map(|d| d.id.clone().unwrap()).collect();
    assert_eq!(ids, ["_disk1", "_disk0", "_disk2"]);
}

#[test]
fn each_broken_rule_names_the_thing_and_the_remedy() {
    refused(|c| c.payload.kernel = None, &["kernel"]);
    refused(|c| c.cpus.boot_vcpus = 0, &["boot=0", "1 to 64"]);
    refused(|c| c.cpus.boot_vcpus = 65, &["boot=65", "1 to 64"]);
    refused(
        |c| (c.cpus.boot_vcpus, c.cpus.max_vcpus) = (4, 2),
        &["max=2", "boot=4"],
    );
    refused(|c| c.cpus.max_phys_bits = 20, &["max_phys_bits=20"]);
    refused(
        |c| c.memory.hugepage_size = Some(2 << 20),
        &["hugepages=on"],
    );
    refused(|c| c.memory.size = 4096, &["size=4096"]);
    refused(|c| c.memory.size = (64 << 20) + 1, &["whole pages"]);
    refused(
        |c| c.disks.push(DiskConfig::default()),
        &["_disk0", "path="],
    );
    let disk = DiskConfig {
        path: "d".into(),
        ..DiskConfig::default()
    };
    refused(
        |c| {
            c.disks.push(DiskConfig {
                num_queues: 0,
                ..disk.clone()
            })
        },
        &["num_queues=0"],
    );
    refused(
        |c| {
            c.disks.push(DiskConfig {
                queue_size: 100,
                ..disk.clone()
            })
        },
        &["queue_size=100"],
    );
    let twin = DiskConfig {
        id: Some("x".into()),
        ..disk
    };
    refused(
        |c| c.disks = vec![twin.clone(), twin],
        &["`x`", "different"],
    );
    refused(|c| c.net.push(NetConfig::default()), &["_net0", "tap="]);
    let net = NetConfig {
        tap: "t".into(),
        ..NetConfig::default()
    };
    refused(
        |c| {
            c.net.push(NetConfig {
                num_queues: 3,
                ..net.clone()
            })
        },
        &["num_queues=3", "even"],
    );
    refused(
        |c| {
            c.net.push(NetConfig {
                mac: Some("01:00:00:00:00:00".into()),
                ..net.clone()
            })
        },
        &["mac="],
    );
    refused(
        |c| {
            c.net.push(NetConfig {
                mtu: Some(10),
                ..net
            })
        },
        &["mtu=10"],
    );
    refused(|c| c.serial.mode = ConsoleMode::Tty, &["serial", "console"]);
    refused(|c| c.serial.mode = ConsoleMode::File, &["file=PATH"]);
    refused(|c| c.serial.mode = ConsoleMode::Socket, &["socket=PATH"]);
}

#[test]
fn addresses_made_from_names_are_valid() {
    for name in ["", "tap0", "tap1", "a-very-long-name"] {
        let mac = mac_of(name);
        let text: Vec<_> = mac.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(parse_mac(&text.join(":")), Some(mac));
    }
    assert_ne!(mac_of("tap0"), mac_of("tap1"));
}

#[test]
fn workers_limits_and_what_others_serve_have_rules_of_their_own() {
    let disk = || DiskConfig {
        path: "d".into(),
        ..DiskConfig::default()
    };
    let worker = |name: &str| WorkerConfig {
        name: name.to_owned(),
        poll_max_ns: PollMax::default(),
        affinity: Vec::new(),
    };
    refused(|c| c.workers.push(worker("")), &["worker name", "1 to 15"]);
    refused(
        |c| c.workers.push(worker("sixteen-letters-")),
        &["sixteen-letters-"],
    );
    refused(
        |c| c.workers = vec![worker("a"), worker("a")],
        &["two workers", "`a`"],
    );
    refused(
        |c| c.workers = (0..65).map(|i| worker(&i.to_string())).collect(),
        &["65 workers"],
    );
    refused(|c| c.poll_cap = Some(0), &["poll_cap=0"]);
    let other = DiskConfig {
        worker: Some("w".into()),
        ..disk()
    };
    refused(|c| c.disks.push(other), &["_disk0", "--worker name=w"]);
    let bucket = TokenBucketConfig {
        size: 1,
        one_time_burst: None,
        refill_time: 0,
    };
    let limited = DiskConfig {
        rate_limiter_config: Some(RateLimiterConfig {
            bandwidth: None,
            ops: Some(bucket),
        }),
        ..disk()
    };
    refused(|c| c.disks.push(limited), &["_disk0", "refill_time"]);
    let served = DiskConfig {
        vhost_user: true,
        vhost_socket: Some("s".into()),
        ..DiskConfig::default()
    };
    let mut config = config();
    config.disks = vec![served.clone()];
    config.fs = vec![FsConfig {
        tag: "t".into(),
        socket: "s".into(),
        ..FsConfig::default()
    }];
    check(&mut config).unwrap();
    assert_eq!(config.fs[0].id.as_deref(), Some("_fs0"));
    let both = DiskConfig {
        path: "d".into(),
        ..served.clone()
    };
    refused(|c| c.disks.push(both), &["_disk0 ", "path"].map(str::trim));
    let without = DiskConfig {
        vhost_socket: None,
        ..served
    };
    refused(|c| c.disks.push(without), &["socket=PATH"]);
    let tag = FsConfig {
        tag: "x".repeat(37),
        socket: "s".into(),
        ..FsConfig::default()
    };
    refused(|c| c.fs.push(tag), &["1 to 36 bytes"]);
    let pairs = NetConfig {
        tap: "t".into(),
        vhost: true,
        num_queues: 4,
        ..NetConfig::default()
    };
    refused(|c| c.net.push(pairs), &["_net0", "one queue pair"]);
}
