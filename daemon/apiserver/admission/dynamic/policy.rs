//! ValidatingAdmissionPolicy: expressions that say what may be written, put to work by bindings.

use api::cel::{self, EXPRESSION_COST, V};
use api::error::ApiError;
use api::kinds;
use api::select::Labels;
use serde_json::{Value, json};

use super::{Attributes, GROUP_VERSION, matching};
use crate::admission::stored;

/// What a policy says against a request.
struct Finding {
    message: String,
    reason: &'static str,
    code: u16,
}

impl Finding {
    fn of(message: String) -> Finding {
        Finding { message, reason: "Invalid", code: 422 }
    }
}

/// Refuses what a policy denies; what others only advise against becomes a warning.
pub(super) fn judge(request: Attributes<'_>, warnings: &mut Vec<String>) -> Result<(), ApiError> {
    let policies = stored(request.inner, GROUP_VERSION, "ValidatingAdmissionPolicy", "");
    let bindings = if policies.is_empty() {
        return Ok(());
    } else {
        stored(request.inner, GROUP_VERSION, "ValidatingAdmissionPolicyBinding", "")
    };
    let mut denied = None;
    for policy in &policies {
        let name = crate::object::meta(policy, "name");
        if !matching::selects(&policy["spec"]["matchConstraints"], request) {
            continue;
        }
        for binding in bindings.iter().filter(|binding| binding["spec"]["policyName"] == name) {
            let spec = &binding["spec"];
            if !spec["matchResources"].is_null() && !matching::narrows(&spec["matchResources"], request) {
                continue;
            }
            let bound = crate::object::meta(binding, "name");
            let does = |action: &str| {
                spec["validationActions"].as_array().into_iter().flatten().any(|one| one == action)
            };
            for finding in findings(policy, binding, request) {
                if does("Warn") {
                    warnings.push(format!(
                        "Validation failed for ValidatingAdmissionPolicy '{name}' with binding '{bound}': {}",
                        finding.message
                    ));
                }
                if does("Deny") && denied.is_none() {
                    denied = Some(refusal(request, name, bound, &finding));
                }
            }
        }
    }
    denied.map_or(Ok(()), Err)
}

fn refusal(request: Attributes<'_>, policy: &str, binding: &str, finding: &Finding) -> ApiError {
    let why = format!(
        "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {}",
        finding.message
    );
    let mut error = ApiError::forbidden(request.kind(), request.name(), &why);
    (error.code, error.reason) = (finding.code, finding.reason);
    error.details["causes"] = json!([{ "message": finding.message }]);
    error
}

/// What the policy's validations say, for each of the binding's parameters.
fn findings(policy: &Value, binding: &Value, request: Attributes<'_>) -> Vec<Finding> {
    let fails = policy["spec"]["failurePolicy"] != "Ignore";
    let params = match params(policy, binding, request) {
        Ok(params) => params,
        Err(why) => return if fails { vec![Finding::of(why)] } else { Vec::new() },
    };
    params.iter().flat_map(|params| with_params(&policy["spec"], params, request, fails)).collect()
}

fn with_params(spec: &Value, params: &Value, request: Attributes<'_>, fails: bool) -> Vec<Finding> {
    let shown = request.request("");
    let namespace = matching::namespace(request).filter(|_| request.kind().namespaced).unwrap_or(Value::Null);
    let mut variables = vec![
        ("object", request.object.map_or(V::Null, cel::json)),
        ("oldObject", request.old.map_or(V::Null, cel::json)),
        ("request", cel::json(&shown)),
        ("params", cel::json(params)),
        ("namespaceObject", cel::json(&namespace)),
    ];
    let failed = |why: String| if fails { vec![Finding::of(why)] } else { Vec::new() };
    match matching::conditions(&spec["matchConditions"], &variables) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(why) => return failed(why),
    }
    let mut names: Vec<&str> = variables.iter().map(|(name, _)| *name).collect();
    names.push("variables");
    let programs = matching::own(spec, &names);
    matching::add_own(&programs, &mut variables);
    let validations = spec["validations"].as_array().into_iter().flatten();
    validations.filter_map(|validation| finding(validation, &variables, fails)).collect()
}

