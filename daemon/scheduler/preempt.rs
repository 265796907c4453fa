//! Preemption: which pods leave a node so that a more important one can run there.
//!
//! Invariant: only pods of lower priority leave, and of those no more than needed; as few budgets as possible are broken.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use api::select::Labels;
use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::json;

use crate::ask::Ask;
use crate::filter::Refusal;
use crate::plan::counted;
use crate::round::{Ready, Round};

/// How many nodes are tried at the most.
const CANDIDATES: usize = 100;

/// What came of asking others to leave.
#[derive(Debug)]
pub(crate) enum Preemption {
    /// These leave.
    Of(Victims),
    /// This pod must not ask, or asked already; the text says why.
    NotAllowed(&'static str),
    /// Nobody who left would help; the counts say why.
    Nobody(BTreeMap<String, usize>),
}

/// Who leaves a node.
#[derive(Debug)]
pub(crate) struct Victims {
    /// The node's place.
    pub(crate) node: usize,
    /// The pods, the most important first.
    pub(crate) pods: Vec<Arc<Ask>>,
    violations: usize,
}

impl Preemption {
    /// What is added to the reasons why a pod has no node.
    pub(crate) fn message(&self, all: usize) -> String {
        let told = match self {
            Preemption::Of(_) => return String::new(),
            Preemption::NotAllowed(why) => (*why).to_owned(),
            Preemption::Nobody(reasons) => {
                format!("0/{all} nodes are available: {}.", counted(reasons.clone()))
            }
        };
        format!("no new claims to deallocate, preemption: {told}")
    }
}

/// Asks whether others could leave a node for this pod; nothing in the round changes.
pub(crate) fn preempt(
    round: &mut Round<'_>,
    ask: &Arc<Ask>,
    ready: &mut Ready,
    refused: &[(usize, Refusal)],
) -> Preemption {
    if let Some(why) = not_allowed(round, ask, refused) {
        return Preemption::NotAllowed(why);
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut candidates: Vec<Victims> = Vec::new();
    let budgets = Budget::read(round);
    for (at, refusal) in refused {
        if !refusal.room_would_help {
            *reasons.entry("Preemption is not helpful for scheduling".to_owned()).or_default() += 1;
            continue;
        }
        if candidates.len() == CANDIDATES {
            break;
        }
        match victims(round, ask, ready, (*at, &budgets)) {
            Ok(found) => candidates.push(found),
            Err(why) => why.into_iter().for_each(|reason| *reasons.entry(reason).or_default() += 1),
        }
    }
    ready.spreading.refresh(round);
    match candidates.into_iter().min_by_key(cost) {
        Some(chosen) => Preemption::Of(chosen),
        None => Preemption::Nobody(reasons),
    }
}

fn not_allowed(round: &Round<'_>, ask: &Ask, refused: &[(usize, Refusal)]) -> Option<&'static str> {
    if ask.spec().and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let at = round.find(ask.nominated()?)?;
    // Where nobody's leaving would help any more, the promise is void.
    if refused.iter().any(|(node, refusal)| *node == at && !refusal.room_would_help) {
        return None;
    }
    let leaves = |other: &Arc<Ask>| {
        other.priority < ask.priority && (round.doomed.contains(other.uid()) || is_preempted(other))
    };
    let waits = round.nodes[at].used.pods.values().any(leaves);
    waits.then_some("not eligible due to a terminating pod on the nominated node.")
}

/// Whether a pod is on its way out because the scheduler said so.
fn is_preempted(ask: &Ask) -> bool {
    let status = ask.pod.status.as_ref();
    let mut conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
    ask.class.leaving
        && conditions.any(|known| {
            known.type_ == "DisruptionTarget" && known.reason.as_deref() == Some("PreemptionByScheduler")
        })
}

/// The smallest of these is chosen: budgets broken, the highest priority, the sum of priorities, the number; and of
/// those the one whose most important pod started last.
fn cost(victims: &Victims) -> (usize, i32, i64, usize, Reverse<Option<Timestamp>>) {
    let highest = victims.pods.first().map_or(i32::MIN, |pod| pod.priority);
    let sum = victims.pods.iter().map(|pod| i64::from(pod.priority) + (1 << 31)).sum();
    let most_important = victims.pods.iter().filter(|pod| pod.priority == highest);
    let started = most_important.filter_map(|pod| started(pod)).min();
    (victims.violations, highest, sum, victims.pods.len(), Reverse(started))
}

fn started(ask: &Ask) -> Option<Timestamp> {
    ask.pod.status.as_ref()?.start_time.as_ref().map(|time| time.0)
}

/// The pods of one node that would have to leave.
fn victims(
    round: &mut Round<'_>,
    ask: &Arc<Ask>,
    ready: &mut Ready,
    (at, budgets): (usize, &[Budget]),
) -> Result<Victims, Vec<String>> {
    let weaker = round.nodes[at].used.pods.values().filter(|other| other.priority < ask.priority);
    let mut weaker: Vec<Arc<Ask>> = weaker.cloned().collect();
    if weaker.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
    }
    // The most important first, then the longest running.
    weaker.sort_by_key(|other| (Reverse(other.priority), started(other).unwrap_or(Timestamp::MAX)));
    weaker.iter().for_each(|other| round.give(at, other));
    ready.spreading.refresh(round);
    if let Some(refusal) = round.refusal(ask, ready, at) {
        weaker.iter().for_each(|other| round.take(at, other));
        return Err(refusal.reasons);
    }
    let (breaking, other): (Vec<_>, Vec<_>) = breaking(&weaker, budgets);
    let (mut leave, mut stay, mut violations) = (Vec::new(), Vec::new(), 0);
    for (pods, breaks) in [(breaking, 1), (other, 0)] {
        for pod in pods {
            round.take(at, &pod);
            ready.spreading.refresh(round);
            if round.refusal(ask, ready, at).is_some() {
                round.give(at, &pod);
                ready.spreading.refresh(round);
                violations += breaks;
                leave.push(pod);
            } else {
                stay.push(pod);
            }
        }
    }
    leave.iter().for_each(|pod| round.take(at, pod));
    leave.sort_by_key(|other| (Reverse(other.priority), started(other).unwrap_or(Timestamp::MAX)));
    Ok(Victims { node: at, pods: leave, violations })
}

/// How many pods of a set may be disrupted.
struct Budget {
    namespace: String,
    labels: Labels,
    allowed: i32,
    disrupted: Vec<String>,
}

impl Budget {
    fn read(round: &Round<'_>) -> Vec<Budget> {
        let read = |budget: &Arc<PodDisruptionBudget>| {
            let selector = json!(budget.spec.as_ref()?.selector.as_ref()?);
            let labels = Labels::from_selector(&selector).ok()?;
            let status = budget.status.as_ref();
            let disrupted = status.into_iter().flat_map(|status| status.disrupted_pods.iter().flatten());
            Some(Budget {
                namespace: budget.metadata.namespace.clone().unwrap_or_default(),
                labels,
                allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0),
                disrupted: disrupted.map(|(name, _)| name.clone()).collect(),
            })
        };
        round.view.budgets.values().filter_map(read).collect()
    }
}

/// Those whose leaving would break a budget, and the others.
fn breaking(pods: &[Arc<Ask>], budgets: &[Budget]) -> (Vec<Arc<Ask>>, Vec<Arc<Ask>>) {
    let mut allowed: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
    pods.iter().cloned().partition(|pod| {
        let mut breaks = false;
        for (budget, allowed) in budgets.iter().zip(&mut allowed) {
            let meant = budget.namespace == pod.key.namespace
                && !pod.class.labels.is_empty()
                && budget.labels.matches(&pod.class.labels)
                && !budget.disrupted.contains(&pod.key.name);
            if meant {
                *allowed -= 1;
                breaks |= *allowed < 0;
            }
        }
        breaks
    })
}
