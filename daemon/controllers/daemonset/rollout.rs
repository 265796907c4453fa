//! Which pods of a DaemonSet are made, ended and replaced in one round.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::fit::{self, Fit};
use super::{COMPONENT, Place, Round};
use crate::names::Names;
use crate::pods::{self, name, uid};
use crate::replicas::{FIRST_BATCH, batches};
use crate::step::{Note, Step};

/// A pod that failed is replaced at once the first time, later after it lived at least so long: a node that refuses
/// every pod must not be asked without end.
const FAILED_LIVES: SignedDuration = SignedDuration::from_secs(1);

/// What is done about pods.
#[derive(Default)]
pub(crate) struct Work {
    /// The effects.
    pub(crate) steps: Vec<Step>,
    /// When time alone lets it go on.
    pub(crate) again: Option<Timestamp>,
    notes: Vec<Note>,
    deaths: Vec<Arc<Pod>>,
    births: Vec<String>,
}

/// Gives each node its pod; then, where all have theirs, replaces old ones.
pub(crate) fn work(round: &Round<'_>) -> Work {
    let mut work = Work::default();
    for (node, place) in &round.places {
        settle(round, node, place, &mut work);
    }
    if rolls(round) {
        let (surge, missing) = fences(round);
        if surge > 0 {
            surging(round, surge, &mut work);
        } else {
            replacing(round, missing, &mut work);
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    work.deaths.retain(|pod| seen.insert(uid(&pod.metadata).to_owned()));
    let notes = std::mem::take(&mut work.notes);
    work.steps.extend(notes.into_iter().map(Step::Record));
    let deaths: Vec<Step> = work.deaths.iter().map(|pod| death(round, pod)).collect();
    if !deaths.is_empty() {
        work.steps.push(Step::Together(deaths));
    }
    let births = std::mem::take(&mut work.births);
    work.steps.extend(batches(born(round, births), FIRST_BATCH));
    work
}

fn rolls(round: &Round<'_>) -> bool {
    let strategy = round.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
    strategy != Some("OnDelete")
}

fn surges(round: &Round<'_>) -> bool {
    rolls(round) && fences(round).0 > 0
}

/// `maxSurge` and `maxUnavailable` of the nodes that should have a pod; percentages are rounded up.
fn fences(round: &Round<'_>) -> (usize, usize) {
    let strategy = round.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let of = round.places.values().filter(|place| place.fits == Fit::Runs).count();
    let resolved = |said: Option<&IntOrString>, default: usize| match said {
        None => default,
        Some(IntOrString::Int(number)) => usize::try_from(*number).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            let percent: usize = text.trim_end_matches('%').parse().unwrap_or(0);
            (percent * of).div_ceil(100)
        }
    };
    let surge = resolved(strategy.and_then(|rolling| rolling.max_surge.as_ref()), 0);
    let missing = resolved(strategy.and_then(|rolling| rolling.max_unavailable.as_ref()), 1);
    if surge == 0 && missing == 0 { (0, 1) } else { (surge, missing) }
}

/// One node: a pod where one should be, none where none should, and not two.
fn settle(round: &Round<'_>, node: &str, place: &Place, work: &mut Work) {
    let is_there = place.node.is_some();
    if place.fits == Fit::Runs && place.pods.is_empty() {
        work.births.push(node.to_owned());
        return;
    }
    let stays: Vec<&Arc<Pod>> = place.pods.iter().filter(|pod| !round.leaves(pod)).collect();
    if place.fits == Fit::Never {
        // Pods bound to a node that is gone are the pod collector's; those that wait for it would wait for ever.
        let ends = stays.into_iter().filter(|pod| is_there || !pods::assigned(pod));
        work.deaths.extend(ends.cloned());
        return;
    }
    let (ended, running): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
        stays.into_iter().partition(|pod| pods::finished(pod));
    for pod in ended {
        replace_ended(round, node, pod, work);
    }
    if running.len() > 1 {
        work.deaths.extend(surplus(round, &running));
    }
}

fn replace_ended(round: &Round<'_>, node: &str, pod: &Arc<Pod>, work: &mut Work) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let called = format!("{namespace}/{}", name(&pod.metadata));
    if pods::phase(pod) == "Failed" {
        let created = pod.metadata.creation_timestamp.as_ref().map_or(round.now, |time| time.0);
        let due = created.saturating_add(FAILED_LIVES).unwrap_or(created);
        if due > round.now {
            work.again = work.again.into_iter().chain([due]).min();
            return;
        }
        let message = format!("Found failed daemon pod {called} on node {node}, will try to kill it");
        work.notes.push(round.note().warns(COMPONENT, "FailedDaemonPod", message));
    } else {
        let message = format!("Found succeeded daemon pod {called} on node {node}, will try to delete it");
        work.notes.push(round.note().says(COMPONENT, "SucceededDaemonPod", message));
    }
    work.deaths.push(Arc::clone(pod));
}

/// The pods beyond the one that a node should have; while it is replaced by surge, beyond the old and the new one.
fn surplus(round: &Round<'_>, running: &[&Arc<Pod>]) -> Vec<Arc<Pod>> {
    if !surges(round) {
        return running[1..].iter().map(|pod| Arc::clone(pod)).collect();
    }
    let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = running.iter().partition(|pod| round.is_new(pod));
    let mut ends: Vec<Arc<Pod>> =
        new.iter().skip(1).chain(old.iter().skip(1)).map(|pod| Arc::clone(pod)).collect();
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!pods::ready(old) || round.available(new))
    {
        ends.push(Arc::clone(old));
    }
    ends
}

