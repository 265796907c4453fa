//! Fills in what Kubernetes' defaulting functions fill in, for every served kind.
//!
//! Invariant: what is set is never overridden, and defaulting twice is defaulting once.
//! Invariant: one function per Kubernetes `SetDefaults_…`, in the same order, on the versioned JSON form.

mod policy;
mod storage;
mod workloads;

use serde_json::{Map, Value, json};

use super::{Object, Shape, TypeRef, root};
use crate::kinds::Kind;

type Fields = Map<String, Value>;

/// See [`super::defaults`].
pub(super) fn apply(kind: &Kind, object: &mut Value) {
    let Value::Object(map) = object else { return };
    set(map, "apiVersion", || kind.api_version().into());
    set(map, "kind", || kind.kind.clone().into());
    set(map, "metadata", || json!({}));
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Namespace") => namespace(map),
        ("", "Node") => node(map),
        ("", "Pod") => pod(map),
        ("", "Secret") => secret(map),
        ("", "Service") => service(map),
        ("apps", "Deployment") => deployment(map),
        ("apps", "ReplicaSet") => replica_set(map),
        ("batch", "Job") => job(map),
        ("", "Endpoints") => each(map, "subsets", |subset| each(subset, "ports", protocol)),
        ("", "LimitRange") => policy::limit_range(map),
        ("", "PersistentVolume") => storage::volume(map),
        ("", "PersistentVolumeClaim") => storage::claim(map),
        ("", "PodTemplate") => template(map),
        ("", "ReplicationController") => workloads::replication_controller(map),
        ("apps", "DaemonSet") => workloads::daemon_set(map),
        ("apps", "StatefulSet") => workloads::stateful_set(map),
        ("batch", "CronJob") => workloads::cron_job(map),
        ("autoscaling", "HorizontalPodAutoscaler") => workloads::autoscaler(kind, map),
        ("admissionregistration.k8s.io", _) => policy::admission(kind, map),
        ("apiregistration.k8s.io", "APIService") => policy::api_service(map),
        ("networking.k8s.io", "NetworkPolicy") => policy::network_policy(map),
        ("rbac.authorization.k8s.io", _) => policy::roles(map),
        ("scheduling.k8s.io", "PriorityClass") => policy::priority_class(map),
        ("storage.k8s.io", "CSIDriver") => storage::driver(map),
        ("storage.k8s.io", "StorageClass") => storage::class(map),
        ("discovery.k8s.io", "EndpointSlice") => each(map, "ports", |port| {
            set(port, "name", || "".into());
            protocol(port);
        }),
        ("networking.k8s.io", "IngressClass") => {
            if let Some(parameters) = child(map, "spec").and_then(|spec| child(spec, "parameters")) {
                set(parameters, "scope", || "Cluster".into());
            }
        }
        _ => {}
    }
    from_schema(root(kind), map);
}

/// The defaults that the schema table itself carries. `""`, `0` and `{}` there mean "no pointer in Go", so only the
/// top level's `spec` and `status` structs are made visible by them, as Go's encoder does.
fn from_schema(root: &'static Object, map: &mut Fields) {
    for field in &root.fields {
        if matches!(field.name, "spec" | "status") && field.default.is_some() {
            set(map, field.name, || json!({}));
        }
    }
    schema_object(root, map);
    if let (Some(field), Some(status)) = (root.field("status"), map.get_mut("status")) {
        zeros(field.of, status);
    }
}

/// Go writes what is no pointer and not `omitempty` even when it is zero, and client libraries count on finding it: the
/// counts of a status that no controller has touched yet.
fn zeros(of: TypeRef, value: &mut Value) {
    match (of.shape(), value) {
        (Shape::Object(object), Value::Object(map)) => {
            for field in object.fields.iter() {
                if let (true, Some(default)) = (field.required, &field.default)
                    && !default.is_object()
                {
                    set(map, field.name, || default.clone());
                }
                if let Some(value) = map.get_mut(field.name) {
                    zeros(field.of, value);
                }
            }
        }
        (Shape::Array(inner), Value::Array(items)) => items.iter_mut().for_each(|item| zeros(inner, item)),
        _ => {}
    }
}

