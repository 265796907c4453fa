//! Prints the kinds that make pods, and the autoscaler that counts them.
//!
//! Invariant: counts that status does not have yet are zero, never blank.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, Column, NAME, age, age_of, condition, count, items, name, number, or, pairs, selector, string, text,
    wide,
};

pub(super) const DEPLOYMENT: &[Column] = &[
    NAME,
    text("Ready"),
    number("Up-to-date"),
    number("Available"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

pub(super) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let mut cells = vec![
        name(object),
        format!("{}/{}", count(&status["readyReplicas"]), count(&spec["replicas"])).into(),
        count(&status["updatedReplicas"]).into(),
        count(&status["availableReplicas"]).into(),
        age_of(object, now),
    ];
    cells.extend(template(spec));
    cells
}

pub(super) const REPLICA_SET: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

pub(super) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let mut cells = vec![
        name(object),
        count(&spec["replicas"]).into(),
        count(&status["replicas"]).into(),
        count(&status["readyReplicas"]).into(),
        age_of(object, now),
    ];
    cells.extend(template(spec));
    cells
}

pub(super) const JOB: &[Column] = &[
    NAME,
    text("Status"),
    text("Completions"),
    text("Duration"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

pub(super) fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let succeeded = count(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), count(&spec["parallelism"])) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let duration = age::at(&status["startTime"]).map(|start| {
        let end = age::at(&status["completionTime"]).unwrap_or(now);
        age::human(end.as_second() - start.as_second())
    });
    let mut cells = vec![
        name(object),
        job_status(object).into(),
        completions.into(),
        duration.unwrap_or_default().into(),
        age_of(object, now),
    ];
    cells.extend(template(spec));
    cells
}

