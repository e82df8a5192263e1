//! VMs and containers that say again and again whom of each other they reach.

use std::path::Path;

/// The addresses of two VMs and two containers, in the network `default`.
pub const ADDRESSES: [&str; 4] = ["10.88.1.1", "10.88.1.2", "10.88.1.3", "10.88.1.4"];

/// A VM of the guest that `cargo xtask guest` has put into a folder; `words` are added to its kernel's command line.
/// It says `guest: reaches ADDRESS`.
pub fn linux(name: &str, guest: &Path, words: &str, address: &str) -> String {
    let file = |name: &str| guest.join(name).display().to_string();
    let peers = ADDRESSES.join(",");
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: MicroVM\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 memory: 256Mi\n\
         \x20 boot:\n\
         \x20   kernel: {}\n\
         \x20   initramfs: {}\n\
         \x20   cmdline: \"{words} skerry.do=reach skerry.reach={peers}\"\n\
         \x20 disks: [{{name: root, base: {}, format: raw}}]\n\
         \x20 networks: [{{address: {address}}}]\n---\n",
        file("vmlinux"),
        file("initramfs.cpio"),
        file("root.ext4"),
    )
}

/// A container of an image's layout, which says `reaches ADDRESS`.
pub fn container(name: &str, image: &Path, address: &str) -> String {
    let peers = ADDRESSES.join(" ");
    let script = format!(
        "while :; do for peer in {peers}; do ping -c 1 -W 5 $peer >/dev/null && echo reaches $peer; done; sleep 1; done"
    );
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"{script}\"]\n\
         \x20 networks: [{{address: {address}}}]\n---\n",
        image.display()
    )
}
