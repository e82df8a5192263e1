//! Waiting until something is so, with a word on what it waits for.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::Failure;
use super::client::{Client, JSON};
use crate::cli::progress::spinner;
use crate::model::Kind;

/// Waits until an object is ready.
pub async fn until_ready(
    client: &Client,
    kind: &Kind,
    namespace: &str,
    name: &str,
    limit: Duration,
) -> Result<(), Failure> {
    let mut last = String::new();
    let shown = format!("{}/{name}", kind.singular);
    let done = watch(client, kind, namespace, name, limit, |object| {
        let Some(object) = object else {
            return Some(Err(Failure::Asked(format!(
                "{shown} was deleted meanwhile"
            ))));
        };
        let phase = object["status"]["phase"].as_str().unwrap_or("Pending");
        let conditions = object["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|c| c["type"] == "Ready");
        let message = ready.and_then(|c| c["message"].as_str()).unwrap_or("");
        last = match message {
            "" => phase.to_owned(),
            message => format!("{phase}: {message}"),
        };
        match ready.is_some_and(|c| c["status"] == "True") || phase == "Succeeded" {
            true => Some(Ok(())),
            false if phase == "Failed" => {
                Some(Err(Failure::Asked(format!("{shown} failed: {message}"))))
            }
            false => None,
        }
    });
    let done = done.await?;
    done.unwrap_or_else(|| {
        Err(Failure::Asked(format!(
            "{shown} is not ready after {} s; it is {last}. `skerry describe {shown}` tells more",
            limit.as_secs()
        )))
    })
}

/// Waits until an object is gone.
pub async fn until_gone(
    client: &Client,
    kind: &Kind,
    namespace: &str,
    name: &str,
    limit: Duration,
) -> Result<(), Failure> {
    let done = watch(
        client,
        kind,
        namespace,
        name,
        limit,
        |object| match object {
            None => Some(Ok(())),
            Some(_) => None,
        },
    );
    let done = done.await?;
    done.unwrap_or_else(|| {
        Err(Failure::Asked(format!(
            "{}/{name} is not gone after {} s; `skerry describe {}/{name}` tells why",
            kind.singular,
            limit.as_secs(),
            kind.singular
        )))
    })
}

/// Looks at an object each time it changes; none is given when it is gone. None if it took too long.
async fn watch<T>(
    client: &Client,
    kind: &Kind,
    namespace: &str,
    name: &str,
    limit: Duration,
    mut judge: impl FnMut(Option<&Value>) -> Option<T>,
) -> Result<Option<T>, Failure> {
    let deadline = Instant::now() + limit;
    let spinner = spinner(&format!("{}/{name}", kind.singular));
    let path = Client::path(kind, namespace, None);
    let path = format!("{path}?fieldSelector=metadata.name={name}");
    loop {
        // What happens behind the list is seen by the watch.
        let list = client.get(&path, JSON).await?;
        let found = list["items"].as_array().and_then(|items| items.first());
        if let Some(done) = judge(found) {
            return Ok(Some(done));
        }
        let from = list["metadata"]["resourceVersion"].as_str().unwrap_or("0");
        let from = format!("{path}&watch=true&resourceVersion={from}");
        let mut lines = client.stream(&from, JSON).await?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = timeout(left, lines.next()).await else {
                return Ok(None);
            };
            let Some(line) = line? else { break };
            let object = &line["object"];
            let given = match line["type"].as_str() {
                Some("ADDED" | "MODIFIED") => Some(object),
                Some("DELETED") => None,
                // It begins again.
                _ => break,
            };
            if let Some(phase) = object["status"]["phase"].as_str() {
                spinner.set_message(phase.to_owned());
            }
            if let Some(done) = judge(given) {
                return Ok(Some(done));
            }
        }
    }
}
