//! What the pods of a Job amount to, and the counters of its status.
//!
//! Invariant: counters only grow, and by exactly the pods whose uid leaves `uncountedTerminatedPods`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::policy::{self, Failure};
use super::{FAILURES, IGNORED_FAILURES, TRACKING, View, holds, indexes};
use crate::pods::{self, controller, name, phase, terminating, uid};

/// As documented: pods that fail are made again after 10 s, doubling up to six minutes.
const FIRST_WAIT: i64 = 10;
const LONGEST_WAIT: i64 = 360;
/// As Kubernetes: no more uids than this wait in the status, so that it stays small.
const MOST_UNCOUNTED: usize = 500;

/// The pods of a Job in numbers.
pub(crate) struct Count {
    /// The status with new counters; conditions and times are the known ones.
    pub(crate) status: JobStatus,
    /// The pods that belong to the Job.
    pub(crate) ours: Vec<Arc<Pod>>,
    /// Pods that run or will.
    pub(crate) active: Vec<Arc<Pod>>,
    /// Pods made and not seen yet.
    pub(crate) coming: i32,
    /// Pods on their way out that have not ended.
    pub(crate) terminating: i32,
    /// Pods that succeeded, or completed indexes.
    pub(crate) succeeded: i32,
    /// Pods that failed, but for those that a rule ignores.
    pub(crate) failed: i32,
    /// Indexes that need no pod any more.
    pub(crate) completed: BTreeSet<i32>,
    /// Indexes that get no pod any more, where each index has a limit of its own.
    pub(crate) lost: Option<BTreeSet<i32>>,
    /// The last failed pod of each index that waits for another one: it is kept, since it knows how often that failed.
    pub(crate) replaced: BTreeMap<i32, Arc<Pod>>,
    /// Why a failed pod fails the whole Job, where one does.
    pub(crate) fatal: Option<String>,
    /// Whether containers are restarted in place, and how often they were.
    pub(crate) restarts_in_place: bool,
    /// Of all active pods together.
    pub(crate) restarts: i32,
    /// No new pod before this.
    pub(crate) wait_until: Option<Timestamp>,
    held: usize,
}

impl Count {
    /// Whether every pod has ended and is counted.
    pub(crate) fn settled(&self) -> bool {
        let uncounted = self.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let waiting = length(&uncounted.failed) + length(&uncounted.succeeded);
        self.active.is_empty() && self.coming == 0 && self.terminating == 0 && waiting == 0 && self.held == 0
    }
}

/// Whether the pod is kept until it is counted.
pub(crate) fn held(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING)
}

