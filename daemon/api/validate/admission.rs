//! Judges what configures admission: webhooks, policies and their bindings.
//!
//! Invariant: expressions are compiled here, so that what cannot be read is refused with its author present.

use serde_json::{Value, json};

use super::{Found, items, meta, names, text};
use crate::cel::rules;
use crate::schema::Defect;

/// What a webhook's conditions may name.
const OF_WEBHOOK: [&str; 3] = ["object", "oldObject", "request"];
/// What a policy's conditions may name; its variables and validations know `variables` beside.
const OF_POLICY: [&str; 6] = ["object", "oldObject", "request", "params", "namespaceObject", "variables"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

/// What expressions of changing policies may use; the last two are the types of what they make.
pub const OF_MUTATION: [&str; 8] =
    ["object", "oldObject", "request", "params", "namespaceObject", "variables", "Object", "JSONPatch"];

/// `ValidateValidatingWebhookConfiguration` and `ValidateMutatingWebhookConfiguration`.
pub(super) fn webhooks(object: &Value, found: &mut Found) {
    let mut seen = Vec::new();
    for (index, hook) in items(&object["webhooks"]).iter().enumerate() {
        let path = format!("webhooks[{index}]");
        let name = text(&hook["name"]);
        if name.split('.').count() < 3 || !names::subdomain(name).is_empty() {
            let why = "should be a domain with at least three segments separated by dots";
            found.add(Defect::invalid(format!("{path}.name"), &hook["name"], why));
        }
        if seen.contains(&name) {
            found.add(Defect::duplicate(format!("{path}.name"), &hook["name"]));
        }
        seen.push(name);
        client(&hook["clientConfig"], &format!("{path}.clientConfig"), found);
        found.one_of(&hook["failurePolicy"], &format!("{path}.failurePolicy"), &["Fail", "Ignore"]);
        found.one_of(&hook["matchPolicy"], &format!("{path}.matchPolicy"), &["Equivalent", "Exact"]);
        match hook["sideEffects"].as_str() {
            None => found.add(Defect::required(
                format!("{path}.sideEffects"),
                "must specify one of None, NoneOnDryRun",
            )),
            Some(_) => {
                found.one_of(&hook["sideEffects"], &format!("{path}.sideEffects"), &["None", "NoneOnDryRun"]);
            }
        }
        if hook["timeoutSeconds"].as_i64().is_some_and(|seconds| !(1..=30).contains(&seconds)) {
            let why = "the timeout value must be between 1 and 30 seconds";
            found.add(Defect::invalid(format!("{path}.timeoutSeconds"), &hook["timeoutSeconds"], why));
        }
        if !items(&hook["admissionReviewVersions"]).iter().any(|one| one == "v1" || one == "v1beta1") {
            let why = "must include at least one of v1, v1beta1";
            let versions = json!(items(&hook["admissionReviewVersions"]));
            found.add(Defect::invalid(format!("{path}.admissionReviewVersions"), &versions, why));
        }
        for (at, rule) in items(&hook["rules"]).iter().enumerate() {
            one_rule(rule, &format!("{path}.rules[{at}]"), found);
        }
        for selector in ["namespaceSelector", "objectSelector"] {
            meta::selector(&hook[selector], &format!("{path}.{selector}"), found);
        }
        conditions(&hook["matchConditions"], &format!("{path}.matchConditions"), &OF_WEBHOOK, found);
    }
}

fn client(client: &Value, path: &str, found: &mut Found) {
    match (client["url"].as_str(), client["service"].is_object()) {
        (Some(url), false) => {
            let path = format!("{path}.url");
            if !url.starts_with("https://") {
                found.add(Defect::invalid(path, &client["url"], "'https' is the only allowed URL scheme"));
            } else if url.contains(['?', '#', '@']) {
                let why = "query parameters, fragments and user information are not permitted in the URL";
                found.add(Defect::invalid(path, &client["url"], why));
            }
        }
        (None, true) => {
            for field in ["name", "namespace"] {
                if text(&client["service"][field]).is_empty() {
                    let why = format!("service {field} is required");
                    found.add(Defect::required(format!("{path}.service.{field}"), &why));
                }
            }
        }
        _ => found.add(Defect::required(path, "exactly one of url or service is required")),
    }
}

fn one_rule(rule: &Value, path: &str, found: &mut Found) {
    for field in ["operations", "apiGroups", "apiVersions", "resources"] {
        let list = items(&rule[field]);
        if list.is_empty() {
            found.add(Defect::required(format!("{path}.{field}"), ""));
        }
        if list.len() > 1 && list.iter().any(|one| one == "*") {
            let why = "if '*' is present, must not specify other values";
            found.add(Defect::invalid(format!("{path}.{field}"), &rule[field], why));
        }
    }
    for (at, operation) in items(&rule["operations"]).iter().enumerate() {
        found.one_of(operation, &format!("{path}.operations[{at}]"), &OPERATIONS);
    }
    found.one_of(&rule["scope"], &format!("{path}.scope"), &["*", "Cluster", "Namespaced"]);
}

fn conditions(conditions: &Value, path: &str, known: &[&str], found: &mut Found) {
    for (at, condition) in items(conditions).iter().enumerate() {
        if text(&condition["name"]).is_empty() {
            found.add(Defect::required(format!("{path}[{at}].name"), ""));
        }
        expression(&condition["expression"], &format!("{path}[{at}].expression"), known, found);
    }
}

fn expression(value: &Value, path: &str, known: &[&str], found: &mut Found) {
    let expression = text(value);
    if expression.trim().is_empty() {
        found.add(Defect::required(path, "expression is not specified"));
    } else if let Err(error) = rules::program(expression, known) {
        found.add(Defect::invalid(path, value, &error.to_string()));
    }
}

/// `ValidateValidatingAdmissionPolicy`.
pub(super) fn policy(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    found.one_of(&spec["failurePolicy"], "spec.failurePolicy", &["Fail", "Ignore"]);
    if !spec["paramKind"].is_null() {
        for field in ["apiVersion", "kind"] {
            if text(&spec["paramKind"][field]).is_empty() {
                found.add(Defect::required(format!("spec.paramKind.{field}"), ""));
            }
        }
    }
    constraints(&spec["matchConstraints"], "spec.matchConstraints", found);
    if items(&spec["matchConstraints"]["resourceRules"]).is_empty() {
        found.add(Defect::required("spec.matchConstraints.resourceRules", ""));
    }
    if items(&spec["validations"]).is_empty() && items(&spec["auditAnnotations"]).is_empty() {
        let why = "validations or auditAnnotations must be specified";
        found.add(Defect::required("spec.validations", why));
    }
    conditions(&spec["matchConditions"], "spec.matchConditions", &OF_POLICY[..5], found);
    for (at, variable) in items(&spec["variables"]).iter().enumerate() {
        expression(&variable["expression"], &format!("spec.variables[{at}].expression"), &OF_POLICY, found);
    }
    for (at, validation) in items(&spec["validations"]).iter().enumerate() {
        let path = format!("spec.validations[{at}]");
        expression(&validation["expression"], &format!("{path}.expression"), &OF_POLICY, found);
        if !validation["messageExpression"].is_null() {
            let path = format!("{path}.messageExpression");
            expression(&validation["messageExpression"], &path, &OF_POLICY, found);
        }
        let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
        found.one_of(&validation["reason"], &format!("{path}.reason"), &reasons);
    }
    for (at, annotation) in items(&spec["auditAnnotations"]).iter().enumerate() {
        let path = format!("spec.auditAnnotations[{at}].valueExpression");
        expression(&annotation["valueExpression"], &path, &OF_POLICY, found);
    }
}

fn constraints(constraints: &Value, path: &str, found: &mut Found) {
    for list in ["resourceRules", "excludeResourceRules"] {
        for (at, rule) in items(&constraints[list]).iter().enumerate() {
            one_rule(rule, &format!("{path}.{list}[{at}]"), found);
        }
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        meta::selector(&constraints[selector], &format!("{path}.{selector}"), found);
    }
}

/// `ValidateMutatingAdmissionPolicy`.
pub(super) fn mutation(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    found.one_of(&spec["failurePolicy"], "spec.failurePolicy", &["Fail", "Ignore"]);
    found.one_of(&spec["reinvocationPolicy"], "spec.reinvocationPolicy", &["IfNeeded", "Never"]);
    constraints(&spec["matchConstraints"], "spec.matchConstraints", found);
    if items(&spec["matchConstraints"]["resourceRules"]).is_empty() {
        found.add(Defect::required("spec.matchConstraints.resourceRules", ""));
    }
    conditions(&spec["matchConditions"], "spec.matchConditions", &OF_POLICY[..5], found);
    for (at, variable) in items(&spec["variables"]).iter().enumerate() {
        expression(&variable["expression"], &format!("spec.variables[{at}].expression"), &OF_MUTATION, found);
    }
    if items(&spec["mutations"]).is_empty() {
        found.add(Defect::required("spec.mutations", "mutations must contain at least one item"));
    }
    for (at, one) in items(&spec["mutations"]).iter().enumerate() {
        let path = format!("spec.mutations[{at}]");
        let field = if one["patchType"] == "JSONPatch" { "jsonPatch" } else { "applyConfiguration" };
        found.one_of(&one["patchType"], &format!("{path}.patchType"), &["ApplyConfiguration", "JSONPatch"]);
        expression(&one[field]["expression"], &format!("{path}.{field}.expression"), &OF_MUTATION, found);
    }
}

/// `ValidateValidatingAdmissionPolicyBinding`.
pub(super) fn binding(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    let actions = items(&spec["validationActions"]);
    if actions.is_empty() {
        found.add(Defect::required("spec.validationActions", ""));
    }
    for (at, action) in actions.iter().enumerate() {
        found.one_of(action, &format!("spec.validationActions[{at}]"), &["Audit", "Deny", "Warn"]);
    }
    if ["Deny", "Warn"].iter().all(|both| actions.iter().any(|action| action == both)) {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        found.add(Defect::invalid("spec.validationActions", &spec["validationActions"], why));
    }
    bound(object, found);
}

/// What the bindings of both kinds of policies say.
pub(super) fn bound(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    if text(&spec["policyName"]).is_empty() {
        found.add(Defect::required("spec.policyName", ""));
    }
    let reference = &spec["paramRef"];
    if !reference.is_null() {
        if text(&reference["name"]).is_empty() == reference["selector"].is_null() {
            found.add(Defect::required("spec.paramRef", "one of name or selector must be specified"));
        }
        let action = "spec.paramRef.parameterNotFoundAction";
        match reference["parameterNotFoundAction"].as_str() {
            None => found.add(Defect::required(action, "")),
            Some(_) => {
                found.one_of(&reference["parameterNotFoundAction"], action, &["Allow", "Deny"]);
            }
        }
    }
    constraints(&spec["matchResources"], "spec.matchResources", found);
}
