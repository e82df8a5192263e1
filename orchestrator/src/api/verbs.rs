//! What HTTP's methods do with objects of a kind.

use axum::Json;
use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::deletion::{Deletion, Propagation};
use super::error::ApiError;
use super::fields;
use super::objects::{Objects, Part};
use super::patch::Manner;
use super::select::Selector;
use super::table::{Form, table};
use super::watch::Lines;
use crate::model::{FieldError, Kind, Object};
use crate::store::Revision;

/// What is asked in a request's query. What is not known here changes nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Query {
    label_selector: String,
    field_selector: String,
    limit: Option<usize>,
    #[serde(rename = "continue")]
    after: String,
    watch: String,
    resource_version: String,
    timeout_seconds: Option<u64>,
    dry_run: String,
    follow: String,
    grace_period_seconds: Option<u64>,
    propagation_policy: Option<Propagation>,
    field_manager: String,
    force: String,
    /// Whoever asks is of one tenant.
    #[serde(skip)]
    pub tenant: bool,
    /// The program that asks, which its headers say.
    #[serde(skip)]
    pub user_agent: String,
}

impl Query {
    fn selector(&self) -> Result<Selector, ApiError> {
        Selector::parse(&self.label_selector, &self.field_selector).map_err(ApiError::Request)
    }

    fn dry(&self) -> bool {
        self.dry_run == "All"
    }

    /// Whose the fields are that a request sets.
    fn owner(&self) -> String {
        fields::owner_of(&self.field_manager, &self.user_agent)
    }

    /// Whether a log is wanted as it goes on.
    pub fn follows(&self) -> bool {
        matches!(self.follow.as_str(), "true" | "1")
    }

    /// Whether changes are wanted, as they come.
    pub fn watches(&self) -> bool {
        matches!(self.watch.as_str(), "true" | "1")
    }
}

/// The place that a request is about.
#[derive(Debug, Clone)]
pub struct Place {
    /// The kind.
    pub kind: &'static Kind,
    /// The namespace; empty for all, or if the kind has none.
    pub namespace: String,
    /// The object; empty for all of them.
    pub name: String,
    /// The part of it.
    pub part: Part,
}

/// What a `DELETE` may have as its body.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeleteOptions {
    grace_period_seconds: Option<u64>,
    propagation_policy: Option<Propagation>,
    preconditions: Preconditions,
    dry_run: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Preconditions {
    uid: String,
}

impl Place {
    /// The object of a body, which must be what its path says.
    fn object(&self, value: Value) -> Result<Object, ApiError> {
        let name = |value: &Value| {
            let name = value.get("metadata").and_then(|meta| meta.get("name"));
            name.and_then(Value::as_str)
                .unwrap_or(&self.name)
                .to_owned()
        };
        let named = name(&value);
        let invalid = |field: FieldError| ApiError::Invalid {
            kind: self.kind,
            name: named.clone(),
            fields: vec![field],
        };
        let mut object = Object::from_value(self.kind, value).map_err(invalid)?;
        let meta = &mut object.meta;
        for (given, wanted, what) in [
            (&mut meta.name, &self.name, "name"),
            (&mut meta.namespace, &self.namespace, "namespace"),
        ] {
            if given.is_empty() {
                given.clone_from(wanted);
            } else if !wanted.is_empty() && given != wanted {
                return Err(ApiError::Request(format!(
                    "the {what} of the object ({given}) is not that of the request ({wanted})"
                )));
            }
        }
        Ok(object)
    }
}

/// `GET` of one.
pub async fn get(objects: &Objects, place: &Place, form: Form) -> Result<Response, ApiError> {
    let object = objects
        .get(place.kind, &place.namespace, &place.name)
        .await?;
    Ok(one(place.kind, object, form, StatusCode::OK))
}

fn one(kind: &Kind, object: Object, form: Form, code: StatusCode) -> Response {
    let value = match form {
        Form::Objects => object.to_value(),
        Form::Table => table(kind, &[object], json!({}), true),
    };
    (code, Json(value)).into_response()
}

/// `GET` of several.
pub async fn list(
    objects: &Objects,
    place: &Place,
    query: &Query,
    form: Form,
) -> Result<Response, ApiError> {
    let (kind, selector) = (place.kind, query.selector()?);
    let limit = query.limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let list = objects.list(kind, &place.namespace, &selector, limit, &query.after);
    let list = list.await?;
    let mut meta = json!({"resourceVersion": list.revision.0.to_string()});
    if let Some(next) = list.next {
        meta["continue"] = next.into();
    }
    let value = match form {
        Form::Table => table(kind, &list.objects, meta, true),
        Form::Objects => json!({
            "kind": format!("{}List", kind.kind),
            "apiVersion": kind.api_version(),
            "metadata": meta,
            "items": list.objects.iter().map(Object::to_value).collect::<Vec<_>>(),
        }),
    };
    Ok(Json(value).into_response())
}

