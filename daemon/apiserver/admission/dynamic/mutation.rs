//! MutatingAdmissionPolicy: expressions that say how what is written is to be changed, put to work by bindings.
//!
//! Invariant: whoever writes the object owns what the policies made of it.

use api::cel::{self, EXPRESSION_COST, V};
use api::error::ApiError;
use api::patch;
use api::validate::OF_MUTATION;
use serde_json::Value;

use super::{Attributes, GROUP_VERSION, Operation, matching, policy};
use crate::admission::stored;
use crate::object::{meta, metadata};

/// Who owns fields while they are merged.
const MANAGER: &str = "mutating-admission-policy";

/// Which policies are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// All of them.
    First,
    /// Those that look again after a webhook changed the object.
    Again,
}

/// Lets the bound policies change the object. Whether one did.
pub(super) fn mutate(request: Attributes<'_>, object: &mut Value, turn: Turn) -> Result<bool, ApiError> {
    let bindings = stored(request.inner, GROUP_VERSION, "MutatingAdmissionPolicyBinding", "");
    if bindings.is_empty() || !matches!(request.operation, Operation::Create | Operation::Update) {
        return Ok(false);
    }
    let before = object.clone();
    for policy in stored(request.inner, GROUP_VERSION, "MutatingAdmissionPolicy", "") {
        let again = policy["spec"]["reinvocationPolicy"] == "IfNeeded";
        if (turn == Turn::Again && !again) || !matching::selects(&policy["spec"]["matchConstraints"], request)
        {
            continue;
        }
        let name = meta(&policy, "name");
        for binding in bindings.iter().filter(|binding| binding["spec"]["policyName"] == name) {
            let limits = &binding["spec"]["matchResources"];
            if !limits.is_null() && !matching::narrows(limits, request) {
                continue;
            }
            match bound(&policy, binding, request, object) {
                Ok(new) => *object = new,
                Err(_) if policy["spec"]["failurePolicy"] == "Ignore" => {}
                Err(why) => {
                    let binding = meta(binding, "name");
                    let why = format!("policy '{name}' with binding '{binding}' denied request: {why}");
                    return Err(ApiError::forbidden(request.kind(), request.name(), &why));
                }
            }
        }
    }
    Ok(before != *object)
}

/// Whether there is a policy to ask at all.
pub(super) fn may_change(inner: &crate::Inner) -> bool {
    !stored(inner, GROUP_VERSION, "MutatingAdmissionPolicyBinding", "").is_empty()
}

/// The object as a policy wants it, for each of the binding's parameters.
fn bound(policy: &Value, binding: &Value, request: Attributes<'_>, object: &Value) -> Result<Value, String> {
    let mut object = object.clone();
    for params in policy::params(policy, binding, request)? {
        for mutation in policy["spec"]["mutations"].as_array().into_iter().flatten() {
            if let Some(new) = mutated(&policy["spec"], mutation, &params, request, &object)? {
                object = new;
            }
        }
    }
    Ok(object)
}

/// None when the policy's conditions do not hold.
fn mutated(
    spec: &Value,
    mutation: &Value,
    params: &Value,
    request: Attributes<'_>,
    object: &Value,
) -> Result<Option<Value>, String> {
    let shown = request.request("");
    let namespace = matching::namespace(request).filter(|_| request.kind().namespaced).unwrap_or(Value::Null);
    let mut variables = vec![
        ("object", cel::json(object)),
        ("oldObject", request.old.map_or(V::Null, cel::json)),
        ("request", cel::json(&shown)),
        ("params", cel::json(params)),
        ("namespaceObject", cel::json(&namespace)),
    ];
    if !matching::conditions(&spec["matchConditions"], &variables)? {
        return Ok(None);
    }
    let programs = matching::own(spec, &OF_MUTATION);
    let merges = mutation["patchType"] == "ApplyConfiguration";
    let text = &mutation[if merges { "applyConfiguration" } else { "jsonPatch" }]["expression"];
    let text = text.as_str().unwrap_or_default();
    let told = |error: cel::CelError| format!("expression '{text}' resulted in error: {error}");
    let program = cel::rules::program(text, &OF_MUTATION).map_err(told)?;
    matching::add_own(&programs, &mut variables);
    let said = program.evaluate(&variables, &mut EXPRESSION_COST.clone()).map_err(told)?.to_json();
    changed(request, object, said, merges).map(Some)
}

fn changed(request: Attributes<'_>, object: &Value, mut said: Value, merges: bool) -> Result<Value, String> {
    if !merges {
        let mut new = object.clone();
        patch::json_patch(&mut new, &said).map_err(|error| error.to_string())?;
        return Ok(new);
    }
    if !said.is_object() {
        return Err("an apply configuration must be an object".to_owned());
    }
    let kind = request.kind();
    said["apiVersion"] = kind.api_version().into();
    said["kind"] = kind.kind.clone().into();
    let now = meta(object, "creationTimestamp");
    let merged = patch::apply(kind, Some(object), &said, MANAGER, true, None, now);
    let mut merged = merged.map_err(|error| error.to_string())?;
    match object["metadata"].get("managedFields") {
        Some(owners) => metadata(&mut merged).insert("managedFields".to_owned(), owners.clone()),
        None => metadata(&mut merged).remove("managedFields"),
    };
    Ok(merged)
}
