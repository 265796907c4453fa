//! A pod as the scheduler reads it, once: what it takes, where it wants to be and beside whom.
//!
//! Invariant: a selector that cannot be read matches nothing; the API server refuses such a pod before.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::select::Labels;
use client::{Key, key_of};
use imbl::OrdMap;
use k8s_openapi::api::core::v1::{
    Namespace, NodeSelector, Pod, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use crate::class::Class;
use crate::demand::Demand;

/// The label by which a node is a domain of its own.
pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";

/// A number that stands for a class of pods as long as there are pods of it.
pub(crate) type ClassId = usize;
/// Namespaces by name.
pub(crate) type Namespaces = OrdMap<Key, Arc<Namespace>>;

/// A pod with everything that is read out of it.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// As the API has it.
    pub(crate) pod: Arc<Pod>,
    /// Namespace and name.
    pub(crate) key: Arc<Key>,
    /// What it takes of a node.
    pub(crate) demand: Demand,
    /// `spec.priority`.
    pub(crate) priority: i32,
    /// Which pods are like it in the eyes of others.
    pub(crate) class: Arc<Class>,
    /// The number of that class.
    pub(crate) id: ClassId,
    /// Constraints that must hold.
    pub(crate) hard: Vec<Spread>,
    /// Constraints that are to hold as far as possible.
    pub(crate) soft: Vec<Spread>,
    /// The nodes it must be on one of, when it names them.
    pub(crate) named_nodes: Option<BTreeSet<String>>,
    /// Claims it mounts.
    pub(crate) claims: Vec<Claim>,
    /// What makes a node count for its spread constraints, as text: equal texts mean equal nodes.
    pub(crate) eligibility: Arc<str>,
}

/// A claim that a pod mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Namespace and name.
    pub(crate) key: Key,
    /// Whether it is made for this pod alone.
    pub(crate) ephemeral: bool,
}

/// One term of pod affinity or anti-affinity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Term {
    /// Equal texts mean equal terms.
    pub(crate) id: Arc<str>,
    /// `topologyKey`.
    pub(crate) key: String,
    namespaces: BTreeSet<String>,
    in_namespaces: Option<Labels>,
    labels: Labels,
}

/// One topology spread constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spread {
    /// Equal texts mean equal constraints.
    pub(crate) id: Arc<str>,
    /// `topologyKey`.
    pub(crate) key: String,
    /// `maxSkew`.
    pub(crate) max_skew: i64,
    /// `minDomains`.
    pub(crate) min_domains: usize,
    /// Whether nodes that the pod's node affinity excludes are left out.
    pub(crate) honors_affinity: bool,
    /// Whether nodes whose taints the pod does not tolerate are left out.
    pub(crate) honors_taints: bool,
    /// Which pods are counted.
    pub(crate) labels: Labels,
}

impl Term {
    /// Whether a pod of this class is meant.
    pub(crate) fn matches(&self, class: &Class, namespaces: &Namespaces) -> bool {
        let there = self.namespaces.contains(&class.namespace)
            || self.in_namespaces.as_ref().is_some_and(|wanted| {
                if wanted.is_everything() {
                    return true;
                }
                let namespace = namespaces.get(&Key::new("", class.namespace.clone()));
                let labels = namespace.and_then(|namespace| namespace.metadata.labels.clone());
                wanted.matches(&labels.unwrap_or_default())
            });
        there && self.labels.matches(&class.labels)
    }

    /// Whether a pod of this class is meant if its namespace is.
    pub(crate) fn could_match(&self, class: &Class) -> bool {
        self.labels.matches(&class.labels)
    }

    /// Reads a term of a pod in this namespace.
    pub(crate) fn read(term: &PodAffinityTerm, pod: &Pod) -> Term {
        let own = pod.metadata.namespace.clone().unwrap_or_default();
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(own);
        }
        let matching = term.match_label_keys.iter().flatten().map(|key| (key, "In"));
        let mismatching = term.mismatch_label_keys.iter().flatten().map(|key| (key, "NotIn"));
        let selector = merged(term.label_selector.as_ref(), pod, matching.chain(mismatching));
        let among = term.namespace_selector.as_ref().map(|among| json!(among));
        let id = json!([term.topology_key, namespaces, among, selector]).to_string();
        Term {
            id: id.into(),
            key: term.topology_key.clone(),
            namespaces,
            in_namespaces: among.map(|among| labels(&among)),
            labels: labels(&selector),
        }
    }
}

impl Spread {
    fn read(constraint: &TopologySpreadConstraint, pod: &Pod) -> Spread {
        let keys = constraint.match_label_keys.iter().flatten().map(|key| (key, "In"));
        let selector = merged(constraint.label_selector.as_ref(), pod, keys);
        let honors_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
        let honors_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
        let id = json!([constraint.topology_key, selector, honors_affinity, honors_taints]).to_string();
        Spread {
            id: id.into(),
            key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: constraint.min_domains.and_then(|least| usize::try_from(least).ok()).unwrap_or(1),
            honors_affinity,
            honors_taints,
            labels: labels(&selector),
        }
    }
}

