//! Whether there is room for the pods of a change, and whether their images are here.
//!
//! Invariant: with no node known nothing is said.

use api::quantity::Quantity;
use kube::api::DynamicObject;
use serde_json::Value;

use super::workload::{limits, own, replicas};
use super::{Effect, EffectKind, Item, World, count};
use crate::diff::ChangeKind;

/// Processor time in thousandths, memory in bytes, pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Size {
    milli: i128,
    bytes: i128,
    pods: i128,
}

pub(super) fn fit(item: &Item, world: &World) -> Option<Effect> {
    let after = item.after.as_ref()?;
    let spec = template(&item.id.kind, after)?;
    let wanted = match item.id.kind.as_str() {
        "Pod" => 1,
        "Job" => after["spec"]["parallelism"].as_i64().unwrap_or(1),
        "DaemonSet" | "CronJob" => return None,
        _ => replicas(after),
    };
    let taking: Vec<&Value> = world.nodes.iter().filter(|node| takes(node, spec)).collect();
    if world.nodes.is_empty() || wanted == 0 {
        return None;
    }
    if taking.is_empty() {
        let selector = &spec["nodeSelector"];
        let why = if selector.is_object() {
            format!("no node that takes pods has the labels {selector}")
        } else {
            "no node takes pods".to_owned()
        };
        return Some(Effect::new(EffectKind::NoRoom, format!("its pods will wait: {why}")));
    }
    let one = pod_size(spec);
    let old: Vec<&DynamicObject> = match item.kind {
        ChangeKind::Change => own(item, item.before.as_ref().unwrap_or(after), world),
        _ => Vec::new(),
    };
    let total: i128 = taking.iter().map(|node| slots(&free(node, world, &old), &one)).sum();
    if total < i128::from(wanted) {
        let message = format!(
            "{total} of {} will fit: each asks for {}, and {}",
            count(usize::try_from(wanted).unwrap_or(0), "pod"),
            shown(&one),
            left(&taking, world, &old)
        );
        return Some(Effect {
            unavailable: Some(wanted - i64::try_from(total).unwrap_or(0)),
            ..Effect::new(EffectKind::NoRoom, message)
        });
    }
    let rolls = item.kind == ChangeKind::Change
        && item.id.kind == "Deployment"
        && item.before.as_ref().is_some_and(|before| before["spec"]["template"] != after["spec"]["template"]);
    let limits = limits(&after["spec"]["strategy"]["rollingUpdate"], wanted);
    let beside: i128 = taking.iter().map(|node| slots(&free(node, world, &[]), &one)).sum();
    if rolls && after["spec"]["strategy"]["type"] != "Recreate" && limits.unavailable == 0 && beside < 1 {
        let message = format!(
            "the rollout will be stuck: no old pod may go first (maxUnavailable 0), and beside them {}",
            left(&taking, world, &[])
        );
        return Some(Effect::new(EffectKind::NoRoom, message));
    }
    None
}

pub(super) fn images(item: &Item, world: &World) -> Vec<Effect> {
    let Some(spec) = item.after.as_ref().and_then(|after| template(&item.id.kind, after)) else {
        return Vec::new();
    };
    let known: Vec<&str> = world
        .nodes
        .iter()
        .flat_map(|node| node["status"]["images"].as_array().into_iter().flatten())
        .flat_map(|image| image["names"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    if known.is_empty() {
        return Vec::new();
    }
    let mut told: Vec<String> = Vec::new();
    let mut found = Vec::new();
    for container in containers(spec) {
        let image = container["image"].as_str().unwrap_or_default();
        let here = known.iter().any(|name| full(name) == full(image));
        if image.is_empty() || here || told.iter().any(|known| known == image) {
            continue;
        }
        told.push(image.to_owned());
        let message = match container["imagePullPolicy"].as_str() {
            Some("Never") => {
                format!("image {image} is not on this machine and is never pulled: its pods cannot start")
            }
            _ => format!("image {image} is not on this machine and is pulled first"),
        };
        found.push(Effect::new(EffectKind::Image, message));
    }
    found
}

/// A reference with everything that may be left out.
fn full(image: &str) -> String {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let first = name.split('/').next().unwrap_or_default();
    let has_host = name.contains('/') && (first.contains('.') || first.contains(':') || first == "localhost");
    let path = match (has_host, name.contains('/')) {
        (true, _) => name.to_owned(),
        (false, true) => format!("docker.io/{name}"),
        (false, false) => format!("docker.io/library/{name}"),
    };
    match (digest, tagged) {
        (Some(digest), _) => format!("{path}@{digest}"),
        (None, true) => path,
        (None, false) => format!("{path}:latest"),
    }
}

/// The pods that a kind makes.
pub(crate) fn template<'a>(kind: &str, object: &'a Value) -> Option<&'a Value> {
    let spec = match kind {
        "Pod" => &object["spec"],
        "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            &object["spec"]["template"]["spec"]
        }
        _ => return None,
    };
    spec.is_object().then_some(spec)
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    let list = |name: &str| spec[name].as_array().map(Vec::as_slice).unwrap_or_default();
    list("initContainers").iter().chain(list("containers"))
}

