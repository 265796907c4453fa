//! The controllers: one file per kind that keeps its objects as asked for.
//!
//! Invariant: a controller knows the door and the caches, never the store, the node or another controller.
//! Invariant: every controller is a `reconcile::Reconciler`; what it decides is a pure function of what it saw.

mod certificate;
mod claims;
pub mod cluster;
mod cronjob;
mod daemonset;
mod defined;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod eventttl;
mod garbage;
mod history;
mod horizontal;
mod job;
mod loadbalancer;
mod names;
mod namespace;
mod nodelifecycle;
mod owned;
mod podgc;
mod pods;
mod replicas;
mod replicaset;
mod replicationcontroller;
mod resourcequota;
mod serviceaccount;
mod start;
mod statefulset;
mod step;
mod storage;
mod tainteviction;
mod wakes;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod simulation;

pub use start::start;

/// What a controller's round fails with. The loop tries again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster did not answer a question.
    #[error("read {what}")]
    Read {
        /// Kind, namespace and name.
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// An object could not be made.
    #[error("create {what}")]
    Create {
        /// Kind, namespace and name.
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The name that follows from the owner belongs to an object of someone else.
    #[error(
        "create {what}: the name belongs to an object that this owner does not control; delete or rename that one"
    )]
    NameTaken {
        /// Kind, namespace and name.
        what: String,
    },
    /// An object could not be changed; a conflict means that it changed meanwhile and is looked at again.
    #[error("update {what}")]
    Update {
        /// Kind, namespace and name.
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// A directory of a volume could not be made or removed.
    #[error("make or remove directory {path} of a volume")]
    Directory {
        /// Where.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An object could not be deleted.
    #[error("delete {what}")]
    Delete {
        /// Kind, namespace and name.
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}
