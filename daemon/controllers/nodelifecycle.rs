//! Node lifecycle: a node that is not heard of any more is `Unknown`, a node in trouble is tainted, and its pods are not
//! ready.
//!
//! Invariant: the machine of this process needs no heartbeat: while somebody asks, it is there. So nothing is written,
//! and no timer runs, while every node is as it should be.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use client::{Cache, Clock, Key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use reconcile::{Plan, Reconciler};
use serde_json::json;
use tokio::time::Instant;

use crate::Error;
use crate::podgc::node_of;
use crate::pods::{self, name};
use crate::step::{self, Door, Note, Part, Place, Step, whole_seconds};

/// Where nodes renew their leases.
pub(crate) const LEASES: &str = "kube-node-lease";
/// How long a node may be silent, and how long one may take until it says the first thing, as by default.
const GRACE: SignedDuration = SignedDuration::from_secs(50);
const FIRST_GRACE: SignedDuration = SignedDuration::from_secs(60);
const COMPONENT: &str = "node-controller";
/// What a silent node cannot be said to be.
const UNKNOWN: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions that are a taint while they hold.
const TROUBLES: [(&str, &str); 4] = [
    ("MemoryPressure", "memory-pressure"),
    ("DiskPressure", "disk-pressure"),
    ("PIDPressure", "pid-pressure"),
    ("NetworkUnavailable", "network-unavailable"),
];

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) node: Option<Arc<Node>>,
    /// When it was heard of last; `None`: this very machine.
    pub(crate) heard: Option<Timestamp>,
    /// The pods on it that say that they are ready, when it is not.
    pub(crate) ready: Vec<Arc<Pod>>,
}

/// Looks after nodes.
pub(crate) struct NodeLifecycle {
    client: Door,
    seen: Seen,
    clock: Clock,
    heard: Mutex<BTreeMap<Key, (Sign, Instant)>>,
}

/// What it looks at.
#[derive(Clone)]
pub(crate) struct Seen {
    /// The name of this machine.
    pub(crate) ours: String,
    /// Nodes.
    pub(crate) nodes: Cache<Node>,
    /// Leases, of nodes among others.
    pub(crate) leases: Cache<Lease>,
    /// Pods.
    pub(crate) pods: Cache<Pod>,
}

impl Seen {
    /// Returns when each has its first list.
    pub(crate) async fn synced(self) {
        self.nodes.synced().await;
        self.leases.synced().await;
        self.pods.synced().await;
    }
}

/// What changes with every sign of life: the lease's time, and the time of the last status.
type Sign = (Option<Timestamp>, Option<Timestamp>);

impl NodeLifecycle {
    /// Over these caches.
    pub(crate) fn new(client: Door, seen: Seen, clock: Clock) -> NodeLifecycle {
        NodeLifecycle { client, seen, clock, heard: Mutex::default() }
    }

    /// When a node was heard of last. Measured by a clock that nobody sets: the node's own may be wrong, and this
    /// machine's may leap.
    fn heard(&self, key: &Key, node: &Node) -> Timestamp {
        let lease = self.seen.leases.get(&Key::new(LEASES, key.name.as_str()));
        let renewed = lease.and_then(|lease| Some(lease.spec.as_ref()?.renew_time.as_ref()?.0));
        let told = condition(node, "Ready").and_then(|known| Some(known.last_heartbeat_time.as_ref()?.0));
        let (sign, now) = ((renewed, told), Instant::now());
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, at) = heard.entry(key.clone()).or_insert((sign, now));
        if *known != sign {
            (*known, *at) = (sign, now);
        }
        self.clock.now() - at.elapsed()
    }
}

impl Reconciler for NodeLifecycle {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "node-lifecycle";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(node) = self.seen.nodes.get(key) else {
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            return Ok(View::default());
        };
        let ours = key.name == self.seen.ours;
        let heard = (!ours).then(|| self.heard(key, &node));
        let mut ready = Vec::new();
        if !ours && is_out(&node) {
            let on_it = |pod: &&Arc<Pod>| node_of(pod) == Some(&key.name) && pods::ready(pod);
            ready = self.seen.pods.snapshot().values().filter(on_it).cloned().collect();
        }
        Ok(View { node: Some(node), heard, ready })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|known| known.type_ == kind)
}

/// Whether a node said that it is not ready, or says nothing any more.
pub(crate) fn is_out(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|known| known.status != "True")
}

/// Says what became of a silent node, taints one in trouble, and takes back what its pods said of themselves.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(node) = &view.node else { return Plan::empty() };
    let mut steps = Vec::new();
    let mut again = None;
    if let Some(heard) = view.heard {
        let made = node.metadata.creation_timestamp.as_ref().map_or(heard, |time| time.0);
        let due = match condition(node, "Ready") {
            Some(_) => heard + GRACE,
            None => made + FIRST_GRACE,
        };
        if due > now {
            again = Some(due);
        } else if let Some(silent) = silent(node, now) {
            // What follows from it is seen by the next round.
            return Plan::in_turn(vec![silent]);
        }
    }
    steps.extend(tainted(node, view.heard.is_none(), now));
    if !view.ready.is_empty() {
        steps.push(Step::Together(view.ready.iter().map(|pod| not_ready(pod, now)).collect()));
    }
    let plan = Plan::in_turn(steps);
    match again {
        Some(at) => plan.again_at(at),
        None => plan,
    }
}

