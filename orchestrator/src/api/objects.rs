//! What can be done with objects of any kind: the one way in which HTTP, controllers and agents change them.

use std::sync::Arc;

use serde_json::Value;

use super::error::ApiError;
use super::quota::{self, Turn};
use super::select::Selector;
use crate::model::{
    Event, FieldError, KINDS, Kind, Namespace, Object, Resource, Timestamp, is_label_value,
    is_name, kind_of, named, typed,
};
use crate::store::{AnyStore, Change, Changed, Entry, Expect, Revision, Room, StoreError, Watch};

/// Objects of a list that are read at once.
const PAGE: usize = 500;
/// How often a change is tried again that somebody else came before.
const TRIES: usize = 8;
/// Bytes of random numbers in a chosen name.
const SUFFIX: usize = 3;
/// Objects within objects. What is kept has to be read again, with what is written beside it.
const DEPTH: usize = 64;

/// All objects.
#[derive(Clone)]
pub struct Objects {
    store: AnyStore,
    /// Whoever changes what counts for a quota has the turn, so that no two are let in where there is room for one.
    turn: Arc<Turn>,
}

/// Some objects of a kind.
#[derive(Debug)]
pub struct List {
    /// They.
    pub objects: Vec<Object>,
    /// As of this commit.
    pub revision: Revision,
    /// Where to go on if there are more.
    pub next: Option<String>,
}

/// The part of an object that a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All but its status.
    Spec,
    /// Its status alone.
    Status,
    /// What it says, which is only read.
    Log,
    /// A command that is run in it.
    Exec,
    /// Its console.
    Console,
    /// Why it is where it is, which is only read.
    Explanation,
}

/// What happened to an object.
#[derive(Debug)]
pub enum Seen {
    /// It is there, or is selected now.
    Added(Object),
    /// It is another than it was.
    Modified(Object),
    /// It is gone, or not selected any more; this is the last of it.
    Deleted(Object),
}

impl Objects {
    /// Those of a store.
    pub fn new(store: AnyStore) -> Objects {
        Objects {
            store,
            turn: Arc::default(),
        }
    }

    /// Whether there is space for more of them.
    pub fn room(&self) -> Room {
        self.store.room()
    }

    /// One of them.
    ///
    /// # Errors
    /// [`ApiError::NotFound`].
    pub async fn get(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Object, ApiError> {
        let entry = self.store.get(&kind.key(namespace, name)).await?;
        let entry = entry.ok_or_else(|| ApiError::NotFound {
            kind,
            name: name.to_owned(),
        })?;
        decode(kind, &entry.value, entry.modified)
    }

    /// At most `limit` of those that are selected, in one namespace or, if that is empty, in all.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn list(
        &self,
        kind: &'static Kind,
        namespace: &str,
        selector: &Selector,
        limit: usize,
        after: &str,
    ) -> Result<List, ApiError> {
        let prefix = kind.prefix(namespace);
        let mut after = after.to_owned();
        let mut list = List {
            objects: Vec::new(),
            revision: Revision(0),
            next: None,
        };
        loop {
            let page = self.store.list(&prefix, &after, PAGE).await?;
            if list.revision == Revision(0) {
                // What changes while it is read comes again to those who watch from here on.
                list.revision = page.revision;
            }
            for Entry {
                key,
                value,
                modified,
                ..
            } in page.entries
            {
                let object = decode(kind, &value, modified)?;
                if selector.selects(&object) {
                    if list.objects.len() == limit {
                        list.next = Some(after);
                        return Ok(list);
                    }
                    list.objects.push(object);
                }
                after = key;
            }
            if !page.more {
                return Ok(list);
            }
        }
    }

