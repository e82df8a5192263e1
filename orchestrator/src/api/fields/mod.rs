//! Who said what of an object: the owners of its fields, and what an apply makes of it (Kubernetes's
//! server-side apply). Nothing here does any I/O.
//!
//! A status has no owners: only one agent writes it.

mod lists;
mod set;

use serde_json::{Map, Value};

use self::lists::merge;
use self::set::FieldSet;
use crate::model::{ManagedFields, Object, Timestamp};

/// Owners of an object that are told apart; beyond that the oldest are counted together.
const OWNERS: usize = 20;
/// Whose name those have.
const ANCIENT: &str = "ancient-changes";
/// Letters of an owner's name.
const MAX_NAME: usize = 128;
/// What owners have of the metadata.
const META: [&str; 4] = ["labels", "annotations", "finalizers", "ownerReferences"];
const APPLY: &str = "Apply";
const UPDATE: &str = "Update";

/// A field that an apply would take from somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Whose it is.
    pub owner: String,
    /// With which version.
    pub api_version: String,
    /// Where: `.spec.cpus`.
    pub field: String,
}

/// What an object becomes by an apply, which may be `forced`.
///
/// # Errors
/// The fields that others have, and say otherwise.
pub fn apply(
    old: &Object,
    applied: &Value,
    owner: &str,
    forced: bool,
) -> Result<Value, Vec<Conflict>> {
    let mut value = old.to_value();
    let (live, applied) = (part(&value), said(part(applied)));
    let set = FieldSet::of(&applied);
    let mut merged = live.clone();
    merge(&mut merged, &applied);
    // What others say the same is theirs as well as this owner's; but a value that gets parts, or the other way
    // round, is not what it was.
    let lost = FieldSet::of(&live).without(&FieldSet::of(&merged));
    let taken = FieldSet::changed(&live, &merged).and(&set).or(&lost);
    let mut owners = old.meta.managed_fields.clone().unwrap_or_default();
    let (mut before, mut others) = (FieldSet::default(), FieldSet::default());
    let mut conflicts = Vec::new();
    for entry in &mut owners {
        let fields = FieldSet::from_value(&entry.fields_v1);
        if is(entry, owner, APPLY) {
            before = fields;
            continue;
        }
        let both = fields.and(&taken);
        conflicts.extend(both.shown().into_iter().map(|field| Conflict {
            owner: entry.manager.clone(),
            api_version: entry.api_version.clone(),
            field,
        }));
        let fields = fields.without(&both);
        entry.fields_v1 = fields.to_value();
        others = others.or(&fields);
    }
    if !conflicts.is_empty() && !forced {
        return Err(conflicts);
    }
    // What this owner said before and does not say any more goes, unless others say it, too.
    let gone = before.unowned(&set).unowned(&others);
    gone.take_from(&mut merged);
    put(&mut value, merged);
    note(&mut owners, owner, APPLY, &set, old);
    keep(&mut owners, &FieldSet::of(&part(&value)));
    value["metadata"]["managedFields"] = serde_json::to_value(owners).unwrap_or_default();
    Ok(value)
}

/// The owners of an object that is made by an apply.
pub fn applied(new: &Object, owner: &str) -> Vec<ManagedFields> {
    let mut owners = Vec::new();
    let set = FieldSet::of(&said(part(&new.to_value())));
    note(&mut owners, owner, APPLY, &set, new);
    owners
}

/// The owners of an object that somebody has made, or changed otherwise: what is another now is that one's.
pub fn updated(old: Option<&Object>, new: &Object, owner: &str) -> Vec<ManagedFields> {
    let now = part(&new.to_value());
    let all = FieldSet::of(&now);
    let then = old.map_or(Value::Object(Map::new()), |old| part(&old.to_value()));
    let changed = FieldSet::changed(&then, &now).and(&all);
    // Whoever moves fields from one owner to another says so in the object.
    let given = new.meta.managed_fields.clone();
    let known = || old.and_then(|old| old.meta.managed_fields.clone());
    let mut owners = match old {
        Some(_) => given.or_else(known).unwrap_or_default(),
        None => Vec::new(),
    };
    let mut mine = changed.clone();
    for entry in &mut owners {
        let fields = FieldSet::from_value(&entry.fields_v1);
        match is(entry, owner, UPDATE) {
            true => mine = mine.or(&fields),
            false => entry.fields_v1 = fields.without(&changed).to_value(),
        }
    }
    if !changed.is_empty() {
        note(&mut owners, owner, UPDATE, &mine, new);
    }
    keep(&mut owners, &all);
    owners
}

