//! Reviews: questions that are answered and forgotten, about tokens and about what a user may do.

use api::error::ApiError;
use api::kinds::Kind;
use api::schema::Defect;
use serde_json::{Value, json};

use crate::auth::{self, User};
use crate::path::Resource;
use crate::rbac::{self, Attributes, Rule};
use crate::{Inner, object, write};

/// Whether objects of this kind are answered instead of stored.
pub(crate) fn is_review(kind: &Kind) -> bool {
    matches!(kind.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
}

/// The review with its status filled in.
pub(crate) fn answer(
    inner: &Inner,
    user: &User,
    resource: &Resource,
    mut review: Value,
) -> Result<Value, ApiError> {
    let kind = resource.kind;
    object::metadata(&mut review).entry("creationTimestamp").or_insert(Value::Null);
    match kind.kind.as_str() {
        "TokenReview" => auth::review(inner, &mut review)?,
        "SelfSubjectReview" => {
            review["metadata"]["creationTimestamp"] = write::seconds((inner.now)()).into();
            review["status"] = json!({ "userInfo": user.to_json() });
        }
        "SelfSubjectRulesReview" => {
            let namespace = review["spec"]["namespace"].as_str().unwrap_or_default().to_owned();
            if namespace.is_empty() {
                return Err(ApiError::bad_request("no namespace on request"));
            }
            review["status"] = rules(&rbac::rules_of(inner, user, &namespace));
        }
        _ => review["status"] = access(inner, user, resource, &review)?,
    }
    Ok(review)
}

/// The three that ask whether somebody may do something.
fn access(inner: &Inner, user: &User, resource: &Resource, review: &Value) -> Result<Value, ApiError> {
    let (kind, spec) = (resource.kind, &review["spec"]);
    let mut defects = Vec::new();
    let oneself = kind.kind == "SelfSubjectAccessReview";
    if spec["resourceAttributes"].is_object() == spec["nonResourceAttributes"].is_object() {
        defects.push(Defect::invalid(
            if spec["resourceAttributes"].is_object() {
                "spec.nonResourceAttributes"
            } else {
                "spec.resourceAttributes"
            },
            if spec["resourceAttributes"].is_object() {
                &spec["nonResourceAttributes"]
            } else {
                &Value::Null
            },
            "cannot be specified in combination with resourceAttributes, and one of the two must be",
        ));
    }
    let about = if oneself { user.clone() } else { subject(spec) };
    if about.name.is_empty() && about.groups.is_empty() {
        defects.push(Defect::invalid(
            "spec.user",
            &"".into(),
            "at least one of user or group must be specified",
        ));
    }
    let namespace = text(&spec["resourceAttributes"], "namespace");
    if kind.kind == "LocalSubjectAccessReview" && namespace != resource.namespace {
        let path = "spec.resourceAttributes.namespace";
        defects.push(Defect::invalid(path, &namespace.into(), "must match metadata.namespace"));
    }
    if !defects.is_empty() {
        return Err(ApiError::invalid(kind, "", defects));
    }
    let decision = rbac::authorize(inner, &about, &attributes(spec));
    let mut status = json!({ "allowed": decision.allowed });
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    Ok(status)
}

fn attributes(spec: &Value) -> Attributes<'_> {
    let path = &spec["nonResourceAttributes"];
    if path.is_object() {
        return Attributes { verb: text(path, "verb"), path: text(path, "path"), ..Attributes::default() };
    }
    let of = &spec["resourceAttributes"];
    Attributes {
        verb: text(of, "verb"),
        group: text(of, "group"),
        resource: text(of, "resource"),
        subresource: text(of, "subresource"),
        namespace: text(of, "namespace"),
        name: text(of, "name"),
        path: "",
    }
}

fn subject(spec: &Value) -> User {
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let extra = spec["extra"].as_object().into_iter().flatten();
    User {
        name: text(spec, "user").to_owned(),
        groups: strings(&spec["groups"]),
        uid: text(spec, "uid").to_owned(),
        extra: extra.map(|(key, values)| (key.clone(), strings(values))).collect(),
        room: false,
    }
}

fn rules(all: &[Rule]) -> Value {
    let mut status = json!({ "resourceRules": [], "nonResourceRules": [], "incomplete": false });
    let push = |list: &mut Value, rule: Value| {
        if let Value::Array(list) = list
            && !list.contains(&rule)
        {
            list.push(rule);
        }
    };
    for rule in all {
        if !rule.non_resource_urls.is_empty() {
            let told = json!({ "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls });
            push(&mut status["nonResourceRules"], told);
        }
        if !rule.resources.is_empty() {
            let mut told =
                json!({ "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources });
            if !rule.resource_names.is_empty() {
                told["resourceNames"] = json!(rule.resource_names);
            }
            push(&mut status["resourceRules"], told);
        }
    }
    status
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}
