//! How each program is told to run the same machine, with its serial port on standard output.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::peer::{Contestant, Kind, Way};
use crate::size::Size;

/// The machine that everybody gets: one vCPU and this.
pub struct MachineSpec<'a> {
    pub kernel: &'a Path,
    pub cmdline: &'a str,
    pub memory: Size,
    pub disk: Option<DiskSpec<'a>>,
    pub tap: Option<&'a str>,
}

/// A disk.
#[derive(Clone, Copy)]
pub struct DiskSpec<'a> {
    pub path: &'a Path,
    /// It is a qcow2 image, and not raw.
    pub qcow2: bool,
    /// A raw or qcow2 image that it lies on, which it names itself.
    pub base: Option<&'a Path>,
}

impl<'a> DiskSpec<'a> {
    /// A raw disk.
    pub fn raw(path: &'a Path) -> Self {
        DiskSpec {
            path,
            qcow2: false,
            base: None,
        }
    }
}

/// Why a contestant cannot run a machine; none if it can.
pub fn unable(contestant: &Contestant, disk: &DiskSpec) -> Option<&'static str> {
    match contestant.kind() {
        Kind::Firecracker if disk.qcow2 => Some("it has no qcow2"),
        Kind::CloudHypervisor if disk.base.is_some() => {
            Some("it opens the base that an image names only when told to")
        }
        _ => None,
    }
}

/// The command that runs a machine. `directory` takes a configuration file, if the program wants one.
pub fn command(who: &Contestant, machine: &MachineSpec, directory: &Path) -> Result<Command> {
    build(who, machine, directory, None)
}

/// The same, for a monitor that serves its API on `socket` meanwhile.
pub fn command_with_api(
    who: &Contestant,
    machine: &MachineSpec,
    directory: &Path,
    socket: &Path,
) -> Result<Command> {
    build(who, machine, directory, Some(socket))
}

fn build(
    who: &Contestant,
    machine: &MachineSpec,
    directory: &Path,
    socket: Option<&Path>,
) -> Result<Command> {
    let mut command = Command::new(&who.peer.path);
    match who.kind() {
        Kind::Bare => {
            command.arg("bare").arg("--kernel").arg(machine.kernel);
            command
                .arg("--memory")
                .arg(machine.memory.bytes().to_string());
            command.args(["--cmdline", machine.cmdline]);
        }
        Kind::Firecracker => {
            let path = directory.join("firecracker.json");
            let text = serde_json::to_vec_pretty(&firecracker(who.way, machine))?;
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
            match socket {
                Some(socket) => command.arg("--api-sock").arg(socket),
                None => command.arg("--no-api"),
            };
            command.arg("--config-file").arg(path);
            // Its log would go between the words of the serial port.
            command.args(["--log-path", "/dev/null", "--level", "Error"]);
        }
        Kind::Skerry => {
            skerry(&mut command, who.way, machine);
            if let Some(socket) = socket {
                command.arg("--api-socket").arg(socket);
            }
        }
        kind if socket.is_some() => bail!("{}'s API is not driven here", kind.name()),
        Kind::CloudHypervisor => {
            common(&mut command, machine);
            if let Some(disk) = machine.disk {
                let format = if disk.qcow2 { "qcow2" } else { "raw" };
                let option = format!("path={},image_type={format}", disk.path.display());
                command.arg("--disk").arg(option);
            }
            if let Some(tap) = machine.tap {
                command.arg("--net").arg(format!("tap={tap}"));
            }
        }
        Kind::Qemu => qemu(&mut command, who.way, machine),
    }
    Ok(command)
}

/// What Cloud Hypervisor's flags and ours have in common.
fn common(command: &mut Command, machine: &MachineSpec) {
    command.arg("--kernel").arg(machine.kernel);
    command.args(["--cmdline", machine.cmdline, "--cpus", "boot=1"]);
    let memory = format!("size={}M", machine.memory.bytes() >> 20);
    command.args(["--memory", &memory, "--serial", "tty", "--console", "off"]);
}

fn skerry(command: &mut Command, way: Way, machine: &MachineSpec) {
    command.arg("--no-probe");
    common(command, machine);
    let poll_max = match way {
        Way::Polled => Some("inf"),
        Way::Adaptive => Some("32000"),
        Way::Events => Some("0"),
        _ => None,
    };
    let worker = match poll_max {
        Some(ns) => {
            command.args(["--worker", &format!("name=bench,poll-max-ns={ns}")]);
            ",worker=bench"
        }
        None => "",
    };
    if let Some(disk) = machine.disk {
        let format = if disk.qcow2 { "qcow2" } else { "raw" };
        let mut option = format!("path={},image_type={format}", disk.path.display());
        if let Some(base) = disk.base {
            option += &format!(",backing=[qcow2:{}]", base.display());
        }
        command.arg("--disk").arg(option + worker);
    }
    if let Some(tap) = machine.tap {
        command.arg("--net").arg(format!("tap={tap}{worker}"));
    }
}

