//! The scheduler: gives every pod a node, or says exactly why it has none.
//!
//! Invariant: what a pod takes is counted from the moment its binding is asked for, so two pods never get the same
//! room, however many are bound at once.
//! Invariant: an unschedulable pod is looked at again when something changed that could help it, never by a timer.

mod ask;
mod class;
mod config;
mod demand;
mod effects;
mod filter;
mod hints;
mod ledger;
mod near;
mod node;
mod offline;
mod plan;
mod preempt;
mod round;
mod score;
mod spread;
mod tally;
mod volumes;
mod work;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod simulation;

pub use config::{Config, Strategy};
pub use offline::{Place, place};
pub use work::start;

/// What a round of the scheduler fails with. The loop tries again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pod could not be bound.
    #[error("bind pod {pod} to node {node}")]
    Bind {
        /// Namespace and name.
        pod: String,
        /// The node that was chosen.
        node: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The volumes of a pod could not be asked for.
    #[error("claim volumes for pod {pod} on node {node}")]
    Claim {
        /// Namespace and name.
        pod: String,
        /// The node that was chosen.
        node: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// A pod could not be told to leave for a more important one.
    #[error("preempt pod {pod} on node {node}")]
    Preempt {
        /// Namespace and name of the one that was to leave.
        pod: String,
        /// Its node.
        node: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// It could not be said why a pod has no node.
    #[error("report on pod {pod}")]
    Report {
        /// Namespace and name.
        pod: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}
