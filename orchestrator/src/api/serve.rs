//! Paths to verbs.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query as QueryOf, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::net::UnixStream;

use super::caller::{Caller, Grant, admit};
use super::connections::Seat;
use super::error::{ApiError, chain};
use super::explanation::Explains;
use super::log::{self, Logs};
use super::objects::{Objects, Part};
use super::patch::Manner;
use super::reach::{self, ExecRequest, Reach, Way};
use super::socket::SocketWay;
use super::table::Form;
use super::verbs::{self, Place, Query};
use super::{discovery, openapi};
use crate::model::{GROUP, KINDS, Object, VERSION};
use crate::runtime::RuntimeError;

/// Bytes of a body.
const MAX_BODY: usize = 3 << 20;
/// A body comes within this.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is served.
#[derive(Clone)]
struct Served {
    objects: Objects,
    logs: Arc<dyn Logs>,
    reach: Arc<dyn Reach>,
    explains: Arc<dyn Explains>,
}

/// The whole API, over what is declared, whoever runs it, and whoever gives it places.
pub fn router<W: Logs + Reach + 'static>(
    objects: Objects,
    workloads: Arc<W>,
    explains: Arc<dyn Explains>,
) -> Router {
    Router::new().fallback(handle).with_state(Served {
        objects,
        logs: workloads.clone(),
        reach: workloads,
        explains,
    })
}

async fn handle(State(served): State<Served>, request: Request) -> Response {
    let answered = answer(&served, request).await;
    answered.unwrap_or_else(IntoResponse::into_response)
}

/// What a request's sender may do. Its connection is then one that nobody takes away.
///
/// # Errors
/// If it is not known who that is, or there are too many connections.
pub async fn admitted(objects: &Objects, head: &Parts) -> Result<Grant, ApiError> {
    let caller = head.extensions.get::<Caller>().copied();
    let grant = admit(objects, caller.unwrap_or(Caller::Stranger), &head.headers).await?;
    if let Some(seat) = head.extensions.get::<Seat>() {
        seat.admit(grant.token())?;
    }
    Ok(grant)
}

async fn answer(served: &Served, request: Request) -> Result<Response, ApiError> {
    let objects = &served.objects;
    let (mut head, body) = request.into_parts();
    let path = head.uri.path().trim_matches('/').to_owned();
    let words: Vec<&str> = path.split('/').collect();
    // Whoever is not known learns nothing, not even what there is.
    let grant = admitted(objects, &head).await?;
    if let Some(value) = fixed(&words) {
        return match head.method {
            Method::GET | Method::HEAD => Ok(value),
            _ => Err(ApiError::Method(format!("/{path} is only read"))),
        };
    }
    let place = place(&words).ok_or_else(|| ApiError::NoPath(format!("/{path}")))?;
    // Whoever enters a workload changes it, by whatever method that is asked for.
    let enters = matches!(place.part, Part::Exec | Part::Console);
    let method = if enters { &Method::POST } else { &head.method };
    grant.check(method, &place)?;
    let query: QueryOf<Query> = QueryOf::try_from_uri(&head.uri)
        .map_err(|e| ApiError::Request(format!("the query cannot be read: {e}")))?;
    let (mut query, form) = (query.0, Form::of(text(&head.headers, header::ACCEPT)));
    text(&head.headers, header::USER_AGENT).clone_into(&mut query.user_agent);
    query.tenant = grant.tenant().is_some();
    let one = !place.name.is_empty();
    if place.part == Part::Log {
        if head.method != Method::GET {
            return Err(ApiError::Method("a log is only read".into()));
        }
        let object = objects
            .get(place.kind, &place.namespace, &place.name)
            .await?;
        let answer = log::answer(&*served.logs, &object, query.follows()).await?;
        return Ok(while_granted(answer, grant, objects));
    }
    if enters {
        return enter(served, &place, &mut head, body, grant).await;
    }
    if place.part == Part::Explanation {
        if head.method != Method::GET {
            return Err(ApiError::Method("an explanation is only read".into()));
        }
        let (namespace, name) = (&place.namespace, &place.name);
        let object = objects.get(place.kind, namespace, name).await?;
        let mut explanation = served.explains.explain(&object).await?;
        if grant.tenant().is_some() {
            explanation.hide_others();
        }
        return Ok(Json(explanation).into_response());
    }
    let kind = text(&head.headers, header::CONTENT_TYPE).to_owned();
    match (head.method, one) {
        (Method::GET, _) if query.watches() => {
            let answer = verbs::watch(objects, &place, &query, form).await?;
            Ok(while_granted(answer, grant, objects))
        }
        (Method::GET, true) => verbs::get(objects, &place, form).await,
        (Method::GET, false) => verbs::list(objects, &place, &query, form).await,
        (Method::POST, false) => {
            let body = value(&kind, &read(body).await?)?;
            verbs::create(objects, &place, &query, body, form).await
        }
        (Method::PUT, true) => {
            let body = value(&kind, &read(body).await?)?;
            verbs::replace(objects, &place, &query, body, form).await
        }
        (Method::PATCH, true) => {
            let manner = Manner::of(&kind)?;
            let patch = manner.read(&read(body).await?)?;
            verbs::patch(objects, &place, &query, manner, &patch, form).await
        }
        (Method::DELETE, one) => {
            let bytes = read(body).await?;
            let body = match bytes.is_empty() {
                true => Value::Null,
                false => value(&kind, &bytes)?,
            };
            match one {
                true => verbs::delete(objects, &place, &query, body).await,
                false => verbs::delete_all(objects, &place, &query, body).await,
            }
        }
        (method, _) => Err(ApiError::Method(format!("/{path} takes no {method}"))),
    }
}

