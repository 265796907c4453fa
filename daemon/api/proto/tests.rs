use proptest::prelude::*;
use serde_json::json;

use super::encode::{put_bytes, put_number, varint};
use super::*;
use crate::kinds;

/// Whether zero values of fields that are no pointers are written, as Go does.
#[derive(Clone, Copy, PartialEq)]
enum Zeroes {
    Written,
    LeftOut,
}

fn put(number: u32, of: &'static Scalar, value: &Value, zeroes: Zeroes, out: &mut Vec<u8>) {
    let mut inner = Vec::new();
    match of {
        Scalar::String => return put_bytes(number, value.as_str().unwrap().as_bytes(), out),
        Scalar::Bool => return put_number(number, u64::from(value.as_bool().unwrap()), out),
        Scalar::Int32 | Scalar::Int64 => return put_number(number, value.as_i64().unwrap() as u64, out),
        Scalar::Double => {
            varint(u64::from(number) << 3 | 1, out);
            return out.extend_from_slice(&value.as_f64().unwrap().to_le_bytes());
        }
        Scalar::Bytes => return put_bytes(number, &STANDARD.decode(value.as_str().unwrap()).unwrap(), out),
        Scalar::Time | Scalar::MicroTime => {
            let stamp: Timestamp = value.as_str().unwrap().parse().unwrap();
            put_number(1, stamp.as_second() as u64, &mut inner);
            put_number(2, stamp.subsec_nanosecond() as u64, &mut inner);
        }
        Scalar::Quantity => put_bytes(1, value.as_str().unwrap().as_bytes(), &mut inner),
        Scalar::IntOrString => {
            put_number(1, u64::from(value.is_string()), &mut inner);
            put_number(2, value.as_i64().unwrap_or(0) as u64, &mut inner);
            put_bytes(3, value.as_str().unwrap_or("").as_bytes(), &mut inner);
        }
        Scalar::Strings => {
            for item in value.as_array().unwrap() {
                put_bytes(1, item.as_str().unwrap().as_bytes(), &mut inner);
            }
        }
        Scalar::Raw => put_bytes(1, value.to_string().as_bytes(), &mut inner),
        Scalar::Message(message) => {
            inner = encode_message(Table::get().known(message), value.as_object().unwrap(), zeroes);
        }
        Scalar::Choice(message) => {
            for field in Table::get().known(message) {
                match (&field.form, value) {
                    (Form::List(of), Value::Array(items)) => {
                        items.iter().for_each(|item| put(field.number, of, item, zeroes, &mut inner));
                    }
                    (Form::One { of: of @ Scalar::Bool, .. }, Value::Bool(_))
                    | (Form::One { of, .. }, Value::Object(_))
                        if !(matches!(of, Scalar::Bool) && value.is_object()) =>
                    {
                        put(field.number, of, value, zeroes, &mut inner);
                    }
                    _ => {}
                }
            }
        }
    }
    put_bytes(number, &inner, out);
}

fn encode_message(fields: &'static [Field], object: &Map<String, Value>, zeroes: Zeroes) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        match &field.form {
            Form::Inline(message) => {
                let inner = encode_message(Table::get().known(message), object, zeroes);
                put_bytes(field.number, &inner, &mut out);
            }
            Form::One { pointer, of } => match object.get(field.json) {
                Some(value) => put(field.number, of, value, zeroes, &mut out),
                None if zeroes == Zeroes::Written && !pointer && field.omit_empty => match of {
                    Scalar::String => put_bytes(field.number, b"", &mut out),
                    of if of.is_number() && *of != Scalar::Double => put_number(field.number, 0, &mut out),
                    Scalar::Time | Scalar::MicroTime => put_bytes(field.number, b"", &mut out),
                    _ => {}
                },
                None => {}
            },
            Form::List(of) => {
                for item in object.get(field.json).and_then(Value::as_array).into_iter().flatten() {
                    put(field.number, of, item, zeroes, &mut out);
                }
            }
            Form::Map(of) => {
                for (key, value) in object.get(field.json).and_then(Value::as_object).into_iter().flatten() {
                    let mut entry = Vec::new();
                    put_bytes(1, key.as_bytes(), &mut entry);
                    put(2, of, value, zeroes, &mut entry);
                    put_bytes(field.number, &entry, &mut out);
                }
            }
        }
    }
    out
}

