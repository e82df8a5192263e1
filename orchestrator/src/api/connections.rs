//! Connections to the API: a bounded number of them, none of which may idle for long without having asked. Where
//! all places are taken, the oldest of those who have not shown that they may ask makes room: whoever opens many
//! and says nothing keeps nobody else out.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::caller::Caller;
use super::error::ApiError;

/// Connections of a listener at a time.
const CONNECTIONS: usize = 384;
/// Those of one token at a time.
const OF_TOKEN: usize = 64;
/// The head of a request comes within this, also after another one.
const HEAD: Duration = Duration::from_secs(60);

/// A connection's place among those that there may be, as long as anything of it lives.
#[derive(Clone)]
pub struct Seat(Arc<Taken>);

struct Taken {
    number: u64,
    /// Whoever has it may ask: nobody takes it away.
    admitted: AtomicBool,
    /// The token that it was first asked with.
    token: OnceLock<String>,
    seats: Arc<Seats>,
}

#[derive(Default)]
struct Seats {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Default)]
struct State {
    taken: usize,
    next: u64,
    /// How many connections tokens have, by their names.
    tokens: HashMap<String, usize>,
    /// Those who have not shown yet that they may ask, the oldest first, and what ends them.
    strangers: BTreeMap<u64, AbortHandle>,
}

/// The connections of a listener.
#[derive(Clone)]
pub struct Connections {
    seats: Arc<Seats>,
    router: Router,
}

impl Seat {
    /// Whoever has it may ask, with a token or without.
    ///
    /// # Errors
    /// If the token has as many connections as one may have.
    pub fn admit(&self, token: Option<&str>) -> Result<(), ApiError> {
        let mut state = self.0.seats.state.lock();
        if let (Some(token), None) = (token, self.0.token.get()) {
            let count = state.tokens.entry(token.to_owned()).or_default();
            if *count >= OF_TOKEN {
                return Err(ApiError::TooMany(format!(
                    "the token `{token}` has {OF_TOKEN} connections already: end some"
                )));
            }
            *count += 1;
            let _ = self.0.token.set(token.to_owned());
        }
        self.0.admitted.store(true, Ordering::Release);
        state.strangers.remove(&self.0.number);
        Ok(())
    }

    /// From here on it may be taken away, by ending the task, until it is admitted.
    pub fn lend(&self, task: AbortHandle) {
        let mut state = self.0.seats.state.lock();
        if !self.0.admitted.load(Ordering::Acquire) {
            state.strangers.insert(self.0.number, task);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.seats.state.lock();
        state.strangers.remove(&self.number);
        state.taken -= 1;
        if let Some(token) = self.token.get()
            && let Some(count) = state.tokens.get_mut(token)
        {
            *count -= 1;
            if *count == 0 {
                state.tokens.remove(token);
            }
        }
        self.seats.freed.notify_one();
    }
}

impl Connections {
    /// None yet, all to be served by `router`.
    pub fn new(router: Router) -> Connections {
        Connections {
            seats: Arc::default(),
            router,
        }
    }

    /// A place for another one, for which the oldest stranger has to go if all are taken. Waits if there is none.
    pub async fn seat(&self) -> Seat {
        loop {
            {
                let mut state = self.seats.state.lock();
                if state.taken < CONNECTIONS {
                    state.taken += 1;
                    state.next += 1;
                    return Seat(Arc::new(Taken {
                        number: state.next,
                        admitted: AtomicBool::new(false),
                        token: OnceLock::new(),
                        seats: self.seats.clone(),
                    }));
                }
                if let Some((_, oldest)) = state.strangers.pop_first() {
                    oldest.abort();
                }
            }
            self.seats.freed.notified().await;
        }
    }

    /// Serves one, until it is over.
    pub async fn serve<S>(&self, stream: S, caller: Caller, seat: Seat)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if caller == Caller::Known {
            let _ = seat.admit(None);
        }
        let router = self.router.clone();
        let service = TowerToHyperService::new(router);
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let extensions = request.extensions_mut();
            extensions.insert(caller);
            // A connection that becomes another one keeps it.
            extensions.insert(seat.clone());
            hyper::service::Service::call(&service, request)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(e) = served.await {
            log::debug!("a connection ended: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> tokio::task::JoinHandle<()> {
        tokio::spawn(std::future::pending())
    }

    #[tokio::test]
    async fn a_token_has_so_many_connections_and_no_more() {
        let connections = Connections::new(Router::new());
        let mut held = Vec::new();
        for _ in 0..OF_TOKEN {
            let seat = connections.seat().await;
            seat.admit(Some("ci")).expect("room");
            seat.admit(Some("ci")).expect("it has its place");
            held.push(seat);
        }
        let one_more = connections.seat().await;
        assert!(one_more.admit(Some("ci")).is_err());
        one_more.admit(Some("other")).expect("another token");
        held.pop();
        connections.seat().await.admit(Some("ci")).expect("room");
    }

    #[tokio::test]
    async fn the_oldest_stranger_makes_room_and_whoever_may_ask_never_does() {
        let connections = Connections::new(Router::new());
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            held.push(connections.seat().await);
        }
        let (known, stranger) = (task(), task());
        held[0].admit(None).expect("no token");
        held[0].lend(known.abort_handle());
        held[1].lend(stranger.abort_handle());
        let wanted = connections.seat();
        tokio::pin!(wanted);
        let waits = std::future::poll_fn(|cx| std::task::Poll::Ready(wanted.as_mut().poll(cx)));
        assert!(waits.await.is_pending());
        assert!(stranger.await.unwrap_err().is_cancelled());
        assert!(!known.is_finished());
        // What its task held goes with it.
        drop(held.remove(1));
        held.push(wanted.await);
        // All may ask: one more waits until one of them goes.
        let wanted = connections.seat();
        tokio::pin!(wanted);
        let waits = std::future::poll_fn(|cx| std::task::Poll::Ready(wanted.as_mut().poll(cx)));
        assert!(waits.await.is_pending() && !known.is_finished());
        held.pop();
        wanted.await;
    }
}
