use super::*;
use crate::kinds::{by_kind, kinds};

const NOW: &str = "2026-01-01T01:00:00Z";

fn printed(object: &Value) -> Value {
    let word = |name: &str| object[name].as_str().expect("a kind");
    let kind = by_kind(word("apiVersion"), word("kind")).expect("served");
    table(
        kind,
        &[object],
        NOW.parse().expect("a time"),
        IncludeObject::Metadata,
        json!({ "resourceVersion": "7" }),
    )
}

/// The row as kubectl would print it, wide columns too, cells split by two spaces.
#[track_caller]
fn check(object: Value, wanted: &str) {
    let table = printed(&object);
    let cells = table["rows"][0]["cells"].as_array().expect("cells");
    let texts: Vec<String> =
        cells.iter().map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect();
    assert_eq!(texts.join("  "), wanted);
}

fn pod(status: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "creationTimestamp": "2026-01-01T00:55:00Z" },
        "spec": { "containers": [{ "name": "a" }], "initContainers": [{ "name": "i" }] }, "status": status })
}

#[test]
fn every_row_has_a_cell_for_each_column() {
    for kind in kinds() {
        let object =
            json!({ "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": { "name": "x" } });
        let table = printed(&object);
        let (columns, cells) = (table["columnDefinitions"].as_array(), table["rows"][0]["cells"].as_array());
        assert_eq!(columns.map(Vec::len), cells.map(Vec::len), "{}", kind.kind);
    }
}

#[test]
fn a_pods_status_reads_as_kubectl_shows_it() {
    let wide = "  <none>  <none>  <none>  <none>";
    for (status, wanted) in [
        (json!({ "phase": "Pending" }), "p  0/1  Pending  0  5m"),
        (
            json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "reason": "SchedulingGated" }] }),
            "p  0/1  SchedulingGated  0  5m",
        ),
        (
            json!({ "phase": "Running", "containerStatuses": [{ "name": "a", "ready": true, "restartCount": 2,
                "lastState": { "terminated": { "finishedAt": "2026-01-01T00:57:00Z" } }, "state": { "running": {} } }] }),
            "p  1/1  Running  2 (3m ago)  5m",
        ),
        (
            json!({ "phase": "Running", "containerStatuses": [{ "name": "a", "restartCount": 1,
                "state": { "waiting": { "reason": "CrashLoopBackOff" } } }] }),
            "p  0/1  CrashLoopBackOff  1  5m",
        ),
        (
            json!({ "phase": "Pending", "initContainerStatuses": [{ "name": "i", "state": { "running": {} } }] }),
            "p  0/1  Init:0/1  0  5m",
        ),
        (
            json!({ "phase": "Pending", "initContainerStatuses": [{ "name": "i", "state": { "terminated": { "exitCode": 3 } } }] }),
            "p  0/1  Init:ExitCode:3  0  5m",
        ),
        (
            json!({ "phase": "Succeeded", "containerStatuses": [{ "name": "a",
                "state": { "terminated": { "exitCode": 0, "reason": "Completed" } } }] }),
            "p  0/1  Completed  0  5m",
        ),
        (json!({ "phase": "Failed", "reason": "Evicted" }), "p  0/1  Evicted  0  5m"),
    ] {
        check(pod(status), &format!("{wanted}{wide}"));
    }
    let mut dying = pod(json!({ "phase": "Running" }));
    dying["metadata"]["deletionTimestamp"] = NOW.into();
    check(dying, &format!("p  0/1  Terminating  0  5m{wide}"));
}

