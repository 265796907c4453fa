//! Says of one object whether it is well, and if not, why, in a tired person's words.
//!
//! Invariant: pure: judged from the object alone, without clock or other objects (`service_with_endpoints` is told the one
//! number it needs).
//! Invariant: a message names the cause, not the mechanism; the healthy have one too.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kinds::split_api_version;

mod kinds;
mod pod;
mod workload;

/// How well an object is, best first: the worst of many speaks for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HealthCode {
    /// As declared.
    Healthy,
    /// Told to rest.
    Suspended,
    /// On its way.
    Progressing,
    /// Declared but not there.
    Missing,
    /// Will not get there without help.
    Degraded,
    /// Cannot be told.
    Unknown,
}

/// The verdict on an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// How well.
    pub code: HealthCode,
    /// Why.
    pub message: String,
}

impl HealthCode {
    /// `Healthy`, `Progressing`, … as Argo CD spells them.
    pub fn as_str(self) -> &'static str {
        match self {
            HealthCode::Healthy => "Healthy",
            HealthCode::Suspended => "Suspended",
            HealthCode::Progressing => "Progressing",
            HealthCode::Missing => "Missing",
            HealthCode::Degraded => "Degraded",
            HealthCode::Unknown => "Unknown",
        }
    }
}

impl std::fmt::Display for HealthCode {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.pad(self.as_str())
    }
}

impl Health {
    /// A verdict with its reason.
    pub fn new(code: HealthCode, message: impl Into<String>) -> Health {
        Health { code, message: message.into() }
    }

    fn healthy(message: impl Into<String>) -> Health {
        Health::new(HealthCode::Healthy, message)
    }

    fn progressing(message: impl Into<String>) -> Health {
        Health::new(HealthCode::Progressing, message)
    }

    fn degraded(message: impl Into<String>) -> Health {
        Health::new(HealthCode::Degraded, message)
    }
}

/// Judges an object by its kind; None for kinds without a rule, which count as healthy.
pub fn assess(object: &Value) -> Option<Health> {
    let (group, _) = split_api_version(text(object, "apiVersion"));
    let kind = text(object, "kind");
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return Some(deletion(object));
    }
    if let Some(health) = stale(object) {
        return Some(health);
    }
    match (group, kind) {
        ("", "Pod") => Some(pod::pod(object)),
        ("", "Service") => Some(service(object)),
        ("", "PersistentVolumeClaim") => Some(claim(object)),
        ("", "Node") => Some(node(object)),
        ("", "Namespace") => Some(namespace(object)),
        ("", "ReplicationController") => Some(workload::replica_set(object)),
        ("", "PersistentVolume") => Some(kinds::volume(object)),
        ("autoscaling", "HorizontalPodAutoscaler") => Some(kinds::autoscaler(object)),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => Some(kinds::definition(object)),
        ("apiregistration.k8s.io", "APIService") => Some(kinds::api_service(object)),
        ("policy", "PodDisruptionBudget") => Some(kinds::budget(object)),
        ("apps", "Deployment") => Some(workload::deployment(object)),
        ("apps", "ReplicaSet") => Some(workload::replica_set(object)),
        ("apps", "StatefulSet") => Some(workload::stateful_set(object)),
        ("apps", "DaemonSet") => Some(workload::daemon_set(object)),
        ("batch", "Job") => Some(workload::job(object)),
        ("batch", "CronJob") => Some(workload::cron_job(object)),
        ("networking.k8s.io", "Ingress") => Some(ingress(object)),
        ("holdfast.dev", "Application") => Some(application(object)),
        _ => conditions(object),
    }
}

/// Judges a Service that selects pods by how many of its endpoints are ready: with none, nobody answers.
pub fn service_with_endpoints(service_object: &Value, ready_endpoints: usize) -> Health {
    let own = assess(service_object).unwrap_or_else(|| service(service_object));
    let spec = &service_object["spec"];
    let selects = spec["selector"].as_object().is_some_and(|selector| !selector.is_empty());
    if own.code != HealthCode::Healthy || text(spec, "type") == "ExternalName" || !selects {
        return own;
    }
    match ready_endpoints {
        0 => {
            Health::progressing(format!("no ready endpoints: no ready pod has the labels {}", selector(spec)))
        }
        1 => Health::healthy("1 ready endpoint"),
        n => Health::healthy(format!("{n} ready endpoints")),
    }
}

/// Judges a workload together with the pods of its newest revision: when every one of them is degraded, waiting for
/// the rollout's deadline tells nobody anything new.
pub fn with_pods(own: Health, pods: &[&Value]) -> Health {
    let verdicts: Vec<Health> = pods.iter().map(|pod| pod::pod(pod)).collect();
    let all = !verdicts.is_empty() && verdicts.iter().all(|health| health.code == HealthCode::Degraded);
    if own.code != HealthCode::Progressing || !all {
        return own;
    }
    Health::degraded(format!("{}; {}", own.message, verdicts[0].message))
}

/// The verdict on many: the worst, with the message of the first that is as bad.
pub fn worst<'a>(all: impl IntoIterator<Item = &'a Health>) -> Health {
    let mut worst: Option<&Health> = None;
    for health in all {
        if worst.is_none_or(|worst| health.code > worst.code) {
            worst = Some(health);
        }
    }
    match worst {
        Some(health) if health.code != HealthCode::Healthy => health.clone(),
        _ => Health::healthy(""),
    }
}

