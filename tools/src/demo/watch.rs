//! Watching a guest's serial port: shows every line, and keeps the ones that are meant for us, each with its time.
use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// A line that began with `guest: `, without that.
#[derive(Clone, Debug)]
pub struct Fact {
    /// When it came, counted from the guest's start.
    pub after: Duration,
    /// What it says.
    pub text: String,
}

/// The guest's serial port under observation.
pub struct Watch {
    started: Instant,
    lines: Receiver<Fact>,
    seen: Vec<Fact>,
    reader: JoinHandle<()>,
}

impl Watch {
    /// Begins to read.
    pub fn start(serial: impl Read + Send + 'static) -> Self {
        let started = Instant::now();
        let (sender, lines) = channel();
        let reader = std::thread::spawn(move || {
            let mut serial = BufReader::new(serial);
            let mut line = Vec::new();
            while serial
                .read_until(b'\n', &mut line)
                .is_ok_and(|size| size > 0)
            {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                println!("| {text}");
                if let Some((_, fact)) = text.split_once("guest: ") {
                    // Nobody listening any more is no reason to stop showing.
                    let _ = sender.send(Fact {
                        after: started.elapsed(),
                        text: fact.to_owned(),
                    });
                }
                line.clear();
            }
        });
        Self {
            started,
            lines,
            seen: Vec::new(),
            reader,
        }
    }

    /// Waits for a line that begins with these words.
    ///
    /// # Errors
    /// When the time is over, or the serial port has gone silent for ever.
    pub fn wait_for(&mut self, words: &str, at_most: Duration) -> Result<Fact> {
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(fact) = self.find(words) {
                return Ok(fact);
            }
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(fact) => self.seen.push(fact),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no line `guest: {words} …` within {} s", at_most.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the monitor ended before the line `guest: {words} …`")
                }
            }
        }
    }

    /// The first line so far that begins with these words.
    pub fn find(&self, words: &str) -> Option<Fact> {
        self.seen
            .iter()
            .find(|fact| fact.text.starts_with(words))
            .cloned()
    }

    /// Time since the guest's start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Reads what is left, once the monitor has ended.
    pub fn finish(self) {
        // The reader ends with its stream; that it panicked can only have lost lines.
        let _ = self.reader.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn lines_for_us_are_found_wherever_the_kernel_left_the_cursor() {
        let mut watch =
            Watch::start(&b"Linux\r\n[    1.0] xguest: kernel 6.1\r\nguest: ready\r\n"[..]);
        assert_eq!(
            watch.wait_for("ready", SOON).expect("it is there").text,
            "ready"
        );
        assert_eq!(
            watch.find("kernel").expect("it came before").text,
            "kernel 6.1"
        );
    }

    #[test]
    fn the_end_of_the_port_is_an_error() {
        let error = Watch::start(&b"panic\n"[..])
            .wait_for("ready", SOON)
            .expect_err("the port is closed");
        assert!(error.to_string().contains("ended before"), "{error}");
    }
}
