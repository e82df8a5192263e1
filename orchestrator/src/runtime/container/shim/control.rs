//! The shim's socket: one thread a connection, a bounded number of them.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::super::bundle;
use super::super::signal;
use super::super::spec::State;
use super::super::wire::{self, Answer, Kind, Request};
use super::{Shared, exec};

/// How many connections there may be at a time.
const CONNECTIONS: usize = 64;
/// How long somebody may take to say what they want, or to hear the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a killed container may take to end.
const KILLED: Duration = Duration::from_secs(30);

/// The conversations that are going on.
#[derive(Clone, Default)]
pub struct Talks {
    shared: Arc<(Mutex<usize>, Condvar)>,
}

impl Talks {
    fn begin(&self) -> Option<Talk> {
        let mut count = self.shared.0.lock();
        if *count == CONNECTIONS {
            return None;
        }
        *count += 1;
        Some(Talk(self.clone()))
    }

    /// Waits until nobody talks any more.
    pub fn end(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let (count, changed) = &*self.shared;
        let mut count = count.lock();
        while *count > 0 {
            if changed.wait_until(&mut count, end).timed_out() {
                return;
            }
        }
    }
}

struct Talk(Talks);

impl Drop for Talk {
    fn drop(&mut self) {
        let (count, changed) = &*self.0.shared;
        *count.lock() -= 1;
        changed.notify_all();
    }
}

/// Answers whoever connects.
pub fn serve(listener: UnixListener, shared: Arc<Shared>) -> Talks {
    let talks = Talks::default();
    let mine = talks.clone();
    let accept = move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else {
                // Out of descriptors, perhaps: others have to end first.
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            let Some(talk) = mine.begin() else {
                let many = format!("{CONNECTIONS} others are connected to it: wait");
                let _ = wire::send_json(&mut connection, Kind::Answer, &Answer::Refused(many));
                continue;
            };
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name("talk".into());
            // Without a thread the connection is closed, which the other side sees.
            let _ = thread.spawn(move || {
                let _talk = talk;
                if let Err(e) = converse(connection, &shared) {
                    eprintln!("a conversation ended: {e}");
                }
            });
        }
    };
    if let Err(e) = std::thread::Builder::new()
        .name("accept".into())
        .spawn(accept)
    {
        eprintln!("nobody can be answered: {e}");
    }
    talks
}

fn converse(mut connection: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let request: Request = wire::receive_json(&mut connection, Kind::Request)?;
    let refused = |e: &dyn std::fmt::Display| Answer::Refused(e.to_string());
    let answer = match request {
        Request::State => Answer::State(shared.state()),
        Request::Kill { signal } => match shared.signal(signal) {
            Ok(()) => Answer::Done,
            Err(e) => refused(&format!("signal {signal} cannot be sent: {e}")),
        },
        Request::Stop { grace_ms } => match stop(shared, Duration::from_millis(grace_ms)) {
            State::Exited(exit) => Answer::State(State::Exited(exit)),
            _ => refused(&format!(
                "it was killed, but has not ended for {} s",
                KILLED.as_secs()
            )),
        },
        Request::Delete => match stop(shared, Duration::ZERO) {
            State::Exited(exit) => Answer::State(State::Exited(exit)),
            _ => refused(&format!(
                "it was killed, but has not ended for {} s",
                KILLED.as_secs()
            )),
        },
        Request::Wait { limit_ms } => {
            Answer::State(shared.wait(Duration::from_millis(limit_ms.min(86_400_000))))
        }
        Request::Exec(spec) => return exec::run(connection, shared, &spec),
    };
    wire::send_json(&mut connection, Kind::Answer, &answer)
}

/// Asks the container to end, and kills it if it does not.
fn stop(shared: &Shared, grace: Duration) -> State {
    if !grace.is_zero() {
        let named = bundle::stop_signal(&shared.spec).and_then(signal::number);
        // It may have ended meanwhile, which is waited for.
        let _ = shared.signal(named.unwrap_or(libc::SIGTERM));
        if let State::Exited(exit) = shared.wait(grace) {
            return State::Exited(exit);
        }
    }
    let _ = shared.signal(libc::SIGKILL);
    shared.wait(KILLED)
}
