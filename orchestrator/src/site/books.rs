//! The scheduler's books: hosts, and what has a place on them. They are kept between requests, and follow what
//! happens; where that cannot be, they are made anew.

use std::collections::{BTreeMap, HashMap};

use super::request::{held_to, inventory, request};
use crate::api::{ApiError, Follow, Objects, Turn, revision_of};
use crate::model::{BareMetal, Container, Host, Kind, MicroVM, Object, kind_of};
use crate::schedule::{self, Cluster, Policy, Preemption, Refusal, Request, Toleration};
use crate::store::Revision;

/// What has, wants or has to leave a place.
pub struct Work {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it has its place; empty if nowhere.
    pub host: String,
    /// The host that it has to leave.
    pub leaving: String,
    /// What it asks for.
    pub request: Request,
    /// The commit that this is of.
    revision: Revision,
}

impl Work {
    /// A workload, by its object.
    pub fn of(object: &Object) -> Result<Work, ApiError> {
        let (request, status) = request(object)?;
        Ok(Work {
            kind: object.kind,
            namespace: object.meta.namespace.clone(),
            name: object.meta.name.clone(),
            host: status.host,
            leaving: status.leaving_host,
            request,
            revision: revision_of(object),
        })
    }

    /// What it is called in messages.
    pub fn shown(&self) -> String {
        format!("{} {}/{}", self.kind.singular, self.namespace, self.name)
    }
}

/// The books.
pub struct Books {
    /// Hosts, and what has a place there.
    pub cluster: Cluster,
    /// The hosts by name, with their claims.
    pub hosts: BTreeMap<String, schedule::Host>,
    /// VMs, containers and claims by their keys.
    pub works: HashMap<String, Work>,
    follow: Follow,
    /// Something happened that these books cannot follow.
    stale: bool,
}

