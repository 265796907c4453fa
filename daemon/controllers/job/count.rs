//! What the pods of a Job amount to, and the counters of its status.
//!
//! Invariant: counters only grow, and by exactly the pods whose uid leaves `uncountedTerminatedPods`.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use super::{TRACKING, View, indexes};
use crate::pods::{self, phase, terminating, uid};

/// As documented: pods that fail are made again after 10 s, doubling up to six minutes.
const FIRST_WAIT: i64 = 10;
const LONGEST_WAIT: i64 = 360;

/// The pods of a Job in numbers.
pub(crate) struct Count {
    /// The status with new counters; conditions and times are the known ones.
    pub(crate) status: JobStatus,
    /// Pods that run or will.
    pub(crate) active: Vec<Arc<Pod>>,
    /// Pods made and not seen yet.
    pub(crate) coming: i32,
    /// Pods on their way out that have not ended.
    pub(crate) terminating: i32,
    /// Pods that succeeded, or completed indexes.
    pub(crate) succeeded: i32,
    /// Pods that failed.
    pub(crate) failed: i32,
    /// Indexes that need no pod any more.
    pub(crate) completed: BTreeSet<i32>,
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
        let waiting =
            uncounted.failed.iter().flatten().count() + uncounted.succeeded.iter().flatten().count();
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
    let mut status = job.status.clone().unwrap_or_default();
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let holding: BTreeSet<&str> =
        view.pods.iter().filter(|pod| held(pod)).map(|pod| uid(&pod.metadata)).collect();

    let mut uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let flush = |uids: &mut Option<Vec<String>>, counter: &mut Option<i32>| {
        let all = uids.take().unwrap_or_default();
        let (kept, gone): (Vec<String>, Vec<String>) =
            all.into_iter().partition(|uid| holding.contains(uid.as_str()));
        if !gone.is_empty() {
            *counter = Some(counter.unwrap_or(0) + i32::try_from(gone.len()).unwrap_or(i32::MAX));
        }
        *uids = (!kept.is_empty()).then_some(kept);
    };
    flush(&mut uncounted.succeeded, &mut status.succeeded);
    flush(&mut uncounted.failed, &mut status.failed);

    let mut completed = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default());
    let known: BTreeSet<String> =
        uncounted.succeeded.iter().chain(&uncounted.failed).flatten().cloned().collect();
    let only_failed = spec.pod_replacement_policy.as_deref() == Some("Failed");
    for pod in view.pods.iter().filter(|pod| held(pod) && !known.contains(uid(&pod.metadata))) {
        let uid = uid(&pod.metadata).to_owned();
        match phase(pod) {
            "Succeeded" if indexed => completed.extend(indexes::of(pod)),
            "Succeeded" => uncounted.succeeded.get_or_insert_default().push(uid),
            "Failed" => uncounted.failed.get_or_insert_default().push(uid),
            // A pod that was deleted may never come to an end of its own.
            _ if terminating(pod) && !only_failed => uncounted.failed.get_or_insert_default().push(uid),
            _ => {}
        }
    }
    if indexed {
        completed.retain(|index| *index < spec.completions.unwrap_or(0));
        status.completed_indexes = (!completed.is_empty()).then(|| indexes::write(&completed));
        status.succeeded = (!completed.is_empty()).then(|| indexes::count(&completed));
    }
    let len = |uids: &Option<Vec<String>>| i32::try_from(uids.iter().flatten().count()).unwrap_or(i32::MAX);
    let succeeded = status.succeeded.unwrap_or(0) + len(&uncounted.succeeded);
    let failed = status.failed.unwrap_or(0) + len(&uncounted.failed);
    status.uncounted_terminated_pods = Some(uncounted);

    let stays = |pod: &&Arc<Pod>| pods::active(pod) && !view.unseen.leaving.contains(uid(&pod.metadata));
    let active: Vec<Arc<Pod>> = view.pods.iter().filter(stays).cloned().collect();
    let leaving = view.pods.iter().filter(|pod| !pods::finished(pod)).count() - active.len();
    let terminating = i32::try_from(leaving).unwrap_or(i32::MAX);
    let ready = active.iter().filter(|pod| pods::ready(pod)).count();
    status.ready = Some(i32::try_from(ready).unwrap_or(i32::MAX));
    status.terminating = Some(terminating);
    let restart_policy = spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    Count {
        status,
        coming: i32::try_from(view.unseen.coming.len()).unwrap_or(i32::MAX),
        terminating,
        succeeded,
        failed,
        completed,
        restarts_in_place: restart_policy == Some("OnFailure"),
        restarts: active.iter().map(|pod| all_restarts(pod)).sum(),
        wait_until: wait_until(&view.pods),
        active,
        held: holding.len(),
    }
}

/// When the next pod may be made: later for each failure since the last success.
fn wait_until(pods: &[Arc<Pod>]) -> Option<Timestamp> {
    let ends = |wanted: &'static str| {
        pods.iter().filter(move |pod| phase(pod) == wanted).filter_map(|pod| ended(pod))
    };
    let success = ends("Succeeded").max().unwrap_or(Timestamp::MIN);
    let failures = ends("Failed").filter(|at| *at > success).count();
    let last = ends("Failed").max().filter(|_| failures > 0)?;
    let doubled = FIRST_WAIT.saturating_mul(1i64 << (failures - 1).min(10));
    last.saturating_add(SignedDuration::from_secs(doubled.min(LONGEST_WAIT))).ok()
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
