//! Judges objects of custom kinds by their schema, in the words of Kubernetes' own validation.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use regex::Regex;
use serde_json::Value;

use super::Custom;
use super::schema::child;
use crate::kinds::Kind;
use crate::schema::{Defect, DefectReason};
use crate::validate;

/// Parsed patterns that are kept; then all are forgotten.
const PATTERNS: usize = 256;
/// A pattern that needs more memory than this is refused.
const PATTERN_BYTES: usize = 1 << 20;
/// More defects of one object help nobody.
const MAX_DEFECTS: usize = 100;

/// What is wrong with an object about to be created.
pub fn create(kind: &Kind, custom: &Custom, object: &Value) -> Vec<Defect> {
    let mut defects = validate::metadata(kind, object, None);
    judge(custom, object, None, &mut defects);
    defects
}

/// What is wrong with an object about to replace `old`.
pub fn update(kind: &Kind, custom: &Custom, new: &Value, old: &Value) -> Vec<Defect> {
    let mut defects = validate::metadata(kind, new, Some(old));
    judge(custom, new, Some(old), &mut defects);
    defects
}

fn judge(custom: &Custom, object: &Value, old: Option<&Value>, defects: &mut Vec<Defect>) {
    check(&custom.schema, object, "", defects);
    // Rules are for objects of the right form.
    if defects.is_empty() {
        crate::cel::rules::check(&custom.schema, object, old, defects);
    }
}

/// Everything that is wrong below a value.
pub(super) fn check(schema: &Value, value: &Value, path: &str, defects: &mut Vec<Defect>) {
    if defects.len() >= MAX_DEFECTS {
        return;
    }
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    if !fits(schema, value) {
        let wanted = if int_or_string(schema) { "integer,string" } else { super::text(schema, "type") };
        let told = in_body(path, &format!("must be of type {wanted}: {:?}", word(value)));
        return defects.push(Defect::invalid(path, &word(value).into(), &told));
    }
    enumerated(schema, value, path, defects);
    match value {
        Value::Number(_) => number(schema, value, path, defects),
        Value::String(text) => string(schema, value, text, path, defects),
        Value::Array(items) => list(schema, items, path, defects),
        Value::Object(map) => object(schema, map, path, defects),
        _ => {}
    }
    combined(schema, value, path, defects);
}

fn int_or_string(schema: &Value) -> bool {
    schema["x-kubernetes-int-or-string"] == true
}

fn fits(schema: &Value, value: &Value) -> bool {
    if int_or_string(schema) {
        return value.is_string() || value.is_i64() || value.is_u64();
    }
    match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        Some("number") => value.is_number(),
        _ => true,
    }
}

fn word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn in_body(path: &str, what: &str) -> String {
    format!("{path} in body {what}")
}

fn enumerated(schema: &Value, value: &Value, path: &str, defects: &mut Vec<Defect>) {
    let Some(known) = schema["enum"].as_array() else { return };
    if !known.contains(value) {
        let known: Vec<String> =
            known.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        defects.push(Defect::not_supported(path, value, &known));
    }
}

fn number(schema: &Value, value: &Value, path: &str, defects: &mut Vec<Defect>) {
    let number = value.as_f64().unwrap_or(0.0);
    let mut say = |what: String| defects.push(Defect::invalid(path, value, &in_body(path, &what)));
    if let Some(least) = schema["minimum"].as_f64() {
        let open = schema["exclusiveMinimum"] == true;
        if number < least || (open && number == least) {
            let or = if open { "" } else { " or equal to" };
            say(format!("should be greater than{or} {}", schema["minimum"]));
        }
    }
    if let Some(most) = schema["maximum"].as_f64() {
        let open = schema["exclusiveMaximum"] == true;
        if number > most || (open && number == most) {
            let or = if open { "" } else { " or equal to" };
            say(format!("should be less than{or} {}", schema["maximum"]));
        }
    }
    if let Some(factor) = schema["multipleOf"].as_f64().filter(|factor| *factor > 0.0)
        && ((number / factor) - (number / factor).round()).abs() > 1e-9
    {
        say(format!("should be a multiple of {}", schema["multipleOf"]));
    }
}

fn string(schema: &Value, value: &Value, text: &str, path: &str, defects: &mut Vec<Defect>) {
    let length = text.chars().count() as u64;
    if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
        let told = in_body(path, &format!("should be at least {least} chars long"));
        defects.push(Defect::invalid(path, value, &told));
    }
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        let message = format!("Too long: may not be more than {most} bytes");
        defects.push(Defect { path: path.to_owned(), reason: DefectReason::TooLong, message });
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && !matches(pattern, text)
    {
        let told = in_body(path, &format!("should match '{pattern}'"));
        defects.push(Defect::invalid(path, value, &told));
    }
    if let Some(format) = schema["format"].as_str()
        && !super::definition::has_format(format, text)
    {
        let told = in_body(path, &format!("must be of type {format}: {text:?}"));
        defects.push(Defect::invalid(path, value, &told));
    }
}

