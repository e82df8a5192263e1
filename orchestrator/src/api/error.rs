//! What is refused, as Kubernetes's clients understand it: a `Status` with a code, a reason and causes.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::fields::Conflict;
use crate::model::{FieldError, Kind};
use crate::store::StoreError;

/// Why a request was refused, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is no such object.
    #[error("{} \"{name}\" not found", kind.resource())]
    NotFound {
        /// Its kind.
        kind: &'static Kind,
        /// Its name.
        name: String,
    },
    /// There is nothing at this path.
    #[error("there is nothing at {0}")]
    NoPath(String),
    /// There is an object of this name.
    #[error("{} \"{name}\" already exists", kind.resource())]
    Exists {
        /// Its kind.
        kind: &'static Kind,
        /// Its name.
        name: String,
    },
    /// It was changed meanwhile.
    #[error("{} \"{name}\": {message}", kind.resource())]
    Conflict {
        /// Its kind.
        kind: &'static Kind,
        /// Its name.
        name: String,
        /// What was expected, and what is so.
        message: String,
    },
    /// Others have fields that it would have otherwise.
    #[error("Apply failed with {} conflict(s): {}; change them there, leave them out, or force them", conflicts.len(), told(conflicts))]
    Owned {
        /// Its kind.
        kind: &'static Kind,
        /// Its name.
        name: String,
        /// Whose fields.
        conflicts: Vec<Conflict>,
    },
    /// Its fields cannot be so.
    #[error("{} \"{name}\" is invalid: {}", kind.kind, joined(fields))]
    Invalid {
        /// Its kind.
        kind: &'static Kind,
        /// Its name.
        name: String,
        /// What is wrong.
        fields: Vec<FieldError>,
    },
    /// The request itself is wrong.
    #[error("{0}")]
    Request(String),
    /// What it builds on is not known any more.
    #[error("{0}")]
    Gone(String),
    /// That cannot be done here.
    #[error("{0}")]
    Method(String),
    /// The body is of another type than can be read.
    #[error("{0}")]
    Type(String),
    /// The body is too long.
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    /// Who asks is not known.
    #[error("{0}")]
    Unauthorized(String),
    /// Who asks has asked for too much at a time.
    #[error("{0}")]
    TooMany(String),
    /// Who asks may not do that.
    #[error("{0}")]
    Forbidden(String),
    /// A connection was to become another one, and was not asked to.
    #[error(
        "this is for clients that leave HTTP: send `Connection: Upgrade` and `Upgrade: {0}`, as `skerry exec` and \
         `skerry console` do"
    )]
    Upgrade(&'static str),
    /// A workload cannot do that now.
    #[error("{} \"{name}\": {message}", kind.resource())]
    NotNow {
        /// Its kind.
        kind: &'static Kind,
        /// Its name.
        name: String,
        /// Why not.
        message: String,
    },
    /// There is no space for it.
    #[error("{0}")]
    Full(String),
    /// It was not done, and may be soon.
    #[error("{0}")]
    Later(String),
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(#[source] StoreError),
}

fn joined(fields: &[FieldError]) -> String {
    let texts: Vec<String> = fields.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

fn told(conflicts: &[Conflict]) -> String {
    let texts = conflicts
        .iter()
        .map(|conflict| format!("{} is `{}`'s", conflict.field, conflict.owner));
    texts.collect::<Vec<_>>().join(", ")
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        match error {
            StoreError::Compacted { .. } | StoreError::Future(_) => {
                ApiError::Gone(error.to_string())
            }
            StoreError::Value { .. } | StoreError::Key(_) => ApiError::Request(error.to_string()),
            StoreError::Full(_) => ApiError::Full(error.to_string()),
            StoreError::Unwritten(_) | StoreError::Unsure(_) => ApiError::Later(error.to_string()),
            error => ApiError::Store(error),
        }
    }
}

impl ApiError {
    /// The HTTP status, and Kubernetes's word for it.
    pub fn code(&self) -> (StatusCode, &'static str) {
        match self {
            ApiError::NotFound { .. } | ApiError::NoPath(_) => (StatusCode::NOT_FOUND, "NotFound"),
            ApiError::Exists { .. } => (StatusCode::CONFLICT, "AlreadyExists"),
            ApiError::Conflict { .. } | ApiError::Owned { .. } => {
                (StatusCode::CONFLICT, "Conflict")
            }
            ApiError::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
            ApiError::Request(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            ApiError::Gone(_) => (StatusCode::GONE, "Expired"),
            ApiError::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            ApiError::Type(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType"),
            ApiError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge"),
            ApiError::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            ApiError::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            ApiError::Forbidden(_) => (StatusCode::FORBIDDEN, "Forbidden"),
            ApiError::Upgrade(_) => (StatusCode::UPGRADE_REQUIRED, "BadRequest"),
            ApiError::NotNow { .. } => (StatusCode::CONFLICT, "Conflict"),
            ApiError::Full(_) => (StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage"),
            ApiError::Later(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            ApiError::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        }
    }

    /// As a `Status`.
    pub fn status(&self) -> Value {
        let (code, reason) = self.code();
        let mut details = json!({});
        if let ApiError::NotFound { kind, name }
        | ApiError::Exists { kind, name }
        | ApiError::Conflict { kind, name, .. }
        | ApiError::NotNow { kind, name, .. }
        | ApiError::Owned { kind, name, .. }
        | ApiError::Invalid { kind, name, .. } = self
        {
            details = json!({"name": name, "group": kind.group, "kind": kind.plural});
        }
        if let ApiError::Invalid { fields, .. } = self {
            let causes = fields.iter().map(|field| {
                json!({"reason": "FieldValueInvalid", "field": field.field, "message": field.message})
            });
            details["causes"] = causes.collect();
        }
        if let ApiError::Owned { conflicts, .. } = self {
            let causes = conflicts.iter().map(|conflict| {
                let (owner, version) = (&conflict.owner, &conflict.api_version);
                let message = format!("conflict with {owner:?} using {version}");
                json!({"reason": "FieldManagerConflict", "field": conflict.field, "message": message})
            });
            details["causes"] = causes.collect();
        }
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": chain(self),
            "reason": reason,
            "details": details,
            "code": code.as_u16(),
        })
    }
}

/// An error and its causes, those that it does not tell itself.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let ApiError::Store(error) = &self {
            ::log::error!("{}", chain(error));
        }
        let mut response = (self.code().0, Json(self.status())).into_response();
        if matches!(self, ApiError::Unauthorized(_)) {
            // As a 401 has to say (RFC 9110 §15.5.2).
            let how = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
        }
        response
    }
}
