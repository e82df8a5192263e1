//! What is more important takes the place of what is less; what belongs to others goes with them; and both can
//! be explained.

use serde_json::Value;
use skerry_tests::host::Host;
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually};

/// A container that says when it begins and when it is asked to end, and takes two seconds for that.
const SAYS: &str = "trap 'sleep 2; echo ended; exit 0' TERM; echo begun; \
                    while :; do sleep 1; done";

/// An amount of memory.
fn bytes(amount: &Value) -> u64 {
    let text = amount.as_str().expect("an amount");
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        other => panic!("{other} in {text}"),
    };
    digits.parse::<u64>().expect("a number") * unit
}

/// A container that asks for a share of the host's memory, in percent.
fn container(host: &Host, site: &Site, name: &str, share: u64, priority: i32) -> String {
    let memory = bytes(&host.object("host", "here")["status"]["memory"]);
    format!(
        "apiVersion: skerry.io/v1\n\
         kind: Container\n\
         metadata: {{name: {name}}}\n\
         spec:\n\
         \x20 image: {}\n\
         \x20 command: [sh, -c, \"{SAYS}\"]\n\
         \x20 cpu: 10m\n\
         \x20 memory: {}\n\
         \x20 placement: {{priority: {priority}}}\n---\n",
        site.layout().display(),
        memory / 100 * share
    )
}

fn condition(status: &Value, kind: &str) -> Value {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|condition| condition["type"] == kind);
    found.unwrap_or_default()
}

/// When a container said a word: moments of one form, which are in order as their text is.
fn moments(host: &Host, name: &str, word: &str) -> Vec<String> {
    let find = || {
        let log = host.must(&["logs", &format!("container/{name}")]);
        let said = log.lines().filter(|line| line.ends_with(word));
        let moments = said.filter_map(|line| line.split(' ').next().map(str::to_owned));
        let found: Vec<String> = moments.collect();
        (!found.is_empty()).then_some(found)
    };
    eventually(&format!("{name} says {word}"), SHORT, find)
}

