//! Seeded histories of a host: things are declared, changed and deleted, and whoever looks after them is killed
//! at any moment. What was answered is so, and in the end nothing is left of anything.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use skerry_tests::host::{Host, Said, kill, kill_if_there, processes};
use skerry_tests::random::Random;
use skerry_tests::vmm::SHORT;
use skerry_tests::{Site, eventually, given};

/// Histories in the tests of every day; `SKERRY_HISTORIES` says another number.
const HISTORIES: u64 = 12;
/// The first one's seed; `SKERRY_SEED` says another one.
const SEED: u64 = 1;
/// How many there are between two words on the way.
const TOLD: u64 = 25;
/// What a history does, at most.
const STEPS: u64 = 7;
/// Names that it does it with, of each kind.
const NAMES: u64 = 2;
/// A killed agent lives at most so many milliseconds.
const LIFE: u64 = 250;

fn number(variable: &str, usual: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(usual, |text| text.parse().expect("a number"))
}

/// A workload, as kind and name.
type Name = (&'static str, String);

struct World {
    host: Host,
    site: Site,
    random: Random,
    /// What is declared for certain.
    declared: BTreeSet<Name>,
    /// What was asked for without an answer: it may be so or not.
    unknown: BTreeSet<Name>,
    /// Everything that ever was.
    uids: BTreeSet<String>,
}

#[test]
fn whoever_is_killed_at_any_moment_nothing_is_lost_and_nothing_is_left() {
    let (first, histories) = (
        number("SKERRY_SEED", SEED),
        number("SKERRY_HISTORIES", HISTORIES),
    );
    let mut world = World {
        host: Host::apart(),
        site: Site::new(),
        random: Random::new(0),
        declared: BTreeSet::new(),
        unknown: BTreeSet::new(),
        uids: BTreeSet::new(),
    };
    for seed in first..first + histories {
        world.random = Random::new(seed);
        world.history(seed);
        if (seed - first) % TOLD == TOLD - 1 {
            println!("histories up to seed {seed} lost nothing and left nothing");
        }
    }
}

impl World {
    fn history(&mut self, seed: u64) {
        for _ in 0..=self.random.below(STEPS) {
            match self.random.below(9) {
                0..=2 => self.declare(),
                3 => self.edit(),
                4 => self.delete(),
                5 | 6 => self.kill_monitor_or_shim(),
                _ => self.with_a_killed_agent(),
            }
        }
        self.settle(seed);
        self.clear(seed);
    }

    fn some(&mut self) -> Name {
        let kind = match self.random.below(2) {
            0 => "microvm",
            _ => "container",
        };
        (kind, format!("{kind}{}", self.random.below(NAMES)))
    }

    fn declare(&mut self) {
        let name = self.some();
        let networks = match self.random.below(2) {
            0 => "  networks: [{network: default}]\n",
            _ => "",
        };
        let text = match name.0 {
            "microvm" => format!(
                "apiVersion: skerry.io/v1\nkind: MicroVM\nmetadata: {{name: {}}}\nspec:\n\
                 \x20 memory: 32Mi\n\
                 \x20 boot: {{kernel: {}, cmdline: \"run=spin:1 off=wait-power-button\"}}\n\
                 \x20 disks: [{{name: data, size: 4Mi}}]\n{networks}",
                name.1,
                given("SKERRY_PAYLOAD").display()
            ),
            _ => format!(
                "apiVersion: skerry.io/v1\nkind: Container\nmetadata: {{name: {}}}\nspec:\n\
                 \x20 image: {}\n\
                 \x20 command: [sh, -c, \"while :; do sleep 1; done\"]\n{networks}",
                name.1,
                self.site.layout().display()
            ),
        };
        let said = self
            .host
            .skerry(&["apply", "-f", &self.host.manifest(&text)]);
        if answered(&said) {
            self.unknown.remove(&name);
            self.declared.insert(name.clone());
        } else {
            self.declared.remove(&name);
            self.unknown.insert(name.clone());
        }
        self.note();
    }

    /// Notes the uids of all that is there.
    fn note(&mut self) {
        for object in self.objects().unwrap_or_default() {
            let uid = object["metadata"]["uid"].as_str();
            self.uids.extend(uid.map(str::to_owned));
        }
    }

    fn edit(&mut self) {
        let name = self.some();
        let running = self.random.below(2) == 0;
        // There is no word for that: it is as every other client would do it.
        let text = match self
            .host
            .skerry(&["get", name.0, &name.1, "--output", "json"])
        {
            said if said.good => said.out,
            _ => return,
        };
        let mut object: Value = serde_json::from_str(&text).expect("JSON");
        object["spec"]["running"] = running.into();
        for field in ["resourceVersion", "uid", "managedFields"] {
            object["metadata"]
                .as_object_mut()
                .expect("metadata")
                .remove(field);
        }
        object.as_object_mut().expect("an object").remove("status");
        if object["metadata"]["deletionTimestamp"].is_null() {
            let said = self
                .host
                .skerry(&["apply", "-f", &self.host.manifest(&object.to_string())]);
            if !answered(&said) {
                self.declared.remove(&name);
                self.unknown.insert(name);
            } else {
                self.unknown.remove(&name);
                self.declared.insert(name);
            }
        }
        self.note();
    }

    fn delete(&mut self) {
        let name = self.some();
        let said = self
            .host
            .skerry(&["delete", name.0, &name.1, "--grace", "0"]);
        self.declared.remove(&name);
        match answered(&said) {
            true => self.unknown.remove(&name),
            false => self.unknown.insert(name),
        };
    }

    fn kill_monitor_or_shim(&mut self) {
        let part = match self.random.below(2) {
            0 => "vms",
            _ => "containers/containers",
        };
        let running = processes(&self.host.state().join(part));
        if !running.is_empty() {
            kill_if_there(running[self.random.below(running.len() as u64) as usize]);
        }
    }

    /// The agent is killed while things go on, and started again.
    fn with_a_killed_agent(&mut self) {
        let pid = self.host.pid().expect("it runs") as i32;
        let life = Duration::from_millis(self.random.below(LIFE));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(life);
            kill(pid);
        });
        for _ in 0..=self.random.below(3) {
            match self.random.below(4) {
                0 | 1 => self.declare(),
                2 => self.delete(),
                _ => self.kill_monitor_or_shim(),
            }
        }
        killer.join().expect("it kills");
        self.host.kill();
        self.host.up();
        self.note();
    }

    /// All workloads, if they are told.
    fn objects(&self) -> Option<Vec<Value>> {
        let mut all = Vec::new();
        for kind in ["microvms", "containers"] {
            let said = self.host.skerry(&["get", kind, "--output", "json"]);
            if !said.good {
                return None;
            }
            let list: Value = serde_json::from_str(&said.out).expect("JSON");
            all.extend(list["items"].as_array().cloned().unwrap_or_default());
        }
        Some(all)
    }

    /// What was answered is so, and all that is to run does.
    fn settle(&mut self, seed: u64) {
        let as_declared = || {
            let objects = self.objects()?;
            let going = |o: &Value| !o["metadata"]["deletionTimestamp"].is_null();
            let as_wanted = |o: &Value| {
                let phase = &o["status"]["phase"];
                match o["spec"]["running"] == false {
                    true => phase == "Stopped",
                    false => phase == "Running",
                }
            };
            // A death that nobody has noticed yet is no end.
            let running = |o: &&Value| o["kind"] == "MicroVM" && o["spec"]["running"] != false;
            let monitors = objects.iter().filter(running).count();
            let still = objects.iter().all(|o| !going(o) && as_wanted(o))
                && monitors == self.host.monitors().len();
            still.then_some(objects)
        };
        let objects = eventually(
            &format!("seed {seed}: all is as declared"),
            SHORT,
            as_declared,
        );
        let there: BTreeSet<Name> = objects.iter().map(name_of).collect();
        let lost: Vec<_> = self.declared.difference(&there).collect();
        assert!(
            lost.is_empty(),
            "seed {seed}: {lost:?} was answered, and is lost"
        );
        let more = there.difference(&self.declared);
        let more: Vec<_> = more.filter(|name| !self.unknown.contains(*name)).collect();
        assert!(
            more.is_empty(),
            "seed {seed}: {more:?} was deleted, and is there"
        );
        self.note();
        self.declared = there;
        self.unknown.clear();
    }

    /// All of it goes, and nothing is left.
    fn clear(&mut self, seed: u64) {
        for (kind, name) in std::mem::take(&mut self.declared) {
            self.host.must(&["delete", kind, &name, "--grace", "0"]);
        }
        let mut left = Vec::new();
        let start = std::time::Instant::now();
        while start.elapsed() < SHORT {
            left = self.host.left(self.uids.iter());
            if left.is_empty() {
                self.uids.clear();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("seed {seed}: this is left: {left:#?}");
    }
}

/// Whether a request was answered: also a refusal is an answer, and changes nothing that is certain.
fn answered(said: &Said) -> bool {
    said.good || said.errors.contains("not found")
}

fn name_of(object: &Value) -> Name {
    let kind = match object["kind"].as_str() {
        Some("MicroVM") => "microvm",
        _ => "container",
    };
    let name = object["metadata"]["name"].as_str().expect("a name");
    (kind, name.to_owned())
}
