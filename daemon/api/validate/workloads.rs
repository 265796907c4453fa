//! Judges the kinds that make pods: selectors against templates, strategies, counts.
//!
//! Invariant: a selector must choose the pods that its own template makes.

use serde_json::{Value, json};

use super::{Found, cron, items, meta, pod, text};
use crate::schema::Defect;
use crate::select::Labels;

/// `ValidateDeployment`.
pub(super) fn deployment(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    found.non_negative(&spec["replicas"], "spec.replicas");
    chosen_template(spec, "deployment", found);
    strategy(&spec["strategy"], found);
    found.non_negative(&spec["minReadySeconds"], "spec.minReadySeconds");
    found.non_negative(&spec["revisionHistoryLimit"], "spec.revisionHistoryLimit");
    let deadline = &spec["progressDeadlineSeconds"];
    found.non_negative(deadline, "spec.progressDeadlineSeconds");
    let least = spec["minReadySeconds"].as_i64().unwrap_or(0);
    if deadline.as_i64().is_some_and(|seconds| seconds <= least) {
        found.add(Defect::invalid(
            "spec.progressDeadlineSeconds",
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
}

/// `ValidateReplicaSet`.
pub(super) fn replica_set(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    found.non_negative(&spec["replicas"], "spec.replicas");
    found.non_negative(&spec["minReadySeconds"], "spec.minReadySeconds");
    chosen_template(spec, "replicaset", found);
}

/// `ValidateJob`.
pub(super) fn job(object: &Value, old: Option<&Value>, found: &mut Found) {
    let spec = &object["spec"];
    for name in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        found.non_negative(&spec[name], &format!("spec.{name}"));
    }
    if spec["selector"].is_null() {
        found.add(Defect::required("spec.selector", ""));
    } else {
        meta::selector(&spec["selector"], "spec.selector", found);
        let own =
            json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": object["metadata"]["uid"] } });
        if old.is_none() && spec["manualSelector"] != true && spec["selector"] != own {
            found.add(Defect::invalid("spec.selector", &spec["selector"], "`selector` not auto-generated"));
        } else if old.is_none() {
            matches_template(spec, found);
        }
    }
    found.one_of(&spec["completionMode"], "spec.completionMode", &["NonIndexed", "Indexed"]);
    if spec["completionMode"] == "Indexed" && spec["completions"].is_null() {
        let why = "when completion mode is Indexed";
        found.add(Defect::required("spec.completions", why));
    }
    found.one_of(
        &spec["podReplacementPolicy"],
        "spec.podReplacementPolicy",
        &["Failed", "TerminatingOrFailed"],
    );
    if !spec["podFailurePolicy"].is_null() && spec["template"]["spec"]["restartPolicy"] != "Never" {
        let why = "only \"Never\" is supported when podFailurePolicy is specified";
        found.add(Defect::invalid(
            "spec.template.spec.restartPolicy",
            &spec["template"]["spec"]["restartPolicy"],
            why,
        ));
    }
    // A job's template cannot change, so what was good stays good.
    if old.is_none_or(|old| old["spec"]["template"] != spec["template"]) {
        pod::template(&spec["template"], "spec.template", found);
    }
    if !matches!(text(&spec["template"]["spec"]["restartPolicy"]), "OnFailure" | "Never") {
        found.add(Defect::required(
            "spec.template.spec.restartPolicy",
            r#"valid values: "OnFailure", "Never""#,
        ));
    }
}

/// `ValidateReplicationController`.
pub(super) fn replication_controller(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    found.non_negative(&spec["replicas"], "spec.replicas");
    found.non_negative(&spec["minReadySeconds"], "spec.minReadySeconds");
    if spec["selector"].as_object().is_none_or(|selector| selector.is_empty()) {
        found.add(Defect::required("spec.selector", ""));
    }
    if spec["template"].is_null() {
        return found.add(Defect::required("spec.template", ""));
    }
    let labels = pod::labels_of(&spec["template"]);
    if Labels::from_map(&spec["selector"]).is_ok_and(|selector| !selector.matches(&labels)) {
        let shown = serde_json::to_value(&labels).unwrap_or_default();
        let why = "`selector` does not match template `labels`";
        found.add(Defect::invalid("spec.template.labels", &shown, why));
    }
    pod::template(&spec["template"], "spec.template", found);
    always_restarts(&spec["template"]["spec"], found);
}

/// `ValidateStatefulSet`.
pub(super) fn stateful_set(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    found.one_of(&spec["podManagementPolicy"], "spec.podManagementPolicy", &["OrderedReady", "Parallel"]);
    let strategy = &spec["updateStrategy"];
    match text(&strategy["type"]) {
        "OnDelete" if !strategy["rollingUpdate"].is_null() => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            found.add(Defect::invalid("spec.updateStrategy.rollingUpdate", &strategy["rollingUpdate"], why));
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            let path = "spec.updateStrategy.rollingUpdate";
            found.non_negative(&strategy["rollingUpdate"]["partition"], &format!("{path}.partition"));
            share(&strategy["rollingUpdate"]["maxUnavailable"], &format!("{path}.maxUnavailable"), found);
        }
        _ => {
            let why = "must be 'RollingUpdate' or 'OnDelete'";
            found.add(Defect::invalid("spec.updateStrategy", strategy, why));
        }
    }
    for when in ["whenDeleted", "whenScaled"] {
        let path = format!("spec.persistentVolumeClaimRetentionPolicy.{when}");
        found.one_of(&spec["persistentVolumeClaimRetentionPolicy"][when], &path, &["Delete", "Retain"]);
    }
    found.non_negative(&spec["replicas"], "spec.replicas");
    found.non_negative(&spec["minReadySeconds"], "spec.minReadySeconds");
    found.non_negative(&spec["ordinals"]["start"], "spec.ordinals.start");
    chosen_template(&with_claims(spec), "statefulset", found);
}

/// The spec with a volume for each claim template that the pod template has no volume for: as its pods will have them.
fn with_claims(spec: &Value) -> Value {
    let mut with = spec.clone();
    let known: Vec<Value> = items(&spec["template"]["spec"]["volumes"]).to_vec();
    let named = |name: &Value| known.iter().any(|volume| volume["name"] == *name);
    let claims = items(&spec["volumeClaimTemplates"]).iter().map(|claim| &claim["metadata"]["name"]);
    let more: Vec<Value> = claims
        .filter(|name| !named(name))
        .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}))
        .collect();
    if !more.is_empty() {
        with["template"]["spec"]["volumes"] = known.iter().cloned().chain(more).collect();
    }
    with
}

