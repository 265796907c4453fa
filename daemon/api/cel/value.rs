//! Values of expressions: JSON as it is, and what JSON cannot say.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::quantity::Quantity;

/// A value. JSON is borrowed and read where it is looked at.
#[derive(Debug, Clone)]
pub enum V<'a> {
    /// Any JSON.
    Json(&'a Value),
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number without sign.
    Uint(u64),
    /// A floating point number.
    Double(f64),
    /// A text.
    Str(Cow<'a, str>),
    /// A list.
    List(Arc<Vec<V<'a>>>),
    /// A map, in the order it was written.
    Map(Arc<Vec<(V<'a>, V<'a>)>>),
    /// A moment.
    Time(Timestamp),
    /// A span of time.
    Span(SignedDuration),
    /// A quantity of Kubernetes.
    Quantity(Quantity),
    /// An optional value.
    Optional(Option<Box<V<'a>>>),
    /// A type.
    Type(&'static str),
}

impl<'a> V<'a> {
    /// The value with JSON scalars as what they are.
    #[must_use]
    pub fn plain(self) -> V<'a> {
        match self {
            V::Json(Value::Null) => V::Null,
            V::Json(Value::Bool(bool)) => V::Bool(*bool),
            V::Json(Value::Number(number)) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => V::Int(int),
                (_, Some(uint)) => V::Uint(uint),
                _ => V::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            V::Json(Value::String(text)) => V::Str(Cow::Borrowed(text)),
            other => other,
        }
    }

    /// `int`, `list`, `map`: what it is.
    pub fn type_name(&self) -> &'static str {
        match self {
            V::Json(Value::Array(_)) | V::List(_) => "list",
            V::Json(Value::Object(_)) | V::Map(_) => "map",
            V::Json(_) => self.clone().plain().type_name(),
            V::Null => "null_type",
            V::Bool(_) => "bool",
            V::Int(_) => "int",
            V::Uint(_) => "uint",
            V::Double(_) => "double",
            V::Str(_) => "string",
            V::Time(_) => "google.protobuf.Timestamp",
            V::Span(_) => "google.protobuf.Duration",
            V::Quantity(_) => "kubernetes.Quantity",
            V::Optional(_) => "optional_type",
            V::Type(_) => "type",
        }
    }

    /// The items of a list.
    pub(super) fn items(&self) -> Option<Vec<V<'a>>> {
        match self {
            V::Json(Value::Array(items)) => Some(items.iter().map(V::Json).collect()),
            V::List(items) => Some(items.to_vec()),
            _ => None,
        }
    }

    /// The keys of a map.
    pub(super) fn keys(&self) -> Option<Vec<V<'a>>> {
        match self {
            V::Json(Value::Object(map)) => {
                Some(map.keys().map(|key| V::Str(Cow::Borrowed(key.as_str()))).collect())
            }
            V::Map(pairs) => Some(pairs.iter().map(|(key, _)| key.clone()).collect()),
            _ => None,
        }
    }

    /// How many items, keys or characters; none for what has no size.
    pub(super) fn size(&self) -> Option<usize> {
        match self {
            V::Json(Value::Array(items)) => Some(items.len()),
            V::Json(Value::Object(map)) => Some(map.len()),
            V::Json(Value::String(text)) => Some(text.chars().count()),
            V::List(items) => Some(items.len()),
            V::Map(pairs) => Some(pairs.len()),
            V::Str(text) => Some(text.chars().count()),
            _ => None,
        }
    }

    /// What stands under a key of a map.
    pub(super) fn get(&self, key: &V<'a>) -> Option<V<'a>> {
        match (self, key.clone().plain()) {
            (V::Json(Value::Object(map)), V::Str(key)) => map.get(key.as_ref()).map(V::Json),
            (V::Map(pairs), key) => {
                pairs.iter().find(|(known, _)| known.equals(&key)).map(|(_, value)| value.clone())
            }
            _ => None,
        }
    }

    /// Whether two values are equal; numbers of all kinds are compared as numbers.
    pub(super) fn equals(&self, other: &V<'a>) -> bool {
        match (self.clone().plain(), other.clone().plain()) {
            (V::Null, V::Null) => true,
            (V::Bool(a), V::Bool(b)) => a == b,
            (V::Type(a), V::Type(b)) => a == b,
            (V::Optional(a), V::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(&b),
                (a, b) => a.is_none() && b.is_none(),
            },
            (V::Json(a), V::Json(b)) => a == b,
            (a, b) => match (a.items(), b.items()) {
                (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.equals(b)),
                (None, None) => match (a.keys(), b.keys()) {
                    (Some(keys), Some(others)) => {
                        let same = |key: &V<'a>| match (a.get(key), b.get(key)) {
                            (Some(a), Some(b)) => a.equals(&b),
                            _ => false,
                        };
                        keys.len() == others.len() && keys.iter().all(same)
                    }
                    _ => a.compare(&b) == Some(Ordering::Equal),
                },
                _ => false,
            },
        }
    }

    /// The order of two values, where they have one.
    pub(super) fn compare(&self, other: &V<'a>) -> Option<Ordering> {
        match (self.clone().plain(), other.clone().plain()) {
            (V::Int(a), V::Int(b)) => Some(a.cmp(&b)),
            (V::Uint(a), V::Uint(b)) => Some(a.cmp(&b)),
            (V::Str(a), V::Str(b)) => Some(a.cmp(&b)),
            (V::Bool(a), V::Bool(b)) => Some(a.cmp(&b)),
            (V::Time(a), V::Time(b)) => Some(a.cmp(&b)),
            (V::Span(a), V::Span(b)) => Some(a.cmp(&b)),
            (V::Quantity(a), V::Quantity(b)) => Some(a.cmp(&b)),
            (a, b) => a.number()?.partial_cmp(&b.number()?),
        }
    }

    /// A number of any kind.
    #[expect(clippy::cast_precision_loss, reason = "numbers of different kinds are compared as doubles")]
    pub(super) fn number(&self) -> Option<f64> {
        match self.clone().plain() {
            V::Int(int) => Some(int as f64),
            V::Uint(uint) => Some(uint as f64),
            V::Double(double) => Some(double),
            _ => None,
        }
    }

    /// As JSON, for what leaves the expression.
    pub fn to_json(&self) -> Value {
        match self.clone().plain() {
            V::Json(value) => value.clone(),
            V::Null | V::Optional(None) => Value::Null,
            V::Bool(bool) => bool.into(),
            V::Int(int) => int.into(),
            V::Uint(uint) => uint.into(),
            V::Double(double) => double.into(),
            V::Str(text) => text.into_owned().into(),
            V::List(items) => items.iter().map(V::to_json).collect(),
            V::Map(pairs) => pairs
                .iter()
                .map(|(key, value)| (key.text(), value.to_json()))
                .collect::<serde_json::Map<String, Value>>()
                .into(),
            V::Optional(Some(value)) => value.to_json(),
            other => other.text().into(),
        }
    }

    /// As a text.
    pub fn text(&self) -> String {
        match self.clone().plain() {
            V::Str(text) => text.into_owned(),
            V::Bool(bool) => bool.to_string(),
            V::Int(int) => int.to_string(),
            V::Uint(uint) => uint.to_string(),
            V::Double(double) => double.to_string(),
            V::Time(time) => time.to_string(),
            V::Span(span) => format!("{}s", span.as_secs_f64()),
            V::Quantity(quantity) => quantity.to_string(),
            V::Type(name) => name.to_owned(),
            other => other.to_json().to_string(),
        }
    }
}