#[test]
fn workloads_and_services_read_as_kubectl_shows_them() {
    let born = json!({ "name": "w", "creationTimestamp": "2026-01-01T00:59:00Z" });
    let template =
        json!({ "spec": { "containers": [{ "name": "a", "image": "x:1" }, { "name": "b", "image": "y" }] } });
    let selector = json!({ "matchLabels": { "app": "w" } });
    check(
        json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": born,
            "spec": { "replicas": 3, "template": template, "selector": selector },
            "status": { "readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2 } }),
        "w  2/3  3  2  60s  a,b  x:1,y  app=w",
    );
    check(
        json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": born,
            "spec": { "completions": 1, "template": template, "selector": selector },
            "status": { "succeeded": 1, "startTime": "2026-01-01T00:59:00Z", "completionTime": "2026-01-01T00:59:07Z",
                "conditions": [{ "type": "Complete", "status": "True" }] } }),
        "w  Complete  1/1  7s  60s  a,b  x:1,y  app=w",
    );
    let service =
        |spec: Value| json!({ "apiVersion": "v1", "kind": "Service", "metadata": born, "spec": spec });
    check(
        service(json!({ "type": "NodePort", "clusterIP": "10.0.0.1", "selector": { "app": "w" },
            "ports": [{ "port": 80, "nodePort": 30080, "protocol": "TCP" }, { "port": 53, "protocol": "UDP" }] })),
        "w  NodePort  10.0.0.1  <none>  80:30080/TCP,53/UDP  60s  app=w",
    );
    check(
        service(json!({ "type": "LoadBalancer" })),
        "w  LoadBalancer  <none>  <pending>  <none>  60s  <none>",
    );
    check(
        json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": born, "addressType": "IPv4",
            "ports": [{ "port": 80 }], "endpoints": [{ "addresses": ["1.1.1.1"] }, { "addresses": ["1.1.1.2"] },
                { "addresses": ["1.1.1.3"] }, { "addresses": ["1.1.1.4"] }, { "addresses": ["1.1.1.5"] }] }),
        "w  IPv4  80  1.1.1.1,1.1.1.2,1.1.1.3 + 2 more...  60s",
    );
    check(
        json!({ "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": born,
            "spec": { "rules": [{ "host": "a.b" }], "tls": [{}] } }),
        "w  <none>  a.b    80, 443  60s",
    );
}

#[test]
fn nodes_events_and_applications_read_as_expected() {
    check(
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "node-role.kubernetes.io/control-plane": "" } },
            "spec": { "unschedulable": true },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }], "addresses": [{ "type": "InternalIP", "address": "1.2.3.4" }],
                "nodeInfo": { "kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "holdfast://1" } } }),
        "n  Ready,SchedulingDisabled  control-plane  60m  v1.36.0  1.2.3.4  <none>  Debian  6.1  holdfast://1",
    );
    check(
        json!({ "apiVersion": "v1", "kind": "Event", "metadata": { "name": "e" }, "type": "Normal", "reason": "Pulled", "message": "done ",
            "involvedObject": { "kind": "Pod", "name": "p" }, "source": { "component": "kubelet", "host": "n" },
            "firstTimestamp": "2026-01-01T00:50:00Z", "lastTimestamp": "2026-01-01T00:59:55Z", "count": 3 }),
        "5s  Normal  Pulled  pod/p    kubelet, n  done  10m  3  e",
    );
    check(
        json!({ "apiVersion": "holdfast.dev/v1", "kind": "Application", "metadata": { "name": "demo" },
            "spec": { "source": { "git": "https://x/y.git" } },
            "status": { "sync": { "state": "Synced", "revision": "0123456789012345678901234567890123456789" }, "health": { "code": "Healthy" } } }),
        "demo  https://x/y.git  0123456  Synced  Healthy  <unknown>  ",
    );
}

#[test]
fn a_row_carries_what_was_asked_for() {
    let object =
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "data": { "a": "" } });
    let kind = by_kind("v1", "Secret").expect("served");
    let with = |include| {
        table(kind, &[&object], NOW.parse().expect("a time"), include, json!({}))["rows"][0]["object"].clone()
    };
    assert_eq!(with(IncludeObject::None), Value::Null);
    assert_eq!(with(IncludeObject::Object), object);
    assert_eq!(with(IncludeObject::Metadata)["kind"], "PartialObjectMetadata");
    assert_eq!(printed(&object)["metadata"]["resourceVersion"], "7");
}

