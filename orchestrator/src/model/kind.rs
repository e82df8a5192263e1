//! Kinds: what is served, stored and shown of each in the same way. A new kind is a type and a line in
//! [`KINDS`].

use std::sync::LazyLock;

use schemars::{JsonSchema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::meta::parse;
use super::{
    BareMetal, Container, ElasticAddress, Event, FieldError, Fields, Host, MicroVM, Namespace,
    Network, Object, Service, Token, Volume, VolumeSnapshot,
};

/// The group of our own kinds.
pub const GROUP: &str = "skerry.io";
/// Their version.
pub const VERSION: &str = "v1";

/// A resource without its metadata.
pub trait Resource: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// `skerry.io`, or empty for Kubernetes's own.
    const GROUP: &'static str = GROUP;
    /// `MicroVM`.
    const KIND: &'static str;
    /// `microvms`.
    const PLURAL: &'static str;
    /// `microvm`.
    const SINGULAR: &'static str;
    /// `vm`.
    const SHORT: &'static [&'static str] = &[];
    /// Objects belong to tenants.
    const NAMESPACED: bool = true;
    /// Its status is written by others than its spec.
    const HAS_STATUS: bool = true;
    /// Those who clean up before an object goes.
    const FINALIZERS: &'static [&'static str] = &[];
    /// What `get` shows beside names and ages.
    const COLUMNS: &'static [Column];

    /// Says what cannot be, though it is well formed.
    fn check(&self, fields: &mut Fields);

    /// Says what it cannot become, after it was `before`.
    fn check_change(&self, _before: &Self, _fields: &mut Fields) {}
}

/// A spec and a status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parts<S, T> {
    /// What is wanted.
    pub spec: S,
    /// What is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<T>,
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its head.
    pub name: &'static str,
    /// Whether it is shown only in wide tables.
    pub wide: bool,
    /// What is in it.
    pub cell: Cell,
}

/// Where a cell's value is found: a path of fields.
pub type Cell = &'static [&'static str];

/// An object's rest with all that was left out, or all that is wrong with it.
type Accepted = Result<Map<String, Value>, Vec<FieldError>>;

/// What is wrong with an object's rest, after it was another.
type ChangeOf = fn(&Map<String, Value>, &Map<String, Value>) -> Vec<FieldError>;

/// A kind, erased.
pub struct Kind {
    /// Its group; empty for Kubernetes's own.
    pub group: &'static str,
    /// `MicroVM`.
    pub kind: &'static str,
    /// `microvms`.
    pub plural: &'static str,
    /// `microvm`.
    pub singular: &'static str,
    /// `vm`.
    pub short: &'static [&'static str],
    /// Objects belong to tenants.
    pub namespaced: bool,
    /// Its status is written by others than its spec.
    pub has_status: bool,
    /// Those who clean up before an object goes.
    pub finalizers: &'static [&'static str],
    /// What `get` shows beside names and ages.
    pub columns: &'static [Column],
    accept: fn(Map<String, Value>) -> Accepted,
    change: ChangeOf,
    schema: fn(&mut SchemaGenerator) -> schemars::Schema,
}

impl PartialEq for Kind {
    fn eq(&self, other: &Kind) -> bool {
        (self.group, self.kind) == (other.group, other.kind)
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.kind)
    }
}

/// All kinds that are served.
pub static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    vec![
        Kind::of::<MicroVM>(),
        Kind::of::<Container>(),
        Kind::of::<BareMetal>(),
        Kind::of::<Host>(),
        Kind::of::<Namespace>(),
        Kind::of::<Event>(),
        Kind::of::<Token>(),
        Kind::of::<Volume>(),
        Kind::of::<VolumeSnapshot>(),
        Kind::of::<Service>(),
        Kind::of::<ElasticAddress>(),
        Kind::of::<Network>(),
    ]
});

/// The kind of a type.
///
/// # Panics
/// Never: every type that is a [`Resource`] has a line in [`KINDS`], as this module's test sees.
pub fn kind_of<R: Resource>() -> &'static Kind {
    let found = KINDS
        .iter()
        .find(|kind| (kind.group, kind.kind) == (R::GROUP, R::KIND));
    found.expect("every resource is in the table of kinds")
}

