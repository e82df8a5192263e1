//! `/ui`: a page that shows a host and its workloads in a browser. Files are in the program, and ask for nothing from
//! elsewhere; what the page shows it asks the API for, with the token that is typed in, or with a certificate.
//!
//! Browsers send certificates also when another site's page asks them to, so whatever says that it comes from another
//! site (`Origin`, RFC 6454) is refused, whether or not it has to do with the page.

mod files;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};

use self::files::FILES;
use crate::api::ApiError;

/// What a browser may do with the page: ask this host, and nobody else (CSP level 3).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// A WebSocket's protocol that is none, but a token: browsers can send no other header with one.
const TOKEN: &str = "skerry.token.";

/// The API with the page beside it.
pub fn around(api: Router) -> Router {
    api.layer(from_fn(serve))
}

async fn serve(mut request: Request, next: Next) -> Response {
    if is_foreign(request.headers()) {
        let what = "it comes from another site's page (Origin), which may not ask this host";
        return ApiError::Forbidden(what.to_owned()).into_response();
    }
    if let Some(name) = request.uri().path().strip_prefix("/ui") {
        return match *request.method() {
            Method::GET | Method::HEAD => page(name),
            _ => ApiError::Method("the page is only read".to_owned()).into_response(),
        };
    }
    lift_token(request.headers_mut());
    next.run(request).await
}

fn page(name: &str) -> Response {
    if name.is_empty() {
        // Names in the page are relative to its folder.
        return (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, "/ui/")]).into_response();
    }
    let found = FILES.iter().find(|(file, ..)| *file == name);
    let Some((_, kind, text)) = found else {
        return ApiError::NoPath(format!("/ui{name}")).into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, *kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // An upgrade is seen at once.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, *text).into_response()
}

/// Whether a browser says that another site's page asks.
fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let site = text("sec-fetch-site");
    if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        // Another site's link to the page itself is no question.
        return text("sec-fetch-mode") != Some("navigate");
    }
    let Some(origin) = text("origin") else {
        return false;
    };
    let named = origin.split_once("://").map(|(_, name)| name);
    named.is_none() || named != text("host")
}

/// Makes the token among a WebSocket's protocols what it is elsewhere.
fn lift_token(headers: &mut HeaderMap) {
    if headers.contains_key(header::AUTHORIZATION) {
        return;
    }
    let protocols = headers.get(header::SEC_WEBSOCKET_PROTOCOL);
    let protocols = protocols.and_then(|value| value.to_str().ok());
    let mut words = protocols.unwrap_or_default().split(',').map(str::trim);
    let token = words.find_map(|word| word.strip_prefix(TOKEN));
    let value = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
    if let Some(value) = value {
        headers.insert(header::AUTHORIZATION, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let all = all.iter().map(|(name, value)| {
            (
                axum::http::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        all.collect()
    }

    #[test]
    fn other_sites_pages_may_not_ask_and_links_from_there_may_lead_here() {
        let here = ("host", "edge:6443");
        for (all, foreign) in [
            (vec![here], false),
            (vec![here, ("origin", "https://edge:6443")], false),
            (vec![here, ("origin", "https://evil")], true),
            (vec![here, ("origin", "null")], true),
            (vec![("origin", "https://evil")], true),
            (vec![here, ("sec-fetch-site", "same-origin")], false),
            (vec![here, ("sec-fetch-site", "cross-site")], true),
            (
                vec![
                    here,
                    ("sec-fetch-site", "same-site"),
                    ("sec-fetch-mode", "no-cors"),
                ],
                true,
            ),
            (
                vec![
                    here,
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                ],
                false,
            ),
        ] {
            assert_eq!(is_foreign(&headers(&all)), foreign, "{all:?}");
        }
    }

    #[test]
    fn a_token_among_protocols_is_one_and_never_instead_of_another() {
        let protocols = (
            "sec-websocket-protocol",
            "skerry.console.v1, skerry.token.ci.00ff",
        );
        let mut all = headers(&[protocols]);
        lift_token(&mut all);
        assert_eq!(all[header::AUTHORIZATION], "Bearer ci.00ff");
        let mut all = headers(&[protocols, ("authorization", "Bearer other.11")]);
        lift_token(&mut all);
        assert_eq!(all[header::AUTHORIZATION], "Bearer other.11");
    }

    #[test]
    fn the_page_asks_nobody_else() {
        for (name, _, text) in FILES {
            // A name, which nobody asks for.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for foreign in [
                "http://",
                "https://",
                "//cdn",
                "@import",
                "innerHTML",
                "eval(",
            ] {
                assert!(!text.contains(foreign), "{name} has {foreign}");
            }
        }
        assert_eq!(page("").status(), StatusCode::PERMANENT_REDIRECT);
        assert_eq!(page("/../secret").status(), StatusCode::NOT_FOUND);
        let served = page("/");
        assert_eq!(served.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
    }
}
