//! Events: what happened to an object, told so that `describe` and `get events` show it. What happens again
//! is counted.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::api::{ApiError, Objects, Part};
use crate::model::{Event, Meta, Object, ObjectReference, Timestamp, kind_of, untyped};

/// Events that a namespace keeps at most; the oldest go first.
const MOST: usize = 1000;
/// They are counted after so many new ones.
const COUNTED: u32 = 100;

/// Whether it is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// It is.
    Normal,
    /// It is not.
    Warning,
}

/// Who tells events.
#[derive(Clone)]
pub struct Events {
    objects: Objects,
    host: String,
    new: Arc<AtomicU32>,
}

impl Events {
    /// Those of a host.
    pub fn new(objects: Objects, host: &str) -> Events {
        Events {
            objects,
            host: host.to_owned(),
            new: Arc::default(),
        }
    }

    /// Tells what happened to an object. That it cannot be told stops nobody.
    pub async fn tell(&self, object: &Object, tone: Tone, reason: &str, message: &str) {
        let level = match tone {
            Tone::Normal => log::Level::Info,
            Tone::Warning => log::Level::Warn,
        };
        let (kind, meta) = (object.kind.singular, &object.meta);
        let (namespace, name) = (&meta.namespace, &meta.name);
        log::log!(level, kind, namespace, name, reason; "{}: {reason}: {message}", object.shown());
        if let Err(e) = self.record(object, tone, reason, message).await {
            log::warn!("an event of {} is not kept: {e}", object.shown());
        }
    }

    async fn record(
        &self,
        object: &Object,
        tone: Tone,
        reason: &str,
        message: &str,
    ) -> Result<(), ApiError> {
        let mut hasher = DefaultHasher::new();
        (&object.meta.uid, reason, message).hash(&mut hasher);
        let name = format!("{}.{:016x}", object.meta.name, hasher.finish());
        let namespace = match object.meta.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        let (kind, now) = (kind_of::<Event>(), Timestamp::now());
        let again = self
            .objects
            .change(kind, namespace, &name, Part::Spec, false, |old| {
                let mut new = old.clone();
                let count = new.body.get("count").and_then(Value::as_u64).unwrap_or(0);
                new.body.insert("count".into(), (count + 1).into());
                let now = serde_json::to_value(now).unwrap_or_default();
                new.body.insert("lastTimestamp".into(), now);
                Ok(new)
            });
        match again.await {
            Err(ApiError::NotFound { .. }) => {}
            other => return other.map(drop),
        }
        let mut event = Event {
            involved_object: ObjectReference::from(object),
            reason: reason.to_owned(),
            message: message.to_owned(),
            kind: match tone {
                Tone::Normal => "Normal".to_owned(),
                Tone::Warning => "Warning".to_owned(),
            },
            count: 1,
            first_timestamp: Some(now),
            last_timestamp: Some(now),
            ..Event::default()
        };
        event.source.component = "skerry".to_owned();
        event.source.host.clone_from(&self.host);
        let meta = Meta {
            name,
            namespace: namespace.to_owned(),
            ..Meta::default()
        };
        self.objects.create(untyped(meta, &event), false).await?;
        match self.new.fetch_add(1, Ordering::Relaxed) % COUNTED == COUNTED - 1 {
            true => self.forget(u64::MAX).await,
            false => Ok(()),
        }
    }

    /// Forgets those that are older than `seconds`, and the oldest of a namespace that has too many.
    pub async fn forget(&self, seconds: u64) -> Result<(), ApiError> {
        let (events, _) = self.objects.all::<Event>().await?;
        let told = |event: Object| {
            let last = event.body.get("lastTimestamp").cloned().unwrap_or_default();
            (serde_json::from_value::<Timestamp>(last).ok(), event)
        };
        let mut events: Vec<_> = events.into_iter().map(told).collect();
        events.sort_by_key(|(last, _)| std::cmp::Reverse(*last));
        let mut kept: HashMap<String, usize> = HashMap::new();
        for (last, event) in events {
            let kept = kept.entry(event.meta.namespace.clone()).or_default();
            *kept += 1;
            if *kept > MOST || last.is_none_or(|last| last.seconds_ago() > seconds) {
                let meta = &event.meta;
                let deleted = self.objects.delete(
                    event.kind,
                    &meta.namespace,
                    &meta.name,
                    &meta.uid,
                    None,
                    false,
                );
                match deleted.await {
                    Ok(_) | Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MicroVM;
    use crate::store::Embedded;

    #[tokio::test]
    async fn what_happens_often_is_counted_and_the_oldest_of_too_many_goes() {
        let place = std::path::Path::new("/dev/shm");
        let place = if place.is_dir() {
            place
        } else {
            std::path::Path::new("/tmp")
        };
        let folder = tempfile::tempdir_in(place).expect("a folder");
        let store = Embedded::open(&folder.path().join("store")).expect("a store");
        let objects = Objects::new(Arc::new(store));
        let meta = Meta {
            name: "default".into(),
            ..Meta::default()
        };
        let namespace = untyped(meta, &crate::model::Namespace::default());
        objects.create(namespace, false).await.expect("made");
        let events = Events::new(objects.clone(), "here");
        let of = Object {
            kind: kind_of::<MicroVM>(),
            meta: Meta {
                name: "web".into(),
                namespace: "default".into(),
                ..Meta::default()
            },
            body: serde_json::Map::new(),
        };
        for _ in 0..3 {
            events.tell(&of, Tone::Normal, "Same", "again").await;
        }
        let (all, _) = objects.all::<Event>().await.expect("listed");
        assert_eq!((all.len(), &all[0].body["count"]), (1, &3.into()));
        for n in 0..MOST + 150 {
            events.tell(&of, Tone::Normal, "New", &n.to_string()).await;
        }
        let (all, _) = objects.all::<Event>().await.expect("listed");
        assert!(all.len() < MOST + COUNTED as usize, "{}", all.len());
    }
}
