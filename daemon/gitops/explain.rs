//! Why an object is as it is: one chain from the commit and the line of its file down to the last words of a container.
//!
//! Invariant: reading and judging are apart: `assemble` is pure.
//! Invariant: nothing is guessed; a link says where it was read.

mod chain;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::kinds::{self, Kind};
use serde::Serialize;
use serde_json::Value;

use crate::Error;
use crate::act;
use crate::application::Neighbourhood;
use crate::archive::Tombstone;
use crate::build::Id;
use crate::defined::Defined;
use crate::evidence;
use crate::health;
use crate::live::whole;
use crate::status::Status;

pub(crate) use chain::assemble;

/// Owners above, and levels below, that are followed.
const MOST_LEVELS: usize = 5;
/// Pods looked into.
const MOST_PODS: usize = 8;

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Which object.
    pub object: Id,
    /// The application it belongs to; empty when none.
    pub application: String,
    /// The cause in one sentence.
    pub summary: String,
    /// From the commit down.
    pub links: Vec<Link>,
}

/// One link of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// How far below the first one.
    pub depth: u32,
    /// `Pod default/web-1`, `container app`, `commit 1234567`.
    pub what: String,
    /// `ok`, `wait`, `bad` or `note`.
    pub state: &'static str,
    /// One sentence.
    pub says: String,
    /// Events, probe output, last log lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
}

/// Everything the chain is made of.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) id: Id,
    pub(crate) application: Option<(String, Arc<Status>)>,
    /// The outermost owner first, the object itself last; empty when it is not live.
    pub(crate) above: Vec<Value>,
    /// What it owns or selects, with its depth.
    pub(crate) below: Vec<(u32, Value)>,
    /// By uid, the newest last.
    pub(crate) events: BTreeMap<String, Vec<Value>>,
    /// By the pod's uid.
    pub(crate) words: BTreeMap<String, Vec<String>>,
    pub(crate) tombstone: Option<Tombstone>,
}

/// The kind that a person means by `deploy`, `pods` or `ConfigMap`.
pub(crate) fn kind_named(text: &str, defined: &Defined) -> Option<&'static Kind> {
    let wanted = text.to_ascii_lowercase();
    let (name, group) =
        wanted.split_once('.').map_or((wanted.as_str(), None), |(name, group)| (name, Some(group)));
    let names = |kind: &Kind| {
        kind.kind.to_ascii_lowercase() == name
            || kind.plural == name
            || kind.singular == name
            || kind.short_names.iter().any(|short| *short == name)
    };
    defined.first(|kind| names(kind) && group.is_none_or(|group| kind.group == group))
}

/// Reads what there is about an object.
pub(crate) async fn gather(around: &Neighbourhood, kind: &'static Kind, id: Id) -> Result<Gathered, Error> {
    let mut found = Gathered { id: id.clone(), ..Gathered::default() };
    let mut next = Some((kind, id));
    while let Some((kind, id)) = next.take().filter(|_| found.above.len() < MOST_LEVELS) {
        match act::get_by(&around.door, kind, &id).await {
            Ok(mut object) => {
                (object["apiVersion"], object["kind"]) =
                    (kind.api_version().into(), kind.kind.clone().into());
                next = owner(&object);
                found.above.insert(0, object);
            }
            Err(error) if client::is_not_found(&error) => {}
            Err(source) => {
                return Err(Error::Door { verb: "get", what: id.to_string(), source: Box::new(source) });
            }
        }
    }
    if let Some(object) = found.above.last().cloned() {
        descend(around, &object, &mut found.below).await;
    }
    let uids: Vec<String> = found
        .above
        .iter()
        .chain(found.below.iter().map(|(_, object)| object))
        .filter_map(|object| object["metadata"]["uid"].as_str().map(str::to_owned))
        .collect();
    if let Some(kind) = kinds::by_kind("v1", "Event") {
        for event in around.watched.of(kind).await.snapshot().values() {
            let uid = event.data["involvedObject"]["uid"].as_str().unwrap_or_default();
            if uids.iter().any(|known| known == uid) {
                found.events.entry(uid.to_owned()).or_default().push(whole(event, kind));
            }
        }
    }
    for pod in found.above.iter().chain(found.below.iter().map(|(_, object)| object)) {
        if pod["kind"] != "Pod" {
            continue;
        }
        let Ok(pod) = serde_json::from_value(pod.clone()) else { continue };
        if let Some(failing) = evidence::failing(&pod) {
            found.words.insert(failing.uid.clone(), evidence::last_words(&around.door, &failing).await);
        }
    }
    Ok(found)
}

fn owner(object: &Value) -> Option<(&'static Kind, Id)> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true).or(owners.first())?;
    let kind = kinds::by_kind(owner["apiVersion"].as_str()?, owner["kind"].as_str()?)?;
    let namespace = match kind.namespaced {
        true => object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned(),
        false => String::new(),
    };
    let name = owner["name"].as_str()?.to_owned();
    Some((kind, Id { group: kind.group.clone(), kind: kind.kind.clone(), namespace, name }))
}

/// What an object owns, level by level; of a Service what it selects.
async fn descend(around: &Neighbourhood, object: &Value, below: &mut Vec<(u32, Value)>) {
    let near = around.watched.around().await;
    if object["kind"] == "Service" {
        let Ok(service) = serde_json::from_value(object.clone()) else { return };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        if !object["spec"]["selector"].is_object() {
            return;
        }
        let Some(pod_kind) = kinds::by_kind("v1", "Pod") else { return };
        let pods = health::pods_of("Service", &service, namespace, &near);
        below.extend(pods.into_iter().take(MOST_PODS).map(|pod| (1, whole(pod, pod_kind))));
        return;
    }
    let mut candidates: Vec<Value> = Vec::new();
    for (api_version, kind) in [("apps/v1", "ReplicaSet"), ("batch/v1", "Job"), ("v1", "Pod")] {
        if let Some(kind) = kinds::by_kind(api_version, kind) {
            candidates
                .extend(around.watched.of(kind).await.snapshot().values().map(|known| whole(known, kind)));
        }
    }
    children(object, &candidates, 1, below);
}

/// Depth first; sets without pods are history and left out.
fn children(object: &Value, candidates: &[Value], depth: u32, below: &mut Vec<(u32, Value)>) {
    let uid = &object["metadata"]["uid"];
    let owned = |known: &&Value| {
        let owners = known["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
        let rests = known["kind"] == "ReplicaSet"
            && known["spec"]["replicas"] == 0
            && known["status"]["replicas"] == 0;
        owners.iter().any(|owner| owner["uid"] == *uid) && uid.is_string() && !rests
    };
    for child in candidates.iter().filter(owned) {
        if below.iter().filter(|(_, known)| known["kind"] == "Pod").count() >= MOST_PODS || depth > 4 {
            return;
        }
        below.push((depth, child.clone()));
        children(child, candidates, depth + 1, below);
    }
}
