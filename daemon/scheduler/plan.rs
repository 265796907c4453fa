//! One round over all pods that have no node: who goes where, and what is said to those who must wait.
//!
//! Invariant: each choice sees the ones before it in the same round.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use reconcile::Plan;

use crate::cluster::NodeView;
use crate::demand::Demand;
use crate::filter::{refusal, unsupported};
use crate::score::best;

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The nodes, by name.
    pub(crate) nodes: Vec<NodeView>,
    /// Pods without a node whose binding was not asked for yet.
    pub(crate) pending: Vec<Arc<Pod>>,
}

/// One effect.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Gives a pod its node.
    Bind {
        /// The pod.
        pod: Arc<Pod>,
        /// What it takes there.
        demand: Demand,
        /// The node's name.
        node: String,
        /// When.
        at: Timestamp,
    },
    /// Says why a pod has no node.
    Explain {
        /// The pod.
        pod: Arc<Pod>,
        /// `Unschedulable` or `SchedulingGated`.
        reason: &'static str,
        /// A sentence.
        message: String,
        /// When.
        at: Timestamp,
    },
}

/// Places pods, the most important first, then the longest waiting.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let mut nodes = view.nodes.clone();
    let mut pending: Vec<&Arc<Pod>> = view.pending.iter().collect();
    pending.sort_by_key(|pod| {
        let meta = &pod.metadata;
        (
            -i64::from(priority(pod)),
            meta.creation_timestamp.clone(),
            meta.namespace.clone(),
            meta.name.clone(),
        )
    });
    let mut steps = Vec::new();
    for pod in pending {
        match place(pod, &nodes) {
            Ok((at, demand)) => {
                nodes[at].used.take(&demand, priority(pod));
                let node = nodes[at].name().to_owned();
                steps.push(Step::Bind { pod: Arc::clone(pod), demand, node, at: now });
            }
            Err((reason, message)) => {
                if !says(pod, reason, &message) {
                    steps.push(Step::Explain { pod: Arc::clone(pod), reason, message, at: now });
                }
            }
        }
    }
    Plan::together(steps)
}

/// `spec.priority`.
pub(crate) fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

fn says(pod: &Pod, reason: &str, message: &str) -> bool {
    let known = condition(pod);
    known.is_some_and(|known| {
        known.status == "False"
            && known.reason.as_deref() == Some(reason)
            && known.message.as_deref() == Some(message)
    })
}

/// The condition `PodScheduled`.
pub(crate) fn condition(pod: &Pod) -> Option<&PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled")
}

fn place(pod: &Pod, nodes: &[NodeView]) -> Result<(usize, Demand), (&'static str, String)> {
    let gates = pod.spec.iter().filter_map(|spec| spec.scheduling_gates.as_ref()).flatten().count();
    if gates > 0 {
        return Err((
            "SchedulingGated",
            "Scheduling is blocked due to non-empty scheduling gates".to_owned(),
        ));
    }
    if nodes.is_empty() {
        return Err(("Unschedulable", "no nodes available to schedule pods".to_owned()));
    }
    let head = format!("0/{} nodes are available:", nodes.len());
    if let Some(why) = unsupported(pod, nodes.len()) {
        return Err(("Unschedulable", format!("{head} {why}.")));
    }
    let demand = Demand::of(pod);
    let mut fits = Vec::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut preemption: BTreeMap<&str, usize> = BTreeMap::new();
    for view in nodes {
        match refusal(pod, &demand, view) {
            None => fits.push(view),
            Some(refused) => {
                let lower = view.used.priorities.range(..priority(pod)).next().is_some();
                let hint = match (refused.room_would_help, lower) {
                    (false, _) => "Preemption is not helpful for scheduling",
                    (true, false) => "No preemption victims found for incoming pod",
                    (true, true) => "Preemption is not supported by this scheduler yet",
                };
                *preemption.entry(hint).or_default() += 1;
                refused.reasons.into_iter().for_each(|reason| *reasons.entry(reason).or_default() += 1);
            }
        }
    }
    if let Some(chosen) = best(pod, &demand, &fits) {
        let at = nodes.iter().position(|view| view.name() == chosen.name());
        return Ok((at.expect("the best node is one of those asked"), demand));
    }
    let why = counted(reasons.iter().map(|(reason, count)| (reason.as_str(), *count)));
    let hint = counted(preemption.into_iter());
    Err(("Unschedulable", format!("{head} {why}. no new claims to deallocate, preemption: {head} {hint}.")))
}

/// `2 Insufficient cpu, 3 Too many pods`, in the order of the text as in Kubernetes.
fn counted<'a>(reasons: impl Iterator<Item = (&'a str, usize)>) -> String {
    let mut parts: Vec<String> = reasons.map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    parts.join(", ")
}
