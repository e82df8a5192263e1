//! A directory of containers and an image for them, driven by the command for developers.
//!
//! The image is made of this host's static busybox, on the fly. A container's name is unique on the
//! host, since its cgroup is.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use crate::given;

/// A place for containers. All of them are removed with it.
pub struct Site {
    home: TempDir,
    names: AtomicU32,
}

/// A container of a site.
pub struct Container<'a> {
    site: &'a Site,
    /// Its name.
    pub id: String,
}

impl Default for Site {
    fn default() -> Site {
        Site::new()
    }
}

impl Site {
    /// An empty one, with the image.
    pub fn new() -> Site {
        let home = TempDir::new().expect("a temporary folder");
        skerry_stage::layout(&home.path().join("layout"))
            .expect("busybox, linked statically: Debian's package busybox-static");
        Site {
            home,
            names: AtomicU32::new(0),
        }
    }

    /// Where everything of the containers is.
    pub fn root(&self) -> PathBuf {
        self.home.path().join("root")
    }

    /// The image's layout.
    pub fn layout(&self) -> PathBuf {
        self.home.path().join("layout")
    }

    /// Runs `skerry shim` with these words.
    pub fn shim(&self, words: &[&str]) -> Output {
        self.shim_reading(words, b"")
    }

    /// The same, with something to read.
    pub fn shim_reading(&self, words: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(given("SKERRY_COMMAND"));
        let (what, rest) = words.split_first().expect("a command");
        command
            .args(["shim", what, "--root"])
            .arg(self.root())
            .args(rest);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("skerry runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input).expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("skerry ends")
    }

    /// A name that no other container of the host has.
    pub fn container(&self) -> Container<'_> {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        // Tests are threads of one process, and each site is one thread's.
        let site = self
            .home
            .path()
            .file_name()
            .expect("a name")
            .to_string_lossy();
        let site: String = site.chars().filter(char::is_ascii_alphanumeric).collect();
        let id = format!("test-{}-{site}-{number}", std::process::id());
        Container { site: self, id }
    }

    /// What was not removed with a container: mounts, cgroups, processes, files.
    pub fn left(&self, id: &str) -> Vec<String> {
        let mut left = Vec::new();
        let root = self.root();
        let root = root.to_str().expect("text");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(root))
                .map(String::from),
        );
        left.extend(
            cgroups(id)
                .into_iter()
                .map(|path| path.display().to_string()),
        );
        for process in fs::read_dir("/proc").expect("processes").flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&format!("{root}/containers/{id}")) {
                left.push(line);
            }
        }
        let files = fs::read_dir(self.root().join("containers")).expect("containers");
        let files = files
            .flatten()
            .map(|entry| entry.path().display().to_string());
        left.extend(files.filter(|path| path.contains(id)));
        left
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Ok(entries) = fs::read_dir(self.root().join("containers")) {
            for entry in entries.flatten() {
                let id = entry.file_name().to_string_lossy().into_owned();
                self.shim(&["delete", "--id", &id]);
            }
        }
    }
}

impl Container<'_> {
    /// Makes it and starts it, with flags and a command behind `--`.
    pub fn run(&self, words: &[&str]) -> Output {
        let layout = self.site.layout();
        let layout = layout.to_str().expect("text");
        let start = ["run", "--id", &self.id, "--layout", layout];
        self.site.shim(&[&start, words].concat())
    }

    /// The same; it must start.
    pub fn started(&self, words: &[&str]) -> &Self {
        let output = self.run(words);
        assert!(output.status.success(), "{}", said(&output));
        self
    }

    /// Does something else with it.
    pub fn ask(&self, what: &str, words: &[&str]) -> Output {
        self.site.shim(&[&[what, "--id", &self.id], words].concat())
    }

    /// What it is doing.
    pub fn state(&self) -> Value {
        json_of(&self.ask("state", &[]))
    }

    /// How it ended.
    pub fn ended(&self) -> Value {
        let state = json_of(&self.ask("wait", &[]));
        assert_eq!(state["state"], "exited", "{state}");
        state
    }

    /// Runs a command in it.
    pub fn exec(&self, words: &[&str]) -> Output {
        self.ask("exec", words)
    }

    /// The text of its output, both streams, as it was kept.
    pub fn log(&self) -> String {
        let path = self.ask("logs", &[]);
        let path = String::from_utf8(path.stdout).expect("text");
        let text = fs::read_to_string(path.trim()).expect("a log");
        let lines = text
            .lines()
            .map(|line| line.splitn(4, ' ').nth(3).expect("four fields"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Its shim's process.
    pub fn shim(&self) -> i32 {
        let run = self
            .site
            .root()
            .join("containers")
            .join(&self.id)
            .join("run.json");
        let run: Value = serde_json::from_slice(&fs::read(run).expect("a run")).expect("JSON");
        run["record"]["shim"].as_i64().expect("a process") as i32
    }

    /// Its first process.
    pub fn init(&self) -> i32 {
        self.state()["pid"].as_i64().expect("a process") as i32
    }

    /// Removes it. Nothing of it may be left.
    pub fn removed(&self) {
        let output = self.ask("delete", &[]);
        assert!(output.status.success(), "{}", said(&output));
        // The shim was the child of somebody else, and ends by itself.
        crate::eventually("nothing is left", std::time::Duration::from_secs(5), || {
            self.site.left(&self.id).is_empty().then_some(())
        });
    }

    /// What one of its cgroups' files says: by the name in version 1 with its controller, or in 2.
    pub fn cgroup(&self, v1: (&str, &str), v2: &str) -> String {
        let paths = [
            format!("/sys/fs/cgroup/{}/skerry/{}/{}", v1.0, self.id, v1.1),
            format!("/sys/fs/cgroup/skerry/{}/{v2}", self.id),
        ];
        let found = paths.iter().find_map(|path| fs::read_to_string(path).ok());
        found
            .unwrap_or_else(|| panic!("none of {paths:?}"))
            .trim()
            .into()
    }
}

/// A container's cgroups that are there.
pub fn cgroups(id: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(top)
        .expect("cgroups")
        .flatten()
        .map(|entry| entry.path());
    let all = below
        .chain([top.to_path_buf()])
        .map(|path| path.join("skerry").join(id));
    all.filter(|path| path.exists()).collect()
}

/// What a command said.
pub fn said(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    format!(
        "{}: {out}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    )
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(output)))
}
