//! `/metrics` and `/usage`, and what the API is asked for beside them, counted.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http_body_util::BodyExt;

use super::counts::{ApiCounts, verb};
use super::families;
use super::sample::Sampler;
use super::store::StoreCounts;
use super::text::Text;
use crate::api::{ApiError, Objects, admitted};
use crate::site::SiteCounts;

/// What Prometheus calls its text.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All that is seen and counted.
#[derive(Clone)]
pub struct Telemetry(Arc<Parts>);

struct Parts {
    objects: Objects,
    sampler: Sampler,
    api: ApiCounts,
    store: Arc<StoreCounts>,
    site: Arc<SiteCounts>,
}

impl Telemetry {
    /// Of a host.
    pub fn new(
        objects: Objects,
        sampler: Sampler,
        store: Arc<StoreCounts>,
        site: Arc<SiteCounts>,
    ) -> Telemetry {
        Telemetry(Arc::new(Parts {
            objects,
            sampler,
            api: ApiCounts::default(),
            store,
            site,
        }))
    }

    /// The API with what is seen beside it, and its requests counted.
    pub fn around(&self, api: Router) -> Router {
        api.layer(from_fn_with_state(self.clone(), serve))
    }

    async fn own(&self, request: Request) -> Result<Response, ApiError> {
        let (head, _) = request.into_parts();
        let grant = admitted(&self.0.objects, &head).await?;
        if head.method != Method::GET && head.method != Method::HEAD {
            return Err(ApiError::Method(format!(
                "{} is only read",
                head.uri.path()
            )));
        }
        let sample = self.0.sampler.sample().await?.seen_by(grant.tenant());
        if head.uri.path() == "/usage" {
            return Ok(Json(&sample).into_response());
        }
        let mut text = Text::default();
        if let Some(host) = &sample.host {
            families::host(&mut text, host);
            families::control(&mut text, &self.0.api, &self.0.store, &self.0.site);
        }
        families::workloads(&mut text, &sample);
        families::vms(&mut text, &sample);
        Ok(([(header::CONTENT_TYPE, TEXT)], text.finish()).into_response())
    }
}

async fn serve(State(telemetry): State<Telemetry>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let verb = verb(request.method(), request.uri().query().unwrap_or_default());
    let own = matches!(request.uri().path(), "/metrics" | "/usage");
    let response = match own {
        true => telemetry.own(request).await,
        false => Ok(next.run(request).await),
    };
    let response = response.unwrap_or_else(IntoResponse::into_response);
    let api = &telemetry.0.api;
    api.answered(verb, response.status().as_u16(), begun.elapsed());
    if verb != "watch" || !response.status().is_success() {
        return response;
    }
    let open = api.watched();
    response.map(|body| {
        // It is open as long as somebody reads it.
        Body::new(body.map_frame(move |frame| {
            let _ = &open;
            frame
        }))
    })
}
