//! Walks an object beside its schema: unknown fields and wrong types, coercion to the decoded form, pruning.
//!
//! Invariant: what `check` lets pass, Go's decoder of the same type would decode; messages are that decoder's.

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine as _;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{Defect, DefectReason, Object, Shape, TypeRef};
use crate::quantity::Quantity;

/// See [`super::check_fields`].
pub(super) fn check(root: &'static Object, object: &Value) -> Vec<Defect> {
    let mut defects = Vec::new();
    match object {
        Value::Object(map) => {
            check_object(root, map, Place { owner: root, path: "", words: "" }, &mut defects)
        }
        other => defects.push(wrong_type(
            "",
            format!("json: cannot unmarshal {} into Go value of type {}", json_word(other), go_name(root)),
        )),
    }
    defects
}

/// See [`super::duplicate_fields`].
pub(super) fn duplicates(text: &[u8]) -> Vec<Defect> {
    let mut defects = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(text);
    match (Duplicates { path: String::new(), defects: &mut defects }).deserialize(&mut reader) {
        Ok(()) => defects,
        Err(_) => Vec::new(),
    }
}

/// See [`super::coerce`].
pub(super) fn coerce(root: &'static Object, object: &mut Value) {
    if let Value::Object(map) = object {
        coerce_object(root, map);
    }
}

/// See [`super::prune_unknown`].
pub(super) fn prune(root: &'static Object, object: &mut Value) {
    if let Value::Object(map) = object {
        prune_object(root, map);
    }
}

/// Where the walk is: `path` with indexes for people, `words` with field names only as Go's decoder prints them.
#[derive(Clone, Copy)]
struct Place<'a> {
    owner: &'static Object,
    path: &'a str,
    words: &'a str,
}

fn check_object(of: &'static Object, map: &Map<String, Value>, at: Place<'_>, defects: &mut Vec<Defect>) {
    for (name, value) in map {
        let path = join(at.path, name);
        match of.field(name) {
            Some(field) => {
                let words = join(at.words, name);
                check_value(field.of, value, Place { owner: of, path: &path, words: &words }, defects);
            }
            None if of.open => {}
            None => {
                let message = format!("unknown field {path:?}");
                defects.push(Defect { path, reason: DefectReason::Unknown, message });
            }
        }
    }
}

fn check_value(of: TypeRef, value: &Value, at: Place<'_>, defects: &mut Vec<Defect>) {
    match (of.shape(), value) {
        (Shape::Any, _) | (_, Value::Null) => {}
        (Shape::Object(object), Value::Object(map)) => check_object(object, map, at, defects),
        (Shape::Array(inner), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                check_value(inner, item, Place { path: &format!("{}[{index}]", at.path), ..at }, defects);
            }
        }
        (Shape::Map(inner), Value::Object(map)) => {
            for (key, item) in map {
                check_value(inner, item, Place { path: &format!("{}[{key}]", at.path), ..at }, defects);
            }
        }
        (shape, value) => {
            if let Some(why) = scalar_defect(shape, value) {
                defects.push(wrong_type(at.path, why.into_message(of, at)));
            }
        }
    }
}

enum Wrong {
    /// The JSON word for what was found.
    Type(String),
    /// A parser's own complaint.
    Text(String),
}

impl Wrong {
    fn into_message(self, of: TypeRef, at: Place<'_>) -> String {
        match self {
            Wrong::Text(text) => text,
            Wrong::Type(found) => {
                let (owner, words, wanted) = (short_name(at.owner), at.words, go_type(of));
                format!(
                    "json: cannot unmarshal {found} into Go struct field {owner}.{words} of type {wanted}"
                )
            }
        }
    }
}

fn scalar_defect(shape: Shape, value: &Value) -> Option<Wrong> {
    let fits = match (shape, value) {
        (Shape::String, Value::String(_))
        | (Shape::Boolean, Value::Bool(_))
        | (Shape::Double, Value::Number(_)) => true,
        (Shape::Bytes, Value::String(text)) => return base64_defect(text),
        (Shape::Int32, Value::Number(number)) => {
            return integer_defect(number, i64::from(i32::MIN), i64::from(i32::MAX));
        }
        (Shape::Int64, Value::Number(number)) => return integer_defect(number, i64::MIN, i64::MAX),
        (Shape::IntOrString, Value::String(_)) => true,
        (Shape::IntOrString, Value::Number(number)) => {
            return integer_defect(number, i64::from(i32::MIN), i64::from(i32::MAX));
        }
        (Shape::Quantity, Value::String(text)) => return quantity_defect(text),
        (Shape::Quantity, Value::Number(number)) => return quantity_defect(&number.to_string()),
        (Shape::Time | Shape::MicroTime, Value::String(text)) => return time_defect(text),
        _ => false,
    };
    (!fits).then(|| Wrong::Type(json_word(value).to_owned()))
}

