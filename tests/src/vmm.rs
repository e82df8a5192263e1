//! A monitor as a process: its flags, its serial port on standard output, its end.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Api, given};

/// How long anything natively run may take.
pub const SHORT: Duration = Duration::from_secs(60);
/// How long a Linux guest in the lab may take.
pub const LONG: Duration = Duration::from_secs(180);

/// A monitor that is to be started.
pub struct Builder {
    within: Option<PathBuf>,
    arguments: Vec<OsString>,
    scratch: TempDir,
    api: bool,
}

/// A running monitor. It is killed when dropped.
pub struct Vmm {
    child: Child,
    /// What is typed on the serial port.
    pub stdin: ChildStdin,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
    scratch: TempDir,
}

/// How a monitor ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit code; none if a signal killed it.
    pub code: Option<i32>,
    /// Lines of the serial port.
    pub serial: Vec<String>,
    /// What it said on standard error.
    pub errors: String,
}

#[derive(Default)]
struct Output {
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
    errors: Mutex<String>,
}

impl Builder {
    /// A monitor with these flags.
    pub fn new(arguments: &[&str]) -> Builder {
        let scratch = TempDir::new().expect("a temporary folder");
        Builder {
            within: None,
            arguments: arguments.iter().map(OsString::from).collect(),
            scratch,
            api: false,
        }
    }

    /// A monitor with the native payload, one CPU and 128 MiB, its serial port on standard output.
    pub fn payload(tasks: &str) -> Builder {
        Builder::payload_with_memory(tasks, "size=128M")
    }

    /// The same with other memory.
    pub fn payload_with_memory(tasks: &str, memory: &str) -> Builder {
        Builder::new(&["--no-probe", "--serial", "tty"])
            .flag("--kernel", given("SKERRY_PAYLOAD"))
            .flag("--cmdline", tasks)
            .flag("--memory", memory)
    }

    /// A monitor without a VM, told by its API.
    pub fn api_only() -> Builder {
        Builder::new(&["--no-probe"]).with_api()
    }

    /// Serves the API on a socket in the scratch folder.
    pub fn with_api(mut self) -> Builder {
        self.api = true;
        self
    }

    /// Adds a flag with its value.
    pub fn flag(mut self, name: &str, value: impl Into<OsString>) -> Builder {
        self.arguments.push(name.into());
        self.arguments.push(value.into());
        self
    }

    /// Adds a flag without a value.
    pub fn switch(mut self, name: &str) -> Builder {
        self.arguments.push(name.into());
        self
    }

    /// Starts it in this folder, so that relative paths are those of files there.
    pub fn within(mut self, folder: &Path) -> Builder {
        self.within = Some(folder.to_owned());
        self
    }

    /// A path in the folder that goes away with the monitor.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Starts it.
    pub fn start(self) -> Vmm {
        let mut command = Command::new(given("SKERRY_VMM"));
        command.args(&self.arguments);
        if let Some(folder) = &self.within {
            command.current_dir(folder);
        }
        if self.api {
            let socket = self.path("api.sock");
            command
                .arg("--api-socket")
                .arg(format!("path={}", socket.display()));
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("skerry-vmm starts");
        let output = Arc::new(Output::default());
        let (stdout, stderr) = (
            child.stdout.take().expect("piped"),
            child.stderr.take().expect("piped"),
        );
        let [lines, errors] = [output.clone(), output.clone()];
        let readers = vec![
            std::thread::spawn(move || collect(stdout, &lines)),
            std::thread::spawn(move || collect_errors(stderr, &errors)),
        ];
        let stdin = child.stdin.take().expect("piped");
        Vmm {
            child,
            stdin,
            output,
            readers,
            scratch: self.scratch,
        }
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Exit {
        self.start().wait(SHORT)
    }
}

fn collect(stdout: impl Read, output: &Output) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let n = reader.read_until(b'\n', &mut line).unwrap_or(0);
        let mut lines = output.lines.lock().expect("not poisoned");
        if n == 0 {
            lines.1 = true;
        } else {
            lines
                .0
                .push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        output.changed.notify_all();
        if n == 0 {
            return;
        }
    }
}

fn collect_errors(stderr: impl Read, output: &Output) {
    let mut reader = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut errors = output.errors.lock().expect("not poisoned");
        errors.push_str(&String::from_utf8_lossy(&line));
    }
}

