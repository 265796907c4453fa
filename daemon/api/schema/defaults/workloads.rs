//! Defaults of the kinds that make pods, and of those that count them.

use serde_json::{Value, json};

use super::{Fields, child, each, made, pod_spec, set, storage, template, text};
use crate::kinds::Kind;

/// Its selector and its own labels are its template's, unless told otherwise.
pub(super) fn replication_controller(map: &mut Fields) {
    let labels = map.get("spec").map(|spec| spec["template"]["metadata"]["labels"].clone());
    if let Some(Value::Object(labels)) = labels
        && !labels.is_empty()
    {
        let spec = made(map, "spec");
        if spec.get("selector").is_none_or(|selector| selector.as_object().is_none_or(|map| map.is_empty())) {
            spec.insert("selector".into(), labels.clone().into());
        }
        set(made(map, "metadata"), "labels", || labels.into());
    }
    let spec = made(map, "spec");
    set(spec, "replicas", || 1.into());
    if spec.contains_key("template") {
        template(spec);
    }
}

pub(super) fn stateful_set(map: &mut Fields) {
    let spec = made(map, "spec");
    set(spec, "podManagementPolicy", || "OrderedReady".into());
    let strategy = made(spec, "updateStrategy");
    set(strategy, "type", || "RollingUpdate".into());
    if text(strategy, "type") == "RollingUpdate" {
        set(made(strategy, "rollingUpdate"), "partition", || 0.into());
    }
    let retention = made(spec, "persistentVolumeClaimRetentionPolicy");
    set(retention, "whenDeleted", || "Retain".into());
    set(retention, "whenScaled", || "Retain".into());
    set(spec, "replicas", || 1.into());
    set(spec, "revisionHistoryLimit", || 10.into());
    each(spec, "volumeClaimTemplates", |claim| {
        set(claim, "apiVersion", || "v1".into());
        set(claim, "kind", || "PersistentVolumeClaim".into());
        storage::claim(claim);
    });
    template(spec);
}

pub(super) fn daemon_set(map: &mut Fields) {
    let spec = made(map, "spec");
    let strategy = made(spec, "updateStrategy");
    set(strategy, "type", || "RollingUpdate".into());
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = made(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", || 1.into());
        set(rolling, "maxSurge", || 0.into());
    }
    set(spec, "revisionHistoryLimit", || 10.into());
    template(spec);
}

/// The job in it gets its own defaults only when it is made.
pub(super) fn cron_job(map: &mut Fields) {
    let spec = made(map, "spec");
    set(spec, "concurrencyPolicy", || "Allow".into());
    set(spec, "suspend", || false.into());
    set(spec, "successfulJobsHistoryLimit", || 3.into());
    set(spec, "failedJobsHistoryLimit", || 1.into());
    let job = made(spec, "jobTemplate");
    set(job, "metadata", || json!({}));
    let template = made(made(job, "spec"), "template");
    set(template, "metadata", || json!({}));
    pod_spec(made(template, "spec"));
}

/// Version 2 measures processor time when it is told nothing; version 1 knows nothing else.
pub(super) fn autoscaler(kind: &Kind, map: &mut Fields) {
    let spec = made(map, "spec");
    set(spec, "minReplicas", || 1.into());
    if kind.version == "v1" {
        return;
    }
    if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let cpu = json!({ "type": "Resource", "resource": { "name": "cpu",
            "target": { "type": "Utilization", "averageUtilization": 80 } } });
        spec.insert("metrics".into(), json!([cpu]));
    }
    let Some(behavior) = child(spec, "behavior") else { return };
    let up = made(behavior, "scaleUp");
    set(up, "stabilizationWindowSeconds", || 0.into());
    set(up, "selectPolicy", || "Max".into());
    set(
        up,
        "policies",
        || json!([{ "type": "Pods", "value": 4, "periodSeconds": 15 }, { "type": "Percent", "value": 100, "periodSeconds": 15 }]),
    );
    let down = made(behavior, "scaleDown");
    set(down, "selectPolicy", || "Max".into());
    set(down, "policies", || json!([{ "type": "Percent", "value": 100, "periodSeconds": 15 }]));
}
