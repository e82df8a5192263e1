//! Places: what has none is given one by the scheduler, one workload after another, so that nothing is given
//! away twice. Where there is no room, less important workloads have to go.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Mutex;

use super::books::{Books, Work};
use super::counts::{SiteCounts, one_more};
use super::request::request;
use super::wanted::{status_of, with_status};
use crate::api::{ApiError, Objects, Part, revision_of};
use crate::model::{BareMetal, Object, WorkloadStatus, kind_of};
use crate::schedule::Request;
use crate::store::Revision;

/// Who gives places.
pub struct Placer {
    objects: Objects,
    /// The books are put back when all went well; else they are made anew.
    books: Mutex<Option<Books>>,
    counts: Arc<SiteCounts>,
}

/// What came of looking for a place.
pub enum Found {
    /// It has one now, and its status says so.
    Place {
        /// Its status.
        status: Box<WorkloadStatus>,
        /// Those who have to go for it.
        victims: Vec<Object>,
    },
    /// It has none, and why.
    None(String),
}

impl Placer {
    /// Places for these objects.
    pub fn new(objects: Objects) -> Placer {
        Placer {
            objects,
            books: Mutex::new(None),
            counts: Arc::default(),
        }
    }

    /// What is counted here, and of those who ask for places.
    pub fn counts(&self) -> &Arc<SiteCounts> {
        &self.counts
    }

    /// The books, as of a commit at least.
    async fn fresh(&self, kept: Option<Books>, at: Revision) -> Result<Books, ApiError> {
        if let Some(mut books) = kept {
            match books.catch_up(at).await {
                Ok(true) => return Ok(books),
                Ok(false) | Err(ApiError::Gone(_)) => {}
                Err(e) => return Err(e),
            }
        }
        loop {
            let mut books = Books::open(&self.objects).await?;
            if books.catch_up(at).await? {
                return Ok(books);
            }
        }
    }

    /// Gives a workload a place, which its status says then.
    ///
    /// # Errors
    /// If the store does not answer, or the object is another by now.
    pub async fn place(&self, object: &Object) -> Result<Found, ApiError> {
        let mut kept = self.books.lock().await;
        let mut books = self.fresh(kept.take(), revision_of(object)).await?;
        let found = self.find(&mut books, object).await?;
        one_more(match found {
            Found::Place { .. } => &self.counts.placed,
            Found::None(_) => &self.counts.unplaced,
        });
        let claimed = object.kind == kind_of::<BareMetal>() && matches!(found, Found::Place { .. });
        // What a claim takes is not in these books.
        *kept = (!claimed).then_some(books);
        Ok(found)
    }

