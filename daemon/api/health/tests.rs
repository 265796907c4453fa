use serde_json::json;

use super::*;

#[track_caller]
fn check(api_version: &str, kind: &str, body: Value, code: HealthCode, message: &str) {
    let mut object = body;
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    assert_eq!(assess(&object), Some(Health::new(code, message)));
}

#[track_caller]
fn deployment(spec: Value, status: Value, code: HealthCode, message: &str) {
    check(
        "apps/v1",
        "Deployment",
        json!({"metadata": {"generation": 2}, "spec": spec, "status": status}),
        code,
        message,
    );
}

#[track_caller]
fn pod(spec: Value, status: Value, code: HealthCode, message: &str) {
    check("v1", "Pod", json!({"spec": spec, "status": status}), code, message);
}

use HealthCode::{Degraded, Healthy, Progressing, Suspended, Unknown};

#[test]
fn every_kind_is_progressing_while_it_is_deleted() {
    check("v1", "ConfigMap", json!({"metadata": {"deletionTimestamp": "x"}}), Progressing, "being deleted");
    let body = json!({"metadata": {"deletionTimestamp": "x", "finalizers": ["a/b", "c/d"]}});
    check("v1", "Namespace", body, Progressing, "being deleted, waits for a/b, c/d");
}

#[test]
fn kinds_without_a_rule_have_no_verdict_but_their_conditions() {
    assert_eq!(assess(&json!({"apiVersion": "v1", "kind": "ConfigMap"})), None);
    assert_eq!(assess(&Value::Null), None);
    let ready = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status, "message": "soon"}]}});
    check("a/v1", "X", ready("True"), Healthy, "ready");
    check("a/v1", "X", ready("False"), Progressing, "soon");
    let stalled =
        json!({"status": {"conditions": [{"type": "Stalled", "status": "True", "reason": "Broken"}]}});
    check("a/v1", "X", stalled, Degraded, "Broken");
    let stale = json!({"metadata": {"generation": 3}, "status": {"observedGeneration": 2}});
    check("a/v1", "X", stale, Progressing, "the last change has not been looked at yet");
}

#[test]
fn a_deployment_says_how_far_its_rollout_is() {
    let three = json!({"replicas": 3});
    deployment(
        json!({"paused": true}),
        json!({"observedGeneration": 2}),
        Suspended,
        "paused: its rollout does not go on",
    );
    deployment(three.clone(), json!({}), Progressing, "its controller has not looked at it yet");
    deployment(
        three.clone(),
        json!({"observedGeneration": 1}),
        Progressing,
        "the last change has not been looked at yet",
    );
    deployment(
        three.clone(),
        json!({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 3}),
        Progressing,
        "1 of 3 replicas updated",
    );
    deployment(
        three.clone(),
        json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 4, "availableReplicas": 3}),
        Progressing,
        "1 old replica still there",
    );
    deployment(
        three.clone(),
        json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 2}),
        Progressing,
        "2 of 3 replicas available",
    );
    deployment(
        three.clone(),
        json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3}),
        Healthy,
        "3 of 3 replicas available",
    );
    deployment(
        json!({"replicas": 0}),
        json!({"observedGeneration": 2}),
        Healthy,
        "0 of 0 replicas available",
    );
    deployment(
        three,
        json!({"observedGeneration": 2, "availableReplicas": 1, "conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "timed out"}]}),
        Degraded,
        "rollout stuck with 1 of 3 replicas available: timed out",
    );
}

#[test]
fn other_workloads_say_how_far_they_are() {
    let body =
        |spec: Value, status: Value| json!({"metadata": {"generation": 1}, "spec": spec, "status": status});
    check(
        "apps/v1",
        "ReplicaSet",
        body(json!({"replicas": 2}), json!({"observedGeneration": 1, "replicas": 2, "availableReplicas": 1})),
        Progressing,
        "1 of 2 replicas available",
    );
    check(
        "apps/v1",
        "ReplicaSet",
        body(json!({"replicas": 1}), json!({"observedGeneration": 1, "replicas": 3})),
        Progressing,
        "2 replicas too many",
    );
    let failure = json!({"observedGeneration": 1, "conditions": [{"type": "ReplicaFailure", "status": "True", "message": "quota"}]});
    check("apps/v1", "ReplicaSet", body(json!({}), failure), Degraded, "cannot create pods: quota");
    check(
        "apps/v1",
        "StatefulSet",
        body(json!({"replicas": 2}), json!({"observedGeneration": 1, "readyReplicas": 1})),
        Progressing,
        "1 of 2 replicas ready",
    );
    let partition = json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 1}}});
    check(
        "apps/v1",
        "StatefulSet",
        body(partition, json!({"observedGeneration": 1, "readyReplicas": 3, "updatedReplicas": 1})),
        Progressing,
        "1 of 2 replicas updated (partition 1)",
    );
    let revisions =
        json!({"observedGeneration": 1, "readyReplicas": 1, "updateRevision": "b", "currentRevision": "a"});
    check("apps/v1", "StatefulSet", body(json!({}), revisions), Progressing, "0 of 1 replicas updated");
    let daemons = json!({"observedGeneration": 1, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 1});
    check("apps/v1", "DaemonSet", body(json!({}), daemons), Progressing, "1 of 2 pods available");
}

