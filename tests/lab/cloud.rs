//! A Debian cloud image is told by its last disk who it is and who may log in.

use std::process::Command;
use std::time::Duration;

use skerry_tests::eventually;
use skerry_tests::given;
use skerry_tests::host::Host;
use skerry_tests::vmm::LONG;

/// cloud-init is some ten thousand lines of Python, and each step of theirs is emulated twice.
const PATIENCE: Duration = Duration::from_secs(900);

#[test]
fn a_debian_cloud_image_knows_its_name_and_lets_in_whose_key_it_was_given() {
    let host = Host::machine_for_linux();
    let cloud = given("SKERRY_CLOUD_DIR");
    let file = |name: &str| cloud.join(name).display().to_string();
    let key = host.path("key").display().to_string();
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f", &key])
        .status();
    assert!(made.expect("ssh-keygen, of openssh-client").success());
    let user_data = host.path("user-data");
    std::fs::write(&user_data, "#!/bin/sh\necho told > /run/told\n").expect("written");
    host.must(&[
        "run",
        "vm",
        "web",
        "--memory",
        "512Mi",
        "--kernel",
        &file("vmlinux"),
        "--initramfs",
        &file("initrd.img"),
        "--cmdline",
        "console=ttyS0 root=/dev/vda rw net.ifnames=0 quiet panic=-1",
        "--disk",
        &file("disk.qcow2"),
        "--network",
        "default",
        "--hostname",
        "harbour",
        "--ssh-key",
        &format!("{key}.pub"),
        "--user-data",
        &user_data.display().to_string(),
    ]);
    let object = host.until("vm", "web", LONG, |s| s["addresses"][0].is_string());
    let address = object["status"]["addresses"][0].as_str().expect("one");
    let begun = std::time::Instant::now();
    let ssh = format!(
        "ssh -i {key} -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o ConnectTimeout=60 -o LogLevel=ERROR debian@{address} 'hostname; cat /run/told' || true"
    );
    let said = eventually("it lets the key's owner in", PATIENCE, || {
        let said = host.on_machine("sh", &["-c", &ssh]);
        said.contains("told").then_some(said)
    });
    println!("logged in after {} s", begun.elapsed().as_secs());
    assert_eq!(said, "harbour\ntold\n");
    host.must(&["delete", "vm/web", "--grace", "0"]);
}
