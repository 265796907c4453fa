//! Strategic merge the way kustomize does it, which is not the way the API server does it: patched items come first in
//! their list, lists with several keys match on those that both sides give, and nothing is an error.
//!
//! The knowledge of what merges by which key is the schema table's, as in `api::patch`.
//!
//! Invariant: no `$patch` ends up in an object.

use api::schema::{self, Field, Object, Shape};
use serde_json::{Map, Value};

use super::resource::spelled;

const PATCH: &str = "$patch";

/// Merges a patch into an object; nothing when the patch deletes it.
pub(super) fn merge(root: Option<&'static Object>, target: Value, patch: Value) -> Option<Value> {
    walk(Some(target), Some(patch), At::Object(root)).kept()
}

/// What the schema knows of the place.
#[derive(Clone, Copy)]
enum At {
    Object(Option<&'static Object>),
    Field(&'static Field),
}

impl At {
    fn field(self, name: &str) -> At {
        let object = match self {
            At::Object(object) => object,
            At::Field(field) => match field.of.shape() {
                Shape::Object(object) => Some(object),
                // A map's values have no field of their own, but may have fields.
                Shape::Map(of) => return At::Object(as_object(of.shape())),
                _ => None,
            },
        };
        object.and_then(|object| object.field(name)).map_or(At::Object(None), At::Field)
    }

    fn item(self) -> At {
        match self {
            At::Field(field) => match field.of.shape() {
                Shape::Array(of) => At::Object(as_object(of.shape())),
                _ => At::Object(None),
            },
            At::Object(_) => At::Object(None),
        }
    }

    /// The keys of a list that merges; nothing for one that is replaced as a whole.
    fn keys(self) -> Option<Vec<&'static str>> {
        let At::Field(field) = self else { return None };
        if !field.merge {
            return None;
        }
        let keys =
            if field.keys.is_empty() { field.merge_key.into_iter().collect() } else { field.keys.to_vec() };
        Some(keys)
    }
}

fn as_object(shape: Shape) -> Option<&'static Object> {
    match shape {
        Shape::Object(object) => Some(object),
        _ => None,
    }
}

/// The schema of a kind, of this version or of another one of the same group.
pub(super) fn root(group: &str, version: &str, kind: &str) -> Option<&'static Object> {
    let api_version = api::kinds::api_version(group, version);
    let other = || api::kinds::kinds().iter().find(|row| row.group == group && row.kind == kind);
    let row = api::kinds::by_kind(&api_version, kind).or_else(other)?;
    row.schema.starts_with("io.k8s.").then(|| schema::root(row))
}

/// What became of a place, and whether it is still the target's own value that was changed.
enum Walked {
    /// The target's value, changed in its place.
    Own(Value),
    /// The patch's value stands for it.
    Other(Value),
    Gone,
}

impl Walked {
    fn kept(self) -> Option<Value> {
        match self {
            Walked::Own(value) | Walked::Other(value) => Some(value),
            Walked::Gone => None,
        }
    }
}

fn walk(target: Option<Value>, patch: Option<Value>, at: At) -> Walked {
    let present = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
    let shape = if present(&target) { target.as_ref() } else { patch.as_ref() };
    match shape {
        Some(Value::Array(_)) => match at.keys() {
            Some(keys) => walk_list(target, patch, &keys, at),
            None => scalar(target, patch),
        },
        None | Some(Value::Null | Value::Object(_)) => walk_map(target, patch, at),
        Some(_) => scalar(target, patch),
    }
}

fn scalar(target: Option<Value>, patch: Option<Value>) -> Walked {
    match (target, patch) {
        (_, Some(Value::Null)) | (None, None) => Walked::Gone,
        (_, Some(patch)) => Walked::Other(patch),
        (Some(target), None) => Walked::Own(target),
    }
}

enum Directive {
    Merge,
    Replace,
    Delete,
}

fn directive(patch: &mut Value) -> Directive {
    let word = patch.as_object_mut().and_then(|map| map.remove(PATCH));
    match word.as_ref().and_then(Value::as_str) {
        Some("delete") => Directive::Delete,
        Some("replace") => Directive::Replace,
        _ => Directive::Merge,
    }
}

fn walk_map(target: Option<Value>, patch: Option<Value>, at: At) -> Walked {
    match (target, patch) {
        (None | Some(Value::Null), Some(mut patch)) => match directive(&mut patch) {
            Directive::Delete => Walked::Gone,
            _ => added(patch, at),
        },
        // A null that nobody patches stays.
        (Some(Value::Null), None) => Walked::Own(Value::Null),
        (None, None) | (Some(_), Some(Value::Null)) => Walked::Gone,
        (Some(target), None) => merged(target, Map::new(), at),
        (Some(target), Some(mut patch)) => match directive(&mut patch) {
            Directive::Delete => Walked::Gone,
            Directive::Replace => added(patch, at),
            Directive::Merge => match patch {
                Value::Object(patch) => merged(target, patch, at),
                other => Walked::Other(other),
            },
        },
    }
}