fn integer_defect(number: &serde_json::Number, min: i64, max: i64) -> Option<Wrong> {
    match number.as_i64() {
        Some(value) if (min..=max).contains(&value) => None,
        _ => Some(Wrong::Type(format!("number {number}"))),
    }
}

fn base64_defect(text: &str) -> Option<Wrong> {
    // Go's decoder ignores line breaks inside base64.
    let text: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    let error = base64::engine::general_purpose::STANDARD.decode(&text).err()?;
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len(),
    };
    Some(Wrong::Text(format!("illegal base64 data at input byte {at}")))
}

fn quantity_defect(text: &str) -> Option<Wrong> {
    let sentence =
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    Quantity::parse(text.trim()).err().map(|_| Wrong::Text(sentence.to_owned()))
}

fn time_defect(text: &str) -> Option<Wrong> {
    let layout = "2006-01-02T15:04:05Z07:00";
    let parsed = text.parse::<jiff::Timestamp>();
    parsed.err().map(|_| Wrong::Text(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?}")))
}

fn wrong_type(path: &str, message: String) -> Defect {
    Defect { path: path.to_owned(), reason: DefectReason::WrongType, message }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn json_word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// `PodSpec` of `io.k8s.api.core.v1.PodSpec`.
fn short_name(object: &Object) -> &'static str {
    object.name.rsplit('.').next().unwrap_or(object.name)
}

/// `v1.PodSpec` of `io.k8s.api.core.v1.PodSpec`.
fn go_name(object: &Object) -> &'static str {
    match object.name.rmatch_indices('.').nth(1) {
        Some((dot, _)) => &object.name[dot + 1..],
        None => object.name,
    }
}

fn go_type(of: TypeRef) -> String {
    match of.shape() {
        Shape::Any => "runtime.RawExtension".into(),
        Shape::String => "string".into(),
        Shape::Bytes => "[]uint8".into(),
        Shape::Boolean => "bool".into(),
        Shape::Int32 => "int32".into(),
        Shape::Int64 => "int64".into(),
        Shape::Double => "float64".into(),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::Time => "v1.Time".into(),
        Shape::MicroTime => "v1.MicroTime".into(),
        Shape::IntOrString => "intstr.IntOrString".into(),
        Shape::Array(inner) => format!("[]{}", go_type(inner)),
        Shape::Map(inner) => format!("map[string]{}", go_type(inner)),
        Shape::Object(object) => go_name(object).into(),
    }
}

fn coerce_object(of: &'static Object, map: &mut Map<String, Value>) {
    map.retain(|_, value| !value.is_null());
    for (name, value) in map.iter_mut() {
        if let Some(field) = of.field(name) {
            coerce_value(field.of, value);
        }
    }
}

fn coerce_value(of: TypeRef, value: &mut Value) {
    match (of.shape(), value) {
        (Shape::Object(object), Value::Object(map)) => coerce_object(object, map),
        (Shape::Array(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| coerce_item(inner, item))
        }
        (Shape::Map(inner), Value::Object(map)) => map.values_mut().for_each(|item| coerce_item(inner, item)),
        (Shape::Quantity, value) => {
            let text = match &*value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            if let Ok(quantity) = Quantity::parse(text.trim()) {
                *value = quantity.to_string().into();
            }
        }
        _ => {}
    }
}

/// Go decodes a null list item or map value to the zero value of its type.
fn coerce_item(of: TypeRef, item: &mut Value) {
    if item.is_null() {
        *item = match of.shape() {
            Shape::String | Shape::Bytes => "".into(),
            Shape::Boolean => false.into(),
            Shape::Int32 | Shape::Int64 | Shape::IntOrString => 0.into(),
            Shape::Quantity => "0".into(),
            Shape::Object(_) => Map::new().into(),
            Shape::Array(_) => Vec::<Value>::new().into(),
            Shape::Any | Shape::Double | Shape::Time | Shape::MicroTime | Shape::Map(_) => return,
        };
    }
    coerce_value(of, item);
}

fn prune_object(of: &'static Object, map: &mut Map<String, Value>) {
    if !of.open {
        map.retain(|name, _| of.field(name).is_some());
    }
    for (name, value) in map.iter_mut() {
        if let Some(field) = of.field(name) {
            prune_value(field.of, value);
        }
    }
}

fn prune_value(of: TypeRef, value: &mut Value) {
    match (of.shape(), value) {
        (Shape::Object(object), Value::Object(map)) => prune_object(object, map),
        (Shape::Array(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| prune_value(inner, item))
        }
        (Shape::Map(inner), Value::Object(map)) => map.values_mut().for_each(|item| prune_value(inner, item)),
        _ => {}
    }
}

