//! Progress of long steps: plain lines with the time each took, readable in a terminal and in a log alike.
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a step that is still running says so.
const REMINDER: Duration = Duration::from_secs(10);

/// A step that is under way: announced when made, reported with its time when done or dropped.
pub struct Step {
    what: String,
    started: Instant,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Step {
    /// Announces a step and reminds every ten seconds that it is still going on.
    pub fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        eprintln!("==> {what} …");
        let started = Instant::now();
        let (stop, stopped) = channel();
        let name = what.clone();
        let thread = std::thread::spawn(move || remind(&name, started, &stopped));
        Self {
            what,
            started,
            ticker: Some((stop, thread)),
        }
    }

    /// Ends the step with a word about its result; an empty word says only that it is done.
    pub fn done(mut self, result: &str) {
        self.silence();
        let seconds = self.started.elapsed().as_secs_f64();
        let result = if result.is_empty() { "done" } else { result };
        eprintln!("    {result} ({seconds:.1} s)");
    }

    fn silence(&mut self) -> bool {
        let Some((stop, thread)) = self.ticker.take() else {
            return false;
        };
        drop(stop);
        // The thread only prints; that it panicked would be no reason to fail the step.
        let _ = thread.join();
        true
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if self.silence() {
            eprintln!(
                "    {} stopped after {:.1} s",
                self.what,
                self.started.elapsed().as_secs_f64()
            );
        }
    }
}

fn remind(what: &str, started: Instant, stopped: &Receiver<()>) {
    while stopped.recv_timeout(REMINDER) == Err(RecvTimeoutError::Timeout) {
        eprintln!("    … {what}: {} s so far", started.elapsed().as_secs());
    }
}
