//! Sets of paths within an object, as `fieldsV1` writes them: `f:name`, `k:{"name":"a"}`, `v:"a"`, `i:0`, and `.`.
//!
//! Invariant: no branch is empty: every node is a member or has a member below it.
//! Invariant: read and written again, a set is the same.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::form::{Form, entries, items};
use crate::schema::Object;

/// A set of paths; steps are kept as they are written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct FieldSet {
    /// Whether the path that leads here is itself in the set.
    pub(super) member: bool,
    pub(super) children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Only the path itself.
    pub(super) fn leaf() -> FieldSet {
        FieldSet { member: true, children: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    pub(super) fn put(&mut self, step: String, child: FieldSet) {
        if !child.is_empty() {
            self.children.insert(step, child);
        }
    }

    /// Reads `fieldsV1`.
    pub(super) fn parse(value: &Value) -> FieldSet {
        let Value::Object(map) = value else { return FieldSet::default() };
        let mut set = FieldSet::default();
        for (step, below) in map {
            if step == "." {
                set.member = true;
                continue;
            }
            let child = FieldSet::parse(below);
            set.children.insert(step.clone(), if child.is_empty() { FieldSet::leaf() } else { child });
        }
        set
    }

    /// Writes `fieldsV1`.
    pub(super) fn to_value(&self) -> Value {
        let mut map: Map<String, Value> =
            self.children.iter().map(|(step, child)| (step.clone(), child.to_value())).collect();
        if self.member && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        Value::Object(map)
    }

    pub(super) fn union(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (step, child) in &other.children {
            self.children.entry(step.clone()).or_default().union(child);
        }
    }

    /// The members that are not members of the other.
    pub(super) fn difference(&self, other: &FieldSet) -> FieldSet {
        let mut result = FieldSet { member: self.member && !other.member, children: BTreeMap::new() };
        for (step, child) in &self.children {
            match other.children.get(step) {
                None => result.put(step.clone(), child.clone()),
                Some(known) => result.put(step.clone(), child.difference(known)),
            }
        }
        result
    }

    /// The members that are members of the other too.
    pub(super) fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut result = FieldSet { member: self.member && other.member, children: BTreeMap::new() };
        for (step, child) in &self.children {
            if let Some(known) = other.children.get(step) {
                result.put(step.clone(), child.intersection(known));
            }
        }
        result
    }

    /// Removes a path and all below it.
    pub(super) fn cut(&mut self, path: &[&str]) {
        let Some((step, rest)) = path.split_first() else { return };
        if rest.is_empty() {
            self.children.remove(*step);
        } else if let Some(child) = self.children.get_mut(*step) {
            child.cut(rest);
            if child.is_empty() {
                self.children.remove(*step);
            }
        }
    }

    /// The members as Kubernetes prints them: `.spec.containers[name="web"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, prefix: &str, paths: &mut Vec<String>) {
        if self.member {
            paths.push(prefix.to_owned());
        }
        for (step, child) in &self.children {
            child.collect(&format!("{prefix}{}", printed(step)), paths);
        }
    }
}

/// The paths that an applied value sets.
pub(super) fn set_of(form: Form, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    if form.is_map(Some(value), None) {
        for (name, child) in entries(Some(value)).into_iter().flatten() {
            let mut below = set_of(form.child(name), child);
            // An empty or null child is owned itself, since nothing below it can be; so is an entry of a map.
            below.member |= child.is_null() || entries(Some(child)).is_some_and(Map::is_empty);
            below.member |= !form.has_field(name);
            set.put(format!("f:{name}"), below);
        }
    } else if form.is_list() {
        for (step, item) in items(form, Some(value)) {
            let Some(step) = step else { continue };
            let mut below = set_of(form.item(), item);
            below.member = true;
            set.put(step, below);
        }
    } else {
        set.member = true;
    }
    set
}

/// The step that names an item of a list: its value in a set, its keys otherwise, defaulted where the type says so.
pub(super) fn item_step(form: Form, item: &Value) -> Option<String> {
    match form {
        Form::Items(keys, object) => {
            let mut named = Map::new();
            for &key in keys {
                named.insert(key.to_owned(), key_value(object, key, item)?.clone());
            }
            Some(format!("k:{}", Value::Object(named)))
        }
        Form::Keyed(list) => {
            let keys = list["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            let mut named = Map::new();
            for key in keys.filter_map(Value::as_str) {
                let default = list["items"]["properties"][key].get("default");
                let value = item.get(key).filter(|value| !value.is_null()).or(default)?;
                named.insert(key.to_owned(), value.clone());
            }
            Some(format!("k:{}", Value::Object(named)))
        }
        _ => Some(format!("v:{item}")),
    }
}

fn key_value<'a>(object: &'static Object, key: &str, item: &'a Value) -> Option<&'a Value> {
    let default = || object.field(key).and_then(|field| field.default.as_ref());
    match item.get(key) {
        None | Some(Value::Null) => default(),
        found => found,
    }
}

fn printed(step: &str) -> String {
    match step.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let pairs: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", pairs.join(","))
        }
        Some(("v" | "i", value)) => format!("[{value}]"),
        _ => step.to_owned(),
    }
}
