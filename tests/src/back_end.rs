//! Back ends of devices that other processes serve: QEMU's storage daemon for disks, virtiofsd for directories.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{eventually, given};

/// A process; it ends with this.
struct Server(Child);

impl Server {
    /// Starts it, and waits until it listens.
    fn start(command: &mut Command, what: &str, socket: &Path) -> Server {
        let child = command.stdin(Stdio::null()).spawn();
        let server = Server(child.unwrap_or_else(|e| panic!("{what}: {e}")));
        eventually(&format!("{what} listens"), PATIENCE, || {
            socket.exists().then_some(())
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const PATIENCE: Duration = Duration::from_secs(60);

/// A directory's back end. It ends with this, or with its first connection.
pub struct Virtiofsd(#[expect(dead_code, reason = "it ends with this")] Server);

impl Virtiofsd {
    /// Serves a directory.
    pub fn start(shared: &Path, socket: &Path) -> Virtiofsd {
        let mut command = Command::new(given("SKERRY_VIRTIOFSD"));
        command
            .arg("--socket-path")
            .arg(socket)
            .arg("--shared-dir")
            .arg(shared)
            // The lab's root is no place for its namespaces.
            .args(["--sandbox", "none", "--log-level", "error"]);
        Virtiofsd(Server::start(&mut command, "virtiofsd", socket))
    }
}

/// A disk's back end; it ends with this.
pub struct BackEnd(#[expect(dead_code, reason = "it ends with this")] Server);

impl BackEnd {
    /// Serves a raw image for writing, over so many queues.
    pub fn start(image: &Path, socket: &Path, queues: u16) -> BackEnd {
        BackEnd::serve(image, socket, queues, "on")
    }

    /// Serves it for reading alone.
    pub fn start_readonly(image: &Path, socket: &Path, queues: u16) -> BackEnd {
        BackEnd::serve(image, socket, queues, "off")
    }

    fn serve(image: &Path, socket: &Path, queues: u16, writable: &str) -> BackEnd {
        let (image, shown) = (image.display(), socket.display());
        let readonly = if writable == "on" { "off" } else { "on" };
        let node =
            format!("driver=file,node-name=f,filename={image},locking=off,read-only={readonly}");
        let export = format!(
            "type=vhost-user-blk,id=e,node-name=f,writable={writable},addr.type=unix,addr.path={shown},num-queues={queues}"
        );
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &node, "--export", &export]);
        let what = "qemu-storage-daemon, of qemu-utils,";
        BackEnd(Server::start(&mut command, what, socket))
    }
}