fn encode(object: &Value, zeroes: Zeroes) -> Vec<u8> {
    let (api_version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    let (_, fields) = message_of(api_version, kind).unwrap();
    let mut meta = Vec::new();
    put_bytes(1, api_version.as_bytes(), &mut meta);
    put_bytes(2, kind.as_bytes(), &mut meta);
    let mut body = MAGIC.to_vec();
    put_bytes(1, &meta, &mut body);
    put_bytes(2, &encode_message(fields, object.as_object().unwrap(), zeroes), &mut body);
    put_bytes(3, b"", &mut body);
    put_bytes(4, b"", &mut body);
    body
}

#[track_caller]
fn check(object: Value) {
    for zeroes in [Zeroes::LeftOut, Zeroes::Written] {
        assert_eq!(decode(&encode(&object, zeroes)).unwrap(), object);
    }
    // The answer as this server writes it.
    assert_eq!(decode(&super::encode(object.to_string().as_bytes()).unwrap()).unwrap(), object);
    if message_of(
        object["apiVersion"].as_str().unwrap(),
        &format!("{}List", object["kind"].as_str().unwrap()),
    )
    .is_some()
    {
        check_list(object);
    }
}

/// A list of a kind: its items say neither version nor kind, as in Go.
#[track_caller]
fn check_list(mut object: Value) {
    let item = object.as_object_mut().unwrap();
    let (version, kind) = (item.remove("apiVersion").unwrap(), item.remove("kind").unwrap());
    let metadata = json!({"resourceVersion": "9", "continue": "c", "remainingItemCount": 0});
    let list = json!({"apiVersion": version, "kind": format!("{}List", kind.as_str().unwrap()), "metadata": metadata, "items": [object, object]});
    assert_eq!(decode(&super::encode(list.to_string().as_bytes()).unwrap()).unwrap(), list);
}

fn meta(name: &str) -> Value {
    json!({
        "name": name, "namespace": "default", "uid": "u-1", "resourceVersion": "7", "generation": 2,
        "creationTimestamp": "2026-11-24T01:02:03Z", "deletionGracePeriodSeconds": 0,
        "labels": {"app": "kubia", "empty": ""}, "annotations": {"a": "ü"}, "finalizers": ["x/y"],
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true, "blockOwnerDeletion": false}],
        "managedFields": [{"manager": "m", "operation": "Update", "apiVersion": "v1", "time": "2026-11-24T01:02:03Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}}],
    })
}

fn pod_spec() -> Value {
    json!({
        "containers": [{
            "name": "main", "image": "kubia:1", "command": ["/kubia"], "args": ["", "-v"],
            "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k", "optional": false}}}],
            "envFrom": [{"secretRef": {"name": "s"}}],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "100m"}},
            "readinessProbe": {"httpGet": {"path": "/", "port": "http", "scheme": "HTTP"}, "periodSeconds": 1, "terminationGracePeriodSeconds": 0},
            "livenessProbe": {"tcpSocket": {"port": 8080}, "failureThreshold": 3},
            "securityContext": {"runAsUser": 0, "runAsNonRoot": false, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/kubia", "readOnly": true}],
        }],
        "volumes": [
            {"name": "config", "configMap": {"name": "kubia", "defaultMode": 420, "items": [{"key": "a", "path": "b", "mode": 256}]}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "all", "projected": {"sources": [{"secret": {"name": "s"}}, {"serviceAccountToken": {"path": "token"}}]}},
        ],
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 0, "nodeSelector": {"a": "b"}, "hostNetwork": true,
        "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": -5}],
        "securityContext": {"fsGroup": 2000, "supplementalGroups": [1, 2]},
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "h", "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}}]}},
    })
}

