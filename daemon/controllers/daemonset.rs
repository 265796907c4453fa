//! DaemonSet: one pod on every node that its template fits.
//!
//! Invariant: a pod is made for a node by name, and bound to it by the scheduler like any other.
//! Invariant: a node gets another pod only when the one it has is gone, but for the pods that `maxSurge` allows.

mod fit;
mod rollout;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::{Cache, Key};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::{Plan, Reconciler};

use crate::Error;
use crate::claims::claims;
use crate::history::{self, REVISION_HASH};
use crate::owned::{Owned, PATIENCE, Pending, Unseen};
use crate::pods::{self, controller, name, uid};
use crate::step::{self, Done, Door, Note, Step};

pub(crate) use fit::what_fits;

const COMPONENT: &str = "daemonset-controller";

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) set: Option<Arc<DaemonSet>>,
    /// The pods that the set controls, and those of its namespace that nobody controls.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// Likewise its revisions.
    pub(crate) revisions: Vec<Arc<ControllerRevision>>,
    /// All nodes.
    pub(crate) nodes: Vec<Arc<Node>>,
    /// The names of pods that begin as the set's do, whoever controls them.
    pub(crate) taken: BTreeSet<String>,
    /// What was done and is not seen yet.
    pub(crate) unseen: Unseen,
}

/// The caches it reads.
pub(crate) struct Caches {
    /// The sets.
    pub(crate) sets: Cache<DaemonSet>,
    /// All pods, by owner.
    pub(crate) pods: Owned<Pod>,
    /// All revisions, by owner.
    pub(crate) revisions: Owned<ControllerRevision>,
    /// All nodes.
    pub(crate) nodes: Cache<Node>,
}

/// Keeps DaemonSets.
pub(crate) struct DaemonSets {
    client: Door,
    sets: Cache<DaemonSet>,
    pods: Owned<Pod>,
    revisions: Owned<ControllerRevision>,
    nodes: Cache<Node>,
    pending: Pending,
}

impl DaemonSets {
    /// Over these caches.
    pub(crate) fn new(client: Door, caches: Caches) -> DaemonSets {
        DaemonSets {
            client,
            sets: caches.sets,
            pods: caches.pods,
            revisions: caches.revisions,
            nodes: caches.nodes,
            pending: Pending::default(),
        }
    }
}

impl Reconciler for DaemonSets {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "daemonset";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(set) = self.sets.get(key) else {
            self.pending.forget(key);
            return Ok(View::default());
        };
        let owner = uid(&set.metadata);
        let pods = self.pods.by(&key.namespace, owner);
        let taken = self.pods.names(&key.namespace, &key.name);
        Ok(View {
            unseen: self.pending.unseen(key, &pods, &taken),
            revisions: self.revisions.by(&key.namespace, owner),
            nodes: self.nodes.snapshot().values().cloned().collect(),
            set: Some(set),
            pods,
            taken,
        })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, key: &Key, step: Step) -> Result<(), Error> {
        let done = |done: Done<'_>| self.pending.done(key, done);
        step::act(&self.client, step, &done).await
    }
}

/// What a round knows before it decides.
struct Round<'a> {
    set: &'a Arc<DaemonSet>,
    spec: &'a DaemonSetSpec,
    /// The nodes and the pods of the set on each; also nodes that are gone but have pods.
    places: BTreeMap<String, Place>,
    /// The hash that pods of the template of now carry.
    hash: &'a str,
    view: &'a View,
    now: Timestamp,
}

/// A node and the pods of the set there, the oldest first.
#[derive(Default)]
struct Place {
    node: Option<Arc<Node>>,
    pods: Vec<Arc<Pod>>,
    fits: fit::Fit,
}

