//! A monitor that runs, and what its guest says on the serial port.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What the payload says first.
const HELLO: &[u8] = b"skerry-payload: hello";
/// How long a program may say nothing.
const SILENCE: Duration = Duration::from_secs(20);
const EXIT_POLL: Duration = Duration::from_millis(1);

/// A peer that is running, and what it has printed. It ends with this value.
pub struct Running {
    child: Child,
    stdout: ChildStdout,
    /// Each piece of output with its time.
    output: Vec<(Duration, Vec<u8>)>,
    /// What it says on stderr, for when it fails.
    errors: File,
    started: Instant,
}

impl Running {
    /// Starts a command; its clock starts just before that.
    pub fn start(command: &mut Command) -> Result<Self> {
        Self::start_reading(command, Stdio::null())
    }

    /// Starts a command whose guest reads `input` from the serial port.
    pub fn start_reading(command: &mut Command, input: Stdio) -> Result<Self> {
        let errors = tempfile::tempfile().context("temporary file")?;
        command.stdin(input).stdout(Stdio::piped());
        command.stderr(errors.try_clone().context("temporary file")?);
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Self {
            child,
            stdout,
            output: Vec::new(),
            errors,
            started,
        })
    }

    /// Starts the clock anew, and forgets what was printed.
    pub fn listen_anew(&mut self) {
        self.output.clear();
        self.started = Instant::now();
    }

    /// Where its output comes from.
    pub fn stdout(&self) -> &ChildStdout {
        &self.stdout
    }

    /// Reads until anything was printed. Gives the first byte, and the time when it arrived.
    pub fn wait_for_byte(&mut self) -> Result<(u8, Duration)> {
        loop {
            if let Some((time, piece)) = self.output.first()
                && let Some(byte) = piece.first()
            {
                return Ok((*byte, *time));
            }
            if !self.read()? {
                return Err(self.silence(b"a byte"));
            }
        }
    }

    /// Reads one more piece of output; false at its end, or when none comes.
    fn read(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        let patience = Timespec::try_from(SILENCE).context("patience")?;
        if poll(
            &mut [PollFd::new(&self.stdout, PollFlags::IN)],
            Some(&patience),
        )
        .context("poll")?
            == 0
        {
            return Ok(false);
        }
        let length = self
            .stdout
            .read(&mut buffer)
            .context("reading the output")?;
        self.output
            .push((self.started.elapsed(), buffer[..length].to_vec()));
        Ok(length > 0)
    }

    fn text(&self) -> Vec<u8> {
        self.output
            .iter()
            .flat_map(|(_, piece)| piece)
            .copied()
            .collect()
    }

    /// Reads until `marker` was printed. Gives the time when its first byte arrived: a monitor may print lines
    /// of its own before.
    pub fn wait_for(&mut self, marker: &[u8]) -> Result<Duration> {
        loop {
            let text = self.text();
            if let Some(at) = text.windows(marker.len()).position(|bytes| bytes == marker) {
                let mut end = 0;
                for (time, piece) in &self.output {
                    end += piece.len();
                    if end > at {
                        return Ok(*time);
                    }
                }
            }
            if !self.read()? {
                return Err(self.silence(marker));
            }
        }
    }

    fn silence(&mut self, marker: &[u8]) -> anyhow::Error {
        let mut errors = Vec::new();
        // Without it the message says less, no more.
        let _ = self
            .errors
            .rewind()
            .and_then(|()| self.errors.read_to_end(&mut errors));
        anyhow!(
            "ended or went silent without `{}`; printed:\n{}{}",
            String::from_utf8_lossy(marker),
            String::from_utf8_lossy(&self.text()),
            String::from_utf8_lossy(&errors)
        )
    }

    /// Reads until the payload has said hello. Gives the time of its first byte.
    pub fn wait_for_hello(&mut self) -> Result<Duration> {
        self.wait_for(HELLO)
    }

    /// Reads until the task `name` was reported; its `key=value` pairs.
    pub fn wait_for_task(&mut self, name: &str) -> Result<Task> {
        let (is_ok, pairs) = self.wait_for_line(name, |line| {
            let (state, rest) = line.split_once(' ')?;
            let pairs = rest.strip_prefix(name)?;
            matches!(state, "ok" | "fail").then(|| (state == "ok", pairs.to_owned()))
        })?;
        match is_ok {
            true => Ok(Task(pairs)),
            false => Err(anyhow!("the payload's {name} failed:{pairs}")),
        }
    }

    /// Reads until the payload has said `# name: key=value …`; its `key=value` pairs.
    pub fn wait_for_remark(&mut self, name: &str) -> Result<Task> {
        let prefix = format!("# {name}: ");
        self.wait_for_line(name, |line| {
            let pairs = line.strip_prefix(&prefix)?;
            pairs.contains('=').then(|| Task(pairs.to_owned()))
        })
    }

    /// Reads until a whole line is what is looked for.
    fn wait_for_line<T>(&mut self, name: &str, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        loop {
            let text = self.text();
            let text = String::from_utf8_lossy(&text);
            let mut lines = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            if let Some(found) = lines.find_map(|line| find(line.trim())) {
                return Ok(found);
            }
            if !self.read()? {
                return Err(self.silence(name.as_bytes()));
            }
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives the program some time to end by itself, then ends it.
    pub fn stop(mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self
            .child
            .try_wait()
            .context("waiting for the monitor")?
            .is_none()
        {
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(EXIT_POLL);
        }
        Ok(())
    }
}

/// What the payload reported of a task.
pub struct Task(String);

impl Task {
    /// The number of `key=`.
    pub fn number(&self, key: &str) -> Result<f64> {
        let mut pairs = self
            .0
            .split_whitespace()
            .filter_map(|pair| pair.split_once('='));
        let found = pairs
            .find(|(name, _)| *name == key)
            .and_then(|(_, n)| n.parse().ok());
        found.with_context(|| format!("the payload did not report {key}, but{}", self.0))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saying(text: &str) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("read word; printf '{text}' $word")]);
        let (input, mut typed) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut typed, b"5\n").unwrap();
        Running::start_reading(&mut command, input.into()).unwrap()
    }

    #[test]
    fn remarks_are_whole_lines_with_pairs() {
        let mut running = saying("# load: ready\\n# load: rounds=%s us=7\\n");
        assert_eq!(running.wait_for_byte().unwrap().0, b'#');
        let remark = running.wait_for_remark("load").unwrap();
        assert_eq!(remark.number("rounds").unwrap(), 5.0);
        assert!(remark.number("ms").is_err());
    }

    #[test]
    fn what_was_printed_is_forgotten() {
        let mut running = saying("ok a n=%s\\n");
        running.wait_for_task("a").unwrap();
        running.listen_anew();
        assert!(running.wait_for_byte().is_err());
    }
}