impl Ask {
    /// Reads a pod; `number` gives the class its number.
    pub(crate) fn read(pod: &Arc<Pod>, number: impl FnOnce(Class) -> (ClassId, Arc<Class>)) -> Ask {
        let none = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let (id, class) = number(Class::of(pod));
        let constraints = spec.topology_spread_constraints.iter().flatten();
        let of = |when: &'static str| {
            let these = constraints.clone().filter(move |constraint| constraint.when_unsatisfiable == when);
            these.map(|constraint| Spread::read(constraint, pod)).collect::<Vec<Spread>>()
        };
        Ask {
            key: Arc::new(key_of(&**pod)),
            demand: Demand::of(pod),
            priority: spec.priority.unwrap_or(0),
            class,
            id,
            hard: of("DoNotSchedule"),
            soft: of("ScheduleAnyway"),
            named_nodes: required_nodes(spec).and_then(names),
            claims: claims(pod, spec),
            eligibility: eligibility(spec).into(),
            pod: Arc::clone(pod),
        }
    }

    /// The same pod at a later time, when nothing the scheduler reads has changed.
    pub(crate) fn renewed(&self, pod: &Arc<Pod>) -> Option<Ask> {
        let (old, new) = (&self.pod, pod);
        let same = old.metadata.uid == new.metadata.uid
            && old.metadata.labels == new.metadata.labels
            && old.metadata.deletion_timestamp.is_some() == new.metadata.deletion_timestamp.is_some()
            && old.spec == new.spec
            && Demand::of(new) == self.demand;
        same.then(|| Ask { pod: Arc::clone(pod), ..self.clone() })
    }

    /// The same when the pod may have got its node meanwhile.
    pub(crate) fn renewed_on(&self, pod: &Arc<Pod>) -> Option<Ask> {
        let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        if node(&self.pod) == node(pod) {
            return self.renewed(pod);
        }
        // But for the node's name the two are the same, which costs less to see on what is read from them.
        let (old, new) = (self.pod.spec.as_ref()?, pod.spec.as_ref()?);
        let same = self.pod.metadata.uid == pod.metadata.uid
            && self.pod.metadata.labels == pod.metadata.labels
            && self.class.leaving == pod.metadata.deletion_timestamp.is_some()
            && old.affinity == new.affinity
            && old.volumes == new.volumes
            && old.priority == new.priority
            && Demand::of(pod) == self.demand;
        same.then(|| Ask { pod: Arc::clone(pod), ..self.clone() })
    }

    /// `spec`, or nothing at all.
    pub(crate) fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// What the pod tolerates.
    pub(crate) fn tolerations(&self) -> &[Toleration] {
        self.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
    }

    /// `metadata.uid`.
    pub(crate) fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The node it was promised when others were told to leave.
    pub(crate) fn nominated(&self) -> Option<&str> {
        let name = self.pod.status.as_ref()?.nominated_node_name.as_deref()?;
        Some(name).filter(|name| !name.is_empty())
    }

    /// Whether it waits for someone to take its gates away.
    pub(crate) fn is_gated(&self) -> bool {
        self.spec().and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty())
    }
}

/// The required part of the node affinity.
pub(crate) fn required_nodes(spec: &PodSpec) -> Option<&NodeSelector> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref()
}

/// The nodes that a selector allows by name, when every term of it names some.
fn names(selector: &NodeSelector) -> Option<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for term in &selector.node_selector_terms {
        let by_name = term.match_fields.iter().flatten();
        let mut named: Option<BTreeSet<String>> = None;
        for field in by_name.filter(|field| field.key == "metadata.name" && field.operator == "In") {
            let these: BTreeSet<String> = field.values.iter().flatten().cloned().collect();
            named = Some(named.map_or(these.clone(), |known| &known & &these));
        }
        all.extend(named?);
    }
    (!selector.node_selector_terms.is_empty()).then_some(all)
}

fn claims(pod: &Pod, spec: &PodSpec) -> Vec<Claim> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let of = |volume: &k8s_openapi::api::core::v1::Volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
        let made = volume.ephemeral.as_ref().map(|_| format!("{pod_name}-{}", volume.name));
        let ephemeral = made.is_some();
        named.or(made).map(|name| Claim { key: Key::new(namespace.clone(), name), ephemeral })
    };
    spec.volumes.iter().flatten().filter_map(of).collect()
}

fn eligibility(spec: &PodSpec) -> String {
    if spec.topology_spread_constraints.is_none() {
        return String::new();
    }
    json!([spec.node_selector, required_nodes(spec), spec.tolerations]).to_string()
}

/// A selector with what `matchLabelKeys` and `mismatchLabelKeys` add to it.
fn merged<'a>(
    selector: Option<&LabelSelector>,
    pod: &Pod,
    keys: impl Iterator<Item = (&'a String, &'static str)>,
) -> Value {
    let Some(selector) = selector else { return Value::Null };
    let mut selector = json!(selector);
    for (key, operator) in keys {
        let Some(value) = pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)) else { continue };
        let more = json!({"key": key, "operator": operator, "values": [value]});
        match selector["matchExpressions"].as_array_mut() {
            Some(all) if all.contains(&more) => {}
            Some(all) => all.push(more),
            None => selector["matchExpressions"] = json!([more]),
        }
    }
    selector
}

fn labels(selector: &Value) -> Labels {
    Labels::from_selector(selector).unwrap_or_else(|_| Labels::nothing())
}
