//! Programs that run at once, and when each of them is heard of first.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::running::Running;

/// How long they all may say nothing.
const SILENCE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// Programs that were started one after the other, and when each was heard of first.
pub struct Crowd {
    running: Vec<Running>,
    heard: Vec<Option<Duration>>,
    begun: Instant,
}

impl Crowd {
    /// Nobody. The clock starts.
    pub fn new() -> Self {
        Self {
            running: Vec::new(),
            heard: Vec::new(),
            begun: Instant::now(),
        }
    }

    /// One more.
    pub fn join(&mut self, running: Running) -> Result<()> {
        self.running.push(running);
        self.heard.push(None);
        self.look(&Timespec::default())?;
        Ok(())
    }

    /// They, in the order in which they joined.
    pub fn running(&mut self) -> &mut [Running] {
        &mut self.running
    }

    /// Notes who is heard of; nobody may be for so long. The number of those who are.
    fn look(&mut self, patience: &Timespec) -> Result<usize> {
        let silent: Vec<usize> = (0..self.heard.len())
            .filter(|i| self.heard[*i].is_none())
            .collect();
        let mut polled: Vec<_> = silent
            .iter()
            .map(|i| PollFd::new(self.running[*i].stdout(), PollFlags::IN))
            .collect();
        let heard = poll(&mut polled, Some(patience)).context("poll")?;
        let time = self.begun.elapsed();
        for (i, polled) in silent.iter().zip(&polled) {
            if !polled.revents().is_empty() {
                self.heard[*i] = Some(time);
            }
        }
        Ok(heard)
    }

    /// Waits for all of them. Gives the times when the last and when half of them had been heard of. `first` is
    /// what each has to say first.
    pub fn wait(&mut self, first: Option<u8>) -> Result<(Duration, Duration)> {
        while self.heard.contains(&None) {
            // Who stays silent is asked why below.
            if self.look(&SILENCE)? == 0 {
                break;
            }
        }
        for running in &mut self.running {
            let (byte, _) = running.wait_for_byte()?;
            ensure!(
                first.is_none_or(|first| first == byte),
                "a clone did not go on, but printed {:?}",
                char::from(byte)
            );
        }
        let mut times: Vec<Duration> = self.heard.iter().flatten().copied().collect();
        times.sort_unstable();
        let last = times.last().copied().context("nobody was started")?;
        Ok((last, times[times.len().div_ceil(2) - 1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kept::DOT;
    use std::process::Command;

    fn saying(text: &str) -> Running {
        Running::start(Command::new("printf").arg(text)).unwrap()
    }

    #[test]
    fn the_last_one_counts() {
        let mut crowd = Crowd::new();
        for _ in 0..3 {
            crowd.join(saying(".")).unwrap();
        }
        let (last, half) = crowd.wait(Some(DOT)).unwrap();
        assert!(last >= half && half > Duration::ZERO);
        assert_eq!(crowd.heard.iter().flatten().max(), Some(&last));
    }

    #[test]
    fn who_boots_anew_is_no_clone() {
        let mut crowd = Crowd::new();
        crowd.join(saying("skerry-payload: hello")).unwrap();
        assert!(crowd.wait(Some(DOT)).is_err());
    }

    #[test]
    fn who_ends_without_a_word_is_noticed() {
        let mut crowd = Crowd::new();
        crowd.join(saying("")).unwrap();
        assert!(crowd.wait(None).is_err());
    }
}