fn sample(api_version: &str, kind: &str) -> Value {
    let mut object = match kind {
        "ConfigMap" => json!({"data": {"a": "1", "b": ""}, "binaryData": {"c": "AAEC"}, "immutable": false}),
        "Secret" => json!({"data": {"password": "aHVudGVyMg==", "none": ""}, "type": "Opaque"}),
        "Event" if api_version == "v1" => {
            json!({"involvedObject": {"kind": "Pod", "name": "p"}, "reason": "Started", "message": "m", "source": {"component": "kubelet"},
            "firstTimestamp": "2026-11-24T01:02:03Z", "eventTime": "2026-11-24T01:02:03.000004Z", "count": 2, "type": "Normal",
            "reportingComponent": "", "reportingInstance": ""})
        }
        "Namespace" => json!({"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}),
        "Node" => {
            json!({"spec": {"podCIDR": "10.0.0.0/24", "taints": [{"key": "a", "effect": "NoSchedule", "timeAdded": "2026-11-24T01:02:03Z"}]},
            "status": {"capacity": {"cpu": "2", "memory": "8Gi"}, "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
                "images": [{"names": ["a", "b"], "sizeBytes": 5_000_000_000_i64}]}})
        }
        "Pod" => json!({"spec": pod_spec(), "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}],
            "containerStatuses": [{"name": "main", "state": {"running": {"startedAt": "2026-11-24T01:02:03Z"}},
                "lastState": {"terminated": {"exitCode": -1, "reason": "Error"}}, "ready": false, "restartCount": 0, "image": "kubia:1", "imageID": "", "started": false}]}}),
        "Service" => {
            json!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "s", "port": 443, "targetPort": "https", "nodePort": 30000}],
            "selector": {"app": "kubia"}, "type": "NodePort", "clusterIPs": ["10.1.0.1"], "allocateLoadBalancerNodePorts": false,
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}, "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}}})
        }
        "ServiceAccount" => json!({"secrets": [{"name": "s"}], "automountServiceAccountToken": false}),
        "Deployment" => {
            json!({"spec": {"replicas": 0, "selector": {"matchLabels": {"app": "kubia"}}, "paused": true,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"app": "kubia"}}, "spec": pod_spec()}}, "status": {"replicas": 3, "observedGeneration": 1}})
        }
        "ReplicaSet" => {
            json!({"spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {}, "spec": pod_spec()}}, "status": {"replicas": 0}})
        }
        "Job" => {
            json!({"spec": {"backoffLimit": 0, "completions": 1, "suspend": false, "template": {"metadata": {}, "spec": pod_spec()},
            "podFailurePolicy": {"rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [1, 2, 130]}, "onPodConditions": []}]}},
            "status": {"startTime": "2026-11-24T01:02:03Z", "succeeded": 1}})
        }
        "IngressClass" => json!({"spec": {"controller": "holdfast.dev/ingress"}}),
        "Ingress" => {
            json!({"spec": {"rules": [{"host": "kubia.test", "http": {"paths": [{"path": "/", "pathType": "Prefix",
            "backend": {"service": {"name": "kubia", "port": {"number": 80}}}}]}}], "tls": [{"hosts": ["kubia.test"], "secretName": "t"}]}})
        }
        "Lease" => {
            json!({"spec": {"holderIdentity": "me", "leaseDurationSeconds": 15, "renewTime": "2026-11-24T01:02:03.123456Z"}})
        }
        "EndpointSlice" => {
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true, "terminating": false},
            "targetRef": {"kind": "Pod", "name": "p"}, "nodeName": "n"}], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]})
        }
        _ => return full(api_version, kind),
    };
    // Go's lists without omitempty are absent when empty, so they are in no sample.
    if kind == "Job" {
        object["spec"]["podFailurePolicy"]["rules"][0].as_object_mut().unwrap().remove("onPodConditions");
    }
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    object["metadata"] = meta("sample");
    object
}

/// An object of a kind with every field that it can have, lists and maps with one item each.
fn full(api_version: &str, kind: &str) -> Value {
    let (name, fields) = message_of(api_version, kind).expect("a kind of Kubernetes");
    let mut object = Map::new();
    fill(fields, &mut object, &mut vec![name]);
    object.insert("apiVersion".to_owned(), json!(api_version));
    object.insert("kind".to_owned(), json!(kind));
    object.into()
}