fn schema_object(of: &'static Object, map: &mut Fields) {
    for field in &of.fields {
        if let Some(default) = field.default.as_ref().filter(|value| !is_zero(value)) {
            set(map, field.name, || default.clone());
        }
        if let Some(value) = map.get_mut(field.name) {
            schema_value(field.of, value);
        }
    }
}

fn schema_value(of: TypeRef, value: &mut Value) {
    match (of.shape(), value) {
        (Shape::Object(object), Value::Object(map)) => schema_object(object, map),
        (Shape::Array(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| schema_value(inner, item))
        }
        (Shape::Map(inner), Value::Object(map)) => {
            map.values_mut().for_each(|item| schema_value(inner, item))
        }
        _ => {}
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn namespace(map: &mut Fields) {
    let name = map["metadata"]["name"].clone();
    let deleting = !map["metadata"]["deletionTimestamp"].is_null();
    if let (Value::String(_), Some(metadata)) = (&name, child(map, "metadata")) {
        set(made(metadata, "labels"), "kubernetes.io/metadata.name", || name);
    }
    let spec = made(map, "spec");
    if !deleting {
        set(spec, "finalizers", || json!(["kubernetes"]));
    }
    set(made(map, "status"), "phase", || "Active".into());
}

fn node(map: &mut Fields) {
    let capacity = map.get("status").and_then(|status| status.get("capacity")).cloned();
    if let (Some(capacity), Some(status)) = (capacity, child(map, "status")) {
        set(status, "allocatable", || capacity);
    }
}

/// `stringData` is write-only: it is merged into `data` and never stored.
fn secret(map: &mut Fields) {
    use base64::Engine as _;
    set(map, "type", || "Opaque".into());
    if let Some(Value::Object(plain)) = map.remove("stringData") {
        let data = made(map, "data");
        for (key, value) in plain {
            let text = value.as_str().unwrap_or_default();
            data.insert(key, base64::engine::general_purpose::STANDARD.encode(text).into());
        }
    }
}

fn service(map: &mut Fields) {
    let spec = made(map, "spec");
    set(spec, "sessionAffinity", || "None".into());
    if text(spec, "sessionAffinity") == "ClientIP" {
        let client_ip = made(made(spec, "sessionAffinityConfig"), "clientIP");
        set(client_ip, "timeoutSeconds", || 10800.into());
    } else {
        spec.remove("sessionAffinityConfig");
    }
    set(spec, "type", || "ClusterIP".into());
    each(spec, "ports", |port| {
        set(port, "protocol", || "TCP".into());
        if matches!(port.get("targetPort"), Some(Value::Number(n)) if n.as_i64() == Some(0))
            || text(port, "targetPort").is_empty() && port.get("targetPort").is_some_and(Value::is_string)
        {
            port.remove("targetPort");
        }
        if let Some(number) = port.get("port").cloned() {
            set(port, "targetPort", || number);
        }
    });
    let of_type = text(spec, "type").to_owned();
    let external_ips = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    if matches!(of_type.as_str(), "NodePort" | "LoadBalancer") || of_type == "ClusterIP" && external_ips {
        set(spec, "externalTrafficPolicy", || "Cluster".into());
    }
    if of_type == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", || true.into());
    }
    if of_type != "ExternalName" {
        set(spec, "internalTrafficPolicy", || "Cluster".into());
        set(spec, "ipFamilies", || json!(["IPv4"]));
        set(spec, "ipFamilyPolicy", || "SingleStack".into());
        if let Some(ip) = spec.get("clusterIP").filter(|ip| **ip != "").cloned() {
            set(spec, "clusterIPs", || json!([ip]));
        }
    }
    set(made(map, "status"), "loadBalancer", || json!({}));
}

fn deployment(map: &mut Fields) {
    let spec = made(map, "spec");
    set(spec, "replicas", || 1.into());
    let strategy = made(spec, "strategy");
    set(strategy, "type", || "RollingUpdate".into());
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = made(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", || "25%".into());
        set(rolling, "maxSurge", || "25%".into());
    }
    set(spec, "revisionHistoryLimit", || 10.into());
    set(spec, "progressDeadlineSeconds", || 600.into());
    template(spec);
}

fn replica_set(map: &mut Fields) {
    let spec = made(map, "spec");
    set(spec, "replicas", || 1.into());
    template(spec);
}

fn job(map: &mut Fields) {
    job_selector(map);
    let labels = map.get("spec").map(|spec| spec["template"]["metadata"]["labels"].clone());
    if let (Some(Value::Object(labels)), Some(metadata)) = (labels, child(map, "metadata"))
        && !labels.is_empty()
    {
        set(metadata, "labels", || labels.into());
    }
    let spec = made(map, "spec");
    // A job that says neither runs one pod; one that says only its parallelism is a work queue.
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        spec.insert("completions".into(), 1.into());
    }
    set(spec, "parallelism", || 1.into());
    let limit = if spec.contains_key("backoffLimitPerIndex") { i32::MAX } else { 6 };
    set(spec, "backoffLimit", || limit.into());
    set(spec, "completionMode", || "NonIndexed".into());
    set(spec, "suspend", || false.into());
    let replacement = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    set(spec, "podReplacementPolicy", || replacement.into());
    if let Some(policy) = child(spec, "podFailurePolicy") {
        each(policy, "rules", |rule| {
            each(rule, "onPodConditions", |condition| set(condition, "status", || "True".into()))
        });
    }
    template(spec);
}