/// What is new: the patch merged with itself, so that nulls and directives go.
fn added(patch: Value, at: At) -> Walked {
    match patch {
        Value::Null => Walked::Gone,
        Value::Object(map) => {
            let entries = map.into_iter().filter_map(|(name, value)| {
                let value = walk(Some(value.clone()), Some(value), at.field(&name)).kept()?;
                Some((name, value))
            });
            Walked::Other(Value::Object(entries.collect()))
        }
        other => Walked::Other(other),
    }
}

fn merged(target: Value, mut patch: Map<String, Value>, at: At) -> Walked {
    let Value::Object(target) = target else { return Walked::Other(Value::Object(patch)) };
    let mut result = Map::new();
    for (name, value) in target {
        let change = patch.remove(&name);
        if let Some(value) = walk(Some(value), change, at.field(&name)).kept() {
            result.insert(name, value);
        }
    }
    for (name, value) in patch {
        if let Some(value) = walk(None, Some(value), at.field(&name)).kept() {
            result.insert(name, value);
        }
    }
    Walked::Own(Value::Object(result))
}

fn walk_list(target: Option<Value>, patch: Option<Value>, keys: &[&'static str], at: At) -> Walked {
    let (target, patch, own) = match (target, patch) {
        (Some(_), Some(Value::Null)) | (None | Some(Value::Null), None | Some(Value::Null)) => {
            return Walked::Gone;
        }
        (None | Some(Value::Null), Some(patch)) => (patch.clone(), Some(patch), false),
        (Some(target), None) => (target, None, true),
        (Some(target), Some(mut patch)) => match list_directive(&mut patch) {
            Directive::Delete => return Walked::Gone,
            Directive::Replace => (patch.clone(), Some(patch), false),
            Directive::Merge => (target, Some(patch), true),
        },
    };
    let list = |value: Value| match value {
        Value::Array(items) => items,
        other => vec![other],
    };
    let (target, patch) = (list(target), patch.map(list));
    let items = if keys.is_empty() {
        primitives(target, patch.unwrap_or_default())
    } else {
        Lists { target, patch: patch.unwrap_or_default(), keys, at: at.item() }.merged()
    };
    if own { Walked::Own(Value::Array(items)) } else { Walked::Other(Value::Array(items)) }
}

/// An item that is nothing but `$patch` speaks of the whole list.
fn list_directive(patch: &mut Value) -> Directive {
    let Value::Array(items) = patch else { return Directive::Merge };
    let speaks = |item: &Value| item.as_object().is_some_and(|map| map.len() == 1 && map.contains_key(PATCH));
    let Some(at) = items.iter().position(speaks) else { return Directive::Merge };
    directive(&mut items.remove(at))
}

/// The union, the patch's first.
fn primitives(target: Vec<Value>, patch: Vec<Value>) -> Vec<Value> {
    let mut result: Vec<Value> = Vec::new();
    for item in patch.into_iter().chain(target) {
        if item.is_null() {
            continue;
        }
        match result.iter_mut().find(|known| spelled(known) == spelled(&item)) {
            Some(known) => *known = item,
            None => result.push(item),
        }
    }
    result
}

/// Two lists that merge by keys.
struct Lists<'k> {
    target: Vec<Value>,
    patch: Vec<Value>,
    keys: &'k [&'static str],
    at: At,
}

/// What an item has under each key; empty where it has nothing.
type Values = Vec<String>;