    /// The workloads that have still to leave a host. Until they have, nothing that got a place there may start.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn leaving(&self, host: &str) -> Result<Vec<String>, ApiError> {
        let mut kept = self.books.lock().await;
        let books = self.fresh(kept.take(), Revision(0)).await?;
        let leaving = books.leaving(host);
        *kept = Some(books);
        Ok(leaving)
    }

    /// Looks at the books, as of an object at least.
    pub(super) async fn look<T>(
        &self,
        object: &Object,
        look: impl FnOnce(&Books) -> T,
    ) -> Result<T, ApiError> {
        let mut kept = self.books.lock().await;
        let books = self.fresh(kept.take(), revision_of(object)).await?;
        let seen = look(&books);
        *kept = Some(books);
        Ok(seen)
    }

    async fn find(&self, books: &mut Books, object: &Object) -> Result<Found, ApiError> {
        let (request, mut status) = request(object)?;
        let key = object.key();
        if books
            .works
            .get(&key)
            .is_some_and(|work| !work.host.is_empty())
        {
            return Err(ApiError::Conflict {
                kind: object.kind,
                name: object.meta.name.clone(),
                message: "it was given a place meanwhile".to_owned(),
            });
        }
        let mut victims = Vec::new();
        if object.kind == kind_of::<BareMetal>() {
            match host_to_claim(books, &request) {
                Ok(host) => status.host = host,
                Err(why) => return Ok(Found::None(why)),
            }
        } else {
            let (host, evicted) = match books.place(&request) {
                Ok(found) => found,
                Err(refusal) => return Ok(Found::None(refusal.to_string())),
            };
            status.host = host;
            for key in &evicted {
                victims.extend(self.evict(books, key, object).await?);
            }
        }
        let names: Vec<String> = victims.iter().map(Object::shown).collect();
        let message = match names.is_empty() {
            true => String::new(),
            false => format!("in the place of {}", names.join(", ")),
        };
        status.condition(
            "Scheduled",
            true,
            "Placed",
            &message,
            object.meta.generation,
        );
        let value = serde_json::to_value(&status).unwrap_or_default();
        let placed = self.objects.set_status(object, value).await?;
        books.works.insert(key, Work::of(&placed)?);
        let status = Box::new(status);
        Ok(Found::Place { status, victims })
    }

    /// Takes a workload's place away for another one: it has to leave its host. It as it is then, if it is
    /// still there.
    async fn evict(
        &self,
        books: &mut Books,
        key: &str,
        by: &Object,
    ) -> Result<Option<Object>, ApiError> {
        let Some(work) = books.works.get(key) else {
            return Ok(None);
        };
        let why = format!("{} has its place, which is more important", by.shown());
        let change = |old: &Object| {
            let mut status = status_of(old);
            if !status.host.is_empty() {
                status.leaving_host = std::mem::take(&mut status.host);
            }
            for condition in ["Scheduled", "Ready"] {
                status.condition(condition, false, "Preempted", &why, old.meta.generation);
            }
            Ok(with_status(old, &status))
        };
        let (kind, namespace, name) = (work.kind, &work.namespace, &work.name);
        let evicted = self
            .objects
            .change(kind, namespace, name, Part::Status, false, change);
        match evicted.await {
            Ok(object) => {
                books.works.insert(key.to_owned(), Work::of(&object)?);
                Ok(Some(object))
            }
            // It has gone by itself.
            Err(ApiError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The importance of the most important workload of a host, and how many there are.
type Busy = (i32, usize);

/// Each host, and what runs there if it can be claimed, or why it cannot.
pub fn claimable<'a>(
    books: &'a Books,
    request: &Request,
) -> Vec<(&'a String, Result<Busy, &'static str>)> {
    let mut busy: BTreeMap<&str, Busy> = BTreeMap::new();
    let own = &request.id;
    let works = books
        .works
        .iter()
        .filter(|(key, work)| !work.host.is_empty() && *key != own);
    for (_, work) in works {
        let (most, count) = busy.entry(&work.host).or_insert((i32::MIN, 0));
        *most = (*most).max(work.request.priority);
        *count += 1;
    }
    let own = books.works.get(own).map_or("", |work| work.host.as_str());
    let hosts = books.hosts.values().map(|host| {
        let busy = busy
            .get(host.name.as_str())
            .copied()
            .unwrap_or((i32::MIN, 0));
        let able = if host.claimed && host.name != own {
            Err("it is claimed already")
        } else if !request.hosts.matches(&host.labels) {
            Err("it has other labels than those selected")
        } else if busy.0 > request.priority {
            Err("it runs something more important")
        } else {
            Ok(busy)
        };
        (&host.name, able)
    });
    hosts.collect()
}

/// The host that is claimed. What runs there has to go, so it is the one with the least important, and of
/// these with the fewest.
fn host_to_claim(books: &Books, request: &Request) -> Result<String, String> {
    let hosts = claimable(books, request).into_iter();
    let able = hosts.filter_map(|(name, able)| Some((able.ok()?, name)));
    let why = "every host that would do is claimed already, or runs something more important: \
               release a claim, or add a host";
    let best = able.min().map(|(_, name)| name.clone());
    best.ok_or_else(|| why.to_owned())
}

#[cfg(test)]
#[path = "place_test.rs"]
mod tests;
