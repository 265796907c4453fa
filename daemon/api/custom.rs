//! Kinds that users define: from a CustomResourceDefinition to rows like those of the table, with a schema that is walked
//! by the same server as the built-in ones.
//!
//! Invariant: a row is made from a definition that was validated; what cannot be read in it means "nothing is said".
//! Invariant: every version of one definition sees the same stored object; only `apiVersion` differs (conversion None).

pub mod definition;
pub mod openapi;
mod path;
mod schema;
mod validate;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::{Kind, Subresource};
use crate::schema::Defect;
use crate::table::age;

pub use path::{find, put};
pub(crate) use schema::child;
pub use schema::{coerce, default, prune};
pub use validate::{create, update};
pub(crate) use validate::{matches, parse as pattern};

/// What a custom kind knows beyond a row of the table.
#[derive(Debug)]
pub struct Custom {
    /// The schema of the whole object; `metadata` is the server's.
    pub schema: Value,
    /// `additionalPrinterColumns`.
    columns: Vec<Value>,
    /// JSON paths of `spec.replicas`, `status.replicas` and the selector, where there is a scale subresource.
    pub scale: Option<Scale>,
    /// The version in which objects are stored.
    storage: String,
    /// Warned of when this version is used.
    pub deprecated: Option<String>,
}

/// Where a custom kind keeps what `autoscaling/v1` Scale tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scale {
    /// `.spec.replicas`.
    pub spec: String,
    /// `.status.replicas`.
    pub status: String,
    /// `.status.labelSelector`; empty when there is none.
    pub selector: String,
}

/// The rows of a definition: its served versions, the newest and stablest first.
pub fn rows(definition: &Value) -> Vec<Kind> {
    let versions = definition["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage = versions.iter().find(|version| version["storage"] == true);
    let storage = storage.map(|version| text(version, "name")).unwrap_or_default();
    let mut served: Vec<&Value> = versions.iter().filter(|version| version["served"] == true).collect();
    served.sort_by_key(|version| std::cmp::Reverse(priority(text(version, "name"))));
    let many = versions.len() > 1
        || definition["status"]["storedVersions"].as_array().is_some_and(|stored| stored.len() > 1);
    served.into_iter().map(|version| row(&definition["spec"], version, storage, many)).collect()
}

/// The rows of a definition, kept for ever: twice the same definition gives the same rows.
pub fn kept_rows(definition: &Value) -> Vec<&'static Kind> {
    type Kept = BTreeMap<(u64, usize), Vec<&'static Kind>>;
    static KEPT: Mutex<Kept> = Mutex::new(BTreeMap::new());
    let text = json!([definition["spec"], definition["status"]["storedVersions"]]).to_string();
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let made = || rows(definition).into_iter().map(|row| &*Box::leak(Box::new(row))).collect();
    // A row that was made whole is whole, whatever panicked.
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.entry((hasher.finish(), text.len())).or_insert_with(made).clone()
}

/// Stable before beta before alpha, then by number; everything else last.
pub(crate) fn priority(version: &str) -> (u8, u64, u64) {
    let number = |text: &str| text.parse::<u64>().ok();
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    for (word, rank) in [("beta", 2), ("alpha", 1)] {
        if let Some((major, minor)) = rest.split_once(word)
            && let (Some(major), Some(minor)) = (number(major), number(minor))
        {
            return (rank, major, minor);
        }
    }
    number(rest).map_or((0, 0, 0), |major| (3, major, 0))
}

