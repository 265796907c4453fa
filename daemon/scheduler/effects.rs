//! Does what a round decided: bindings, conditions, volumes, events.
//!
//! Invariant: an effect done twice is the same as once; what is gone, or changed meanwhile, is looked at again.

use client::{Caches, Clock, Recorder, Weight};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Client, Resource};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::ask::Ask;
use crate::plan::{Explanation, Nomination, condition};
use crate::volumes::{Choice, SELECTED_NODE};

const COMPONENT: &str = "default-scheduler";

/// The door, and who tells of what was done through it.
pub(crate) struct Door {
    client: Client,
    events: Recorder,
}

impl Door {
    /// Through the client of these caches; what is told is written until the token is cancelled.
    pub(crate) fn new(caches: &Caches, clock: Clock, stop: CancellationToken) -> Door {
        let client = caches.client();
        Door { events: Recorder::new(client.clone(), COMPONENT, clock, stop), client }
    }
}

/// An event about a pod.
struct Told<'a> {
    weight: Weight,
    reason: &'static str,
    action: &'static str,
    message: &'a str,
}

/// Whether an effect came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    /// Yes.
    ToBe,
    /// No: the pod is gone, or is another one by now.
    TooLate,
}

/// Gives a pod its node.
///
/// # Errors
/// When the cluster did not take it, nor had taken it before.
pub(crate) async fn bind(door: &Door, pod: &Pod, node: &str) -> Result<(), kube::Error> {
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod.metadata.name, "namespace": pod.metadata.namespace, "uid": pod.metadata.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    match send(door, "POST", &format!("{}/binding", path(pod)), &body).await {
        Ok(()) => {
            let message = format!("Successfully assigned {} to {node}", named(pod));
            let told =
                Told { weight: Weight::Normal, reason: "Scheduled", action: "Binding", message: &message };
            tell(door, pod, &told);
            Ok(())
        }
        // Gone, or bound already, or going: the cache is about to say so, and the books follow the cache.
        Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether a binding was done although its answer was lost.
pub(crate) async fn is_bound(door: &Door, pod: &Pod) -> bool {
    let request = Request::get(path(pod)).body(Vec::new()).expect("a path made of names");
    let live: Result<Value, kube::Error> = door.client.request(request).await;
    live.is_ok_and(|live| {
        live["metadata"]["uid"] == json!(pod.metadata.uid) && live["spec"]["nodeName"].is_string()
    })
}

/// Whether a deletion was done although its answer was lost.
async fn is_leaving(door: &Door, pod: &Pod) -> bool {
    let request = Request::get(path(pod)).body(Vec::new()).expect("a path made of names");
    match door.client.request::<Value>(request).await {
        Ok(live) => {
            live["metadata"]["uid"] != json!(pod.metadata.uid)
                || live["metadata"]["deletionTimestamp"].is_string()
        }
        Err(error) => client::is_not_found(&error),
    }
}

/// Says why a pod has no node, promises it one, and asks others to leave for it, in this order: so nobody takes the
/// room meanwhile.
///
/// # Errors
/// The first thing that did not come to be.
pub(crate) async fn explain(door: &Door, told: &Explanation) -> Result<Came, Error> {
    let pod = &told.ask.pod;
    let mut status = json!({"conditions": conditions(pod, told)});
    match &told.nomination {
        Nomination::Keep => {}
        Nomination::Clear => status["nominatedNodeName"] = Value::Null,
        Nomination::Node(node) => status["nominatedNodeName"] = json!(node),
    }
    let report = |source: kube::Error| Error::Report { pod: named(pod), source: Box::new(source) };
    match patch_status(door, pod, status).await {
        Ok(Came::TooLate) => return Ok(Came::TooLate),
        Ok(Came::ToBe) => {}
        Err(source) => return Err(report(source)),
    }
    if told.reason == "Unschedulable" {
        let message = told.message.as_str();
        let event =
            Told { weight: Weight::Warning, reason: "FailedScheduling", action: "Scheduling", message };
        tell(door, pod, &event);
    }
    if let Nomination::Node(node) = &told.nomination {
        for victim in &told.victims {
            preempt(door, victim, pod, (node, told.at)).await.map_err(|source| Error::Preempt {
                pod: named(&victim.pod),
                node: node.clone(),
                source: Box::new(source),
            })?;
        }
    }
    Ok(Came::ToBe)
}

/// Takes the promise of a node back.
///
/// # Errors
/// When the pod could not be written.
pub(crate) async fn withdraw(door: &Door, pod: &Pod) -> Result<(), kube::Error> {
    patch_status(door, pod, json!({"nominatedNodeName": null})).await.map(|_| ())
}

/// Asks for the volumes of a pod on a node.
///
/// # Errors
/// The first thing that could not be written.
pub(crate) async fn claim(door: &Door, node: &str, choices: &[Choice]) -> Result<(), kube::Error> {
    for choice in choices {
        let answer = match choice {
            Choice::Make { claim } => {
                let annotations = claim.metadata.annotations.as_ref();
                if annotations.is_some_and(|known| known.contains_key(SELECTED_NODE)) {
                    continue;
                }
                let meta = &claim.metadata;
                let namespace = meta.namespace.as_deref().unwrap_or_default();
                let name = meta.name.as_deref().unwrap_or_default();
                let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}");
                let patch = json!({"metadata": {
                    "uid": meta.uid, "resourceVersion": meta.resource_version,
                    "annotations": {SELECTED_NODE: node},
                }});
                send(door, "PATCH", &path, &patch).await
            }
            Choice::Volume { volume, claim } => {
                let (meta, owner) = (&volume.metadata, &claim.metadata);
                let path = format!("/api/v1/persistentvolumes/{}", meta.name.as_deref().unwrap_or_default());
                let patch = json!({
                    "metadata": {
                        "uid": meta.uid, "resourceVersion": meta.resource_version,
                        "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"},
                    },
                    "spec": {"claimRef": {
                        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": owner.namespace,
                        "name": owner.name, "uid": owner.uid, "resourceVersion": owner.resource_version,
                    }},
                });
                send(door, "PATCH", &path, &patch).await
            }
        };
        answer?;
    }
    Ok(())
}

