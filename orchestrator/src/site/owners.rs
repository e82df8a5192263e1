//! Objects that belong to others go with them. What is looked at is what there is: whatever was missed is seen
//! at the next look.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::api::{ApiError, Deletion, Objects, Part, Turn, revision_of};
use crate::model::{
    Event, FOREGROUND, KINDS, Kind, Namespace, ORPHAN, Object, OwnerReference, kind_of,
};
use crate::store::Revision;

/// Between attempts when something could not be done.
const REST: Duration = Duration::from_secs(1);

/// Who lets what belongs to others go with them.
pub struct Owners {
    objects: Objects,
}

/// What is known of an object.
struct Known {
    kind: &'static Kind,
    namespace: String,
    name: String,
    uid: String,
    revision: Revision,
    owners: Vec<OwnerReference>,
    /// It is to go.
    going: bool,
    /// What becomes of its dependents before it goes, if that is to be seen to.
    held: Option<&'static str>,
}

impl Known {
    fn of(object: &Object) -> Known {
        let meta = &object.meta;
        let going = meta.deletion_timestamp.is_some();
        let has = |word: &&str| meta.finalizers.iter().any(|finalizer| finalizer == word);
        Known {
            kind: object.kind,
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            revision: revision_of(object),
            owners: meta.owner_references.clone(),
            going,
            held: [ORPHAN, FOREGROUND].into_iter().find(has).filter(|_| going),
        }
    }

    /// Whether it may belong to another one: of its own tenant, or of none.
    fn may_belong_to(&self, owner: &Known) -> bool {
        owner.namespace.is_empty() || owner.namespace == self.namespace
    }
}

/// All objects, by their keys.
#[derive(Default)]
struct All {
    known: HashMap<String, Known>,
    uids: HashMap<String, String>,
    /// Those that belong to others.
    owned: BTreeSet<String>,
    /// Those that are to go, and whose dependents have to be seen to before.
    held: BTreeSet<String>,
}

impl All {
    fn enter(&mut self, key: String, known: Known) {
        self.strike(&key);
        self.uids.insert(known.uid.clone(), key.clone());
        if !known.owners.is_empty() {
            self.owned.insert(key.clone());
        }
        if known.held.is_some() {
            self.held.insert(key.clone());
        }
        self.known.insert(key, known);
    }

    fn strike(&mut self, key: &str) {
        if let Some(old) = self.known.remove(key) {
            self.uids.remove(&old.uid);
        }
        self.owned.remove(key);
        self.held.remove(key);
    }

    /// Enters what happened; whether anything may follow from it.
    fn turn(&mut self, turn: Turn) -> bool {
        let old = self.known.get(&turn.key);
        if old.is_some_and(|old| old.revision >= turn.revision) {
            return false;
        }
        if turn.gone {
            self.strike(&turn.key);
            return true;
        }
        let known = Known {
            revision: turn.revision,
            ..Known::of(&turn.object)
        };
        let follows = !known.owners.is_empty() || known.held.is_some();
        self.enter(turn.key, known);
        follows
    }

    /// Whether an owner is there, for something of a namespace. One of a kind that is not served here is known to others only.
    fn is_there(&self, owner: &OwnerReference, namespace: &str) -> bool {
        if kind_of_owner(owner).is_none() {
            return true;
        }
        let key = self.uids.get(&owner.uid);
        let known = key.and_then(|key| self.known.get(key));
        known.is_some_and(|known| known.namespace.is_empty() || known.namespace == namespace)
    }

    /// Those that belong to others who are all gone.
    fn left_behind(&self) -> Vec<&Known> {
        let owned = self.owned.iter().filter_map(|key| self.known.get(key));
        let left = owned.filter(|known| {
            let mut owners = known.owners.iter();
            !owners.any(|owner| self.is_there(owner, &known.namespace))
        });
        left.filter(|known| !known.going).collect()
    }

    fn dependents(&self, owner: &Known) -> Vec<&Known> {
        let owned = self.owned.iter().filter_map(|key| self.known.get(key));
        let theirs = |known: &&Known| {
            known.may_belong_to(owner) && known.owners.iter().any(|one| one.uid == owner.uid)
        };
        owned.filter(theirs).collect()
    }
}

/// The kinds that may own, and be owned. What happened belongs to nobody.
fn followed() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(|kind| *kind != kind_of::<Event>())
}

/// The kind of an owner, if it is served here.
fn kind_of_owner(owner: &OwnerReference) -> Option<&'static Kind> {
    followed().find(|kind| kind.kind == owner.kind && kind.api_version() == owner.api_version)
}

impl Owners {
    /// Those of these objects.
    pub fn new(objects: Objects) -> Owners {
        Owners { objects }
    }

    /// Works for ever.
    pub async fn run(self) {
        loop {
            match self.rounds().await {
                Err(ApiError::Gone(_)) => {}
                Err(e) => {
                    log::error!("what belongs to others is looked at again: {e}");
                    tokio::time::sleep(REST).await;
                }
                Ok(never) => match never {},
            }
        }
    }

