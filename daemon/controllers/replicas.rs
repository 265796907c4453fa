//! As many pods of one template as asked for: what ReplicaSets and ReplicationControllers have in common.
//!
//! Invariant: a pod gets the lowest free name derived from the set's uid, so a round that does not see yet what the
//! last one did makes no second pod.
//! Invariant: a pod that was asked to leave is not counted again, though the cache may still show it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use client::{Cache, Key, Object};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Resource;
use reconcile::{Plan, Reconciler};
use serde::Serialize;

use crate::Error;
use crate::claims::claims;
use crate::names::Names;
use crate::owned::{Owned, PATIENCE, Pending, Unseen};
use crate::pods::{self, controller, name, uid};
use crate::step::{self, Done, Door, Note, Step, controlled_by, said, whole_seconds};

/// Pods made at once before the first of them is known to be accepted; each further batch is twice as large.
pub(crate) const FIRST_BATCH: usize = 16;
/// As Kubernetes: pods made or deleted in one round.
const MOST: usize = 500;
const FAILURE: &str = "ReplicaFailure";

/// A kind that asks for a number of pods.
pub(crate) trait Replicated: Object + Resource<DynamicType = ()> + Serialize {
    /// The loop's name.
    const NAME: &'static str;
    /// Who tells the events.
    const COMPONENT: &'static str;
    /// Whether it also tells how many pods are on their way out.
    const TELLS_LEAVING: bool;
    /// What is asked for; `None` for an object without a spec.
    fn asked(&self) -> Option<Asked<'_>>;
    /// What it says of itself.
    fn reported(&self) -> Option<ReplicaSetStatus>;
    /// The same object saying this of itself.
    fn reporting(&self, status: ReplicaSetStatus) -> Self;
}

/// What is asked for.
pub(crate) struct Asked<'a> {
    /// How many pods.
    pub(crate) replicas: i32,
    /// How long a pod is ready before it is available.
    pub(crate) min_ready_seconds: i32,
    /// Which pods.
    pub(crate) selector: Cow<'a, LabelSelector>,
    /// What they are made of.
    pub(crate) template: Option<&'a PodTemplateSpec>,
}

/// What is there.
#[derive(Debug, Clone)]
pub(crate) struct View<K> {
    /// `None`: gone.
    pub(crate) set: Option<Arc<K>>,
    /// The pods that the set controls, and those of its namespace that nobody controls.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// The names of pods that begin as the set's do, whoever controls them.
    pub(crate) taken: BTreeSet<String>,
    /// What was done and is not seen yet.
    pub(crate) unseen: Unseen,
}

/// Keeps one kind.
pub(crate) struct Replicas<K> {
    client: Door,
    sets: Cache<K>,
    pods: Owned<Pod>,
    pending: Pending,
}

impl<K: Replicated> Replicas<K> {
    /// Over these caches.
    pub(crate) fn new(client: Door, sets: Cache<K>, pods: Owned<Pod>) -> Replicas<K> {
        Replicas { client, sets, pods, pending: Pending::default() }
    }
}

impl<K: Replicated> Reconciler for Replicas<K> {
    type Key = Key;
    type View = View<K>;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = K::NAME;

    async fn observe(&self, key: &Key) -> Result<View<K>, Error> {
        let Some(set) = self.sets.get(key) else {
            self.pending.forget(key);
            return Ok(View {
                set: None,
                pods: Vec::new(),
                taken: BTreeSet::new(),
                unseen: Unseen::default(),
            });
        };
        let pods = self.pods.by(&key.namespace, uid(set.meta()));
        let taken = self.pods.names(&key.namespace, &key.name);
        let unseen = self.pending.unseen(key, &pods, &taken);
        Ok(View { set: Some(set), pods, taken, unseen })
    }

    fn plan(view: &View<K>, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, key: &Key, step: Step) -> Result<(), Error> {
        let done = |done: Done<'_>| self.pending.done(key, done);
        let answer = step::act(&self.client, step, &done).await;
        if let Err(Error::Create { source, .. }) = &answer {
            self.pending.refused(key, said(source));
        }
        answer
    }
}

/// Adopts, makes or deletes pods, and says how many there are.
pub(crate) fn plan<K: Replicated>(view: &View<K>, now: Timestamp) -> Plan<Step> {
    let Some(set) = &view.set else { return Plan::empty() };
    let Some(asked) = set.asked() else { return Plan::empty() };
    let owned = |pod: &&Arc<Pod>| controller(&pod.metadata).is_some_and(|owner| owner.uid == uid(set.meta()));
    let selected = |pod: &&Arc<Pod>| pods::selected(&asked.selector, &pod.metadata);
    let ours: Vec<&Arc<Pod>> = view.pods.iter().filter(owned).filter(selected).collect();
    let stays = |pod: &&Arc<Pod>| pods::active(pod) && !view.unseen.leaving.contains(uid(&pod.metadata));
    let active: Vec<&Arc<Pod>> = ours.iter().copied().filter(stays).collect();

    let mut steps = Vec::new();
    let mut missing = false;
    if set.meta().deletion_timestamp.is_none() {
        let claims = claims(&**set, &asked.selector, &view.pods, pods::active);
        let have = active.len() + view.unseen.coming.len() + claims.adopted;
        steps.extend(claims.steps);
        let want = usize::try_from(asked.replicas).unwrap_or(0);
        missing = have < want;
        if missing {
            steps.extend(births(&**set, view, (want - have).min(MOST), now));
        } else if have > want {
            steps.extend(deaths(&**set, active.clone(), (have - want).min(MOST), now));
        }
    }
    let refused = view.unseen.refused.as_deref().filter(|_| missing);
    let (mut status, next_available) =
        status(&**set, &asked, (&ours, &active, view.unseen.coming.len()), now);
    judge(&mut status, refused, now);
    if set.reported().as_ref() != Some(&status) {
        // What was refused is likely to be refused again; that it was is told before.
        let at = if refused.is_some() { 0 } else { steps.len() };
        steps.insert(at, Step::status(&set.reporting(status)));
    }
    let mut plan = Plan::in_turn(steps);
    if !view.unseen.coming.is_empty() {
        plan = plan.again_at(now.saturating_add(PATIENCE).unwrap_or(now));
    }
    next_available.into_iter().fold(plan, Plan::again_at)
}

