//! `skerry top`: what hosts and workloads do, again and again.

mod draw;
#[cfg(test)]
mod picture;
mod rates;
mod state;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ratatui::crossterm::event::{self, Event};
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::rates::between;
use self::state::{After, Column, View};
use super::bytes::show;
use super::failure::{Failure, Outcome};
use super::output::{Output, on_a_line, print_json};
use super::remote::{Client, ClientError, JSON, Target, ask_at, encoded};
use crate::telemetry::Sample;

/// Events that are shown of a workload.
const EVENTS: usize = 20;
/// How often a host is asked until it has looked again.
const LOOKS: usize = 10;
/// Keys that may wait.
const KEYS: usize = 64;

/// Show what hosts and workloads do, again and again
///
/// Keys: arrows choose a line and the column to sort by, r reverses, / filters, enter looks into a workload, q quits.
#[derive(Debug, Args)]
pub struct Top {
    #[command(flatten)]
    target: Target,
    /// Seconds between looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=3600))]
    interval: u16,
    /// What comes first
    #[arg(long, value_name = "COLUMN", default_value = "cpu")]
    sort: Column,
    /// Print one frame and end: for programs, and where there is no terminal
    #[arg(long)]
    batch: bool,
    #[command(flatten)]
    output: Output,
}

impl Top {
    /// Does it.
    pub fn run(self) -> ExitCode {
        ask_at(&self.target.clone(), async move |client| {
            match self.batch || self.output.json() {
                true => self.batch(&client).await,
                false => self.watch(&client).await,
            }
        })
    }

    fn between_looks(&self) -> Duration {
        Duration::from_secs(self.interval.into())
    }

    async fn batch(&self, client: &Client) -> Outcome {
        let first = sample(client).await?;
        let mut second = first.clone();
        for _ in 0..LOOKS {
            sleep(self.between_looks()).await;
            second = sample(client).await?;
            // The host may not have looked again.
            if second.at > first.at {
                break;
            }
        }
        let mut view = View::new(self.sort);
        view.rates = between(Some(&first), &second);
        if self.output.json() {
            print_json(&view.rates)?;
            return Ok(0);
        }
        if let Some(host) = &view.rates.host {
            println!(
                "{}: CPU {:.1} % of {}, memory {} of {}, disk {} of {}, load {:.2}",
                on_a_line(&host.name),
                host.cpu_percent,
                host.cpus,
                show(host.memory[1]),
                show(host.memory[0]),
                show(host.disk[1]),
                show(host.disk[0]),
                host.load[0]
            );
        }
        println!(
            "{:<40} {:<10} {:>7} {:>10} {:>10} {:>12} {:>12}",
            "WORKLOAD", "PHASE", "CPU %", "MEMORY", "EXITS/S", "DISK B/S", "NET B/S"
        );
        for row in view.rows() {
            println!(
                "{:<40} {:<10} {:>7.1} {:>10} {:>10.0} {:>12.0} {:>12.0}",
                on_a_line(&format!("{}/{}/{}", row.namespace, row.kind, row.name)),
                row.phase,
                row.cpu_percent,
                show(row.memory_bytes),
                row.exits,
                row.disk,
                row.network
            );
        }
        Ok(0)
    }

    async fn watch(&self, client: &Client) -> Outcome {
        // Whoever cannot be asked is told of on an ordinary screen.
        let mut last = Some(sample(client).await?);
        let terminal = |source| Failure::System {
            what: "use",
            path: "the terminal".into(),
            source,
        };
        let mut screen = ratatui::try_init().map_err(terminal)?;
        let mut keys = typed();
        let mut view = View::new(self.sort);
        view.rates = between(None, &last.clone().unwrap_or_default());
        let mut looks = interval(self.between_looks());
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let outcome = loop {
            let after = tokio::select! {
                _ = looks.tick() => {
                    look(client, &mut view, &mut last).await;
                    if view.detail { After::Look } else { After::Draw }
                }
                key = keys.recv() => match key {
                    Some(key) => view.event(&key),
                    None => After::Quit,
                },
            };
            match after {
                After::Quit => break Ok(0),
                After::Look => view.events = events(client, &view).await,
                After::Draw => {}
            }
            if let Err(e) = screen.draw(|frame| draw::draw(frame, &view)) {
                break Err(terminal(e));
            }
        };
        ratatui::restore();
        outcome
    }
}

/// What is used now.
async fn sample(client: &Client) -> Result<Sample, ClientError> {
    Ok(serde_json::from_value(client.get("/usage", JSON).await?)?)
}

/// Looks once more. A host that does not answer is told of, and asked again.
async fn look(client: &Client, view: &mut View, last: &mut Option<Sample>) {
    match sample(client).await {
        // The host may not have looked again.
        Ok(now) if last.as_ref().is_some_and(|last| last.at == now.at) => view.trouble = None,
        Ok(now) => {
            view.rates = between(last.as_ref(), &now);
            view.trouble = None;
            *last = Some(now);
        }
        Err(e) => view.trouble = Some(e.to_string()),
    }
}

/// What happened to the chosen workload, newest first.
async fn events(client: &Client, view: &View) -> Vec<String> {
    let Some(row) = view.row() else {
        return Vec::new();
    };
    let fields = encoded(&format!("involvedObject.uid={}", row.uid));
    let path = format!(
        "/api/v1/namespaces/{}/events?fieldSelector={fields}",
        row.namespace
    );
    let list = client.get(&path, JSON).await.unwrap_or_default();
    let mut items = list["items"].as_array().cloned().unwrap_or_default();
    let text = |event: &Value, field: &str| on_a_line(event[field].as_str().unwrap_or(""));
    items.sort_by_key(|event| std::cmp::Reverse(text(event, "lastTimestamp")));
    let lines = items.iter().take(EVENTS).map(|event| {
        let [at, reason, message] =
            ["lastTimestamp", "reason", "message"].map(|field| text(event, field));
        format!("{at}  {reason:<14} {message}")
    });
    lines.collect()
}

/// What is typed. It is waited for by a thread of its own, which ends with the process.
fn typed() -> Receiver<Event> {
    let (keys, read) = channel(KEYS);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if keys.blocking_send(event).is_err() {
                return;
            }
        }
    });
    read
}

#[cfg(test)]
#[path = "top_test.rs"]
mod tests;
