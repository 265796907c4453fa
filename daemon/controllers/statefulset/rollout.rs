//! Which pods of a StatefulSet are made, ended and replaced in one round.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

use super::volumes::{self, Scaled};
use super::{COMPONENT, Round, identity, revision_of, rolls, running_and_ready};
use crate::pods::{self, name, uid};
use crate::replicas::{FIRST_BATCH, batches};
use crate::step::Step;

/// What is done about pods.
#[derive(Default)]
pub(crate) struct Work {
    /// The effects.
    pub(crate) steps: Vec<Step>,
    /// When time alone lets it go on.
    pub(crate) again: Option<Timestamp>,
    claims: Vec<Step>,
    births: Vec<Step>,
}

/// Whether a round goes on to the next pod.
#[derive(PartialEq)]
enum Then {
    GoOn,
    Wait,
}

/// The numbers that are asked for, and the pods that have one of them or another one.
struct Places {
    wanted: Vec<(i32, Option<Arc<Pod>>)>,
    condemned: Vec<(i32, Arc<Pod>)>,
}

/// One round: the pods that are asked for in order, then those that are not, the last first, then the update.
pub(crate) fn work(round: &Round<'_>) -> Work {
    let places = places(round);
    let mut work = Work::default();
    let mut then = Then::GoOn;
    for (ordinal, pod) in &places.wanted {
        then = keep(round, *ordinal, pod.as_ref(), &mut work);
        if then == Then::Wait {
            break;
        }
    }
    let (claims, births) = (std::mem::take(&mut work.claims), std::mem::take(&mut work.births));
    if !claims.is_empty() {
        work.steps.push(Step::Together(claims));
    }
    work.steps.extend(batches(births, FIRST_BATCH));
    if then == Then::GoOn && end(round, &places, &mut work) == Then::GoOn && rolls(round.spec) {
        replace(round, &places, &mut work);
    }
    work
}

fn in_order(round: &Round<'_>) -> bool {
    round.spec.pod_management_policy.as_deref() != Some("Parallel")
}

fn start(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
}

fn places(round: &Round<'_>) -> Places {
    let first = start(round.spec);
    let range = first..first.saturating_add(round.spec.replicas.unwrap_or(1));
    let mut by_ordinal: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    for pod in &round.pods {
        if let Some(ordinal) = identity::ordinal(round.set, pod) {
            by_ordinal.insert(ordinal, Arc::clone(pod));
        }
    }
    let wanted = range.clone().map(|ordinal| (ordinal, by_ordinal.remove(&ordinal))).collect();
    let mut condemned: Vec<(i32, Arc<Pod>)> = by_ordinal.into_iter().collect();
    condemned.sort_by_key(|(ordinal, _)| Reverse(*ordinal));
    Places { wanted, condemned }
}

/// One number that is asked for: makes its pod, or sees whether the next may come.
fn keep(round: &Round<'_>, ordinal: i32, pod: Option<&Arc<Pod>>, work: &mut Work) -> Then {
    let wait = if in_order(round) { Then::Wait } else { Then::GoOn };
    let Some(pod) = pod else {
        let called = identity::pod_name(round.set, ordinal);
        if round.unseen.coming.contains(&called) {
            return wait;
        }
        let Some(claims) = volumes::missing(round, ordinal) else { return Then::Wait };
        work.claims.extend(claims);
        work.births.push(birth(round, ordinal));
        return wait;
    };
    if pods::finished(pod) && !round.leaves(pod) {
        let (set, namespace) = (name(&round.set.metadata), round.set.metadata.namespace.as_deref());
        let what = if pods::phase(pod) == "Failed" { "failed" } else { "terminated" };
        let message = format!(
            "StatefulSet {}/{set} is recreating {what} Pod {}",
            namespace.unwrap_or_default(),
            name(&pod.metadata)
        );
        let note = match what {
            "failed" => round.note().warns(COMPONENT, "RecreatingFailedPod", message),
            _ => round.note().says(COMPONENT, "RecreatingTerminatedPod", message),
        };
        work.steps.push(Step::Record(note));
        work.steps.push(death(round, pod));
        return wait;
    }
    if pods::phase(pod) == "Pending" && !round.leaves(pod) {
        work.claims.extend(volumes::missing(round, ordinal).unwrap_or_default());
    }
    if in_order(round) && !may_pass(round, pod, work) {
        return Then::Wait;
    }
    work.steps.extend(volumes::owned(round, pod, ordinal, Scaled::Kept));
    let missing = identity::missing_labels(round.set, pod, ordinal);
    if !missing.is_empty() && !round.leaves(pod) {
        let labels: Map<String, Value> =
            missing.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
        work.steps.push(Step::patch(&**pod, json!({"metadata": {"labels": labels}})));
    }
    Then::GoOn
}

