//! `x-kubernetes-validations`: rules that stand in schemas, checked for the values they stand at.
//!
//! Invariant: a rule that names `oldSelf` is for changes only; all rules of one object share one budget.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use serde_json::Value;

use super::{CelError, EXPRESSION_COST, Program, TOTAL_COST, V, json};
use crate::schema::{Defect, DefectReason};

const NAMES: [&str; 2] = ["self", "oldSelf"];
/// Compiled expressions that are kept; then all are forgotten.
const KEPT: usize = 1024;

/// A compiled expression, from memory when it was compiled before.
///
/// # Errors
/// [`CelError::Compile`].
pub fn program(text: &str, names: &[&str]) -> Result<Arc<Program>, CelError> {
    type Kept = HashMap<String, Arc<Program>>;
    static KNOWN: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);
    let key = format!("{}\0{text}", names.join(","));
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = known.get(&key) {
        return Ok(Arc::clone(program));
    }
    let program = Arc::new(Program::compile(text, names)?);
    if known.len() >= KEPT {
        known.clear();
    }
    known.insert(key, Arc::clone(&program));
    Ok(program)
}

/// Refuses a schema whose rules cannot be read.
pub(crate) fn compile_all(schema: &Value, path: &str, defects: &mut Vec<Defect>) {
    for (at, rule) in rules(schema).enumerate() {
        for field in ["rule", "messageExpression"] {
            let Some(text) = rule[field].as_str() else { continue };
            let path = format!("{path}.x-kubernetes-validations[{at}].{field}");
            if let Err(error) = program(text, &NAMES) {
                let message = format!("Invalid value: {text:?}: {error}");
                defects.push(Defect { path, reason: DefectReason::Invalid, message });
            }
        }
        if rule["rule"].as_str().is_none_or(|rule| rule.trim().is_empty()) {
            defects.push(Defect::required(
                format!("{path}.x-kubernetes-validations[{at}].rule"),
                "rule is not specified",
            ));
        }
    }
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        compile_all(child, &format!("{path}.properties[{name}]"), defects);
    }
    for field in ["items", "additionalProperties"] {
        if schema[field].is_object() {
            compile_all(&schema[field], &format!("{path}.{field}"), defects);
        }
    }
}

fn rules(schema: &Value) -> impl Iterator<Item = &Value> {
    schema["x-kubernetes-validations"].as_array().into_iter().flatten()
}

/// What the rules say about an object.
pub(crate) fn check(schema: &Value, object: &Value, old: Option<&Value>, defects: &mut Vec<Defect>) {
    let mut budget = TOTAL_COST;
    walk(schema, object, old, "", (&mut budget, defects));
}

fn walk(
    schema: &Value,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    (budget, defects): (&mut u64, &mut Vec<Defect>),
) {
    if value.is_null() {
        return;
    }
    for rule in rules(schema) {
        judge(rule, value, old, path, (budget, defects));
    }
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let Some(child) = crate::custom::child(schema, name) else { continue };
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(child, value, old.and_then(|old| old.get(name)), &below, (budget, defects));
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                let below = format!("{path}[{at}]");
                walk(&schema["items"], item, counterpart(schema, item, old), &below, (budget, defects));
            }
        }
        _ => {}
    }
}

/// The item of the old list that a new one follows: only lists with keys tell.
fn counterpart<'a>(schema: &Value, item: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
    if schema["x-kubernetes-list-type"] != "map" {
        return None;
    }
    let keys: Vec<&str> =
        schema["x-kubernetes-list-map-keys"].as_array()?.iter().filter_map(Value::as_str).collect();
    old?.as_array()?.iter().find(|old| keys.iter().all(|key| old[*key] == item[*key]))
}

fn judge(
    rule: &Value,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    (budget, defects): (&mut u64, &mut Vec<Defect>),
) {
    let text = rule["rule"].as_str().unwrap_or_default();
    let optional = rule["optionalOldSelf"] == true;
    let names_old = text.contains("oldSelf");
    if names_old && old.is_none() && !optional {
        return;
    }
    let old = match (old, optional) {
        (Some(old), true) => V::Optional(Some(Box::new(json(old)))),
        (None, true) => V::Optional(None),
        (old, false) => old.map_or(V::Null, json),
    };
    let variables = [("self", json(value)), ("oldSelf", old)];
    let mut own = EXPRESSION_COST.min(*budget);
    let before = own;
    // A rule that cannot be read was refused with its definition.
    let Ok(compiled) = program(text, &NAMES) else { return };
    let outcome = compiled.holds(&variables, &mut own);
    *budget -= before - own;
    let at = rule["fieldPath"]
        .as_str()
        .map_or_else(|| path.to_owned(), |field| format!("{path}{field}").trim_start_matches('.').to_owned());
    let why = match outcome {
        Ok(true) => return,
        Ok(false) => message(rule, text, &variables),
        Err(error) => format!("rule evaluation error: {error}: {text}"),
    };
    defects.push(defect(rule, &at, value, &why));
}

fn message(rule: &Value, text: &str, variables: &[(&str, V<'_>)]) -> String {
    let said = rule["messageExpression"].as_str().and_then(|expression| {
        let program = program(expression, &NAMES).ok()?;
        program.says(variables, &mut EXPRESSION_COST.clone()).ok().filter(|said| !said.trim().is_empty())
    });
    said.or_else(|| rule["message"].as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("failed rule: {text}"))
}

fn defect(rule: &Value, path: &str, value: &Value, why: &str) -> Defect {
    // The value of a struct is not repeated.
    let told = match value {
        Value::Object(_) => "object".into(),
        Value::Array(_) => "array".into(),
        value => value.clone(),
    };
    match rule["reason"].as_str() {
        Some("FieldValueForbidden") => Defect::forbidden(path, why),
        Some("FieldValueRequired") => Defect::required(path, why),
        Some("FieldValueDuplicate") => Defect::duplicate(path, &told),
        _ => Defect::invalid(path, &told, why),
    }
}