impl Lists<'_> {
    fn merged(mut self) -> Vec<Value> {
        let wanted = self.values();
        // Keys that no item has play no part.
        let valid: Vec<usize> =
            (0..self.keys.len()).filter(|at| wanted.iter().any(|values| !values[*at].is_empty())).collect();
        let valid = if valid.is_empty() { (0..self.keys.len()).collect() } else { valid };
        let keys: Vec<&str> = valid.iter().map(|at| self.keys[*at]).collect();
        let mut added: Vec<Value> = Vec::new();
        for values in &wanted {
            let values: Vec<&str> = valid.iter().map(|at| values[*at].as_str()).collect();
            let Some(mut item) = self.item(&keys, &values) else {
                set(&mut self.target, None, &keys, &values);
                continue;
            };
            if let Some(map) = item.as_object_mut() {
                for (key, value) in keys.iter().zip(&values) {
                    if !map.contains_key(*key) && !value.is_empty() {
                        map.insert((*key).to_owned(), Value::String((*value).to_owned()));
                    }
                }
            }
            set(&mut added, Some(item), &keys, &values);
        }
        if wanted.is_empty() {
            return self.target;
        }
        append(added, self.target, &keys)
    }

    /// One item, merged in its place. Nothing when it is deleted.
    fn item(&mut self, keys: &[&str], values: &[&str]) -> Option<Value> {
        // Only keys that this item has are compared.
        let given: Vec<(&str, &str)> =
            keys.iter().copied().zip(values.iter().copied()).filter(|(_, value)| !value.is_empty()).collect();
        let find = |items: &[Value]| {
            items.iter().position(|item| {
                item.is_object() && given.iter().all(|(key, value)| has(item, key).as_deref() == Some(value))
            })
        };
        let at = find(&self.target);
        let target = at.map(|at| self.target[at].clone());
        let patch = find(&self.patch).map(|at| self.patch[at].clone());
        let walked = walk(target, patch, self.at);
        if let (Some(at), Walked::Own(value)) = (at, &walked) {
            self.target[at] = value.clone();
        }
        walked.kept().filter(|item| item.as_object().is_none_or(|map| !map.is_empty()))
    }

    /// What the items are known by, the patch's first; two that contradict each other nowhere are one.
    fn values(&self) -> Vec<Values> {
        let mut all: Vec<Values> = Vec::new();
        for item in self.patch.iter().chain(&self.target) {
            let values: Values = self.keys.iter().map(|key| has(item, key).unwrap_or_default()).collect();
            if !all.contains(&values) {
                all.push(values);
            }
        }
        if self.keys.len() > 1 {
            for one in 0..all.len() {
                for other in 0..all.len() {
                    if let Some(joined) = joined(&all[one], &all[other]) {
                        all[one].clone_from(&joined);
                        all[other] = joined;
                    }
                }
            }
        }
        all
    }
}

fn joined(one: &[String], other: &[String]) -> Option<Values> {
    let mut common = false;
    let mut result = Vec::new();
    for (a, b) in one.iter().zip(other) {
        if a == b {
            common = true;
        } else if !a.is_empty() && !b.is_empty() {
            return None;
        }
        result.push(if a.is_empty() { b.clone() } else { a.clone() });
    }
    common.then_some(result)
}

fn has(item: &Value, key: &str) -> Option<String> {
    item.get(key).filter(|value| !value.is_null()).map(spelled)
}

/// Replaces what matches, or removes it, or adds what is new. An empty value matches anything that is there.
fn set(list: &mut Vec<Value>, item: Option<Value>, keys: &[&str], values: &[&str]) {
    let matches = |known: &Value| {
        keys.iter().zip(values).all(|(key, value)| match has(known, key) {
            Some(is) => value.is_empty() || is == *value,
            None => false,
        })
    };
    let nothing = |known: &Value| known.is_null() || known.as_object().is_some_and(Map::is_empty);
    let mut found = false;
    let mut result = Vec::with_capacity(list.len() + 1);
    for known in std::mem::take(list) {
        if nothing(&known) {
            continue;
        }
        if known.is_object() && matches(&known) {
            found = true;
            result.extend(item.clone());
        } else {
            result.push(known);
        }
    }
    if !found {
        result.extend(item);
    }
    *list = result;
}

/// The target's items after those that the patch named, each once.
fn append(mut into: Vec<Value>, target: Vec<Value>, keys: &[&str]) -> Vec<Value> {
    for item in target {
        let values: Vec<String> = keys.iter().filter_map(|key| has(&item, key)).collect();
        let missing = keys.len() - values.len();
        // As kustomize: an item without one of the keys goes to the end, and replaces what its other keys match.
        let mut spoken: Vec<&str> = values.iter().map(String::as_str).collect();
        spoken.resize(keys.len(), "");
        if missing > 0 {
            replace_partial(&mut into, &item, keys, &values);
            continue;
        }
        if keys.len() > 1 {
            set(&mut into, None, keys, &spoken);
        }
        set(&mut into, Some(item), keys, &spoken);
    }
    into
}

/// What kustomize's setter does when it got fewer values than keys: the values stand for the first keys, and the last
/// comparison counts for the rest.
fn replace_partial(into: &mut Vec<Value>, item: &Value, keys: &[&str], values: &[String]) {
    let matches =
        |known: &Value| keys.iter().zip(values).all(|(key, value)| has(known, key).as_ref() == Some(value));
    into.retain(|known| !matches(known));
    into.push(item.clone());
}
