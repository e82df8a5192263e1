//! The scheduler: inventory and requests in, places with reasons out. It does no I/O, and has neither a
//! clock nor chance of its own: the same calls give the same places.
//!
//! ```text
//! host.rs, select.rs, request.rs   what there is, and what is asked for
//! cluster.rs, inventory.rs         the tables: hosts come and go, places are reserved and given back
//! demand.rs, ledger.rs             what a request takes; the books of one host
//! gates.rs, choose.rs              the filter: by words, by amounts
//! score.rs, mix.rs                 the score
//! hostset.rs, grid.rs, index.rs, works.rs   the indices: sets, hosts by what is free, by labels, what runs
//! preempt.rs                       who has to go for a more important request
//! explain.rs, refusal.rs, measure.rs        reasons, and how full it is
//! ```

mod choose;
mod cluster;
mod demand;
mod explain;
mod gates;
mod grid;
mod host;
mod hostset;
mod index;
mod inventory;
mod ledger;
mod measure;
mod mix;
mod placement;
mod preempt;
mod refusal;
mod request;
mod score;
mod select;
mod works;

pub use cluster::{Cluster, Packing, PlaceError, Policy};
pub use demand::{FactorError, MICRO, Overcommit};
pub use explain::{Explanation, Ranked, Verdict};
pub use host::{Effect, Host, InventoryError, Labels, NumaNode, Taint};
pub use ledger::Amounts;
pub use measure::{HostUsage, Lost, Usage, Workload};
pub use placement::{NodeShare, Placement};
pub use preempt::{Preempted, Victim};
pub use refusal::{Miss, Nearest, Reason, Refusal};
pub use request::{
    Kind, Malformed, Near, Preemption, Preferred, Request, Spread, Tier, Toleration, Topology,
};
pub use score::{Terms, Weights};
pub use select::{Rule, Selector, Term};

#[cfg(test)]
mod cluster_test;
#[cfg(test)]
mod property_test;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod words_test;
