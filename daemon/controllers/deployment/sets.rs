//! The ReplicaSets of a Deployment: which one is the new one, and what all of them have together.
//!
//! Invariant: the new set is the oldest of those with the Deployment's template, as in Kubernetes.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetStatus};

use super::{DESIRED, REVISION, wanted};
use crate::names::without_hash;
use crate::pods::{controller, name, uid};

/// Sets in order of age.
pub(crate) struct Sets {
    /// The one with the template that the Deployment has now.
    pub(crate) new: Option<Arc<ReplicaSet>>,
    /// The others, the oldest first.
    pub(crate) old: Vec<Arc<ReplicaSet>>,
    desired: i32,
}

impl Sets {
    /// Finds the new one among those that the Deployment controls.
    pub(crate) fn sort(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Sets {
        let ours = |set: &&Arc<ReplicaSet>| {
            controller(&set.metadata).is_some_and(|owner| owner.uid == uid(&deployment.metadata))
        };
        let mut sets: Vec<Arc<ReplicaSet>> = sets.iter().filter(ours).cloned().collect();
        sets.sort_by(|a, b| {
            let created = |set: &ReplicaSet| set.metadata.creation_timestamp.clone();
            created(a).cmp(&created(b)).then_with(|| name(&a.metadata).cmp(name(&b.metadata)))
        });
        let template = deployment.spec.as_ref().map(|spec| without_hash(&spec.template));
        let same = |set: &Arc<ReplicaSet>| {
            let of_set = set.spec.as_ref().and_then(|spec| spec.template.as_ref()).map(without_hash);
            of_set == template
        };
        let new = sets.iter().position(same).map(|at| sets.remove(at));
        Sets { new, old: sets, desired: wanted(deployment) }
    }

    /// All of them, the oldest first and the new one last.
    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    /// Those that are to have pods.
    pub(crate) fn active(&self) -> Vec<&Arc<ReplicaSet>> {
        self.all().filter(|set| size(set) > 0).collect()
    }

    /// Pods asked for.
    pub(crate) fn asked(&self) -> i32 {
        self.all().map(|set| size(set)).sum()
    }

    /// Pods asked for, or still there although fewer are asked for: a set is not smaller before its pods were deleted.
    pub(crate) fn there(&self) -> i32 {
        self.all().map(|set| size(set).max(reported(set).replicas)).sum()
    }

    /// Pods that are available and were not already given up: what a set reports may be older than its last scaling.
    pub(crate) fn safely_available(&self) -> i32 {
        self.all().map(|set| safely_available(set)).sum()
    }

    /// Whether the Deployment was scaled since its sets were.
    pub(crate) fn scaling(&self) -> bool {
        self.active().iter().any(|set| annotated(set, DESIRED).is_some_and(|known| known != self.desired))
    }

    /// The highest number in the history of the old sets.
    pub(crate) fn last_old_revision(&self) -> i64 {
        self.old.iter().map(|set| revision(set)).max().unwrap_or(0)
    }
}

/// Pods asked of a set.
pub(crate) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// What the set reports.
pub(crate) fn reported(set: &ReplicaSet) -> ReplicaSetStatus {
    set.status.clone().unwrap_or_default()
}

/// Whether what the set reports is about the size that it has now.
pub(crate) fn seen(set: &ReplicaSet) -> bool {
    set.metadata.generation <= reported(set).observed_generation
}

/// Pods of a set that will still be available when it has done what was asked.
pub(crate) fn safely_available(set: &ReplicaSet) -> i32 {
    reported(set).available_replicas.unwrap_or(0).min(size(set))
}

/// A number in an annotation.
pub(crate) fn annotated(set: &ReplicaSet, key: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

/// The number of the set's template in the history; 0 when it has none.
pub(crate) fn revision(set: &ReplicaSet) -> i64 {
    let annotations: Option<&BTreeMap<String, String>> = set.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(REVISION)).and_then(|text| text.parse().ok()).unwrap_or(0)
}