#[test]
fn a_pod_names_the_container_and_its_last_end() {
    pod(
        json!({"restartPolicy": "Always"}),
        json!({"phase": "Running", "containerStatuses": [{"name": "kubia", "restartCount": 2,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting failed container"}},
            "lastState": {"terminated": {"exitCode": 1}}}]}),
        Degraded,
        "container kubia: CrashLoopBackOff: back-off 20s restarting failed container (exit code 1)",
    );
    pod(
        json!({"restartPolicy": "Never"}),
        json!({"phase": "Pending", "initContainerStatuses": [{"name": "init", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
        Degraded,
        "container init: ImagePullBackOff",
    );
    pod(
        json!({}),
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [{"name": "a", "ready": false, "restartCount": 1,
            "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}),
        Degraded,
        "container a: not ready, 1 restart, last out of memory (exit code 137)",
    );
    pod(
        json!({}),
        json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}),
        Degraded,
        "Evicted: low on memory",
    );
    pod(
        json!({}),
        json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0}}}, {"name": "b", "state": {"terminated": {"exitCode": 2, "message": "no config\n"}}}]}),
        Degraded,
        "container b: exit code 2: no config",
    );
}

#[test]
fn a_pod_on_its_way_says_what_it_waits_for() {
    pod(json!({}), json!({"phase": "Pending"}), Progressing, "waits for a node");
    let unscheduled = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient cpu"}]});
    pod(json!({}), unscheduled, Progressing, "no node takes it: 0/1 nodes are available: 1 Insufficient cpu");
    let creating = json!({"phase": "Pending", "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}}]});
    pod(json!({"nodeName": "n"}), creating, Progressing, "container a: ContainerCreating");
    let unready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [{"name": "a", "ready": false, "state": {"running": {}}}]});
    pod(json!({}), unready, Progressing, "container a is not ready");
    let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"name": "a", "ready": true, "restartCount": 2}]});
    pod(json!({}), ready, Healthy, "1 of 1 containers ready, 2 restarts");
    pod(json!({"restartPolicy": "Never"}), json!({"phase": "Running"}), Progressing, "running to completion");
    pod(json!({}), json!({"phase": "Succeeded"}), Healthy, "completed");
    pod(json!({}), json!({"phase": "Odd"}), Unknown, "unknown phase Odd");
}

#[test]
fn jobs_say_what_is_done() {
    let job = |spec: Value, status: Value| json!({"spec": spec, "status": status});
    let done = |name: &str| json!({"succeeded": 1, "conditions": [{"type": name, "status": "True", "message": "Job has reached the specified backoff limit"}]});
    check("batch/v1", "Job", job(json!({}), done("Complete")), Healthy, "complete: 1 pod succeeded");
    check(
        "batch/v1",
        "Job",
        job(json!({}), done("Failed")),
        Degraded,
        "failed: Job has reached the specified backoff limit",
    );
    check(
        "batch/v1",
        "Job",
        job(json!({"completions": 3}), json!({"succeeded": 1, "active": 1, "failed": 2})),
        Progressing,
        "1 of 3 completions, 1 running, 2 failed",
    );
    check("batch/v1", "Job", job(json!({"suspend": true}), json!({})), Suspended, "suspended");
    let cron =
        json!({"lastScheduleTime": "2026-11-24T02:00:00Z", "lastSuccessfulTime": "2026-11-24T01:00:09Z"});
    check(
        "batch/v1",
        "CronJob",
        job(json!({}), cron),
        Degraded,
        "the job of 2026-11-24T02:00:00Z did not succeed; the last that did ended 2026-11-24T01:00:09Z",
    );
    check(
        "batch/v1",
        "CronJob",
        job(json!({"schedule": "* * * * *"}), json!({})),
        Healthy,
        "waits for its schedule \"* * * * *\"",
    );
}