/// The pods of a node that count for the rollout: the new one and the old one.
enum Pair<'a> {
    /// Neither or both, or several of one: `settle` sees to it.
    Unsettled,
    New(&'a Arc<Pod>),
    Old(&'a Arc<Pod>),
    Both(&'a Arc<Pod>, &'a Arc<Pod>),
}

fn pair<'a>(round: &Round<'_>, place: &'a Place) -> Pair<'a> {
    let stays: Vec<&Arc<Pod>> = place.pods.iter().filter(|pod| !round.leaves(pod)).collect();
    let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = stays.into_iter().partition(|pod| round.is_new(pod));
    match (new.as_slice(), old.as_slice()) {
        ([new], []) => Pair::New(new),
        ([], [old]) => Pair::Old(old),
        ([new], [old]) => Pair::Both(new, old),
        _ => Pair::Unsettled,
    }
}

/// Ends old pods, as many as may be missing; what is not available anyway goes without asking.
fn replacing(round: &Round<'_>, most: usize, work: &mut Work) {
    let mut missing = 0;
    let mut candidates = Vec::new();
    for place in round.places.values().filter(|place| place.fits == Fit::Runs) {
        match pair(round, place) {
            Pair::Unsettled | Pair::Both(..) => missing += 1,
            Pair::New(pod) => missing += usize::from(!round.available(pod)),
            Pair::Old(pod) if !round.available(pod) => work.deaths.push(Arc::clone(pod)),
            Pair::Old(pod) => candidates.push(Arc::clone(pod)),
        }
    }
    work.deaths.extend(candidates.into_iter().take(most.saturating_sub(missing)));
}

/// Makes new pods beside the old ones, as many as may be too many; ends an old one when its new one is available.
fn surging(round: &Round<'_>, most: usize, work: &mut Work) {
    let mut extra = 0;
    let mut candidates = Vec::new();
    for (node, place) in round.places.iter().filter(|(_, place)| place.fits == Fit::Runs) {
        match pair(round, place) {
            Pair::Unsettled => extra += usize::from(!place.pods.is_empty()),
            Pair::New(_) => {}
            Pair::Both(new, old) if round.available(new) => work.deaths.push(Arc::clone(old)),
            Pair::Both(..) => extra += 1,
            Pair::Old(pod) if !round.available(pod) => work.births.push(node.clone()),
            Pair::Old(_) => candidates.push(node.clone()),
        }
    }
    work.births.extend(candidates.into_iter().take(most.saturating_sub(extra)));
}

/// The pods for these nodes. A name follows from the node and the number of the try, so that doing it twice is once.
fn born(round: &Round<'_>, nodes: Vec<String>) -> Vec<Step> {
    let taken = || round.view.taken.iter().map(String::as_str);
    let set = round.set;
    nodes
        .iter()
        .filter_map(|node| {
            let seed = format!("{}/{node}/{}", uid(&set.metadata), round.hash);
            let called = Names::new(name(&set.metadata), &seed, taken()).next()?;
            if round.view.unseen.coming.contains(&called) {
                return None;
            }
            let note = round
                .note()
                .says(COMPONENT, "SuccessfulCreate", format!("Created pod: {called}"))
                .or_else("FailedCreate", "Error creating");
            Some(Step::create(&fit::pod(set, round.hash, node, called), Some(note)))
        })
        .collect()
}

fn death(round: &Round<'_>, pod: &Pod) -> Step {
    let note = round
        .note()
        .says(COMPONENT, "SuccessfulDelete", format!("Deleted pod: {}", name(&pod.metadata)))
        .or_else("FailedDelete", "Error deleting");
    Step::delete(pod, Some(note))
}
