//! Events: what happened to an object, and why. The shape is that of Kubernetes's core group, so that its
//! clients show them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Fields, Object, Resource, Timestamp};

/// An event, as it is kept.
pub type Event = EventBody;

/// What happened.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[schemars(rename = "Event")]
pub struct EventBody {
    /// To what.
    pub involved_object: ObjectReference,
    /// In one word.
    pub reason: String,
    /// In a sentence.
    pub message: String,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How often.
    pub count: u32,
    /// When at first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_timestamp: Option<Timestamp>,
    /// When last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_timestamp: Option<Timestamp>,
    /// Who saw it.
    pub source: Source,
    /// Kubernetes's own field, not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_time: Option<String>,
    /// Kubernetes's own field, not used.
    pub reporting_component: String,
    /// Kubernetes's own field, not used.
    pub reporting_instance: String,
}

/// Who saw it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// The part of the system.
    pub component: String,
    /// The host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
}

/// An object that is spoken of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ObjectReference {
    /// Its group and version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The commit that changed it last.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// A part of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_path: String,
}

impl From<&Object> for ObjectReference {
    fn from(object: &Object) -> ObjectReference {
        ObjectReference {
            api_version: object.kind.api_version(),
            kind: object.kind.kind.to_owned(),
            namespace: object.meta.namespace.clone(),
            name: object.meta.name.clone(),
            uid: object.meta.uid.clone(),
            ..ObjectReference::default()
        }
    }
}

impl Resource for EventBody {
    const GROUP: &'static str = "";
    const KIND: &'static str = "Event";
    const PLURAL: &'static str = "events";
    const SINGULAR: &'static str = "event";
    const SHORT: &'static [&'static str] = &["ev"];
    const HAS_STATUS: bool = false;
    const COLUMNS: &'static [Column] = &[
        Column {
            name: "Type",
            wide: false,
            cell: &["type"],
        },
        Column {
            name: "Reason",
            wide: false,
            cell: &["reason"],
        },
        Column {
            name: "Object",
            wide: false,
            cell: &["involvedObject", "name"],
        },
        Column {
            name: "Count",
            wide: true,
            cell: &["count"],
        },
        Column {
            name: "Message",
            wide: false,
            cell: &["message"],
        },
    ];

    fn check(&self, _fields: &mut Fields) {}
}
