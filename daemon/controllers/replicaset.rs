//! ReplicaSet: as many pods of one template as asked for.
//!
//! Invariant: a pod gets the lowest free name derived from the set's uid, so a round that does not see yet what the
//! last one did makes no second pod.
//! Invariant: a pod that was asked to leave is not counted again, though the cache may still show it.

use std::collections::BTreeSet;
use std::sync::Arc;

use client::{Cache, Key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use reconcile::{Plan, Reconciler};

use crate::Error;
use crate::claims::claims;
use crate::names::Names;
use crate::owned::{Owned, PATIENCE, Pending, Unseen};
use crate::pods::{self, controller, name, uid};
use crate::step::{self, Done, Note, Step, controlled_by};

const COMPONENT: &str = "replicaset-controller";
/// Pods made at once before the first of them is known to be accepted; each further batch is twice as large.
const FIRST_BATCH: usize = 16;
/// As Kubernetes: pods made or deleted in one round.
const MOST: usize = 500;

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) set: Option<Arc<ReplicaSet>>,
    /// The pods that the set controls, and those of its namespace that nobody controls.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// The names of pods that begin as the set's do, whoever controls them.
    pub(crate) taken: BTreeSet<String>,
    /// What was done and is not seen yet.
    pub(crate) unseen: Unseen,
}

/// Keeps ReplicaSets.
pub(crate) struct ReplicaSets {
    client: Client,
    sets: Cache<ReplicaSet>,
    pods: Owned<Pod>,
    pending: Pending,
}

impl ReplicaSets {
    /// Over these caches.
    pub(crate) fn new(client: Client, sets: Cache<ReplicaSet>, pods: Cache<Pod>) -> ReplicaSets {
        ReplicaSets { client, sets, pods: Owned::follow(pods), pending: Pending::default() }
    }
}

impl Reconciler for ReplicaSets {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "replicaset";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(set) = self.sets.get(key) else {
            self.pending.unseen::<Pod>(key, &[], &BTreeSet::new());
            return Ok(View::default());
        };
        let pods = self.pods.by(&key.namespace, uid(&set.metadata));
        let taken = self.pods.names(&key.namespace, &key.name);
        let unseen = self.pending.unseen(key, &pods, &taken);
        Ok(View { set: Some(set), pods, taken, unseen })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, key: &Key, step: Step) -> Result<(), Error> {
        let done = |done: Done<'_>| match done {
            Done::Created { name } => self.pending.created(key, name),
            Done::Deleted { uid } => self.pending.deleted(key, uid),
        };
        step::act(&self.client, step, &done).await
    }
}

/// Adopts, makes or deletes pods, and says how many there are.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(set) = &view.set else { return Plan::empty() };
    let Some(spec) = &set.spec else { return Plan::empty() };
    let owned =
        |pod: &&Arc<Pod>| controller(&pod.metadata).is_some_and(|owner| owner.uid == uid(&set.metadata));
    let selected = |pod: &&Arc<Pod>| pods::selected(&spec.selector, &pod.metadata);
    let ours: Vec<&Arc<Pod>> = view.pods.iter().filter(owned).filter(selected).collect();
    let stays = |pod: &&Arc<Pod>| pods::active(pod) && !view.unseen.leaving.contains(uid(&pod.metadata));
    let active: Vec<&Arc<Pod>> = ours.iter().copied().filter(stays).collect();

    let mut steps = Vec::new();
    if set.metadata.deletion_timestamp.is_none() {
        let claims = claims(&**set, &spec.selector, &view.pods, pods::active);
        let have = active.len() + view.unseen.coming.len() + claims.adopted;
        steps.extend(claims.steps);
        let want = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        if have < want {
            steps.extend(births(set, view, (want - have).min(MOST), now));
        } else if have > want {
            steps.extend(deaths(set, active.clone(), (have - want).min(MOST), now));
        }
    }
    let mut plan = Plan::in_turn(steps);
    if !view.unseen.coming.is_empty() {
        plan = plan.again_at(now.saturating_add(PATIENCE).unwrap_or(now));
    }
    let (status, next_available) = status(set, &ours, &active, now);
    if set.status.as_ref() != Some(&status) {
        let mut set = ReplicaSet::clone(set);
        set.status = Some(status);
        plan.steps.push(Step::status(&set));
    }
    next_available.into_iter().fold(plan, Plan::again_at)
}

fn births(set: &ReplicaSet, view: &View, count: usize, now: Timestamp) -> Vec<Step> {
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let blank = pods::from_template(&template, &set.metadata, controlled_by(set));
    let taken = view.taken.iter().chain(&view.unseen.coming).map(String::as_str);
    let create = |pod_name: String| {
        let mut pod = blank.clone();
        let note = Note::about(set, now)
            .says(COMPONENT, "SuccessfulCreate", format!("Created pod: {pod_name}"))
            .or_else("FailedCreate", "Error creating");
        pod.metadata.name = Some(pod_name);
        Step::create(&pod, Some(note))
    };
    let names = Names::new(name(&set.metadata), uid(&set.metadata), taken);
    batches(names.take(count).map(create).collect())
}

/// Steps in batches that grow, so that what is refused is refused a few times and not five hundred times.
pub(crate) fn batches(steps: Vec<Step>) -> Vec<Step> {
    let (mut rest, mut size, mut batches) = (steps, FIRST_BATCH, Vec::new());
    while !rest.is_empty() {
        let later = rest.split_off(rest.len().min(size));
        batches.push(Step::Together(std::mem::replace(&mut rest, later)));
        size *= 2;
    }
    batches
}

fn deaths(set: &ReplicaSet, mut active: Vec<&Arc<Pod>>, count: usize, now: Timestamp) -> Option<Step> {
    active.sort_by(|a, b| pods::victims_first(a, b, now));
    let delete = |pod: &Arc<Pod>| {
        let note = Note::about(set, now)
            .says(COMPONENT, "SuccessfulDelete", format!("Deleted pod: {}", name(&pod.metadata)))
            .or_else("FailedDelete", "Error deleting");
        Step::delete(&**pod, Some(note))
    };
    let steps: Vec<Step> = active.into_iter().take(count).map(delete).collect();
    (!steps.is_empty()).then_some(Step::Together(steps))
}

/// The status, and when it would come out differently by time alone.
fn status(
    set: &ReplicaSet,
    ours: &[&Arc<Pod>],
    active: &[&Arc<Pod>],
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Timestamp>) {
    let spec = set.spec.clone().unwrap_or_default();
    let wanted =
        spec.template.and_then(|template| template.metadata).and_then(|meta| meta.labels).unwrap_or_default();
    let labelled = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        wanted.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
    };
    let available_at: Vec<Timestamp> = active
        .iter()
        .filter_map(|pod| pods::available_at(pod, spec.min_ready_seconds.unwrap_or(0)))
        .collect();
    let leaving = ours.len() - ours.iter().filter(|pod| pods::active(pod) || pods::finished(pod)).count();
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: some(active.iter().filter(|pod| labelled(pod)).count()),
        ready_replicas: some(active.iter().filter(|pod| pods::ready(pod)).count()),
        available_replicas: some(available_at.iter().filter(|at| **at <= now).count()),
        terminating_replicas: some(leaving),
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    };
    let next = available_at.into_iter().filter(|at| *at > now).min();
    (status, next.map(|at| at.saturating_add(SignedDuration::from_millis(1)).unwrap_or(at)))
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Kubernetes leaves a count of zero away.
fn some(n: usize) -> Option<i32> {
    (n > 0).then(|| count(n))
}
