//! What a change will do to what runs: pods that are rolled, data that would go, configuration that nobody reads again,
//! room and images that are not there.
//!
//! Invariant: pure; what is not known is not said.

mod config_use;
mod room;
mod workload;

use std::sync::Arc;

use kube::api::DynamicObject;
use serde::Serialize;
use serde_json::Value;

use crate::build::Id;
use crate::diff::ChangeKind;

pub(crate) use room::template;

/// One consequence of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effect {
    /// What kind of consequence.
    pub kind: EffectKind,
    /// One sentence.
    pub message: String,
    /// The pods it is about, in the order in which it happens to them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<String>,
    /// How many of the pods are missing at the worst moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<i64>,
}

/// Kinds of consequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EffectKind {
    /// Pods are replaced one after the other.
    Roll,
    /// Pods are added or taken away.
    Scale,
    /// Pods end.
    Stop,
    /// Nothing that runs sees the change before it restarts.
    Unseen,
    /// What runs sees the change by itself.
    Seen,
    /// Data goes, or stays although its claim goes.
    Data,
    /// There is no room for the pods.
    NoRoom,
    /// An image is not on this machine.
    Image,
    /// A quota or policy will refuse the pods.
    Refused,
    /// Something else worth knowing.
    Note,
}

impl Effect {
    pub(crate) fn new(kind: EffectKind, message: impl Into<String>) -> Effect {
        Effect { kind, message: message.into(), pods: Vec::new(), unavailable: None }
    }

    pub(crate) fn with_pods(mut self, pods: Vec<String>) -> Effect {
        self.pods = pods;
        self
    }
}

/// One change, with the object before and after it.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) id: Id,
    pub(crate) kind: ChangeKind,
    pub(crate) before: Option<Value>,
    pub(crate) after: Option<Value>,
}

/// What runs, and on what.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) pods: Vec<Arc<DynamicObject>>,
    pub(crate) nodes: Vec<Value>,
    pub(crate) volumes: Vec<Value>,
}

/// What each of the changes will do, in their order.
pub(crate) fn effects(items: &[Item], world: &World) -> Vec<Vec<Effect>> {
    items.iter().map(|item| of(item, items, world)).collect()
}

fn of(item: &Item, items: &[Item], world: &World) -> Vec<Effect> {
    let mut found = Vec::new();
    match item.kind {
        ChangeKind::Create | ChangeKind::Change => {
            found.extend(workload::changed(item, world));
            found.extend(room::fit(item, world));
            found.extend(room::images(item, world));
            if item.kind == ChangeKind::Change {
                found.extend(config_use::changed(item, items, world));
            }
        }
        ChangeKind::Recreate => {
            found.extend(recreated(item, world));
            found.extend(room::images(item, world));
        }
        ChangeKind::Prune => found.extend(removed(item, world)),
        ChangeKind::Hold | ChangeKind::Fail => {}
    }
    found
}

fn recreated(item: &Item, world: &World) -> Vec<Effect> {
    match item.id.kind.as_str() {
        "Job" => vec![Effect::new(EffectKind::Note, "it runs again from the beginning")],
        "Pod" => {
            let pods = vec![item.id.name.clone()];
            let stop = Effect::new(EffectKind::Stop, "it stops, and starts again from the beginning")
                .with_pods(pods);
            vec![Effect { unavailable: Some(1), ..stop }]
        }
        "Service" => vec![Effect::new(EffectKind::Note, "it may get another cluster address")],
        _ => removed(item, world),
    }
}

fn removed(item: &Item, world: &World) -> Vec<Effect> {
    let Some(before) = &item.before else { return Vec::new() };
    let id = &item.id;
    match id.kind.as_str() {
        "PersistentVolumeClaim" => claim(id, before, world),
        "PersistentVolume" => {
            vec![Effect::new(EffectKind::Data, "the volume is forgotten with what it refers to")]
        }
        "Namespace" => namespace(id, world),
        "CustomResourceDefinition" => {
            let kind = before["spec"]["names"]["kind"].as_str().unwrap_or("its kind");
            vec![Effect::new(EffectKind::Data, format!("every object of kind {kind} is deleted with it"))]
        }
        "Pod" => vec![Effect::new(EffectKind::Stop, "it stops").with_pods(vec![id.name.clone()])],
        _ => workload::stopped(item, before, world)
            .into_iter()
            .chain(config_use::removed(item, world))
            .collect(),
    }
}

fn claim(id: &Id, before: &Value, world: &World) -> Vec<Effect> {
    let volume = before["spec"]["volumeName"].as_str().unwrap_or_default();
    let known = world.volumes.iter().find(|known| known["metadata"]["name"] == volume);
    let size = before["status"]["capacity"]["storage"]
        .as_str()
        .or(before["spec"]["resources"]["requests"]["storage"].as_str());
    let size = size.map(|size| format!(" ({size})")).unwrap_or_default();
    let retained = known.is_some_and(|known| known["spec"]["persistentVolumeReclaimPolicy"] == "Retain");
    let message = match (volume, retained) {
        ("", _) => "it has no volume yet: no data goes".to_owned(),
        (volume, true) => {
            format!("volume {volume}{size} stays with its data (Retain), nothing uses it any more")
        }
        (volume, false) => format!("volume {volume}{size} and the data on it are deleted"),
    };
    let uses = |pod: &DynamicObject| {
        let volumes = pod.data["spec"]["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
        volumes.iter().any(|known| known["persistentVolumeClaim"]["claimName"] == id.name.as_str())
    };
    vec![Effect::new(EffectKind::Data, message).with_pods(pods(world, &id.namespace, uses))]
}

fn namespace(id: &Id, world: &World) -> Vec<Effect> {
    let inside = pods(world, &id.name, |_| true);
    let message = format!(
        "everything in namespace {} is deleted with it, {} among it",
        id.name,
        count(inside.len(), "pod")
    );
    vec![Effect::new(EffectKind::Data, message).with_pods(inside)]
}

/// Names of the pods of a namespace that fit.
fn pods(world: &World, namespace: &str, fits: impl Fn(&DynamicObject) -> bool) -> Vec<String> {
    let here =
        world.pods.iter().filter(|pod| pod.metadata.namespace.as_deref().unwrap_or_default() == namespace);
    here.filter(|pod| fits(pod)).map(|pod| pod.metadata.name.clone().unwrap_or_default()).collect()
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests;
