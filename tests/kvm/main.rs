//! The kvm tier: the native payload drives the monitor's real data plane on any KVM, also a
//! software one. Run it with `cargo xtask test --tier kvm`.

mod api;
mod block;
mod churn;
mod cpus;
mod death;
mod ends;
mod hostile;
mod leftovers;
mod live;
mod net;
mod pci;
mod qcow2;
mod refusals;
mod streams;
mod vhost_user;
mod vsock;
mod workers;
