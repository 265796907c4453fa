//! Which nodes the template of a DaemonSet fits, and the pod that is made for one of them.
//!
//! Invariant: a pod names its node by `metadata.name` in its required node affinity, which only that node has.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    Taint, Toleration,
};

use crate::history::REVISION_HASH;
use crate::names::hash;
use crate::pods::{self, name};
use crate::step::controlled_by;

const NAME_FIELD: &str = "metadata.name";
const GENERATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";

/// What a node is to a DaemonSet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fit {
    /// A pod runs there.
    Runs,
    /// None is made there, but one that runs there may stay.
    MayStay,
    /// None runs there.
    #[default]
    Never,
}

/// What the node is to the set.
pub(crate) fn fit(spec: &DaemonSetSpec, node: &Node) -> Fit {
    let Some(pod) = &spec.template.spec else { return Fit::Never };
    let named =
        pod.node_name.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == name(&node.metadata));
    if !named || !selected(pod, node) {
        return Fit::Never;
    }
    let tolerations = tolerations(pod);
    let taints = node.spec.iter().filter_map(|spec| spec.taints.as_ref()).flatten();
    let mut against = taints.filter(|taint| !tolerations.iter().any(|one| tolerates(one, taint)));
    let first = against.clone().find(|taint| taint.effect != "PreferNoSchedule");
    match first {
        None => Fit::Runs,
        Some(_) if against.any(|taint| taint.effect == "NoExecute") => Fit::Never,
        Some(_) => Fit::MayStay,
    }
}

/// What of a node matters to DaemonSets, as a number: its labels and taints do, its heartbeat does not.
pub(crate) fn what_fits(node: &Node) -> u64 {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let text = serde_json::to_string(&(&node.metadata.uid, &node.metadata.labels, taints));
    hash(text.expect("labels and taints can be written as JSON").as_bytes())
}

fn selected(pod: &PodSpec, node: &Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let by_labels = pod.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = pod.affinity.as_ref().and_then(|affinity| {
        affinity.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
    });
    by_labels
        && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| fits(term, node)))
}

/// A term without requirements fits nothing, as documented.
fn fits(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let fields = BTreeMap::from([(NAME_FIELD.to_owned(), name(&node.metadata).to_owned())]);
    let by_labels = term.match_expressions.iter().flatten();
    let by_fields = term.match_fields.iter().flatten();
    by_labels.clone().chain(by_fields.clone()).next().is_some()
        && by_labels.into_iter().all(|wanted| holds(wanted, &labels))
        && by_fields.into_iter().all(|wanted| holds(wanted, &fields))
}

fn holds(wanted: &NodeSelectorRequirement, values: &BTreeMap<String, String>) -> bool {
    let value = values.get(&wanted.key);
    let listed = wanted.values.iter().flatten();
    let is_listed = value.is_some_and(|value| listed.clone().any(|one| one == value));
    let number = || Some((value?.parse::<i64>().ok()?, listed.clone().next()?.parse::<i64>().ok()?));
    match wanted.operator.as_str() {
        "In" => is_listed,
        "NotIn" => !is_listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number().is_some_and(|(value, than)| value > than),
        "Lt" => number().is_some_and(|(value, than)| value < than),
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let same_effect = said(&toleration.effect).is_none_or(|effect| effect == taint.effect);
    let same_key = said(&toleration.key).is_none_or(|key| key == taint.key);
    let value = taint.value.clone().unwrap_or_default();
    let same_value = toleration.operator.as_deref() == Some("Exists")
        || toleration.value.clone().unwrap_or_default() == value && toleration.key.is_some();
    same_effect && same_key && same_value
}

/// The tolerations of the template and those that every daemon has: it stays where a node is in trouble.
fn tolerations(pod: &PodSpec) -> Vec<Toleration> {
    let mut all = pod.tolerations.clone().unwrap_or_default();
    let mut add = |key: &str, effect: &str| {
        let toleration = Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    };
    add("not-ready", "NoExecute");
    add("unreachable", "NoExecute");
    for trouble in ["disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"] {
        add(trouble, "NoSchedule");
    }
    if pod.host_network == Some(true) {
        add("network-unavailable", "NoSchedule");
    }
    all
}

/// The node that a pod is on, or is made for.
pub(crate) fn node_of(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.clone().filter(|node| !node.is_empty()) {
        return Some(node);
    }
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = required.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let mut named = fields.filter(|field| field.key == NAME_FIELD && field.operator == "In");
    named.find_map(|field| field.values.as_ref()?.first().cloned())
}

/// The pod for a node.
pub(crate) fn pod(set: &DaemonSet, revision: &str, node: &str, called: String) -> Pod {
    let template = set.spec.clone().unwrap_or_default().template;
    let mut pod = pods::from_template(&template, &set.metadata, controlled_by(set));
    pod.metadata.name = Some(called);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_HASH.to_owned(), revision.to_owned());
    if let Some(generation) = set.metadata.annotations.as_ref().and_then(|all| all.get(GENERATION)) {
        labels.insert(GENERATION_LABEL.to_owned(), generation.clone());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    bind(spec.affinity.get_or_insert_default(), node);
    pod
}

/// Puts the node's name in place of whatever else the required terms say: they were looked at already.
fn bind(affinity: &mut Affinity, node: &str) {
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    let named = NodeSelectorRequirement {
        key: NAME_FIELD.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: None, match_fields: Some(vec![named]) };
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}
