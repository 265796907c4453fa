//! Which of the nodes that can take a pod is the best for it.
//!
//! Invariant: the same cluster and the same pod give the same node; among equals the first that was looked at.

use crate::ask::Ask;
use crate::config::Strategy;
use crate::filter::{term_matches, tolerated};
use crate::node::NodeView;
use crate::round::{Ready, Round};

/// As Kubernetes weighs them by default.
const TAINTS: i64 = 3;
const AFFINITY: i64 = 2;
const SPREAD: i64 = 2;
const NEIGHBOURS: i64 = 2;
const BEST: i64 = 100;
/// Images below this size are pulled in no time, and above that no longer counted.
const IMAGE_LEAST: i64 = 23 << 20;
const IMAGE_MOST: i64 = 1000 << 20;

/// The best of the places that can take the pod.
pub(crate) fn best(round: &mut Round<'_>, ask: &Ask, ready: &Ready, places: &[usize]) -> Option<usize> {
    if let [only] = places {
        return Some(*only);
    }
    let mut scores: Vec<i64> = vec![0; places.len()];
    let mut add = |weight: i64, more: Option<Vec<i64>>| {
        for (score, more) in scores.iter_mut().zip(more.into_iter().flatten()) {
            *score += weight * more;
        }
    };
    let images = images(round, ask);
    let nodes = &round.nodes;
    add(TAINTS, disliked(ask, nodes, places));
    add(AFFINITY, preferred(ask, nodes, places));
    add(SPREAD, ready.spreading.scores(round, places));
    add(NEIGHBOURS, ready.neighbours.scores(round, places));
    let strategy = round.view.strategy;
    let alone = |at: &usize| {
        let view = &nodes[*at];
        room(ask, view, strategy) + balance(ask, view) + local(&images, ask, view)
    };
    add(1, Some(places.iter().map(alone).collect()));
    let mut chosen: Option<(i64, usize)> = None;
    for (score, at) in scores.into_iter().zip(places) {
        if chosen.is_none_or(|(most, _)| score > most) {
            chosen = Some((score, *at));
        }
    }
    chosen.map(|(_, at)| at)
}

/// Taints that only ask to stay away.
fn disliked(ask: &Ask, nodes: &[std::sync::Arc<NodeView>], places: &[usize]) -> Option<Vec<i64>> {
    if places.iter().all(|at| nodes[*at].facts.soft_taints.is_empty()) {
        return None;
    }
    let count = |at: &usize| {
        let soft = nodes[*at].facts.soft_taints.iter();
        soft.filter(|taint| !tolerated(ask.tolerations(), taint)).fold(0, |count, _| count + 1)
    };
    let counts: Vec<i64> = places.iter().map(count).collect();
    let worst = counts.iter().max().copied().unwrap_or(0);
    let score = |count: i64| if worst == 0 { BEST } else { BEST - BEST * count / worst };
    Some(counts.into_iter().map(score).collect())
}

fn preferred(ask: &Ask, nodes: &[std::sync::Arc<NodeView>], places: &[usize]) -> Option<Vec<i64>> {
    let affinity = ask.spec()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = affinity.preferred_during_scheduling_ignored_during_execution.as_ref()?;
    let sum = |at: &usize| {
        let facts = &nodes[*at].facts;
        let wanted = terms.iter().filter(|term| term_matches(&term.preference, &facts.name, &facts.labels));
        wanted.map(|term| i64::from(term.weight)).sum::<i64>()
    };
    let sums: Vec<i64> = places.iter().map(sum).collect();
    let most = sums.iter().max().copied().filter(|most| *most > 0)?;
    Some(sums.into_iter().map(|sum| BEST * sum / most).collect())
}

/// Much left of cpu and memory, or little, as configured.
fn room(ask: &Ask, view: &NodeView, strategy: Strategy) -> i64 {
    let all = &view.facts.allocatable;
    let each = [
        (view.used.scored_cpu + ask.demand.scored_cpu, all.cpu),
        (view.used.scored_memory + ask.demand.scored_memory, all.memory),
    ];
    let score = |(taken, all): (i64, i64)| match strategy {
        Strategy::LeastAllocated if all <= 0 || taken > all => 0,
        Strategy::LeastAllocated => share(all - taken, all),
        Strategy::MostAllocated if all <= 0 => 0,
        Strategy::MostAllocated => share(taken.min(all), all),
    };
    each.map(score).iter().sum::<i64>() / 2
}

fn share(part: i64, all: i64) -> i64 {
    // Bytes times a hundred are far from the end of 64 bits for any machine there is.
    part.saturating_mul(BEST) / all
}

/// About as much of cpu as of memory. A pod that asks for neither changes nothing about it.
fn balance(ask: &Ask, view: &NodeView) -> i64 {
    let wanted = &ask.demand.amounts;
    if wanted.cpu == 0 && wanted.memory == 0 {
        return 0;
    }
    let (used, all) = (&view.used.amounts, &view.facts.allocatable);
    let fraction = |taken: i64, all: i64| (all > 0).then(|| (taken as f64 / all as f64).min(1.0));
    let both =
        fraction(used.cpu + wanted.cpu, all.cpu).zip(fraction(used.memory + wanted.memory, all.memory));
    // The standard deviation of two fractions is half their distance.
    let deviation = both.map_or(0.0, |(cpu, memory)| (cpu - memory).abs() / 2.0);
    ((1.0 - deviation) * BEST as f64) as i64
}

/// For each image of the pod: its name and how many of all nodes have it, in thousandths.
fn images(round: &mut Round<'_>, ask: &Ask) -> Vec<(String, i64)> {
    let spec = ask.spec();
    let containers =
        spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(spec.containers.iter()));
    let names: Vec<String> = containers.filter_map(|one| one.image.as_deref()).map(tagged).collect();
    let all = i64::try_from(round.nodes.len()).unwrap_or(1).max(1);
    names
        .into_iter()
        .map(|name| {
            let nodes = &round.nodes;
            let count = || {
                nodes.iter().filter(|view| view.facts.images.contains_key(&name)).fold(0, |sum, _| sum + 1)
            };
            let share = *round.images.entry(name.clone()).or_insert_with(|| 1000 * count() / all);
            (name, share)
        })
        .collect()
}

/// What of the pod's images is there already.
fn local(images: &[(String, i64)], ask: &Ask, view: &NodeView) -> i64 {
    if view.facts.images.is_empty() || images.is_empty() {
        return 0;
    }
    let bytes = |(name, share): &(String, i64)| {
        view.facts.images.get(name).copied().unwrap_or(0).saturating_mul(*share) / 1000
    };
    let sum: i64 = images.iter().map(bytes).sum();
    let containers = ask
        .spec()
        .map_or(1, |spec| spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len));
    let most = IMAGE_MOST * i64::try_from(containers).unwrap_or(1).max(1);
    BEST * (sum.clamp(IMAGE_LEAST, most) - IMAGE_LEAST) / (most - IMAGE_LEAST)
}

/// A name as nodes report it: with a tag.
fn tagged(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}