/// `ValidateStatefulSetUpdate`.
pub(super) fn stateful_set_update(new: &Value, old: &Value, found: &mut Found) {
    const MAY_CHANGE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let fixed = |object: &Value| {
        let mut spec = object["spec"].as_object().cloned().unwrap_or_default();
        spec.retain(|name, _| !MAY_CHANGE.contains(&name.as_str()));
        spec
    };
    if fixed(new) != fixed(old) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        found.add(Defect::forbidden("spec", why));
    }
}

/// `ValidateDaemonSet`.
pub(super) fn daemon_set(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    chosen_template(spec, "daemonset", found);
    found.non_negative(&spec["minReadySeconds"], "spec.minReadySeconds");
    found.non_negative(&spec["revisionHistoryLimit"], "spec.revisionHistoryLimit");
    let strategy = &spec["updateStrategy"];
    let rolling = &strategy["rollingUpdate"];
    match text(&strategy["type"]) {
        "OnDelete" => {}
        "RollingUpdate" => {
            let path = "spec.updateStrategy.rollingUpdate";
            for name in ["maxUnavailable", "maxSurge"] {
                share(&rolling[name], &format!("{path}.{name}"), found);
            }
            let (lost, more) = (is_zero(&rolling["maxUnavailable"]), is_zero(&rolling["maxSurge"]));
            if lost && more {
                let why = "cannot be 0 when maxSurge is 0";
                found.add(Defect::invalid(format!("{path}.maxUnavailable"), &rolling["maxUnavailable"], why));
            } else if !lost && !more && !rolling["maxSurge"].is_null() {
                let why = "may not be set when maxUnavailable is non-zero";
                found.add(Defect::invalid(format!("{path}.maxSurge"), &rolling["maxSurge"], why));
            }
        }
        _ => found.one_of(&strategy["type"], "spec.updateStrategy.type", &["OnDelete", "RollingUpdate"]),
    }
}

