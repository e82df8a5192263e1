//! Why a workload is where it is, or nowhere: host by host.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use crate::model::Object;

/// Knows why workloads are where they are.
#[async_trait]
pub trait Explains: Send + Sync {
    /// Why an object is where it is.
    ///
    /// # Errors
    /// If objects of its kind have no place.
    async fn explain(&self, object: &Object) -> Result<Explanation, ApiError>;
}

/// Why a workload is where it is, or nowhere.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Explanation {
    /// Its group and version.
    pub api_version: String,
    /// `Explanation`.
    pub kind: String,
    /// Of what.
    pub metadata: Of,
    /// Where it has its place.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// What was said when it was placed, or was not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How important it is.
    pub priority: i32,
    /// What each host would be to it now, if it had no place: the best first.
    pub hosts: Vec<Judged>,
    /// Hosts that are not listed.
    pub more: usize,
    /// Who would have to go for it, where there is no room.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub victims: Vec<String>,
    /// Why it would have no place now, and what to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub refusal: String,
}

impl Explanation {
    /// Says how many would have to go, and not who: they may be other tenants'.
    pub fn hide_others(&mut self) {
        if !self.victims.is_empty() {
            self.victims = vec![format!("{} workloads", self.victims.len())];
        }
    }
}

/// Of what an explanation is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Of {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What a host would be to a workload.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Judged {
    /// The host.
    pub host: String,
    /// It would do.
    pub able: bool,
    /// Its score: the largest is taken. One that would do and has none is no better than others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// What each term adds to the score.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub terms: BTreeMap<String, f64>,
    /// Why it would not do, or what it would take.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}