fn job_status(job: &Value) -> &'static str {
    let holds = |of_type: &str| condition(job, of_type) == Some("True");
    match () {
        () if holds("Complete") => "Complete",
        () if holds("Failed") => "Failed",
        () if !job["metadata"]["deletionTimestamp"].is_null() => "Terminating",
        () if holds("Suspended") => "Suspended",
        () if holds("FailureTarget") => "FailureTarget",
        () if holds("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

pub(super) const CONTROLLER: &[Column] = REPLICA_SET;

/// A ReplicationController selects by a map of labels.
pub(super) fn controller(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = replica_set(object, now);
    cells[7] = or(&pairs(&object["spec"]["selector"]).join(","), "<none>");
    cells
}

pub(super) const STATEFUL_SET: &[Column] = &[NAME, text("Ready"), AGE, wide("Containers"), wide("Images")];

pub(super) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let ready = format!("{}/{}", count(&status["readyReplicas"]), count(&spec["replicas"]));
    let mut cells = vec![name(object), ready.into(), age_of(object, now)];
    cells.extend(template(spec).into_iter().take(2));
    cells
}

pub(super) const DAEMON_SET: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    number("Up-to-date"),
    number("Available"),
    text("Node Selector"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

pub(super) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let counts = [
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    ];
    let mut cells = vec![name(object)];
    cells.extend(counts.map(|field| Value::from(count(&status[field]))));
    cells.push(or(&pairs(&spec["template"]["spec"]["nodeSelector"]).join(","), "<none>"));
    cells.push(age_of(object, now));
    cells.extend(template(spec));
    cells
}

pub(super) const CRON_JOB: &[Column] = &[
    NAME,
    text("Schedule"),
    text("Timezone"),
    text("Suspend"),
    number("Active"),
    text("Last Schedule"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

pub(super) fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let last = &status["lastScheduleTime"];
    let suspended = match spec["suspend"].as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    let mut cells = vec![
        name(object),
        string(&spec["schedule"]).into(),
        or(string(&spec["timeZone"]), "<none>"),
        suspended.into(),
        items(&status["active"]).len().into(),
        if last.is_string() { age::since(last, now).into() } else { "<none>".into() },
        age_of(object, now),
    ];
    cells.extend(template(&spec["jobTemplate"]["spec"]));
    cells
}

pub(super) const AUTOSCALER: &[Column] =
    &[NAME, text("Reference"), text("Targets"), text("MinPods"), text("MaxPods"), text("Replicas"), AGE];

pub(super) fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let of = &spec["scaleTargetRef"];
    let metrics = items(&spec["metrics"]);
    let current = items(&status["currentMetrics"]);
    let first_two = metrics.iter().enumerate().take(2);
    let shown: Vec<String> =
        first_two.map(|(at, metric)| target(metric, current.get(at).unwrap_or(&Value::Null))).collect();
    let mut shown = shown.join(", ");
    if metrics.len() > 2 {
        shown.push_str(&format!(" + {} more...", metrics.len() - 2));
    }
    vec![
        name(object),
        format!("{}/{}", string(&of["kind"]), string(&of["name"])).into(),
        or(&shown, "<none>"),
        spec["minReplicas"].as_i64().map_or_else(|| "<unset>".into(), |least| least.to_string().into()),
        count(&spec["maxReplicas"]).to_string().into(),
        count(&status["currentReplicas"]).to_string().into(),
        age_of(object, now),
    ]
}

/// `cpu: 10%/50%`: what is measured beside what is wanted.
fn target(metric: &Value, current: &Value) -> String {
    let of_type = string(&metric["type"]);
    let field = match of_type {
        "ContainerResource" => "containerResource",
        "Resource" => "resource",
        "Pods" => "pods",
        "Object" => "object",
        _ => "external",
    };
    let (wanted, seen) = (&metric[field]["target"], &current[field]["current"]);
    let amount = |value: &Value| match value {
        Value::Null => "<unknown>".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let known = |value: &Value, unit: &str| match value {
        Value::Null => "<unknown>".to_owned(),
        value => format!("{}{unit}", amount(value)),
    };
    let text = if wanted["averageUtilization"].is_number() {
        format!("{}/{}", known(&seen["averageUtilization"], "%"), known(&wanted["averageUtilization"], "%"))
    } else if wanted["averageValue"].is_string() {
        let unit = if of_type == "Pods" || of_type.ends_with("Resource") { "" } else { " (avg)" };
        format!("{}/{}", amount(&seen["averageValue"]), known(&wanted["averageValue"], unit))
    } else {
        format!("{}/{}", amount(&seen["value"]), amount(&wanted["value"]))
    };
    match metric[field]["name"].as_str() {
        Some(name) if of_type.ends_with("Resource") => format!("{name}: {text}"),
        _ => text,
    }
}

pub(super) const REVISION: &[Column] = &[NAME, text("Controller"), number("Revision"), AGE];

pub(super) fn revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owners = items(&object["metadata"]["ownerReferences"]);
    let owner = owners.iter().find(|owner| owner["controller"] == true).map_or_else(
        || "<none>".to_owned(),
        |owner| {
            let group = string(&owner["apiVersion"]).split_once('/').map_or("", |(group, _)| group);
            let dot = if group.is_empty() { "" } else { "." };
            format!("{}{dot}{group}/{}", string(&owner["kind"]).to_lowercase(), string(&owner["name"]))
        },
    );
    vec![name(object), owner.into(), count(&object["revision"]).into(), age_of(object, now)]
}

pub(super) const POD_TEMPLATE: &[Column] = &[NAME, text("Containers"), text("Images"), text("Pod Labels")];

pub(super) fn pod_template(object: &Value, _: Timestamp) -> Vec<Value> {
    let [names, images, _] = template(object);
    let labels = pairs(&object["template"]["metadata"]["labels"]).join(",");
    vec![name(object), names, images, or(&labels, "<none>")]
}

/// Containers, images and selector of whatever has a pod template.
fn template(spec: &Value) -> [Value; 3] {
    let containers = items(&spec["template"]["spec"]["containers"]);
    let join = |field: &str| {
        let texts: Vec<&str> = containers.iter().map(|container| string(&container[field])).collect();
        Value::from(texts.join(","))
    };
    [join("name"), join("image"), selector(&spec["selector"])]
}
