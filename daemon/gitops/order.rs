//! In which order kinds are applied; pruning goes the other way round.
//!
//! Invariant: what others refer to is there before them.

/// GITOPS's documented kind order: what others need comes first.
const KINDS: [&str; 29] = [
    "Namespace",
    "NetworkPolicy",
    "ResourceQuota",
    "LimitRange",
    "PodDisruptionBudget",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "StorageClass",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "CustomResourceDefinition",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "DaemonSet",
    "Pod",
    "ReplicationController",
    "ReplicaSet",
    "Deployment",
    "HorizontalPodAutoscaler",
    "StatefulSet",
    "Job",
    "CronJob",
    "IngressClass",
    "Ingress",
    "APIService",
];

/// A kind's place in the order; kinds that are not in it come last.
pub(crate) fn rank(kind: &str) -> usize {
    KINDS.iter().position(|known| *known == kind).unwrap_or(KINDS.len())
}

/// The wave an object really belongs to: namespaces and kinds are there before anything in any wave.
pub(crate) fn wave(kind: &str, written: i64) -> i64 {
    if matches!(kind, "Namespace" | "CustomResourceDefinition") { i64::MIN } else { written }
}