/// Writes that nobody knows how the node is; `None` when that is written.
fn silent(node: &Node, now: Timestamp) -> Option<Step> {
    let mut conditions =
        node.status.iter().flat_map(|status| status.conditions.clone()).next().unwrap_or_default();
    let before = conditions.clone();
    let was_ready = condition(node, "Ready").is_some_and(|known| known.status == "True");
    for kind in UNKNOWN {
        match conditions.iter_mut().find(|known| known.type_ == kind) {
            Some(known) if known.status == "Unknown" => {}
            Some(known) => {
                known.status = "Unknown".to_owned();
                known.reason = Some("NodeStatusUnknown".to_owned());
                known.message = Some("Kubelet stopped posting node status.".to_owned());
                known.last_transition_time = Some(whole_seconds(now));
            }
            None => conditions.push(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(whole_seconds(now)),
            }),
        }
    }
    if conditions == before {
        return None;
    }
    let called = name(&node.metadata);
    let note = was_ready.then(|| {
        let message = format!("Node {called} status is now: NodeNotReady");
        Note::about(node, now).says(COMPONENT, "NodeNotReady", message)
    });
    let meta = &node.metadata;
    let patch = json!({
        "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        "status": {"conditions": conditions},
    });
    Some(Step::Patch { at: Place::of(node), part: Part::Status, patch, note })
}

/// Gives a node the taints of its troubles and takes the others of ours away; `None` when it has just those.
fn tainted(node: &Node, ours: bool, now: Timestamp) -> Option<Step> {
    let known = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let wanted = wanted(node);
    // The kubelet of this machine taints it for its own pressures.
    let is_kept = |key: &str| !(ours && key.ends_with("-pressure"));
    let is_ours = |key: &str, effect: &str| {
        let Some(trouble) = key.strip_prefix("node.kubernetes.io/") else { return false };
        let of_readiness = matches!(trouble, "not-ready" | "unreachable");
        let of_condition = trouble == "unschedulable" || TROUBLES.iter().any(|(_, taint)| *taint == trouble);
        match effect {
            "NoSchedule" => (of_readiness || of_condition) && is_kept(key),
            "NoExecute" => of_readiness,
            _ => false,
        }
    };
    let is_wanted =
        |taint: &Taint| wanted.iter().any(|(key, effect)| *key == taint.key && *effect == taint.effect);
    let mut taints: Vec<Taint> = known
        .clone()
        .filter(|taint| !is_ours(&taint.key, &taint.effect) || is_wanted(taint))
        .cloned()
        .collect();
    let before = known.clone().count();
    let stayed = taints.len();
    for (key, effect) in wanted.iter().filter(|(key, _)| is_kept(key)) {
        if !taints.iter().any(|taint| taint.key == *key && taint.effect == *effect) {
            taints.push(Taint {
                key: key.clone(),
                effect: (*effect).to_owned(),
                time_added: Some(Time(whole_seconds(now).0)),
                value: None,
            });
        }
    }
    if stayed == before && taints.len() == stayed {
        return None;
    }
    let taints = (!taints.is_empty()).then_some(taints);
    Some(Step::patch(node, json!({"spec": {"taints": taints}})))
}

fn wanted(node: &Node) -> Vec<(String, &'static str)> {
    let taint = |trouble: &str, effect: &'static str| (format!("node.kubernetes.io/{trouble}"), effect);
    let mut all = Vec::new();
    let readiness = match condition(node, "Ready").map(|known| known.status.as_str()) {
        Some("False") => Some("not-ready"),
        Some("Unknown") => Some("unreachable"),
        _ => None,
    };
    if let Some(trouble) = readiness {
        all.extend([taint(trouble, "NoSchedule"), taint(trouble, "NoExecute")]);
    }
    for (kind, trouble) in TROUBLES {
        if condition(node, kind).is_some_and(|known| known.status == "True") {
            all.push(taint(trouble, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        all.push(taint("unschedulable", "NoSchedule"));
    }
    all
}

/// Nobody is there who could say that the pod is ready.
fn not_ready(pod: &Pod, now: Timestamp) -> Step {
    let mut conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    for known in conditions.iter_mut().filter(|known| known.type_ == "Ready") {
        known.status = "False".to_owned();
        known.last_transition_time = Some(whole_seconds(now));
    }
    let patch = json!({
        "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
        "status": {"conditions": conditions},
    });
    let note = Note::about(pod, now).warns(COMPONENT, "NodeNotReady", "Node is not ready".to_owned());
    Step::Patch { at: Place::of(pod), part: Part::Status, patch, note: Some(note) }
}
