//! Which requests a policy or webhook is for: rules, selectors and conditions, as documented for admission.

use std::sync::Arc;

use api::cel::{self, CelError, EXPRESSION_COST, Program, V};
use api::select::Labels;
use serde_json::Value;

use super::Attributes;
use crate::admission::find;

/// Whether `matchConstraints`, or the fields of a webhook of the same names, select the request.
pub(super) fn selects(constraints: &Value, request: Attributes<'_>) -> bool {
    let rules = |field: &str| constraints[field].as_array().cloned().unwrap_or_default();
    let listed = [rules("rules"), rules("resourceRules")].concat();
    let equivalent = constraints["matchPolicy"] != "Exact";
    listed.iter().any(|rule| covers(rule, request, equivalent))
        && !rules("excludeResourceRules").iter().any(|rule| covers(rule, request, equivalent))
        && of_namespace(&constraints["namespaceSelector"], request)
        && of_object(&constraints["objectSelector"], request)
}

/// The same where no rules mean every resource: the `matchResources` of a binding.
pub(super) fn narrows(resources: &Value, request: Attributes<'_>) -> bool {
    if resources["resourceRules"].as_array().is_some_and(|rules| !rules.is_empty()) {
        return selects(resources, request);
    }
    of_namespace(&resources["namespaceSelector"], request) && of_object(&resources["objectSelector"], request)
}

fn covers(rule: &Value, request: Attributes<'_>, equivalent: bool) -> bool {
    let kind = request.kind();
    let lists = |field: &str, wanted: &str| {
        rule[field].as_array().into_iter().flatten().any(|one| one == "*" || one == wanted)
    };
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => kind.namespaced,
        Some("Cluster") => !kind.namespaced,
        _ => true,
    };
    // Another version of the resource is the same request in other words.
    let version = lists("apiVersions", &kind.version)
        || (equivalent
            && rule["apiVersions"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .any(|version| is_served(request, version)));
    let resource = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str).any(|one| {
        let (resource, subresource) = one.split_once('/').unwrap_or((one, ""));
        (resource == "*" || resource == kind.plural)
            && (subresource == "*" || subresource == request.subresource())
    });
    let names = rule["resourceNames"].as_array().filter(|names| !names.is_empty());
    let named = names.is_none_or(|names| names.iter().any(|name| *name == request.name()));
    scope
        && lists("operations", request.operation.name())
        && lists("apiGroups", &kind.group)
        && version
        && resource
        && named
}

fn is_served(request: Attributes<'_>, version: &str) -> bool {
    let kind = request.kind();
    request.inner.crds.by_plural(&kind.group, version, &kind.plural).is_some()
        || api::kinds::kinds()
            .iter()
            .any(|row| row.group == kind.group && row.version == version && row.plural == kind.plural)
}

fn labels(selector: &Value) -> Labels {
    // A selector that cannot be read was refused with its configuration.
    if selector.is_null() {
        Labels::everything()
    } else {
        Labels::from_selector(selector).unwrap_or_else(|_| Labels::nothing())
    }
}

fn of_namespace(selector: &Value, request: Attributes<'_>) -> bool {
    let labels = labels(selector);
    let kind = request.kind();
    if labels.is_everything() {
        return true;
    }
    if kind.kind == "Namespace" && kind.group.is_empty() {
        return request.object.or(request.old).is_some_and(|namespace| labels.matches_object(namespace));
    }
    if !kind.namespaced {
        return true;
    }
    namespace(request).is_some_and(|namespace| labels.matches_object(&namespace))
}

/// The namespace of the request, as it is stored.
pub(super) fn namespace(request: Attributes<'_>) -> Option<Value> {
    find(request.inner, "v1", "Namespace", "", request.namespace())
}

fn of_object(selector: &Value, request: Attributes<'_>) -> bool {
    let labels = labels(selector);
    labels.is_everything()
        || [request.object, request.old].into_iter().flatten().any(|object| labels.matches_object(object))
}

/// The value of a boolean expression, from a budget of its own.
pub(super) fn holds(text: &str, variables: &[(&str, V<'_>)]) -> Result<bool, CelError> {
    let names: Vec<&str> = variables.iter().map(|(name, _)| *name).collect();
    let program = cel::rules::program(text, &names)?;
    program.holds(variables, &mut EXPRESSION_COST.clone())
}

/// Whether all `matchConditions` hold; one that does not decides, whatever errors there are beside it.
pub(super) fn conditions(conditions: &Value, variables: &[(&str, V<'_>)]) -> Result<bool, String> {
    let mut failed = Ok(true);
    for condition in conditions.as_array().into_iter().flatten() {
        let text = condition["expression"].as_str().unwrap_or_default();
        match holds(text, variables) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => failed = failed.and(Err(format!("expression '{text}' resulted in error: {error}"))),
        }
    }
    failed
}

/// A policy's own variables: their names and what they say.
type Own<'a> = Vec<(&'a str, Arc<Program>)>;

/// The variables that a policy defines; those that cannot be read were refused with it.
pub(super) fn own<'a>(spec: &'a Value, known: &[&str]) -> Own<'a> {
    let all = spec["variables"].as_array().into_iter().flatten();
    all.filter_map(|one| {
        let program = cel::rules::program(one["expression"].as_str()?, known).ok()?;
        Some((one["name"].as_str()?, program))
    })
    .collect()
}

/// Adds them as `variables`, each knowing those before it. One that fails is not there: an expression that needs it fails
/// with its name.
pub(super) fn add_own<'a>(own: &'a Own<'a>, variables: &mut Vec<(&'a str, V<'a>)>) {
    let mut values = Vec::new();
    for (name, program) in own {
        variables.push(("variables", V::Map(Arc::new(values.clone()))));
        if let Ok(value) = program.evaluate(variables, &mut EXPRESSION_COST.clone()) {
            values.push((V::Str((*name).into()), value));
        }
        variables.pop();
    }
    variables.push(("variables", V::Map(Arc::new(values))));
}
