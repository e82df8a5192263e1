//! Snapshots: a machine kept whole at one moment, and machines made of that.
//!
//! Taking one ([`take`]) has three parts: copy memory while the guest runs, freeze what is left in a pause,
//! and make it durable while the guest runs again. Only the pause is the monitor's; the rest is done on a
//! thread of its own. Restoring one ([`plan`]) first finds everything that stands in the way.

mod error;
mod kept;
mod places;
mod plan;
mod served;
mod sink;
mod take;

pub use error::SnapshotRequestError;
pub use kept::Kept;
pub use places::{absolute, overlay_paths};
pub use plan::{Plan, find_lacking, fits, identify};
pub use served::{check_migrates, is_served};
pub use take::{Ending, Origin, Taking, Tracking, describe};
