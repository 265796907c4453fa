//! Who reads a ConfigMap or Secret, and whether it sees a change of it.
//!
//! Invariant: environment variables and subPath mounts are read once, at the start of a container; other mounts follow.

use kube::api::DynamicObject;
use serde_json::Value;

use super::{Effect, EffectKind, Item, World, count, workload};
use crate::diff::ChangeKind;

/// How a pod reads a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reads {
    AtStart,
    Always,
}

pub(super) fn changed(item: &Item, items: &[Item], world: &World) -> Vec<Effect> {
    if !matches!(item.id.kind.as_str(), "ConfigMap" | "Secret") {
        return Vec::new();
    }
    let data = |object: &Option<Value>| {
        let field = |name: &str| object.as_ref().map(|object| object[name].clone());
        [field("data"), field("binaryData"), field("stringData")]
    };
    if data(&item.before) == data(&item.after) {
        return Vec::new();
    }
    let restarts: Vec<String> = items.iter().flat_map(|other| replaced(other, world)).collect();
    let (mut unseen, mut seen, mut anyway) = (Vec::new(), Vec::new(), Vec::new());
    for pod in readers(item, world) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        match reads(pod, item) {
            Some(_) if restarts.contains(&name) => anyway.push(name),
            Some(Reads::AtStart) => unseen.push(name),
            Some(Reads::Always) => seen.push(name),
            None => {}
        }
    }
    let mut found = Vec::new();
    let mut tell = |kind, pods: Vec<String>, what: &str| {
        if !pods.is_empty() {
            found.push(Effect::new(kind, format!("{} {what}", count(pods.len(), "pod"))).with_pods(pods));
        }
    };
    tell(
        EffectKind::Unseen,
        unseen,
        "will not see it before a restart: read at the start only (kubectl rollout restart)",
    );
    tell(EffectKind::Seen, seen, "will see it as changed files within a minute or two");
    tell(EffectKind::Seen, anyway, "will see it, since this plan replaces them");
    found
}

pub(super) fn removed(item: &Item, world: &World) -> Vec<Effect> {
    if !matches!(item.id.kind.as_str(), "ConfigMap" | "Secret") {
        return Vec::new();
    }
    let pods: Vec<String> = readers(item, world)
        .filter(|pod| reads(pod, item).is_some())
        .map(|pod| pod.metadata.name.clone().unwrap_or_default())
        .collect();
    if pods.is_empty() {
        return Vec::new();
    }
    let message = format!("{} still read it, and could not start again without it", count(pods.len(), "pod"));
    vec![Effect::new(EffectKind::Note, message).with_pods(pods)]
}

/// Pods that another change of the same plan replaces.
fn replaced(other: &Item, world: &World) -> Vec<String> {
    if !matches!(other.kind, ChangeKind::Change | ChangeKind::Recreate) {
        return Vec::new();
    }
    let effects = workload::changed(other, world);
    effects
        .into_iter()
        .filter(|effect| effect.kind == EffectKind::Roll)
        .flat_map(|effect| effect.pods)
        .collect()
}

fn readers<'a>(item: &'a Item, world: &'a World) -> impl Iterator<Item = &'a DynamicObject> {
    world.pods.iter().map(|pod| &**pod).filter(|pod| {
        let over = matches!(pod.data["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        !over && pod.metadata.namespace.as_deref().unwrap_or_default() == item.id.namespace
    })
}

/// The most forgetful of the ways in which a pod reads it.
fn reads(pod: &DynamicObject, item: &Item) -> Option<Reads> {
    let spec = &pod.data["spec"];
    let secret = item.id.kind == "Secret";
    let (reference, key_reference) =
        if secret { ("secretRef", "secretKeyRef") } else { ("configMapRef", "configMapKeyRef") };
    let name = item.id.name.as_str();
    let mut found: Vec<Reads> = Vec::new();
    let containers: Vec<&Value> =
        list(spec, "initContainers").iter().chain(list(spec, "containers")).collect();
    for container in &containers {
        let whole = list(container, "envFrom").iter().any(|from| from[reference]["name"] == name);
        let keys = list(container, "env").iter().any(|env| env["valueFrom"][key_reference]["name"] == name);
        if whole || keys {
            found.push(Reads::AtStart);
        }
    }
    for volume in list(spec, "volumes").iter().filter(|volume| mounts(volume, name, secret)) {
        for mount in containers.iter().flat_map(|container| list(container, "volumeMounts")) {
            if mount["name"] == volume["name"] {
                let once = mount["subPath"].is_string() || mount["subPathExpr"].is_string();
                found.push(if once { Reads::AtStart } else { Reads::Always });
            }
        }
    }
    found.into_iter().min()
}

fn mounts(volume: &Value, name: &str, secret: bool) -> bool {
    let own =
        if secret { volume["secret"]["secretName"] == name } else { volume["configMap"]["name"] == name };
    let field = if secret { "secret" } else { "configMap" };
    own || list(&volume["projected"], "sources").iter().any(|source| source[field]["name"] == name)
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}
