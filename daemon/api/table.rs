//! Prints objects as rows: `meta.k8s.io/v1` Tables with the columns that users of kubectl know.
//!
//! Invariant: a kind's columns are rows of one table and its cells one function; both have the same length.
//! Invariant: ages are counted from the `now` that is given.

pub(crate) mod age;
mod network;
mod pod;
mod policy;
mod storage;
mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::custom::{self, Custom};
use crate::kinds::Kind;

/// What a row carries of its object beside the cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncludeObject {
    /// `includeObject=Metadata`, the default: a `PartialObjectMetadata`.
    Metadata,
    /// `includeObject=None`.
    None,
    /// `includeObject=Object`: all of it.
    Object,
}

/// The Table of these objects, which are as they are stored. `list_meta` becomes the table's metadata: resource version, continue token.
pub fn table(
    kind: &Kind,
    objects: &[&Value],
    now: Timestamp,
    include: IncludeObject,
    list_meta: Value,
) -> Value {
    if let Some(custom) = kind.custom() {
        return custom_table(kind, custom, objects, now, include, list_meta);
    }
    let view = view(kind.stored());
    let columns: Vec<Value> = view.columns.iter().map(Column::definition).collect();
    let rows: Vec<Value> = objects.iter().map(|object| row(kind, &view, object, now, include)).collect();
    json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta, "columnDefinitions": columns, "rows": rows })
}

fn custom_table(
    kind: &Kind,
    custom: &Custom,
    objects: &[&Value],
    now: Timestamp,
    include: IncludeObject,
    list_meta: Value,
) -> Value {
    let mut columns = vec![NAME.definition()];
    columns.extend(custom::columns(custom));
    let row = |object: &&Value| {
        let mut cells = vec![name(object)];
        cells.extend(custom::cells(custom, object, now));
        row_of(kind, cells, object, include)
    };
    let rows: Vec<Value> = objects.iter().map(row).collect();
    json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta, "columnDefinitions": columns, "rows": rows })
}

/// A column as kubectl shows it; wide ones have priority 1.
struct Column {
    name: &'static str,
    of: &'static str,
    format: &'static str,
    wide: bool,
}

type Cells = fn(&Value, Timestamp) -> Vec<Value>;

struct View {
    columns: &'static [Column],
    cells: Cells,
}

const NAME: Column = Column { name: "Name", of: "string", format: "name", wide: false };
const AGE: Column = text("Age");

const fn text(name: &'static str) -> Column {
    Column { name, of: "string", format: "", wide: false }
}

const fn wide(name: &'static str) -> Column {
    Column { name, of: "string", format: "", wide: true }
}

const fn number(name: &'static str) -> Column {
    Column { name, of: "integer", format: "", wide: false }
}

const fn flag(name: &'static str) -> Column {
    Column { name, of: "boolean", format: "", wide: false }
}

impl Column {
    fn definition(&self) -> Value {
        json!({ "name": self.name, "type": self.of, "format": self.format, "description": "", "priority": i32::from(self.wide) })
    }
}

fn view(kind: &Kind) -> View {
    let (columns, cells): (&'static [Column], Cells) = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "ConfigMap") => (const { &[NAME, number("Data"), AGE] }, config_map),
        ("", "Endpoints") => (network::ENDPOINTS, network::endpoints),
        ("", "Event") => (EVENT, event),
        ("", "LimitRange") => (policy::CREATED, policy::created),
        ("", "Namespace") => (const { &[NAME, text("Status"), AGE] }, namespace),
        ("", "Node") => (NODE, node),
        ("", "PersistentVolume") => (storage::VOLUME, storage::volume),
        ("", "PersistentVolumeClaim") => (storage::CLAIM, storage::claim),
        ("", "Pod") => (pod::COLUMNS, pod::cells),
        ("", "PodTemplate") => (workloads::POD_TEMPLATE, workloads::pod_template),
        ("", "ReplicationController") => (workloads::CONTROLLER, workloads::controller),
        ("", "ResourceQuota") => (policy::QUOTA, policy::quota),
        ("", "Secret") => (const { &[NAME, text("Type"), number("Data"), AGE] }, secret),
        ("", "Service") => (network::SERVICE, network::service),
        ("", "ServiceAccount") => (const { &[NAME, number("Secrets"), AGE] }, service_account),
        ("apiregistration.k8s.io", _) => (policy::API_SERVICE, policy::api_service),
        ("apps", "ControllerRevision") => (workloads::REVISION, workloads::revision),
        ("apps", "DaemonSet") => (workloads::DAEMON_SET, workloads::daemon_set),
        ("apps", "Deployment") => (workloads::DEPLOYMENT, workloads::deployment),
        ("apps", "ReplicaSet") => (workloads::REPLICA_SET, workloads::replica_set),
        ("apps", "StatefulSet") => (workloads::STATEFUL_SET, workloads::stateful_set),
        ("autoscaling", _) => (workloads::AUTOSCALER, workloads::autoscaler),
        ("batch", "CronJob") => (workloads::CRON_JOB, workloads::cron_job),
        ("batch", "Job") => (workloads::JOB, workloads::job),
        ("certificates.k8s.io", _) => (policy::SIGNING, policy::signing),
        ("coordination.k8s.io", "Lease") => (const { &[NAME, text("Holder"), AGE] }, lease),
        ("discovery.k8s.io", _) => (network::ENDPOINT_SLICE, network::endpoint_slice),
        ("networking.k8s.io", "Ingress") => (network::INGRESS, network::ingress),
        ("networking.k8s.io", "IngressClass") => (network::INGRESS_CLASS, network::ingress_class),
        ("networking.k8s.io", "NetworkPolicy") => (policy::NETWORK_POLICY, policy::network_policy),
        ("policy", _) => (policy::BUDGET, policy::budget),
        ("holdfast.dev", "Application") => (APPLICATION, application),
        (group, name) => return view_of_cluster(group, name),
    };
    View { columns, cells }
}

