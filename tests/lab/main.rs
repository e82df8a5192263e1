//! The lab tier: unmodified Linux on a KVM that can run it. Run it with
//! `cargo xtask test --tier lab`.

mod api;
mod cloud;
mod devices;
mod disks;
mod ends;
mod hosts;
mod hotplug;
mod kernels;
mod loaded;
mod migration;
mod networks;
mod reach;
mod services;
mod shared_snapshots;
mod sharing;
mod snapshots;