/// `ValidateCronJob`.
pub(super) fn cron_job(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    if text(&object["metadata"]["name"]).len() > 52 {
        let why = "must be no more than 52 characters";
        found.add(Defect::invalid("metadata.name", &object["metadata"]["name"], why));
    }
    if let Some(schedule) = found.required(&spec["schedule"], "spec.schedule") {
        if schedule.contains("TZ") {
            let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            found.add(Defect::invalid("spec.schedule", &spec["schedule"], why));
        } else if let Some(why) = cron::defect(schedule) {
            found.add(Defect::invalid("spec.schedule", &spec["schedule"], &why));
        }
    }
    if let Some(zone) = spec["timeZone"].as_str() {
        if zone.is_empty() {
            found.add(Defect::invalid(
                "spec.timeZone",
                &spec["timeZone"],
                "timeZone must be nil or non-empty string",
            ));
        } else if zone.eq_ignore_ascii_case("local") || !cron::is_zone_name(zone) {
            let why = format!("unknown time zone {zone}");
            found.add(Defect::invalid("spec.timeZone", &spec["timeZone"], &why));
        }
    }
    for name in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        found.non_negative(&spec[name], &format!("spec.{name}"));
    }
    found.one_of(&spec["concurrencyPolicy"], "spec.concurrencyPolicy", &["Allow", "Forbid", "Replace"]);
    let path = "spec.jobTemplate.spec.template";
    let job = &spec["jobTemplate"]["spec"];
    pod::template(&job["template"], path, found);
    if !matches!(text(&job["template"]["spec"]["restartPolicy"]), "OnFailure" | "Never") {
        let why = r#"valid values: "OnFailure", "Never""#;
        found.add(Defect::required(format!("{path}.spec.restartPolicy"), why));
    }
    for name in
        ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"]
    {
        found.non_negative(&job[name], &format!("spec.jobTemplate.spec.{name}"));
    }
}

/// `ValidateHorizontalPodAutoscaler`.
pub(super) fn autoscaler(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    found.at_least(&spec["minReplicas"], "spec.minReplicas", 1);
    let most = spec["maxReplicas"].as_i64().unwrap_or(0);
    if most < 1 {
        found.add(Defect::invalid("spec.maxReplicas", &most.into(), "must be greater than 0"));
    }
    if spec["minReplicas"].as_i64().is_some_and(|least| most < least) {
        let why = "must be greater than or equal to `minReplicas`";
        found.add(Defect::invalid("spec.maxReplicas", &most.into(), why));
    }
    for name in ["kind", "name"] {
        found.required(&spec["scaleTargetRef"][name], &format!("spec.scaleTargetRef.{name}"));
    }
    for (index, metric) in items(&spec["metrics"]).iter().enumerate() {
        let path = format!("spec.metrics[{index}]");
        let types = ["ContainerResource", "External", "Object", "Pods", "Resource"];
        if found.required(&metric["type"], &format!("{path}.type")).is_none() {
            continue;
        }
        found.one_of(&metric["type"], &format!("{path}.type"), &types);
        let of_type = text(&metric["type"]);
        let field = of_type[..1].to_lowercase() + &of_type[1..];
        if types.contains(&of_type) && metric[&field].is_null() {
            let why = "must populate information for the given metric source";
            found.add(Defect::required(format!("{path}.{field}"), why));
        }
    }
}

