//! Taint-based eviction: a pod leaves a node with a `NoExecute` taint that it does not tolerate, or not any longer.
//!
//! Invariant: a wait is counted from when the taint was added, or else first seen: a restart of the daemon does not
//! shorten it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use client::{Cache, Clock, Key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint, Toleration};
use reconcile::{Plan, Reconciler};
use serde_json::json;

use crate::Error;
use crate::podgc::node_of;
use crate::pods::{self, condition};
use crate::step::{self, Door, Note, Part, Place, Step, whole_seconds};

const COMPONENT: &str = "taint-eviction-controller";
const REASON: &str = "TaintManagerEviction";

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) pod: Option<Arc<Pod>>,
    /// What drives pods off its node.
    pub(crate) taints: Vec<Taint>,
    /// Since when the taints are known that do not say it themselves.
    pub(crate) seen: Option<Timestamp>,
    /// Whether it was to leave later, and may stay now.
    pub(crate) spared: bool,
}

/// Takes pods off tainted nodes.
pub(crate) struct TaintEviction {
    client: Door,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    clock: Clock,
    waits: Mutex<BTreeMap<Key, (String, Timestamp)>>,
}

impl TaintEviction {
    /// Over these caches.
    pub(crate) fn new(client: Door, pods: Cache<Pod>, nodes: Cache<Node>, clock: Clock) -> TaintEviction {
        TaintEviction { client, pods, nodes, clock, waits: Mutex::default() }
    }
}

/// What drives pods off a node.
pub(crate) fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

impl Reconciler for TaintEviction {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "taint-eviction";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let pod = self.pods.get(key);
        let node = pod.as_ref().and_then(|pod| self.nodes.get(&Key::new("", node_of(pod)?)));
        let taints = node.map(|node| no_execute(&node)).unwrap_or_default();
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of) = pod.as_ref().map(|pod| pods::uid(&pod.metadata).to_owned()) else {
            waits.remove(key);
            return Ok(View::default());
        };
        if taints.is_empty() {
            let spared = waits.remove(key).is_some_and(|(uid, _)| uid == of);
            return Ok(View { pod, spared, ..View::default() });
        }
        let now = self.clock.now();
        let (uid, seen) = waits.entry(key.clone()).or_insert_with(|| (of.clone(), now));
        if *uid != of {
            (*uid, *seen) = (of, now);
        }
        Ok(View { pod, taints, seen: Some(*seen), spared: false })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

/// Evicts a pod that does not tolerate a taint, or did so for as long as it said.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(pod) = view.pod.as_ref().filter(|pod| !pods::terminating(pod)) else { return Plan::empty() };
    let named = client::key_of(&**pod);
    let told = |message: String| Note::about(&**pod, now).says(COMPONENT, REASON, message);
    if view.spared {
        let tolerated_for_a_time = pod
            .spec
            .iter()
            .flat_map(|spec| spec.tolerations.iter().flatten())
            .any(|one| one.toleration_seconds.is_some());
        let note = told(format!("Cancelling deletion of Pod {named}"));
        return Plan::in_turn(if tolerated_for_a_time { vec![Step::Record(note)] } else { Vec::new() });
    }
    match due(pod, view, now) {
        None => Plan::empty(),
        Some(due) if due > now => Plan::empty().again_at(due),
        Some(_) => {
            let note = told(format!("Marking for deletion Pod {named}"));
            Plan::in_turn(vec![marked(pod, now), Step::delete(&**pod, Some(note))])
        }
    }
}

/// When the pod is to leave; `None`: never.
fn due(pod: &Pod, view: &View, now: Timestamp) -> Option<Timestamp> {
    let spec = pod.spec.as_ref()?;
    let mut least: Option<i64> = None;
    let mut since: Option<Timestamp> = None;
    for taint in &view.taints {
        let mut tolerations = spec.tolerations.iter().flatten();
        let Some(one) = tolerations.find(|one| tolerates(one, taint)) else { return Some(now) };
        let seconds = one.toleration_seconds.map(|seconds| seconds.max(0));
        least = seconds.into_iter().chain(least).min();
        let added = taint.time_added.as_ref().map(|time| time.0).or(view.seen);
        since = added.into_iter().chain(since).max();
    }
    // A pod that came later waits from when it came.
    let bound = condition(pod, "PodScheduled").filter(|known| known.status == "True");
    let bound = bound.and_then(|known| known.last_transition_time.as_ref()).map(|time| time.0);
    let begin = bound.into_iter().chain(since).max().unwrap_or(now);
    let wait = SignedDuration::from_secs(least?);
    Some(begin.saturating_add(wait).unwrap_or(Timestamp::MAX))
}

/// Whether a toleration bears a taint.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let (effect, key, operator) =
        (text(&toleration.effect), text(&toleration.key), text(&toleration.operator));
    let (value, has) = (text(&toleration.value), text(&taint.value));
    let number = |text: &str| text.parse::<i64>().ok();
    let holds = match operator.as_str() {
        "Exists" => true,
        "Gt" => number(&has).zip(number(&value)).is_some_and(|(has, than)| has > than),
        "Lt" => number(&has).zip(number(&value)).is_some_and(|(has, than)| has < than),
        _ => value == has,
    };
    let same_key = key == taint.key || (key.is_empty() && operator == "Exists");
    (effect.is_empty() || effect == taint.effect) && same_key && holds
}

fn marked(pod: &Pod, now: Timestamp) -> Step {
    let why = PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some("DeletionByTaintManager".to_owned()),
        message: Some("Taint manager: deleting due to NoExecute taint".to_owned()),
        last_transition_time: Some(whole_seconds(now)),
        last_probe_time: None,
        observed_generation: pod.metadata.generation,
    };
    let known = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let others = known.filter(|one| one.type_ != why.type_).cloned();
    let conditions: Vec<PodCondition> = others.chain([why.clone()]).collect();
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": conditions}});
    Step::Patch { at: Place::of(pod), part: Part::Status, patch, note: None }
}
