//! How the sets of a Deployment change in one round: annotations, scaling, growing the new, shrinking the old.
//!
//! Invariant: every decision is an absolute size written against the version that was read, so an old view ends in a
//! conflict and never in a second step the same way.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::sets::{Sets, annotated, reported, revision, safely_available, seen, size};
use super::{COMPONENT, DESIRED, HISTORY, MOST, REVISION, fences, recreates, wanted};
use crate::names::{TEMPLATE_HASH, template_hash};
use crate::pods::name;
use crate::step::{Note, Step, controlled_by};

/// Annotations that are about the Deployment itself and not copied to its sets.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MOST,
    "deprecated.deployment.rollback.to",
];

/// Numbers the new set and the Deployment, and hands the Deployment's annotations and `minReadySeconds` to the set.
pub(crate) fn annotations(deployment: &Deployment, sets: &Sets, paused: bool) -> Vec<Step> {
    let Some(new) = &sets.new else { return Vec::new() };
    let mut steps = Vec::new();
    let number = if paused { revision(new) } else { revision(new).max(sets.last_old_revision() + 1) };
    if !paused {
        let have = new.metadata.annotations.clone().unwrap_or_default();
        let mut want = copied(deployment);
        if number != revision(new) {
            want.insert(REVISION.to_owned(), number.to_string());
            if revision(new) > 0 {
                let history = have.get(HISTORY).map(|known| format!("{known},")).unwrap_or_default();
                want.insert(HISTORY.to_owned(), format!("{history}{}", revision(new)));
            }
        }
        want.retain(|key, value| have.get(key) != Some(value));
        let seconds = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        let of_set = new.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        let mut patch = json!({});
        if !want.is_empty() {
            patch["metadata"] = json!({"annotations": want});
        }
        if seconds != of_set {
            patch["spec"] = json!({"minReadySeconds": seconds});
        }
        if patch != json!({}) {
            steps.push(Step::patch(&**new, patch));
        }
    }
    let known = deployment.metadata.annotations.as_ref().and_then(|all| all.get(REVISION));
    if number > 0 && known != Some(&number.to_string()) {
        steps.push(Step::patch(
            deployment,
            json!({"metadata": {"annotations": {REVISION: number.to_string()}}}),
        ));
    }
    steps
}

fn copied(deployment: &Deployment) -> BTreeMap<String, String> {
    let mut annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !OWN.contains(&key.as_str()));
    annotations
}

/// Makes the new set, or scales it as far as the surge allows. Also says whether its name is taken.
pub(crate) fn grow_new(deployment: &Deployment, sets: &Sets, now: Timestamp) -> (Vec<Step>, bool) {
    let size_now = sets.new.as_ref().map_or(0, |set| size(set));
    let target = new_size(deployment, sets, size_now);
    let Some(new) = &sets.new else {
        let set = new_set(deployment, sets, target);
        let taken = sets.old.iter().any(|old| name(&old.metadata) == name(&set.metadata));
        if taken {
            // The same hash for another template: the status counts it, and the next hash is another one.
            return (Vec::new(), true);
        }
        let message = format!("Scaled up replica set {} from 0 to {target}", name(&set.metadata));
        let note = Note::about(deployment, now)
            .says(COMPONENT, "ScalingReplicaSet", message)
            .or_else("ReplicaSetCreateError", "Failed to create new replica set");
        return (vec![Step::create(&set, Some(note))], false);
    };
    (resized(deployment, new, target, now).into_iter().collect(), false)
}

fn new_size(deployment: &Deployment, sets: &Sets, size_now: i32) -> i32 {
    let wanted = wanted(deployment);
    if recreates(deployment) || size_now >= wanted {
        return wanted;
    }
    // A set that has not seen its last size yet may still be making pods for the one before.
    if sets.old.iter().any(|old| !seen(old)) {
        return size_now;
    }
    let (surge, _) = fences(deployment);
    let room = (wanted + surge - sets.there()).max(0);
    size_now + room.min(wanted - size_now)
}

