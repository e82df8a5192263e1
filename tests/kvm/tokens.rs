//! Who may ask a host over the network, and for what.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use skerry_tests::host::{Host, Said};
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually, given};

/// A manifest of a container that stays.
fn container(site: &Site, namespace: &str) -> String {
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: box, namespace: {namespace}}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"echo up; while true; do sleep 1; done\"]\n",
        site.layout().display()
    )
}

/// A configuration without a certificate; its path.
fn stranger(host: &Host) -> String {
    let path = host.path("stranger");
    let text = format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: there\n\
         \x20 cluster: {{server: \"https://{}\", certificate-authority: \"{}\"}}\n\
         contexts:\n\
         - name: there\n\
         \x20 context: {{cluster: there, user: nobody}}\n\
         users:\n\
         - name: nobody\n\
         \x20 user: {{}}\n\
         current-context: there\n",
        host.address(),
        host.state().join("pki/ca.pem").display()
    );
    if !path.exists() {
        std::fs::write(&path, text).expect("written");
    }
    path.display().to_string()
}

/// The stock client, with a token and no certificate.
fn kubectl(host: &Host, token: &str, words: &[&str]) -> Said {
    let output = Command::new("kubectl")
        .args(["--kubeconfig", &stranger(host), "--token", token])
        .args(words)
        .env("HOME", host.path("home"))
        .stdin(Stdio::null())
        .output()
        .expect("kubectl, of kubernetes-client");
    Said {
        good: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A new token.
fn token(host: &Host, words: &[&str]) -> String {
    let said = host.must(&[&["token", "create"], words].concat());
    said.trim().to_owned()
}

/// A command of ours over the network, with a token and no certificate.
fn over_the_network(host: &Host, token: &str) -> Command {
    let mut command = Command::new(given("SKERRY_COMMAND"));
    command
        .env("SKERRY_KUBECONFIG", stranger(host))
        .env("SKERRY_TOKEN", token)
        .stdin(Stdio::null());
    command
}

#[test]
fn a_token_sees_and_changes_what_it_says_and_no_more() {
    let (host, site) = (Host::start(), Site::new());
    let other = "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n";
    host.must(&["apply", "-f", &host.manifest(other)]);
    for namespace in ["default", "other"] {
        let manifest = host.manifest(&container(&site, namespace));
        host.must(&["apply", "--wait", "-f", &manifest]);
    }
    let all = token(&host, &["all"]);
    let tenant = token(&host, &["tenant", "--namespace", "default"]);
    let looks = token(&host, &["looks", "--namespace", "default", "--read-only"]);
    let must = |token: &str, words: &[&str]| {
        let said = kubectl(&host, token, words);
        assert!(said.good, "{words:?}: {said:?}");
        said.out
    };
    let refused = |token: &str, words: &[&str], why: &str| {
        let said = kubectl(&host, token, words);
        assert!(
            !said.good && said.errors.contains(why),
            "{words:?}: {said:?}"
        );
    };
    let unknown = "You must be logged in";
    refused("nobody.0000", &["get", "containers"], unknown);
    refused(&format!("{all}0"), &["get", "containers"], unknown);
    assert!(must(&all, &["get", "containers", "-A"]).contains("other"));
    assert!(must(&all, &["get", "hosts"]).contains("here"));
    refused(&all, &["delete", "token", "looks"], "changes no tokens");
    for bound in [&tenant, &looks] {
        assert!(must(bound, &["get", "containers"]).contains("box"));
        let alone = "is for the namespace `default` alone";
        refused(bound, &["get", "containers", "-A"], alone);
        refused(bound, &["get", "containers", "-n", "other"], alone);
        refused(bound, &["get", "hosts"], alone);
        refused(bound, &["get", "tokens"], alone);
    }
    refused(&looks, &["delete", "container", "box"], "looking alone");
    let label = ["label", "container", "box", "seen=yes"];
    refused(&looks, &label, "looking alone");
    must(&tenant, &label);
    let there = container(&site, "other").replace("name: box", "name: mine");
    let there = host.manifest(&there);
    refused(&tenant, &["create", "-f", &there], "alone");
    // The same over the host's own socket, which would be allowed everything.
    let said = host.skerry(&["delete", "container/box", "--token", &looks]);
    assert!(
        !said.good && said.errors.contains("looking alone"),
        "{said:?}"
    );
    // Commands, and what a workload says, over the network.
    let exec = |token: &str| {
        let mut command = over_the_network(&host, token);
        command.args([
            "exec",
            "container/box",
            "--",
            "sh",
            "-c",
            "echo in it; exit 3",
        ]);
        command.output().expect("skerry starts")
    };
    let ran = exec(&tenant);
    assert_eq!(
        (ran.status.code(), &ran.stdout[..]),
        (Some(3), &b"in it\n"[..])
    );
    let not = exec(&looks);
    let errors = String::from_utf8_lossy(&not.stderr).into_owned();
    assert!(
        not.status.code() == Some(1) && errors.contains("looking alone"),
        "{errors}"
    );
    let mut logs = over_the_network(&host, &looks);
    let logs = logs.args(["logs", "container/box"]).output();
    assert!(String::from_utf8_lossy(&logs.expect("skerry starts").stdout).contains("up"));
    // With the administrator's certificate, as it always was.
    let admin = host.state().join("kubeconfig");
    let admin = admin.to_str().expect("text");
    let said = host.must(&[
        "exec",
        "container/box",
        "--kubeconfig",
        admin,
        "--",
        "echo",
        "hi",
    ]);
    assert_eq!(said, "hi\n");
    // What is kept of a secret is not the secret.
    let (_, secret) = all.rsplit_once('.').expect("a dot");
    let store = std::fs::read(host.state().join("store.redb")).expect("a store");
    assert!(
        !store
            .windows(secret.len())
            .any(|part| part == secret.as_bytes())
    );
    for namespace in ["default", "other"] {
        host.must(&["delete", "container/box", "--namespace", namespace]);
    }
}

#[test]
fn a_token_that_is_deleted_or_over_ends_what_it_had_begun() {
    let (mut host, site) = (Host::start(), Site::new());
    let manifest = host.manifest(&container(&site, "default"));
    host.must(&["apply", "--wait", "-f", &manifest]);
    let given = token(&host, &["visitor"]);
    let start = |words: &[&str]| {
        let mut command = over_the_network(&host, &given);
        command.args(words).stdout(Stdio::piped());
        command.spawn().expect("skerry starts")
    };
    let mut begun = [
        start(&[
            "exec",
            "container/box",
            "--",
            "sh",
            "-c",
            "echo begun; sleep 1000",
        ]),
        start(&["get", "containers", "--watch"]),
        start(&["logs", "container/box", "--follow"]),
    ];
    for child in &mut begun {
        let out = child.stdout.as_mut().expect("a pipe");
        out.read_exact(&mut [0; 3]).expect("it has begun");
    }
    assert!(host.must(&["token", "list"]).contains("visitor"));
    host.must(&["token", "delete", "visitor"]);
    for child in &mut begun {
        eventually("it ends", SHORT, || child.try_wait().expect("it is ours"));
    }
    assert!(
        kubectl(&host, &given, &["get", "containers"])
            .errors
            .contains("logged in")
    );
    let short = token(&host, &["short", "--ttl", "1s"]);
    eventually("it is over", SHORT, || {
        let said = kubectl(&host, &short, &["get", "containers"]);
        said.errors.contains("logged in").then_some(())
    });
    // It is removed; here, when the host looks for the first time.
    host.down();
    host.up();
    eventually("it is removed", SHORT, || {
        (!host.must(&["token", "list"]).contains("short")).then_some(())
    });
    let wrong = host.skerry(&["token", "create", "never", "--ttl", "1y"]);
    assert!(wrong.errors.contains("24h"), "{wrong:?}");
    host.must(&["delete", "container/box"]);
}

#[test]
fn those_who_say_nothing_keep_nobody_out() {
    let host = Host::start();
    // More than there are places, from somebody who never begins a handshake, or sends nonsense.
    let mut silent = Vec::new();
    for n in 0..600 {
        let mut stream = TcpStream::connect(host.address()).expect("it listens");
        if n % 2 == 0 {
            // It may be closed already, which is as well.
            let _ = stream.write_all(&[0x16, 0x03, 0x01, 0x40, 0x00]);
        }
        silent.push(stream);
    }
    let begun = std::time::Instant::now();
    host.kubectl_must(&["get", "hosts"]);
    // A handshake may take ten seconds; nobody waits for theirs.
    assert!(begun.elapsed().as_secs() < 8, "{:?}", begun.elapsed());
    let pid = host.pid().expect("it runs");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
    let open = open.count();
    assert!(open < 500, "{open} descriptors");
}

#[test]
fn a_tenants_token_takes_nothing_from_other_tenants() {
    let (host, site) = (Host::start(), Site::new());
    let mine = token(&host, &["mine", "--namespace", "default"]);
    let declare = |text: &str| {
        let manifest = host.manifest(text);
        kubectl(
            &host,
            &mine,
            &["apply", "--validate=false", "-f", &manifest],
        )
    };
    let claim = "apiVersion: skerry.io/v1\nkind: BareMetal\nmetadata: {name: all, namespace: default}\nspec: {}\n";
    let said = declare(claim);
    assert!(
        !said.good && said.errors.contains("a claim takes a host"),
        "{said:?}"
    );
    let important = container(&site, "default") + "  placement: {priority: 7}\n";
    let said = declare(&important);
    assert!(
        !said.good && said.errors.contains("placement.priority"),
        "{said:?}"
    );
    // What somebody else has made important, it may change otherwise.
    host.must(&["apply", "-f", &host.manifest(&important)]);
    let label = ["label", "containers/box", "of=me"];
    let said = kubectl(&host, &mine, &label);
    assert!(said.good, "{said:?}");
    let more = ["patch", "containers/box", "--type", "merge", "--patch"];
    let said = kubectl(
        &host,
        &mine,
        &[&more[..], &[r#"{"spec":{"placement":{"priority":8}}}"#]].concat(),
    );
    assert!(
        !said.good && said.errors.contains("it may be 7 at most"),
        "{said:?}"
    );
}

#[test]
fn nothing_is_deleted_but_by_its_deletion() {
    let (host, site) = (Host::start(), Site::new());
    host.must(&["apply", "-f", &host.manifest(&container(&site, "default"))]);
    let patch = r#"{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}"#;
    let asked = [
        "patch",
        "namespace",
        "default",
        "--type",
        "merge",
        "--patch",
        patch,
    ];
    host.kubectl_must(&asked);
    host.kubectl_must(&["get", "namespace", "default"]);
    // All of them, in dry.
    let all = ["delete", "containers", "--all", "--dry-run=server"];
    host.kubectl_must(&all);
    let body = r#"{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"]}"#;
    let request = format!(
        "DELETE /apis/skerry.io/v1/namespaces/default/containers HTTP/1.1\r\nHost: host\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(host.state().join("api.sock")).expect("connected");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"box\""),
        "{answer}"
    );
    let object = host.object("container", "box");
    assert!(
        object["metadata"]["deletionTimestamp"].is_null(),
        "{object}"
    );
}
