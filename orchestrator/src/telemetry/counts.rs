//! What the API counts: its requests by verb and answer, how long they took, and watches that are open.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::Method;
use parking_lot::Mutex;

/// The upper bounds of a histogram's buckets, in seconds.
pub const BOUNDS: [f64; 8] = [0.001, 0.0025, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];

/// How long things took.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// How many took no longer than each bound, and longer than the one before.
    pub buckets: [u64; BOUNDS.len()],
    /// All of them.
    pub count: u64,
    /// Seconds of all of them together.
    pub sum: f64,
}

impl Histogram {
    fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(at) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[at] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}

/// What the API counts.
#[derive(Debug, Default)]
pub struct ApiCounts {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    took: Mutex<BTreeMap<&'static str, Histogram>>,
    watches: Arc<AtomicU64>,
}

/// A watch that is open.
pub struct OpenWatch(Arc<AtomicU64>);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is done by a request, in one of few words, whatever was sent.
pub fn verb(method: &Method, query: &str) -> &'static str {
    let goes_on = |what: &str| {
        query
            .split('&')
            .any(|word| matches!(word.split_once('='), Some((name, "true" | "1")) if name == what))
    };
    match *method {
        Method::GET if goes_on("watch") => "watch",
        Method::GET if goes_on("follow") => "follow",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    }
}

impl ApiCounts {
    /// One more was answered.
    pub fn answered(&self, verb: &'static str, code: u16, took: Duration) {
        *self.requests.lock().entry((verb, code)).or_default() += 1;
        self.took.lock().entry(verb).or_default().add(took);
    }

    /// One more is watched, until this is dropped.
    pub fn watched(&self) -> OpenWatch {
        self.watches.fetch_add(1, Ordering::Relaxed);
        OpenWatch(self.watches.clone())
    }

    /// Requests by verb and code.
    pub fn requests(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.requests.lock().clone()
    }

    /// How long they took until they were answered, by verb.
    pub fn took(&self) -> BTreeMap<&'static str, Histogram> {
        self.took.lock().clone()
    }

    /// Watches that are open.
    pub fn watches(&self) -> u64 {
        self.watches.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_few_whatever_is_asked() {
        assert_eq!(verb(&Method::GET, "watch=true&x=1"), "watch");
        assert_eq!(verb(&Method::GET, "watch=false"), "get");
        assert_eq!(verb(&Method::from_bytes(b"EVIL").unwrap(), ""), "other");
    }

    #[test]
    fn what_took_longer_than_any_bound_is_counted_all_the_same() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::from_secs(100));
        histogram.add(Duration::from_millis(1));
        assert_eq!((histogram.count, histogram.buckets[0]), (2, 1));
        assert_eq!(histogram.buckets.iter().sum::<u64>(), 1);
    }
}
