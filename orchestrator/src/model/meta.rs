//! Metadata, which all resources have, and objects of any kind.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{FieldError, Kind, Resource, Timestamp, kind_of};

/// The finalizer of an object whose dependents are to stay.
pub const ORPHAN: &str = "orphan";
/// The finalizer of an object whose dependents go before it.
pub const FOREGROUND: &str = "foregroundDeletion";

/// An object's metadata.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[schemars(rename = "ObjectMeta")]
pub struct Meta {
    /// Its name, of which there is one a kind and namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What a name begins with that is chosen for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub generate_name: String,
    /// Its tenant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name among all objects of all times.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The commit that changed it last.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Counts changes of its spec.
    #[serde(skip_serializing_if = "is_zero")]
    pub generation: u64,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// Since when it is to go; it is gone when its finalizers are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<Timestamp>,
    /// How long it may take to stop, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_grace_period_seconds: Option<u64>,
    /// What it is selected by.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What others keep with it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Those who still have to clean up before it goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    /// Those with whom it goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<OwnerReference>,
    /// Who said what of it; none if that is not told.
    #[serde(skip_serializing_if = "has_none")]
    #[schemars(skip)]
    pub managed_fields: Option<Vec<ManagedFields>>,
    /// Accepted, not kept.
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub self_link: Option<Value>,
}

fn has_none(owners: &Option<Vec<ManagedFields>>) -> bool {
    owners.as_ref().is_none_or(Vec::is_empty)
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What somebody said of an object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManagedFields {
    /// Who.
    pub manager: String,
    /// How: `Apply` or `Update`.
    pub operation: String,
    /// With which version.
    pub api_version: String,
    /// When last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// How fields are written: `FieldsV1`.
    pub fields_type: String,
    /// The fields.
    pub fields_v1: Value,
    /// Of which part; of all but its status if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

/// The object that another one belongs to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OwnerReference {
    /// Its group and version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// It is the one that looks after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    /// It stays until this one is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

/// Something that is so of an object, or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// What: `Scheduled`, `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, in one word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why, and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when it is so.
    pub last_transition_time: Timestamp,
    /// The generation that was looked at.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub observed_generation: u64,
}

impl Condition {
    /// Says among others that something is so, or is not, and why. Nothing moves if it was said before.
    pub fn set(
        all: &mut Vec<Condition>,
        kind: &str,
        status: bool,
        reason: &str,
        message: &str,
        generation: u64,
    ) {
        let status = if status { "True" } else { "False" };
        match all.iter_mut().find(|c| c.kind == kind) {
            Some(condition) => {
                if condition.status != status {
                    status.clone_into(&mut condition.status);
                    condition.last_transition_time = Timestamp::now();
                }
                reason.clone_into(&mut condition.reason);
                message.clone_into(&mut condition.message);
                condition.observed_generation = generation;
            }
            None => all.push(Condition {
                kind: kind.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: message.to_owned(),
                last_transition_time: Timestamp::now(),
                observed_generation: generation,
            }),
        }
    }
}

/// An object of any kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its metadata.
    pub meta: Meta,
    /// All the rest: `spec`, `status`.
    pub body: Map<String, Value>,
}

impl Object {
    /// As JSON.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        map.insert("apiVersion".into(), self.kind.api_version().into());
        map.insert("kind".into(), self.kind.kind.into());
        let meta = serde_json::to_value(&self.meta).unwrap_or_default();
        map.insert("metadata".into(), meta);
        map.extend(self.body.clone());
        Value::Object(map)
    }

    /// From JSON that says what it is; not checked beyond its metadata.
    ///
    /// # Errors
    /// What is wrong with `apiVersion`, `kind` or `metadata`.
    pub fn from_value(kind: &'static Kind, value: Value) -> Result<Object, FieldError> {
        let wrong = |field: &str, message: String| FieldError {
            field: field.to_owned(),
            message,
        };
        let Value::Object(mut body) = value else {
            return Err(wrong("", "an object is wanted".into()));
        };
        for (field, wanted) in [
            ("apiVersion", kind.api_version()),
            ("kind", kind.kind.into()),
        ] {
            match body.remove(field) {
                Some(Value::String(found)) if found == wanted => {}
                None => {}
                Some(found) => {
                    return Err(wrong(
                        field,
                        format!("it is {found}, and must be `{wanted}`"),
                    ));
                }
            }
        }
        let meta = body.remove("metadata").unwrap_or_default();
        let meta = if meta.is_null() {
            Value::Object(Map::new())
        } else {
            meta
        };
        let meta: Result<Meta, _> = serde_path_to_error::deserialize(meta);
        let meta = meta.map_err(|e| {
            let path = e.path().to_string();
            let field = if path == "." {
                "metadata".into()
            } else {
                format!("metadata.{path}")
            };
            wrong(&field, e.inner().to_string())
        })?;
        Ok(Object { kind, meta, body })
    }

    /// Its key in a store.
    pub fn key(&self) -> String {
        self.kind.key(&self.meta.namespace, &self.meta.name)
    }

    /// What it is called in messages: `microvm default/web`.
    pub fn shown(&self) -> String {
        match self.meta.namespace.as_str() {
            "" => format!("{} {}", self.kind.singular, self.meta.name),
            namespace => format!("{} {namespace}/{}", self.kind.singular, self.meta.name),
        }
    }
}

/// The typed rest of an object.
///
/// # Errors
/// Where it is not as its kind's type is.
pub fn typed<R: Resource>(object: &Object) -> Result<R, FieldError> {
    parse(Value::Object(object.body.clone()))
}

/// Reads a value and says where it is wrong.
pub(super) fn parse<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        FieldError {
            field: if path == "." { String::new() } else { path },
            message: e.inner().to_string(),
        }
    })
}

/// An object of a typed rest.
pub fn untyped<R: Resource>(meta: Meta, rest: &R) -> Object {
    let body = match serde_json::to_value(rest) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    Object {
        kind: kind_of::<R>(),
        meta,
        body,
    }
}

/// Whether it is a DNS label, or several with dots between them (RFC 1123).
pub fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let good = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(good)
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// Whether it can be a label's value.
pub fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(good)
}
