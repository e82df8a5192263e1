//! What tests and the demo are played on: a host that can be switched off, an image for containers, and VMs and containers
//! that look for each other.

mod busybox;
mod machine;
mod manifests;

pub use busybox::layout;
pub use machine::Machine;
pub use manifests::{ADDRESSES, container, linux};
