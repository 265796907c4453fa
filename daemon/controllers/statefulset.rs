//! StatefulSet: pods with names, numbers and volumes that stay theirs, made and replaced in order.
//!
//! Invariant: there is at most one pod of a number: a pod is made only when the one before it is gone.
//! Invariant: in order means that a pod is made, replaced or ended only while all that come before it are available.

mod identity;
mod rollout;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::{Cache, Key};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use reconcile::{Plan, Reconciler};

use crate::Error;
use crate::claims::claims;
use crate::history::{self, REVISION_HASH};
use crate::owned::{Owned, PATIENCE, Pending, Unseen};
use crate::pods::{self, controller, name, uid};
use crate::step::{self, Done, Door, Note, Step};

pub(crate) use volumes::claims_begin;

const COMPONENT: &str = "statefulset-controller";
/// Where the hash of a revision is on the revision itself.
const HASH: &str = "controller.kubernetes.io/hash";

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) set: Option<Arc<StatefulSet>>,
    /// The pods that the set controls, and those of its namespace that nobody controls.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// Likewise its revisions.
    pub(crate) revisions: Vec<Arc<ControllerRevision>>,
    /// The claims whose names begin as those of the set do, by name.
    pub(crate) claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    /// What was done and is not seen yet.
    pub(crate) unseen: Unseen,
}

/// The caches it reads.
pub(crate) struct Caches {
    /// The sets.
    pub(crate) sets: Cache<StatefulSet>,
    /// All pods, by owner.
    pub(crate) pods: Owned<Pod>,
    /// All revisions, by owner.
    pub(crate) revisions: Owned<ControllerRevision>,
    /// All claims.
    pub(crate) claims: Cache<PersistentVolumeClaim>,
}

/// Keeps StatefulSets.
pub(crate) struct StatefulSets {
    client: Door,
    sets: Cache<StatefulSet>,
    pods: Owned<Pod>,
    revisions: Owned<ControllerRevision>,
    claims: Cache<PersistentVolumeClaim>,
    pending: Pending,
}

impl StatefulSets {
    /// Over these caches.
    pub(crate) fn new(client: Door, caches: Caches) -> StatefulSets {
        StatefulSets {
            client,
            sets: caches.sets,
            pods: caches.pods,
            revisions: caches.revisions,
            claims: caches.claims,
            pending: Pending::default(),
        }
    }

    fn claims(&self, key: &Key, set: &StatefulSet) -> BTreeMap<String, Arc<PersistentVolumeClaim>> {
        let snapshot = self.claims.snapshot();
        let mut found = BTreeMap::new();
        for begin in claims_begin(set) {
            let from = Key::new(&key.namespace, &begin);
            let all = snapshot.range(from..);
            let ours = all.take_while(|(at, _)| at.namespace == key.namespace && at.name.starts_with(&begin));
            found.extend(ours.map(|(at, claim)| (at.name.clone(), Arc::clone(claim))));
        }
        found
    }
}

