//! How much space this host's disk has: said in its object, for the scheduler and for whoever looks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::api::{ApiError, Objects, rest};
use crate::model::{Condition, Host, Quantity, Timestamp, kind_of};
use crate::store::Room;

/// How often is looked.
const LOOK: Duration = Duration::from_secs(2);
/// The condition.
const KIND: &str = "DiskPressure";
/// With less space, in bytes, workloads cannot be started.
const LOW: u64 = 4 << 20;
/// Free space is said again when this part of it went or came.
const NOTABLE: u64 = 8;

/// Looks after the condition for ever. `state` is where workloads' files are.
pub async fn watch(objects: Objects, host: String, state: PathBuf) {
    let mut said = None;
    loop {
        let look = Look::at(&state, objects.room());
        if said.is_none_or(|said| look.differs(said)) {
            match say(&objects, &host, look, &state.display().to_string()).await {
                Ok(()) => said = Some(look),
                // It is tried again with the next look.
                Err(e) => log::warn!("how much space this host has is not noted: {e}"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What there is at a moment.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// Free bytes.
    free: u64,
    full: bool,
}

impl Look {
    fn at(state: &Path, room: Room) -> Look {
        let free = rustix::fs::statvfs(state).map_or(u64::MAX, |found| {
            found.f_bavail.saturating_mul(found.f_frsize)
        });
        let full = room == Room::Short || free < LOW;
        Look { free, full }
    }

    /// Whether it is worth saying after what was said last.
    fn differs(self, said: Look) -> bool {
        self.full != said.full || self.free.abs_diff(said.free) > said.free / NOTABLE
    }
}

async fn say(objects: &Objects, host: &str, look: Look, place: &str) -> Result<(), ApiError> {
    let object = objects.get(kind_of::<Host>(), "", host).await?;
    let mut status = rest::<Host>(&object)?.status.unwrap_or_default();
    // The scheduler gives it away.
    status.disk = Quantity::of(look.free);
    let (word, reason, message) = match look.full {
        true => (
            "True",
            "DiskFull",
            format!(
                "the disk of {place} is full: nothing new is taken until there is space; delete \
                 objects, or files there that are not ours"
            ),
        ),
        false => ("False", "DiskHasSpace", String::new()),
    };
    let found = status.conditions.iter().find(|c| c.kind == KIND);
    if found.map_or(look.full, |c| c.status != word) {
        status.conditions.retain(|c| c.kind != KIND);
        status.conditions.push(Condition {
            kind: KIND.to_owned(),
            status: word.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: Timestamp::now(),
            observed_generation: object.meta.generation,
        });
    }
    let status: Value = serde_json::to_value(status).unwrap_or_default();
    objects.set_status(&object, status).await.map(drop)
}
