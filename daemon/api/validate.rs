//! Judges whole objects as Kubernetes does: every cause of a 422 with its field path, at create and at update.
//!
//! Invariant: judges what `schema::check_fields` has passed and `schema::defaults` has filled; wrong types are not looked for here.
//! Invariant: all causes are collected, never only the first; wording is Kubernetes' own.

mod admission;
mod cron;
mod meta;
mod names;
mod network;
mod pod;
mod policy;
mod probes;
mod resources;
mod storage;
mod update;
mod volumes;
mod workloads;

use base64::Engine as _;
use serde_json::Value;

use crate::custom;
use crate::kinds::Kind;
use crate::schema::Defect;

pub use admission::OF_MUTATION;

/// What is wrong with an object about to be created.
pub fn create(kind: &Kind, object: &Value) -> Vec<Defect> {
    if let Some(custom) = kind.custom() {
        return custom::create(kind, custom, object);
    }
    let mut found = Found::default();
    meta::object(kind, &object["metadata"], &mut found);
    body(kind, object, None, &mut found);
    if kind.group.is_empty() && kind.kind == "Pod" {
        pod::created(object, &mut found);
    }
    found.defects
}

/// What is wrong with an object about to replace `old`: all that [`create`] looks for, and fields that may not change.
pub fn update(kind: &Kind, new: &Value, old: &Value) -> Vec<Defect> {
    update_through(kind, None, new, old)
}

/// The same of a write through a subresource, which may change what the object itself may not.
pub fn update_through(kind: &Kind, subresource: Option<&str>, new: &Value, old: &Value) -> Vec<Defect> {
    if let Some(custom) = kind.custom() {
        return custom::update(kind, custom, new, old);
    }
    let mut found = Found::default();
    meta::object(kind, &new["metadata"], &mut found);
    meta::update(&new["metadata"], &old["metadata"], &mut found);
    body(kind, new, Some(old), &mut found);
    update::immutable(kind, subresource, new, old, &mut found);
    found.defects
}

/// What is wrong with the metadata of an object of a kind that users define.
pub(crate) fn metadata(kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<Defect> {
    let mut found = Found::default();
    meta::object(kind, &object["metadata"], &mut found);
    if let Some(old) = old {
        meta::update(&object["metadata"], &old["metadata"], &mut found);
    }
    found.defects
}

fn body(kind: &Kind, object: &Value, old: Option<&Value>, found: &mut Found) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "ConfigMap") => config_map(object, found),
        ("", "Secret") => secret(object, found),
        ("", "Event") => event(object, found),
        ("", "Node") => node(object, found),
        // A running pod was judged when it came; the rest of its spec cannot change (see `update`).
        ("", "Pod") if old.is_none_or(|old| old["spec"] != object["spec"]) => pod::pod(object, found),
        ("", "Service") => network::service(object, found),
        ("", "Endpoints") => network::endpoints(object, found),
        ("", "LimitRange") => policy::limit_range(object, found),
        ("", "PersistentVolume") => storage::volume(object, found),
        ("", "PersistentVolumeClaim") => storage::claim(object, found),
        ("", "PodTemplate") => workloads::pod_template(object, found),
        ("", "ReplicationController") => workloads::replication_controller(object, found),
        ("", "ResourceQuota") => policy::quota(object, old, found),
        ("apps", "ControllerRevision") => workloads::revision(object, found),
        ("apps", "DaemonSet") => workloads::daemon_set(object, found),
        ("apps", "StatefulSet") => workloads::stateful_set(object, found),
        ("batch", "CronJob") => workloads::cron_job(object, found),
        ("autoscaling", _) => workloads::autoscaler(object, found),
        ("apps", "Deployment") => workloads::deployment(object, found),
        ("apps", "ReplicaSet") => workloads::replica_set(object, found),
        ("batch", "Job") => workloads::job(object, old, found),
        ("coordination.k8s.io", "Lease") => lease(object, found),
        ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice(object, found),
        ("networking.k8s.io", "Ingress") => network::ingress(object, found),
        ("networking.k8s.io", "IngressClass") => network::ingress_class(object, found),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            found.defects.extend(custom::definition::check(object, old));
        }
        ("holdfast.dev", "Application") => application(object, found),
        (group, name) => body_of_policy(group, name, object, old, found),
    }
}