impl Reconciler for StatefulSets {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "statefulset";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(set) = self.sets.get(key) else {
            self.pending.forget(key);
            return Ok(View::default());
        };
        let owner = uid(&set.metadata);
        let pods = self.pods.by(&key.namespace, owner);
        let names = pods.iter().map(|pod| name(&pod.metadata).to_owned()).collect();
        Ok(View {
            unseen: self.pending.unseen(key, &pods, &names),
            revisions: self.revisions.by(&key.namespace, owner),
            claims: self.claims(key, &set),
            set: Some(set),
            pods,
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
    set: &'a Arc<StatefulSet>,
    spec: &'a StatefulSetSpec,
    /// The pods of the set.
    pods: Vec<Arc<Pod>>,
    /// What the old pods are made of.
    current: Arc<ControllerRevision>,
    /// What new pods are made of.
    update: Arc<ControllerRevision>,
    claims: &'a BTreeMap<String, Arc<PersistentVolumeClaim>>,
    unseen: &'a Unseen,
    now: Timestamp,
}

/// Adopts, then makes, ends or replaces pods in order, then reports and forgets old revisions.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(set) = &view.set else { return Plan::empty() };
    let Some(spec) = &set.spec else { return Plan::empty() };
    let mut claimed =
        claims(&**set, &spec.selector, &view.pods, |pod: &Pod| identity::ordinal(set, pod).is_some()).steps;
    claimed.extend(claims(&**set, &spec.selector, &view.revisions, |_| true).steps);
    if !claimed.is_empty() {
        // What changed hands comes back as a change, and with it the next round.
        return Plan::in_turn(claimed);
    }
    let ours =
        |pod: &&Arc<Pod>| controller(&pod.metadata).is_some_and(|owner| owner.uid == uid(&set.metadata));
    let known = history::of(&**set, &view.revisions);
    let before = set.status.clone().unwrap_or_default();
    let collisions = before.collision_count.unwrap_or(0);
    let update = history::current(&**set, &spec.template, &known, collisions, HASH);
    let current = known.iter().find(|one| Some(name(&one.metadata)) == before.current_revision.as_deref());
    let round = Round {
        set,
        spec,
        pods: view.pods.iter().filter(ours).cloned().collect(),
        current: Arc::clone(current.unwrap_or(&update.revision)),
        update: Arc::clone(&update.revision),
        claims: &view.claims,
        unseen: &view.unseen,
        now,
    };
    let mut steps = Vec::new();
    let mut again = None;
    if set.metadata.deletion_timestamp.is_none() {
        steps.extend(update.steps);
        let work = rollout::work(&round);
        steps.extend(work.steps);
        again = work.again;
    }
    let (status, next) = report(&round, update.collisions);
    if set.status.as_ref() != Some(&status) {
        steps.push(Step::status(&StatefulSet { status: Some(status), ..StatefulSet::clone(set) }));
    }
    steps.extend(forgotten(&round, &known));
    let mut plan = Plan::in_turn(steps);
    if !view.unseen.coming.is_empty() {
        plan = plan.again_at(now.saturating_add(PATIENCE).unwrap_or(now));
    }
    again.into_iter().chain(next).fold(plan, Plan::again_at)
}

/// The status, and when it would come out differently by time alone.
fn report(round: &Round<'_>, collisions: i32) -> (StatefulSetStatus, Option<Timestamp>) {
    let before = round.set.status.clone().unwrap_or_default();
    let count = |is: &dyn Fn(&Pod) -> bool| {
        i32::try_from(round.pods.iter().filter(|pod| is(pod)).count()).unwrap_or(i32::MAX)
    };
    let some = |n: i32| (n > 0).then_some(n);
    let of = |revision: &ControllerRevision| {
        let called = name(&revision.metadata).to_owned();
        count(&|pod| !round.leaves(pod) && revision_of(pod) == Some(called.as_str()))
    };
    let replicas = count(&|_| true);
    let ready = count(&running_and_ready);
    let updated = of(&round.update);
    let mut status = StatefulSetStatus {
        observed_generation: round.set.metadata.generation,
        replicas,
        ready_replicas: some(ready),
        available_replicas: Some(count(&|pod| round.available(pod))),
        current_replicas: some(of(&round.current)),
        updated_replicas: some(updated),
        current_revision: Some(name(&round.current.metadata).to_owned()),
        update_revision: Some(name(&round.update.metadata).to_owned()),
        collision_count: Some(collisions),
        conditions: before.conditions,
    };
    let all = updated == replicas && ready == replicas && replicas == round.spec.replicas.unwrap_or(1);
    if rolls(round.spec) && all {
        // The rollout is complete: what was new is what is there.
        status.current_revision.clone_from(&status.update_revision);
        status.current_replicas = status.updated_replicas;
    }
    let seconds = round.spec.min_ready_seconds.unwrap_or(0);
    let soon = |pod: &Arc<Pod>| {
        pods::available_at(pod, seconds).filter(|at| running_and_ready(pod) && *at > round.now)
    };
    (status, round.pods.iter().filter_map(soon).min())
}

fn forgotten(round: &Round<'_>, known: &[Arc<ControllerRevision>]) -> Vec<Step> {
    let mut live: BTreeSet<&str> = round.pods.iter().filter_map(|pod| revision_of(pod)).collect();
    live.insert(name(&round.current.metadata));
    live.insert(name(&round.update.metadata));
    history::cleanup(known, &live, round.spec.revision_history_limit.unwrap_or(10))
}

impl Round<'_> {
    /// Whether the pod is on its way out, whatever the cache shows.
    fn leaves(&self, pod: &Pod) -> bool {
        pods::terminating(pod) || self.unseen.leaving.contains(uid(&pod.metadata))
    }

    fn available(&self, pod: &Pod) -> bool {
        running_and_ready(pod) && self.available_at(pod).is_some_and(|at| at <= self.now)
    }

    fn available_at(&self, pod: &Pod) -> Option<Timestamp> {
        pods::available_at(pod, self.spec.min_ready_seconds.unwrap_or(0))
    }

    /// An event about the set.
    fn note(&self) -> Note {
        Note::about(&**self.set, self.now)
    }
}

fn running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::ready(pod)
}

fn revision_of(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(REVISION_HASH).map(String::as_str)
}

/// Whether pods of an older revision are replaced.
fn rolls(spec: &StatefulSetSpec) -> bool {
    let strategy = spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
    strategy != Some("OnDelete")
}
