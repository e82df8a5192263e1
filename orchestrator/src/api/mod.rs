//! The API: Kubernetes's REST conventions over the kinds of the model, so that `kubectl` and client
//! libraries work. One implementation serves every kind.
//!
//! | path | what |
//! |---|---|
//! | `/apis/skerry.io/v1[/namespaces/NS]/KINDS[/NAME[/status]]` | our kinds |
//! | `…/KINDS/NAME/log[?follow=true]` | what a workload says |
//! | `…/KINDS/NAME/exec`, `…/KINDS/NAME/console` | connections into a workload ([`reach`]) |
//! | `…/KINDS/NAME/console` as a WebSocket | the same for browsers |
//! | `…/KINDS/NAME/explanation` | why it is where it is, or nowhere |
//! | `/api/v1/…` | namespaces and events |
//! | `/api`, `/apis`, `/openapi/v3`, `/version` | discovery |
//! | `/readyz`, `/livez`, `/healthz` | `ok` |

mod caller;
mod connections;
mod deletion;
mod discovery;
mod error;
mod explanation;
mod fields;
mod follow;
mod listen;
mod log;
mod objects;
mod openapi;
mod patch;
mod quota;
pub mod reach;
mod select;
mod serve;
mod socket;
mod table;
mod verbs;
mod watch;

pub use caller::{Caller, Grant, digest, sweep};
pub use deletion::{Deletion, Propagation};
pub use error::ApiError;
pub use explanation::{Explains, Explanation, Judged, Of};
pub use follow::{Follow, Turn};
pub use listen::{Listening, Tls, TlsError};
pub use log::Logs;
pub use objects::{List, ObjectWatch, Objects, Part, Seen, rest, revision_of};
pub use openapi::document;
pub use quota::used;
pub use select::Selector;
pub use serve::{admitted, router};
