//! Which nodes can take a pod, and why the others cannot, in the words of Kubernetes.
//!
//! Invariant: as in Kubernetes the first check that fails gives the reason; only lacking resources are told together.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};

use crate::cluster::NodeView;
use crate::demand::Demand;

/// Why a node cannot take a pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    /// Told with the number of nodes that say so.
    pub(crate) reasons: Vec<String>,
    /// Whether fewer pods on the node would help.
    pub(crate) room_would_help: bool,
}

/// Asks one node.
pub(crate) fn refusal(pod: &Pod, demand: &Demand, view: &NodeView) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    let never = |reason: &str| Some(Refusal { reasons: vec![reason.to_owned()], room_would_help: false });
    if cordoned(&view.node) && !tolerated(spec, &unschedulable_taint()) {
        return never("node(s) were unschedulable");
    }
    let untolerated = taints(&view.node)
        .filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute")
        .any(|taint| !tolerated(spec, taint));
    if untolerated {
        return never("node(s) had untolerated taint(s)");
    }
    if !wants_node(spec, &view.node) {
        return never("node(s) didn't match Pod's node affinity/selector");
    }
    let clash = demand.ports.iter().any(|wanted| view.used.ports.keys().any(|taken| taken.conflicts(wanted)));
    if clash {
        let reason = "node(s) didn't have free ports for the requested pod ports".to_owned();
        return Some(Refusal { reasons: vec![reason], room_would_help: true });
    }
    let lacking = view.lacks(demand);
    if lacking.is_empty() {
        return None;
    }
    // What the node does not have at all cannot be made free.
    let room_would_help =
        lacking.iter().all(|name| demand.amounts.get(*name).is_some_and(|all| *all <= view.has(name)));
    let reason = |name: &&str| match *name {
        "pods" => "Too many pods".to_owned(),
        name => format!("Insufficient {name}"),
    };
    Some(Refusal { reasons: lacking.iter().map(reason).collect(), room_would_help })
}

/// What this scheduler cannot promise yet: the pod waits and says so, instead of being placed against its wish.
pub(crate) fn unsupported(pod: &Pod, nodes: usize) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let affinity = spec.affinity.as_ref();
    let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let near = near.and_then(|near| near.required_during_scheduling_ignored_during_execution.as_ref());
    let far = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let far = far.and_then(|far| far.required_during_scheduling_ignored_during_execution.as_ref());
    let spread = spec.topology_spread_constraints.iter().flatten();
    let strict = spread.filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule").count();
    let asked = [
        (
            "affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution",
            near.is_some_and(|all| !all.is_empty()),
        ),
        (
            "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution",
            far.is_some_and(|all| !all.is_empty()),
        ),
        // On one node there is nothing to spread over.
        ("topologySpreadConstraints with DoNotSchedule", strict > 0 && nodes > 1),
    ];
    if let Some((field, _)) = asked.into_iter().find(|(_, asked)| *asked) {
        return Some(format!("spec.{field} is not supported by this scheduler yet; remove it from the pod"));
    }
    let claims = spec.volumes.iter().flatten().filter_map(|volume| volume.persistent_volume_claim.as_ref());
    let claim = claims.map(|claim| &claim.claim_name).next();
    claim.map(|name| format!("persistentvolumeclaim \"{name}\" not found"))
}

fn cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

fn unschedulable_taint() -> Taint {
    Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

/// The taints of a node.
pub(crate) fn taints(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec.iter().filter_map(|spec| spec.taints.as_ref()).flatten()
}

/// Whether a pod tolerates a taint.
pub(crate) fn tolerated(spec: &PodSpec, taint: &Taint) -> bool {
    let tolerates = |toleration: &Toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        let value = toleration.value.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && exists))
            && (exists || value == taint.value.as_deref().unwrap_or_default())
    };
    spec.tolerations.iter().flatten().any(tolerates)
}

/// `nodeSelector` and the required part of the node affinity: both must hold.
fn wants_node(spec: &PodSpec, node: &Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|required| one_matches(required, node))
}

fn one_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// A term without requirements matches no node, as documented.
pub(crate) fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let (labels, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    if labels.clone().count() + fields.clone().count() == 0 {
        return false;
    }
    let label =
        |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let field = |key: &str| node.metadata.name.as_deref().filter(|_| key == "metadata.name");
    labels.clone().all(|wanted| holds(wanted, label(&wanted.key)))
        && fields.clone().all(|wanted| holds(wanted, field(&wanted.key)))
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
