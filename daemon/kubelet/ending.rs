//! How containers are brought to their end, and why a whole pod is: pure.
//!
//! preStop hooks of all begin at once; then SIGTERM in turn (main containers, then sidecars in reverse order), then,
//! with the grace period used up, SIGKILL.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use reconcile::Plan;
use runtime::ContainerState;

use crate::plan::{Step, View};
use crate::rules::{Member, Role, running};

/// What is left to a container whose hook, or whose waiting for its turn, took all of its grace period.
const LEAST_WINDOW: SignedDuration = SignedDuration::from_secs(2);

/// Why a pod that is not being deleted ends before its containers do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) grace_seconds: i64,
}

/// The pod's own grace period.
pub(crate) fn grace(pod: &Pod) -> i64 {
    pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30)
}

/// When the pod's `activeDeadlineSeconds` are over, if it has any and has begun.
pub(crate) fn deadline(pod: &Pod) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let start = pod.status.as_ref()?.start_time.as_ref()?.0;
    start.checked_add(SignedDuration::from_secs(seconds)).ok()
}

pub(crate) fn ending(view: &View, pod: &Pod, now: Timestamp) -> Option<Ending> {
    if let Some((reason, message)) = view.notes.evicted.as_ref().or(view.rejected.as_ref()) {
        let (reason, message) = (reason.clone(), message.clone());
        return Some(Ending { reason, message, grace_seconds: 0 });
    }
    deadline(pod).filter(|end| *end <= now).map(|_| Ending {
        reason: "DeadlineExceeded".to_owned(),
        message: "Pod was active on the node longer than the specified deadline".to_owned(),
        grace_seconds: grace(pod),
    })
}

/// Since when, and for how long, something may take its time to end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) since: Timestamp,
    pub(crate) grace_seconds: i64,
}

/// The next steps on the way of these containers to their end; none when nothing but time is to pass.
pub(crate) fn stop(
    view: &View,
    members: &[Member<'_>],
    names: &[&str],
    window: Window,
    now: Timestamp,
) -> Plan<Step> {
    let mut plan = Plan::empty();
    for state in running(view).filter(|state| names.contains(&state.name.as_str())) {
        one(view, members, state, window, now, &mut plan);
    }
    plan
}

fn one(
    view: &View,
    members: &[Member<'_>],
    state: &ContainerState,
    window: Window,
    now: Timestamp,
    plan: &mut Plan<Step>,
) {
    let (container, attempt) = (state.name.clone(), state.attempt);
    let noted = view.notes.stops.get(&state.name).filter(|stop| stop.attempt == attempt);
    let Some(stop) = noted else {
        let why = view.notes.probes.get(&state.name).filter(|probed| probed.attempt == attempt);
        let why = why.and_then(|probed| probed.must_restart.as_ref()).map(|must| must.why.clone());
        let (since, grace_seconds) = (window.since, window.grace_seconds);
        plan.steps.push(Step::BeginStop { container, attempt, since, grace_seconds, why });
        return;
    };
    let grace = SignedDuration::from_secs(window.grace_seconds);
    let end = stop.since.checked_add(grace).unwrap_or(Timestamp::MAX);
    if window.grace_seconds > 0 && stop.asked.is_none() {
        if now >= end || (stop.hook_ended && is_in_turn(view, members, &state.name)) {
            plan.steps.push(Step::AskToStop { container, attempt });
        } else {
            plan.look_again(end);
        }
        return;
    }
    let asked = stop.asked.filter(|_| window.grace_seconds > 0);
    let kill = asked.map_or(end, |asked| end.max(asked + LEAST_WINDOW));
    if now >= kill {
        plan.steps.push(Step::Kill { container, attempt });
    } else {
        plan.look_again(kill);
    }
}

/// Sidecars wait for all that is not one, and for the sidecars after them.
fn is_in_turn(view: &View, members: &[Member<'_>], name: &str) -> bool {
    let place = |name: &str| members.iter().position(|member| member.container.name == name);
    let Some(own) = place(name) else { return true };
    if members[own].role != Role::Sidecar {
        return true;
    }
    !running(view).filter_map(|state| place(&state.name)).any(|other| match members[other].role {
        Role::Sidecar => other > own,
        Role::Init | Role::Main | Role::Ephemeral => true,
    })
}
