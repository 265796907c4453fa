//! What the page and `/status` show: one value, read from the shared caches.
//!
//! Invariant: a view holds only what the API tells; applications are passed on exactly as they are stored.
//! Invariant: a view holds no "now": it is equal to the one before it as long as nothing changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::{Cache, Caches};
use gitops::Status;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Facts;

/// Events shown, the newest.
const MOST_EVENTS: usize = 25;

/// The caches that a view is read from.
#[derive(Clone)]
pub(crate) struct Eyes {
    pub(crate) applications: Cache<DynamicObject>,
    pub(crate) pods: Cache<core::Pod>,
    pub(crate) nodes: Cache<core::Node>,
    pub(crate) services: Cache<core::Service>,
    pub(crate) events: Cache<core::Event>,
}

/// Everything there is to show.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct View {
    /// Every declared application is in sync, healthy and without a defect.
    pub(crate) ready: bool,
    pub(crate) applications: Vec<Application>,
    pub(crate) services: Vec<Service>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) pods: Vec<Pod>,
    /// The newest first.
    pub(crate) events: Vec<Event>,
}

/// One application.
#[derive(Debug, Clone)]
pub(crate) struct Application {
    pub(crate) name: String,
    /// Declared in this node's configuration. One that is not is a memory of an earlier configuration.
    pub(crate) followed: bool,
    /// As stored.
    pub(crate) object: Arc<DynamicObject>,
    /// Its status, read.
    pub(crate) read: Status,
}

impl PartialEq for Application {
    fn eq(&self, other: &Application) -> bool {
        // What did not change since is one and the same: a thousand of them are compared at no cost.
        self.followed == other.followed
            && self.name == other.name
            && (Arc::ptr_eq(&self.object, &other.object) || self.object.data == other.object.data)
    }
}

/// Where a Service is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) address: String,
    /// Port, protocol and node port (0: none).
    pub(crate) ports: Vec<(i32, String, i32)>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) ready: bool,
    pub(crate) message: String,
    pub(crate) address: String,
    pub(crate) since: Option<Timestamp>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) phase: String,
    /// The phase, or the reason that says more, as `kubectl get pods` shows it.
    pub(crate) state: String,
    pub(crate) message: String,
    pub(crate) containers: usize,
    pub(crate) ready: usize,
    pub(crate) restarts: i32,
    pub(crate) ip: String,
    pub(crate) since: Option<Timestamp>,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) at: Option<Timestamp>,
    pub(crate) warning: bool,
    pub(crate) reason: String,
    pub(crate) object: String,
    pub(crate) message: String,
    pub(crate) count: i32,
}

impl Eyes {
    pub(crate) fn new(caches: &Caches) -> Eyes {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("holdfast.dev", "v1", "Application"));
        Eyes {
            applications: caches.dynamic(&kind),
            pods: caches.of(),
            nodes: caches.of(),
            services: caches.of(),
            events: caches.of(),
        }
    }

    /// Returns when every first list has arrived.
    pub(crate) async fn synced(&self) {
        self.applications.synced().await;
        self.pods.synced().await;
        self.nodes.synced().await;
        self.services.synced().await;
        self.events.synced().await;
    }

    /// Calls on every change of anything shown.
    pub(crate) fn listen(&self, wake: impl Fn() + Clone + Send + 'static) {
        let (a, b, c, d, e) = (wake.clone(), wake.clone(), wake.clone(), wake.clone(), wake);
        self.applications.listen(move |_| a());
        self.pods.listen(move |_| b());
        self.nodes.listen(move |_| c());
        self.services.listen(move |_| d());
        self.events.listen(move |_| e());
    }

    /// What there is now. `declared` are the applications that this node follows.
    pub(crate) fn look(&self, declared: &BTreeSet<String>) -> View {
        let applications = applications(self.applications.snapshot().values(), declared);
        View {
            ready: ready(&applications, declared),
            services: self.services.snapshot().values().filter_map(|s| service(s)).collect(),
            nodes: self.nodes.snapshot().values().map(|n| node(n)).collect(),
            pods: self.pods.snapshot().values().map(|p| pod(p)).collect(),
            events: events(self.events.snapshot().values().map(|e| event(e)).collect()),
            applications,
        }
    }
}

impl View {
    /// Whether `/status` says the same: pods and events are on the page only.
    pub(crate) fn tells_the_same(&self, other: &View) -> bool {
        self.ready == other.ready
            && self.services == other.services
            && self.applications == other.applications
    }

    /// The document of `/status`.
    pub(crate) fn document(&self, node: &Facts, now: Timestamp) -> Value {
        let applications: Vec<Value> = self
            .applications
            .iter()
            .map(|a| {
                let part = |name: &str| a.object.data.get(name).cloned().unwrap_or_else(|| json!({}));
                json!({"name": a.name, "followed": a.followed, "spec": part("spec"), "status": part("status")})
            })
            .collect();
        let port = |(port, protocol, node): &(i32, String, i32)| json!({"port": port, "protocol": protocol, "nodePort": (*node > 0).then_some(node)});
        let services: Vec<Value> = self
            .services
            .iter()
            .map(|s| {
                let ports: Vec<Value> = s.ports.iter().map(port).collect();
                json!({"namespace": s.namespace, "name": s.name, "type": s.kind, "address": s.address, "ports": ports})
            })
            .collect();
        json!({
            "node": {
                "name": node.name,
                "version": node.version,
                "apiAddress": node.api_address,
                "page": node.page,
                "kubeconfig": node.kubeconfig,
                "missing": node.missing,
                "startedAt": node.started.to_string(),
                "uptimeSeconds": now.duration_since(node.started).as_secs().max(0),
            },
            "ready": self.ready,
            "applications": applications,
            "services": services,
        })
    }

