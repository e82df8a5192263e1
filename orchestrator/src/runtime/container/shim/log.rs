//! A container's output in files of bounded size.
//!
//! One line of output is one line of the file, in the form that Kubernetes' runtimes write: the time,
//! the stream, `F` (or `P` for a part of a line that goes on in the next), and the text as it came.
//! Before a file would grow too long it gets the name `log.1`, the one before `log.2`, and so on.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, poll};

use super::super::spec::LogLimits;

/// How much of a line is kept together, in bytes.
const LINE: usize = 16 << 10;

/// Files that output is written to.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    limits: LogLimits,
    file: File,
    /// Lines that are not in the file yet.
    lines: Vec<u8>,
    /// The file's bytes with them.
    size: u64,
}

impl Log {
    /// Opens the newest file, to write behind what is there.
    pub fn open(path: &Path, limits: LogLimits) -> io::Result<Log> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Log {
            path: path.into(),
            limits,
            size: file.metadata()?.len(),
            lines: Vec::new(),
            file,
        })
    }

    /// Adds a line, which [`flush`](Self::flush) writes.
    fn add(&mut self, time: &str, stream: &str, text: &[u8], whole: bool) -> io::Result<()> {
        let mark = if whole { "F" } else { "P" };
        let length = [time, stream, mark].map(|word| word.len() + 1);
        let length = (length.iter().sum::<usize>() + text.len() + 1) as u64;
        if self.size > 0 && self.size + length > self.limits.file_size {
            self.flush()?;
            self.rotate()?;
        }
        for word in [time, stream, mark] {
            self.lines.extend(word.as_bytes());
            self.lines.push(b' ');
        }
        self.lines.extend(text);
        self.lines.push(b'\n');
        self.size += length;
        Ok(())
    }

    /// Writes what was added.
    fn flush(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.lines);
        self.lines.clear();
        if written.is_err() {
            self.size = self.file.metadata()?.len();
        }
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.limits.files == 1 {
            self.file.set_len(0)?;
            self.size = 0;
            return Ok(());
        }
        for number in (1..self.limits.files - 1).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        fs::rename(&self.path, numbered(1))?;
        *self = Log::open(&self.path, self.limits)?;
        Ok(())
    }
}

/// One of a container's streams, and the line that is not complete yet.
struct Stream {
    name: &'static str,
    pipe: Option<File>,
    line: Vec<u8>,
}

impl Stream {
    /// Reads what there is and writes whole lines. What cannot be written is dropped: a full disk
    /// must not stop the container.
    fn turn(&mut self, log: &mut Log, buffer: &mut [u8]) {
        let read = match &mut self.pipe {
            Some(pipe) => pipe.read(buffer),
            None => return,
        };
        match read {
            Ok(0) | Err(_) => {
                self.pipe = None;
                if !self.line.is_empty() {
                    let now = timestamp(SystemTime::now());
                    let _ = log.add(&now, self.name, &self.line, true);
                    self.line.clear();
                }
            }
            Ok(n) => self.take(&buffer[..n], log),
        }
        let _ = log.flush();
    }

    /// Takes what came at one moment.
    fn take(&mut self, mut bytes: &[u8], log: &mut Log) {
        let now = timestamp(SystemTime::now());
        while !bytes.is_empty() {
            let room = LINE - self.line.len();
            let end = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
            match end {
                Some(end) => {
                    self.line.extend(&bytes[..end]);
                    let _ = log.add(&now, self.name, &self.line, true);
                    self.line.clear();
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() > room => {
                    self.line.extend(&bytes[..room]);
                    let _ = log.add(&now, self.name, &self.line, false);
                    self.line.clear();
                    bytes = &bytes[room..];
                }
                None => {
                    self.line.extend(bytes);
                    return;
                }
            }
        }
    }
}

/// Writes two streams to the log until both have ended.
pub fn collect(mut log: Log, stdout: OwnedFd, stderr: OwnedFd) {
    let stream = |name, pipe: OwnedFd| Stream {
        name,
        pipe: Some(pipe.into()),
        line: Vec::new(),
    };
    let mut streams = [stream("stdout", stdout), stream("stderr", stderr)];
    let mut buffer = vec![0; 64 << 10];
    loop {
        let open = streams.iter().filter_map(|stream| stream.pipe.as_ref());
        let mut fds: Vec<PollFd<'_>> = open.map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
        if fds.is_empty() {
            return;
        }
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let open = streams.iter_mut().filter(|stream| stream.pipe.is_some());
        for (stream, _) in open.zip(ready).filter(|(_, ready)| *ready) {
            stream.turn(&mut log, &mut buffer);
        }
    }
}

/// A time as RFC 3339 has it, in UTC, with nanoseconds.
pub fn timestamp(time: SystemTime) -> String {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let (seconds, nanos) = (since.as_secs(), since.subsec_nanos());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years from the first of March, so that a leap day is the last of its year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (year * 365 + year / 4 - year / 100);
    let month = (day * 5 + 2) / 153;
    let day = day - (month * 153 + 2) / 5 + 1;
    let year = era * 400 + year + u64::from(month >= 10);
    let month = if month < 10 { month + 3 } else { month - 9 };
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
#[path = "log_test.rs"]
mod tests;