/// `within` ends types that hold themselves.
fn fill(fields: &'static [Field], into: &mut Map<String, Value>, within: &mut Vec<&'static str>) {
    for field in fields {
        match &field.form {
            Form::Inline(message) => fill(Table::get().known(message), into, within),
            Form::One { of, .. } => into.extend(some(of, within).map(|value| (field.json.to_owned(), value))),
            Form::List(of) => {
                into.extend(some(of, within).map(|value| (field.json.to_owned(), json!([value]))))
            }
            Form::Map(of) => {
                into.extend(some(of, within).map(|value| (field.json.to_owned(), json!({ "key": value }))))
            }
        }
    }
}

fn some(of: &'static Scalar, within: &mut Vec<&'static str>) -> Option<Value> {
    Some(match of {
        Scalar::String => json!("text"),
        Scalar::Bool => json!(true),
        Scalar::Int32 => json!(-3),
        Scalar::Int64 => json!(5_000_000_000_i64),
        Scalar::Double => json!(0.5),
        Scalar::Bytes => json!("AAEC"),
        Scalar::Time => json!("2026-11-24T01:02:03Z"),
        Scalar::MicroTime => json!("2026-11-24T01:02:03.000004Z"),
        Scalar::Quantity => json!("500m"),
        Scalar::IntOrString => json!("25%"),
        Scalar::Strings => json!(["a"]),
        Scalar::Raw => json!({ "any": [1] }),
        Scalar::Choice(_) => return None,
        Scalar::Message(message) if within.contains(message) => return None,
        Scalar::Message(message) => {
            let mut map = Map::new();
            within.push(message);
            fill(Table::get().known(message), &mut map, within);
            within.pop();
            map.into()
        }
    })
}

#[test]
fn every_field_of_every_served_kind_survives_the_round_trip() {
    for kind in kinds::kinds().iter().filter(|kind| kind.group != "holdfast.dev") {
        let object = full(&kind.api_version(), &kind.kind);
        check(object.clone());
        // What one table writes, the other knows: both are of the same Kubernetes.
        assert_eq!(crate::schema::check_fields(kind, &object), [], "{}", kind.kind_name());
        check(sample(&kind.api_version(), &kind.kind));
    }
}

#[test]
fn options_and_kinds_not_served_survive_the_round_trip() {
    for api_version in ["v1", "meta.k8s.io/v1", "apps/v1"] {
        check(
            json!({"apiVersion": api_version, "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Background",
            "preconditions": {"uid": "u"}, "dryRun": ["All"]}),
        );
    }
    check(json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}}, "status": {"allowed": false}}));
    check(json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": "t"}, "status": {"user": {"username": "u", "extra": {"scopes": ["a", "b"]}}}}));
    check(
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["a"], "expirationSeconds": 600}}),
    );
    check(
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": 3}, "status": {"replicas": 0}}),
    );
    check(
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": {"group": "a.b", "scope": "Namespaced",
        "names": {"plural": "xs", "kind": "X"}, "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
            "type": "object", "$ref": "#/a", "minimum": 0.5, "enum": [1, "a", {"b": null}], "default": {"x": [1]}, "x-kubernetes-preserve-unknown-fields": false,
            "properties": {"a": {"type": "array", "items": {"type": "string"}}, "b": {"additionalProperties": {"type": "integer"}}, "c": {"additionalProperties": true}}}}}]}}),
    );
    check(
        json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": [{"apiVersion": "v1", "kind": "Pod"}]}),
    );
}

/// Byte by byte, so that encoder and decoder cannot share a mistake: Go writes every field that is no pointer, zero or not.
#[test]
fn a_namespace_as_client_go_writes_it_is_read() {
    let mut body = MAGIC.to_vec();
    body.extend_from_slice(b"\x0a\x0f\x0a\x02v1\x12\x09Namespace");
    // raw: metadata{name "a", six empty fields, generation 0, creationTimestamp zero}, spec{}, status{phase ""}
    body.extend_from_slice(b"\x12\x19");
    body.extend_from_slice(b"\x0a\x11\x0a\x01a\x12\x00\x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00\x42\x00");
    body.extend_from_slice(b"\x12\x00\x1a\x02\x0a\x00");
    body.extend_from_slice(b"\x1a\x00\x22\x00");
    assert_eq!(
        decode(&body).unwrap(),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}, "spec": {}, "status": {}})
    );
}

