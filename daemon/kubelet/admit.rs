//! Whether this node takes a pod that was bound to it: asked once, before anything of the pod is made. Pure.
//!
//! Invariant: the words are Kubernetes' own (`OutOfcpu`, `NodeAffinity` …): controllers and people look for them.

use std::collections::BTreeMap;

use api::quantity::Quantity as Amount;
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::rules::{self, Role};

/// What of the node an admission looks at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offer {
    /// The node's name.
    pub(crate) name: String,
    /// Its labels; `None` while nobody knows them.
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// In thousandths.
    pub(crate) allocatable: BTreeMap<String, i128>,
    /// What the pods that were taken ask for, in thousandths.
    pub(crate) taken: BTreeMap<String, i128>,
}

/// Why the node does not take the pod: reason and message.
pub(crate) fn refusal(pod: &Pod, offer: &Offer) -> Option<(String, String)> {
    let spec = pod.spec.as_ref()?;
    if offer.labels.as_ref().is_some_and(|labels| !selected(spec, &offer.name, labels)) {
        let message = "Pod was rejected: Predicate NodeAffinity failed";
        return Some(("NodeAffinity".to_owned(), message.to_owned()));
    }
    offer.allocatable.iter().find_map(|(name, allocatable)| {
        let (asked, taken) = (asked(pod, name), offer.taken.get(name).copied().unwrap_or(0));
        if asked == 0 || taken + asked <= *allocatable {
            return None;
        }
        // Processors are counted in thousandths, everything else whole.
        let unit = if name == "cpu" { 1 } else { 1000 };
        let message = format!(
            "Pod was rejected: Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
            asked / unit,
            taken / unit,
            allocatable / unit
        );
        Some((format!("OutOf{name}"), message))
    })
}

/// What a pod asks for, in thousandths: the pod itself, or its containers as they run together, and its overhead.
pub(crate) fn asked(pod: &Pod, name: &str) -> i128 {
    if name == "pods" {
        return 1000;
    }
    let Some(spec) = &pod.spec else { return 0 };
    let of_pod = spec.resources.as_ref().and_then(|own| amount(own.requests.as_ref(), name));
    let whole = of_pod.unwrap_or_else(|| {
        let (mut together, mut beside, mut alone) = (0, 0, 0);
        for member in rules::members(pod) {
            let own = member.container.resources.as_ref();
            let own = own.and_then(|own| amount(own.requests.as_ref(), name)).unwrap_or(0);
            match member.role {
                Role::Main => together += own,
                Role::Sidecar => beside += own,
                Role::Init => alone = own.max(alone),
                Role::Ephemeral => {}
            }
        }
        together.max(alone) + beside
    });
    whole + amount(spec.overhead.as_ref(), name).unwrap_or(0)
}

fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i128> {
    Amount::parse(&list?.get(name)?.0).ok().map(|amount| amount.as_milli())
}

/// The node selector, and any of the required terms of the node affinity.
fn selected(spec: &PodSpec, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let plain = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|own| own.required_during_scheduling_ignored_during_execution.as_ref());
    plain
        && required.is_none_or(|required| {
            required.node_selector_terms.iter().any(|term| term_fits(term, name, labels))
        })
}

/// A term that names nothing fits nothing, as documented.
fn term_fits(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let by_label = |one: &NodeSelectorRequirement| fits(one, labels.get(&one.key).map(String::as_str));
    let by_field =
        |one: &NodeSelectorRequirement| fits(one, Some(name).filter(|_| one.key == "metadata.name"));
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(by_label)
        && fields.iter().all(by_field)
}

fn fits(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|one| one == value));
    let number = |text: &str| text.parse::<i64>().ok();
    let pair = || Some((number(value?)?, number(values.first()?)?));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => pair().is_some_and(|(have, bound)| have > bound),
        "Lt" => pair().is_some_and(|(have, bound)| have < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(spec: Value, expected: Option<(&str, &str)>) {
        let pod: Pod = serde_json::from_value(json!({ "spec": spec })).expect("a pod");
        let amounts = |list: &[(&str, i128)]| {
            list.iter().map(|(name, amount)| ((*name).to_owned(), *amount)).collect::<BTreeMap<_, _>>()
        };
        let offer = Offer {
            name: "here".to_owned(),
            labels: Some(BTreeMap::from([("disk".to_owned(), "7".to_owned())])),
            allocatable: amounts(&[("cpu", 2000), ("memory", 1000 << 20), ("pods", 3000)]),
            taken: amounts(&[("cpu", 500), ("memory", 0), ("pods", 2000)]),
        };
        let found = refusal(&pod, &offer);
        let found = found.as_ref().map(|(reason, message)| (reason.as_str(), message.as_str()));
        assert_eq!(found, expected, "{pod:?}");
    }

    fn asks(cpu: &str, memory: &str) -> Value {
        json!({ "name": "c", "image": "i", "resources": { "requests": { "cpu": cpu, "memory": memory } } })
    }

    #[test]
    fn a_pod_that_asks_for_more_than_is_left_is_refused_in_the_documented_words() {
        check(json!({ "containers": [asks("1500m", "1Mi")] }), None);
        check(
            json!({ "containers": [asks("1", "0"), asks("600m", "0")] }),
            Some((
                "OutOfcpu",
                "Pod was rejected: Node didn't have enough resource: cpu, requested: 1600, used: 500, capacity: 2000",
            )),
        );
        check(
            json!({ "containers": [asks("1", "0")], "overhead": { "memory": "2Mi" } }),
            Some((
                "OutOfmemory",
                "Pod was rejected: Node didn't have enough resource: memory, requested: 2097152, used: 0, capacity: 1048576",
            )),
        );
        // An init container runs before the others, so only the larger counts.
        check(json!({ "initContainers": [asks("1500m", "0")], "containers": [asks("1", "0")] }), None);
    }

    #[test]
    fn a_pod_whose_selector_or_affinity_names_other_nodes_is_refused() {
        let refused = Some(("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed"));
        check(json!({ "containers": [], "nodeSelector": { "disk": "7" } }), None);
        check(json!({ "containers": [], "nodeSelector": { "disk": "8" } }), refused);
        let terms = |terms: Value| {
            json!({ "containers": [], "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } })
        };
        let one = |operator: &str, values: &[&str]| json!([{ "matchExpressions": [{ "key": "disk", "operator": operator, "values": values }] }]);
        check(terms(one("Gt", &["6"])), None);
        check(terms(one("Lt", &["7"])), refused);
        check(terms(one("NotIn", &["7"])), refused);
        check(terms(one("Exists", &[])), None);
        check(terms(json!([{}])), refused);
        let field = |name: &str| json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [name] }] }]);
        check(terms(field("here")), None);
        check(terms(field("there")), refused);
    }
}
