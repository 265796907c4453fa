//! The nodes as a round sees them: what each has, and what is taken of it.
//!
//! Invariant: `used` holds bound pods and those whose binding was asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::Key;
use imbl::OrdMap;
use k8s_openapi::api::core::v1::{Node, Taint};

use crate::ask::{Ask, ClassId};
use crate::demand::{Amounts, HostPort};

/// One node.
#[derive(Debug, Clone)]
pub(crate) struct NodeView {
    /// What it is.
    pub(crate) facts: Arc<Facts>,
    /// What pods have of it.
    pub(crate) used: Used,
}

/// What a node is, read once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// `metadata.name`.
    pub(crate) name: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// What pods may have.
    pub(crate) allocatable: Amounts,
    /// Whether it takes no new pods.
    pub(crate) unschedulable: bool,
    /// Taints that keep pods away.
    pub(crate) taints: Vec<Taint>,
    /// Taints that only ask to stay away.
    pub(crate) soft_taints: Vec<Taint>,
    /// The bytes of each image it has, by every name.
    pub(crate) images: BTreeMap<String, i64>,
}

/// What pods on a node have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Used {
    /// Requests.
    pub(crate) amounts: Amounts,
    /// cpu as the scores see it.
    pub(crate) scored_cpu: i64,
    /// Memory as the scores see it.
    pub(crate) scored_memory: i64,
    /// Host ports; the same one can be there more than once only by force.
    pub(crate) ports: Vec<HostPort>,
    /// The pods.
    pub(crate) pods: OrdMap<Arc<Key>, Arc<Ask>>,
    /// How many pods are of which class.
    pub(crate) classes: OrdMap<ClassId, i64>,
    /// How many pods have which priority.
    pub(crate) priorities: BTreeMap<i32, usize>,
    /// How many pods mount which claim.
    pub(crate) claims: OrdMap<Key, usize>,
}

impl Facts {
    /// Reads a node.
    pub(crate) fn read(node: &Node) -> Facts {
        let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
        let unschedulable = spec.and_then(|spec| spec.unschedulable) == Some(true);
        let taints = spec.into_iter().flat_map(|spec| spec.taints.iter().flatten());
        let (soft_taints, taints) = taints.cloned().partition(|taint| taint.effect == "PreferNoSchedule");
        let images = status.into_iter().flat_map(|status| status.images.iter().flatten());
        let by_name = images.flat_map(|image| {
            let bytes = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (name.clone(), bytes))
        });
        Facts {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            allocatable: Amounts::read(
                status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref())),
            ),
            unschedulable,
            taints,
            soft_taints,
            images: by_name.collect(),
        }
    }

    /// Whether a change could matter to a pod that waits.
    pub(crate) fn differs(&self, other: &Facts) -> bool {
        self.labels != other.labels
            || self.allocatable != other.allocatable
            || self.unschedulable != other.unschedulable
            || self.taints != other.taints
    }
}

impl Used {
    /// A pod comes.
    pub(crate) fn take(&mut self, ask: &Arc<Ask>) {
        self.amounts.add(&ask.demand.amounts);
        self.scored_cpu += ask.demand.scored_cpu;
        self.scored_memory += ask.demand.scored_memory;
        self.ports.extend(ask.demand.ports.iter().cloned());
        self.pods.insert(Arc::clone(&ask.key), Arc::clone(ask));
        *self.classes.entry(ask.id).or_insert(0) += 1;
        *self.priorities.entry(ask.priority).or_default() += 1;
        for claim in &ask.claims {
            *self.claims.entry(claim.key.clone()).or_insert(0) += 1;
        }
    }

    /// A pod that had come leaves.
    pub(crate) fn give(&mut self, ask: &Ask) {
        self.amounts.subtract(&ask.demand.amounts);
        self.scored_cpu -= ask.demand.scored_cpu;
        self.scored_memory -= ask.demand.scored_memory;
        for port in &ask.demand.ports {
            if let Some(at) = self.ports.iter().position(|known| known == port) {
                self.ports.swap_remove(at);
            }
        }
        self.pods.remove(&ask.key);
        let class = self.classes.get(&ask.id).copied().unwrap_or(0);
        if class > 1 {
            self.classes.insert(ask.id, class - 1)
        } else {
            self.classes.remove(&ask.id)
        };
        if let Some(count) = self.priorities.get_mut(&ask.priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&ask.priority);
            }
        }
        for claim in &ask.claims {
            let count = self.claims.get(&claim.key).copied().unwrap_or(0);
            if count > 1 {
                self.claims.insert(claim.key.clone(), count - 1);
            } else {
                self.claims.remove(&claim.key);
            }
        }
    }
}

impl NodeView {
    /// `metadata.name`.
    pub(crate) fn name(&self) -> &str {
        &self.facts.name
    }

    /// The resources that do not suffice for a demand.
    pub(crate) fn lacks<'a>(&'a self, wanted: &'a Amounts) -> impl Iterator<Item = &'a str> {
        let short = |(name, amount): &(&str, i64)| {
            self.used.amounts.get(name).saturating_add(*amount) > self.facts.allocatable.get(name)
        };
        wanted.named().filter(short).map(|(name, _)| name)
    }

    /// Whether a demand fits, without saying what is missing.
    pub(crate) fn fits(&self, wanted: &Amounts) -> bool {
        let (used, all) = (&self.used.amounts, &self.facts.allocatable);
        let room = |used: i64, wanted: i64, all: i64| wanted == 0 || used.saturating_add(wanted) <= all;
        room(used.pods, wanted.pods, all.pods)
            && room(used.cpu, wanted.cpu, all.cpu)
            && room(used.memory, wanted.memory, all.memory)
            && room(used.storage, wanted.storage, all.storage)
            && wanted.others().all(|(name, amount)| room(used.get(name), amount, all.get(name)))
    }
}
