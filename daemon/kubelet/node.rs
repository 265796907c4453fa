//! The Node object of this machine, and the kubelet's door: logs, and the streams of programs.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity as Amount;
use bytes::Bytes;
use client::{Body, NodeDoor, full, is_already_exists};
use futures::StreamExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo, Pod, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use runtime::Phase;
use serde_json::json;

use crate::act::Kubelet;
use crate::{logs, machine, programs};

/// Makes the Node object, or brings the one of the last start up to date.
pub(crate) async fn register(kubelet: &Kubelet) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(kubelet.parts.caches.client());
    let name = &kubelet.parts.node_name;
    let labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), arch().to_owned()),
    ]);
    let metadata =
        ObjectMeta { name: Some(name.clone()), labels: Some(labels.clone()), ..ObjectMeta::default() };
    match api.create(&PostParams::default(), &Node { metadata, ..Node::default() }).await {
        Err(error) if is_already_exists(&error) => {
            api.patch(
                name,
                &PatchParams::default(),
                &Patch::Merge(json!({ "metadata": { "labels": labels } })),
            )
            .await?;
        }
        other => drop(other?),
    }
    let node = api.get(name).await?;
    if let Some(taints) = taints(kubelet, &node) {
        // With the version that it was made from: others set taints too.
        let version = &node.metadata.resource_version;
        let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": taints } });
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    let known = node.status.unwrap_or_default();
    let status = status_of(kubelet, &known);
    if status != known {
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(json!({ "status": status }))).await?;
    }
    Ok(())
}

/// The node's taints, when those of its pressures are not what they are to be.
fn taints(kubelet: &Kubelet, node: &Node) -> Option<Vec<Taint>> {
    let held = crate::act::lock(&kubelet.pressure).clone();
    let known = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let ours = |taint: &&Taint| held.keys().any(|condition| condition.taint() == taint.key);
    let wanted: Vec<&str> =
        held.iter().filter(|(_, holds)| **holds).map(|(condition, _)| condition.taint()).collect();
    let there: Vec<&str> = known.iter().filter(ours).map(|taint| taint.key.as_str()).collect();
    if there == wanted {
        return None;
    }
    let others = known.iter().filter(|taint| !ours(taint)).cloned();
    let added = wanted.iter().map(|key| Taint {
        key: (*key).to_owned(),
        effect: "NoSchedule".to_owned(),
        time_added: Some(Time(kubelet.parts.clock.now())),
        value: None,
    });
    Some(others.chain(added).collect())
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn status_of(kubelet: &Kubelet, known: &NodeStatus) -> NodeStatus {
    let quantity = |amount: Amount| Quantity(amount.to_string());
    let capacity = BTreeMap::from([
        ("cpu".to_owned(), quantity(Amount::from_milli(machine::cpu_milli()))),
        ("memory".to_owned(), Quantity(format!("{}Ki", machine::memory_bytes() / 1024))),
        (
            "ephemeral-storage".to_owned(),
            Quantity(format!("{}Ki", machine::disk_bytes(&kubelet.parts.pods_dir) / 1024)),
        ),
        ("pods".to_owned(), Quantity(kubelet.parts.config.max_pods.to_string())),
    ]);
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    let version = format!("v1.36.0+holdfast-{}", env!("CARGO_PKG_VERSION"));
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", kubelet.parts.network.addresses().node.to_string()),
            address("Hostname", kubelet.parts.node_name.clone()),
        ]),
        allocatable: Some(allocatable(kubelet, &capacity)),
        capacity: Some(capacity),
        conditions: Some(conditions(kubelet, known)),
        node_info: Some(NodeSystemInfo {
            architecture: arch().to_owned(),
            boot_id: machine::line("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: format!("holdfast://{}", env!("CARGO_PKG_VERSION")),
            kernel_version: machine::line("/proc/sys/kernel/osrelease"),
            kube_proxy_version: String::new(),
            kubelet_version: version,
            machine_id: machine::line("/etc/machine-id"),
            operating_system: "linux".to_owned(),
            os_image: machine::os_image(),
            system_uuid: machine::line("/sys/class/dmi/id/product_uuid"),
            ..NodeSystemInfo::default()
        }),
        ..NodeStatus::default()
    }
}

