//! Published ports, services and elastic addresses: what is declared is made rules of the kernel's, who cannot serve
//! any more is left out at once, and what each has come to is said in its object's status.
//!
//! All there is of it is one table of rules, elastic addresses with a label, and objects: an agent that starts
//! puts what is declared in the place of whatever is there.

mod checks;
mod conntrack;
mod declared;
mod expressions;
mod generation;
mod judge;
mod kernel;
mod listeners;
mod names;
mod plan;
mod pool;
mod rules;
mod table;
mod uplink;
mod words;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval};

pub use judge::Terms;
pub use names::Names;

use self::checks::Checks;
use self::declared::{Declared, kinds};
use self::judge::judge;
use self::kernel::Kernel;
use self::listeners::Listeners;
use self::uplink::Ground;
use super::NetworkError;
use crate::api::{ApiError, Objects, Turn};
use crate::store::Revision;

/// Between looks whether all of it is still there.
const LOOK: Duration = Duration::from_secs(1);
/// Between attempts when the store or the kernel does not answer.
const REST: Duration = Duration::from_secs(1);

/// Who looks after ports, services and elastic addresses.
pub struct Services {
    objects: Objects,
    terms: Terms,
    names: Names,
    kernel: Arc<Mutex<Kernel>>,
}

impl Services {
    /// Those of a host. Their names are told to `names`.
    pub fn new(objects: Objects, terms: Terms, names: Names) -> Services {
        Services {
            objects,
            kernel: Arc::new(Mutex::new(Kernel::new())),
            terms,
            names,
        }
    }

    /// Works for ever.
    pub async fn run(self) {
        loop {
            match self.rounds().await {
                Err(ApiError::Gone(_)) => {}
                Err(e) => {
                    log::error!("ports and services are looked at again: {e}");
                    tokio::time::sleep(REST).await;
                }
                Ok(never) => match never {},
            }
        }
    }

    async fn rounds(&self) -> Result<Infallible, ApiError> {
        let (objects, mut follow) = self.objects.follow(&kinds()).await?;
        let mut declared = Declared::default();
        for object in &objects {
            declared.enter(object);
        }
        while let Some(turns) = follow.more(Revision(0)).await? {
            turn(&mut declared, turns);
        }
        drop(objects);
        let bell = Arc::new(Notify::new());
        let mut checks = Checks::new(bell.clone());
        let (said, hears) = watch::channel(Vec::new());
        let speaker = words::speak(self.objects.clone(), hears);
        // It ends when nothing more can be said.
        tokio::spawn(speaker);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut due = false;
            tokio::select! {
                turns = follow.next() => {
                    due |= turn(&mut declared, turns?);
                    while let Some(turns) = follow.more(Revision(0)).await? {
                        due |= turn(&mut declared, turns);
                    }
                }
                () = bell.notified() => due = true,
                _ = look.tick() => due = true,
            }
            if !due {
                continue;
            }
            if let Err(e) = self.settle(&declared, &mut checks, &said).await {
                log::error!("ports and services are not as declared: {}", chain(&e));
            }
        }
    }

    /// Makes it so, and has it said.
    async fn settle(
        &self,
        declared: &Declared,
        checks: &mut Checks,
        said: &watch::Sender<Vec<judge::Word>>,
    ) -> Result<(), NetworkError> {
        let new = declared.has_new_claims();
        let ground = aside(move || {
            let mut ground = Ground::look()?;
            if new {
                ground.listeners = Listeners::look();
            }
            Ok(ground)
        });
        let ground = ground.await?;
        let judgement = judge(declared, &ground, &self.terms, &checks.answers());
        checks.set(&judgement.wishes);
        self.names.set(judgement.names);
        let (kernel, plan) = (self.kernel.clone(), judgement.plan);
        let set = aside(move || kernel.lock().set(plan, &ground)).await;
        said.send_if_modified(|words| {
            *words = judgement.words;
            !words.is_empty()
        });
        set
    }
}

/// Does what blocks.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| {
        let e = std::io::Error::other(e);
        Err(super::error::system("hand on ports")(e))
    })
}

/// Enters what happened; whether anything may follow from it.
fn turn(declared: &mut Declared, turns: Vec<Turn>) -> bool {
    let mut due = false;
    for turn in turns {
        due |= match turn.gone {
            true => declared.strike(&turn.key),
            false => declared.enter(&turn.object),
        };
    }
    due
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
#[path = "services_test.rs"]
mod tests;
