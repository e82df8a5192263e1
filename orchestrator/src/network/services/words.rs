//! What is said of objects, in a task of its own: the kernel's rules do not wait for a disk.

use serde_json::{Value, to_value};
use tokio::sync::watch;

use super::declared::PUBLISHED;
use super::judge::Word;
use crate::api::{ApiError, Objects, Part};
use crate::model::{Condition, Object, WorkloadStatus};

/// Says what is to be said, until there is nobody who has something to say.
pub async fn speak(objects: Objects, mut words: watch::Receiver<Vec<Word>>) {
    while words.changed().await.is_ok() {
        let all = words.borrow_and_update().clone();
        for word in all {
            let (object, said) = match word {
                Word::Status(object, status) => {
                    let said = objects.set_status(&object, status).await;
                    (object, said)
                }
                Word::Published(object, condition) => {
                    let said = publish(&objects, &object, condition.as_ref()).await;
                    (object, said)
                }
            };
            match said {
                // It is gone, or another one by now.
                Ok(_) | Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => {}
                Err(e) => log::warn!("{}: its status is not written: {e}", object.shown()),
            }
        }
    }
}

/// Says whether a workload's ports are published, and leaves all else of its status, which its agent writes.
async fn publish(
    objects: &Objects,
    object: &Object,
    condition: Option<&Condition>,
) -> Result<Object, ApiError> {
    let meta = &object.meta;
    let change = |old: &Object| {
        let mut new = old.clone();
        new.meta.resource_version.clear();
        new.meta.uid.clone_from(&meta.uid);
        let status = old.body.get("status").cloned().unwrap_or(Value::Null);
        let Ok(mut status) = serde_json::from_value::<WorkloadStatus>(status) else {
            return Ok(new);
        };
        status.conditions.retain(|one| one.kind != PUBLISHED);
        status.conditions.extend(condition.cloned());
        let status = to_value(status).unwrap_or_default();
        new.body.insert("status".to_owned(), status);
        Ok(new)
    };
    let (namespace, name) = (&meta.namespace, &meta.name);
    let said = objects.change(object.kind, namespace, name, Part::Status, false, change);
    said.await
}
