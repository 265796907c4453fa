//! Which of the nodes that can take a pod is the best for it.
//!
//! Invariant: the same cluster and the same pod give the same node; among equals the first by name.

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::cluster::NodeView;
use crate::demand::Demand;
use crate::filter::{taints, term_matches, tolerated};

/// As Kubernetes weighs them by default.
const TAINTS: i64 = 3;
const AFFINITY: i64 = 2;
const BEST: i64 = 100;

/// The best of the nodes that can take the pod.
pub(crate) fn best<'a>(pod: &Pod, demand: &Demand, fits: &[&'a NodeView]) -> Option<&'a NodeView> {
    let spec = pod.spec.as_ref()?;
    let disliked: Vec<i64> = fits.iter().map(|view| untolerated(spec, view)).collect();
    let preferred: Vec<i64> = fits.iter().map(|view| preference(spec, view)).collect();
    let (worst, dearest) = (disliked.iter().max().copied()?, preferred.iter().max().copied()?);
    let score = |at: usize| {
        let taints = if worst == 0 { BEST } else { BEST - BEST * disliked[at] / worst };
        let affinity = if dearest == 0 { 0 } else { BEST * preferred[at] / dearest };
        TAINTS * taints + AFFINITY * affinity + room(demand, fits[at])
    };
    let ranked = (0..fits.len())
        .max_by(|a, b| score(*a).cmp(&score(*b)).then_with(|| fits[*b].name().cmp(fits[*a].name())));
    ranked.map(|at| fits[at])
}

/// Taints that only ask to stay away.
fn untolerated(spec: &PodSpec, view: &NodeView) -> i64 {
    let soft = taints(&view.node).filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerated(spec, taint)).fold(0, |count, _| count + 1)
}

fn preference(spec: &PodSpec, view: &NodeView) -> i64 {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let terms =
        affinity.and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    let wanted = terms.into_iter().flatten().filter(|term| term_matches(&term.preference, &view.node));
    wanted.map(|term| i64::from(term.weight)).sum()
}

/// Much left of cpu and memory, and about as much of one as of the other.
fn room(demand: &Demand, view: &NodeView) -> i64 {
    let used = |name: &str| {
        let has = view.has(name).as_milli();
        let zero = api::quantity::Quantity::ZERO;
        let taken = view.used.scored.get(name).copied().unwrap_or(zero);
        let with = taken.add(demand.scored.get(name).unwrap_or(&zero)).as_milli();
        // In millionths of what the node has.
        if has <= 0 {
            1_000_000
        } else {
            i64::try_from(with * 1_000_000 / has).unwrap_or(i64::MAX).min(1_000_000)
        }
    };
    let (cpu, memory) = (used("cpu"), used("memory"));
    let left = (2_000_000 - cpu - memory) / 2;
    // The standard deviation of two fractions is half their distance.
    let balance = 1_000_000 - (cpu - memory).abs() / 2;
    (left + balance) / 10_000
}
