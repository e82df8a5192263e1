//! Whole hosts: a claim is held as soon as nothing else runs on its host any more.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::Value;

use super::{Life, Runtime, RuntimeError};
use crate::api::{ApiError, Objects};
use crate::model::{Container, MicroVM, Object};

/// The claims of a host.
pub struct Claims {
    objects: Objects,
    host: String,
    held: Mutex<HashSet<String>>,
}

impl Claims {
    /// Those of `host`.
    pub fn new(objects: Objects, host: &str) -> Claims {
        Claims {
            objects,
            host: host.to_owned(),
            held: Mutex::new(HashSet::new()),
        }
    }
}

#[async_trait]
impl Runtime for Claims {
    async fn start(&self, object: &Object) -> Result<Vec<String>, RuntimeError> {
        let unread = |e: ApiError| RuntimeError::Unfit(e.to_string());
        let mut others = self.objects.all::<MicroVM>().await.map_err(unread)?.0;
        others.extend(self.objects.all::<Container>().await.map_err(unread)?.0);
        for other in &others {
            let status = other.body.get("status").unwrap_or(&Value::Null);
            let here = ["host", "leavingHost"].map(|field| status[field] == *self.host);
            let (here, phase) = (here.contains(&true), &status["phase"]);
            if here && (phase == "Running" || phase == "Starting") {
                let what = format!("{} has not left the host yet", other.shown());
                return Err(RuntimeError::Unfit(what));
            }
        }
        self.held.lock().insert(object.meta.uid.clone());
        Ok(Vec::new())
    }

    async fn life(&self, uid: &str) -> Life {
        match self.held.lock().contains(uid) {
            true => Life::Running,
            false => Life::Absent,
        }
    }

    async fn ended(&self, _uid: &str) {
        // It ends when it is given back, and not before.
        std::future::pending().await
    }

    async fn stop(&self, uid: &str, _grace: Duration) -> Result<(), RuntimeError> {
        self.held.lock().remove(uid);
        Ok(())
    }

    async fn remove(&self, _uid: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    fn log(&self, _uid: &str) -> Option<PathBuf> {
        None
    }

    async fn found(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }
}
