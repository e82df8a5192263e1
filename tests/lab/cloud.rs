//! A Debian cloud image, as its users meet it: one command, and they log in.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use skerry_tests::host::Host;
use skerry_tests::{eventually, given};

/// A whole system starts, in an emulated machine's virtual machine.
const BOOT: Duration = Duration::from_secs(900);
/// What cloud-init does, as its users say it.
const USER_DATA: &str = "#cloud-config\nruncmd: [[sh, -c, \"hostname > /srv/told\"]]\n";

#[test]
fn a_debian_cloud_image_lets_in_whoever_has_the_key() {
    let host = Host::machine_for_linux();
    // What it was given before is in its store; what is written there now is nobody else's.
    let images = given("SKERRY_CLOUD_DIR").join("images");
    symlink(images, host.state().join("images")).expect("a store");
    let (key, data) = (host.path("key"), host.path("user-data"));
    let mut generate = Command::new("ssh-keygen");
    generate.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
    let made = generate.arg(&key).status();
    assert!(made.expect("ssh-keygen, of openssh-client").success());
    std::fs::write(&data, USER_DATA).expect("written");
    let (key, data) = (key.display().to_string(), data.display().to_string());
    let public = format!("{key}.pub");
    host.must(&[
        "run",
        "vm",
        "harbour",
        "--image",
        "debian:12",
        "--ssh-key",
        &public,
        "--user-data",
        &data,
        "--network",
        "default",
        "--memory",
        "512Mi",
        "--cmdline",
        "quiet panic=-1",
    ]);
    let address = host.object("vm", "harbour")["status"]["addresses"][0].clone();
    let address = address.as_str().expect("an address");
    let who = format!("debian@{address}");
    let ssh = |words: &[&str]| {
        let options = [
            "-i",
            &key,
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "ConnectTimeout=60",
            &who,
        ];
        host.try_on_machine("ssh", &[&options, words].concat())
    };
    let told = eventually("cloud-init has done what it was told", BOOT, || {
        let said = ssh(&["cat", "/srv/told"]);
        if !said.good {
            std::thread::sleep(Duration::from_secs(2));
        }
        said.good.then_some(said.out)
    });
    assert_eq!(told.trim(), "harbour");
    let release = ssh(&["cat /etc/os-release; id -un"]);
    assert!(
        release.out.contains("ID=debian") && release.out.contains("\ndebian\n"),
        "{release:?}"
    );
    // Nobody without the key gets in.
    let stranger = [
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
    ];
    let stranger = [
        &stranger[..],
        &["UserKnownHostsFile=/dev/null", &who, "true"],
    ]
    .concat();
    let said = host.try_on_machine("ssh", &stranger);
    assert!(
        !said.good && said.errors.contains("Permission denied"),
        "{said:?}"
    );
    host.must(&["delete", "vm/harbour", "--grace", "0"]);
}