/// Counts.
pub(crate) fn count(view: &View, job: &Job) -> Count {
    let spec = job.spec.clone().unwrap_or_default();
    let owned =
        |pod: &&Arc<Pod>| controller(&pod.metadata).is_some_and(|owner| owner.uid == uid(&job.metadata));
    let ours: Vec<Arc<Pod>> = view.pods.iter().filter(owned).cloned().collect();
    let stays = |pod: &&Arc<Pod>| pods::active(pod) && !view.unseen.leaving.contains(uid(&pod.metadata));
    let active: Vec<Arc<Pod>> = ours.iter().filter(stays).cloned().collect();
    let leaving = ours.iter().filter(|pod| !pods::finished(pod)).count() - active.len();

    let mut status = job.status.clone().unwrap_or_default();
    let holding: BTreeSet<&str> = ours.iter().filter(|pod| held(pod)).map(|pod| uid(&pod.metadata)).collect();
    let mut uncounted = flushed(&mut status, &holding);
    let known: BTreeSet<String> =
        uncounted.succeeded.iter().chain(&uncounted.failed).flatten().cloned().collect();
    let new: Vec<&Arc<Pod>> =
        ours.iter().filter(|pod| held(pod) && !known.contains(uid(&pod.metadata))).collect();
    let indexes = Indexes::of(&spec, &status, &new, busy(&active, view, job));

    let ending = holds(&status, "FailureTarget").is_some();
    let delayed: BTreeSet<&str> =
        indexes.replaced.values().map(|pod| uid(&pod.metadata)).filter(|_| !ending).collect();
    let mut waiting_failures = 0;
    let mut fatal = None;
    for pod in new.iter().filter(|pod| counts(&spec, pod)) {
        let uid = uid(&pod.metadata).to_owned();
        let room = length(&uncounted.succeeded) + length(&uncounted.failed) < MOST_UNCOUNTED;
        if phase(pod) == "Succeeded" {
            if room && !indexed(&spec) {
                uncounted.succeeded.get_or_insert_default().push(uid);
            }
        } else if policy::failed(&spec, pod) || (ending && terminating(pod)) {
            match policy::failure(&spec, pod) {
                Failure::Ignored => continue,
                Failure::FailsJob(why) => fatal = fatal.or(Some(why)),
                Failure::Counts | Failure::FailsIndex => {}
            }
            if room && !delayed.contains(uid.as_str()) {
                uncounted.failed.get_or_insert_default().push(uid);
            } else {
                waiting_failures += 1;
            }
        }
    }
    if indexed(&spec) {
        status.completed_indexes =
            (!indexes.completed.is_empty()).then(|| indexes::write(&indexes.completed));
        status.succeeded = (!indexes.completed.is_empty()).then(|| indexes::count(&indexes.completed));
        status.failed_indexes = indexes.lost.as_ref().map(indexes::write);
    }
    let succeeded = status.succeeded.unwrap_or(0) + number(length(&uncounted.succeeded));
    let failed = status.failed.unwrap_or(0) + number(length(&uncounted.failed)) + waiting_failures;
    status.uncounted_terminated_pods = Some(uncounted);
    status.ready = Some(number(active.iter().filter(|pod| pods::ready(pod)).count()));
    status.terminating = Some(number(leaving));
    let restart_policy = spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    Count {
        status,
        coming: number(view.unseen.coming.len()),
        terminating: number(leaving),
        succeeded,
        failed,
        completed: indexes.completed,
        lost: indexes.lost,
        replaced: indexes.replaced,
        fatal,
        restarts_in_place: restart_policy == Some("OnFailure"),
        restarts: active.iter().map(|pod| all_restarts(pod)).sum(),
        wait_until: wait_until(&ours).filter(|_| spec.backoff_limit_per_index.is_none()),
        held: holding.len(),
        active,
        ours,
    }
}

/// Counts those whose finalizer is gone; the answer is who still waits for that.
fn flushed(status: &mut JobStatus, holding: &BTreeSet<&str>) -> UncountedTerminatedPods {
    let mut uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let flush = |uids: &mut Option<Vec<String>>, counter: &mut Option<i32>| {
        let all = uids.take().unwrap_or_default();
        let (kept, gone): (Vec<String>, Vec<String>) =
            all.into_iter().partition(|uid| holding.contains(uid.as_str()));
        if !gone.is_empty() {
            *counter = Some(counter.unwrap_or(0) + number(gone.len()));
        }
        *uids = (!kept.is_empty()).then_some(kept);
    };
    flush(&mut uncounted.succeeded, &mut status.succeeded);
    flush(&mut uncounted.failed, &mut status.failed);
    uncounted
}

/// Whether the Job gives each pod an index.
pub(crate) fn indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Whether the end of the pod matters: in an Indexed Job only with an index that is asked for.
pub(crate) fn counts(spec: &JobSpec, pod: &Pod) -> bool {
    !indexed(spec) || indexes::of(pod).is_some_and(|index| index < spec.completions.unwrap_or(0))
}

/// How the indexes of an Indexed Job are.
#[derive(Default)]
struct Indexes {
    completed: BTreeSet<i32>,
    lost: Option<BTreeSet<i32>>,
    replaced: BTreeMap<i32, Arc<Pod>>,
}