fn new_set(deployment: &Deployment, sets: &Sets, replicas: i32) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), hash.clone());
    let mut annotations = copied(deployment);
    annotations.insert(REVISION.to_owned(), (sets.last_old_revision() + 1).to_string());
    annotations.extend(scale_annotations(deployment));
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name(&deployment.metadata))),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![controlled_by(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: Some(replicas),
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

fn scale_annotations(deployment: &Deployment) -> BTreeMap<String, String> {
    let most = wanted(deployment) + fences(deployment).0;
    BTreeMap::from([
        (DESIRED.to_owned(), wanted(deployment).to_string()),
        (MOST.to_owned(), most.to_string()),
    ])
}

/// Scales a set, unless it has that size already.
fn resized(deployment: &Deployment, set: &ReplicaSet, target: i32, now: Timestamp) -> Option<Step> {
    let from = size(set);
    let annotations = scale_annotations(deployment);
    let noted = annotations.iter().all(|(key, value)| {
        set.metadata.annotations.as_ref().is_some_and(|known| known.get(key) == Some(value))
    });
    if from == target && noted {
        return None;
    }
    let patch: Value = json!({"metadata": {"annotations": annotations}, "spec": {"replicas": target}});
    let step = Step::patch(set, patch);
    if from == target {
        return Some(step);
    }
    let way = if from < target { "up" } else { "down" };
    let message = format!("Scaled {way} replica set {} from {from} to {target}", name(&set.metadata));
    Some(step.with(Note::about(deployment, now).says(COMPONENT, "ScalingReplicaSet", message)))
}

/// Takes pods from the old sets: first those that are not available anyway, then as many as the promise allows.
pub(crate) fn shrink_old(deployment: &Deployment, sets: &Sets, now: Timestamp) -> Vec<Step> {
    let least = wanted(deployment) - fences(deployment).1;
    let new_missing = sets.new.as_ref().map_or(0, |set| size(set) - safely_available(set));
    let may_go = sets.asked() - least - new_missing;
    if may_go <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = sets.old.iter().map(|set| size(set)).collect();
    let mut broken = may_go;
    for (set, left) in sets.old.iter().zip(&mut sizes) {
        let take = (*left - safely_available(set)).clamp(0, broken);
        *left -= take;
        broken -= take;
    }
    let mut spare = (sets.safely_available() - least).max(0);
    for left in &mut sizes {
        let take = (*left).min(spare);
        *left -= take;
        spare -= take;
    }
    sets.old
        .iter()
        .zip(sizes)
        .filter_map(|(set, left)| if left == size(set) { None } else { resized(deployment, set, left, now) })
        .collect()
}

/// Recreate: no pod of an old template stays.
pub(crate) fn empty_old(deployment: &Deployment, sets: &Sets, now: Timestamp) -> Vec<Step> {
    let full = sets.old.iter().filter(|set| size(set) > 0);
    full.filter_map(|set| resized(deployment, set, 0, now)).collect()
}

/// Brings a changed `replicas` to the sets: to the only active one, or to all in proportion to their size, so that a
/// rollout that is under way (or paused) keeps its mixture.
pub(crate) fn scale(deployment: &Deployment, sets: &Sets, now: Timestamp) -> Vec<Step> {
    let wanted = wanted(deployment);
    let active = sets.active();
    let only = match active.as_slice() {
        [] => sets.new.as_ref().or(sets.old.last()),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(only) = only {
        return if size(only) == wanted {
            noted(deployment, only, now)
        } else {
            resized(deployment, only, wanted, now)
        }
        .into_iter()
        .collect();
    }
    if active.is_empty() {
        return Vec::new();
    }
    if sets.new.as_ref().is_some_and(|new| saturated(deployment, new)) {
        return empty_old(deployment, sets, now);
    }
    if recreates(deployment) {
        return Vec::new();
    }
    let sizes = proportional(deployment, &active);
    active.iter().zip(sizes).filter_map(|(set, target)| resized(deployment, set, target, now)).collect()
}

fn noted(deployment: &Deployment, set: &ReplicaSet, now: Timestamp) -> Option<Step> {
    // Only where an older wish is noted: otherwise a paused Deployment would touch sets for nothing.
    annotated(set, DESIRED).filter(|known| *known != wanted(deployment))?;
    resized(deployment, set, size(set), now)
}

fn saturated(deployment: &Deployment, new: &ReplicaSet) -> bool {
    let wanted = wanted(deployment);
    size(new) == wanted
        && annotated(new, DESIRED) == Some(wanted)
        && reported(new).available_replicas.unwrap_or(0) == wanted
}

fn proportional(deployment: &Deployment, active: &[&Arc<ReplicaSet>]) -> Vec<i32> {
    let wanted = wanted(deployment);
    let most = if wanted > 0 { wanted + fences(deployment).0 } else { 0 };
    let change = most - active.iter().map(|set| size(set)).sum::<i32>();
    let mut order: Vec<usize> = (0..active.len()).collect();
    // Growth goes to the largest first, and among equals to the newest; shrinking takes from the oldest of equals.
    order.sort_by_key(|at| {
        let age = if change > 0 { Reverse(*at as i64) } else { Reverse(-(*at as i64)) };
        (Reverse(size(active[*at])), age)
    });
    let mut sizes: Vec<i32> = active.iter().map(|set| size(set)).collect();
    let mut given = 0;
    for at in &order {
        let share = share(deployment, active[*at], change, given);
        sizes[*at] += share;
        given += share;
    }
    if let Some(first) = order.first() {
        sizes[*first] = (sizes[*first] + change - given).max(0);
    }
    sizes
}

fn share(deployment: &Deployment, set: &ReplicaSet, change: i32, given: i32) -> i32 {
    let (now, wanted, rest) = (size(set), wanted(deployment), change - given);
    if now == 0 || change == 0 || rest == 0 {
        return 0;
    }
    let fraction = if wanted == 0 {
        -now
    } else {
        let before = annotated(set, MOST).filter(|most| *most > 0).or_else(|| {
            deployment.status.as_ref().and_then(|status| status.replicas).filter(|replicas| *replicas > 0)
        });
        let most = i64::from(wanted + fences(deployment).0);
        let before = i64::from(before.unwrap_or(wanted));
        // Rounded to the nearest, halves up, as Kubernetes does.
        let grown = (2 * i64::from(now) * most + before) / (2 * before);
        i32::try_from(grown).unwrap_or(i32::MAX) - now
    };
    if change > 0 { fraction.min(rest) } else { fraction.max(rest) }
}

/// Deletes the oldest empty sets beyond `revisionHistoryLimit`.
pub(crate) fn cleanup(deployment: &Deployment, sets: &Sets) -> Vec<Step> {
    let limit = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
    let mut old: Vec<&Arc<ReplicaSet>> =
        sets.old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
    old.sort_by_key(|set| revision(set));
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    let empty = |set: &&&Arc<ReplicaSet>| reported(set).replicas == 0 && size(set) == 0 && seen(set);
    old.iter().take(surplus).filter(empty).map(|set| Step::delete(&***set, None)).collect()
}