    async fn rounds(&self) -> Result<std::convert::Infallible, ApiError> {
        let kinds: Vec<&'static Kind> = followed().collect();
        let (objects, mut follow) = self.objects.follow(&kinds).await?;
        let mut all = All::default();
        for object in &objects {
            all.enter(object.key(), Known::of(object));
        }
        while let Some(turns) = follow.more(Revision(0)).await? {
            for turn in turns {
                all.turn(turn);
            }
        }
        let mut due = true;
        loop {
            if due {
                due = !self.sweep(&all).await;
            }
            tokio::select! {
                turns = follow.next() => {
                    for turn in turns? {
                        due |= all.turn(turn);
                    }
                }
                () = tokio::time::sleep(REST), if due => {}
            }
        }
    }

    /// Does what follows from what there is; false if something has to be tried again.
    async fn sweep(&self, all: &All) -> bool {
        let mut done = true;
        for key in &all.held {
            if let Some(owner) = all.known.get(key) {
                done &= self.see_to(all, owner).await;
            }
        }
        for known in all.left_behind() {
            log::info!(
                "{} {}: its owners are gone",
                known.kind.singular,
                known.name
            );
            done &= self.end(all, known, "").await;
        }
        done
    }

    /// Sees to the dependents of what is to go, and lets it go when that is done.
    async fn see_to(&self, all: &All, owner: &Known) -> bool {
        let Some(held) = owner.held else { return true };
        let dependents = all.dependents(owner);
        let (mut done, mut waits) = (true, false);
        for known in dependents {
            let others = known.owners.iter().filter(|other| other.uid != owner.uid);
            let kept = held == ORPHAN
                || others
                    .clone()
                    .any(|other| all.is_there(other, &known.namespace));
            if kept {
                done &= self.free(known, &owner.uid).await;
                continue;
            }
            let blocks = |one: &OwnerReference| {
                one.uid == owner.uid && one.block_owner_deletion == Some(true)
            };
            waits |= known.owners.iter().any(blocks);
            if !known.going {
                done &= self.end(all, known, &owner.uid).await;
            }
        }
        if !done || waits {
            // The end of each is seen.
            return done;
        }
        let named = self
            .objects
            .get(owner.kind, &owner.namespace, &owner.name)
            .await;
        let finalized = match named {
            Ok(object) if object.meta.uid == owner.uid => {
                self.objects.finalized(&object, held).await
            }
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        settled(owner, finalized)
    }

    /// Deletes what belongs to nobody any more, but for one who is to go.
    async fn end(&self, all: &All, known: &Known, but: &str) -> bool {
        if known.kind == kind_of::<Namespace>() {
            // A tenant is more than what belongs to somebody.
            return true;
        }
        let deletion = Deletion {
            uid: &known.uid,
            ..Deletion::default()
        };
        match self.has_new_owner(all, known, but).await {
            Ok(false) => {}
            // It is seen soon.
            Ok(true) => return true,
            Err(e) => return settled(known, Err(e)),
        }
        let lonely = |object: &Object| {
            let owners = &object.meta.owner_references;
            let there =
                |owner: &OwnerReference| owner.uid != but && all.is_there(owner, &known.namespace);
            !owners.is_empty() && !owners.iter().any(there)
        };
        let (kind, namespace, name) = (known.kind, &known.namespace, &known.name);
        let ended = self
            .objects
            .delete_if(kind, namespace, name, &deletion, lonely);
        settled(known, ended.await.map(drop))
    }

    /// Whether an object belongs to somebody who has come since all were looked at.
    async fn has_new_owner(&self, all: &All, known: &Known, but: &str) -> Result<bool, ApiError> {
        let (kind, namespace) = (known.kind, &known.namespace);
        let object = self.objects.get(kind, namespace, &known.name).await?;
        for owner in &object.meta.owner_references {
            let Some(kind) = kind_of_owner(owner) else {
                continue;
            };
            if owner.uid == but || all.is_there(owner, namespace) {
                continue;
            }
            let namespace = if kind.namespaced { namespace } else { "" };
            match self.objects.get(kind, namespace, &owner.name).await {
                Ok(found) if found.meta.uid == owner.uid => return Ok(true),
                Ok(_) | Err(ApiError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }

    /// Lets an object belong to one owner less.
    async fn free(&self, known: &Known, owner: &str) -> bool {
        let change = |old: &Object| {
            let mut new = old.clone();
            new.meta.uid.clone_from(&known.uid);
            new.meta.owner_references.retain(|one| one.uid != owner);
            Ok(new)
        };
        let (kind, namespace, name) = (known.kind, &known.namespace, &known.name);
        let freed = self
            .objects
            .change(kind, namespace, name, Part::Spec, false, change);
        settled(known, freed.await.map(drop))
    }
}

/// Whether there is nothing more to do: what is gone, or another one by now, is well.
fn settled(known: &Known, done: Result<(), ApiError>) -> bool {
    match done {
        Ok(()) | Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => true,
        Err(e) => {
            log::warn!("{} {}: {e}", known.kind.singular, known.name);
            false
        }
    }
}

#[cfg(test)]
#[path = "owners_test.rs"]
mod tests;