#[test]
fn the_other_workloads_read_as_kubectl_shows_them() {
    let template = json!({ "metadata": { "labels": { "app": "w" } }, "spec": { "nodeSelector": { "disk": "ssd" },
        "containers": [{ "name": "a", "image": "x:1" }] } });
    let object = |api_version: &str, kind: &str, spec: Value, status: Value| {
        json!({ "apiVersion": api_version, "kind": kind, "spec": spec, "status": status,
            "metadata": { "name": "w", "creationTimestamp": "2026-01-01T00:55:00Z" } })
    };
    check(
        object(
            "apps/v1",
            "StatefulSet",
            json!({ "replicas": 3, "template": template }),
            json!({ "readyReplicas": 2 }),
        ),
        "w  2/3  5m  a  x:1",
    );
    check(
        object(
            "apps/v1",
            "DaemonSet",
            json!({ "selector": { "matchLabels": { "app": "w" } }, "template": template }),
            json!({ "desiredNumberScheduled": 1, "numberReady": 1 }),
        ),
        "w  1  0  1  0  0  disk=ssd  5m  a  x:1  app=w",
    );
    check(
        object(
            "v1",
            "ReplicationController",
            json!({ "replicas": 2, "selector": { "app": "w" }, "template": template }),
            json!({}),
        ),
        "w  2  0  0  5m  a  x:1  app=w",
    );
    check(
        object(
            "batch/v1",
            "CronJob",
            json!({ "schedule": "*/5 * * * *", "suspend": false, "jobTemplate": { "spec": { "template": template } } }),
            json!({ "lastScheduleTime": "2026-01-01T00:58:00Z", "active": [{}] }),
        ),
        "w  */5 * * * *  <none>  False  1  2m  5m  a  x:1  <none>",
    );
    let metric = |name: &str, target: Value| json!({ "type": "Resource", "resource": { "name": name, "target": target } });
    check(
        object(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            json!({ "scaleTargetRef": { "kind": "Deployment", "name": "web" }, "minReplicas": 1, "maxReplicas": 4,
                "metrics": [metric("cpu", json!({ "averageUtilization": 50 })), metric("memory", json!({ "averageValue": "1Gi" }))] }),
            json!({ "currentReplicas": 2, "currentMetrics": [{ "type": "Resource", "resource": { "name": "cpu", "current": { "averageUtilization": 10 } } }] }),
        ),
        "w  Deployment/web  cpu: 10%/50%, memory: <unknown>/1Gi  1  4  2  5m",
    );
}

#[test]
fn volumes_and_policies_read_as_kubectl_shows_them() {
    let object = |api_version: &str, kind: &str, rest: Value| {
        let mut object = rest;
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        object["metadata"]["name"] = json!("x");
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:55:00Z");
        object
    };
    check(
        object(
            "v1",
            "PersistentVolume",
            json!({ "spec": { "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain", "claimRef": { "namespace": "d", "name": "c" }, "storageClassName": "s", "volumeMode": "Filesystem" },
            "status": { "phase": "Bound" } }),
        ),
        "x  1Gi  RWO,RWX  Retain  Bound  d/c  s  <unset>    5m  Filesystem",
    );
    check(
        object(
            "v1",
            "PersistentVolumeClaim",
            json!({ "spec": { "volumeMode": "Filesystem" }, "status": { "phase": "Pending" } }),
        ),
        "x  Pending          <unset>  5m  Filesystem",
    );
    check(
        object(
            "storage.k8s.io/v1",
            "StorageClass",
            json!({ "provisioner": "p",
            "metadata": { "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } } }),
        ),
        "x (default)  p  Delete  Immediate  false  5m",
    );
    check(
        object(
            "policy/v1",
            "PodDisruptionBudget",
            json!({ "spec": { "minAvailable": 2 }, "status": { "disruptionsAllowed": 1 } }),
        ),
        "x  2  N/A  1  5m",
    );
    check(
        object(
            "v1",
            "ResourceQuota",
            json!({ "status": { "hard": { "limits.cpu": "2", "pods": "3" }, "used": { "pods": "1" } } }),
        ),
        "x  pods: 1/3  limits.cpu: 0/2  5m",
    );
    check(
        object(
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            json!({ "roleRef": { "kind": "Role", "name": "r" },
            "subjects": [{ "kind": "User", "name": "u" }, { "kind": "ServiceAccount", "namespace": "n", "name": "s" }] }),
        ),
        "x  Role/r  5m  u    n/s",
    );
    check(
        object(
            "v1",
            "Endpoints",
            json!({ "subsets": [{ "addresses": [{ "ip": "10.0.0.1" }, { "ip": "10.0.0.2" }], "ports": [{ "port": 80 }] }] }),
        ),
        "x  10.0.0.1:80,10.0.0.2:80  5m",
    );
}
