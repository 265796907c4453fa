//! Prints what allows, refuses and bounds: roles, budgets, quotas, classes, webhooks, requests for certificates.
//!
//! Invariant: a list in a cell is joined by commas, and an empty one reads as kubectl shows it.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, Column, NAME, age, age_of, boolean, flag, items, name, number, or, selector, string, text, wide,
};

pub(super) const BUDGET: &[Column] =
    &[NAME, text("Min Available"), text("Max Unavailable"), number("Allowed Disruptions"), AGE];

pub(super) fn budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = |field: &str| match &object["spec"][field] {
        Value::Null => "N/A".into(),
        Value::Number(number) => number.to_string().into(),
        other => other.clone(),
    };
    vec![
        name(object),
        bound("minAvailable"),
        bound("maxUnavailable"),
        object["status"]["disruptionsAllowed"].as_i64().unwrap_or(0).into(),
        age_of(object, now),
    ]
}

pub(super) const NETWORK_POLICY: &[Column] = &[NAME, text("Pod-Selector"), AGE];

pub(super) fn network_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), selector(&object["spec"]["podSelector"]), age_of(object, now)]
}

pub(super) const QUOTA: &[Column] = &[NAME, text("Request"), text("Limit"), AGE];

/// What is used of what there is: limits in one column, everything else in the other.
pub(super) fn quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in status["hard"].as_object().into_iter().flatten() {
        let used = or(string(&status["used"][resource]), "0");
        let cell = format!("{resource}: {}/{}", string(&used), string(hard));
        if resource.starts_with("limits") { limits.push(cell) } else { requests.push(cell) }
    }
    vec![name(object), requests.join(", ").into(), limits.join(", ").into(), age_of(object, now)]
}

pub(super) const CREATED: &[Column] = &[NAME, text("Created At")];

pub(super) fn created(object: &Value, _: Timestamp) -> Vec<Value> {
    vec![name(object), string(&object["metadata"]["creationTimestamp"]).into()]
}

pub(super) const BINDING: &[Column] =
    &[NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")];

pub(super) fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let of_kind = |kind: &str| {
        let subjects = items(&object["subjects"]).iter().filter(|subject| subject["kind"] == kind);
        let names: Vec<String> = subjects
            .map(|subject| match (kind, string(&subject["namespace"])) {
                ("ServiceAccount", namespace) => format!("{namespace}/{}", string(&subject["name"])),
                _ => string(&subject["name"]).to_owned(),
            })
            .collect();
        Value::from(names.join(", "))
    };
    let role = &object["roleRef"];
    vec![
        name(object),
        format!("{}/{}", string(&role["kind"]), string(&role["name"])).into(),
        age_of(object, now),
        of_kind("User"),
        of_kind("Group"),
        of_kind("ServiceAccount"),
    ]
}

pub(super) const PRIORITY: &[Column] =
    &[NAME, number("Value"), flag("Global-Default"), AGE, text("PreemptionPolicy")];

pub(super) fn priority(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        object["value"].as_i64().unwrap_or(0).into(),
        boolean(&object["globalDefault"]),
        age_of(object, now),
        or(string(&object["preemptionPolicy"]), "PreemptLowerPriority"),
    ]
}

pub(super) const RUNTIME: &[Column] = &[NAME, text("Handler"), AGE];

pub(super) fn runtime(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), string(&object["handler"]).into(), age_of(object, now)]
}

pub(super) const SIGNING: &[Column] =
    &[NAME, AGE, text("SignerName"), text("Requestor"), text("RequestedDuration"), text("Condition")];

pub(super) fn signing(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let has = |of_type: &str| items(&status["conditions"]).iter().any(|one| one["type"] == of_type);
    let mut states = vec![match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }];
    if has("Failed") {
        states.push("Failed");
    }
    if status["certificate"].as_str().is_some_and(|text| !text.is_empty()) {
        states.push("Issued");
    }
    let duration = spec["expirationSeconds"].as_i64().map(age::human).unwrap_or_default();
    vec![
        name(object),
        age_of(object, now),
        or(string(&spec["signerName"]), "<none>"),
        string(&spec["username"]).into(),
        or(&duration, "<none>"),
        states.join(",").into(),
    ]
}

pub(super) const WEBHOOKS: &[Column] = &[NAME, number("Webhooks"), AGE];

pub(super) fn webhooks(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), items(&object["webhooks"]).len().into(), age_of(object, now)]
}

pub(super) const ADMISSION_POLICY: &[Column] = &[NAME, number("Validations"), text("ParamKind"), AGE];

pub(super) fn admission_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, of) = (&object["spec"], &object["spec"]["paramKind"]);
    let parameter = if of.is_object() {
        format!("{}/{}", string(&of["apiVersion"]), string(&of["kind"]))
    } else {
        "<unset>".to_owned()
    };
    vec![name(object), items(&spec["validations"]).len().into(), parameter.into(), age_of(object, now)]
}

pub(super) const ADMISSION_BINDING: &[Column] = &[NAME, text("PolicyName"), text("ParamRef"), AGE];

pub(super) fn admission_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, of) = (&object["spec"], &object["spec"]["paramRef"]);
    let parameter = match (of.is_object(), string(&of["namespace"]), string(&of["name"])) {
        (false, ..) => "<unset>".to_owned(),
        (true, _, "") => string(&selector(&of["selector"])).to_owned(),
        (true, "", name) => name.to_owned(),
        (true, namespace, name) => format!("{namespace}/{name}"),
    };
    vec![name(object), string(&spec["policyName"]).into(), parameter.into(), age_of(object, now)]
}

pub(super) const API_SERVICE: &[Column] = &[NAME, text("Service"), text("Available"), AGE];

pub(super) fn api_service(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = &object["spec"]["service"];
    let shown = if service.is_object() {
        format!("{}/{}", string(&service["namespace"]), string(&service["name"]))
    } else {
        "Local".to_owned()
    };
    let conditions = items(&object["status"]["conditions"]);
    let available = conditions.iter().find(|one| one["type"] == "Available").map_or_else(
        || "Unknown".to_owned(),
        |one| match (string(&one["status"]), string(&one["reason"])) {
            ("True", _) | (_, "") => string(&one["status"]).to_owned(),
            (status, reason) => format!("{status} ({reason})"),
        },
    );
    vec![name(object), shown.into(), available.into(), age_of(object, now)]
}