impl Books {
    /// The books of all that is stored.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn open(objects: &Objects) -> Result<Books, ApiError> {
        let kinds = [
            kind_of::<Host>(),
            kind_of::<BareMetal>(),
            kind_of::<MicroVM>(),
            kind_of::<Container>(),
        ];
        let (all, mut follow) = objects.follow(&kinds).await?;
        // What changed while it was listed is entered with the rest, so that it is entered once.
        let mut newest: BTreeMap<String, Object> = all
            .into_iter()
            .map(|object| (object.key(), object))
            .collect();
        while let Some(turns) = follow.more(Revision(0)).await? {
            for turn in turns {
                let known = newest.get(&turn.key).map(revision_of);
                if known.is_some_and(|known| known >= turn.revision) {
                    continue;
                }
                match turn.gone {
                    true => drop(newest.remove(&turn.key)),
                    false => drop(newest.insert(turn.key, turn.object)),
                }
            }
        }
        let mut books = Books {
            cluster: Cluster::new(Policy::default()),
            hosts: BTreeMap::new(),
            works: HashMap::new(),
            follow,
            stale: false,
        };
        books.enter_all(newest)?;
        Ok(books)
    }

    fn enter_all(&mut self, objects: BTreeMap<String, Object>) -> Result<(), ApiError> {
        let mut works = Vec::new();
        for (key, object) in objects {
            if object.kind == kind_of::<Host>() {
                let host = inventory(&object)?;
                self.hosts.insert(host.name.clone(), host);
            } else {
                works.push((key, Work::of(&object)?));
            }
        }
        let claims = works.iter().filter(|(_, work)| is_claim(work));
        for (_, claim) in claims {
            if let Some(host) = self.hosts.get_mut(&claim.host) {
                host.claimed = true;
            }
        }
        for host in self.hosts.values() {
            if let Err(e) = self.cluster.add_host(host) {
                log::warn!("host {} takes nothing: {e}", host.name);
            }
        }
        for (key, work) in works {
            self.enter(key, work);
        }
        Ok(())
    }

    /// Enters a workload as it is.
    fn enter(&mut self, key: String, work: Work) {
        // On a claimed host nothing else is to be counted.
        let claimed = self.hosts.get(&work.host).is_some_and(|host| host.claimed);
        if !work.host.is_empty() && !claimed && !is_claim(&work) {
            self.count(&work.request, &work.host);
        }
        self.works.insert(key, work);
    }

    /// Gives a request a place; with the names of those who have to go for it.
    pub fn place(&mut self, request: &Request) -> Result<(String, Vec<String>), Refusal> {
        if request.preemption == Preemption::Never {
            let placement = self.cluster.place(request)?;
            return Ok((placement.host, Vec::new()));
        }
        let preempted = self.cluster.preempt(request)?;
        let victims = preempted.victims.into_iter().map(|victim| victim.id);
        Ok((preempted.placement.host, victims.collect()))
    }

    /// Counts what has a place, whatever keeps others from it; false if there is no room for it.
    fn count(&mut self, request: &Request, host: &str) -> bool {
        let cordoned = self.hosts.get(host).is_some_and(|host| host.cordoned);
        let held = Request {
            hosts: held_to(host),
            tolerations: vec![Toleration::default()],
            ..request.clone()
        };
        // A cordon keeps out what is new, and this is not.
        let _ = self.cluster.cordon(host, false);
        let mut counted = self.cluster.place(&held);
        if counted.is_err() {
            // What it has written, and the huge pages that it has, are not free any more: they are counted already.
            counted = self.cluster.place(&Request {
                disk: 0,
                huge_2m: 0,
                ..held
            });
        }
        let _ = self.cluster.cordon(host, cordoned);
        if let Err(e) = &counted {
            log::debug!("{e}");
        }
        counted.is_ok()
    }

    /// Follows what happened, at least up to a commit; whether these books are still right.
    ///
    /// # Errors
    /// If it was too slow.
    pub async fn catch_up(&mut self, revision: Revision) -> Result<bool, ApiError> {
        while let Some(turns) = self.follow.more(revision).await? {
            for turn in turns {
                self.enter_turn(turn)?;
            }
        }
        Ok(!self.stale)
    }

    fn enter_turn(&mut self, turn: Turn) -> Result<(), ApiError> {
        let Turn {
            key,
            revision,
            object,
            gone,
        } = turn;
        if object.kind == kind_of::<Host>() {
            return self.enter_host(&object, gone);
        }
        let old = self.works.get(&key);
        if old.is_some_and(|old| old.revision >= revision) {
            return Ok(());
        }
        if gone {
            let old = self.works.remove(&key);
            let _ = self.cluster.release(&key);
            self.stale |= old.is_some_and(|old| is_claim(&old) && !old.host.is_empty());
            return Ok(());
        }
        let work = Work::of(&object)?;
        let Some(old) = self.works.get_mut(&key) else {
            self.stale |= is_claim(&work) && !work.host.is_empty();
            self.enter(key, work);
            return Ok(());
        };
        if is_claim(&work) {
            // Which hosts are claimed is said when the books are made.
            self.stale |= work.host != old.host;
            *old = work;
            return Ok(());
        }
        if (&old.host, &old.request) == (&work.host, &work.request) {
            (old.leaving, old.revision) = (work.leaving, revision);
            return Ok(());
        }
        let before = std::mem::replace(old, work);
        let _ = self.cluster.release(&key);
        let Some(work) = self.works.remove(&key) else {
            return Ok(());
        };
        let (host, stays) = (work.host.clone(), before.host == work.host);
        self.enter(key.clone(), work);
        if stays && !host.is_empty() && self.cluster.find(&key).is_none() {
            // It has grown beyond its host. What runs is what it was.
            self.count(&before.request, &host);
        }
        Ok(())
    }

    fn enter_host(&mut self, object: &Object, gone: bool) -> Result<(), ApiError> {
        let name = &object.meta.name;
        let Some(old) = self.hosts.get_mut(name) else {
            self.stale |= !gone;
            return Ok(());
        };
        let mut host = inventory(object)?;
        host.claimed = old.claimed;
        let same = schedule::Host {
            labels: host.labels.clone(),
            taints: host.taints.clone(),
            cordoned: host.cordoned,
            ..old.clone()
        } == host;
        if gone || !same {
            // It is another one, of which nothing is counted yet.
            self.stale = true;
            return Ok(());
        }
        let changed = self.cluster.cordon(name, host.cordoned).and_then(|()| {
            self.cluster
                .relabel(name, host.labels.clone(), host.taints.clone())
        });
        self.stale |= changed.is_err();
        *old = host;
        Ok(())
    }

    /// The workloads that have still to leave a host.
    pub fn leaving(&self, host: &str) -> Vec<String> {
        let leaving = self.works.values().filter(|work| work.leaving == host);
        let mut names: Vec<String> = leaving.map(Work::shown).collect();
        names.sort();
        names
    }
}

fn is_claim(work: &Work) -> bool {
    work.kind == kind_of::<BareMetal>()
}
