//! Pods that a change of their workload rolls, adds or ends.
//!
//! Invariant: the order is the one that the controllers keep; the worst case is what their limits allow.

use std::collections::BTreeMap;

use api::select::Labels;
use kube::api::DynamicObject;
use serde_json::Value;

use super::{Effect, EffectKind, Item, World, count};
use crate::diff::ChangeKind;

/// How many pods may be missing, and how many there may be too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) unavailable: i64,
    pub(super) surge: i64,
}

pub(super) fn changed(item: &Item, world: &World) -> Vec<Effect> {
    let (Some(after), ChangeKind::Change) = (&item.after, item.kind) else { return Vec::new() };
    let Some(before) = &item.before else { return Vec::new() };
    let mut found = Vec::new();
    let rolls = before["spec"]["template"] != after["spec"]["template"];
    match item.id.kind.as_str() {
        "Deployment" if rolls => found.push(deployment(item, before, after, world)),
        "StatefulSet" if rolls => found.push(stateful_set(item, before, after, world)),
        "DaemonSet" if rolls => found.push(daemon_set(item, after, world)),
        "ReplicaSet" | "ReplicationController" if rolls => {
            let pods = names(&own(item, before, world));
            let message = "pods that run keep the old template; only new ones get this one";
            found.push(Effect::new(EffectKind::Unseen, message).with_pods(pods));
        }
        "CronJob" if before["spec"] != after["spec"] => {
            found.push(Effect::new(EffectKind::Note, "jobs that run go on; the next one is of this form"));
        }
        _ => {}
    }
    found.extend(scaled(item, before, after, world));
    found
}

pub(super) fn stopped(item: &Item, before: &Value, world: &World) -> Vec<Effect> {
    if !matches!(
        item.id.kind.as_str(),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job"
    ) {
        return Vec::new();
    }
    let pods = names(&own(item, before, world));
    let mut found = Vec::new();
    if !pods.is_empty() {
        let all = i64::try_from(pods.len()).unwrap_or(i64::MAX);
        let effect = Effect::new(
            EffectKind::Stop,
            format!("{} end{}", count(pods.len(), "pod"), if pods.len() == 1 { "s" } else { "" }),
        )
        .with_pods(pods);
        found.push(Effect { unavailable: Some(all), ..effect });
    }
    let claims = before["spec"]["volumeClaimTemplates"].as_array().is_some_and(|claims| !claims.is_empty());
    let deletes = before["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete";
    match (claims, deletes) {
        (true, true) => found
            .push(Effect::new(EffectKind::Data, "the claims of its pods and their data are deleted with it")),
        (true, false) => {
            found.push(Effect::new(EffectKind::Note, "the claims of its pods stay, with their data"))
        }
        _ => {}
    }
    found
}

fn deployment(item: &Item, before: &Value, after: &Value, world: &World) -> Effect {
    let mut pods = own(item, before, world);
    // A ReplicaSet that shrinks takes what is not ready first, then the youngest.
    pods.sort_by_key(|pod| (is_ready(pod), std::cmp::Reverse(age(pod)), pod.metadata.name.clone()));
    let replicas = replicas(after);
    if after["spec"]["paused"] == true {
        return Effect::new(
            EffectKind::Unseen,
            "its rollout is paused: nothing is replaced before it is resumed",
        );
    }
    if after["spec"]["strategy"]["type"] == "Recreate" {
        let message =
            format!("all {} end before the first new one starts (Recreate)", count(pods.len(), "pod"));
        let all = i64::try_from(pods.len()).unwrap_or(i64::MAX);
        return Effect {
            unavailable: Some(all),
            ..Effect::new(EffectKind::Roll, message).with_pods(names(&pods))
        };
    }
    let limits = limits(&after["spec"]["strategy"]["rollingUpdate"], replicas);
    let message = format!(
        "{} replaced, at most {} of {replicas} unavailable, at most {} at once",
        count(pods.len(), "pod"),
        limits.unavailable,
        replicas + limits.surge
    );
    Effect {
        unavailable: Some(limits.unavailable),
        ..Effect::new(EffectKind::Roll, message).with_pods(names(&pods))
    }
}

/// Percentages round down for what may be missing and up for what may be too many; both zero means one missing.
pub(super) fn limits(rolling: &Value, replicas: i64) -> Limits {
    let number = |value: &Value, up: bool| match value {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(25);
            let share = percent * replicas;
            if up { (share + 99) / 100 } else { share / 100 }
        }
        value => value
            .as_i64()
            .unwrap_or_else(|| if up { (25 * replicas + 99) / 100 } else { 25 * replicas / 100 }),
    };
    let (unavailable, surge) =
        (number(&rolling["maxUnavailable"], false), number(&rolling["maxSurge"], true));
    Limits { unavailable: if unavailable == 0 && surge == 0 { 1 } else { unavailable.min(replicas) }, surge }
}