impl Vmm {
    /// The folder that goes away with the monitor.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The API, once it listens.
    pub fn api(&self) -> Api {
        Api::connect(&self.path("api.sock"))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All lines of the serial port so far.
    pub fn lines(&self) -> Vec<String> {
        self.output.lines.lock().expect("not poisoned").0.clone()
    }

    /// What it said on standard error so far.
    pub fn errors(&self) -> String {
        self.output.errors.lock().expect("not poisoned").clone()
    }

    /// Waits for a line that contains `words`, and returns it. Panics with all output if the
    /// monitor ends before, or `limit` is over.
    pub fn expect_line(&self, words: &str, limit: Duration) -> String {
        self.expect_nth_line(words, 1, limit)
    }

    /// Waits for the `n`th such line, counted from 1.
    pub fn expect_nth_line(&self, words: &str, n: usize, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        let mut lines = self.output.lines.lock().expect("not poisoned");
        loop {
            if let Some(line) = lines.0.iter().filter(|l| l.contains(words)).nth(n - 1) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !lines.1 && !left.is_zero(),
                "no line {n} with `{words}` in:\n{}\n--- errors\n{}",
                lines.0.join("\n"),
                self.errors()
            );
            lines = self
                .output
                .changed
                .wait_timeout(lines, left)
                .expect("not poisoned")
                .0;
        }
    }

    /// Types on the serial port.
    pub fn type_text(&mut self, text: &str) {
        self.stdin
            .write_all(text.as_bytes())
            .expect("the monitor reads");
        self.stdin.flush().expect("the monitor reads");
    }

    /// Asks the process to end.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is our child");
    }

    /// Waits for the process to end by itself.
    pub fn wait(mut self, limit: Duration) -> Exit {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!(
                    "skerry-vmm did not end; serial port:\n{}\n--- errors\n{}",
                    self.lines().join("\n"),
                    self.errors()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        for reader in self.readers.drain(..) {
            reader.join().expect("the reader ends");
        }
        Exit {
            code: status.code(),
            serial: self.lines(),
            errors: self.errors(),
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Exit {
    /// Panics unless the payload did `tasks` tasks, all well, and the monitor ended in order.
    pub fn all_ok(&self, tasks: usize) -> &Exit {
        let done = format!("skerry-payload: done ok={tasks} fail=0");
        let good = self.code == Some(0) && self.serial.contains(&done);
        assert!(good, "expected `{done}` and exit code 0:\n{self}");
        self
    }

    /// The line of a task that went well.
    pub fn ok(&self, task: &str) -> &str {
        let start = format!("ok {task} ");
        let line = self.serial.iter().find(|l| l.starts_with(&start));
        line.unwrap_or_else(|| panic!("no `{start}` in:\n{self}"))
    }

    /// A `key=value` of a task's line.
    pub fn value(&self, task: &str, key: &str) -> &str {
        let line = self.ok(task);
        let found = line
            .split(' ')
            .find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {key} in `{line}`"))
    }

    /// Panics unless the monitor refused with `code` in one line that has all `words`.
    pub fn refused(&self, code: i32, words: &[&str]) -> &Exit {
        assert_eq!(self.code, Some(code), "{self}");
        for word in words {
            assert!(self.errors.contains(word), "`{word}` is not in:\n{self}");
        }
        self
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "exit code {:?}\n--- serial\n{}\n--- errors\n{}",
            self.code,
            self.serial.join("\n"),
            self.errors
        )
    }
}

/// Panics unless nothing is left at `path`.
pub fn assert_gone(path: &Path) {
    assert!(
        std::fs::symlink_metadata(path).is_err(),
        "{} was left behind",
        path.display()
    );
}
