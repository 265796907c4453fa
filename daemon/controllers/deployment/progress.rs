//! What a Deployment says of itself: counts, and the conditions that `kubectl rollout status` and health rules read.
//!
//! Invariant: a condition's `lastTransitionTime` changes with its status only; `Progressing` is renewed by progress.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::sets::{Sets, reported};
use super::{fences, wanted};
use crate::pods::name;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const FAILURE: &str = "ReplicaFailure";
const DONE: &str = "NewReplicaSetAvailable";
const LATE: &str = "ProgressDeadlineExceeded";

/// A status, and when it would come out differently by time alone.
pub(crate) struct Report {
    /// The whole new status.
    pub(crate) status: DeploymentStatus,
    /// The progress deadline, while it runs.
    pub(crate) again: Option<Timestamp>,
}

/// Counts, then says how it goes. `collided`: the new set's name is taken, the next hash must be another one.
pub(crate) fn report(deployment: &Deployment, sets: &Sets, collided: bool, now: Timestamp) -> Report {
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = counts(deployment, sets);
    status.collision_count = before.collision_count;
    if collided {
        status.collision_count = Some(before.collision_count.unwrap_or(0) + 1);
    }
    status.conditions = before.conditions.clone();
    let available = available(deployment, &status);
    set_condition(&mut status, available, now);
    let again = if deployment.metadata.deletion_timestamp.is_some() {
        None
    } else {
        progressing(deployment, sets, &before, &mut status, now)
    };
    let failure = sets.all().flat_map(|set| reported(set).conditions.unwrap_or_default());
    match failure.into_iter().find(|condition| condition.type_ == FAILURE && condition.status == "True") {
        Some(found) => {
            let reason = found.reason.unwrap_or_default();
            set_condition(&mut status, new(FAILURE, "True", &reason, found.message.unwrap_or_default()), now);
        }
        None => status.conditions.get_or_insert_default().retain(|condition| condition.type_ != FAILURE),
    }
    Report { status, again }
}

/// Whether every wanted pod is of the new template and available, and no other is left, as `report` would say it.
pub(crate) fn complete(deployment: &Deployment, sets: &Sets) -> bool {
    is_complete(deployment, &counts(deployment, sets))
}

fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = wanted(deployment);
    let all = |count: Option<i32>| count.unwrap_or(0) == wanted;
    all(status.updated_replicas) && all(status.replicas) && all(status.available_replicas)
}

fn counts(deployment: &Deployment, sets: &Sets) -> DeploymentStatus {
    let sum = |of: fn(k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        sets.all().map(|set| of(reported(set))).sum()
    };
    // Kubernetes leaves a count of zero away.
    let some = |count: i32| (count > 0).then_some(count);
    let available = sum(|status| status.available_replicas.unwrap_or(0));
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(|status| status.replicas)),
        updated_replicas: some(sets.new.as_ref().map_or(0, |set| reported(set).replicas)),
        ready_replicas: some(sum(|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some(sets.asked() - available),
        terminating_replicas: some(sum(|status| status.terminating_replicas.unwrap_or(0))),
        ..DeploymentStatus::default()
    }
}

fn available(deployment: &Deployment, status: &DeploymentStatus) -> DeploymentCondition {
    let least = wanted(deployment) - fences(deployment).1;
    if status.available_replicas.unwrap_or(0) >= least {
        new(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned())
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        new(AVAILABLE, "False", "MinimumReplicasUnavailable", message)
    }
}