/// An answer that goes on, as long as whoever asked may ask.
fn while_granted(answer: Response, grant: Grant, objects: &Objects) -> Response {
    let ended = grant.ended(objects.clone());
    answer.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(ended))))
}

/// Connects a client to a workload.
async fn enter(
    served: &Served,
    place: &Place,
    head: &mut Parts,
    body: Body,
    grant: Grant,
) -> Result<Response, ApiError> {
    if place.part == Part::Console && SocketWay::is_asked(head) {
        let way = SocketWay::of(head).await?;
        let inner = console(served, place).await?;
        let seat = head.extensions.remove::<Seat>();
        return Ok(way.open(inner, grant.ended(served.objects.clone()), seat));
    }
    if head.method != Method::POST {
        let what = "commands and consoles are asked for with POST";
        return Err(ApiError::Method(what.into()));
    }
    let command = place.part == Part::Exec;
    let protocol = match command {
        true => skerry_exec::PROTOCOL,
        false => reach::CONSOLE,
    };
    let way = Way::of(head, protocol)?;
    let body = read(body).await?;
    let inner = match command {
        true => {
            let object = target(served, place).await?;
            let spec = ExecRequest::read(&body)?;
            let entered = served.reach.exec(&object, spec).await;
            entered.map_err(|e| not_now(place, &e))?
        }
        false => console(served, place).await?,
    };
    let seat = head.extensions.remove::<Seat>();
    Ok(way.open(inner, grant.ended(served.objects.clone()), seat))
}

/// The object that is to be entered.
async fn target(served: &Served, place: &Place) -> Result<Object, ApiError> {
    let (namespace, name) = (&place.namespace, &place.name);
    served.objects.get(place.kind, namespace, name).await
}

/// A connection to its console.
async fn console(served: &Served, place: &Place) -> Result<UnixStream, ApiError> {
    let object = target(served, place).await?;
    let entered = served.reach.console(&object).await;
    entered.map_err(|e| not_now(place, &e))
}

fn not_now(place: &Place, error: &RuntimeError) -> ApiError {
    ApiError::NotNow {
        kind: place.kind,
        name: place.name.clone(),
        message: chain(error),
    }
}

/// What is the same for all, and at all times.
fn fixed(words: &[&str]) -> Option<Response> {
    let value = match words {
        ["readyz" | "livez" | "healthz", ..] => return Some("ok".into_response()),
        ["version"] => discovery::version(),
        ["api"] => discovery::core_versions(),
        ["apis"] => discovery::groups(),
        ["apis", group] if *group == GROUP => discovery::own_group(),
        ["api", version] if *version == VERSION => discovery::resources(""),
        ["apis", group, version] if (*group, *version) == (GROUP, VERSION) => {
            discovery::resources(GROUP)
        }
        ["openapi", "v3"] => openapi::index(),
        ["openapi", "v3", "api", version] if *version == VERSION => openapi::document(""),
        ["openapi", "v3", "apis", group, version] if (*group, *version) == (GROUP, VERSION) => {
            openapi::document(GROUP)
        }
        _ => return None,
    };
    Some(Json(value).into_response())
}

/// The place of a path, if there is one.
fn place(words: &[&str]) -> Option<Place> {
    let (group, rest) = match words {
        ["api", version, rest @ ..] if *version == VERSION => ("", rest),
        ["apis", group, version, rest @ ..] if *version == VERSION => (*group, rest),
        _ => return None,
    };
    let find = |plural: &str, namespaced: bool| {
        let mut kinds = KINDS.iter();
        kinds.find(|kind| {
            kind.group == group && kind.plural == plural && (kind.namespaced || !namespaced)
        })
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, plural, rest @ ..] if find(plural, true).is_some() => {
            (*namespace, [&[*plural], rest].concat())
        }
        rest => ("", rest.to_vec()),
    };
    let (plural, name, part) = match rest.as_slice() {
        [plural] => (*plural, "", Part::Spec),
        [plural, name] => (*plural, *name, Part::Spec),
        [plural, name, "status"] => (*plural, *name, Part::Status),
        [plural, name, "log"] => (*plural, *name, Part::Log),
        [plural, name, "exec"] => (*plural, *name, Part::Exec),
        [plural, name, "console"] => (*plural, *name, Part::Console),
        [plural, name, "explanation"] => (*plural, *name, Part::Explanation),
        _ => return None,
    };
    let kind = find(plural, !namespace.is_empty())?;
    // An object of a tenant is named with its tenant.
    let whole = name.is_empty() || !kind.namespaced || !namespace.is_empty();
    let whole = whole && (part != Part::Status || kind.has_status);
    whole.then(|| Place {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        part,
    })
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    let bytes = tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, MAX_BODY)).await;
    let bytes = bytes.map_err(|_| ApiError::Request("the body did not come in time".into()))?;
    bytes.map_err(|_| ApiError::TooLarge(MAX_BODY))
}

/// A body of JSON or YAML.
fn value(content_type: &str, bytes: &[u8]) -> Result<Value, ApiError> {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    match media {
        "" | "application/json" => serde_json::from_slice(bytes)
            .map_err(|e| ApiError::Request(format!("the body is no JSON: {e}"))),
        "application/yaml" => yaml(bytes),
        other => Err(ApiError::Type(format!(
            "a body of type `{other}` is not known: use application/json or application/yaml"
        ))),
    }
}

/// A body of YAML, of which JSON is a part.
pub(super) fn yaml(bytes: &[u8]) -> Result<Value, ApiError> {
    serde_saphyr::from_slice(bytes)
        .map_err(|e| ApiError::Request(format!("the body is no YAML: {e}")))
}