/// Whether a pattern is found in a text; a pattern that cannot be read was refused with the definition.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    static KNOWN: LazyLock<Mutex<HashMap<String, Option<Regex>>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= PATTERNS && !known.contains_key(pattern) {
        known.clear();
    }
    let parsed = known.entry(pattern.to_owned()).or_insert_with(|| parse(pattern));
    parsed.as_ref().is_some_and(|pattern| pattern.is_match(text))
}

/// A pattern in the syntax of Go's regexp, which this is nearly.
pub(crate) fn parse(pattern: &str) -> Option<Regex> {
    regex::RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).build().ok()
}

fn list(schema: &Value, items: &[Value], path: &str, defects: &mut Vec<Defect>) {
    let count = items.len() as u64;
    if let Some(least) = schema["minItems"].as_u64().filter(|least| count < *least) {
        let told = in_body(path, &format!("should have at least {least} items"));
        defects.push(Defect::invalid(path, &count.into(), &told));
    }
    if let Some(most) = schema["maxItems"].as_u64().filter(|most| count > *most) {
        let message = format!("Too many: {count}: must have at most {most} items");
        defects.push(Defect { path: path.to_owned(), reason: DefectReason::TooMany, message });
    }
    for (at, item) in items.iter().enumerate() {
        check(&schema["items"], item, &format!("{path}[{at}]"), defects);
    }
    let keys = schema["x-kubernetes-list-map-keys"].as_array();
    let of = schema["x-kubernetes-list-type"].as_str().unwrap_or("atomic");
    let unique = of == "set" || of == "map" || schema["uniqueItems"] == true;
    if !unique {
        return;
    }
    let identity = |item: &Value| -> Value {
        match keys {
            Some(keys) if of == "map" => keys
                .iter()
                .filter_map(Value::as_str)
                .map(|key| {
                    let default = &schema["items"]["properties"][key]["default"];
                    (key.to_owned(), item.get(key).unwrap_or(default).clone())
                })
                .collect::<serde_json::Map<String, Value>>()
                .into(),
            _ => item.clone(),
        }
    };
    let mut seen = std::collections::BTreeSet::new();
    for (at, item) in items.iter().enumerate() {
        let identity = identity(item);
        if !seen.insert(identity.to_string()) {
            defects.push(Defect::duplicate(format!("{path}[{at}]"), &identity));
        }
    }
}

fn object(schema: &Value, map: &serde_json::Map<String, Value>, path: &str, defects: &mut Vec<Defect>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            defects.push(Defect::required(below(name), ""));
        }
    }
    let count = map.len() as u64;
    if let Some(least) = schema["minProperties"].as_u64().filter(|least| count < *least) {
        let told = in_body(path, &format!("should have at least {least} properties"));
        defects.push(Defect::invalid(path, &count.into(), &told));
    }
    if let Some(most) = schema["maxProperties"].as_u64().filter(|most| count > *most) {
        let message = format!("Too many: {count}: must have at most {most} items");
        defects.push(Defect { path: path.to_owned(), reason: DefectReason::TooMany, message });
    }
    let own = path.is_empty() || schema["x-kubernetes-embedded-resource"] == true;
    if schema["x-kubernetes-embedded-resource"] == true {
        for name in ["apiVersion", "kind"].into_iter().filter(|name| !map.contains_key(*name)) {
            defects.push(Defect::required(below(name), "must not be empty"));
        }
    }
    for (name, value) in map {
        if let Some(child) = child(schema, name).filter(|_| !(own && name == "metadata" && path.is_empty())) {
            check(child, value, &below(name), defects);
        }
    }
    // Of the object's own metadata a schema may restrict the name.
    if path.is_empty()
        && let Some(name) = schema.pointer("/properties/metadata/properties/name")
    {
        check(name, &map.get("metadata").unwrap_or(&Value::Null)["name"], "metadata.name", defects);
    }
}

fn combined(schema: &Value, value: &Value, path: &str, defects: &mut Vec<Defect>) {
    let passes = |schema: &Value| {
        let mut found = Vec::new();
        check(schema, value, path, &mut found);
        found.is_empty()
    };
    let all = |field: &str| schema[field].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = if path.is_empty() { "<nil>" } else { path };
    let mut say = |what: &str| {
        defects.push(Defect::invalid(path, &word_or_value(value), &format!("{name:?} must {what}")));
    };
    if !all("allOf").is_empty() && !all("allOf").iter().all(passes) {
        say("validate all the schemas (allOf)");
    }
    if !all("anyOf").is_empty() && !all("anyOf").iter().any(passes) {
        say("validate at least one schema (anyOf)");
    }
    if !all("oneOf").is_empty() {
        match all("oneOf").iter().filter(|schema| passes(schema)).count() {
            1 => {}
            0 => say("validate one and only one schema (oneOf). Found none valid"),
            more => {
                say(&format!("validate one and only one schema (oneOf). Found {more} valid alternatives"))
            }
        }
    }
    if schema["not"].is_object() && passes(&schema["not"]) {
        say("not validate the schema (not)");
    }
}

/// Large values are not repeated in messages.
fn word_or_value(value: &Value) -> Value {
    if value.is_object() || value.is_array() { word(value).into() } else { value.clone() }
}
