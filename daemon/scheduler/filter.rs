//! Which nodes can take a pod, as far as that depends on the node alone, and why the others cannot, in the words of
//! Kubernetes.
//!
//! Invariant: as in Kubernetes the first check that fails gives the reason; only lacking resources are told together.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration,
};

use crate::ask::{Ask, required_nodes};
use crate::node::{Facts, NodeView};

/// Why a node cannot take a pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    /// Told with the number of nodes that say so.
    pub(crate) reasons: Vec<String>,
    /// Whether fewer pods on the node could help.
    pub(crate) room_would_help: bool,
    /// Which kind of change could help.
    pub(crate) cause: Cause,
}

/// What kept a pod from a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// What the node is.
    Node,
    /// Its resources or ports are taken.
    Room,
    /// Nobody is there beside whom the pod must be.
    Near,
    /// Somebody is there beside whom the pod must not be.
    Far,
    /// Pods would be spread too unevenly.
    Spread,
    /// Its volumes.
    Volumes,
}

impl Refusal {
    /// Nothing that leaves the node would help.
    pub(crate) fn always(cause: Cause, reason: &str) -> Option<Refusal> {
        Some(Refusal { reasons: vec![reason.to_owned()], room_would_help: false, cause })
    }

    /// A pod that leaves the node could help.
    pub(crate) fn for_now(cause: Cause, reason: &str) -> Option<Refusal> {
        Some(Refusal { reasons: vec![reason.to_owned()], room_would_help: true, cause })
    }
}

/// What a node is against what a pod asks for.
pub(crate) fn unfit(ask: &Ask, facts: &Facts) -> Option<Refusal> {
    if facts.unschedulable && !tolerated(ask.tolerations(), &unschedulable_taint()) {
        return Refusal::always(Cause::Node, "node(s) were unschedulable");
    }
    if facts.taints.iter().any(|taint| !tolerated(ask.tolerations(), taint)) {
        return Refusal::always(Cause::Node, "node(s) had untolerated taint(s)");
    }
    if !wants(ask, facts) {
        return Refusal::always(Cause::Node, "node(s) didn't match Pod's node affinity/selector");
    }
    None
}

/// What is taken of a node against what a pod takes.
pub(crate) fn crowded(ask: &Ask, view: &NodeView) -> Option<Refusal> {
    let clash = |wanted| view.used.ports.iter().any(|taken| taken.conflicts(wanted));
    if ask.demand.ports.iter().any(clash) {
        return Refusal::for_now(Cause::Room, "node(s) didn't have free ports for the requested pod ports");
    }
    if view.fits(&ask.demand.amounts) {
        return None;
    }
    let lacking: Vec<&str> = view.lacks(&ask.demand.amounts).collect();
    // What the node does not have at all cannot be made free.
    let room_would_help =
        lacking.iter().all(|name| ask.demand.amounts.get(name) <= view.facts.allocatable.get(name));
    let reason = |name: &&str| match *name {
        "pods" => "Too many pods".to_owned(),
        name => format!("Insufficient {name}"),
    };
    Some(Refusal { reasons: lacking.iter().map(reason).collect(), room_would_help, cause: Cause::Room })
}

fn unschedulable_taint() -> Taint {
    Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

/// Whether one of the tolerations bears a taint.
pub(crate) fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    let tolerates = |toleration: &Toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        let value = toleration.value.as_deref().unwrap_or_default();
        let has = taint.value.as_deref().unwrap_or_default();
        let operator = toleration.operator.as_deref().unwrap_or_default();
        let number = |text: &str| text.parse::<i64>().ok();
        let holds = match operator {
            "Exists" => true,
            "Gt" => number(has).zip(number(value)).is_some_and(|(has, than)| has > than),
            "Lt" => number(has).zip(number(value)).is_some_and(|(has, than)| has < than),
            _ => value == has,
        };
        (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && operator == "Exists"))
            && holds
    };
    tolerations.iter().any(tolerates)
}

/// `nodeSelector` and the required part of the node affinity: both must hold.
pub(crate) fn wants(ask: &Ask, facts: &Facts) -> bool {
    let Some(spec) = ask.spec() else { return true };
    let selected =
        spec.node_selector.iter().flatten().all(|(key, value)| facts.labels.get(key) == Some(value));
    selected && required_nodes(spec).is_none_or(|required| one_matches(required, &facts.name, &facts.labels))
}

/// Whether one of the terms holds.
pub(crate) fn one_matches(selector: &NodeSelector, name: &str, labels: &BTreeMap<String, String>) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, name, labels))
}

/// A term without requirements matches no node, as documented.
pub(crate) fn term_matches(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let (by_label, by_field) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    if by_label.clone().count() + by_field.clone().count() == 0 {
        return false;
    }
    let field = |key: &str| Some(name).filter(|_| key == "metadata.name");
    by_label.clone().all(|wanted| holds(wanted, labels.get(&wanted.key).map(String::as_str)))
        && by_field.clone().all(|wanted| holds(wanted, field(&wanted.key)))
}

fn holds(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let mut values = wanted.values.iter().flatten();
    let number = |text: &str| text.parse::<i64>().ok();
    match wanted.operator.as_str() {
        "In" => value.is_some_and(|value| values.any(|known| known == value)),
        "NotIn" => value.is_none_or(|value| values.all(|known| known != value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        compare @ ("Gt" | "Lt") => {
            let sides = value.and_then(number).zip(values.next().and_then(|known| number(known)));
            sides.is_some_and(|(has, than)| if compare == "Gt" { has > than } else { has < than })
        }
        _ => false,
    }
}
