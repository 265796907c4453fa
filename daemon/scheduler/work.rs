//! Starts the scheduler, and does what it decided: bindings, conditions, events.
//!
//! Invariant: there is one round at a time over all pending pods; its key is `all`.

use std::fmt::{self, Display};
use std::sync::Arc;

use client::{Cache, Caches, Clock};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use reconcile::{Backoff, Plan, Queue, Reconciler, Tasks, Work, chain};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::Error;
use crate::ledger::Ledger;
use crate::plan::{Step, View, condition, plan};

const COMPONENT: &str = "default-scheduler";
/// Writes under way at once: enough to share the disk's syncs, few enough that others get their turn.
const AT_ONCE: usize = 64;

/// All pending pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct All;

impl Display for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all")
    }
}

/// Gives pods their nodes.
pub(crate) struct Scheduler {
    client: Client,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    ledger: Arc<Ledger>,
    turns: Semaphore,
}

/// Starts the scheduler over the caches of one door. Stopped by stopping the tasks.
pub fn start(caches: &Caches, tasks: &Tasks, clock: Clock) {
    let (nodes, pods) = (caches.of::<Node>(), caches.of::<Pod>());
    let (queue, ledger) = (Queue::new(), Arc::<Ledger>::default());
    let (wakes, books, seen) = (queue.clone(), Arc::clone(&ledger), pods.clone());
    pods.listen(move |pod| {
        if books.changed(pod, &seen) {
            wakes.wake(All);
        }
    });
    let wakes = queue.clone();
    nodes.listen(move |_| wakes.wake(All));
    let scheduler =
        Scheduler { client: caches.client(), nodes, pods, ledger, turns: Semaphore::new(AT_ONCE) };
    let synced = (scheduler.nodes.clone(), scheduler.pods.clone());
    let work = Work {
        reconciler: Arc::new(scheduler),
        queue,
        now: clock.teller(),
        at_once: 1,
        backoff: Backoff::default(),
    };
    tasks.spawn(Scheduler::NAME, |stop| async move {
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => return,
            // Cancel-safe: only waits for what other tasks do.
            () = async { synced.0.synced().await; synced.1.synced().await } => {}
        }
        work.run(stop).await;
    });
}

impl Reconciler for Scheduler {
    type Key = All;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "scheduler";

    async fn observe(&self, _: &All) -> Result<View, Error> {
        Ok(self.ledger.view(self.nodes.snapshot().values()))
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &All, step: Step) -> Result<(), Error> {
        if let Step::Bind { pod, demand, node, .. } = &step {
            // Before the wait for a turn: what is planned is taken.
            self.ledger.assume(pod, node, demand);
        }
        let _turn = self.turns.acquire().await.expect("turns are never closed");
        match step {
            Step::Bind { pod, node, at, .. } => self.bind(&pod, &node, at).await,
            Step::Explain { pod, reason, message, at } => self.explain(&pod, reason, &message, at).await,
        }
    }
}

impl Scheduler {
    async fn bind(&self, pod: &Pod, node: &str, at: Timestamp) -> Result<(), Error> {
        let body = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod.metadata.name, "namespace": pod.metadata.namespace, "uid": pod.metadata.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let answer = self.send("POST", &format!("{}/binding", path(pod)), &body).await;
        match answer {
            Ok(()) => {
                let message = format!("Successfully assigned {} to {node}", named(pod));
                self.tell(pod, "Normal", ("Scheduled", "Binding"), &message, at).await;
                Ok(())
            }
            // Gone, or bound already, or going: the cache is about to say so, and the books follow the cache.
            Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(()),
            Err(source) => {
                if !self.bound_nevertheless(pod).await {
                    self.ledger.forget(pod);
                }
                Err(Error::Bind { pod: named(pod), node: node.to_owned(), source: Box::new(source) })
            }
        }
    }

    /// Whether a binding was done although its answer was lost: then the room it takes stays counted.
    async fn bound_nevertheless(&self, pod: &Pod) -> bool {
        let request = Request::get(path(pod)).body(Vec::new()).expect("a path made of names");
        let live: Result<Value, kube::Error> = self.client.request(request).await;
        live.is_ok_and(|live| {
            live["metadata"]["uid"] == json!(pod.metadata.uid) && live["spec"]["nodeName"].is_string()
        })
    }

    async fn explain(&self, pod: &Pod, reason: &str, message: &str, at: Timestamp) -> Result<(), Error> {
        let now = Time(Timestamp::from_second(at.as_second()).unwrap_or(at));
        let known = condition(pod).filter(|known| known.status == "False");
        let told = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: known.and_then(|known| known.last_transition_time.clone()).or(Some(now)),
            last_probe_time: None,
            observed_generation: pod.metadata.generation,
        };
        let status = pod.status.clone().unwrap_or_default();
        let others = status.conditions.into_iter().flatten().filter(|one| one.type_ != "PodScheduled");
        let conditions: Vec<PodCondition> = others.chain([told]).collect();
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        match self.send("PATCH", &format!("{}/status", path(pod)), &patch).await {
            Ok(()) => {
                if reason == "Unschedulable" {
                    self.tell(pod, "Warning", ("FailedScheduling", "Scheduling"), message, at).await;
                }
                Ok(())
            }
            // It changed or went away: the next round sees it as it is now.
            Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(()),
            Err(source) => Err(Error::Report { pod: named(pod), source: Box::new(source) }),
        }
    }

    /// Tells an event; that it could not be told fails nothing.
    async fn tell(
        &self,
        pod: &Pod,
        kind: &str,
        (reason, action): (&str, &str),
        message: &str,
        at: Timestamp,
    ) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let event_name = format!("{name}.{:016x}", hash(&[uid, reason, message]));
        let time = Timestamp::from_second(at.as_second()).unwrap_or(at).to_string();
        let collection = format!("/api/v1/namespaces/{namespace}/events");
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": event_name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid,
                "resourceVersion": pod.metadata.resource_version,
            },
            "type": kind,
            "reason": reason,
            "action": action,
            "message": message,
            "count": 1,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": "",
        });
        let answer = match self.send("POST", &collection, &event).await {
            Err(error) if client::is_already_exists(&error) => {
                let again = json!({"lastTimestamp": time});
                self.send("PATCH", &format!("{collection}/{event_name}"), &again).await
            }
            answer => answer,
        };
        if let Err(error) = answer {
            warn!(pod = named(pod), reason, error = chain(&error), "event not told");
        }
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> Result<(), kube::Error> {
        let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder()
            .method(method)
            .uri(format!("{path}?fieldManager=holdfast-scheduler"))
            .header("content-type", content)
            .body(body.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        self.client.request::<serde::de::IgnoredAny>(request).await.map(|_| ())
    }
}

fn path(pod: &Pod) -> String {
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    format!("/api/v1/namespaces/{}/pods/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

fn named(pod: &Pod) -> String {
    client::key_of(pod).to_string()
}

/// FNV-1a: the same event about the same pod has the same name.
fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
