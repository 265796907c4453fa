//! Pod affinity and anti-affinity: beside whom a pod must be or must not be, and beside whom it would rather be.
//!
//! Invariant: anti-affinity holds both ways: a pod that is there keeps those away that it does not want beside it.

use std::sync::Arc;

use crate::ask::{Ask, Term};
use crate::filter::{Cause, Refusal};
use crate::round::{Round, TallyId};
use crate::tally::Weighs;

/// What a round knows for the terms of one pod.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    near: Vec<TallyId>,
    /// Whether the pod is one that it wants to be beside itself.
    near_itself: bool,
    far: Vec<TallyId>,
    /// Anti-affinity of pods that are there and mean this one.
    repelled: Vec<TallyId>,
    /// Tallies by the weight of one pod in them.
    liked: Vec<(i64, TallyId)>,
}

impl Neighbours {
    /// For this pod.
    pub(crate) fn of(round: &mut Round<'_>, ask: &Ask) -> Neighbours {
        let class = &ask.class;
        let namespaces = &round.view.namespaces;
        let means = |term: &&Arc<Term>| term.matches(class, namespaces);
        let repelling: Vec<Arc<Term>> = round.bearers.repelling.values().filter(means).cloned().collect();
        let liking: Vec<Arc<Term>> = round.bearers.liking.values().filter(means).cloned().collect();
        let near_itself = class.near.iter().all(|term| term.matches(class, namespaces));
        let all: String = class.near.iter().map(|term| &*term.id).collect();
        let near = class.near.iter().map(|term| {
            let name = format!("all {} {all}", term.key);
            round.counted(name, &term.key, || Weighs::Meant(class.near.clone()), |_| None)
        });
        let near = near.collect();
        let meant = |round: &mut Round<'_>, term: &Arc<Term>| {
            let weighs = || Weighs::Meant(vec![Arc::clone(term)]);
            round.counted(format!("one {}", term.id), &term.key, weighs, |_| None)
        };
        let far = class.far.iter().map(|term| meant(round, term)).collect();
        let repelled = repelling.iter().map(|term| {
            let weighs = || Weighs::Repels(Arc::clone(&term.id));
            round.counted(format!("repels {}", term.id), &term.key, weighs, |_| None)
        });
        let repelled = repelled.collect();
        let mut liked: Vec<(i64, TallyId)> =
            class.liked.iter().map(|(weight, term)| (*weight, meant(round, term))).collect();
        liked.extend(liking.iter().map(|term| {
            let weighs = || Weighs::Likes(Arc::clone(&term.id));
            (1, round.counted(format!("likes {}", term.id), &term.key, weighs, |_| None))
        }));
        Neighbours { near, near_itself, far, repelled, liked }
    }

    /// Asks one node.
    pub(crate) fn refusal(&self, round: &Round<'_>, at: usize) -> Option<Refusal> {
        // The first of a group that wants to be together may be anywhere in the topology.
        let first = || self.near_itself && self.near.iter().all(|id| round.tally(*id).total() == 0);
        let holds = |id: &TallyId| round.tally(*id).at(at).is_some_and(|count| count > 0 || first());
        if !self.near.iter().all(holds) {
            return Refusal::always(Cause::Near, "node(s) didn't match pod affinity rules");
        }
        let anybody = |tallies: &[TallyId]| {
            tallies.iter().any(|id| round.tally(*id).at(at).is_some_and(|count| count > 0))
        };
        if anybody(&self.far) {
            return Refusal::for_now(Cause::Far, "node(s) didn't match pod anti-affinity rules");
        }
        if anybody(&self.repelled) {
            return Refusal::for_now(Cause::Far, "node(s) didn't satisfy existing pods anti-affinity rules");
        }
        None
    }

    /// How much each of the nodes at these places is liked; `None`: nobody cares.
    pub(crate) fn scores(&self, round: &Round<'_>, places: &[usize]) -> Option<Vec<i64>> {
        if self.liked.iter().all(|(_, id)| round.tally(*id).total() == 0) {
            return None;
        }
        let score = |at: &usize| {
            self.liked.iter().map(|(weight, id)| weight * round.tally(*id).at(*at).unwrap_or(0)).sum::<i64>()
        };
        let raw: Vec<i64> = places.iter().map(score).collect();
        let (least, most) = (raw.iter().min().copied()?, raw.iter().max().copied()?);
        let spread = most - least;
        Some(raw.into_iter().map(|one| if spread > 0 { 100 * (one - least) / spread } else { 0 }).collect())
    }
}