/// An owner's name as it is kept: that which is given, or that of the program, or none of both.
pub fn owner_of(given: &str, user_agent: &str) -> String {
    let program = user_agent.split('/').next().unwrap_or_default();
    let names = [given, program, "unknown"].into_iter();
    let name = names.map(str::trim).find(|name| !name.is_empty());
    let letters = name.unwrap_or_default().chars();
    let letters = letters.filter(|letter| !letter.is_control());
    letters.take(MAX_NAME).collect()
}

fn is(entry: &ManagedFields, owner: &str, operation: &str) -> bool {
    entry.manager == owner && entry.operation == operation && entry.subresource.is_empty()
}

/// Notes what an owner has.
fn note(
    owners: &mut Vec<ManagedFields>,
    owner: &str,
    operation: &str,
    set: &FieldSet,
    object: &Object,
) {
    let fields = set.to_value();
    let entry = ManagedFields {
        manager: owner.to_owned(),
        operation: operation.to_owned(),
        api_version: object.kind.api_version(),
        time: Some(Timestamp::now()),
        fields_type: "FieldsV1".to_owned(),
        fields_v1: fields,
        subresource: String::new(),
    };
    match owners.iter_mut().find(|entry| is(entry, owner, operation)) {
        // Nothing moves if it was said before.
        Some(found) if found.fields_v1 == entry.fields_v1 => {}
        Some(found) => *found = entry,
        None => owners.push(entry),
    }
    while owners.len() > OWNERS {
        let old = owners
            .iter()
            .enumerate()
            .filter(|(_, entry)| !is(entry, ANCIENT, UPDATE) && !is(entry, owner, operation));
        let Some((at, _)) = old.min_by_key(|(_, entry)| entry.time) else {
            return;
        };
        let mut oldest = owners.remove(at);
        match owners.iter_mut().find(|entry| is(entry, ANCIENT, UPDATE)) {
            Some(ancient) => {
                let both = FieldSet::from_value(&ancient.fields_v1);
                ancient.fields_v1 = both.or(&FieldSet::from_value(&oldest.fields_v1)).to_value();
            }
            None => {
                ANCIENT.clone_into(&mut oldest.manager);
                UPDATE.clone_into(&mut oldest.operation);
                owners.push(oldest);
            }
        }
    }
}

/// Keeps of what owners have what there is; and no owner that has nothing.
fn keep(owners: &mut Vec<ManagedFields>, all: &FieldSet) {
    owners.retain_mut(|entry| {
        let left = FieldSet::from_value(&entry.fields_v1).and(all);
        entry.fields_v1 = left.to_value();
        !left.is_empty()
    });
}

/// What owners have of an object: all but what only we say.
fn part(object: &Value) -> Value {
    let mut map = Map::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        match name.as_str() {
            "apiVersion" | "kind" | "status" => {}
            "metadata" => {
                let fields = META.iter().filter_map(|field| {
                    let value = value.get(field)?;
                    Some(((*field).to_owned(), value.clone()))
                });
                let fields: Map<String, Value> = fields.collect();
                if !fields.is_empty() {
                    map.insert(name.clone(), Value::Object(fields));
                }
            }
            _ => drop(map.insert(name.clone(), value.clone())),
        }
    }
    Value::Object(map)
}

/// What is said: null is nothing.
fn said(mut value: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|_, value| !value.is_null());
                map.values_mut().for_each(strip);
            }
            Value::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut value);
    value
}

/// Puts such a part in the place of the one that an object has.
fn put(object: &mut Value, part: Value) {
    let (Some(object), Value::Object(mut part)) = (object.as_object_mut(), part) else {
        return;
    };
    let meta = part.remove("metadata");
    object.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
    object.extend(part);
    if let Some(fields) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        META.iter().for_each(|field| drop(fields.remove(*field)));
        if let Some(Value::Object(meta)) = meta {
            fields.extend(meta);
        }
    }
}

#[cfg(test)]
#[path = "fields_test.rs"]
mod tests;
