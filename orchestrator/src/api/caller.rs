//! Who asks, and what they may: the host's own user and those with certificates everything, those with a token
//! what it says.

use std::time::Duration;

use axum::http::{HeaderMap, Method, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use super::objects::{Objects, Part};
use super::verbs::Place;
use crate::model::{BareMetal, Token, TokenSpec, kind_of, typed};

/// How often is looked whether a token that has an open connection is still worth something.
const LOOK: Duration = Duration::from_secs(5);
/// How often tokens that are worth nothing any more are removed.
const SWEEP: Duration = Duration::from_secs(60);
/// Bytes of a token. Ours have a name, a dot and 64 digits.
const LONGEST: usize = 512;

/// How somebody is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Over the host's own socket, or with a certificate of its authority.
    Known,
    /// Over the network, without a certificate: needs a token.
    Stranger,
}

/// What somebody may do.
#[derive(Debug, Clone, PartialEq)]
pub enum Grant {
    /// Everything.
    All,
    /// What a token says.
    Token {
        /// The token's name.
        name: String,
        /// What it says.
        spec: TokenSpec,
    },
}

/// Finds out what a request's sender may do. A token that is sent counts, also beside a certificate: whoever
/// sends one asks for no more.
///
/// # Errors
/// [`ApiError::Unauthorized`] without a way to tell, or with a token that is worth nothing.
pub async fn admit(
    objects: &Objects,
    caller: Caller,
    headers: &HeaderMap,
) -> Result<Grant, ApiError> {
    let Some(sent) = headers.get(header::AUTHORIZATION) else {
        return match caller {
            Caller::Known => Ok(Grant::All),
            Caller::Stranger => Err(ApiError::Unauthorized(
                "show a certificate of this host's authority, or send a token (`skerry token create` makes one)"
                    .to_owned(),
            )),
        };
    };
    let token = sent.to_str().ok().and_then(bearer);
    let found = match token {
        Some((name, token)) => find(objects, name, token).await?,
        None => None,
    };
    // Whether there is such a token, or its secret is another, or it is over: nobody learns.
    found.ok_or_else(|| {
        ApiError::Unauthorized(
            "the token that was sent is not, or no more, worth anything here".to_owned(),
        )
    })
}

/// A token and its name, which is all before its last dot, if it may be one.
fn bearer(text: &str) -> Option<(&str, &str)> {
    let (scheme, token) = text.split_once(' ')?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.len() > LONGEST {
        return None;
    }
    token.rsplit_once('.').map(|(name, _)| (name, token))
}

/// What is kept of a token.
pub fn digest(token: &str) -> String {
    let digest = Sha256::digest(token);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn find(objects: &Objects, name: &str, token: &str) -> Result<Option<Grant>, ApiError> {
    let digest = digest(token);
    let Some(spec) = named(objects, name).await? else {
        return Ok(None);
    };
    let same: bool = digest.as_bytes().ct_eq(spec.sha256.as_bytes()).into();
    Ok((same && spec.is_valid()).then(|| Grant::Token {
        name: name.to_owned(),
        spec,
    }))
}

async fn named(objects: &Objects, name: &str) -> Result<Option<TokenSpec>, ApiError> {
    match objects.get(kind_of::<Token>(), "", name).await {
        Ok(object) => Ok(typed::<Token>(&object).ok().map(|token| token.spec)),
        // Also what can be no name.
        Err(ApiError::NotFound { .. } | ApiError::Request(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Grant {
    /// Refuses what is not allowed.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`].
    pub fn check(&self, method: &Method, place: &Place) -> Result<(), ApiError> {
        let Grant::Token { name, spec } = self else {
            return Ok(());
        };
        let refused = |why: &str| Err(ApiError::Forbidden(format!("the token `{name}` {why}")));
        if spec.read_only && *method != Method::GET && *method != Method::HEAD {
            return refused("is for looking alone");
        }
        if *place.kind == *kind_of::<Token>() && *method != Method::GET {
            // Or it could make itself one that lasts longer, or may do more.
            return refused("changes no tokens: that is for the host's owner and certificates");
        }
        let Some(namespace) = &spec.namespace else {
            return Ok(());
        };
        if !place.kind.namespaced {
            let what = format!(
                "is for the namespace `{namespace}` alone, and {} are in none",
                place.kind.plural
            );
            return refused(&what);
        }
        if place.namespace != *namespace {
            let what = format!("is for the namespace `{namespace}` alone: name it (--namespace)");
            return refused(&what);
        }
        let looks = *method == Method::GET || *method == Method::HEAD;
        if place.kind == kind_of::<BareMetal>() && !looks {
            return refused("is for one namespace, and a claim takes a host from all of them");
        }
        if place.part == Part::Status && *method != Method::GET {
            return refused("changes no status: that is the agent's");
        }
        Ok(())
    }

    /// The tenant that it is for alone, if it is.
    pub fn tenant(&self) -> Option<&str> {
        match self {
            Grant::Token { spec, .. } => spec.namespace.as_deref(),
            Grant::All => None,
        }
    }

    /// The token's name, if it is one's.
    pub fn token(&self) -> Option<&str> {
        match self {
            Grant::Token { name, .. } => Some(name),
            Grant::All => None,
        }
    }

    /// Waits until it is worth nothing any more: what goes on for long ends then.
    pub async fn ended(self, objects: Objects) {
        self.ended_seen_every(LOOK, objects).await;
    }

    async fn ended_seen_every(self, look: Duration, objects: Objects) {
        let Grant::Token { name, spec } = self else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(look).await;
            match named(&objects, &name).await {
                // Another of the same name, or with other rights, is another.
                Ok(Some(now)) if now == spec && now.is_valid() => {}
                // A store that does not answer says nothing about it.
                Err(_) if spec.is_valid() => {}
                _ => return,
            }
        }
    }
}

/// Removes tokens that are worth nothing any more, for ever.
pub async fn sweep(objects: Objects) {
    loop {
        let (tokens, _) = objects.all::<Token>().await.unwrap_or_default();
        for token in tokens {
            let over = typed::<Token>(&token).is_ok_and(|token| !token.spec.is_valid());
            if over {
                let meta = &token.meta;
                // Whoever was quicker made it another, or removed it.
                let _ = objects
                    .delete(token.kind, "", &meta.name, &meta.uid, None, false)
                    .await;
            }
        }
        tokio::time::sleep(SWEEP).await;
    }
}

#[cfg(test)]
#[path = "caller_test.rs"]
mod tests;
