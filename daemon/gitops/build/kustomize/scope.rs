//! Which kinds live in no namespace, as kustomize knows it: Kubernetes' own ones, and nothing of the cluster at hand.

/// Kinds of Kubernetes' own groups that live in no namespace.
const CLUSTER: &[&str] = &[
    "APIService",
    "CSIDriver",
    "CSINode",
    "CertificateSigningRequest",
    "ClusterRole",
    "ClusterRoleBinding",
    "ComponentStatus",
    "CustomResourceDefinition",
    "FlowSchema",
    "IngressClass",
    "MutatingWebhookConfiguration",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PodSecurityPolicy",
    "PriorityClass",
    "PriorityLevelConfiguration",
    "RuntimeClass",
    "SelfSubjectAccessReview",
    "SelfSubjectRulesReview",
    "StorageClass",
    "SubjectAccessReview",
    "TokenReview",
    "ValidatingWebhookConfiguration",
    "VolumeAttachment",
];

/// Whether objects of this kind live in no namespace.
pub(super) fn is_cluster(group: &str, kind: &str) -> bool {
    let builtin = !group.contains('.') || group.ends_with(".k8s.io");
    builtin && CLUSTER.contains(&kind)
}
