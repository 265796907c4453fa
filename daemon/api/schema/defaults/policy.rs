//! Defaults of the kinds that allow, refuse and bound.

use serde_json::{Value, json};

use super::{Fields, child, each, made, protocol, set, text};
use crate::kinds::Kind;

const RBAC: &str = "rbac.authorization.k8s.io";

/// Of what a container may use: the most is the default, the default is the request, else the least is.
pub(super) fn limit_range(map: &mut Fields) {
    each(made(map, "spec"), "limits", |item| {
        if text(item, "type") != "Container" {
            return;
        }
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let Some(Value::Object(amounts)) = item.get(from).cloned() else { continue };
            let into = made(item, to);
            for (name, amount) in amounts {
                set(into, &name, || amount);
            }
        }
    });
}

/// A policy that names no type is about what comes in, and about what goes out when it has rules for that.
pub(super) fn network_policy(map: &mut Fields) {
    let spec = made(map, "spec");
    for list in ["ingress", "egress"] {
        each(spec, list, |rule| each(rule, "ports", protocol));
    }
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let out = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        let types = if out { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".into(), types);
    }
}

pub(super) fn roles(map: &mut Fields) {
    if let Some(role) = child(map, "roleRef")
        && text(role, "apiGroup").is_empty()
    {
        role.insert("apiGroup".into(), RBAC.into());
    }
    each(map, "subjects", |subject| {
        if matches!(text(subject, "kind"), "User" | "Group") {
            set(subject, "apiGroup", || RBAC.into());
        }
    });
}

pub(super) fn priority_class(map: &mut Fields) {
    set(map, "preemptionPolicy", || "PreemptLowerPriority".into());
    set(map, "value", || 0.into());
}

pub(super) fn api_service(map: &mut Fields) {
    if let Some(service) = child(made(map, "spec"), "service") {
        set(service, "port", || 443.into());
    }
}

pub(super) fn admission(kind: &Kind, map: &mut Fields) {
    match kind.kind.as_str() {
        "ValidatingWebhookConfiguration" => each(map, "webhooks", webhook),
        "MutatingWebhookConfiguration" => each(map, "webhooks", |hook| {
            webhook(hook);
            set(hook, "reinvocationPolicy", || "Never".into());
        }),
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => {
            let mutates = kind.kind == "MutatingAdmissionPolicy";
            let spec = made(map, "spec");
            if mutates {
                set(spec, "reinvocationPolicy", || "Never".into());
            }
            set(spec, "failurePolicy", || "Fail".into());
            if let Some(constraints) = child(spec, "matchConstraints") {
                matching(constraints);
            }
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
            if let Some(resources) = child(made(map, "spec"), "matchResources") {
                matching(resources);
            }
        }
        _ => {}
    }
}

fn webhook(hook: &mut Fields) {
    set(hook, "failurePolicy", || "Fail".into());
    set(hook, "matchPolicy", || "Equivalent".into());
    set(hook, "namespaceSelector", || json!({}));
    set(hook, "objectSelector", || json!({}));
    set(hook, "timeoutSeconds", || 10.into());
    if let Some(service) = child(made(hook, "clientConfig"), "service") {
        set(service, "port", || 443.into());
    }
    each(hook, "rules", |rule| set(rule, "scope", || "*".into()));
}

fn matching(resources: &mut Fields) {
    set(resources, "matchPolicy", || "Equivalent".into());
    set(resources, "namespaceSelector", || json!({}));
    set(resources, "objectSelector", || json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        each(resources, list, |rule| set(rule, "scope", || "*".into()));
    }
}
