mod kinds;

use serde_json::json;

use super::*;
use crate::kinds::by_kind;
use crate::schema;

/// The object as it stands before validation: with identity and defaults.
fn ready(mut object: Value) -> (&'static Kind, Value) {
    let kind = by_kind(text(&object["apiVersion"]), text(&object["kind"])).expect("served");
    let metadata = object.as_object_mut().expect("an object").entry("metadata").or_insert_with(|| json!({}));
    let metadata = metadata.as_object_mut().expect("an object");
    metadata.entry("name").or_insert_with(|| "x".into());
    metadata.entry("uid").or_insert_with(|| "u".into());
    if kind.namespaced {
        metadata.entry("namespace").or_insert_with(|| "default".into());
    }
    schema::defaults(kind, &mut object);
    (kind, object)
}

#[track_caller]
fn check(object: Value, wanted: &[&str]) {
    let (kind, object) = ready(object);
    assert_eq!(schema::check_fields(kind, &object), [], "the case itself is well typed");
    let found: Vec<String> = create(kind, &object).iter().map(Defect::to_string).collect();
    assert_eq!(found, wanted);
}

#[track_caller]
fn check_update(old: Value, change: impl FnOnce(&mut Value), wanted: &[&str]) {
    let (kind, old) = ready(old);
    let mut new = old.clone();
    change(&mut new);
    let found: Vec<String> = update(kind, &new, &old).iter().map(Defect::to_string).collect();
    assert_eq!(found, wanted);
}

fn pod(spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "spec": spec })
}

fn pod_with(container: Value) -> Value {
    let mut one = json!({ "name": "a", "image": "x:1" });
    let fields = container.as_object().expect("an object").clone();
    one.as_object_mut().expect("an object").extend(fields);
    pod(json!({ "containers": [one] }))
}

fn deployment(spec: Value) -> Value {
    let mut whole = json!({ "selector": { "matchLabels": { "app": "web" } },
        "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "a", "image": "x:1" }] } } });
    whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "spec": whole })
}

fn job(spec: Value) -> Value {
    let mut whole = json!({ "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "a", "image": "x:1" }] } } });
    whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
    json!({ "apiVersion": "batch/v1", "kind": "Job", "spec": whole })
}

fn service(spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "spec": spec })
}