/// A job selects its pods by its own uid, unless told otherwise (`generateSelector` of the job strategy). It is done
/// here because the job's own labels default to its template's, these among them.
fn job_selector(map: &mut Fields) {
    let (uid, name) = (map["metadata"]["uid"].clone(), map["metadata"]["name"].clone());
    let spec = made(map, "spec");
    if spec.get("manualSelector") == Some(&Value::Bool(true)) || !uid.is_string() || !name.is_string() {
        return;
    }
    let chosen = made(made(spec, "selector"), "matchLabels");
    set(chosen, "batch.kubernetes.io/controller-uid", || uid.clone());
    let labels = made(made(made(spec, "template"), "metadata"), "labels");
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        set(labels, key, || value.clone());
    }
}

fn pod(map: &mut Fields) {
    let spec = made(map, "spec");
    set(spec, "enableServiceLinks", || true.into());
    for list in ["initContainers", "containers"] {
        each(spec, list, requests_from_limits);
    }
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for list in ["initContainers", "containers"] {
            each(spec, list, |container| each(container, "ports", host_port));
        }
    }
    pod_spec(spec);
}

fn host_port(port: &mut Fields) {
    if let Some(number) = port.get("containerPort").cloned() {
        set(port, "hostPort", || number);
    }
}

fn requests_from_limits(container: &mut Fields) {
    let Some(resources) = child(container, "resources") else { return };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    let requests = made(resources, "requests");
    for (name, limit) in limits {
        set(requests, &name, || limit);
    }
}

fn template(spec: &mut Fields) {
    let template = made(spec, "template");
    set(template, "metadata", || json!({}));
    pod_spec(made(template, "spec"));
}

fn pod_spec(spec: &mut Fields) {
    set(spec, "dnsPolicy", || "ClusterFirst".into());
    set(spec, "restartPolicy", || "Always".into());
    set(spec, "securityContext", || json!({}));
    set(spec, "terminationGracePeriodSeconds", || 30.into());
    set(spec, "schedulerName", || "default-scheduler".into());
    // The old alias and the field are always served as one.
    if let Some(account) = spec.get("serviceAccountName").or(spec.get("serviceAccount")).cloned() {
        spec.insert("serviceAccountName".into(), account.clone());
        spec.insert("serviceAccount".into(), account);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        each(spec, list, container);
    }
    each(spec, "volumes", volume);
}

fn container(container: &mut Fields) {
    let policy = pull_policy(text(container, "image"));
    set(container, "imagePullPolicy", || policy.into());
    set(container, "terminationMessagePath", || "/dev/termination-log".into());
    set(container, "terminationMessagePolicy", || "File".into());
    set(container, "resources", || json!({}));
    each(container, "ports", protocol);
    each(container, "env", |variable| {
        if let Some(field) = child(variable, "valueFrom").and_then(|from| child(from, "fieldRef")) {
            set(field, "apiVersion", || "v1".into());
        }
    });
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(container, name) {
            set(probe, "timeoutSeconds", || 1.into());
            set(probe, "periodSeconds", || 10.into());
            set(probe, "successThreshold", || 1.into());
            set(probe, "failureThreshold", || 3.into());
            action(probe);
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(hook) = child(lifecycle, name) {
                action(hook);
            }
        }
    }
}