/// Whether what comes after this pod may be touched.
fn may_pass(round: &Round<'_>, pod: &Pod, work: &mut Work) -> bool {
    if round.leaves(pod) || !running_and_ready(pod) {
        return false;
    }
    if !round.available(pod) {
        work.again = work.again.into_iter().chain(round.available_at(pod)).min();
        return false;
    }
    true
}

/// Ends the pods whose numbers are not asked for, the highest first.
fn end(round: &Round<'_>, places: &Places, work: &mut Work) -> Then {
    let healthy = |pod: &Pod| running_and_ready(pod) && !round.leaves(pod);
    let wanted = places.wanted.iter().filter_map(|(_, pod)| pod.as_ref());
    let first_unhealthy = wanted
        .chain(places.condemned.iter().rev().map(|(_, pod)| pod))
        .find(|pod| !healthy(pod))
        .map(|pod| uid(&pod.metadata).to_owned());
    for (ordinal, pod) in &places.condemned {
        if round.leaves(pod) {
            if in_order(round) {
                return Then::Wait;
            }
            continue;
        }
        let is_first = first_unhealthy.as_deref() == Some(uid(&pod.metadata));
        if in_order(round) && !is_first && !may_pass(round, pod, work) {
            return Then::Wait;
        }
        work.steps.extend(volumes::owned(round, pod, *ordinal, Scaled::Down));
        work.steps.push(death(round, pod));
        if in_order(round) {
            return Then::Wait;
        }
    }
    Then::GoOn
}

/// Ends pods of an older revision, the highest number first, as many as may be missing at once.
fn replace(round: &Round<'_>, places: &Places, work: &mut Work) {
    let strategy = round.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let partition = strategy.and_then(|rolling| rolling.partition).unwrap_or(0);
    let replicas = round.spec.replicas.unwrap_or(1);
    let most = most_missing(strategy.and_then(|rolling| rolling.max_unavailable.as_ref()), replicas);
    let from = start(round.spec).saturating_add(partition);
    let mut missing = 0;
    for (_, pod) in places.wanted.iter().rev().filter(|(ordinal, _)| *ordinal >= from) {
        if missing >= most {
            return;
        }
        // A number without a pod gets one in this round.
        let Some(pod) = pod else {
            missing += 1;
            continue;
        };
        if revision_of(pod) != Some(name(&round.update.metadata)) && !round.leaves(pod) {
            work.steps.push(death(round, pod));
            missing += 1;
        } else if !round.available(pod) || round.leaves(pod) {
            if running_and_ready(pod) {
                work.again = work.again.into_iter().chain(round.available_at(pod)).min();
            }
            missing += 1;
        }
    }
}

/// `maxUnavailable`: a number or a percentage rounded down, at least one.
fn most_missing(said: Option<&IntOrString>, replicas: i32) -> i32 {
    let most = match said {
        None => 1,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            i32::try_from(percent * i64::from(replicas) / 100).unwrap_or(i32::MAX)
        }
    };
    most.max(1)
}

/// Below the partition pods are made of the old revision.
fn revision_for<'a>(round: &'a Round<'_>, ordinal: i32) -> &'a ControllerRevision {
    let strategy = round.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let partition = strategy.and_then(|rolling| rolling.partition).unwrap_or(0);
    let old = rolls(round.spec) && ordinal < start(round.spec).saturating_add(partition);
    if old { &round.current } else { &round.update }
}

fn birth(round: &Round<'_>, ordinal: i32) -> Step {
    let pod = identity::pod(round.set, revision_for(round, ordinal), ordinal);
    let (called, set) = (name(&pod.metadata), name(&round.set.metadata));
    let message = format!("create Pod {called} in StatefulSet {set} successful");
    let failed = format!("create Pod {called} in StatefulSet {set} failed error");
    let note = round.note().says(COMPONENT, "SuccessfulCreate", message).or_else("FailedCreate", failed);
    Step::create(&pod, Some(note))
}

fn death(round: &Round<'_>, pod: &Pod) -> Step {
    let (called, set) = (name(&pod.metadata), name(&round.set.metadata));
    let message = format!("delete Pod {called} in StatefulSet {set} successful");
    let failed = format!("delete Pod {called} in StatefulSet {set} failed error");
    let note = round.note().says(COMPONENT, "SuccessfulDelete", message).or_else("FailedDelete", failed);
    Step::delete(pod, Some(note))
}
