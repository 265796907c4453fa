//! Judges deployments, replica sets and jobs: selectors against templates, strategies, counts.
//!
//! Invariant: a selector must choose the pods that its own template makes.

use serde_json::{Value, json};

use super::{Found, items, meta, pod, text};
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
    let pod = &spec["template"]["spec"];
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
fn share(value: &Value, path: &str, found: &mut Found) {
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
