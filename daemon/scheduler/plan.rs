//! One round over pods that have no node: who goes where, who leaves for whom, and what is said to those who must wait.
//!
//! Invariant: each choice sees the ones before it in the same round.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::Key;
use imbl::{OrdMap, Vector};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use reconcile::Plan;

use crate::ask::{Ask, Namespaces};
use crate::class::Class;
use crate::config::Strategy;
use crate::filter::{Cause, Refusal};
use crate::node::NodeView;
use crate::preempt::{Preemption, preempt};
use crate::round::{Ready, Round};
use crate::score::best;
use crate::volumes::{self, Choice, Storage};

/// Which kinds of change could help a pod that waits.
pub(crate) type Causes = BTreeSet<Cause>;

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The nodes, by name.
    pub(crate) nodes: Arc<Vec<Arc<NodeView>>>,
    /// The classes that pods are of, by their numbers.
    pub(crate) classes: Vector<Arc<Class>>,
    /// Pods to be placed, in order.
    pub(crate) pending: Vec<Arc<Ask>>,
    /// Whether there are more than these.
    pub(crate) more: bool,
    /// Pods without a node that were promised one.
    pub(crate) nominated: Vec<Arc<Ask>>,
    /// Namespaces.
    pub(crate) namespaces: Namespaces,
    /// Claims, volumes and their classes.
    pub(crate) storage: Storage,
    /// What says how many pods may be disrupted.
    pub(crate) budgets: OrdMap<Key, Arc<PodDisruptionBudget>>,
    /// How nodes are chosen.
    pub(crate) strategy: Strategy,
    /// Where the search for nodes begins when not all are looked at.
    pub(crate) start: usize,
}

/// One effect.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Gives a pod its node.
    Bind {
        /// The pod.
        ask: Arc<Ask>,
        /// The node's name.
        node: String,
    },
    /// Asks for the volumes that a pod needs on a node; it is bound when it has them.
    Claim {
        /// The pod.
        ask: Arc<Ask>,
        /// The node's name.
        node: String,
        /// Which volume for which claim.
        choices: Vec<Choice>,
    },
    /// Says why a pod has no node.
    Explain(Explanation),
    /// Lets a pod wait that says already why.
    Park {
        /// The pod.
        ask: Arc<Ask>,
        /// What could help.
        causes: Causes,
    },
    /// Takes the promise of a node back.
    Withdraw {
        /// The pod.
        ask: Arc<Ask>,
    },
}

/// Why a pod has no node, and what is done about it.
#[derive(Debug, Clone)]
pub(crate) struct Explanation {
    /// The pod.
    pub(crate) ask: Arc<Ask>,
    /// `Unschedulable` or `SchedulingGated`.
    pub(crate) reason: &'static str,
    /// A sentence.
    pub(crate) message: String,
    /// What could help.
    pub(crate) causes: Causes,
    /// What becomes of `status.nominatedNodeName`.
    pub(crate) nomination: Nomination,
    /// Who leaves for it.
    pub(crate) victims: Vec<Arc<Ask>>,
    /// When.
    pub(crate) at: Timestamp,
}

/// What becomes of the promise of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Nomination {
    /// It stays as it is.
    Keep,
    /// There is none.
    Clear,
    /// This node is promised.
    Node(String),
}

/// Places pods in the order they are given: the most important first, then the longest waiting.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let mut round = Round::new(view);
    let mut steps = Vec::new();
    for ask in &view.pending {
        match place(&mut round, ask) {
            Placed::On(at) => {
                let node = round.nodes[at].name().to_owned();
                round.withdraw(ask);
                round.take(at, ask);
                steps.push(Step::Bind { ask: Arc::clone(ask), node });
            }
            Placed::With(at, choices) => {
                let node = round.nodes[at].name().to_owned();
                round.withdraw(ask);
                round.take(at, ask);
                round.claimed.extend(choices.iter().filter_map(Choice::volume).map(str::to_owned));
                steps.push(Step::Claim { ask: Arc::clone(ask), node, choices });
            }
            Placed::Nowhere(why) => steps.extend(explain(&mut round, ask, why, now)),
        }
    }
    let mut plan = Plan::together(steps);
    if view.more {
        plan.look_again(now);
    }
    plan
}

/// The condition `PodScheduled`.
pub(crate) fn condition(pod: &Pod) -> Option<&PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled")
}

enum Placed {
    On(usize),
    With(usize, Vec<Choice>),
    Nowhere(Nowhere),
}

struct Nowhere {
    reason: &'static str,
    message: String,
    causes: Causes,
    preemption: Option<Preemption>,
}

impl Nowhere {
    fn unschedulable(message: String, causes: Causes) -> Placed {
        Placed::Nowhere(Nowhere { reason: "Unschedulable", message, causes, preemption: None })
    }
}