#[test]
fn network_and_storage_say_what_they_wait_for() {
    check("v1", "Service", json!({"spec": {"type": "ClusterIP"}}), Healthy, "");
    check(
        "v1",
        "Service",
        json!({"spec": {"type": "LoadBalancer"}}),
        Progressing,
        "waits for a load balancer address",
    );
    let served = json!({"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}}});
    check("v1", "Service", served, Healthy, "reachable at 10.0.0.1");
    check(
        "networking.k8s.io/v1",
        "Ingress",
        json!({}),
        Progressing,
        "waits for an ingress to serve it: no address yet",
    );
    check(
        "v1",
        "PersistentVolumeClaim",
        json!({"status": {"phase": "Bound"}, "spec": {"volumeName": "v"}}),
        Healthy,
        "bound to v",
    );
    check(
        "v1",
        "PersistentVolumeClaim",
        json!({"status": {"phase": "Lost"}, "spec": {"volumeName": "v"}}),
        Degraded,
        "its volume v is lost",
    );
    check(
        "v1",
        "PersistentVolumeClaim",
        json!({"status": {"phase": "Pending"}}),
        Progressing,
        "not bound to a volume yet",
    );
}

#[test]
fn a_service_that_selects_needs_a_ready_endpoint() {
    let service = |spec: Value| json!({"apiVersion": "v1", "kind": "Service", "spec": spec});
    let selecting = service(json!({"selector": {"app": "kubia", "tier": "fe"}}));
    let none = service_with_endpoints(&selecting, 0);
    assert_eq!(
        none,
        Health::new(Progressing, "no ready endpoints: no ready pod has the labels app=kubia,tier=fe")
    );
    assert_eq!(service_with_endpoints(&selecting, 3), Health::new(Healthy, "3 ready endpoints"));
    assert_eq!(service_with_endpoints(&service(json!({})), 0).code, Healthy);
    assert_eq!(
        service_with_endpoints(&service(json!({"type": "ExternalName", "selector": {"a": "b"}})), 0).code,
        Healthy
    );
}

#[test]
fn nodes_and_applications_say_what_is_wrong() {
    let node = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status, "message": "no network"}]}});
    check("v1", "Node", node("True"), Healthy, "ready");
    check("v1", "Node", node("False"), Degraded, "not ready: no network");
    check("v1", "Node", json!({}), Progressing, "has not reported yet");
    let app = |status: Value| json!({"status": status});
    check("holdfast.dev/v1", "Application", app(json!({})), Progressing, "has not been synced yet");
    check(
        "holdfast.dev/v1",
        "Application",
        app(json!({"sync": {"state": "Failed", "message": "no such ref"}})),
        Degraded,
        "sync failed: no such ref",
    );
    check(
        "holdfast.dev/v1",
        "Application",
        app(json!({"health": {"code": "Degraded", "message": "web"}})),
        Degraded,
        "web",
    );
}

#[test]
fn a_rollout_whose_pods_all_crash_is_degraded_at_once() {
    let crashing = json!({"status": {"phase": "Running", "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}});
    let fine = json!({"status": {"phase": "Running"}});
    let own = || Health::new(Progressing, "0 of 2 replicas available");
    assert_eq!(
        with_pods(own(), &[&crashing, &crashing]),
        Health::new(Degraded, "0 of 2 replicas available; container a: CrashLoopBackOff")
    );
    assert_eq!(with_pods(own(), &[&crashing, &fine]), own());
    assert_eq!(with_pods(own(), &[]), own());
}

#[test]
fn the_worst_speaks_for_all() {
    let all = [
        Health::new(Healthy, "a"),
        Health::new(Progressing, "b"),
        Health::new(Degraded, "c"),
        Health::new(Degraded, "d"),
    ];
    assert_eq!(worst(&all), Health::new(Degraded, "c"));
    assert_eq!(worst(&all[..1]), Health::new(Healthy, ""));
    assert_eq!(worst(&[]), Health::new(Healthy, ""));
    assert!(
        Healthy < Suspended
            && Suspended < Progressing
            && Progressing < HealthCode::Missing
            && Degraded < Unknown
    );
    assert_eq!(serde_json::to_value(Degraded).unwrap(), json!("Degraded"));
}

#[test]
fn every_kind_that_can_fail_has_a_rule() {
    let with = |conditions: Value| json!({"status": {"conditions": conditions}});
    let definition = "apiextensions.k8s.io/v1";
    let kind = "CustomResourceDefinition";
    check(definition, kind, json!({}), Progressing, "is being made known");
    check(definition, kind, with(json!([{"type": "Established", "status": "True"}])), Healthy, "served");
    let taken = json!([{"type": "NamesAccepted", "status": "False", "message": "plural is taken"}]);
    check(definition, kind, with(taken), Degraded, "its names are not accepted: plural is taken");
    let scaler = ("autoscaling/v2", "HorizontalPodAutoscaler");
    check(scaler.0, scaler.1, json!({}), Progressing, "has not measured yet");
    let blind = json!([{"type": "AbleToScale", "status": "True"},
        {"type": "ScalingActive", "status": "False", "reason": "FailedGetResourceMetric", "message": "no metrics"}]);
    check(scaler.0, scaler.1, with(blind), Degraded, "no metrics");
    let phase = |phase: &str| json!({"status": {"phase": phase, "message": "busy"}});
    check("v1", "PersistentVolume", phase("Failed"), Degraded, "could not be reclaimed: busy");
    check("v1", "PersistentVolume", phase("Available"), Healthy, "free");
    let service = json!([{"type": "Available", "status": "False", "message": "no answer"}]);
    check("apiregistration.k8s.io/v1", "APIService", with(service), Progressing, "no answer");
}
