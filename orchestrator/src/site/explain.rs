//! Why a workload is where it is, from the books that places are given by.

use async_trait::async_trait;

use super::books::Books;
use super::place::{Placer, claimable};
use super::request::request;
use crate::api::{ApiError, Explains, Explanation, Judged, Of};
use crate::model::{AGENT, BareMetal, Object, WorkloadStatus, kind_of};
use crate::schedule::{Preemption, Request, Verdict};

/// Hosts that are listed.
const HOSTS: usize = 64;

#[async_trait]
impl Explains for Placer {
    async fn explain(&self, object: &Object) -> Result<Explanation, ApiError> {
        if !object.kind.finalizers.contains(&AGENT) {
            let what = object.kind.singular;
            return Err(ApiError::Method(format!(
                "a {what} has no place: ask for a microvm, a container or a baremetal"
            )));
        }
        let (request, status) = request(object)?;
        let claim = object.kind == kind_of::<BareMetal>();
        self.look(object, |books| {
            let mut explanation = known(object, &request, status);
            match claim {
                true => judge_claim(books, &request, &mut explanation),
                false => judge(books, &request, &mut explanation),
            }
            explanation.more = books.hosts.len().saturating_sub(explanation.hosts.len());
            explanation
        })
        .await
    }
}

/// What its status says.
fn known(object: &Object, request: &Request, status: WorkloadStatus) -> Explanation {
    let scheduled = status.conditions.into_iter();
    let scheduled = scheduled.into_iter().find(|c| c.kind == "Scheduled");
    Explanation {
        api_version: object.kind.api_version(),
        kind: "Explanation".to_owned(),
        metadata: Of {
            namespace: object.meta.namespace.clone(),
            name: object.meta.name.clone(),
        },
        host: status.host,
        message: scheduled.map(|c| c.message).unwrap_or_default(),
        priority: request.priority,
        ..Explanation::default()
    }
}

fn judge(books: &Books, request: &Request, explanation: &mut Explanation) {
    match books.cluster.verdicts(request, HOSTS) {
        Ok(verdicts) => explanation.hosts = verdicts.into_iter().map(judged).collect(),
        Err(refusal) => explanation.refusal = refusal.to_string(),
    }
    if !explanation.host.is_empty() || explanation.hosts.iter().any(|host| host.able) {
        return;
    }
    if request.preemption == Preemption::Never {
        return;
    }
    // Of this nothing is kept.
    match books.cluster.clone().preempt(request) {
        Ok(preempted) => {
            let works = preempted.victims.iter();
            let works = works.filter_map(|victim| books.works.get(&victim.id));
            explanation.victims = works.map(|work| work.shown()).collect();
        }
        Err(refusal) => explanation.refusal = refusal.to_string(),
    }
}

fn judged(verdict: Verdict) -> Judged {
    let (score, terms) = match verdict.ranked {
        Some(ranked) => (Some(ranked.score), ranked.terms),
        None => (None, Vec::new()),
    };
    let terms = terms
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    Judged {
        host: verdict.host,
        able: verdict.miss.is_none(),
        score,
        terms: terms.collect(),
        why: verdict.miss.map(|miss| miss.why()).unwrap_or_default(),
    }
}

fn judge_claim(books: &Books, request: &Request, explanation: &mut Explanation) {
    let hosts = claimable(books, request);
    let judged = hosts.iter().take(HOSTS).map(|(host, able)| Judged {
        host: (*host).clone(),
        able: able.is_ok(),
        why: match able {
            Ok((_, 0)) => String::new(),
            Ok((_, 1)) => "one workload would have to go".to_owned(),
            Ok((_, count)) => format!("{count} workloads would have to go"),
            Err(why) => (*why).to_owned(),
        },
        ..Judged::default()
    });
    explanation.hosts = judged.collect();
    explanation.hosts.sort_by_key(|host| !host.able);
}