fn row(spec: &Value, version: &Value, storage: &str, many: bool) -> Kind {
    let names = &spec["names"];
    let (group, name, kind) = (text(spec, "group"), text(version, "name"), text(names, "kind"));
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let subresources = &version["subresources"];
    let scale = subresources["scale"].is_object().then(|| Scale {
        spec: text(&subresources["scale"], "specReplicasPath").to_owned(),
        status: text(&subresources["scale"], "statusReplicasPath").to_owned(),
        selector: text(&subresources["scale"], "labelSelectorPath").to_owned(),
    });
    let verbs = || ["get", "patch", "update"].map(str::to_owned).to_vec();
    let below = |name: &str, group: &str, version: &str, kind: &str| Subresource {
        name: name.to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        verbs: verbs(),
    };
    let mut subs = Vec::new();
    subs.extend(subresources["status"].is_object().then(|| below("status", group, name, kind)));
    subs.extend(scale.is_some().then(|| below("scale", "autoscaling", "v1", "Scale")));
    let mut schema = version["schema"]["openAPIV3Schema"].clone();
    if !schema.is_object() {
        schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    }
    let view = many || schema::has_defaults(&schema);
    let deprecated = (version["deprecated"] == true).then(|| match version["deprecationWarning"].as_str() {
        Some(warning) => warning.to_owned(),
        None => format!("{group}/{name} {kind} is deprecated"),
    });
    let custom = Custom {
        schema,
        columns: version["additionalPrinterColumns"].as_array().cloned().unwrap_or_default(),
        scale: scale.clone(),
        storage: storage.to_owned(),
        deprecated,
    };
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let row = Kind {
        group: group.to_owned(),
        version: name.to_owned(),
        kind: kind.to_owned(),
        plural: text(names, "plural").to_owned(),
        singular: text(names, "singular").to_owned(),
        short_names: strings(&names["shortNames"]),
        categories: strings(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        verbs: verbs.map(str::to_owned).to_vec(),
        schema: openapi::name(group, name, kind),
        status: subresources["status"].is_object(),
        scale: scale.is_some(),
        subresources: subs,
        ..Kind::default()
    };
    // Rows are referred to for as long as the process lives; there is one for each change of a definition's spec.
    row.with_custom(Box::leak(Box::new(custom)), view)
}

/// The stored form: of the storage version.
pub(crate) fn to_stored(kind: &Kind, custom: &Custom, object: &mut Value) {
    object["apiVersion"] = crate::kinds::api_version(&kind.group, &custom.storage).into();
}

/// An object of this version from its stored form; what the schema defaults now is there, whenever it was stored.
pub(crate) fn from_stored(kind: &Kind, custom: &Custom, object: &mut Value) {
    object["apiVersion"] = kind.api_version().into();
    default(&custom.schema, object);
}

/// Columns beyond the name, and their cells.
pub(crate) fn columns(custom: &Custom) -> Vec<Value> {
    if custom.columns.is_empty() {
        return vec![column("Age", "date", "CreationTimestamp is when the object was made", 0, "")];
    }
    let told = |one: &Value| {
        let (name, of, priority) =
            (text(one, "name"), text(one, "type"), one["priority"].as_i64().unwrap_or(0));
        column(name, of, text(one, "description"), priority, text(one, "format"))
    };
    custom.columns.iter().map(told).collect()
}

fn column(name: &str, of: &str, description: &str, priority: i64, format: &str) -> Value {
    json!({ "name": name, "type": of, "format": format, "description": description, "priority": priority })
}

/// The cells of an object under [`columns`].
pub(crate) fn cells(custom: &Custom, object: &Value, now: Timestamp) -> Vec<Value> {
    if custom.columns.is_empty() {
        return vec![age::since(&object["metadata"]["creationTimestamp"], now).into()];
    }
    let cell = |one: &Value| {
        let found = find(object, text(one, "jsonPath"));
        match (text(one, "type"), found.as_slice()) {
            (_, []) => Value::Null,
            ("date", [time, ..]) => age::since(time, now).into(),
            ("integer" | "number" | "boolean", [value, ..]) => (*value).clone(),
            (_, [Value::String(text)]) => text.clone().into(),
            (_, [one]) => one.to_string().into(),
            (_, many) => {
                let texts: Vec<String> = many
                    .iter()
                    .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
                    .collect();
                texts.join(",").into()
            }
        }
    };
    custom.columns.iter().map(cell).collect()
}

pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// Wrong types and unknown fields of the parts that the server itself knows: metadata.
pub fn check_metadata(object: &Value) -> Vec<Defect> {
    match crate::schema::object("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
        Some(of) if object["metadata"].is_object() => {
            let mut defects = crate::schema::check_fields_of(of, &object["metadata"]);
            defects.iter_mut().for_each(|defect| defect.path = format!("metadata.{}", defect.path));
            defects
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
