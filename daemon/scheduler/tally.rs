//! How many pods of some sort are in which domain of a topology, counted once per round and kept right while the round
//! places pods.
//!
//! Invariant: a count is the sum over the pods on the nodes of the domain of what each weighs.

use std::sync::Arc;

use api::select::Labels;

use crate::ask::{ClassId, Namespaces, Term};
use crate::class::Class;
use crate::node::NodeView;

/// Stands for a node outside of a topology.
const NOWHERE: u32 = u32::MAX;

/// The domains of one topology key.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    /// By the node's place: the number of its domain.
    of: Vec<u32>,
    /// How many there are.
    pub(crate) number: usize,
}

/// What a pod weighs in a tally.
#[derive(Debug, Clone)]
pub(crate) enum Weighs {
    /// One if all these terms mean it.
    Meant(Vec<Arc<Term>>),
    /// One if it has these labels, is in this namespace and stays.
    Labelled { namespace: String, labels: Labels },
    /// One if this one made it, and it stays.
    OwnedBy { owner: String, namespace: String },
    /// One for each of its terms of anti-affinity that has this id.
    Repels(Arc<str>),
    /// How much a pod that this term means is liked by it.
    Likes(Arc<str>),
}

/// Counts by domain.
#[derive(Debug)]
pub(crate) struct Tally {
    weighs: Weighs,
    domains: Arc<Domains>,
    /// Which nodes are counted, by their places; `None`: all.
    eligible: Option<Vec<bool>>,
    counts: Vec<i64>,
    /// Whether a domain has a node that is counted.
    present: Vec<bool>,
    total: i64,
    /// What each class weighs, once it was asked.
    known: Vec<Option<i64>>,
}

impl Domains {
    /// Finds the domains among these nodes.
    pub(crate) fn new(key: &str, nodes: &[Arc<NodeView>]) -> Domains {
        let mut values = std::collections::HashMap::new();
        let mut of = Vec::with_capacity(nodes.len());
        for node in nodes {
            of.push(match node.facts.labels.get(key) {
                Some(value) => {
                    let next = u32::try_from(values.len()).unwrap_or(NOWHERE);
                    *values.entry(value.as_str()).or_insert(next)
                }
                None => NOWHERE,
            });
        }
        Domains { of, number: values.len() }
    }

    /// The domain of the node at this place.
    pub(crate) fn at(&self, node: usize) -> Option<usize> {
        let domain = self.of[node];
        if domain == NOWHERE { None } else { Some(domain as usize) }
    }
}

impl Weighs {
    fn weight(&self, class: &Class, namespaces: &Namespaces) -> i64 {
        match self {
            Weighs::Meant(terms) => i64::from(terms.iter().all(|term| term.matches(class, namespaces))),
            Weighs::Labelled { namespace, labels } => {
                i64::from(!class.leaving && class.namespace == *namespace && labels.matches(&class.labels))
            }
            Weighs::OwnedBy { owner, namespace } => {
                i64::from(!class.leaving && class.owner == *owner && class.namespace == *namespace)
            }
            Weighs::Repels(id) => class.far.iter().fold(0, |count, term| count + i64::from(term.id == *id)),
            Weighs::Likes(id) => {
                // A required term counts as the weakest preference for the symmetric side, as by default.
                let near = class.near.iter().fold(0, |sum, term| sum + i64::from(term.id == *id));
                class
                    .liked
                    .iter()
                    .filter(|(_, term)| term.id == *id)
                    .fold(near, |sum, (weight, _)| sum + weight)
            }
        }
    }
}

impl Tally {
    /// Counts what is on the nodes.
    pub(crate) fn count(
        weighs: Weighs,
        domains: Arc<Domains>,
        eligible: Option<Vec<bool>>,
        nodes: &[Arc<NodeView>],
        classes: &imbl::Vector<Arc<Class>>,
        namespaces: &Namespaces,
    ) -> Tally {
        let mut tally = Tally {
            counts: vec![0; domains.number],
            present: vec![false; domains.number],
            known: vec![None; classes.len()],
            total: 0,
            weighs,
            domains,
            eligible,
        };
        for (at, node) in nodes.iter().enumerate() {
            let Some(domain) = tally.place(at) else { continue };
            tally.present[domain] = true;
            for (id, pods) in &node.used.classes {
                let weight = tally.weight(*id, &classes[*id], namespaces) * pods;
                tally.counts[domain] += weight;
                tally.total += weight;
            }
        }
        tally
    }

    /// Pods of a class come to a node, or leave it.
    pub(crate) fn change(
        &mut self,
        at: usize,
        pods: i64,
        (id, class): (ClassId, &Class),
        among: &Namespaces,
    ) {
        let weight = self.weight(id, class, among) * pods;
        if weight != 0
            && let Some(domain) = self.place(at)
        {
            self.counts[domain] += weight;
            self.total += weight;
        }
    }

    /// The count of the domain that a node is in; `None`: in none.
    pub(crate) fn at(&self, node: usize) -> Option<i64> {
        self.domains.at(node).map(|domain| self.counts[domain])
    }

    /// The domain that a node is in.
    pub(crate) fn domain(&self, node: usize) -> Option<usize> {
        self.domains.at(node)
    }

    /// The sum over all domains.
    pub(crate) fn total(&self) -> i64 {
        self.total
    }

    /// The smallest count of a domain that has nodes that are counted; zero when there are fewer domains than these.
    pub(crate) fn least(&self, domains: usize) -> i64 {
        let counts = || self.counts.iter().zip(&self.present).filter(|(_, present)| **present);
        if counts().count() < domains { 0 } else { counts().map(|(count, _)| *count).min().unwrap_or(0) }
    }

    fn place(&self, node: usize) -> Option<usize> {
        if self.eligible.as_ref().is_some_and(|eligible| !eligible[node]) {
            return None;
        }
        self.domains.at(node)
    }

    fn weight(&mut self, id: ClassId, class: &Class, namespaces: &Namespaces) -> i64 {
        if self.known.len() <= id {
            self.known.resize(id + 1, None);
        }
        match self.known[id] {
            Some(weight) => weight,
            None => {
                let weight = self.weighs.weight(class, namespaces);
                self.known[id] = Some(weight);
                weight
            }
        }
    }
}