/// `ValidateControllerRevision`.
pub(super) fn revision(object: &Value, found: &mut Found) {
    if object["data"].is_null() {
        found.add(Defect::required("data", "data is mandatory"));
    }
    found.non_negative(&object["revision"], "revision");
}

/// `ValidatePodTemplate`.
pub(super) fn pod_template(object: &Value, found: &mut Found) {
    pod::template(&object["template"], "template", found);
}

/// Selector, template and their agreement, as deployments and replica sets want them.
fn chosen_template(spec: &Value, word: &str, found: &mut Found) {
    let selector = &spec["selector"];
    if selector.is_null() {
        found.add(Defect::required("spec.selector", ""));
    } else {
        meta::selector(selector, "spec.selector", found);
        let empty = selector["matchLabels"].as_object().is_none_or(|map| map.is_empty())
            && items(&selector["matchExpressions"]).is_empty();
        if empty {
            let why = format!("empty selector is invalid for {word}");
            found.add(Defect::invalid("spec.selector", selector, &why));
        } else {
            matches_template(spec, found);
        }
    }
    pod::template(&spec["template"], "spec.template", found);
    always_restarts(&spec["template"]["spec"], found);
}

fn always_restarts(pod: &Value, found: &mut Found) {
    if pod["restartPolicy"] != "Always" {
        found.one_of(&pod["restartPolicy"], "spec.template.spec.restartPolicy", &["Always"]);
    }
    if !pod["activeDeadlineSeconds"].is_null() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        found.add(Defect::forbidden("spec.template.spec.activeDeadlineSeconds", why));
    }
}

fn matches_template(spec: &Value, found: &mut Found) {
    let labels = pod::labels_of(&spec["template"]);
    if Labels::from_selector(&spec["selector"]).is_ok_and(|selector| !selector.matches(&labels)) {
        let shown = serde_json::to_value(&labels).unwrap_or_default();
        found.add(Defect::invalid(
            "spec.template.metadata.labels",
            &shown,
            "`selector` does not match template `labels`",
        ));
    }
}

fn strategy(strategy: &Value, found: &mut Found) {
    let rolling = &strategy["rollingUpdate"];
    match text(&strategy["type"]) {
        "Recreate" if !rolling.is_null() => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            found.add(Defect::forbidden("spec.strategy.rollingUpdate", why));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let path = "spec.strategy.rollingUpdate";
            for name in ["maxUnavailable", "maxSurge"] {
                share(&rolling[name], &format!("{path}.{name}"), found);
            }
            if is_zero(&rolling["maxUnavailable"]) && is_zero(&rolling["maxSurge"]) {
                let why = "may not be 0 when `maxSurge` is 0";
                found.add(Defect::invalid(format!("{path}.maxUnavailable"), &rolling["maxUnavailable"], why));
            }
            if percent(&rolling["maxUnavailable"]).is_some_and(|share| share > 100) {
                found.add(Defect::invalid(
                    format!("{path}.maxUnavailable"),
                    &rolling["maxUnavailable"],
                    "must not be greater than 100%",
                ));
            }
        }
        _ => found.one_of(&strategy["type"], "spec.strategy.type", &["Recreate", "RollingUpdate"]),
    }
}

/// `ValidatePositiveIntOrPercent`.
pub(super) fn share(value: &Value, path: &str, found: &mut Found) {
    if value.is_string() && percent(value).is_none() {
        let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
        found.add(Defect::invalid(path, value, why));
    }
    found.non_negative(value, path);
}

fn percent(value: &Value) -> Option<u64> {
    let digits = value.as_str()?.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) { None } else { digits.parse().ok() }
}

fn is_zero(value: &Value) -> bool {
    value.as_i64() == Some(0) || percent(value) == Some(0)
}