fn action(of: &mut Fields) {
    if let Some(get) = child(of, "httpGet") {
        set(get, "path", || "/".into());
        set(get, "scheme", || "HTTP".into());
    }
    if let Some(grpc) = child(of, "grpc") {
        set(grpc, "service", || "".into());
    }
}

/// `Always` for the tag `latest` and for an image with neither tag nor digest, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn volume(volume: &mut Fields) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    for name in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = child(volume, name) {
            set(source, "defaultMode", || 420.into());
            each(source, "items", downward_item);
            each(source, "sources", |source| {
                if let Some(token) = child(source, "serviceAccountToken") {
                    set(token, "expirationSeconds", || 3600.into());
                }
                if let Some(downward) = child(source, "downwardAPI") {
                    each(downward, "items", downward_item);
                }
            });
        }
    }
    if let Some(host) = child(volume, "hostPath") {
        set(host, "type", || "".into());
    }
    if let Some(image) = child(volume, "image") {
        let policy = pull_policy(text(image, "reference"));
        set(image, "pullPolicy", || policy.into());
    }
    if let Some(claim) = child(volume, "ephemeral").and_then(|source| child(source, "volumeClaimTemplate")) {
        set(made(claim, "spec"), "volumeMode", || "Filesystem".into());
    }
}

fn protocol(port: &mut Fields) {
    set(port, "protocol", || "TCP".into());
}

fn downward_item(item: &mut Fields) {
    if let Some(field) = child(item, "fieldRef") {
        set(field, "apiVersion", || "v1".into());
    }
}

/// Sets a field that is absent or null.
fn set(map: &mut Fields, name: &str, value: impl FnOnce() -> Value) {
    match map.get_mut(name) {
        Some(Value::Null) | None => {
            map.insert(name.to_owned(), value());
        }
        Some(_) => {}
    }
}

/// The struct in a field, when there is one.
fn child<'a>(map: &'a mut Fields, name: &str) -> Option<&'a mut Fields> {
    map.get_mut(name)?.as_object_mut()
}

/// The struct in a field, made when absent. A value of another type, which validation refuses, is left alone.
fn made<'a>(map: &'a mut Fields, name: &str) -> &'a mut Fields {
    let slot = map.entry(name).or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    slot.as_object_mut().expect("it was made an object")
}

fn each(map: &mut Fields, name: &str, mut visit: impl FnMut(&mut Fields)) {
    if let Some(Value::Array(items)) = map.get_mut(name) {
        items.iter_mut().filter_map(Value::as_object_mut).for_each(&mut visit);
    }
}