/// What pods may be promised: less what is kept for the machine, and less the memory that eviction keeps free.
fn allocatable(kubelet: &Kubelet, capacity: &BTreeMap<String, Quantity>) -> BTreeMap<String, Quantity> {
    let mut all = capacity.clone();
    let cpu = kubelet.allocatable_cpu_milli();
    all.insert("cpu".to_owned(), Quantity(Amount::from_milli(cpu).to_string()));
    all.insert("memory".to_owned(), Quantity(format!("{}Ki", kubelet.allocatable_memory_bytes() / 1024)));
    all
}

/// Ready, the pressures, and what others say of this node.
fn conditions(kubelet: &Kubelet, known: &NodeStatus) -> Vec<NodeCondition> {
    let now = kubelet.parts.clock.now();
    let mut all = vec![ready(known, now)];
    for (condition, holds) in &*crate::act::lock(&kubelet.pressure) {
        let (reason, message) = condition.words(*holds);
        let status = if *holds { "True" } else { "False" };
        let before = known.conditions.iter().flatten().find(|known| known.type_ == condition.name());
        let since = before.filter(|known| known.status == status);
        all.push(NodeCondition {
            type_: condition.name().to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: since
                .and_then(|known| known.last_transition_time.clone())
                .or(Some(Time(now))),
            last_heartbeat_time: since
                .and_then(|known| known.last_heartbeat_time.clone())
                .or(Some(Time(now))),
        });
    }
    let is_ours = |name: &str| all.iter().any(|condition| condition.type_ == name);
    let others: Vec<NodeCondition> =
        known.conditions.iter().flatten().filter(|condition| !is_ours(&condition.type_)).cloned().collect();
    all.extend(others);
    all
}

impl Kubelet {
    /// Thousandths of processors that pods may be promised.
    pub(crate) fn allocatable_cpu_milli(&self) -> i64 {
        let kept = i64::try_from(self.parts.config.reserved_cpu_milli).unwrap_or(i64::MAX);
        machine::cpu_milli().saturating_sub(kept).max(0)
    }

    /// Memory that pods may be promised.
    pub(crate) fn allocatable_memory_bytes(&self) -> i64 {
        let config = &self.parts.config;
        let kept_mib = config.reserved_memory_mib.saturating_add(config.eviction_memory_mib);
        let kept = i64::try_from(kept_mib.saturating_mul(1 << 20)).unwrap_or(i64::MAX);
        self.machine_memory_bytes.saturating_sub(kept).max(0)
    }
}

fn ready(known: &NodeStatus, now: Timestamp) -> NodeCondition {
    let before = known
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready" && condition.status == "True");
    before.cloned().unwrap_or_else(|| NodeCondition {
        type_: "Ready".to_owned(),
        status: "True".to_owned(),
        reason: Some("KubeletReady".to_owned()),
        message: Some("kubelet is posting ready status".to_owned()),
        last_transition_time: Some(Time(now)),
        last_heartbeat_time: Some(Time(now)),
    })
}

/// The kubelet's HTTP paths, answered by function call.
pub(crate) fn door(kubelet: Arc<Kubelet>) -> NodeDoor {
    Arc::new(move |request| {
        let kubelet = Arc::clone(&kubelet);
        Box::pin(async move { answer(&kubelet, request).await })
    })
}

async fn answer(kubelet: &Arc<Kubelet>, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if let Some(answer) = kubelet.answer_usage(&parts).await {
        return answer;
    }
    let (verb, namespace, name, container) = match parts[..] {
        ["healthz"] => return Response::new(full("ok")),
        ["portForward", namespace, name] => ("portForward", namespace, name, ""),
        [verb @ ("containerLogs" | "exec" | "attach"), namespace, name, container] => {
            (verb, namespace, name, container)
        }
        _ => return status(StatusCode::NOT_FOUND, "NotFound", &format!("the kubelet has no path {path:?}")),
    };
    let Some(pod) = kubelet.pods.get(&client::Key::new(namespace, name)) else {
        return status(StatusCode::NOT_FOUND, "NotFound", &format!("pods {name:?} not found"));
    };
    let query = Query(pairs(request.uri().query().unwrap_or_default()));
    match verb {
        "exec" => programs::exec(kubelet, &pod, container, &query, request).await,
        "attach" => programs::attach(kubelet, &pod, container, &query, request).await,
        "portForward" => programs::port_forward(kubelet, &pod, &query, request),
        _ => log(kubelet, &pod, container, &query.0),
    }
}