    /// How many pods are in which phase.
    pub(crate) fn phases(&self) -> BTreeMap<&str, usize> {
        let known = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];
        let mut phases: BTreeMap<&str, usize> = known.into_iter().map(|phase| (phase, 0)).collect();
        for pod in &self.pods {
            *phases.entry(&pod.phase).or_default() += 1;
        }
        phases
    }
}

fn applications<'a>(
    objects: impl Iterator<Item = &'a Arc<DynamicObject>>,
    declared: &BTreeSet<String>,
) -> Vec<Application> {
    objects
        .map(|object| {
            let name = object.metadata.name.clone().unwrap_or_default();
            // A status of another version that cannot be read counts as one that was never told.
            let read = object.data.get("status").and_then(|status| Status::deserialize(status).ok());
            Application {
                followed: declared.contains(&name),
                read: read.unwrap_or_default(),
                name,
                object: Arc::clone(object),
            }
        })
        .collect()
}

fn ready(applications: &[Application], declared: &BTreeSet<String>) -> bool {
    let good: BTreeSet<&str> =
        applications.iter().filter(|a| a.read.is_good()).map(|a| a.name.as_str()).collect();
    declared.iter().all(|name| good.contains(name.as_str()))
}

fn service(service: &core::Service) -> Option<Service> {
    let spec = service.spec.as_ref()?;
    let name = service.metadata.name.clone()?;
    let namespace = service.metadata.namespace.clone().unwrap_or_default();
    let ports = spec.ports.iter().flatten();
    Some(Service {
        namespace,
        name,
        kind: spec.type_.clone().unwrap_or_default(),
        address: spec.cluster_ip.clone().or_else(|| spec.external_name.clone()).unwrap_or_default(),
        ports: ports
            .map(|p| {
                (p.port, p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), p.node_port.unwrap_or(0))
            })
            .collect(),
    })
}

fn node(node: &core::Node) -> Node {
    let status = node.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").cloned();
    let address = status.addresses.iter().flatten().find(|address| address.type_ == "InternalIP");
    Node {
        name: node.metadata.name.clone().unwrap_or_default(),
        ready: ready.as_ref().is_some_and(|condition| condition.status == "True"),
        message: ready.and_then(|condition| condition.message).unwrap_or_default(),
        address: address.map(|address| address.address.clone()).unwrap_or_default(),
        since: node.metadata.creation_timestamp.as_ref().map(|time| time.0),
    }
}

fn pod(pod: &core::Pod) -> Pod {
    let status = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let phase = status.phase.clone().unwrap_or_else(|| "Unknown".to_owned());
    let inits = status.init_container_statuses.iter().flatten();
    let containers: Vec<&core::ContainerStatus> = status.container_statuses.iter().flatten().collect();
    let states = inits.chain(containers.iter().copied()).filter_map(|container| container.state.as_ref());
    let waiting = states.filter_map(|state| state.waiting.as_ref()).find(|waiting| waiting.reason.is_some());
    let unscheduled =
        status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let (state, message) = if pod.metadata.deletion_timestamp.is_some() {
        ("Terminating".to_owned(), String::new())
    } else if let Some(waiting) = waiting {
        (waiting.reason.clone().unwrap_or_default(), waiting.message.clone().unwrap_or_default())
    } else if let Some(condition) = unscheduled {
        (phase.clone(), condition.message.clone().unwrap_or_default())
    } else {
        (status.reason.clone().unwrap_or_else(|| phase.clone()), status.message.clone().unwrap_or_default())
    };
    Pod {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        node: spec.node_name.unwrap_or_default(),
        phase,
        state,
        message,
        containers: spec.containers.len(),
        ready: containers.iter().filter(|container| container.ready).count(),
        restarts: containers.iter().map(|container| container.restart_count).sum(),
        ip: status.pod_ip.unwrap_or_default(),
        since: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
    }
}

fn event(event: &core::Event) -> Event {
    let object = &event.involved_object;
    let name = object.name.as_deref().unwrap_or_default();
    let series = event.series.as_ref();
    let at = series.and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let at = at.or(event.last_timestamp.as_ref().map(|time| time.0));
    let at = at.or(event.event_time.as_ref().map(|time| time.0));
    Event {
        at: at.or(event.metadata.creation_timestamp.as_ref().map(|time| time.0)),
        warning: event.type_.as_deref() == Some("Warning"),
        reason: event.reason.clone().unwrap_or_default(),
        object: format!("{} {name}", object.kind.as_deref().unwrap_or_default()),
        message: event.message.clone().unwrap_or_default(),
        count: series.and_then(|series| series.count).or(event.count).unwrap_or(1),
    }
}

fn events(mut events: Vec<Event>) -> Vec<Event> {
    events.sort_by_key(|event| std::cmp::Reverse(event.at));
    events.truncate(MOST_EVENTS);
    events
}