fn text<'a>(map: &'a Fields, name: &str) -> &'a str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_kind;

    /// The object with its defaults, after checking that defaulting again changes nothing.
    fn defaulted(mut object: Value) -> Value {
        let word = |name: &str| object[name].as_str().map(str::to_owned).expect("a kind");
        let kind = by_kind(&word("apiVersion"), &word("kind")).expect("served");
        apply(kind, &mut object);
        let once = object.clone();
        apply(kind, &mut object);
        assert_eq!(object, once, "defaulting twice is once");
        assert_eq!(crate::schema::check_fields(kind, &once), [], "defaults are fields of the schema");
        once
    }

    #[track_caller]
    fn check(object: Value, pointer: &str, wanted: Value) {
        let found = defaulted(object);
        assert_eq!(found.pointer(pointer).unwrap_or(&Value::Null), &wanted, "{pointer}");
    }

    #[test]
    fn a_deployment_gets_what_kubernetes_documents() {
        let deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" }, "spec": {
            "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{
                "name": "web", "image": "kubia:1", "ports": [{ "containerPort": 8080 }],
                "readinessProbe": { "httpGet": { "port": 8080 } } }],
                "volumes": [{ "name": "config", "configMap": { "name": "web" } }, { "name": "scratch" }] } } } });
        assert_eq!(
            defaulted(deployment),
            json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" }, "spec": {
                "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } },
                "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } }, "spec": {
                    "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                    "securityContext": {}, "terminationGracePeriodSeconds": 30,
                    "containers": [{ "name": "web", "image": "kubia:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                        "ports": [{ "containerPort": 8080, "protocol": "TCP" }],
                        "readinessProbe": { "httpGet": { "port": 8080, "path": "/", "scheme": "HTTP" }, "timeoutSeconds": 1,
                            "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 },
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File" }],
                    "volumes": [{ "name": "config", "configMap": { "name": "web", "defaultMode": 420 } },
                        { "name": "scratch", "emptyDir": {} }] } } }, "status": {} })
        );
    }

    #[test]
    fn a_service_gets_type_target_ports_and_policies() {
        let service = |spec: Value| json!({ "apiVersion": "v1", "kind": "Service", "spec": spec });
        let plain = service(json!({ "ports": [{ "port": 80 }] }));
        check(
            plain.clone(),
            "/spec",
            json!({ "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }] }),
        );
        check(plain, "/status", json!({ "loadBalancer": {} }));
        check(service(json!({ "type": "NodePort" })), "/spec/externalTrafficPolicy", json!("Cluster"));
        check(service(json!({ "type": "ExternalName" })), "/spec/internalTrafficPolicy", Value::Null);
        check(
            service(json!({ "sessionAffinity": "ClientIP" })),
            "/spec/sessionAffinityConfig/clientIP/timeoutSeconds",
            json!(10800),
        );
        check(service(json!({ "clusterIP": "None" })), "/spec/clusterIPs", json!(["None"]));
    }

    #[test]
    fn a_job_runs_once_unless_it_is_a_work_queue() {
        let job = |spec: Value| json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "j", "uid": "u-1" }, "spec": spec });
        check(job(json!({})), "/spec/completions", json!(1));
        check(job(json!({ "parallelism": 2 })), "/spec/completions", Value::Null);
        check(job(json!({ "completions": 3 })), "/spec/parallelism", json!(1));
        check(job(json!({})), "/spec/backoffLimit", json!(6));
        check(
            job(json!({})),
            "/spec/selector",
            json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": "u-1" } }),
        );
        check(job(json!({})), "/spec/template/metadata/labels/job-name", json!("j"));
        check(job(json!({})), "/metadata/labels/controller-uid", json!("u-1"));
        check(job(json!({ "manualSelector": true })), "/spec/selector", Value::Null);
    }

    #[test]
    fn a_pod_requests_what_it_is_limited_to() {
        let pod = |resources: Value| json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "containers": [{ "name": "a", "image": "x", "resources": resources }] } });
        let limits = json!({ "limits": { "cpu": "1", "memory": "1Gi" } });
        check(pod(limits), "/spec/containers/0/resources/requests", json!({ "cpu": "1", "memory": "1Gi" }));
        check(pod(json!({})), "/spec/enableServiceLinks", json!(true));
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn secrets_namespaces_slices_and_classes_get_theirs() {
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "data": { "a": "eA==" }, "stringData": { "b": "y" } });
        check(secret.clone(), "/data", json!({ "a": "eA==", "b": "eQ==" }));
        check(secret.clone(), "/stringData", Value::Null);
        check(secret, "/type", json!("Opaque"));
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } });
        check(
            namespace,
            "",
            json!({ "apiVersion": "v1", "kind": "Namespace",
                "metadata": { "name": "shop", "labels": { "kubernetes.io/metadata.name": "shop" } },
                "spec": { "finalizers": ["kubernetes"] }, "status": { "phase": "Active" } }),
        );
        let slice = json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "ports": [{ "port": 80 }] });
        check(slice, "/ports/0", json!({ "name": "", "port": 80, "protocol": "TCP" }));
        let class = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "spec": { "parameters": { "kind": "X", "name": "x" } } });
        check(class, "/spec/parameters/scope", json!("Cluster"));
    }

    #[test]
    fn what_is_set_is_never_overridden() {
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "restartPolicy": "Never", "dnsPolicy": "None",
            "terminationGracePeriodSeconds": 0, "volumes": [{ "name": "h", "hostPath": { "path": "/", "type": "Directory" } }] } });
        check(pod.clone(), "/spec/restartPolicy", json!("Never"));
        check(pod.clone(), "/spec/terminationGracePeriodSeconds", json!(0));
        check(
            pod.clone(),
            "/spec/volumes/0",
            json!({ "name": "h", "hostPath": { "path": "/", "type": "Directory" } }),
        );
    }
}