/// `GET` with `watch=true`.
pub async fn watch(
    objects: &Objects,
    place: &Place,
    query: &Query,
    form: Form,
) -> Result<Response, ApiError> {
    let mut selector = query.selector()?;
    if !place.name.is_empty() {
        let named = format!("metadata.name={}", place.name);
        selector = Selector::parse(&query.label_selector, &named).map_err(ApiError::Request)?;
    }
    let (kind, namespace) = (place.kind, &place.namespace);
    let (first, from) = match query.resource_version.as_str() {
        "" | "0" => {
            let list = objects
                .list(kind, namespace, &selector, usize::MAX, "")
                .await?;
            (list.objects, list.revision)
        }
        text => {
            let from = text.parse().map_err(|_| {
                ApiError::Request(format!("`{text}` is no resourceVersion: list first"))
            })?;
            (Vec::new(), Revision(from))
        }
    };
    let watch = objects.watch(kind, namespace, selector, from).await?;
    let lines = Lines {
        watch,
        kind,
        form,
        first,
        seconds: query.timeout_seconds,
    };
    let body = Body::from_stream(lines.stream());
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// `POST`.
pub async fn create(
    objects: &Objects,
    place: &Place,
    query: &Query,
    body: Value,
    form: Form,
) -> Result<Response, ApiError> {
    let mut object = place.object(body)?;
    permitted(None, &object, query)?;
    let owners = fields::updated(None, &filled(&object), &query.owner());
    object.meta.managed_fields = Some(owners);
    let object = objects.create(object, query.dry()).await?;
    Ok(one(place.kind, object, form, StatusCode::CREATED))
}

/// `PUT`.
pub async fn replace(
    objects: &Objects,
    place: &Place,
    query: &Query,
    body: Value,
    form: Form,
) -> Result<Response, ApiError> {
    let new = place.object(body)?;
    let (kind, namespace, name) = (place.kind, &new.meta.namespace, &new.meta.name);
    let replaced = objects.change(kind, namespace, name, place.part, query.dry(), |old| {
        owned(old, new.clone(), query)
    });
    Ok(one(kind, replaced.await?, form, StatusCode::OK))
}

/// `PATCH`.
pub async fn patch(
    objects: &Objects,
    place: &Place,
    query: &Query,
    manner: Manner,
    patch: &Value,
    form: Form,
) -> Result<Response, ApiError> {
    if manner == Manner::Apply && place.part == Part::Spec {
        return apply(objects, place, query, patch, form).await;
    }
    let (kind, namespace, name) = (place.kind, &place.namespace, &place.name);
    let changed = objects.change(kind, namespace, name, place.part, query.dry(), |old| {
        let mut value = old.to_value();
        manner.apply(&mut value, patch)?;
        let mut new = place.object(value)?;
        if new.meta.resource_version == old.meta.resource_version {
            // Only a patch that has one demands one; it is then another as soon as somebody was quicker.
            new.meta.resource_version.clear();
        }
        owned(old, new, query)
    });
    Ok(one(kind, changed.await?, form, StatusCode::OK))
}

/// An apply: what is declared is so, and it is made if it is not there.
async fn apply(
    objects: &Objects,
    place: &Place,
    query: &Query,
    applied: &Value,
    form: Form,
) -> Result<Response, ApiError> {
    if query.field_manager.is_empty() {
        let what = "an apply says whose the fields are: add the parameter fieldManager=NAME";
        return Err(ApiError::Request(what.to_owned()));
    }
    let (kind, namespace, name) = (place.kind, &place.namespace, &place.name);
    let (owner, forced) = (query.owner(), query.force == "true");
    // That it fits its place, and is an object at all.
    let declared = place.object(applied.clone())?;
    let changed = objects.change(kind, namespace, name, Part::Spec, query.dry(), |old| {
        let value = fields::apply(old, applied, &owner, forced);
        let value = value.map_err(|conflicts| ApiError::Owned {
            kind,
            name: name.clone(),
            conflicts,
        })?;
        let mut object = place.object(value)?;
        permitted(Some(old), &object, query)?;
        keep_deletion(old, &mut object);
        // Only an apply that has them demands them.
        object
            .meta
            .resource_version
            .clone_from(&declared.meta.resource_version);
        object.meta.uid.clone_from(&declared.meta.uid);
        Ok(object)
    });
    match changed.await {
        Err(ApiError::NotFound { .. }) => {
            let mut object = declared.clone();
            permitted(None, &object, query)?;
            object.meta.managed_fields = Some(fields::applied(&object, &owner));
            let object = objects.create(object, query.dry()).await?;
            Ok(one(kind, object, form, StatusCode::CREATED))
        }
        changed => Ok(one(kind, changed?, form, StatusCode::OK)),
    }
}

/// An object with its owners, as somebody has changed it.
fn owned(old: &Object, mut new: Object, query: &Query) -> Result<Object, ApiError> {
    permitted(Some(old), &new, query)?;
    keep_deletion(old, &mut new);
    let owners = fields::updated(Some(old), &filled(&new), &query.owner());
    new.meta.managed_fields = Some(owners);
    Ok(new)
}

/// An object is deleted by its deletion alone, which looks at what it takes.
fn keep_deletion(old: &Object, new: &mut Object) {
    new.meta.deletion_timestamp = old.meta.deletion_timestamp;
    new.meta.deletion_grace_period_seconds = old.meta.deletion_grace_period_seconds;
}

/// Refuses a tenant's workload that would take the places of others'.
fn permitted(old: Option<&Object>, new: &Object, query: &Query) -> Result<(), ApiError> {
    let priority = |object: &Object| {
        let spec = object.body.get("spec");
        let said = spec.and_then(|spec| spec.pointer("/placement/priority"));
        said.and_then(Value::as_i64).unwrap_or(0)
    };
    let had = old.map_or(0, priority).max(0);
    if query.tenant && priority(new) > had {
        return Err(ApiError::Forbidden(format!(
            "spec.placement.priority: with a token for one namespace it may be {had} at most, since more takes the \
             places of others"
        )));
    }
    Ok(())
}

/// An object with all that was left out; as it is if it cannot be so, which others find out.
fn filled(object: &Object) -> Object {
    let filled = object.clone().accepted();
    filled.unwrap_or_else(|_| object.clone())
}

/// `DELETE` of one.
pub async fn delete(
    objects: &Objects,
    place: &Place,
    query: &Query,
    body: Value,
) -> Result<Response, ApiError> {
    let options = options(body)?;
    let dry = query.dry() || options.dry_run.iter().any(|word| word == "All");
    let grace = query.grace_period_seconds.or(options.grace_period_seconds);
    let uid = &options.preconditions.uid;
    let propagation = query.propagation_policy.or(options.propagation_policy);
    let deletion = Deletion {
        uid,
        grace,
        propagation: propagation.unwrap_or_default(),
        dry_run: dry,
    };
    let deleted = objects.delete_by(place.kind, &place.namespace, &place.name, &deletion);
    Ok(Json(deleted.await?.to_value()).into_response())
}

fn options(body: Value) -> Result<DeleteOptions, ApiError> {
    match body {
        Value::Null => Ok(DeleteOptions::default()),
        body => serde_json::from_value(body)
            .map_err(|e| ApiError::Request(format!("these are no DeleteOptions: {e}"))),
    }
}

/// `DELETE` of all that are selected.
pub async fn delete_all(
    objects: &Objects,
    place: &Place,
    query: &Query,
    body: Value,
) -> Result<Response, ApiError> {
    let options = options(body)?;
    let (kind, selector) = (place.kind, query.selector()?);
    let list = objects
        .list(kind, &place.namespace, &selector, usize::MAX, "")
        .await?;
    let propagation = query.propagation_policy.or(options.propagation_policy);
    let dry = query.dry() || options.dry_run.iter().any(|word| word == "All");
    let grace = query.grace_period_seconds.or(options.grace_period_seconds);
    let mut items = Vec::with_capacity(list.objects.len());
    for object in list.objects {
        let meta = &object.meta;
        let deletion = Deletion {
            uid: &meta.uid,
            grace,
            propagation: propagation.unwrap_or_default(),
            dry_run: dry,
        };
        let deleted = objects.delete_by(kind, &meta.namespace, &meta.name, &deletion);
        match deleted.await {
            Ok(object) => items.push(object.to_value()),
            // Somebody else was quicker.
            Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    let value = json!({
        "kind": format!("{}List", kind.kind),
        "apiVersion": kind.api_version(),
        "metadata": {},
        "items": items,
    });
    Ok(Json(value).into_response())
}
