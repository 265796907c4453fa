//! Objects between the API and the store: keys, heads, and the bytes that are stored as they are served.
//!
//! Invariant: an object is serialised once, at its write; the place of its resourceVersion is left open for the store.

use std::collections::BTreeMap;

use api::kinds::{self, Kind};
use api::select;
use bytes::Bytes;
use serde_json::{Map, Value};
use store::Template;

/// What selectors look at, kept beside the bytes so that lists and watches need not parse them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Head {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// The fields that field selectors may name.
    pub fields: BTreeMap<String, String>,
}

impl Head {
    /// The head of stored bytes, for reopening a store. Bytes that are no object have an empty head.
    pub fn parse(key: &str, bytes: &[u8]) -> Head {
        let Ok(object) = serde_json::from_slice::<Value>(bytes) else { return Head::default() };
        match kind_of_key(key) {
            Some(kind) => Head::of(kind, &object),
            // A kind that users define: its definition may not have been read yet.
            None => Head::of_unknown(&object),
        }
    }

    fn of_unknown(object: &Value) -> Head {
        let fields =
            ["name", "namespace"].map(|field| (format!("metadata.{field}"), meta(object, field).to_owned()));
        Head { fields: fields.into(), ..Head::of_labels(object) }
    }

    pub(crate) fn of(kind: &Kind, object: &Value) -> Head {
        Head { fields: select::selectable_fields(kind, object), ..Head::of_labels(object) }
    }

    fn of_labels(object: &Value) -> Head {
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        Head {
            uid: meta(object, "uid").to_owned(),
            labels: labels.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect(),
            fields: BTreeMap::new(),
        }
    }
}

/// All objects of a kind, or of a kind in a namespace, lie under one prefix, whatever the version asked for.
pub(crate) fn prefix(kind: &Kind, namespace: &str) -> String {
    let kind = kind.stored();
    let group = if kind.group.is_empty() { "core" } else { &kind.group };
    match namespace {
        "" => format!("/{group}/{}/", kind.plural),
        namespace => format!("/{group}/{}/{namespace}/", kind.plural),
    }
}

/// The key of an object. Names cannot contain a slash (validated at create), so keys cannot collide.
pub(crate) fn key(kind: &Kind, namespace: &str, name: &str) -> String {
    format!("{}{name}", prefix(kind, namespace))
}

fn kind_of_key(key: &str) -> Option<&'static Kind> {
    let mut parts = key.trim_start_matches('/').split('/');
    let group = parts.next().map(|group| if group == "core" { "" } else { group })?;
    let plural = parts.next()?;
    kinds::kinds().iter().find(|kind| kind.group == group && kind.plural == plural)
}

/// The object's bytes with a gap where the store puts the revision.
pub(crate) fn template(object: &Value) -> Template {
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let mut writer = Gap::default();
    writer.text("{");
    let mut first = true;
    // apiVersion and kind come first, as people expect them.
    let heads = ["apiVersion", "kind"].into_iter().filter_map(|name| fields.get_key_value(name));
    let others = fields.iter().filter(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind"));
    for (name, value) in heads.chain(others) {
        writer.name(&mut first, name);
        match value {
            Value::Object(metadata) if name == "metadata" => writer.metadata(metadata),
            value => writer.value(value),
        }
    }
    writer.text("}");
    let after = writer.buffer.split_off(writer.gap);
    Template::numbered(Bytes::from(writer.buffer), Bytes::from(after))
}

#[derive(Default)]
struct Gap {
    buffer: Vec<u8>,
    gap: usize,
}

impl Gap {
    fn text(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
    }

    fn name(&mut self, first: &mut bool, name: &str) {
        if !std::mem::take(first) {
            self.text(",");
        }
        self.value(&Value::String(name.to_owned()));
        self.text(":");
    }

    fn value(&mut self, value: &Value) {
        serde_json::to_writer(&mut self.buffer, value).expect("writing JSON into memory cannot fail");
    }

    fn metadata(&mut self, metadata: &Map<String, Value>) {
        self.text("{\"resourceVersion\":\"");
        self.gap = self.buffer.len();
        self.text("\"");
        for (name, value) in metadata.iter().filter(|(name, _)| *name != "resourceVersion") {
            self.name(&mut false, name);
            self.value(value);
        }
        self.text("}");
    }
}

/// Stored bytes as an object of this kind and version.
pub(crate) fn parse_as(kind: &Kind, bytes: &[u8]) -> Value {
    api::convert::from_stored(kind, parse(bytes))
}

/// Parses stored bytes.
pub(crate) fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("what the store holds was written by us")
}

/// A field of `metadata`, empty when absent.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The metadata of an object as a map that can be written to; made when missing.
pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    map(map(object).entry("metadata").or_insert_with(|| Value::Object(Map::new())))
}

fn map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made an object just now")
}

/// Finalizers, as strings.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether deletion was asked for already.
pub(crate) fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}