#[test]
fn a_well_formed_object_has_no_defects() {
    check(pod_with(json!({})), &[]);
    check(deployment(json!({})), &[]);
    check(job(json!({})), &[]);
    check(service(json!({ "ports": [{ "port": 80 }] })), &[]);
    check(json!({ "apiVersion": "v1", "kind": "Namespace" }), &[]);
    check(json!({ "apiVersion": "v1", "kind": "Event", "involvedObject": { "namespace": "default" } }), &[]);
    check(
        pod(json!({
            "containers": [{ "name": "a", "image": "x:1",
                "env": [{ "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }],
                "ports": [{ "containerPort": 80, "name": "web" }, { "containerPort": 80, "protocol": "UDP" }],
                "livenessProbe": { "exec": { "command": ["true"] } },
                "resources": { "requests": { "cpu": "100m" }, "limits": { "cpu": "1", "memory": "1Gi" } },
                "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }],
            "initContainers": [{ "name": "i", "image": "x:1" }],
            "volumes": [{ "name": "v", "projected": { "sources": [{ "configMap": { "name": "c" } }] } }],
            "tolerations": [{ "operator": "Exists" }],
        })),
        &[],
    );
}

#[test]
fn names_and_labels_are_judged_in_kubernetes_words() {
    let config_map =
        |metadata: Value| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata });
    check(
        config_map(json!({ "name": "A_b" })),
        &[
            r#"metadata.name: Invalid value: "A_b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#,
        ],
    );
    check(
        config_map(json!({ "name": "" })),
        &["metadata.name: Required value: name or generateName is required"],
    );
    check(config_map(json!({ "name": "", "generateName": "web-" })), &[]);
    check(
        config_map(json!({ "labels": { "app": "a b" } })),
        &[
            r#"metadata.labels: Invalid value: "a b": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"#,
        ],
    );
    check(
        config_map(json!({ "annotations": { "a": "x".repeat(256 * 1024) } })),
        &["metadata.annotations: Too long: may not be more than 262144 bytes"],
    );
    check(
        config_map(json!({ "finalizers": ["mine"] })),
        &[
            r#"metadata.finalizers[0]: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified"#,
        ],
    );
    check(
        config_map(
            json!({ "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "" }] }),
        ),
        &[r#"metadata.ownerReferences.uid: Invalid value: "": must not be empty"#],
    );
    check(
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "a", "namespace": "b" } }),
        &["metadata.namespace: Forbidden: not allowed on this type"],
    );
}

#[test]
fn a_pods_containers_are_judged_one_by_one() {
    check(pod(json!({})), &["spec.containers: Required value"]);
    check(
        pod(json!({ "containers": [{ "name": "a" }, { "name": "a", "image": "x" }] })),
        &["spec.containers[0].image: Required value", r#"spec.containers[1].name: Duplicate value: "a""#],
    );
    check(
        pod_with(json!({ "imagePullPolicy": "Sometimes" })),
        &[
            r#"spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never""#,
        ],
    );
    check(
        pod_with(json!({ "ports": [{ "containerPort": 99999 }, { "containerPort": 0 }] })),
        &[
            "spec.containers[0].ports[0].containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive",
            "spec.containers[0].ports[1].containerPort: Required value",
        ],
    );
    check(
        pod_with(
            json!({ "ports": [{ "containerPort": 80, "name": "web" }, { "containerPort": 81, "name": "web" }] }),
        ),
        &[r#"spec.containers[0].ports[1].name: Duplicate value: "web""#],
    );
    check(pod_with(json!({ "env": [{ "name": "" }] })), &["spec.containers[0].env[0].name: Required value"]);
    check(
        pod_with(
            json!({ "env": [{ "name": "A", "value": "1", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }] }),
        ),
        &[
            r#"spec.containers[0].env[0].valueFrom: Invalid value: "": may not be specified when `value` is not empty"#,
        ],
    );
    check(
        pod(json!({ "restartPolicy": "Maybe", "containers": [{ "name": "a", "image": "x" }] })),
        &[
            r#"spec.restartPolicy: Unsupported value: "Maybe": supported values: "Always", "OnFailure", "Never""#,
        ],
    );
}

#[test]
fn probes_resources_and_volumes_are_judged() {
    check(
        pod_with(json!({ "livenessProbe": {} })),
        &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
    );
    check(
        pod_with(json!({ "livenessProbe": { "tcpSocket": { "port": 0 }, "successThreshold": 2 } })),
        &[
            "spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ],
    );
    check(
        pod_with(json!({ "resources": { "requests": { "memory": "2Gi" }, "limits": { "memory": "1Gi" } } })),
        &[
            r#"spec.containers[0].resources.requests: Invalid value: "2Gi": must be less than or equal to memory limit of 1Gi"#,
        ],
    );
    check(
        pod_with(json!({ "resources": { "limits": { "cpu": "-1" } } })),
        &[
            r#"spec.containers[0].resources.limits[cpu]: Invalid value: "-1": must be greater than or equal to 0"#,
            r#"spec.containers[0].resources.requests[cpu]: Invalid value: "-1": must be greater than or equal to 0"#,
        ],
    );
    check(
        pod_with(json!({ "volumeMounts": [{ "name": "gone", "mountPath": "/a" }] })),
        &[r#"spec.containers[0].volumeMounts[0].name: Not found: "gone""#],
    );
    check(
        pod(json!({ "containers": [{ "name": "a", "image": "x" }],
            "volumes": [{ "name": "v", "emptyDir": {}, "hostPath": { "path": "/" } }, { "name": "v" }, { "name": "s", "secret": {} }] })),
        &[
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            r#"spec.volumes[1].name: Duplicate value: "v""#,
            "spec.volumes[2].secret.secretName: Required value",
        ],
    );
}

#[test]
fn a_workloads_selector_must_choose_its_own_pods() {
    check(
        deployment(json!({ "selector": { "matchLabels": { "app": "other" } } })),
        &[
            r#"spec.template.metadata.labels: Invalid value: {"app":"web"}: `selector` does not match template `labels`"#,
        ],
    );
    check(
        deployment(json!({ "selector": {} })),
        &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
    );
    check(
        deployment(json!({ "replicas": -1 })),
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );
    check(
        deployment(json!({ "strategy": { "rollingUpdate": { "maxSurge": 0, "maxUnavailable": "0%" } } })),
        &[
            r#"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0"#,
        ],
    );
    check(
        job(json!({ "selector": { "matchLabels": { "app": "j" } } })),
        &[
            r#"spec.selector: Invalid value: {"matchLabels":{"app":"j","batch.kubernetes.io/controller-uid":"u"}}: `selector` not auto-generated"#,
        ],
    );
    check(
        job(json!({ "template": { "spec": { "containers": [{ "name": "a", "image": "x" }] } } })),
        &[r#"spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#],
    );
}

#[test]
fn services_ingresses_and_slices_are_judged() {
    check(service(json!({})), &["spec.ports: Required value"]);
    check(service(json!({ "clusterIP": "None" })), &[]);
    check(
        service(json!({ "ports": [{ "port": 80 }, { "port": 80, "name": "b" }] })),
        &[
            "spec.ports[0].name: Required value",
            r#"spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}"#,
        ],
    );
    check(
        service(json!({ "ports": [{ "port": 80, "nodePort": 30000 }] })),
        &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
    );
    let ingress =
        |spec: Value| json!({ "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "spec": spec });
    check(
        ingress(json!({})),
        &["spec: Invalid value: {}: either `defaultBackend` or `rules` must be specified"],
    );
    check(
        ingress(
            json!({ "rules": [{ "host": "a.b", "http": { "paths": [{ "path": "/", "backend": { "service": { "name": "s" } } }] } }] }),
        ),
        &[
            "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
            "spec.rules[0].http.paths[0].backend: Required value: port name or number is required",
        ],
    );
    check(
        json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{ "addresses": ["::1"] }] }),
        &[r#"endpoints[0].addresses[0]: Invalid value: "::1": must be an IPv4 address"#],
    );
}

#[test]
fn what_may_not_change_is_refused_by_name() {
    check_update(deployment(json!({})), |new| new["spec"]["replicas"] = 5.into(), &[]);
    check_update(
        deployment(json!({})),
        |new| {
            new["spec"]["selector"]["matchLabels"] = json!({ "app": "b" });
            new["spec"]["template"]["metadata"]["labels"] = json!({ "app": "b" });
        },
        &[r#"spec.selector: Invalid value: {"matchLabels":{"app":"b"}}: field is immutable"#],
    );
    check_update(
        job(json!({})),
        |new| new["spec"]["completions"] = 3.into(),
        &["spec.completions: Invalid value: 3: field is immutable"],
    );
    check_update(pod_with(json!({})), |new| new["spec"]["nodeName"] = "n1".into(), &[]);
    check_update(pod_with(json!({})), |new| new["spec"]["containers"][0]["image"] = "y:2".into(), &[]);
    check_update(
        pod_with(json!({})),
        |new| new["spec"]["hostNetwork"] = true.into(),
        &[&format!(
            "spec: Forbidden: {}",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
        )],
    );
    check_update(
        service(json!({ "clusterIP": "10.0.0.1", "ports": [{ "port": 80 }] })),
        |new| {
            new["spec"]["clusterIP"] = "10.0.0.2".into();
            new["spec"]["clusterIPs"] = json!(["10.0.0.2"]);
        },
        &[r#"spec.clusterIPs[0]: Invalid value: ["10.0.0.2"]: may not change once set"#],
    );
    check_update(
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "immutable": true, "data": { "a": "1" } }),
        |new| new["data"]["a"] = "2".into(),
        &["data: Forbidden: field is immutable when `immutable` is set"],
    );
    check_update(
        json!({ "apiVersion": "v1", "kind": "Secret" }),
        |new| new["type"] = "x/y".into(),
        &[r#"type: Invalid value: "x/y": field is immutable"#],
    );
    check_update(
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
        |new| new["metadata"]["finalizers"] = json!(["a.b/c"]),
        &[
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"a.b/c\"}",
        ],
    );
}

#[test]
fn config_maps_secrets_and_applications_are_judged() {
    check(
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "a/b": "" } }),
        &[
            r#"data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"#,
        ],
    );
    check(
        json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": { "tls.crt": "" } }),
        &["data[tls.key]: Required value"],
    );
    let application = |source: Value| json!({ "apiVersion": "holdfast.dev/v1", "kind": "Application", "spec": { "source": source } });
    check(application(json!({ "git": "https://x/y.git", "ref": "main", "path": "live" })), &[]);
    check(application(json!({})), &["spec.source: Required value: one of `dir` and `git` is needed"]);
    check(
        application(json!({ "dir": "a", "ref": "main" })),
        &["spec.source.ref: Forbidden: a directory has no ref; use `git`"],
    );
}

mod any_json {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::kinds;
    use crate::table::{IncludeObject, table};

    /// JSON whose keys are often real field names, so that it reaches deep.
    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-zA-Z0-9:/@%.é-]{0,12}".prop_map(Value::from),
        ];
        let names: Vec<&str> = schema::objects()
            .iter()
            .flat_map(|object| object.fields.iter().map(|field| field.name))
            .collect();
        leaf.prop_recursive(7, 96, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(proptest::sample::select(names.clone()), inner, 0..6)
                    .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ]
        })
    }

    /// Random fields placed where the schema has them.
    fn fill(of: schema::TypeRef, depth: u32, pick: &mut impl FnMut() -> u8) -> Value {
        use schema::Shape;
        let odd = pick();
        match of.shape() {
            _ if odd < 12 => Value::Null,
            _ if odd < 24 => "x".into(),
            Shape::Object(_) | Shape::Array(_) | Shape::Map(_) if depth == 0 => Value::Null,
            Shape::Object(object) => {
                let fields = object.fields.iter().filter(|_| pick() < 110);
                let fields: Vec<_> = fields.collect();
                fields
                    .into_iter()
                    .map(|field| (field.name.to_owned(), fill(field.of, depth - 1, pick)))
                    .collect()
            }
            Shape::Array(inner) => (0..odd % 3).map(|_| fill(inner, depth - 1, pick)).collect(),
            Shape::Map(inner) => {
                (0..odd % 3).map(|at| (format!("k{at}"), fill(inner, depth - 1, pick))).collect()
            }
            Shape::Int32 | Shape::Int64 | Shape::Double => (i64::from(odd) - 100).into(),
            Shape::Boolean => odd.is_multiple_of(2).into(),
            Shape::Quantity if odd.is_multiple_of(2) => odd.into(),
            Shape::Time | Shape::MicroTime => "2026-01-01T00:00:00Z".into(),
            _ => ["x:1", "1Gi", "25%", "10.0.0.1", ""][usize::from(odd % 5)].into(),
        }
    }

    fn survives(given: &Value) {
        for kind in kinds() {
            let mut object = given.clone();
            schema::check_fields(kind, &object);
            schema::coerce(kind, &mut object);
            schema::prune_unknown(kind, &mut object);
            schema::defaults(kind, &mut object);
            let once = object.clone();
            schema::defaults(kind, &mut object);
            assert_eq!(object, once, "defaulting twice is once");
            create(kind, &object);
            update(kind, &object, &once);
            table(kind, &[&object], jiff::Timestamp::UNIX_EPOCH, IncludeObject::Metadata, json!({}));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn no_json_whatsoever_makes_the_rules_fail(object in json_value()) {
            survives(&object);
        }

        #[test]
        fn objects_of_every_kind_filled_at_random_are_judged_without_failing(bytes in proptest::collection::vec(any::<u8>(), 64..512)) {
            let mut at = 0;
            let mut pick = move || { at += 1; bytes[at % bytes.len()].wrapping_add((at / bytes.len()) as u8) };
            for kind in kinds() {
                let mut object: serde_json::Map<String, Value> = serde_json::Map::new();
                for field in &schema::root(kind).fields {
                    object.insert(field.name.to_owned(), fill(field.of, 6, &mut pick));
                }
                survives(&object.into());
            }
        }
    }
}

#[test]
fn a_stateful_set_mounts_what_its_claim_templates_make() {
    let set = |mount: &str| {
        let template = json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [
            { "name": "a", "image": "x:1", "volumeMounts": [{ "name": mount, "mountPath": "/data" }] }] } });
        let claim = json!({ "metadata": { "name": "data" }, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
        json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "web" }, "spec": {
            "serviceName": "web", "selector": { "matchLabels": { "app": "web" } }, "template": template,
            "volumeClaimTemplates": [claim] } })
    };
    check(set("data"), &[]);
    check(set("gone"), &[r#"spec.template.spec.containers[0].volumeMounts[0].name: Not found: "gone""#]);
}