/// Namespace and name.
pub(crate) fn named(pod: &Pod) -> String {
    client::key_of(pod).to_string()
}

async fn preempt(
    door: &Door,
    victim: &Ask,
    by: &Pod,
    (node, at): (&str, Timestamp),
) -> Result<(), kube::Error> {
    let pod = &victim.pod;
    if pod.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let now = Time(Timestamp::from_second(at.as_second()).unwrap_or(at));
    let scheduler = by.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    let why = PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some("PreemptionByScheduler".to_owned()),
        message: Some(format!(
            "{}: preempting to accommodate a higher priority pod",
            scheduler.unwrap_or(COMPONENT)
        )),
        last_transition_time: Some(now),
        last_probe_time: None,
        observed_generation: pod.metadata.generation,
    };
    let conditions = with(pod, why);
    // The victim's kubelet writes its status too, so this one only insists on who it is.
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": conditions}});
    gone_is_done(send(door, "PATCH", &format!("{}/status", path(pod)), &patch).await)?;
    let options = json!({
        "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": pod.metadata.uid},
    });
    if let Err(error) = gone_is_done(send(door, "DELETE", &path(pod), &options).await)
        && !is_leaving(door, pod).await
    {
        return Err(error);
    }
    let uid = by.metadata.uid.as_deref().unwrap_or_default();
    let message = format!("Preempted by pod {uid} on node {node}");
    let told = Told { weight: Weight::Normal, reason: "Preempted", action: "Preempting", message: &message };
    tell(door, pod, &told);
    Ok(())
}

fn conditions(pod: &Pod, told: &Explanation) -> Vec<PodCondition> {
    let now = Time(Timestamp::from_second(told.at.as_second()).unwrap_or(told.at));
    let known = condition(pod).filter(|known| known.status == "False");
    let why = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some(told.reason.to_owned()),
        message: Some(told.message.clone()),
        last_transition_time: known.and_then(|known| known.last_transition_time.clone()).or(Some(now)),
        last_probe_time: None,
        observed_generation: pod.metadata.generation,
    };
    with(pod, why)
}

/// The conditions of a pod with this one in the place of the one of its type.
fn with(pod: &Pod, condition: PodCondition) -> Vec<PodCondition> {
    let known = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let others = known.filter(|one| one.type_ != condition.type_).cloned();
    others.chain([condition.clone()]).collect()
}

async fn patch_status(door: &Door, pod: &Pod, status: Value) -> Result<Came, kube::Error> {
    let patch = json!({
        "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
        "status": status,
    });
    match send(door, "PATCH", &format!("{}/status", path(pod)), &patch).await {
        Ok(()) => Ok(Came::ToBe),
        // It changed or went away: the next round sees it as it is now.
        Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(Came::TooLate),
        Err(error) => Err(error),
    }
}

fn gone_is_done(answer: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(()),
        answer => answer,
    }
}

fn tell(door: &Door, pod: &Pod, told: &Told<'_>) {
    let about = pod.object_ref(&());
    door.events.tell_doing(about, told.weight, told.reason, Some(told.action), told.message);
}

async fn send(door: &Door, method: &str, path: &str, body: &Value) -> Result<(), kube::Error> {
    let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let mark = if method == "DELETE" { "" } else { "?fieldManager=holdfast-scheduler" };
    let request = Request::builder()
        .method(method)
        .uri(format!("{path}{mark}"))
        .header("content-type", content)
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    door.client.request::<serde::de::IgnoredAny>(request).await.map(|_| ())
}

fn path(pod: &Pod) -> String {
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    format!("/api/v1/namespaces/{}/pods/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}