#[test]
fn the_more_important_takes_the_place_of_the_less_and_gives_it_back() {
    let (host, site) = (Host::start(), Site::new());
    let all = container(&host, &site, "low", 40, 1) + &container(&host, &site, "mid", 40, 2);
    host.must(&["apply", "--wait", "-f", &host.manifest(&all)]);
    // From now on it hears when it is asked to end.
    moments(&host, "low", "begun");
    // As important as the least: it takes nobody's place, and it can be asked why.
    let equal = container(&host, &site, "equal", 40, 1);
    host.must(&["apply", "-f", &host.manifest(&equal)]);
    host.until("container", "equal", SHORT, |status| {
        condition(status, "Scheduled")["message"]
            .to_string()
            .contains("of memory free")
    });
    let told = host.must(&["explain", "container/equal"]);
    for part in [
        "has no place: no host for",
        "here             no: ",
        "of memory free",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // More important than one of two.
    let high = container(&host, &site, "high", 50, 10);
    host.must(&["apply", "--wait", "-f", &host.manifest(&high)]);
    assert_eq!(
        host.object("container", "mid")["status"]["phase"],
        "Running"
    );
    let low = host.until_phase("container", "low", "Pending");
    let (status, reason) = (&low["status"], condition(&low["status"], "Ready"));
    assert_eq!(
        (&status["host"], &status["leavingHost"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(reason["reason"], "Preempted");
    assert!(
        reason["message"]
            .to_string()
            .contains("container default/high"),
        "{reason}"
    );
    let events = host.must(&["describe", "container/low"]);
    assert!(
        events.contains("Preempted    low: container default/high has its place"),
        "{events}"
    );
    // The one had ended before the other began.
    let (ended, begun) = (
        moments(&host, "low", "ended"),
        moments(&host, "high", "begun"),
    );
    assert!(
        ended.len() == 1 && begun.len() == 1 && ended[0] <= begun[0],
        "{ended:?} {begun:?}"
    );
    let told = host.must(&["explain", "container", "high", "--output", "json"]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(
        (&told["host"], &told["priority"]),
        (&"here".into(), &10.into())
    );
    assert_eq!(told["message"], "in the place of container default/low");
    let path = "/apis/skerry.io/v1/namespaces/default/containers/high/explanation";
    let raw: Value =
        serde_json::from_str(&host.kubectl_must(&["get", "--raw", path])).expect("JSON");
    assert_eq!(raw, told);
    // There is room again.
    host.must(&["delete", "container/equal"]);
    host.must(&["delete", "container/high"]);
    let low = host.until_phase("container", "low", "Running");
    assert_eq!(
        (&low["status"]["host"], &low["status"]["restarts"]),
        (&"here".into(), &0.into())
    );
    for name in ["low", "mid"] {
        host.must(&["delete", &format!("container/{name}"), "--no-wait"]);
    }
    for name in ["low", "mid"] {
        host.skerry(&["delete", &format!("container/{name}")]);
    }
}

#[test]
fn an_agent_that_dies_meanwhile_gives_no_place_away_twice() {
    let (mut host, site) = (Host::start(), Site::new());
    let low = container(&host, &site, "low", 80, 0);
    host.must(&["apply", "--wait", "-f", &host.manifest(&low)]);
    // From now on it hears when it is asked to end.
    moments(&host, "low", "begun");
    let high = container(&host, &site, "high", 80, 5);
    host.must(&["apply", "-f", &host.manifest(&high)]);
    host.until("container", "low", SHORT, |status| {
        status["leavingHost"] == "here"
    });
    host.kill();
    host.up();
    host.until_phase("container", "high", "Running");
    host.until_phase("container", "low", "Pending");
    let (ended, begun) = (
        moments(&host, "low", "ended"),
        moments(&host, "high", "begun"),
    );
    assert!(
        ended.len() == 1 && begun.len() == 1 && ended[0] <= begun[0],
        "{ended:?} {begun:?}"
    );
    // A claim leaves alone what is more important than it.
    let claim = "apiVersion: skerry.io/v1\nkind: BareMetal\nmetadata: {name: all}\nspec: {}\n";
    host.must(&["apply", "-f", &host.manifest(claim)]);
    host.until("bm", "all", SHORT, |status| {
        condition(status, "Scheduled")["message"]
            .to_string()
            .contains("more important")
    });
    let told = host.must(&["explain", "bm/all"]);
    assert!(
        told.contains("no: it runs something more important"),
        "{told}"
    );
    host.must(&["delete", "bm/all"]);
    host.must(&["delete", "container/low"]);
    host.must(&["delete", "container/high"]);
}

#[test]
fn what_belongs_to_others_goes_with_them_unless_it_is_told_to_stay() {
    let (host, site) = (Host::start(), Site::new());
    let plain = |name: &str| container(&host, &site, name, 1, 0);
    let stopped = |text: String| text.replace("spec:\n", "spec:\n  running: false\n");
    host.must(&[
        "apply",
        "-f",
        &host.manifest(&stopped(plain("owner") + &plain("other"))),
    ]);
    let owned = |name: &str, owner: &str| {
        let uid = host.object("container", owner)["metadata"]["uid"].clone();
        let reference = format!(
            "ownerReferences: [{{apiVersion: skerry.io/v1, kind: Container, name: {owner}, uid: {uid}}}]"
        );
        stopped(plain(name)).replace(
            &format!("{{name: {name}}}"),
            &format!("{{name: {name}, {reference}}}"),
        )
    };
    host.must(&["apply", "-f", &host.manifest(&owned("one", "owner"))]);
    host.must(&["apply", "-f", &host.manifest(&owned("two", "other"))]);
    host.kubectl_must(&["delete", "container/owner"]);
    host.kubectl_must(&["wait", "--for=delete", "container/one", "--timeout=60s"]);
    host.kubectl_must(&["delete", "container/other", "--cascade=orphan"]);
    let two = host.object("container", "two");
    assert_eq!(two["metadata"]["ownerReferences"], Value::Null);
    assert_eq!(two["metadata"]["deletionTimestamp"], Value::Null);
    host.must(&["apply", "-f", &host.manifest(&owned("three", "two"))]);
    host.must(&["delete", "container/two", "--cascade", "foreground"]);
    host.kubectl_must(&["wait", "--for=delete", "container/three", "--timeout=60s"]);
}