    /// All objects of a type.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn all<R: Resource>(&self) -> Result<(Vec<Object>, Revision), ApiError> {
        let all = Selector::default();
        let list = self.list(kind_of::<R>(), "", &all, usize::MAX, "").await?;
        Ok((list.objects, list.revision))
    }

    /// Makes one.
    ///
    /// # Errors
    /// If it cannot be so, or is there already.
    pub async fn create(&self, mut object: Object, dry_run: bool) -> Result<Object, ApiError> {
        let kind = object.kind;
        let meta = &mut object.meta;
        if meta.name.is_empty() && !meta.generate_name.is_empty() {
            meta.name = format!("{}{}", meta.generate_name, random(SUFFIX));
        }
        meta.uid = uid();
        meta.generation = 1;
        meta.creation_timestamp = Some(Timestamp::now());
        meta.deletion_timestamp = None;
        meta.resource_version.clear();
        for finalizer in kind.finalizers {
            if !meta.finalizers.iter().any(|f| f == finalizer) {
                meta.finalizers.push((*finalizer).to_owned());
            }
        }
        if kind.has_status && kind.namespaced {
            object.body.remove("status");
        }
        let mut object = checked(object)?;
        if kind.namespaced {
            self.namespace_exists(&object.meta.namespace).await?;
        }
        let _turn = quota::admit(self, &self.turn, &object, None).await?;
        let value = encode(&object);
        let key = object.key();
        if dry_run {
            return match self.store.get(&key).await? {
                None => Ok(object),
                Some(_) => Err(exists(object)),
            };
        }
        match self
            .store
            .commit(vec![Change::put(key, Expect::Absent, value)])
            .await
        {
            Ok(revision) => {
                object.meta.resource_version = revision.0.to_string();
                Ok(object)
            }
            Err(StoreError::Conflict { .. }) => Err(exists(object)),
            Err(e) => Err(e.into()),
        }
    }

    async fn namespace_exists(&self, namespace: &str) -> Result<(), ApiError> {
        let Some(kind) = named("namespaces") else {
            return Ok(());
        };
        self.get(kind, "", namespace).await.map(drop)
    }

    /// Changes one: `change` is given what it is, and may be asked again if somebody else came before.
    ///
    /// # Errors
    /// As `change` refuses; if it cannot be so, or is not there.
    pub async fn change(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        part: Part,
        dry_run: bool,
        mut change: impl FnMut(&Object) -> Result<Object, ApiError>,
    ) -> Result<Object, ApiError> {
        for _ in 0..TRIES {
            let old = self.get(kind, namespace, name).await?;
            let new = change(&old)?;
            let expected = &new.meta.resource_version;
            if !expected.is_empty() && *expected != old.meta.resource_version {
                return Err(conflict(
                    &old,
                    "the object has been modified; please apply your changes to the latest version and try again",
                ));
            }
            if !new.meta.uid.is_empty() && new.meta.uid != old.meta.uid {
                return Err(conflict(&old, "it is another object of the same name"));
            }
            let mut next = succeed(&old, new, part)?;
            let grows = part == Part::Spec && next.meta.generation != old.meta.generation;
            let _turn = match grows {
                true => quota::admit(self, &self.turn, &next, Some(&old)).await?,
                false => None,
            };
            if next == old || dry_run {
                return Ok(next);
            }
            let at = Expect::At(revision_of(&old));
            let ends = next.meta.deletion_timestamp.is_some() && next.meta.finalizers.is_empty();
            let change = match ends {
                true => Change::delete(old.key(), at),
                false => Change::put(old.key(), at, encode(&next)),
            };
            match self.store.commit(vec![change]).await {
                Ok(revision) => {
                    next.meta.resource_version = revision.0.to_string();
                    return Ok(next);
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(ApiError::Conflict {
            kind,
            name: name.to_owned(),
            message: "others change it again and again: try again".to_owned(),
        })
    }

    /// Changes a status.
    ///
    /// # Errors
    /// If the object is not there.
    pub async fn set_status(&self, object: &Object, status: Value) -> Result<Object, ApiError> {
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        let uid = &object.meta.uid;
        self.change(object.kind, namespace, name, Part::Status, false, |old| {
            let mut new = old.clone();
            new.meta.resource_version.clear();
            new.meta.uid.clone_from(uid);
            new.body.insert("status".to_owned(), status.clone());
            Ok(new)
        })
        .await
    }

    /// Refuses to let a tenant go that still has something. What happened there goes with it.
    pub(super) async fn is_empty(&self, namespace: &str) -> Result<(), ApiError> {
        let owned = KINDS
            .iter()
            .filter(|kind| kind.namespaced && *kind != kind_of::<Event>());
        for kind in owned {
            let page = self.store.list(&kind.prefix(namespace), "", 1).await?;
            if let Some(entry) = page.entries.first() {
                let object = decode(kind, &entry.value, entry.modified)?;
                return Err(ApiError::Conflict {
                    kind: kind_of::<Namespace>(),
                    name: namespace.to_owned(),
                    message: format!("{} is there: delete what it has first", object.shown()),
                });
            }
        }
        Ok(())
    }

    /// Says that somebody has cleaned up.
    ///
    /// # Errors
    /// If it is not there any more.
    pub async fn finalized(&self, object: &Object, finalizer: &str) -> Result<(), ApiError> {
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        let done = self.change(object.kind, namespace, name, Part::Spec, false, |old| {
            let mut new = old.clone();
            new.meta.finalizers.retain(|f| f != finalizer);
            Ok(new)
        });
        done.await.map(drop)
    }

    /// What happens to all that is stored from a commit on.
    pub(super) async fn watch_all(&self, from: Revision) -> Result<Box<dyn Watch>, ApiError> {
        Ok(self.store.watch("", from).await?)
    }

    /// What happens to objects of a kind from a commit on.
    ///
    /// # Errors
    /// If that far back is not known any more.
    pub async fn watch(
        &self,
        kind: &'static Kind,
        namespace: &str,
        selector: Selector,
        from: Revision,
    ) -> Result<ObjectWatch, ApiError> {
        let watch = self.store.watch(&kind.prefix(namespace), from).await?;
        Ok(ObjectWatch {
            kind,
            selector,
            watch,
        })
    }
}

/// What happens to objects of a kind.
pub struct ObjectWatch {
    kind: &'static Kind,
    selector: Selector,
    watch: Box<dyn Watch>,
}

impl ObjectWatch {
    /// Waits for the next.
    ///
    /// # Errors
    /// If it was too slow: list again.
    pub async fn next(&mut self) -> Result<Vec<Seen>, ApiError> {
        loop {
            let (changes, _) = self.watch.next().await?;
            let mut seen = Vec::with_capacity(changes.len());
            for change in changes {
                seen.extend(self.judge(change)?);
            }
            if !seen.is_empty() {
                return Ok(seen);
            }
        }
    }

    fn judge(&self, change: Changed) -> Result<Option<Seen>, ApiError> {
        let object = |bytes: Option<Vec<u8>>| {
            let decoded = bytes.map(|bytes| decode(self.kind, &bytes, change.revision));
            let decoded = decoded.transpose()?;
            Ok::<_, ApiError>(decoded.filter(|object| self.selector.selects(object)))
        };
        Ok(match (object(change.before)?, object(change.value)?) {
            (None, Some(new)) => Some(Seen::Added(new)),
            // Deleted and made again in one commit: the other one.
            (Some(_), Some(new)) => Some(Seen::Modified(new)),
            (Some(old), None) => Some(Seen::Deleted(old)),
            (None, None) => None,
        })
    }
}

/// What an object becomes.
fn succeed(old: &Object, new: Object, part: Part) -> Result<Object, ApiError> {
    let mut next = old.clone();
    if part == Part::Status {
        match new.body.get("status") {
            Some(status) => next.body.insert("status".into(), status.clone()),
            None => next.body.remove("status"),
        };
        return checked(next);
    }
    let (meta, given) = (&mut next.meta, new.meta);
    meta.labels = given.labels;
    meta.annotations = given.annotations;
    meta.finalizers = given.finalizers;
    meta.owner_references = given.owner_references;
    if given.managed_fields.is_some() {
        meta.managed_fields = given.managed_fields;
    }
    if meta.deletion_timestamp.is_none() {
        meta.deletion_timestamp = given.deletion_timestamp;
    }
    if meta.deletion_timestamp.is_some() {
        meta.deletion_grace_period_seconds = given.deletion_grace_period_seconds;
    }
    next.body = new.body;
    if old.kind.has_status {
        match old.body.get("status") {
            Some(status) => next.body.insert("status".into(), status.clone()),
            None => next.body.remove("status"),
        };
    }
    let mut next = checked(next)?;
    if next.body != old.body {
        let (kind, name) = (old.kind, next.meta.name.clone());
        let fields = kind.change(&old.body, &next.body);
        if !fields.is_empty() {
            return Err(ApiError::Invalid { kind, name, fields });
        }
        next.meta.generation += 1;
    }
    Ok(next)
}

/// The object with all that was left out, if it can be.
fn checked(object: Object) -> Result<Object, ApiError> {
    let (kind, name) = (object.kind, object.meta.name.clone());
    let mut wrong: Vec<FieldError> = Vec::new();
    let mut must = |good: bool, field: &str, message: &str| {
        if !good {
            wrong.push(FieldError {
                field: field.to_owned(),
                message: message.to_owned(),
            });
        }
    };
    let meta = &object.meta;
    must(
        is_name(&name),
        "metadata.name",
        "it must be a name of a-z, 0-9, - and ., such as web-1",
    );
    let namespace = &meta.namespace;
    match kind.namespaced {
        true => must(
            is_name(namespace) && !namespace.contains('.'),
            "metadata.namespace",
            "it must be a name of a-z, 0-9 and -",
        ),
        false => must(
            namespace.is_empty(),
            "metadata.namespace",
            "this kind belongs to no namespace",
        ),
    }
    for (n, owner) in meta.owner_references.iter().enumerate() {
        let whole = [&owner.api_version, &owner.kind, &owner.name, &owner.uid];
        must(
            whole.iter().all(|word| !word.is_empty()),
            &format!("metadata.ownerReferences[{n}]"),
            "it must have apiVersion, kind, name and uid of the owner",
        );
    }
    for (key, value) in &meta.labels {
        let key_good = key.rsplit_once('/').map_or(key.as_str(), |(_, name)| name);
        let good = !key_good.is_empty() && is_label_value(key_good) && is_label_value(value);
        must(
            good,
            "metadata.labels",
            &format!("`{key}: {value}` is no label: 63 of letters, digits, -, _ and ."),
        );
    }
    let shallow = object.body.values().all(|value| is_shallow(value, DEPTH));
    must(shallow, "", &format!("it is nested more than {DEPTH} deep"));
    if !wrong.is_empty() {
        return Err(ApiError::Invalid {
            kind,
            name,
            fields: wrong,
        });
    }
    let accepted = object.accepted();
    accepted.map_err(|fields| ApiError::Invalid { kind, name, fields })
}

fn is_shallow(value: &Value, depth: usize) -> bool {
    let left = depth.checked_sub(1);
    match (value, left) {
        (Value::Array(items), Some(left)) => items.iter().all(|value| is_shallow(value, left)),
        (Value::Object(map), Some(left)) => map.values().all(|value| is_shallow(value, left)),
        (Value::Array(_) | Value::Object(_), None) => false,
        _ => true,
    }
}

fn exists(object: Object) -> ApiError {
    ApiError::Exists {
        kind: object.kind,
        name: object.meta.name,
    }
}

fn conflict(object: &Object, message: &str) -> ApiError {
    ApiError::Conflict {
        kind: object.kind,
        name: object.meta.name.clone(),
        message: message.to_owned(),
    }
}

/// The commit that changed an object last.
pub fn revision_of(object: &Object) -> Revision {
    Revision(object.meta.resource_version.parse().unwrap_or(0))
}

fn encode(object: &Object) -> Vec<u8> {
    let mut value = object.to_value();
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        // It is the commit that it is kept with.
        meta.remove("resourceVersion");
    }
    serde_json::to_vec(&value).unwrap_or_default()
}

pub(super) fn decode(
    kind: &'static Kind,
    bytes: &[u8],
    modified: Revision,
) -> Result<Object, ApiError> {
    let damaged = |what: String| {
        ApiError::Store(StoreError::Damaged {
            path: kind.resource(),
            what,
        })
    };
    let value: Value = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    let object = Object::from_value(kind, value);
    let mut object = object.map_err(|e| damaged(e.to_string()))?;
    object.meta.resource_version = modified.0.to_string();
    Ok(object)
}

/// So many random bytes, in hexadecimal.
fn random(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    // It fails only where the kernel's generator is not ready yet, which is over long before.
    let _ = rustix::rand::getrandom(&mut buffer, rustix::rand::GetRandomFlags::empty());
    buffer.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A random UUID (RFC 9562 §5.4).
fn uid() -> String {
    let digits = random(16);
    let variant = match digits.as_bytes()[16] & 3 {
        0 => '8',
        1 => '9',
        2 => 'a',
        _ => 'b',
    };
    format!(
        "{}-{}-4{}-{variant}{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[13..16],
        &digits[17..20],
        &digits[20..]
    )
}

/// The typed rest of an object that was accepted.
///
/// # Errors
/// If another version of the type wrote it.
pub fn rest<R: Resource>(object: &Object) -> Result<R, ApiError> {
    typed(object).map_err(|field| ApiError::Invalid {
        kind: object.kind,
        name: object.meta.name.clone(),
        fields: vec![field],
    })
}
