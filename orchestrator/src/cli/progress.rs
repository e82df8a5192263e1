//! How far long work is, and ending it when the user interrupts.

use std::io::IsTerminal;
use std::mem::MaybeUninit;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use skerry_images::chain::live::Progress;

/// How often the bar and the signals are looked at.
const TICK: Duration = Duration::from_millis(50);

/// When a bar is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// If standard error is a terminal.
    Auto,
    /// In any case.
    Always,
    /// Never.
    Never,
}

/// The flag that says whether to show a bar.
#[derive(Debug, Clone, Args)]
pub struct Bar {
    /// Show how far it is: alone, always [default: on a terminal]
    #[arg(short, long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_value = "auto", default_missing_value = "always", hide_default_value = true)]
    progress: When,
}

impl Bar {
    fn shown(&self) -> bool {
        match self.progress {
            When::Auto => std::io::stderr().is_terminal(),
            When::Always => true,
            When::Never => false,
        }
    }

    /// Does long work. Meanwhile SIGINT and SIGTERM cancel it, so that what is half made can be
    /// removed.
    pub fn watch<R>(&self, what: &'static str, work: impl FnOnce(&Progress) -> R) -> R {
        self.watch_waiting(what, || (), work)
    }

    /// The same for work that waits where it does not look at its progress: `interrupt` ends such a wait.
    pub fn watch_waiting<R>(
        &self,
        what: &'static str,
        interrupt: impl Fn() + Sync,
        work: impl FnOnce(&Progress) -> R,
    ) -> R {
        let progress = Progress::default();
        let signals = Signals::block();
        let bar = self.shown().then(|| bar(what));
        let result = std::thread::scope(|scope| {
            let (end, ended) = mpsc::channel::<()>();
            let (progress, bar, signals) = (&progress, &bar, &signals);
            let interrupt = &interrupt;
            scope.spawn(move || {
                while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                    if signals.came() {
                        progress.cancel();
                        interrupt();
                    }
                    if let Some(bar) = bar {
                        bar.set_length(progress.total());
                        bar.set_position(progress.done());
                    }
                }
            });
            let result = work(progress);
            drop(end);
            result
        });
        if let Some(bar) = bar {
            bar.set_position(progress.done());
            bar.abandon();
        }
        result
    }
}

fn bar(what: &'static str) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        indicatif::ProgressDrawTarget::stderr()
    } else {
        // A log gets a line now and then.
        indicatif::ProgressDrawTarget::stderr_with_hz(1)
    };
    let bar = ProgressBar::with_draw_target(Some(0), target).with_message(what);
    let template = "{msg} {wide_bar} {percent:>3}% {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The signals by which users end programs, blocked for as long as this lives.
struct Signals {
    set: libc::sigset_t,
    before: libc::sigset_t,
}

impl Signals {
    fn block() -> Signals {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `set` is written by sigemptyset before it is used; `before` by pthread_sigmask,
        // which cannot fail with a valid `how`.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
            libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
            libc::sigemptyset(before.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            Signals {
                set: set.assume_init(),
                before: before.assume_init(),
            }
        }
    }

    /// Takes one that came, if any.
    fn came(&self) -> bool {
        let at_once = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the set and the timeout are valid; no information is asked for.
        unsafe { libc::sigtimedwait(&self.set, std::ptr::null_mut(), &at_once) > 0 }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: `before` is what pthread_sigmask gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

/// What is waited for, on a terminal. It goes when it is dropped.
pub struct Spinner(Option<ProgressBar>);

/// Shows that `what` is waited for.
pub fn spinner(what: &str) -> Spinner {
    if !std::io::stderr().is_terminal() {
        return Spinner(None);
    }
    let bar = ProgressBar::new_spinner().with_prefix(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    Spinner(Some(bar))
}

impl Spinner {
    /// How far it is.
    pub fn set_message(&self, message: String) {
        if let Some(bar) = &self.0 {
            bar.set_message(message);
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