fn finding(validation: &Value, variables: &[(&str, V<'_>)], fails: bool) -> Option<Finding> {
    let text = validation["expression"].as_str().unwrap_or_default();
    match matching::holds(text, variables) {
        Ok(true) => None,
        Ok(false) => {
            let names: Vec<&str> = variables.iter().map(|(name, _)| *name).collect();
            let said = validation["messageExpression"].as_str().and_then(|expression| {
                let program = cel::rules::program(expression, &names).ok()?;
                let said = program.says(variables, &mut EXPRESSION_COST.clone()).ok()?;
                Some(said.trim().to_owned()).filter(|said| !said.is_empty() && !said.contains('\n'))
            });
            let told = validation["message"].as_str().map(|message| message.trim().to_owned());
            let message = said.or(told).unwrap_or_else(|| format!("failed expression: {}", text.trim()));
            let (reason, code) = match validation["reason"].as_str() {
                Some("Unauthorized") => ("Unauthorized", 401),
                Some("Forbidden") => ("Forbidden", 403),
                Some("RequestEntityTooLarge") => ("RequestEntityTooLarge", 413),
                _ => ("Invalid", 422),
            };
            Some(Finding { message, reason, code })
        }
        Err(error) => fails.then(|| Finding::of(format!("expression '{text}' resulted in error: {error}"))),
    }
}

/// The objects that a binding names as parameters; null alone for a policy that has none.
pub(super) fn params(policy: &Value, binding: &Value, request: Attributes<'_>) -> Result<Vec<Value>, String> {
    let kind = &policy["spec"]["paramKind"];
    let reference = &binding["spec"]["paramRef"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if kind.is_null() || reference.is_null() {
        return Ok(vec![Value::Null]);
    }
    let (version, named) = (text(&kind["apiVersion"]), text(&kind["kind"]));
    let row = kinds::by_kind(&version, &named);
    let served = request.inner.crds.served();
    let row =
        row.or_else(|| served.iter().find(|row| row.api_version() == version && row.kind == named).copied());
    let row = row.ok_or_else(|| {
        format!("failed to find resource referenced by paramKind: '{version}, Kind={named}'")
    })?;
    let namespace = match (row.namespaced, text(&reference["namespace"])) {
        (false, _) => String::new(),
        (true, own) if own.is_empty() => request.namespace().to_owned(),
        (true, other) => other,
    };
    let snapshot = request.inner.store.snapshot();
    let found: Vec<Value> = match reference["name"].as_str() {
        Some(name) => {
            let entry = snapshot.get(&crate::object::key(row, &namespace, name));
            entry.map(|entry| crate::object::parse_as(row, &entry.value)).into_iter().collect()
        }
        None => {
            let labels = Labels::from_selector(&reference["selector"]).map_err(|error| error.to_string())?;
            let all = snapshot.range(&crate::object::prefix(row, &namespace), None);
            all.map(|entry| crate::object::parse_as(row, &entry.value))
                .filter(|one| labels.matches_object(one))
                .collect()
        }
    };
    match (found.is_empty(), reference["parameterNotFoundAction"].as_str()) {
        (true, Some("Allow")) => Ok(Vec::new()),
        (true, _) => Err("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction".to_owned()),
        (false, _) => Ok(found),
    }
}

/// The status of a policy that has been read: expressions that cannot be were refused with it.
pub(crate) fn noted(policy: &mut Value) {
    let generation = policy["metadata"]["generation"].clone();
    policy["status"]["observedGeneration"] = generation;
    if policy["status"]["typeChecking"].is_null() {
        policy["status"]["typeChecking"] = json!({});
    }
}