fn stateful_set(item: &Item, before: &Value, after: &Value, world: &World) -> Effect {
    let mut pods = own(item, before, world);
    let ordinal = |pod: &&DynamicObject| -> i64 {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        name.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
    };
    pods.sort_by_key(|pod| std::cmp::Reverse(ordinal(pod)));
    let strategy = &after["spec"]["updateStrategy"];
    if strategy["type"] == "OnDelete" {
        let message = "its pods keep the old template until somebody deletes them (OnDelete)";
        return Effect::new(EffectKind::Unseen, message).with_pods(names(&pods));
    }
    let partition = strategy["rollingUpdate"]["partition"].as_i64().unwrap_or(0);
    pods.retain(|pod| ordinal(pod) >= partition);
    let at_once = strategy["rollingUpdate"]["maxUnavailable"].as_i64().unwrap_or(1).max(1);
    let message = format!(
        "{} replaced from the last to the first, {at_once} at a time, each waited for",
        count(pods.len(), "pod")
    );
    Effect { unavailable: Some(at_once), ..Effect::new(EffectKind::Roll, message).with_pods(names(&pods)) }
}

fn daemon_set(item: &Item, after: &Value, world: &World) -> Effect {
    let pods = names(&own(item, after, world));
    let strategy = &after["spec"]["updateStrategy"];
    if strategy["type"] == "OnDelete" {
        let message = "its pods keep the old template until somebody deletes them (OnDelete)";
        return Effect::new(EffectKind::Unseen, message).with_pods(pods);
    }
    let all = i64::try_from(pods.len()).unwrap_or(i64::MAX);
    let rolling = &strategy["rollingUpdate"];
    let at_once = match &rolling["maxUnavailable"] {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            ((percent * all + 99) / 100).max(1)
        }
        value => value.as_i64().unwrap_or(1),
    };
    let message = format!("{} replaced, {} at a time", count(pods.len(), "pod"), at_once.max(1));
    Effect { unavailable: Some(at_once.min(all)), ..Effect::new(EffectKind::Roll, message).with_pods(pods) }
}

fn scaled(item: &Item, before: &Value, after: &Value, world: &World) -> Option<Effect> {
    let (old, new) = (before["spec"]["replicas"].as_i64()?, after["spec"]["replicas"].as_i64()?);
    if old == new {
        return None;
    }
    if new > old {
        return Some(Effect::new(
            EffectKind::Scale,
            format!("{} more", count(usize::try_from(new - old).ok()?, "pod")),
        ));
    }
    let mut pods = own(item, before, world);
    pods.sort_by_key(|pod| (is_ready(pod), std::cmp::Reverse(age(pod))));
    if item.id.kind == "StatefulSet" {
        pods.sort_by_key(|pod| std::cmp::Reverse(pod.metadata.name.clone()));
    }
    let fewer = usize::try_from(old - new).ok()?;
    let gone: Vec<String> = names(&pods).into_iter().take(fewer).collect();
    let message = format!("{} fewer", count(fewer, "pod"));
    Some(Effect { unavailable: Some(old - new), ..Effect::new(EffectKind::Scale, message).with_pods(gone) })
}

pub(super) fn replicas(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(1)
}

/// The pods that a workload's selector takes.
pub(super) fn own<'a>(item: &Item, object: &Value, world: &'a World) -> Vec<&'a DynamicObject> {
    let selector = &object["spec"]["selector"];
    let labels = match item.id.kind.as_str() {
        "ReplicationController" => Labels::from_map(selector),
        _ => Labels::from_selector(selector),
    };
    let Ok(labels) = labels else { return Vec::new() };
    let none = BTreeMap::new();
    let here = world
        .pods
        .iter()
        .filter(|pod| pod.metadata.namespace.as_deref().unwrap_or_default() == item.id.namespace);
    here.filter(|pod| {
        let over = matches!(pod.data["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        !over
            && pod.metadata.deletion_timestamp.is_none()
            && labels.matches(pod.metadata.labels.as_ref().unwrap_or(&none))
    })
    .map(|pod| &**pod)
    .collect()
}

fn names(pods: &[&DynamicObject]) -> Vec<String> {
    pods.iter().map(|pod| pod.metadata.name.clone().unwrap_or_default()).collect()
}

fn is_ready(pod: &DynamicObject) -> bool {
    let conditions = pod.data["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|known| known["type"] == "Ready" && known["status"] == "True")
}

fn age(pod: &DynamicObject) -> Option<jiff::Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}