/// Reads a JSON text for its keys only.
struct Duplicates<'a> {
    path: String,
    defects: &'a mut Vec<Defect>,
}

impl<'de> DeserializeSeed<'de> for Duplicates<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Duplicates<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut index = 0;
        while items
            .next_element_seed(Duplicates { path: format!("{}[{index}]", self.path), defects: self.defects })?
            .is_some()
        {
            index += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = join(&self.path, &key);
            if !seen.insert(key) {
                let message = format!("duplicate field {path:?}");
                self.defects.push(Defect { path: path.clone(), reason: DefectReason::Duplicate, message });
            }
            map.next_value_seed(Duplicates { path, defects: self.defects })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::by_kind;
    use crate::schema::{check_fields, root};

    #[track_caller]
    fn check(api_version: &str, kind: &str, object: Value, wanted: &[(&str, &str)]) {
        let defects = check_fields(by_kind(api_version, kind).expect("served"), &object);
        let found: Vec<(&str, &str)> =
            defects.iter().map(|d| (d.path.as_str(), d.message.as_str())).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_exact_path() {
        check(
            "apps/v1",
            "Deployment",
            json!({ "kind": "Deployment", "spec": { "replica": 1, "template": { "spec": { "containers": [{ "imagee": "x" }] } } } }),
            &[
                ("spec.replica", r#"unknown field "spec.replica""#),
                (
                    "spec.template.spec.containers[0].imagee",
                    r#"unknown field "spec.template.spec.containers[0].imagee""#,
                ),
            ],
        );
    }

    #[test]
    fn a_wrong_type_reads_as_go_decodes_it() {
        check(
            "apps/v1",
            "Deployment",
            json!({ "spec": { "replicas": "3", "template": { "spec": { "containers": [{ "env": [{ "name": "A", "value": 1 }] }] } } } }),
            &[
                (
                    "spec.replicas",
                    "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
                ),
                (
                    "spec.template.spec.containers[0].env[0].value",
                    "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string",
                ),
            ],
        );
        check(
            "v1",
            "ConfigMap",
            json!({ "data": { "a": true } }),
            &[("data[a]", "json: cannot unmarshal bool into Go struct field ConfigMap.data of type string")],
        );
        check(
            "v1",
            "Secret",
            json!({ "data": { "a": "!" } }),
            &[("data[a]", "illegal base64 data at input byte 0")],
        );
    }

    #[test]
    fn quantities_int_or_strings_dates_and_nulls_are_taken_in_all_their_forms() {
        check(
            "v1",
            "Pod",
            json!({
                "metadata": { "creationTimestamp": null, "labels": null },
                "spec": { "containers": [{
                    "resources": { "limits": { "cpu": 1, "memory": "1Gi" }, "requests": { "cpu": 0.5 } },
                    "livenessProbe": { "httpGet": { "port": "web" }, "periodSeconds": 5 },
                    "readinessProbe": { "tcpSocket": { "port": 80 } },
                }] },
                "status": { "startTime": "2026-01-02T03:04:05Z" },
            }),
            &[],
        );
        check(
            "v1",
            "Pod",
            json!({ "metadata": { "creationTimestamp": "yesterday" } }),
            &[(
                "metadata.creationTimestamp",
                r#"parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday""#,
            )],
        );
    }

    #[test]
    fn coercion_drops_nulls_and_makes_quantities_canonical_strings() {
        let mut pod = json!({ "metadata": { "creationTimestamp": null, "labels": { "a": null } },
            "spec": { "containers": [{ "resources": { "limits": { "cpu": 0.5, "memory": "1024Mi" } } }] } });
        coerce(root(by_kind("v1", "Pod").expect("served")), &mut pod);
        assert_eq!(
            pod,
            json!({ "metadata": { "labels": { "a": "" } },
                "spec": { "containers": [{ "resources": { "limits": { "cpu": "500m", "memory": "1Gi" } } }] } })
        );
    }

    #[test]
    fn pruning_keeps_only_what_the_schema_knows() {
        let mut service = json!({ "spec": { "ports": [{ "port": 80, "prot": 1 }], "selector": { "any": "x" } }, "foo": {} });
        prune(root(by_kind("v1", "Service").expect("served")), &mut service);
        assert_eq!(service, json!({ "spec": { "ports": [{ "port": 80 }], "selector": { "any": "x" } } }));
    }

    #[test]
    fn a_field_given_twice_is_found_in_the_text() {
        let defects = duplicates(br#"{"spec":{"replicas":1,"replicas":2,"x":[{"a":1,"a":null}]}}"#);
        let messages: Vec<&str> = defects.iter().map(|d| d.message.as_str()).collect();
        assert_eq!(messages, [r#"duplicate field "spec.replicas""#, r#"duplicate field "spec.x[0].a""#]);
    }
}
