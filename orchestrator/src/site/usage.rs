//! Says in the status of each tenant that has a quota what it has used of it.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::api::{ApiError, Objects, used};
use crate::model::{
    Container, MicroVM, Namespace, NamespaceStatus, Volume, VolumeSnapshot, kind_of, typed,
};

/// Changes that come quickly one after the other are counted together.
const GATHER: Duration = Duration::from_millis(200);
/// Between attempts when the store does not answer.
const REST: Duration = Duration::from_secs(1);
/// Without a change.
const LONG: Duration = Duration::from_secs(3600);

/// Works for ever.
pub async fn count(objects: Objects) {
    loop {
        match rounds(&objects).await {
            Err(ApiError::Gone(_)) => {}
            Err(e) => {
                log::error!("what tenants use is counted again: {e}");
                sleep(REST).await;
            }
            Ok(never) => match never {},
        }
    }
}

async fn rounds(objects: &Objects) -> Result<std::convert::Infallible, ApiError> {
    let kinds = [
        kind_of::<Namespace>(),
        kind_of::<MicroVM>(),
        kind_of::<Container>(),
        kind_of::<Volume>(),
        kind_of::<VolumeSnapshot>(),
    ];
    let (_, mut follow) = objects.follow(&kinds).await?;
    let mut due = Instant::now();
    loop {
        tokio::select! {
            turns = follow.next() => {
                if !turns?.is_empty() {
                    due = due.min(Instant::now() + GATHER);
                }
            }
            () = sleep_until(due) => {
                look(objects).await?;
                due = Instant::now() + LONG;
            }
        }
    }
}

async fn look(objects: &Objects) -> Result<(), ApiError> {
    let (tenants, _) = objects.all::<Namespace>().await?;
    for object in tenants {
        let Ok(tenant) = typed::<Namespace>(&object) else {
            continue;
        };
        let now = match &tenant.spec.quota {
            Some(quota) => Some(used(objects, &object.meta.name, quota).await?),
            None => None,
        };
        if now == tenant.status.used {
            continue;
        }
        let status = NamespaceStatus {
            used: now,
            ..tenant.status
        };
        let status = serde_json::to_value(status).unwrap_or_default();
        match objects.set_status(&object, status).await {
            Ok(_) | Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
