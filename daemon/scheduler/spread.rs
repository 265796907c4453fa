//! Topology spread constraints: how unevenly pods may be, and where one more makes it less uneven.
//!
//! Invariant: without constraints of its own a pod that has an owner is spread over hosts and zones as far as possible,
//! as by default in Kubernetes.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ask::{Ask, HOSTNAME, Spread};
use crate::filter::{Cause, Refusal, tolerated, wants};
use crate::node::{Facts, NodeView};
use crate::round::{Round, TallyId};
use crate::tally::Weighs;

const ZONE: &str = "topology.kubernetes.io/zone";

/// What a round knows for the constraints of one pod.
#[derive(Debug, Default)]
pub(crate) struct Spreading {
    hard: Vec<Hard>,
    soft: Vec<Soft>,
    /// Whether a node that lacks one of the soft keys is left out of the scores.
    all_keys: bool,
}

#[derive(Debug)]
struct Hard {
    tally: TallyId,
    max_skew: i64,
    min_domains: usize,
    /// What the pod itself adds.
    itself: i64,
    least: i64,
}

#[derive(Debug)]
struct Soft {
    tally: TallyId,
    max_skew: i64,
    host: bool,
}

impl Spreading {
    /// For this pod.
    pub(crate) fn of(round: &mut Round<'_>, ask: &Ask) -> Spreading {
        let hard = ask.hard.iter().map(|constraint| {
            let tally = counted(round, ask, constraint, &ask.hard);
            let itself = i64::from(constraint.labels.matches(&ask.class.labels));
            let least = round.tally(tally).least(constraint.min_domains);
            Hard { tally, max_skew: constraint.max_skew, min_domains: constraint.min_domains, itself, least }
        });
        let hard = hard.collect();
        let own = ask.spec().is_some_and(|spec| spec.topology_spread_constraints.is_some());
        let soft = if own {
            let constraints = ask.soft.iter().map(|constraint| Soft {
                tally: counted(round, ask, constraint, &ask.soft),
                max_skew: constraint.max_skew,
                host: constraint.key == HOSTNAME,
            });
            constraints.collect()
        } else {
            by_default(round, ask)
        };
        Spreading { hard, soft, all_keys: own }
    }

    /// Looks at the counts anew.
    pub(crate) fn refresh(&mut self, round: &Round<'_>) {
        for hard in &mut self.hard {
            hard.least = round.tally(hard.tally).least(hard.min_domains);
        }
    }

    /// Asks one node.
    pub(crate) fn refusal(&self, round: &Round<'_>, at: usize) -> Option<Refusal> {
        for hard in &self.hard {
            let Some(count) = round.tally(hard.tally).at(at) else {
                return Refusal::always(
                    Cause::Spread,
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                );
            };
            if count + hard.itself - hard.least > hard.max_skew {
                return Refusal::for_now(
                    Cause::Spread,
                    "node(s) didn't match pod topology spread constraints",
                );
            }
        }
        None
    }

    /// How well one more pod at each of these places would be spread; `None`: nobody cares.
    pub(crate) fn scores(&self, round: &Round<'_>, places: &[usize]) -> Option<Vec<i64>> {
        if self.soft.is_empty() {
            return None;
        }
        let outside = |at: usize| {
            self.all_keys && self.soft.iter().any(|soft| round.tally(soft.tally).domain(at).is_none())
        };
        let inside: Vec<usize> = places.iter().copied().filter(|at| !outside(*at)).collect();
        let weights: Vec<f64> = self.soft.iter().map(|soft| weight(round, soft, &inside)).collect();
        let raw = |at: usize| {
            let each = self.soft.iter().zip(&weights).filter_map(|(soft, weight)| {
                let count = round.tally(soft.tally).at(at)?;
                Some(count as f64 * weight + (soft.max_skew - 1) as f64)
            });
            each.sum::<f64>().round() as i64
        };
        let raw: Vec<Option<i64>> =
            places.iter().map(|at| if outside(*at) { None } else { Some(raw(*at)) }).collect();
        let least = raw.iter().flatten().min().copied().unwrap_or(0);
        let most = raw.iter().flatten().max().copied().unwrap_or(0);
        let score = |one: Option<i64>| match one {
            None => 0,
            Some(_) if most == 0 => 100,
            Some(one) => 100 * (most + least - one) / most,
        };
        Some(raw.into_iter().map(score).collect())
    }
}

/// Small topologies are not to be drowned by large ones.
fn weight(round: &Round<'_>, soft: &Soft, inside: &[usize]) -> f64 {
    let size = if soft.host {
        inside.len()
    } else {
        inside.iter().map(|at| round.tally(soft.tally).domain(*at)).collect::<BTreeSet<_>>().len()
    };
    ((size + 2) as f64).ln()
}

fn counted(round: &mut Round<'_>, ask: &Ask, constraint: &Spread, beside: &[Spread]) -> TallyId {
    let keys: Vec<&str> = beside.iter().map(|other| other.key.as_str()).collect();
    let namespace = &ask.class.namespace;
    let name = format!("spread {namespace} {} {} {}", constraint.id, ask.eligibility, keys.join(","));
    let weighs = || Weighs::Labelled { namespace: namespace.clone(), labels: constraint.labels.clone() };
    round.counted(name, &constraint.key, weighs, |nodes: &[Arc<NodeView>]| {
        let counts = |facts: &Facts| {
            keys.iter().all(|key| facts.labels.contains_key(*key))
                && (!constraint.honors_affinity || wants(ask, facts))
                && (!constraint.honors_taints
                    || facts.taints.iter().all(|taint| tolerated(ask.tolerations(), taint)))
        };
        Some(nodes.iter().map(|view| counts(&view.facts)).collect())
    })
}

fn by_default(round: &mut Round<'_>, ask: &Ask) -> Vec<Soft> {
    let class = &ask.class;
    // On one node there is nothing to spread over.
    if class.owner.is_empty() || round.nodes.len() < 2 {
        return Vec::new();
    }
    let soft = [(HOSTNAME, 3), (ZONE, 5)].map(|(key, max_skew)| {
        let weighs = || Weighs::OwnedBy { owner: class.owner.clone(), namespace: class.namespace.clone() };
        let name = format!("owner {key} {}", class.owner);
        Soft { tally: round.counted(name, key, weighs, |_| None), max_skew, host: key == HOSTNAME }
    });
    soft.into()
}