fn qemu(command: &mut Command, way: Way, machine: &MachineSpec) {
    command.args([
        "-accel", "kvm", "-machine", "q35", "-cpu", "host", "-smp", "1",
    ]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    // Threads have names only then, and virtual CPUs are known by theirs.
    command.args(["-name", "bench,debug-threads=on"]);
    command.args(["-m", &format!("{}M", machine.memory.bytes() >> 20)]);
    command.arg("-kernel").arg(machine.kernel);
    command.args(["-append", machine.cmdline, "-serial", "stdio"]);
    let poll_max = if way == Way::Polled { 1_000_000 } else { 0 };
    command.args([
        "-object",
        &format!("iothread,id=io0,poll-max-ns={poll_max}"),
    ]);
    if let Some(disk) = machine.disk {
        let format = if disk.qcow2 { "qcow2" } else { "raw" };
        let drive = format!(
            "if=none,id=disk,file={},format={format},cache=writeback,aio=io_uring",
            disk.path.display()
        );
        command.args(["-drive", &drive]);
        command.args([
            "-device",
            "virtio-blk-pci,drive=disk,iothread=io0,num-queues=1,queue-size=256",
        ]);
    }
    if let Some(tap) = machine.tap {
        command.args([
            "-netdev",
            &format!("tap,id=net,ifname={tap},script=no,downscript=no"),
        ]);
        command.args(["-device", "virtio-net-pci,netdev=net"]);
    }
}

fn firecracker(way: Way, machine: &MachineSpec) -> serde_json::Value {
    let engine = if way == Way::Async { "Async" } else { "Sync" };
    let drives = machine.disk.map(|disk| {
        json!({
            "drive_id": "disk", "path_on_host": disk.path, "is_root_device": false, "is_read_only": false,
            "cache_type": "Writeback", "io_engine": engine,
        })
    });
    let interfaces = machine
        .tap
        .map(|tap| json!({ "iface_id": "net", "host_dev_name": tap }));
    json!({
        "boot-source": { "kernel_image_path": machine.kernel, "boot_args": machine.cmdline },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": machine.memory.bytes() >> 20 },
        "drives": drives.into_iter().collect::<Vec<_>>(),
        "network-interfaces": interfaces.into_iter().collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Peer;

    fn words(peer: &str, way: usize, disk: DiskSpec) -> String {
        let peer: Peer = peer.parse().unwrap();
        let machine = MachineSpec {
            kernel: Path::new("/k"),
            cmdline: "run=mem",
            memory: "128M".parse().unwrap(),
            disk: Some(disk),
            tap: None,
        };
        let folder = tempfile::tempdir().unwrap();
        let command = command(&peer.ways()[way], &machine, folder.path()).unwrap();
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        words.join(" ")
    }

    #[test]
    fn each_program_gets_the_same_disk_in_its_own_words() {
        let disk = DiskSpec::raw(Path::new("/d"));
        let qemu = words("qemu=/q", 0, disk);
        assert!(
            qemu.contains("poll-max-ns=1000000") && qemu.contains("file=/d,format=raw"),
            "{qemu}"
        );
        assert!(words("qemu=/q", 1, disk).contains("poll-max-ns=0"));
        assert!(words("cloud-hypervisor=/c", 0, disk).contains("path=/d,image_type=raw"));
        let disk = DiskSpec {
            qcow2: true,
            ..disk
        };
        assert!(words("cloud-hypervisor=/c", 0, disk).contains("image_type=qcow2"));
        let firecracker: Peer = "firecracker=/f".parse().unwrap();
        assert!(unable(&firecracker.ways()[0], &disk).is_some());
    }

    #[test]
    fn an_api_is_served_where_it_is_driven() {
        let machine = MachineSpec {
            kernel: Path::new("/k"),
            cmdline: "run=tick",
            memory: "128M".parse().unwrap(),
            disk: None,
            tap: None,
        };
        let folder = tempfile::tempdir().unwrap();
        let words = |peer: &str| {
            let peer: Peer = peer.parse().unwrap();
            let socket = Path::new("/s");
            let command = command_with_api(&peer.plain(), &machine, folder.path(), socket).ok()?;
            let words: Vec<_> = command.get_args().map(|w| w.to_string_lossy()).collect();
            Some(words.join(" "))
        };
        let firecracker = words("firecracker=/f").unwrap();
        assert!(
            firecracker.contains("--api-sock /s --config-file"),
            "{firecracker}"
        );
        assert!(words("qemu=/q").is_none());
    }
}