/// The kind that somebody calls so: by its plural, singular or a short name.
pub fn named(name: &str) -> Option<&'static Kind> {
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix(&format!(".{GROUP}")).unwrap_or(&name);
    KINDS
        .iter()
        .find(|kind| [kind.plural, kind.singular].contains(&name) || kind.short.contains(&name))
}

impl Kind {
    fn of<R: Resource>() -> Kind {
        Kind {
            group: R::GROUP,
            kind: R::KIND,
            plural: R::PLURAL,
            singular: R::SINGULAR,
            short: R::SHORT,
            namespaced: R::NAMESPACED,
            has_status: R::HAS_STATUS,
            finalizers: R::FINALIZERS,
            columns: R::COLUMNS,
            accept: accept::<R>,
            change: change::<R>,
            schema: |generator| generator.subschema_for::<R>(),
        }
    }

    /// `skerry.io/v1`.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => VERSION.to_owned(),
            group => format!("{group}/{VERSION}"),
        }
    }

    /// `microvms.skerry.io`.
    pub fn resource(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// What its keys begin with, in one namespace or, if that is empty, in all.
    pub fn prefix(&self, namespace: &str) -> String {
        match namespace {
            "" => format!("{}/", self.resource()),
            namespace => format!("{}/{namespace}/", self.resource()),
        }
    }

    /// The key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}/{namespace}/{name}", self.resource())
    }

    /// The object's rest with all that was left out, if it can be.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn accept(&self, body: Map<String, Value>) -> Accepted {
        (self.accept)(body)
    }

    /// What is wrong with an object's rest `new`, which was accepted, after it was `old`.
    pub fn change(&self, old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<FieldError> {
        (self.change)(old, new)
    }

    /// Its schema.
    pub fn schema(&self, generator: &mut SchemaGenerator) -> schemars::Schema {
        (self.schema)(generator)
    }
}

fn accept<R: Resource>(body: Map<String, Value>) -> Accepted {
    let rest: R = parse(Value::Object(body)).map_err(|e| vec![e])?;
    let mut fields = Fields::default();
    rest.check(&mut fields);
    match (fields.errors.is_empty(), serde_json::to_value(rest)) {
        (true, Ok(Value::Object(map))) => Ok(map),
        (true, _) => Ok(Map::new()),
        (false, _) => Err(fields.errors),
    }
}

fn change<R: Resource>(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<FieldError> {
    let read = |body: &Map<String, Value>| parse::<R>(Value::Object(body.clone()));
    let mut fields = Fields::default();
    // What an older version wrote, and this one cannot read, may become anything.
    if let (Ok(old), Ok(new)) = (read(old), read(new)) {
        new.check_change(&old, &mut fields);
    }
    fields.errors
}

impl Object {
    /// With all that was left out filled in, if it can be.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn accepted(mut self) -> Result<Object, Vec<FieldError>> {
        self.body = self.kind.accept(std::mem::take(&mut self.body))?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The types of all rows, one a row: a type without a row, or a row without a type, is seen here.
    #[test]
    fn every_resource_has_its_row_in_the_table() {
        let found = [
            kind_of::<MicroVM>(),
            kind_of::<Container>(),
            kind_of::<BareMetal>(),
            kind_of::<Host>(),
            kind_of::<Namespace>(),
            kind_of::<Event>(),
            kind_of::<Token>(),
            kind_of::<Volume>(),
            kind_of::<VolumeSnapshot>(),
            kind_of::<Service>(),
            kind_of::<ElasticAddress>(),
            kind_of::<Network>(),
        ];
        assert_eq!(found.len(), KINDS.len());
        let names = KINDS.iter().flat_map(|kind| [kind.plural, kind.singular]);
        let names: Vec<_> = names
            .chain(KINDS.iter().flat_map(|kind| kind.short).copied())
            .collect();
        let different: BTreeSet<_> = names.iter().collect();
        assert_eq!(
            different.len(),
            names.len(),
            "two kinds have one name: {names:?}"
        );
        for name in names {
            assert!(named(name).is_some(), "{name}");
        }
    }
}
