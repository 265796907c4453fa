//! `metadata.managedFields`: read into one set per manager, and written back in Kubernetes' order.
//!
//! Invariant: a manager without fields has no entry.
//! Invariant: an entry that did not change is written back as it was, with its time.

use serde_json::{Map, Value, json};

use super::Writer;
use super::fieldset::FieldSet;

/// Entries of operation Update that are kept apart; older ones are merged, as Kubernetes does.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";
/// The owner of what stood in an object before anyone kept an account of it.
pub(super) const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// How a manager came to own fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// One manager's account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) manager: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: String,
    pub(super) fields: FieldSet,
}

/// All managers of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Managers(pub(super) Vec<Entry>);

impl Entry {
    /// An entry without fields.
    pub(super) fn new(by: &Writer<'_>, operation: Operation, api_version: &str) -> Entry {
        Entry {
            manager: by.name.to_owned(),
            operation,
            api_version: api_version.to_owned(),
            subresource: by.subresource.unwrap_or_default().to_owned(),
            time: by.now.to_owned(),
            fields: FieldSet::default(),
        }
    }

    /// Whether both are accounts of the same manager: one who applies is the same whatever version it speaks.
    pub(super) fn same_manager(&self, other: &Entry) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// As conflicts name it: `"kubectl" with subresource "scale" using apps/v1`.
    pub(super) fn printed(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }

    fn parse(value: &Value) -> Option<Entry> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match value.get("operation")?.as_str()? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        Some(Entry {
            manager: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: FieldSet::parse(value.get("fieldsV1")?),
        })
    }

    fn to_value(&self) -> Value {
        let operation = if self.operation == Operation::Apply { "Apply" } else { "Update" };
        let mut entry = json!({
            "manager": self.manager, "operation": operation, "apiVersion": self.api_version,
            "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_value(),
        });
        for (name, text) in [("time", &self.time), ("subresource", &self.subresource)] {
            if !text.is_empty() {
                entry[name] = Value::from(text.as_str());
            }
        }
        entry
    }
}

impl Managers {
    /// Reads an object's account; entries that cannot be read count as none.
    pub(super) fn of(object: &Value) -> Managers {
        let list = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
        Managers(list.iter().filter_map(Entry::parse).filter(|entry| !entry.fields.is_empty()).collect())
    }

    /// Writes the account into an object.
    pub(super) fn write(mut self, object: &mut Value) {
        self.0.retain(|entry| !entry.fields.is_empty());
        self.merge_ancient();
        self.0.sort_by(|a, b| {
            fn key(e: &Entry) -> (Operation, &str, &str, &str, &str) {
                (e.operation, &e.time, &e.manager, &e.api_version, &e.subresource)
            }
            key(a).cmp(&key(b))
        });
        let Value::Object(object) = object else { return };
        let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(metadata) = metadata else { return };
        if self.0.is_empty() {
            metadata.remove("managedFields");
        } else {
            let entries = self.0.iter().map(Entry::to_value).collect();
            metadata.insert("managedFields".to_owned(), Value::Array(entries));
        }
    }

    /// The account of the same manager, if it has one.
    pub(super) fn find(&self, like: &Entry) -> Option<usize> {
        self.0.iter().position(|entry| entry.same_manager(like))
    }

    /// Takes paths from every account but the one given.
    pub(super) fn take_from_others(&mut self, own: &Entry, taken: &FieldSet) {
        for entry in self.0.iter_mut().filter(|entry| !entry.same_manager(own)) {
            entry.fields = entry.fields.difference(taken);
        }
    }

    fn merge_ancient(&mut self) {
        let updaters = self.0.iter().filter(|entry| entry.operation == Operation::Update).count();
        if updaters <= MAX_UPDATERS {
            return;
        }
        self.0.sort_by(|a, b| (a.operation, &a.time).cmp(&(b.operation, &b.time)));
        let first = self.0.len() - updaters;
        let mut oldest: Vec<Entry> = self.0.drain(first..first + updaters - MAX_UPDATERS + 1).collect();
        let Some(mut merged) = oldest.pop() else { return };
        for entry in oldest {
            merged.fields.union(&entry.fields);
        }
        merged.manager = ANCIENT.to_owned();
        merged.subresource.clear();
        match self.find(&merged) {
            Some(at) => self.0[at].fields.union(&merged.fields),
            None => self.0.push(merged),
        }
    }
}