impl Indexes {
    fn of(spec: &JobSpec, status: &JobStatus, new: &[&Arc<Pod>], busy: BTreeSet<i32>) -> Indexes {
        if !indexed(spec) {
            return Indexes::default();
        }
        let completions = spec.completions.unwrap_or(0);
        let within = |index: &i32| *index < completions;
        let of = |pods: Vec<&&Arc<Pod>>| pods.iter().filter_map(|pod| indexes::of(pod)).collect::<Vec<i32>>();
        let mut completed = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default());
        completed.extend(of(new.iter().filter(|pod| phase(pod) == "Succeeded").collect()));
        completed.retain(within);
        let Some(limit) = spec.backoff_limit_per_index else {
            return Indexes { completed, ..Indexes::default() };
        };
        let failed: Vec<&&Arc<Pod>> = new.iter().filter(|pod| policy::failed(spec, pod)).collect();
        let for_good = |pod: &&&Arc<Pod>| match policy::failure(spec, pod) {
            Failure::FailsIndex => true,
            Failure::Ignored => false,
            Failure::Counts | Failure::FailsJob(_) => noted(pod, FAILURES) >= limit,
        };
        let mut lost = indexes::parse(status.failed_indexes.as_deref().unwrap_or_default());
        lost.extend(of(failed.iter().copied().filter(for_good).collect()));
        lost.retain(within);
        let mut replaced: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        for pod in failed {
            let Some(index) = indexes::of(pod).filter(within) else { continue };
            let later = |known: &Arc<Pod>| failures(known) <= failures(pod);
            let open = !completed.contains(&index) && !lost.contains(&index) && !busy.contains(&index);
            if open && replaced.get(&index).is_none_or(later) {
                replaced.insert(index, Arc::clone(pod));
            }
        }
        Indexes { completed, lost: Some(lost), replaced }
    }
}

/// The indexes that a pod works on, or will as soon as it is seen.
pub(crate) fn busy(active: &[Arc<Pod>], view: &View, job: &Job) -> BTreeSet<i32> {
    let begin = format!("{}-", name(&job.metadata));
    let coming = view.unseen.coming.iter().filter_map(|pod_name| {
        let (index, _) = pod_name.strip_prefix(&begin)?.split_once('-')?;
        index.parse::<i32>().ok()
    });
    active.iter().filter_map(|pod| indexes::of(pod)).chain(coming).collect()
}

/// A number in an annotation of a pod.
pub(crate) fn noted(pod: &Pod, key: &str) -> i32 {
    pod.metadata.annotations.as_ref().and_then(|all| all.get(key)?.parse().ok()).unwrap_or(0)
}

/// How often the index of a pod had failed before it.
fn failures(pod: &Pod) -> i32 {
    noted(pod, FAILURES) + noted(pod, IGNORED_FAILURES)
}

/// When the pod that replaces this one may be made.
pub(crate) fn replaceable_at(pod: &Pod) -> Option<Timestamp> {
    ended(pod)?.saturating_add(wait(failures(pod))).ok()
}

fn wait(failures_before: i32) -> SignedDuration {
    let doubled = FIRST_WAIT.saturating_mul(1i64 << failures_before.clamp(0, 10));
    SignedDuration::from_secs(doubled.min(LONGEST_WAIT))
}

/// When the next pod may be made: later for each failure since the last success.
fn wait_until(pods: &[Arc<Pod>]) -> Option<Timestamp> {
    let ends = |wanted: &'static str| {
        pods.iter().filter(move |pod| phase(pod) == wanted).filter_map(|pod| ended(pod))
    };
    let success = ends("Succeeded").max().unwrap_or(Timestamp::MIN);
    let failures = ends("Failed").filter(|at| *at > success).count();
    let last = ends("Failed").max().filter(|_| failures > 0)?;
    last.saturating_add(wait(number(failures - 1))).ok()
}

/// When a pod ended: when the last of its containers did.
fn ended(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref()?.container_statuses.iter().flatten();
    let last = containers
        .filter_map(|container| container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref())
        .map(|time| time.0)
        .max();
    let since_not_ready = || {
        pods::condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref()).map(|time| time.0)
    };
    let created = || pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    last.or_else(since_not_ready).or_else(created)
}

fn all_restarts(pod: &Pod) -> i32 {
    let Some(status) = &pod.status else { return 0 };
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    containers.map(|container| container.restart_count).sum()
}

fn length(uids: &Option<Vec<String>>) -> usize {
    uids.iter().flatten().count()
}

fn number(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