/// Sets the condition `Progressing`; the answer is when the deadline ends.
fn progressing(
    deployment: &Deployment,
    sets: &Sets,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
    now: Timestamp,
) -> Option<Timestamp> {
    let spec = deployment.spec.as_ref()?;
    let Some(deadline) = spec.progress_deadline_seconds.filter(|seconds| *seconds < i32::MAX) else {
        status.conditions.get_or_insert_default().retain(|condition| condition.type_ != PROGRESSING);
        return None;
    };
    let known = condition(before, PROGRESSING);
    let reason = known.and_then(|known| known.reason.as_deref()).unwrap_or_default();
    if spec.paused == Some(true) {
        let message = "Deployment is paused".to_owned();
        set_condition(status, new(PROGRESSING, "Unknown", "DeploymentPaused", message), now);
        return None;
    }
    if reason == "DeploymentPaused" {
        set_condition(
            status,
            new(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".to_owned()),
            now,
        );
        return Some(after(now, deadline));
    }
    let what = match &sets.new {
        Some(set) => format!("ReplicaSet \"{}\"", name(&set.metadata)),
        None => format!("Deployment \"{}\"", name(&deployment.metadata)),
    };
    if is_complete(deployment, status) {
        // Once a rollout is complete, only another rollout can be late.
        let done = new(PROGRESSING, "True", DONE, format!("{what} has successfully progressed."));
        if known.is_none_or(|known| known.message != done.message || known.reason != done.reason) {
            renew(status, done, now);
        }
        return None;
    }
    match known {
        Some(_) if reason == DONE && status.replicas == status.updated_replicas => return None,
        _ if begins(sets, known) => renew(status, beginning(sets)?, now),
        None => return None,
        Some(_) if progressed(before, status) => {
            renew(
                status,
                new(PROGRESSING, "True", "ReplicaSetUpdated", format!("{what} is progressing.")),
                now,
            );
        }
        Some(known) => {
            let since = known.last_update_time.as_ref().map_or(now, |time| time.0);
            if reason != DONE && reason != LATE && after(since, deadline) < now {
                let message = format!("{what} has timed out progressing.");
                set_condition(status, new(PROGRESSING, "False", LATE, message), now);
            }
        }
    }
    let now_known = condition(status, PROGRESSING)?;
    if matches!(now_known.reason.as_deref(), Some(DONE | LATE)) {
        return None;
    }
    let since = now_known.last_update_time.as_ref().map_or(now, |time| time.0);
    // One second more, as Kubernetes does: times are whole seconds.
    Some(after(since, deadline.saturating_add(1)))
}

/// Whether what is known is not about the set that is new now: its rollout begins, and its deadline with it.
fn begins(sets: &Sets, known: Option<&DeploymentCondition>) -> bool {
    let (Some(set), Some(known)) = (&sets.new, known) else { return sets.new.is_some() };
    let message = known.message.as_deref().unwrap_or_default();
    let about_pause = known.status == "Unknown";
    !about_pause && !message.contains(&format!("\"{}\"", name(&set.metadata)))
}

fn beginning(sets: &Sets) -> Option<DeploymentCondition> {
    let set = sets.new.as_ref()?;
    let name = name(&set.metadata);
    Some(if reported(set).replicas > 0 {
        new(PROGRESSING, "True", "FoundNewReplicaSet", format!("Found new replica set \"{name}\""))
    } else {
        new(PROGRESSING, "True", "NewReplicaSetCreated", format!("Created new replica set \"{name}\""))
    })
}

fn progressed(before: &DeploymentStatus, now: &DeploymentStatus) -> bool {
    let of = |count: Option<i32>| count.unwrap_or(0);
    let old = |status: &DeploymentStatus| of(status.replicas) - of(status.updated_replicas);
    of(now.updated_replicas) > of(before.updated_replicas)
        || old(now) < old(before)
        || of(now.ready_replicas) > of(before.ready_replicas)
        || of(now.available_replicas) > of(before.available_replicas)
}

fn after(since: Timestamp, seconds: i32) -> Timestamp {
    since.saturating_add(SignedDuration::from_secs(seconds.into())).unwrap_or(since)
}

fn new(kind: &str, status: &str, reason: &str, message: String) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: None,
        last_update_time: None,
    }
}

fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// Sets a condition, unless it says the same already.
fn set_condition(status: &mut DeploymentStatus, wanted: DeploymentCondition, now: Timestamp) {
    let same = condition(status, &wanted.type_)
        .is_some_and(|known| known.status == wanted.status && known.reason == wanted.reason);
    if !same {
        renew(status, wanted, now);
    }
}

/// Sets a condition and its time of update.
fn renew(status: &mut DeploymentStatus, mut wanted: DeploymentCondition, now: Timestamp) {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let known = condition(status, &wanted.type_).filter(|known| known.status == wanted.status);
    wanted.last_transition_time =
        known.and_then(|known| known.last_transition_time.clone()).or(Some(now.clone()));
    wanted.last_update_time = Some(now);
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|known| known.type_ == wanted.type_) {
        Some(known) => *known = wanted,
        None => conditions.push(wanted),
    }
}