/// `kubectl.json` holds the bodies that kubectl 1.32 sent for `create deployment`, `create token`, `auth can-i` and others,
/// beside what it prints of the same objects as JSON, nulls left out.
#[test]
fn bodies_that_kubectl_sent_are_read_as_it_prints_them() {
    let rows: Vec<Value> = serde_json::from_str(include_str!("kubectl.json")).unwrap();
    assert_eq!(rows.len(), 7);
    for row in rows {
        let body = STANDARD.decode(row["body"].as_str().unwrap()).unwrap();
        assert_eq!(decode(&body).unwrap(), row["object"], "{}", row["of"]);
    }
}

#[test]
fn what_has_no_protobuf_form_is_told() {
    let told = |object: Value| super::encode(object.to_string().as_bytes()).unwrap_err().to_string();
    assert_eq!(
        told(json!({"apiVersion": "a/v1", "kind": "Thing"})),
        "no protobuf form is known of a/v1 Thing; send it as JSON"
    );
    assert_eq!(
        told(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": 1}})),
        "data of io.k8s.api.core.v1.ConfigMap has no protobuf form; ask for JSON"
    );
}

/// Byte by byte: 4 bytes of length, 1 type, 2 object{1 raw}.
#[test]
fn an_event_of_a_watch_is_framed_by_its_length() {
    assert_eq!(super::watch_event("ADDED", b"xy"), b"\0\0\0\x0d\x0a\x05ADDED\x12\x04\x0a\x02xy");
}

#[test]
fn what_cannot_be_read_says_why() {
    let known =
        encode(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}), Zeroes::LeftOut);
    let mut foreign = MAGIC.to_vec();
    foreign.extend_from_slice(b"\x0a\x0e\x0a\x04a/v1\x12\x06Thing1");
    let mut cut = known.clone();
    cut.truncate(known.len() - 8);
    for (body, message) in [
        (b"{}".to_vec(), "protobuf body does not start with the Kubernetes prefix"),
        (MAGIC.to_vec(), "protobuf body names no apiVersion and kind"),
        (foreign, "no protobuf form is known of a/v1 Thing1; send it as JSON"),
        (cut, "protobuf body is damaged in runtime.Unknown: a length reaches beyond its end"),
    ] {
        assert_eq!(decode(&body).unwrap_err().to_string(), message);
    }
}

#[test]
fn endless_nesting_is_refused() {
    let mut schema = json!({"type": "object"});
    for _ in 0..100 {
        schema = json!({"not": schema});
    }
    let object = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": {"group": "", "scope": "",
        "names": {"plural": "", "kind": ""}, "versions": [{"name": "", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    assert!(matches!(decode(&encode(&object, Zeroes::LeftOut)), Err(ProtoError::TooDeep(_))));
    let mut body = encode(&json!({"apiVersion": "v1", "kind": "List", "items": []}), Zeroes::LeftOut);
    for _ in 0..100 {
        // A list whose one item is the protobuf body so far.
        let (mut raw, mut items) = (Vec::new(), Vec::new());
        put_bytes(1, &body, &mut raw);
        put_bytes(2, &raw, &mut items);
        let mut meta = Vec::new();
        put_bytes(1, b"v1", &mut meta);
        put_bytes(2, b"List", &mut meta);
        body = MAGIC.to_vec();
        put_bytes(1, &meta, &mut body);
        put_bytes(2, &items, &mut body);
    }
    assert!(matches!(decode(&body), Err(ProtoError::TooDeep(_))));
}

proptest! {
    #[test]
    fn random_bytes_are_read_or_refused_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut body = MAGIC.to_vec();
        body.extend_from_slice(&bytes);
        let _ = decode(&body);
        let mut pod = encode(&json!({"apiVersion": "v1", "kind": "Pod"}), Zeroes::LeftOut);
        put_bytes(2, &bytes, &mut pod);
        let _ = decode(&pod);
    }

    #[test]
    fn a_damaged_body_is_read_or_refused_and_never_a_panic(at in 4_usize..2000, byte in any::<u8>(), cut in any::<bool>()) {
        let mut body = encode(&sample("apps/v1", "Deployment"), Zeroes::Written);
        let at = 4 + at % (body.len() - 4);
        body[at] = byte;
        if cut {
            body.truncate(at);
        }
        let _ = decode(&body);
    }
}