/// Adopts, then makes and ends pods so that each node has its one, then rolls, reports and forgets old revisions.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(set) = &view.set else { return Plan::empty() };
    let Some(spec) = &set.spec else { return Plan::empty() };
    if pods::selects_all(&spec.selector) {
        let message = "This daemon set is selecting all pods. A non-empty selector is required.".to_owned();
        return Plan::in_turn(vec![Step::Record(Note::about(&**set, now).warns(
            COMPONENT,
            "SelectingAll",
            message,
        ))]);
    }
    let mut claimed = claims(&**set, &spec.selector, &view.pods, |_| true).steps;
    claimed.extend(claims(&**set, &spec.selector, &view.revisions, |_| true).steps);
    if !claimed.is_empty() {
        // What changed hands comes back as a change, and with it the next round.
        return Plan::in_turn(claimed);
    }
    let known = history::of(&**set, &view.revisions);
    let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let current = history::current(&**set, &spec.template, &known, collisions, REVISION_HASH);
    let hash = current.revision.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH));
    let hash = hash.cloned().unwrap_or_default();
    let round = Round { set, spec, places: places(view, set, spec), hash: &hash, view, now };
    let mut steps = Vec::new();
    let mut again = None;
    if set.metadata.deletion_timestamp.is_none() {
        steps.extend(current.steps);
        let work = rollout::work(&round);
        steps.extend(work.steps);
        again = work.again;
    }
    let (status, next) = report(&round, current.collisions);
    if set.status.as_ref() != Some(&status) {
        steps.push(Step::status(&DaemonSet { status: Some(status), ..DaemonSet::clone(set) }));
    }
    steps.extend(forgotten(&round, &known, name(&current.revision.metadata)));
    let mut plan = Plan::in_turn(steps);
    if !view.unseen.coming.is_empty() {
        plan = plan.again_at(now.saturating_add(PATIENCE).unwrap_or(now));
    }
    again.into_iter().chain(next).fold(plan, Plan::again_at)
}

fn places(view: &View, set: &DaemonSet, spec: &DaemonSetSpec) -> BTreeMap<String, Place> {
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for node in &view.nodes {
        let place = Place { node: Some(Arc::clone(node)), pods: Vec::new(), fits: fit::fit(spec, node) };
        places.insert(name(&node.metadata).to_owned(), place);
    }
    let ours =
        |pod: &&Arc<Pod>| controller(&pod.metadata).is_some_and(|owner| owner.uid == uid(&set.metadata));
    for pod in view.pods.iter().filter(ours) {
        if let Some(node) = fit::node_of(pod) {
            places.entry(node).or_default().pods.push(Arc::clone(pod));
        }
    }
    for place in places.values_mut() {
        place.pods.sort_by(|a, b| {
            let created = |pod: &Pod| pod.metadata.creation_timestamp.clone();
            (created(a), name(&a.metadata)).cmp(&(created(b), name(&b.metadata)))
        });
    }
    places
}

/// The status, and when it would come out differently by time alone.
fn report(round: &Round<'_>, collisions: i32) -> (DaemonSetStatus, Option<Timestamp>) {
    let before = round.set.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        observed_generation: round.set.metadata.generation,
        collision_count: (collisions > 0 || before.collision_count.is_some()).then_some(collisions),
        conditions: before.conditions,
        ..DaemonSetStatus::default()
    };
    let (mut available, mut updated, mut next) = (0, 0, None);
    for place in round.places.values().filter(|place| place.node.is_some()) {
        let pod = place.pods.first();
        if place.fits != fit::Fit::Runs {
            status.number_misscheduled += i32::from(pod.is_some());
            continue;
        }
        status.desired_number_scheduled += 1;
        let Some(pod) = pod else { continue };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(pods::ready(pod));
        match round.available_at(pod) {
            Some(at) if at <= round.now => available += 1,
            later => next = next.into_iter().chain(later).min(),
        }
        updated += i32::from(round.is_new(pod));
    }
    let some = |n: i32| (n > 0).then_some(n);
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status.updated_number_scheduled = some(updated);
    (status, next)
}

fn forgotten(round: &Round<'_>, known: &[Arc<ControllerRevision>], current: &str) -> Vec<Step> {
    let hashes: BTreeSet<&str> =
        round.places.values().flat_map(|place| &place.pods).filter_map(|pod| hash_of(pod)).collect();
    let used = known.iter().filter(|one| {
        let hash = one.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH));
        hash.is_some_and(|hash| hashes.contains(hash.as_str()))
    });
    let mut live: BTreeSet<&str> = used.map(|one| name(&one.metadata)).collect();
    live.insert(current);
    history::cleanup(known, &live, round.spec.revision_history_limit.unwrap_or(10))
}

impl Round<'_> {
    /// Whether the pod is on its way out, whatever the cache shows.
    fn leaves(&self, pod: &Pod) -> bool {
        pods::terminating(pod) || self.view.unseen.leaving.contains(uid(&pod.metadata))
    }

    fn available_at(&self, pod: &Pod) -> Option<Timestamp> {
        pods::available_at(pod, self.spec.min_ready_seconds.unwrap_or(0))
    }

    fn available(&self, pod: &Pod) -> bool {
        self.available_at(pod).is_some_and(|at| at <= self.now)
    }

    /// Whether the pod is of the template of now.
    fn is_new(&self, pod: &Pod) -> bool {
        hash_of(pod) == Some(self.hash)
    }

    /// An event about the set.
    fn note(&self) -> Note {
        Note::about(&**self.set, self.now)
    }
}

fn hash_of(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(REVISION_HASH).map(String::as_str)
}
