//! The nodes as a round sees them: what each has, and what is taken of it.
//!
//! Invariant: `used` holds bound pods and those whose binding was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::Node;

use crate::demand::{Amounts, Demand, HostPort, add, read};

/// One node.
#[derive(Debug, Clone)]
pub(crate) struct NodeView {
    /// As the API has it.
    pub(crate) node: Arc<Node>,
    /// What pods may have.
    pub(crate) allocatable: Amounts,
    /// What pods have.
    pub(crate) used: Used,
}

/// What pods on a node have.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Used {
    /// Requests.
    pub(crate) amounts: Amounts,
    /// Requests as the scores see them.
    pub(crate) scored: Amounts,
    /// Host ports; the same one can be there more than once only by force.
    pub(crate) ports: BTreeMap<HostPort, usize>,
    /// How many pods have which priority.
    pub(crate) priorities: BTreeMap<i32, usize>,
}

impl Used {
    /// A pod comes.
    pub(crate) fn take(&mut self, demand: &Demand, priority: i32) {
        demand.amounts.iter().for_each(|(name, amount)| add(&mut self.amounts, name, amount));
        demand.scored.iter().for_each(|(name, amount)| add(&mut self.scored, name, amount));
        for port in &demand.ports {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
        *self.priorities.entry(priority).or_default() += 1;
    }

    /// A pod that had come leaves.
    pub(crate) fn give(&mut self, demand: &Demand, priority: i32) {
        let less = |amounts: &mut Amounts, by: &Amounts| {
            for (name, amount) in by {
                if let Some(known) = amounts.get_mut(name) {
                    *known = known.subtract(amount);
                }
            }
            amounts.retain(|_, amount| !amount.is_zero());
        };
        less(&mut self.amounts, &demand.amounts);
        less(&mut self.scored, &demand.scored);
        demand.ports.iter().for_each(|port| release(&mut self.ports, port));
        release(&mut self.priorities, &priority);
    }
}

fn release<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl NodeView {
    /// A node on which these pods are.
    pub(crate) fn new(node: Arc<Node>, used: Used) -> NodeView {
        let status = node.status.as_ref();
        let allocatable =
            read(status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref())));
        NodeView { node, allocatable, used }
    }

    /// `metadata.name`.
    pub(crate) fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    /// What there is of a resource.
    pub(crate) fn has(&self, name: &str) -> Quantity {
        self.allocatable.get(name).copied().unwrap_or(Quantity::ZERO)
    }

    /// What is taken of it.
    pub(crate) fn taken(&self, name: &str) -> Quantity {
        self.used.amounts.get(name).copied().unwrap_or(Quantity::ZERO)
    }

    /// The resources that do not suffice for a demand.
    pub(crate) fn lacks<'a>(&self, demand: &'a Demand) -> BTreeSet<&'a str> {
        let short = |(name, amount): &(&String, &Quantity)| {
            !amount.is_zero() && self.taken(name).add(amount) > self.has(name)
        };
        demand.amounts.iter().filter(short).map(|(name, _)| name.as_str()).collect()
    }
}