fn body_of_policy(group: &str, kind: &str, object: &Value, old: Option<&Value>, found: &mut Found) {
    match (group, kind) {
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => admission::policy(object, found),
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => admission::mutation(object, found),
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding") => {
            admission::bound(object, found);
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            admission::binding(object, found);
        }
        (
            "admissionregistration.k8s.io",
            "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration",
        ) => {
            admission::webhooks(object, found);
        }
        ("networking.k8s.io", "NetworkPolicy") => policy::network_policy(object, found),
        ("node.k8s.io", "RuntimeClass") => policy::runtime(object, found),
        ("policy", "PodDisruptionBudget") => policy::budget(object, found),
        ("rbac.authorization.k8s.io", "Role") => policy::role(object, false, found),
        ("rbac.authorization.k8s.io", "ClusterRole") => policy::role(object, true, found),
        ("rbac.authorization.k8s.io", "RoleBinding") => policy::binding(object, false, found),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => policy::binding(object, true, found),
        ("scheduling.k8s.io", "PriorityClass") => policy::priority(object, old, found),
        ("storage.k8s.io", "CSIDriver") => storage::csi_driver(object, found),
        ("storage.k8s.io", "CSINode") => storage::csi_node(object, found),
        ("storage.k8s.io", "CSIStorageCapacity") => storage::capacity(object, found),
        ("storage.k8s.io", "StorageClass") => storage::class(object, found),
        ("storage.k8s.io", "VolumeAttachment") => storage::attachment(object, found),
        _ => {}
    }
}

/// What was found so far.
#[derive(Default)]
struct Found {
    defects: Vec<Defect>,
}

impl Found {
    fn add(&mut self, defect: Defect) {
        self.defects.push(defect);
    }

    /// `Required value` when the text is absent or empty; else the text.
    fn required<'a>(&mut self, value: &'a Value, path: &str) -> Option<&'a str> {
        let text = value.as_str().filter(|text| !text.is_empty());
        if text.is_none() {
            self.add(Defect::required(path, ""));
        }
        text
    }

    /// `Unsupported value` when a present text is none of those.
    fn one_of(&mut self, value: &Value, path: &str, supported: &[&str]) {
        if let Some(text) = value.as_str()
            && !supported.contains(&text)
        {
            self.add(Defect::not_supported(path, value, supported));
        }
    }

    /// `must be greater than or equal to 0` when a present number is negative.
    fn non_negative(&mut self, value: &Value, path: &str) {
        self.at_least(value, path, 0);
    }

    fn at_least(&mut self, value: &Value, path: &str, least: i64) {
        if value.as_i64().is_some_and(|number| number < least) {
            self.add(Defect::invalid(path, value, &format!("must be greater than or equal to {least}")));
        }
    }

    /// Each rule broken by a text, as `Invalid value`.
    fn rules(&mut self, value: &Value, path: &str, broken: Vec<String>) {
        for rule in broken {
            self.add(Defect::invalid(path, value, &rule));
        }
    }
}

/// The items of a list; none when it is absent.
fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The entries of a map; none when it is absent.
fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The most bytes that the values of a ConfigMap or Secret may have together.
const MAX_CONTENT_BYTES: usize = 1024 * 1024;

fn config_map(object: &Value, found: &mut Found) {
    let mut bytes = 0;
    for (key, value) in entries(&object["data"]) {
        found.rules(&key.as_str().into(), &format!("data[{key}]"), names::config_key(key));
        if !object["binaryData"][key].is_null() {
            let why = "duplicate of key present in binaryData";
            found.add(Defect::invalid(format!("data[{key}]"), &key.as_str().into(), why));
        }
        bytes += text(value).len();
    }
    for (key, value) in entries(&object["binaryData"]) {
        found.rules(&key.as_str().into(), &format!("binaryData[{key}]"), names::config_key(key));
        bytes += decoded_bytes(value);
    }
    if bytes > MAX_CONTENT_BYTES {
        found.add(Defect::too_long("", MAX_CONTENT_BYTES));
    }
}