/// Kinds of the cluster that people look at more rarely.
fn view_of_cluster(group: &str, kind: &str) -> View {
    let (columns, cells): (&'static [Column], Cells) = match (group, kind) {
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            (policy::ADMISSION_POLICY, policy::admission_policy)
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            (policy::ADMISSION_BINDING, policy::admission_binding)
        }
        ("admissionregistration.k8s.io", _) => (policy::WEBHOOKS, policy::webhooks),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => (policy::CREATED, policy::created),
        ("node.k8s.io", "RuntimeClass") => (policy::RUNTIME, policy::runtime),
        ("rbac.authorization.k8s.io", "ClusterRole" | "Role") => (policy::CREATED, policy::created),
        ("rbac.authorization.k8s.io", _) => (policy::BINDING, policy::binding),
        ("scheduling.k8s.io", "PriorityClass") => (policy::PRIORITY, policy::priority),
        ("storage.k8s.io", "CSIDriver") => (storage::CSI_DRIVER, storage::csi_driver),
        ("storage.k8s.io", "CSINode") => (storage::CSI_NODE, storage::csi_node),
        ("storage.k8s.io", "CSIStorageCapacity") => (storage::CAPACITY, storage::capacity),
        ("storage.k8s.io", "StorageClass") => (storage::CLASS, storage::class),
        ("storage.k8s.io", "VolumeAttachment") => (storage::ATTACHMENT, storage::attachment),
        _ => (const { &[NAME, AGE] }, |object, now| vec![name(object), age_of(object, now)]),
    };
    View { columns, cells }
}

fn row(kind: &Kind, view: &View, object: &Value, now: Timestamp, include: IncludeObject) -> Value {
    row_of(kind, (view.cells)(object, now), object, include)
}

fn row_of(kind: &Kind, cells: Vec<Value>, object: &Value, include: IncludeObject) -> Value {
    match include {
        IncludeObject::None => json!({ "cells": cells }),
        IncludeObject::Object => {
            json!({ "cells": cells, "object": crate::convert::from_stored(kind, object.clone()) })
        }
        IncludeObject::Metadata => json!({ "cells": cells, "object": {
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] } }),
    }
}

const NODE: &[Column] = &[
    NAME,
    text("Status"),
    text("Roles"),
    AGE,
    text("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];

fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = condition(object, "Ready");
    let mut status = vec![match ready {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if object["spec"]["unschedulable"] == true {
        status.push("SchedulingDisabled");
    }
    let labels = object["metadata"]["labels"].as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            _ => value.as_str().filter(|role| key == "kubernetes.io/role" && !role.is_empty()),
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let of_system = &object["status"]["nodeInfo"];
    let known = |name: &str| or(string(&of_system[name]), "<unknown>");
    vec![
        name(object),
        status.join(",").into(),
        or(&roles.join(","), "<none>"),
        age_of(object, now),
        of_system["kubeletVersion"].as_str().unwrap_or_default().into(),
        or(address(object, "InternalIP"), "<none>"),
        or(address(object, "ExternalIP"), "<none>"),
        known("osImage"),
        known("kernelVersion"),
        known("containerRuntimeVersion"),
    ]
}

fn address<'a>(node: &'a Value, of_type: &str) -> &'a str {
    let addresses = items(&node["status"]["addresses"]);
    addresses
        .iter()
        .find(|address| address["type"] == of_type)
        .map_or("", |address| string(&address["address"]))
}

const EVENT: &[Column] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    Column { name: "Count", of: "integer", format: "", wide: true },
    Column { name: "Name", of: "string", format: "name", wide: true },
];

fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let first = [&object["firstTimestamp"], &object["eventTime"]].into_iter().find(|time| time.is_string());
    let last = [&object["series"]["lastObservedTime"], &object["lastTimestamp"]]
        .into_iter()
        .find(|time| time.is_string());
    let count = object["series"]["count"]
        .as_i64()
        .or(object["count"].as_i64())
        .filter(|count| *count > 0)
        .unwrap_or(1);
    let about = &object["involvedObject"];
    let (component, host) = (string(&object["source"]["component"]), string(&object["source"]["host"]));
    let component = if component.is_empty() { string(&object["reportingComponent"]) } else { component };
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    vec![
        age::since(last.or(first).unwrap_or(&Value::Null), now).into(),
        object["type"].as_str().unwrap_or_default().into(),
        object["reason"].as_str().unwrap_or_default().into(),
        format!("{}/{}", string(&about["kind"]).to_lowercase(), string(&about["name"])).into(),
        string(&about["fieldPath"]).into(),
        source.into(),
        string(&object["message"]).trim().into(),
        age::since(first.or(last).unwrap_or(&Value::Null), now).into(),
        count.into(),
        name(object),
    ]
}

const APPLICATION: &[Column] =
    &[NAME, text("Source"), text("Revision"), text("Sync"), text("Health"), AGE, wide("Message")];

fn application(object: &Value, now: Timestamp) -> Vec<Value> {
    let (source, status) = (&object["spec"]["source"], &object["status"]);
    let location = if source["git"].is_string() { string(&source["git"]) } else { string(&source["dir"]) };
    let revision = string(&status["sync"]["revision"]);
    let short = if revision.len() == 40 && revision.is_ascii() { &revision[..7] } else { revision };
    let message = [&status["health"]["message"], &status["sync"]["message"]]
        .into_iter()
        .map(string)
        .find(|text| !text.is_empty());
    vec![
        name(object),
        location.into(),
        or(short, "<none>"),
        or(string(&status["sync"]["state"]), "Unknown"),
        or(string(&status["health"]["code"]), "Unknown"),
        age_of(object, now),
        message.unwrap_or_default().into(),
    ]
}

fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = keys(&object["data"]) + keys(&object["binaryData"]);
    vec![name(object), count.into(), age_of(object, now)]
}

fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), string(&object["type"]).into(), keys(&object["data"]).into(), age_of(object, now)]
}

fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), items(&object["secrets"]).len().into(), age_of(object, now)]
}

fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), string(&object["status"]["phase"]).into(), age_of(object, now)]
}

fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), string(&object["spec"]["holderIdentity"]).into(), age_of(object, now)]
}

fn name(object: &Value) -> Value {
    object["metadata"]["name"].as_str().unwrap_or_default().into()
}

fn age_of(object: &Value, now: Timestamp) -> Value {
    age::since(&object["metadata"]["creationTimestamp"], now).into()
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn or(text: &str, otherwise: &str) -> Value {
    if text.is_empty() { otherwise.into() } else { text.into() }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn keys(value: &Value) -> usize {
    value.as_object().map_or(0, serde_json::Map::len)
}

fn boolean(value: &Value) -> Value {
    value.as_bool().unwrap_or(false).into()
}

/// Whether an annotation makes this class the one that is taken when none is named.
fn is_default_class(class: &Value, annotation: &str) -> bool {
    class["metadata"]["annotations"][annotation] == "true"
}

fn count(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// The status of a condition.
fn condition<'a>(object: &'a Value, of_type: &str) -> Option<&'a str> {
    items(&object["status"]["conditions"]).iter().find(|one| one["type"] == of_type)?["status"].as_str()
}

/// `a=1,b in (x,y)`: a LabelSelector as kubectl prints it; `<none>` when it is empty.
fn selector(selector: &Value) -> Value {
    let mut terms: Vec<String> = pairs(&selector["matchLabels"]);
    for term in items(&selector["matchExpressions"]) {
        let key = string(&term["key"]);
        let mut values: Vec<&str> = items(&term["values"]).iter().map(string).collect();
        values.sort_unstable();
        let values = values.join(",");
        terms.push(match string(&term["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    or(&terms.join(","), "<none>")
}

/// `a=1` of each entry, sorted.
fn pairs(map: &Value) -> Vec<String> {
    let mut pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", string(value)))
        .collect();
    pairs.sort_unstable();
    pairs
}

#[cfg(test)]
mod tests;
