//! Health of the kinds that make pods: Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob.
//!
//! Invariant: numbers in messages are those of the spec and the status, so that they can be counted with kubectl.

use serde_json::Value;

use super::{Health, HealthCode, condition, count, is, reason, text};

pub(super) fn deployment(object: &Value) -> Health {
    let (spec, status) = (&object["spec"], &object["status"]);
    if spec["paused"] == true {
        return Health::new(HealthCode::Suspended, "paused: its rollout does not go on");
    }
    if let Some(health) = unobserved(object) {
        return health;
    }
    let wanted = wanted(spec);
    let progress =
        condition(object, "Progressing").filter(|c| text(c, "reason") == "ProgressDeadlineExceeded");
    if let Some(progress) = progress {
        let available = count(status, "availableReplicas");
        return Health::degraded(format!(
            "rollout stuck with {available} of {wanted} replicas available: {}",
            reason(progress)
        ));
    }
    if let Some(failure) = condition(object, "ReplicaFailure").filter(|c| is(c, "True")) {
        return Health::degraded(format!("cannot create pods: {}", reason(failure)));
    }
    let (updated, total) = (count(status, "updatedReplicas"), count(status, "replicas"));
    let available = count(status, "availableReplicas");
    if updated < wanted {
        return Health::progressing(format!("{updated} of {wanted} replicas updated"));
    }
    if total > updated {
        return Health::progressing(format!(
            "{} old {} still there",
            total - updated,
            noun(total - updated, "replica")
        ));
    }
    available_of(available, wanted)
}

pub(super) fn replica_set(object: &Value) -> Health {
    let (spec, status) = (&object["spec"], &object["status"]);
    if let Some(health) = unobserved(object) {
        return health;
    }
    if let Some(failure) = condition(object, "ReplicaFailure").filter(|c| is(c, "True")) {
        return Health::degraded(format!("cannot create pods: {}", reason(failure)));
    }
    let (wanted, total) = (wanted(spec), count(status, "replicas"));
    if total > wanted {
        return Health::progressing(format!(
            "{} {} too many",
            total - wanted,
            noun(total - wanted, "replica")
        ));
    }
    available_of(count(status, "availableReplicas"), wanted)
}

pub(super) fn stateful_set(object: &Value) -> Health {
    let (spec, status) = (&object["spec"], &object["status"]);
    if let Some(health) = unobserved(object) {
        return health;
    }
    let (wanted, ready) = (wanted(spec), count(status, "readyReplicas"));
    if ready < wanted {
        return Health::progressing(format!("{ready} of {wanted} replicas ready"));
    }
    let strategy = &spec["updateStrategy"];
    if text(strategy, "type") == "OnDelete" {
        return Health::healthy(format!("{ready} of {wanted} replicas ready, updated only when deleted"));
    }
    let partition = count(&strategy["rollingUpdate"], "partition");
    let updated = count(status, "updatedReplicas");
    if partition > 0 {
        let due = (wanted - partition).max(0);
        if updated < due {
            return Health::progressing(format!(
                "{updated} of {due} replicas updated (partition {partition})"
            ));
        }
    } else if text(status, "updateRevision") != text(status, "currentRevision") {
        return Health::progressing(format!("{updated} of {wanted} replicas updated"));
    }
    Health::healthy(format!("{ready} of {wanted} replicas ready"))
}

pub(super) fn daemon_set(object: &Value) -> Health {
    let (spec, status) = (&object["spec"], &object["status"]);
    if let Some(health) = unobserved(object) {
        return health;
    }
    let wanted = count(status, "desiredNumberScheduled");
    let updated = count(status, "updatedNumberScheduled");
    if text(&spec["updateStrategy"], "type") != "OnDelete" && updated < wanted {
        return Health::progressing(format!("{updated} of {wanted} pods updated"));
    }
    let available = count(status, "numberAvailable");
    let message = format!("{available} of {wanted} pods available");
    if available < wanted { Health::progressing(message) } else { Health::healthy(message) }
}

pub(super) fn job(object: &Value) -> Health {
    let (spec, status) = (&object["spec"], &object["status"]);
    if let Some(failed) = condition(object, "Failed").filter(|c| is(c, "True")) {
        return Health::degraded(format!("failed: {}", reason(failed)));
    }
    let (succeeded, failed) = (count(status, "succeeded"), count(status, "failed"));
    if condition(object, "Complete").is_some_and(|c| is(c, "True")) {
        return Health::healthy(format!("complete: {succeeded} {} succeeded", noun(succeeded, "pod")));
    }
    if spec["suspend"] == true || condition(object, "Suspended").is_some_and(|c| is(c, "True")) {
        return Health::new(HealthCode::Suspended, "suspended");
    }
    let active = count(status, "active");
    let mut message = match spec["completions"].as_i64() {
        Some(completions) => format!("{succeeded} of {completions} completions, {active} running"),
        None => format!("{active} running"),
    };
    if failed > 0 {
        message.push_str(&format!(", {failed} failed"));
    }
    Health::progressing(message)
}

pub(super) fn cron_job(object: &Value) -> Health {
    let (spec, status) = (&object["spec"], &object["status"]);
    if spec["suspend"] == true {
        return Health::healthy("suspended: starts no jobs");
    }
    let (last, success) = (text(status, "lastScheduleTime"), text(status, "lastSuccessfulTime"));
    let active = status["active"].as_array().map_or(0, Vec::len);
    if active > 0 {
        return Health::healthy(format!("{active} {} running", noun(active as i64, "job")));
    }
    if last.is_empty() {
        return Health::healthy(format!("waits for its schedule {:?}", text(spec, "schedule")));
    }
    if success.is_empty() {
        return Health::healthy(format!("last started {last}, none has succeeded yet"));
    }
    // RFC 3339 in UTC sorts as text.
    if success < last {
        return Health::degraded(format!(
            "the job of {last} did not succeed; the last that did ended {success}"
        ));
    }
    Health::healthy(format!("last succeeded {success}"))
}

/// Controllers write observedGeneration with their first look.
fn unobserved(object: &Value) -> Option<Health> {
    let seen = object["status"]["observedGeneration"].as_i64().unwrap_or(0) > 0;
    (!seen && object["metadata"]["generation"].is_number())
        .then(|| Health::progressing("its controller has not looked at it yet"))
}

fn wanted(spec: &Value) -> i64 {
    spec["replicas"].as_i64().unwrap_or(1)
}

fn available_of(available: i64, wanted: i64) -> Health {
    let message = format!("{available} of {wanted} replicas available");
    if available < wanted { Health::progressing(message) } else { Health::healthy(message) }
}

fn noun(count: i64, one: &str) -> String {
    if count == 1 { one.to_owned() } else { format!("{one}s") }
}
