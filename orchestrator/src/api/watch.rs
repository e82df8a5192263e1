//! Watches over HTTP: a JSON object a line, as long as the client listens.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::Stream;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::error::ApiError;
use super::objects::{ObjectWatch, Seen};
use super::table::{Form, table};
use crate::model::{Kind, Object};

/// How long a watch lasts if nothing else is asked; the client then begins again.
const DEFAULT: u64 = 30 * 60;
const MOST: u64 = 24 * 3600;

/// A watch as lines.
pub struct Lines {
    /// What is watched.
    pub watch: ObjectWatch,
    /// Its kind.
    pub kind: &'static Kind,
    /// How objects are wanted.
    pub form: Form,
    /// Objects that are there already, told first.
    pub first: Vec<Object>,
    /// For how many seconds.
    pub seconds: Option<u64>,
}

impl Lines {
    /// The lines, as they come.
    pub fn stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        let seconds = self.seconds.unwrap_or(DEFAULT).min(MOST);
        let end = Instant::now() + Duration::from_secs(seconds);
        let first = self.first.into_iter().map(Seen::Added).collect();
        let state = State {
            watch: self.watch,
            kind: self.kind,
            form: self.form,
            heads: true,
            over: false,
        };
        futures_util::stream::unfold((state, Some(first)), move |(mut state, first)| async move {
            if state.over {
                return None;
            }
            let seen: Result<Vec<Seen>, ApiError> = match first {
                Some(first) => Ok(first),
                None => tokio::select! {
                    seen = state.watch.next() => seen,
                    () = sleep_until(end) => return None,
                },
            };
            let bytes = match seen {
                Ok(seen) => seen.into_iter().flat_map(|seen| state.line(seen)).collect(),
                Err(error) => {
                    state.over = true;
                    line(&json!({"type": "ERROR", "object": error.status()}))
                }
            };
            Some((Ok(Bytes::from(bytes)), (state, None)))
        })
    }
}

struct State {
    watch: ObjectWatch,
    kind: &'static Kind,
    form: Form,
    heads: bool,
    over: bool,
}

impl State {
    fn line(&mut self, seen: Seen) -> Vec<u8> {
        let (what, object) = match seen {
            Seen::Added(object) => ("ADDED", object),
            Seen::Modified(object) => ("MODIFIED", object),
            Seen::Deleted(object) => ("DELETED", object),
        };
        let value = match self.form {
            Form::Objects => object.to_value(),
            Form::Table => {
                let meta = json!({"resourceVersion": object.meta.resource_version});
                let heads = std::mem::replace(&mut self.heads, false);
                table(self.kind, &[object], meta, heads)
            }
        };
        line(&json!({"type": what, "object": value}))
    }
}

fn line(value: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