fn secret(object: &Value, found: &mut Found) {
    let mut bytes = 0;
    for (key, value) in entries(&object["data"]) {
        found.rules(&key.as_str().into(), &format!("data[{key}]"), names::config_key(key));
        bytes += decoded_bytes(value);
    }
    if bytes > MAX_CONTENT_BYTES {
        found.add(Defect::too_long("data", MAX_CONTENT_BYTES));
    }
    let wanted: &[&str] = match text(&object["type"]) {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for key in wanted {
        let Some(value) = object["data"].get(key) else {
            found.add(Defect::required(format!("data[{key}]"), ""));
            continue;
        };
        if key.starts_with(".docker") && !is_base64_json(value) {
            found.add(Defect::invalid(
                format!("data[{key}]"),
                &"<secret contents redacted>".into(),
                "invalid character",
            ));
        }
    }
    if object["type"] == "kubernetes.io/service-account-token" {
        let path = "metadata.annotations[kubernetes.io/service-account.name]";
        found.required(&object["metadata"]["annotations"]["kubernetes.io/service-account.name"], path);
    }
    if object["type"] == "kubernetes.io/basic-auth"
        && object["data"].get("username").is_none()
        && object["data"].get("password").is_none()
    {
        found.add(Defect::required("data[username]", ""));
        found.add(Defect::required("data[password]", ""));
    }
}

fn decoded_bytes(base64: &Value) -> usize {
    text(base64).len() / 4 * 3
}

fn is_base64_json(value: &Value) -> bool {
    base64::engine::general_purpose::STANDARD
        .decode(text(value))
        .is_ok_and(|bytes| serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok())
}

/// An event lives in the namespace of what it is about; events about cluster-scoped objects in `default` (`ValidateEvent`).
fn event(object: &Value, found: &mut Found) {
    let (own, about) = (text(&object["metadata"]["namespace"]), &object["involvedObject"]["namespace"]);
    let about_text = text(about);
    let fits =
        if about_text.is_empty() { matches!(own, "" | "default" | "kube-system") } else { own == about_text };
    if !fits {
        found.add(Defect::invalid(
            "involvedObject.namespace",
            &about_text.into(),
            "does not match event.namespace",
        ));
    }
}

fn node(object: &Value, found: &mut Found) {
    for (index, taint) in items(&object["spec"]["taints"]).iter().enumerate() {
        let path = format!("spec.taints[{index}]");
        found.rules(&taint["key"], &format!("{path}.key"), names::qualified(text(&taint["key"])));
        found.rules(&taint["value"], &format!("{path}.value"), names::label_value(text(&taint["value"])));
        if found.required(&taint["effect"], &format!("{path}.effect")).is_some() {
            found.one_of(
                &taint["effect"],
                &format!("{path}.effect"),
                &["NoExecute", "NoSchedule", "PreferNoSchedule"],
            );
        }
    }
    for list in ["capacity", "allocatable"] {
        resources::amounts(&object["status"][list], &format!("status.{list}"), found);
    }
}

fn lease(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|seconds| seconds <= 0) {
        found.add(Defect::invalid(
            "spec.leaseDurationSeconds",
            &spec["leaseDurationSeconds"],
            "must be greater than 0",
        ));
    }
    if spec["leaseTransitions"].as_i64().is_some_and(|count| count < 0) {
        found.add(Defect::invalid(
            "spec.leaseTransitions",
            &spec["leaseTransitions"],
            "must be greater than or equal to 0",
        ));
    }
    if spec["holderIdentity"] == "" {
        found.add(Defect::invalid("spec.holderIdentity", &spec["holderIdentity"], "must not be empty"));
    }
}

fn application(object: &Value, found: &mut Found) {
    let source = &object["spec"]["source"];
    match (text(&source["dir"]), text(&source["git"])) {
        ("", "") => found.add(Defect::required("spec.source", "one of `dir` and `git` is needed")),
        ("", _) => {}
        (_, "") if !source["ref"].is_null() => {
            found.add(Defect::forbidden("spec.source.ref", "a directory has no ref; use `git`"));
        }
        (_, "") => {}
        _ => found.add(Defect::forbidden("spec.source.dir", "may not be set together with `git`")),
    }
    if source["pollSeconds"].as_i64().is_some_and(|seconds| seconds <= 0) {
        found.add(Defect::invalid(
            "spec.source.pollSeconds",
            &source["pollSeconds"],
            "must be greater than 0",
        ));
    }
}

#[cfg(test)]
mod tests;
