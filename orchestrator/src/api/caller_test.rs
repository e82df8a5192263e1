//! Tests of who may do what.

use axum::http::HeaderValue;
use tempfile::TempDir;

use super::*;
use crate::model::{KINDS, Meta, Timestamp, untyped};
use crate::store::Embedded;

fn objects() -> (TempDir, Objects) {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(&folder.path().join("store")).unwrap();
    (folder, Objects::new(std::sync::Arc::new(store)))
}

async fn keep(objects: &Objects, name: &str, spec: TokenSpec) {
    let meta = Meta {
        name: name.to_owned(),
        ..Meta::default()
    };
    let token = Token {
        spec,
        ..Token::default()
    };
    objects.create(untyped(meta, &token), false).await.unwrap();
}

fn spec(token: &str) -> TokenSpec {
    TokenSpec {
        sha256: digest(token),
        ..TokenSpec::default()
    }
}

async fn sent(objects: &Objects, caller: Caller, value: &str) -> Result<Grant, ApiError> {
    let mut headers = HeaderMap::new();
    if !value.is_empty() {
        headers.insert(
            header::AUTHORIZATION,
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    admit(objects, caller, &headers).await
}

fn place(kind: &str, namespace: &str, part: Part) -> Place {
    Place {
        kind: KINDS.iter().find(|one| one.plural == kind).unwrap(),
        namespace: namespace.to_owned(),
        name: "one".to_owned(),
        part,
    }
}

#[tokio::test]
async fn strangers_need_a_token_that_is_known_whole_and_not_over() {
    let (_folder, objects) = objects();
    keep(&objects, "good", spec("good.secret")).await;
    keep(&objects, "dotted.name", spec("dotted.name.secret")).await;
    let over = TokenSpec {
        expires: Some(Timestamp::after(Duration::ZERO)),
        ..spec("over.secret")
    };
    keep(&objects, "over", over).await;
    assert_eq!(sent(&objects, Caller::Known, "").await.unwrap(), Grant::All);
    for value in ["Bearer good.secret", "bearer  dotted.name.secret"] {
        let grant = sent(&objects, Caller::Stranger, value).await.unwrap();
        assert!(matches!(grant, Grant::Token { .. }), "{value}");
    }
    let long = format!("Bearer good.{}", "x".repeat(100_000));
    for value in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer good.other",
        "Bearer good",
        "Bearer good.",
        "Bearer over.secret",
        "Bearer nobody.secret",
        "Bearer ../x.secret",
        "Basic good.secret",
        &long,
    ] {
        let refused = sent(&objects, Caller::Stranger, value).await;
        assert!(matches!(refused, Err(ApiError::Unauthorized(_))), "{value}");
    }
    // A token that is sent counts, whoever sends it.
    assert!(
        sent(&objects, Caller::Known, "Bearer good.other")
            .await
            .is_err()
    );
}

#[test]
fn a_token_allows_what_it_says() {
    let grant = |namespace: Option<&str>, read_only| Grant::Token {
        name: "t".to_owned(),
        spec: TokenSpec {
            namespace: namespace.map(str::to_owned),
            read_only,
            ..TokenSpec::default()
        },
    };
    let may = |grant: &Grant, method: Method, place: Place| grant.check(&method, &place).is_ok();
    let own = |part| place("microvms", "own", part);
    let looks = grant(Some("own"), true);
    assert!(may(&looks, Method::GET, own(Part::Spec)));
    assert!(may(&looks, Method::GET, own(Part::Log)));
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        assert!(!may(&looks, method, own(Part::Spec)));
    }
    assert!(!may(&looks, Method::POST, own(Part::Exec)));
    assert!(!may(&looks, Method::POST, own(Part::Console)));
    let tenant = grant(Some("own"), false);
    assert!(may(&tenant, Method::POST, own(Part::Exec)));
    assert!(may(&tenant, Method::DELETE, own(Part::Spec)));
    assert!(!may(&tenant, Method::PUT, own(Part::Status)));
    for other in ["", "other"] {
        assert!(!may(
            &tenant,
            Method::GET,
            place("microvms", other, Part::Spec)
        ));
    }
    for kind in ["tokens", "hosts", "namespaces"] {
        assert!(!may(&tenant, Method::GET, place(kind, "", Part::Spec)));
    }
    let all = grant(None, false);
    assert!(may(&all, Method::POST, place("namespaces", "", Part::Spec)));
    assert!(may(&all, Method::GET, place("tokens", "", Part::Spec)));
    assert!(!may(&all, Method::POST, place("tokens", "", Part::Spec)));
    assert!(!may(&all, Method::DELETE, place("tokens", "", Part::Spec)));
    assert!(!may(
        &grant(None, true),
        Method::POST,
        place("tokens", "", Part::Spec)
    ));
}

#[tokio::test]
async fn what_goes_on_ends_with_its_token() {
    let (_folder, objects) = objects();
    keep(&objects, "t", spec("t.secret")).await;
    let grant = sent(&objects, Caller::Stranger, "Bearer t.secret").await;
    let look = Duration::from_millis(1);
    let ended = grant.unwrap().ended_seen_every(look, objects.clone());
    tokio::pin!(ended);
    let still = tokio::time::timeout(look * 50, &mut ended).await;
    assert!(still.is_err());
    let kind = kind_of::<Token>();
    let deleted = objects.delete(kind, "", "t", "", None, false).await;
    deleted.unwrap();
    // Another token of the same name is not the same.
    keep(&objects, "t", spec("t.other")).await;
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, ended).await.unwrap();
}
