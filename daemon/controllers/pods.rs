//! What controllers ask of a pod: does it count, is it ready, since when, and who would miss it least.

use std::cmp::Ordering;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The uid of an object; empty only for what was never stored.
pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// The name of an object.
pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The owner that controls an object.
pub(crate) fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// `status.phase`; a pod without one is pending.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether the pod has ended for good.
pub(crate) fn finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod is on its way out.
pub(crate) fn terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether the pod counts as a replica: neither ended nor leaving.
pub(crate) fn active(pod: &Pod) -> bool {
    !finished(pod) && !terminating(pod)
}

/// A condition of the pod.
pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// Whether the pod is ready.
pub(crate) fn ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Since when a ready pod is ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    condition.last_transition_time.as_ref().map(|time| time.0)
}

/// When a ready pod becomes available: ready for `min_ready_seconds`. `None` while it is not ready.
pub(crate) fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let since = ready_since(pod).or_else(|| ready(pod).then_some(Timestamp::MIN))?;
    Some(since.saturating_add(jiff::SignedDuration::from_secs(min_ready_seconds.into())).unwrap_or(since))
}

/// Whether labels say that a selector picks the pod. A selector that cannot be read, or is empty, picks nothing.
pub(crate) fn selected(
    selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    meta: &ObjectMeta,
) -> bool {
    let none = std::collections::BTreeMap::new();
    let labels = meta.labels.as_ref().unwrap_or(&none);
    let exact = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let some =
        selector.match_labels.iter().flatten().count() + selector.match_expressions.iter().flatten().count();
    let expressed = selector.match_expressions.iter().flatten().all(|wanted| {
        let value = labels.get(&wanted.key);
        let listed = value.is_some_and(|value| wanted.values.iter().flatten().any(|known| known == value));
        match wanted.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    some > 0 && exact && expressed
}

/// Whether a selector says nothing: it would pick everything, so controllers that need one do nothing.
pub(crate) fn selects_all(selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector) -> bool {
    let labels = selector.match_labels.iter().flatten().count();
    labels + selector.match_expressions.iter().flatten().count() == 0
}

/// A pod made of a template, controlled by its owner.
pub(crate) fn from_template(template: &PodTemplateSpec, beside: &ObjectMeta, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(beside))),
            namespace: beside.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Orders pods by who goes first when there are too many, as documented for ReplicaSets: not yet on a node, pending,
/// not ready, cheap by `controller.kubernetes.io/pod-deletion-cost`, ready for a shorter time, restarted more often,
/// younger. Times are compared by order of magnitude, so that among pods of about the same age the choice spreads.
pub(crate) fn victims_first(a: &Pod, b: &Pod, now: Timestamp) -> Ordering {
    let magnitude = |time: Option<Timestamp>| {
        let nanos = time.map_or(0, |time| now.duration_since(time).as_nanos().max(0));
        if nanos == 0 { -1 } else { i64::from(nanos.ilog2()) }
    };
    let created = |pod: &Pod| magnitude(pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| running(a).cmp(&running(b)))
        .then_with(|| ready(a).cmp(&ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| magnitude(ready_since(a)).cmp(&magnitude(ready_since(b))))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| created(a).cmp(&created(b)))
        .then_with(|| uid(&a.metadata).cmp(uid(&b.metadata)))
}

/// Whether the pod is bound to a node.
pub(crate) fn assigned(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty())
}

fn running(pod: &Pod) -> u8 {
    match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.iter().flatten();
    annotations
        .filter(|(key, _)| *key == "controller.kubernetes.io/pod-deletion-cost")
        .find_map(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

/// How often containers of the pod were started again: the most restarted one counts.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    containers.map(|container| container.restart_count).max().unwrap_or(0)
}