/// The parameters of a request.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Every value of a parameter.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
    }

    /// Whether a parameter says yes.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.all(name).first().is_some_and(|value| value == "true" || value == "1")
    }
}

fn log(kubelet: &Arc<Kubelet>, pod: &Pod, container: &str, query: &[(String, String)]) -> Response<Body> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let get = |name: &str| query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let flag = |name: &str| get(name).is_some_and(|value| value == "true" || value == "1");
    let dir = kubelet.log_dir(pod).join(container);
    let Some(newest) = attempts(&dir).last().copied() else {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let state = waiting_reason(pod, container);
        let message = format!("container {container:?} in pod {name:?} is waiting to start: {state}");
        return status(StatusCode::BAD_REQUEST, "BadRequest", &message);
    };
    let attempt = if flag("previous") { newest.checked_sub(1) } else { Some(newest) };
    let path = attempt.map(|attempt| dir.join(format!("{attempt}.log"))).filter(|path| path.exists());
    let (Some(path), Some(attempt)) = (path, attempt) else {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        return status(
            StatusCode::BAD_REQUEST,
            "BadRequest",
            &format!("previous terminated container {container:?} in pod {name:?} not found"),
        );
    };
    let since_seconds = get("sinceSeconds")
        .and_then(|text| text.parse().ok())
        .map(|seconds| kubelet.parts.clock.now() - SignedDuration::from_secs(seconds));
    let wanted = logs::Wanted {
        follow: flag("follow") && attempt == newest,
        tail_lines: get("tailLines").and_then(|text| text.parse().ok()),
        since: since_seconds.or(get("sinceTime").and_then(|text| text.parse().ok())),
        timestamps: flag("timestamps"),
        limit_bytes: get("limitBytes").and_then(|text| text.parse().ok()),
    };
    let (to, from) = tokio::sync::mpsc::channel(4);
    let (kubelet, container) = (Arc::clone(kubelet), container.to_owned());
    let running = move || {
        let sandbox = kubelet.parts.runtime.sandbox(&uid);
        sandbox.is_some_and(|sandbox| {
            sandbox.containers.iter().any(|state| {
                state.name == container
                    && state.attempt == attempt
                    && matches!(state.phase, Phase::Running { .. })
            })
        })
    };
    tokio::spawn(logs::send(path, wanted, running, to));
    let frames = futures::stream::unfold(from, |mut from| async move {
        from.recv().await.map(|bytes: Bytes| (bytes, from))
    });
    let mut response =
        Response::new(StreamBody::new(frames.map(|bytes| Ok(Frame::data(bytes)))).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// The attempts of a container that have a log, oldest first.
fn attempts(dir: &std::path::Path) -> Vec<u32> {
    let names = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let mut attempts: Vec<u32> = names.filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect();
    attempts.sort_unstable();
    attempts
}

fn waiting_reason(pod: &Pod, container: &str) -> String {
    let statuses = pod.status.iter().flat_map(|status| {
        status.container_statuses.iter().chain(status.init_container_statuses.iter()).flatten()
    });
    let state = statuses
        .into_iter()
        .find(|status| status.name == container)
        .and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
    state.unwrap_or_else(|| "ContainerCreating".to_owned())
}

/// A Status object as an answer.
pub(crate) fn status(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "message": message, "code": code.as_u16() });
    let mut response = Response::new(full(body.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A query's pairs, decoded.
fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        let mut out = Vec::new();
        let mut bytes = spaced.bytes();
        while let Some(byte) = bytes.next() {
            let mut hex = || char::from(bytes.next()?).to_digit(16);
            match byte {
                b'%' => {
                    out.extend(hex().zip(hex()).and_then(|(high, low)| u8::try_from(high * 16 + low).ok()))
                }
                other => out.push(other),
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let pairs = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}