fn takes(node: &Value, spec: &Value) -> bool {
    let labels = &node["metadata"]["labels"];
    let wanted = spec["nodeSelector"].as_object().into_iter().flatten();
    node["spec"]["unschedulable"] != true
        && wanted.into_iter().all(|(name, value)| labels.get(name) == Some(value))
}

fn pod_size(spec: &Value) -> Size {
    let sum = |list: &str| {
        let all = spec[list].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter()
            .map(|container| amount(&container["resources"]["requests"], &container["resources"]["limits"]))
    };
    let running = sum("containers").fold(Size::default(), |a, b| Size {
        milli: a.milli + b.milli,
        bytes: a.bytes + b.bytes,
        pods: 0,
    });
    let starting = sum("initContainers").fold(Size::default(), |a, b| Size {
        milli: a.milli.max(b.milli),
        bytes: a.bytes.max(b.bytes),
        pods: 0,
    });
    Size { milli: running.milli.max(starting.milli), bytes: running.bytes.max(starting.bytes), pods: 1 }
}

/// What is asked for; a limit alone is asked for as well.
fn amount(requests: &Value, limits: &Value) -> Size {
    let quantity = |name: &str| {
        let value = requests.get(name).or_else(|| limits.get(name));
        value.and_then(|value| Quantity::from_value(value).ok())
    };
    Size {
        milli: quantity("cpu").map_or(0, |quantity| quantity.as_milli()),
        bytes: quantity("memory").map_or(0, |quantity| quantity.as_bytes()),
        pods: 0,
    }
}

/// What is left on a node when these pods are gone.
fn free(node: &Value, world: &World, without: &[&DynamicObject]) -> Size {
    let allocatable = &node["status"]["allocatable"];
    let mut left = amount(allocatable, &Value::Null);
    left.pods = allocatable
        .get("pods")
        .and_then(|pods| Quantity::from_value(pods).ok())
        .map_or(110, |pods| pods.as_milli() / 1000);
    let name = &node["metadata"]["name"];
    for pod in &world.pods {
        let over = matches!(pod.data["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let gone = without
            .iter()
            .any(|other| other.metadata.uid == pod.metadata.uid && other.metadata.name == pod.metadata.name);
        if pod.data["spec"]["nodeName"] == *name && !over && !gone {
            let size = pod_size(&pod.data["spec"]);
            left =
                Size { milli: left.milli - size.milli, bytes: left.bytes - size.bytes, pods: left.pods - 1 };
        }
    }
    left
}

fn slots(free: &Size, one: &Size) -> i128 {
    let by = |free: i128, one: i128| if one > 0 { free / one } else { i128::MAX };
    by(free.milli, one.milli).min(by(free.bytes, one.bytes)).min(free.pods).max(0)
}

fn shown(size: &Size) -> String {
    match (size.milli, size.bytes) {
        (0, 0) => "nothing".to_owned(),
        (milli, 0) => format!("{milli}m processor"),
        (0, bytes) => format!("{}Mi memory", bytes >> 20),
        (milli, bytes) => format!("{milli}m processor and {}Mi memory", bytes >> 20),
    }
}

fn left(nodes: &[&Value], world: &World, without: &[&DynamicObject]) -> String {
    let each: Vec<String> = nodes
        .iter()
        .take(3)
        .map(|node| {
            let free = free(node, world, without);
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            format!(
                "node {name} has {}m processor, {}Mi memory and room for {} left",
                free.milli.max(0),
                free.bytes.max(0) >> 20,
                count(usize::try_from(free.pods.max(0)).unwrap_or(0), "pod")
            )
        })
        .collect();
    each.join(", ")
}