fn place(round: &mut Round<'_>, ask: &Arc<Ask>) -> Placed {
    if ask.is_gated() {
        let message = "Scheduling is blocked due to non-empty scheduling gates".to_owned();
        let causes = Causes::new();
        return Placed::Nowhere(Nowhere { reason: "SchedulingGated", message, causes, preemption: None });
    }
    let all = round.nodes.len();
    if all == 0 {
        return Nowhere::unschedulable(
            "no nodes available to schedule pods".to_owned(),
            Causes::from([Cause::Node]),
        );
    }
    let head = format!("0/{all} nodes are available:");
    if let Some(why) = volumes::missing(&round.view.storage, ask) {
        let preemption = not_helpful(round, ask);
        let message = format!("{head} {why}. {}", preemption.message(all));
        let causes = Causes::from([Cause::Volumes]);
        let preemption = Some(preemption);
        return Placed::Nowhere(Nowhere { reason: "Unschedulable", message, causes, preemption });
    }
    let mut ready = round.ready(ask);
    let (places, refusals) = search(round, ask, &mut ready);
    if let Some(at) = best(round, ask, &ready, &places) {
        return match volumes::choose(round, ask, at) {
            Some(choices) => Placed::With(at, choices),
            None => Placed::On(at),
        };
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in refusals.iter().flat_map(|(_, refusal)| &refusal.reasons) {
        *reasons.entry(reason).or_default() += 1;
    }
    let causes = refusals.iter().map(|(_, refusal)| refusal.cause).collect();
    let why = counted(reasons);
    let preemption = preempt(round, ask, &mut ready, &refusals);
    let told = preemption.message(all);
    let message = if told.is_empty() { format!("{head} {why}.") } else { format!("{head} {why}. {told}") };
    Placed::Nowhere(Nowhere { reason: "Unschedulable", message, causes, preemption: Some(preemption) })
}

/// Nobody who leaves could help.
fn not_helpful(round: &mut Round<'_>, ask: &Arc<Ask>) -> Preemption {
    let mut ready = round.ready(ask);
    let refused = (0..round.nodes.len())
        .filter_map(|at| Refusal::always(Cause::Volumes, "").map(|refusal| (at, refusal)))
        .collect::<Vec<_>>();
    preempt(round, ask, &mut ready, &refused)
}

/// Looks for nodes that can take a pod: all of them, or, where there are many, until enough are found.
fn search(round: &mut Round<'_>, ask: &Ask, ready: &mut Ready) -> (Vec<usize>, Vec<(usize, Refusal)>) {
    let all = round.nodes.len();
    // The node it was promised comes first: others left it for this pod.
    if let Some(at) = ask.nominated().and_then(|node| round.find(node))
        && round.refusal(ask, ready, at).is_none()
    {
        return (vec![at], Vec::new());
    }
    let (mut places, mut refusals) = (Vec::new(), Vec::new());
    let enough = enough(all);
    for step in 0..all {
        let at = (round.next + step) % all;
        if let Some(named) = &ask.named_nodes
            && !named.contains(round.nodes[at].name())
        {
            let reason = "node(s) didn't satisfy plugin(s) [NodeAffinity]";
            refusals.extend(Refusal::always(Cause::Node, reason).map(|refusal| (at, refusal)));
            continue;
        }
        match round.refusal(ask, ready, at) {
            None => places.push(at),
            Some(refusal) => refusals.push((at, refusal)),
        }
        if places.len() == enough {
            round.next = (at + 1) % all;
            break;
        }
    }
    // Among equals the first by name is taken where all were looked at.
    if enough >= all {
        places.sort_unstable();
    }
    (places, refusals)
}

/// How many nodes that can take a pod are enough to choose from, as documented for `percentageOfNodesToScore`.
fn enough(all: usize) -> usize {
    const LEAST: usize = 100;
    let percent = 50_usize.saturating_sub(all / 125).max(5);
    if all <= LEAST { all } else { (all * percent / 100).max(LEAST) }
}

fn explain(round: &mut Round<'_>, ask: &Arc<Ask>, why: Nowhere, now: Timestamp) -> Vec<Step> {
    let (mut nomination, mut victims, mut steps) = (Nomination::Keep, Vec::new(), Vec::new());
    match why.preemption {
        Some(Preemption::Of(chosen)) => {
            let node = round.nodes[chosen.node].name().to_owned();
            let weaker = round.nominated.get(&chosen.node).into_iter().flatten();
            let weaker: Vec<Arc<Ask>> =
                weaker.filter(|other| other.priority < ask.priority).cloned().collect();
            for other in weaker {
                round.withdraw(&other);
                steps.push(Step::Withdraw { ask: other });
            }
            round.withdraw(ask);
            round.nominate(ask, &node);
            nomination = Nomination::Node(node);
            // Another pod of this round may have asked them already.
            victims = chosen.pods;
            victims.retain(|pod| round.doomed.insert(pod.uid().to_owned()));
        }
        Some(Preemption::Nobody(_)) => {
            round.withdraw(ask);
            nomination = Nomination::Clear;
        }
        Some(Preemption::NotAllowed(_)) | None => {}
    }
    let promised = match &nomination {
        Nomination::Keep => true,
        Nomination::Clear => ask.nominated().is_none(),
        Nomination::Node(node) => ask.nominated() == Some(node),
    };
    let (ask, causes) = (Arc::clone(ask), why.causes);
    if promised && victims.is_empty() && says(&ask.pod, why.reason, &why.message) {
        steps.push(Step::Park { ask, causes });
    } else {
        let (reason, message) = (why.reason, why.message);
        steps.push(Step::Explain(Explanation { ask, reason, message, causes, nomination, victims, at: now }));
    }
    steps
}

fn says(pod: &Pod, reason: &str, message: &str) -> bool {
    let known = condition(pod);
    known.is_some_and(|known| {
        known.status == "False"
            && known.reason.as_deref() == Some(reason)
            && known.message.as_deref() == Some(message)
    })
}

/// `2 Insufficient cpu, 3 Too many pods`, in the order of the text as in Kubernetes.
pub(crate) fn counted<S: std::fmt::Display>(reasons: BTreeMap<S, usize>) -> String {
    let mut parts: Vec<String> =
        reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    parts.join(", ")
}
