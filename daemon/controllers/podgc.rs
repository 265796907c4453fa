//! Pod garbage: pods whose node is gone, pods that were told to go before they had a node, and ended pods beyond what
//! is kept.
//!
//! Invariant: a node counts as gone only after it was not there for a while.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Cache, Clock, Key, key_of};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use reconcile::{Plan, Reconciler};
use serde_json::json;

use crate::Error;
use crate::nodelifecycle::is_out;
use crate::pods;
use crate::step::{self, Door, Part, Place, Propagation, Step};

/// How long a node must be gone before its pods go, as documented.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Ended pods that are kept, as by default.
const KEPT: usize = 12_500;

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) pod: Option<Arc<Pod>>,
    /// Since when its node is not there; `None`: it is, or there is none to be.
    pub(crate) lost: Option<Timestamp>,
    /// Whether a person said that its node is out of service, and the node is indeed not ready.
    pub(crate) out_of_service: bool,
    /// Whether it is one of the oldest ended pods beyond those kept.
    pub(crate) surplus: bool,
}

/// Takes pods away that nobody else takes away.
pub(crate) struct PodGarbage {
    client: Door,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    clock: Clock,
    lost: Mutex<BTreeMap<String, Timestamp>>,
}

impl PodGarbage {
    /// Over these caches.
    pub(crate) fn new(client: Door, pods: Cache<Pod>, nodes: Cache<Node>, clock: Clock) -> PodGarbage {
        PodGarbage { client, pods, nodes, clock, lost: Mutex::default() }
    }

    fn lost(&self, node: &str) -> Option<Timestamp> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if self.nodes.get(&Key::new("", node)).is_some() {
            lost.remove(node);
            return None;
        }
        Some(*lost.entry(node.to_owned()).or_insert_with(|| self.clock.now()))
    }

    /// Whether there are more ended pods than are kept, and this is one of the oldest.
    fn is_surplus(&self, pod: &Pod) -> bool {
        let all = self.pods.snapshot();
        if !pods::finished(pod) || all.len() <= KEPT {
            return false;
        }
        let age = |pod: &Pod| (pod.metadata.creation_timestamp.as_ref().map(|at| at.0), key_of(pod));
        let own = age(pod);
        all.values().filter(|other| pods::finished(other) && age(other) > own).count() >= KEPT
    }
}

impl Reconciler for PodGarbage {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "pod-garbage";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(pod) = self.pods.get(key) else { return Ok(View::default()) };
        let lost = node_of(&pod).and_then(|node| self.lost(node));
        let surplus = self.is_surplus(&pod);
        let node = node_of(&pod).and_then(|node| self.nodes.get(&Key::new("", node)));
        let out_of_service = node.is_some_and(|node| out_of_service(&node));
        Ok(View { pod: Some(pod), lost, out_of_service, surplus })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

/// Whether a person said that a node is out of service, and the node is indeed not ready.
pub(crate) fn out_of_service(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    is_out(node) && taints.any(|taint| taint.key == "node.kubernetes.io/out-of-service")
}

/// The node that a pod is bound to.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// Takes a pod away, saying why, when nobody else will.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(pod) = &view.pod else { return Plan::empty() };
    if view.surplus {
        return Plan::in_turn(vec![gone(pod)]);
    }
    if pods::terminating(pod) && (view.out_of_service || node_of(pod).is_none()) {
        let ended = (!pods::finished(pod)).then(|| failed(pod, None));
        return Plan::in_turn(ended.into_iter().chain([gone(pod)]).collect());
    }
    let Some(since) = view.lost else { return Plan::empty() };
    let end = since + QUARANTINE;
    if end > now {
        return Plan::empty().again_at(end);
    }
    let mut steps = Vec::new();
    if !pods::finished(pod) {
        steps.push(failed(pod, Some(lost(pod, now))));
    }
    steps.push(gone(pod));
    Plan::in_turn(steps)
}

/// Why a pod of a lost node ends.
fn lost(pod: &Pod, now: Timestamp) -> PodCondition {
    PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some("DeletionByPodGC".to_owned()),
        message: Some("PodGC: node no longer exists".to_owned()),
        last_transition_time: Some(step::whole_seconds(now)),
        last_probe_time: None,
        observed_generation: pod.metadata.generation,
    }
}

/// Nobody else says that it ended.
fn failed(pod: &Pod, why: Option<PodCondition>) -> Step {
    let mut status = json!({"phase": "Failed"});
    if let Some(why) = why {
        let known = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let others = known.filter(|one| one.type_ != why.type_).cloned();
        let conditions: Vec<PodCondition> = others.chain([why.clone()]).collect();
        status["conditions"] = json!(conditions);
    }
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
    Step::Patch { at: Place::of(pod), part: Part::Status, patch, note: None }
}

/// No kubelet is there to be waited for.
fn gone(pod: &Pod) -> Step {
    Step::Delete {
        at: Place::of(pod),
        uid: pods::uid(&pod.metadata).to_owned(),
        propagation: Propagation::AtOnce,
        note: None,
    }
}