fn births<K: Replicated>(set: &K, view: &View<K>, count: usize, now: Timestamp) -> Vec<Step> {
    let template = set.asked().and_then(|asked| asked.template.cloned()).unwrap_or_default();
    let blank = pods::from_template(&template, set.meta(), controlled_by(set));
    let taken = view.taken.iter().chain(&view.unseen.coming).map(String::as_str);
    let create = |pod_name: String| {
        let mut pod = blank.clone();
        let note = Note::about(set, now)
            .says(K::COMPONENT, "SuccessfulCreate", format!("Created pod: {pod_name}"))
            .or_else("FailedCreate", "Error creating");
        pod.metadata.name = Some(pod_name);
        Step::create(&pod, Some(note))
    };
    let names = Names::new(name(set.meta()), uid(set.meta()), taken);
    let first = if view.unseen.refused.is_some() { 1 } else { FIRST_BATCH };
    batches(names.take(count).map(create).collect(), first)
}

/// Steps in batches that grow, so that what is refused is refused a few times and not five hundred times.
pub(crate) fn batches(steps: Vec<Step>, first: usize) -> Vec<Step> {
    let (mut rest, mut size, mut batches) = (steps, first, Vec::new());
    while !rest.is_empty() {
        let later = rest.split_off(rest.len().min(size));
        batches.push(Step::Together(std::mem::replace(&mut rest, later)));
        size *= 2;
    }
    batches
}

fn deaths<K: Replicated>(set: &K, mut active: Vec<&Arc<Pod>>, count: usize, now: Timestamp) -> Option<Step> {
    active.sort_by(|a, b| pods::victims_first(a, b, now));
    let delete = |pod: &Arc<Pod>| {
        let note = Note::about(set, now)
            .says(K::COMPONENT, "SuccessfulDelete", format!("Deleted pod: {}", name(&pod.metadata)))
            .or_else("FailedDelete", "Error deleting");
        Step::delete(&**pod, Some(note))
    };
    let steps: Vec<Step> = active.into_iter().take(count).map(delete).collect();
    (!steps.is_empty()).then_some(Step::Together(steps))
}

/// The status, and when it would come out differently by time alone.
fn status<K: Replicated>(
    set: &K,
    asked: &Asked<'_>,
    (ours, active, coming): (&[&Arc<Pod>], &[&Arc<Pod>], usize),
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Timestamp>) {
    let wanted = asked.template.and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let labelled = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        wanted
            .into_iter()
            .flatten()
            .all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
    };
    let available_at: Vec<Timestamp> =
        active.iter().filter_map(|pod| pods::available_at(pod, asked.min_ready_seconds)).collect();
    let leaving = ours.len() - ours.iter().filter(|pod| pods::active(pod) || pods::finished(pod)).count();
    let status = ReplicaSetStatus {
        // Those that were made and are not seen yet are there: a Deployment counts on it.
        replicas: count(active.len() + coming),
        fully_labeled_replicas: some(active.iter().filter(|pod| labelled(pod)).count()),
        ready_replicas: some(active.iter().filter(|pod| pods::ready(pod)).count()),
        available_replicas: some(available_at.iter().filter(|at| **at <= now).count()),
        terminating_replicas: some(leaving).filter(|_| K::TELLS_LEAVING),
        observed_generation: set.meta().generation,
        conditions: set.reported().and_then(|status| status.conditions),
    };
    let next = available_at.into_iter().filter(|at| *at > now).min();
    (status, next.map(|at| at.saturating_add(SignedDuration::from_millis(1)).unwrap_or(at)))
}

/// Says whether pods are missing because they were refused.
fn judge(status: &mut ReplicaSetStatus, refused: Option<&str>, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().any(|known| known.type_ == FAILURE);
    match refused {
        Some(message) if !known => conditions.push(ReplicaSetCondition {
            type_: FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some("FailedCreate".to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(whole_seconds(now)),
        }),
        Some(_) => {}
        None => conditions.retain(|known| known.type_ != FAILURE),
    }
    if conditions.is_empty() {
        status.conditions = None;
    }
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Kubernetes leaves a count of zero away.
fn some(n: usize) -> Option<i32> {
    (n > 0).then(|| count(n))
}