fn deletion(object: &Value) -> Health {
    let finalizers = object["metadata"]["finalizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = finalizers.iter().filter_map(Value::as_str).collect();
    if names.is_empty() {
        return Health::progressing("being deleted");
    }
    Health::progressing(format!("being deleted, waits for {}", names.join(", ")))
}

/// Rules for every kind: what the controller has not seen yet, and the conditions that Flux agreed on.
fn stale(object: &Value) -> Option<Health> {
    let observed = object["status"]["observedGeneration"].as_i64();
    let generation = object["metadata"]["generation"].as_i64();
    if let (Some(observed), Some(generation)) = (observed, generation)
        && observed < generation
    {
        return Some(Health::progressing("the last change has not been looked at yet"));
    }
    if let Some(stalled) = condition(object, "Stalled").filter(|c| is(c, "True")) {
        return Some(Health::degraded(reason(stalled)));
    }
    let reconciling = condition(object, "Reconciling").filter(|c| is(c, "True"));
    reconciling.map(|condition| Health::progressing(reason(condition)))
}

/// Kinds without a rule of their own: the Ready condition where there is one.
fn conditions(object: &Value) -> Option<Health> {
    let ready = condition(object, "Ready")?;
    Some(if is(ready, "True") { Health::healthy("ready") } else { Health::progressing(reason(ready)) })
}

fn service(object: &Value) -> Health {
    let spec = &object["spec"];
    if text(spec, "type") != "LoadBalancer" {
        return Health::healthy("");
    }
    match addresses(object) {
        none if none.is_empty() => Health::progressing("waits for a load balancer address"),
        addresses => Health::healthy(format!("reachable at {addresses}")),
    }
}

fn ingress(object: &Value) -> Health {
    match addresses(object) {
        none if none.is_empty() => Health::progressing("waits for an ingress to serve it: no address yet"),
        addresses => Health::healthy(format!("reachable at {addresses}")),
    }
}

fn addresses(object: &Value) -> String {
    let list = object["status"]["loadBalancer"]["ingress"].as_array().map(Vec::as_slice).unwrap_or_default();
    let address = |entry: &Value| [text(entry, "hostname"), text(entry, "ip")].concat();
    list.iter().map(address).collect::<Vec<_>>().join(", ")
}

fn claim(object: &Value) -> Health {
    match text(&object["status"], "phase") {
        "Bound" => Health::healthy(format!("bound to {}", text(&object["spec"], "volumeName"))),
        "Lost" => Health::degraded(format!("its volume {} is lost", text(&object["spec"], "volumeName"))),
        "Pending"
            if text(&object["metadata"]["annotations"], "volume.kubernetes.io/selected-node").is_empty() =>
        {
            Health::progressing("not bound to a volume yet")
        }
        "Pending" | "" => Health::progressing("its volume is being made"),
        other => Health::new(HealthCode::Unknown, format!("unknown phase {other}")),
    }
}

fn node(object: &Value) -> Health {
    let Some(ready) = condition(object, "Ready") else {
        return Health::progressing("has not reported yet");
    };
    if !is(ready, "True") {
        let code = if is(ready, "Unknown") { HealthCode::Unknown } else { HealthCode::Degraded };
        return Health::new(code, format!("not ready: {}", reason(ready)));
    }
    let pressure = ["MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"];
    let pressed = pressure.iter().filter_map(|name| condition(object, name)).find(|c| is(c, "True"));
    if let Some(pressed) = pressed {
        return Health::degraded(reason(pressed));
    }
    if object["spec"]["unschedulable"] == true {
        return Health::new(HealthCode::Suspended, "cordoned: takes no new pods");
    }
    Health::healthy("ready")
}

fn namespace(object: &Value) -> Health {
    match text(&object["status"], "phase") {
        "Terminating" => Health::progressing("being deleted"),
        _ => Health::healthy("active"),
    }
}

/// An Application carries the verdict on its own objects; a sync that fails is its own fault.
fn application(object: &Value) -> Health {
    if object["spec"]["suspend"] == true {
        return Health::new(HealthCode::Suspended, "suspended: changes are not applied");
    }
    let status = &object["status"];
    let sync = &status["sync"];
    if text(sync, "state") == "Failed" {
        return Health::degraded(format!("sync failed: {}", text(sync, "message")));
    }
    match serde_json::from_value::<Health>(status["health"].clone()) {
        Ok(health) => health,
        Err(_) => Health::progressing("has not been synced yet"),
    }
}

fn selector(spec: &Value) -> String {
    let pairs = spec["selector"].as_object().into_iter().flatten();
    let pair = |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap_or_default());
    pairs.map(pair).collect::<Vec<_>>().join(",")
}

/// The condition of that type.
fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| text(condition, "type") == name)
}

fn is(condition: &Value, status: &str) -> bool {
    text(condition, "status") == status
}

/// A condition's message, or its reason, or at least its name.
fn reason(condition: &Value) -> String {
    let name = format!("{} is {}", text(condition, "type"), text(condition, "status"));
    [text(condition, "message"), text(condition, "reason"), &name]
        .into_iter()
        .find(|text| !text.is_empty())
        .unwrap_or("")
        .to_owned()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn count(value: &Value, name: &str) -> i64 {
    value.get(name).and_then(Value::as_i64).unwrap_or(0)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests;
