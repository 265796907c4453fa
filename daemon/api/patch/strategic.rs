//! Strategic merge patch: lists merge by the keys of the schema table, directives say the rest.
//!
//! Invariant: no directive (`$patch`, `$retainKeys`, `$deleteFromPrimitiveList/`, `$setElementOrder/`) ends up in an object.
//! Invariant: the order of lists is what kubectl's users know: new items first, known items where they were.

use serde_json::{Map, Value};

use super::PatchError;
use crate::kinds::Kind;
use crate::schema::{self, Field, Object, Shape};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

pub(super) fn patch(kind: &Kind, target: &Value, patch: &Value) -> Result<Value, PatchError> {
    // Custom types have no merge keys in Go structs; Kubernetes refuses them by media type.
    if !kind.schema.starts_with("io.k8s.") {
        return Err(PatchError::Unsupported);
    }
    let Value::Object(patch) = patch else {
        return Err(malformed("a strategic merge patch is an object"));
    };
    let target = target.as_object().cloned().unwrap_or_default();
    merge_map(target, patch.clone(), Some(schema::root(kind))).map(Value::Object)
}

fn merge_map(
    mut target: Map<String, Value>,
    mut patch: Map<String, Value>,
    object: Option<&'static Object>,
) -> Result<Map<String, Value>, PatchError> {
    match directive(&mut patch)? {
        Directive::Merge => {}
        Directive::Replace => return Ok(without_directives(patch)),
        Directive::Delete => return Ok(Map::new()),
    }
    retain_keys(&mut target, &mut patch)?;
    set_element_orders(&mut target, &mut patch, object)?;
    let mut deletions = Vec::new();
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(DELETE_PRIMITIVES) {
            deletions.push((name.to_owned(), value));
            continue;
        }
        let field = object.and_then(|object| object.field(&key));
        match (target.get_mut(&key), value) {
            (_, Value::Null) => {
                target.remove(&key);
            }
            (Some(Value::Object(current)), Value::Object(value)) => {
                *current = merge_map(std::mem::take(current), value, field.and_then(struct_of))?;
            }
            (Some(Value::Array(current)), Value::Array(value)) => {
                *current = merge_list(std::mem::take(current), value, field)?;
            }
            (_, value) => {
                target.insert(key, clean(value));
            }
        }
    }
    for (name, value) in deletions {
        let Value::Array(gone) = value else {
            return Err(malformed("the value of $deleteFromPrimitiveList has to be a list of primitives"));
        };
        if let Some(Value::Array(list)) = target.get_mut(&name) {
            list.retain(|item| !gone.contains(item));
        }
    }
    Ok(target)
}

enum Directive {
    Merge,
    Replace,
    Delete,
}

/// Takes `$patch` out of a map.
fn directive(patch: &mut Map<String, Value>) -> Result<Directive, PatchError> {
    match patch.remove(PATCH) {
        None => Ok(Directive::Merge),
        Some(Value::String(word)) if word == "merge" => Ok(Directive::Merge),
        Some(Value::String(word)) if word == "replace" => Ok(Directive::Replace),
        Some(Value::String(word)) if word == "delete" => Ok(Directive::Delete),
        Some(other) => Err(malformed(&format!("unknown patch type: {other}; use merge, replace or delete"))),
    }
}

/// `$retainKeys`: what is not listed goes away.
fn retain_keys(target: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), PatchError> {
    let keys = match patch.remove(RETAIN_KEYS) {
        None => return Ok(()),
        Some(Value::Array(keys)) => keys,
        Some(_) => return Err(malformed("invalid patch format of retainKeys: expected a list of keys")),
    };
    let retained = |key: &str| keys.iter().any(|kept| kept == key);
    if let Some(key) =
        patch.iter().find(|(key, value)| !value.is_null() && !retained(bare(key))).map(|(key, _)| key)
    {
        return Err(malformed(&format!(
            "invalid patch format of retainKeys: {key} is patched but not retained"
        )));
    }
    target.retain(|key, _| retained(key));
    Ok(())
}

/// The field a directive's key speaks of.
fn bare(key: &str) -> &str {
    key.strip_prefix(DELETE_PRIMITIVES).or_else(|| key.strip_prefix(ELEMENT_ORDER)).unwrap_or(key)
}

/// `$setElementOrder/<field>`: merges that field's list and puts its items in the given order.
fn set_element_orders(
    target: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    object: Option<&'static Object>,
) -> Result<(), PatchError> {
    let names: Vec<String> =
        patch.keys().filter_map(|key| key.strip_prefix(ELEMENT_ORDER)).map(str::to_owned).collect();
    for name in names {
        let Some(Value::Array(order)) = patch.remove(&format!("{ELEMENT_ORDER}{name}")) else {
            return Err(malformed("invalid patch format of setElementOrder: expected a list"));
        };
        let field = object.and_then(|object| object.field(&name));
        let key = field.and_then(|field| field.merge_key);
        let patched = match patch.remove(&name) {
            None => None,
            Some(Value::Array(list)) => Some(list),
            // null removes the field, another type replaces it: the usual way does both.
            Some(other) => {
                patch.insert(name, other);
                continue;
            }
        };
        check_order(patched.as_deref().unwrap_or_default(), &order, key)?;
        let current = match target.get(&name) {
            Some(Value::Array(list)) => Some(list.clone()),
            _ => None,
        };
        let merged = match (current.clone(), patched) {
            (None, None) => continue,
            (Some(current), None) => current,
            (None, Some(list)) => merge_list(Vec::new(), list, field)?,
            (Some(current), Some(list)) => merge_list(current, list, field)?,
        };
        let ordered = in_order(merged, &order, current.as_deref().unwrap_or_default(), key);
        target.insert(name, Value::Array(ordered));
    }
    Ok(())
}

/// Every patched item has to stand in the order that is asked for.
fn check_order(patched: &[Value], order: &[Value], key: Option<&str>) -> Result<(), PatchError> {
    let listed = |item: &Value| item.get(PATCH).is_some() || order.iter().any(|other| same(item, other, key));
    match patched.iter().find(|item| !listed(item)) {
        None => Ok(()),
        Some(item) => {
            Err(PatchError::Rejected(format!("the order in $setElementOrder does not list {item}")))
        }
    }
}

fn merge_list(
    target: Vec<Value>,
    patch: Vec<Value>,
    field: Option<&'static Field>,
) -> Result<Vec<Value>, PatchError> {
    let Some(field) = field.filter(|field| field.merge) else {
        return Ok(patch.into_iter().map(clean).collect());
    };
    let before = target.clone();
    let order = patch.clone();
    let key = field.merge_key;
    let merged = match key {
        None => merge_primitives(target, patch),
        Some(key) => merge_items(target, patch, key, item_struct(field))?,
    };
    Ok(in_order(merged, &order, &before, key))
}

/// The union, each value once.
fn merge_primitives(mut target: Vec<Value>, patch: Vec<Value>) -> Vec<Value> {
    for item in patch {
        if !target.contains(&item) {
            target.push(item);
        }
    }
    target
}

fn merge_items(
    mut target: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
    object: Option<&'static Object>,
) -> Result<Vec<Value>, PatchError> {
    let mut plain = Vec::new();
    let mut replace = false;
    for item in patch {
        let Value::Object(mut item) = item else {
            return Err(PatchError::Rejected(format!(
                "an item of a list merged by {key} is no object: {item}"
            )));
        };
        match directive(&mut item)? {
            Directive::Merge => plain.push(item),
            // The item only says that the list is replaced by the others.
            Directive::Replace => replace = true,
            Directive::Delete => {
                let Some(name) = item.get(key) else {
                    return Err(PatchError::Rejected(format!(
                        "delete patch type with no merge key {key} defined"
                    )));
                };
                target.retain(|current| current.get(key) != Some(name));
            }
        }
    }
    if replace {
        return Ok(plain.into_iter().map(|item| Value::Object(without_directives(item))).collect());
    }
    for item in plain {
        let Some(name) = item.get(key) else {
            let item = Value::Object(item);
            return Err(PatchError::Rejected(format!(
                "map: {item} does not contain declared merge key: {key}"
            )));
        };
        match target.iter_mut().find(|current| current.get(key) == Some(name)) {
            Some(Value::Object(current)) => *current = merge_map(std::mem::take(current), item, object)?,
            _ => target.push(Value::Object(without_directives(item))),
        }
    }
    Ok(target)
}

/// Items named in `order` in that order; the others between them, where the list before had them.
fn in_order(merged: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let place = |item: &Value, list: &[Value]| list.iter().position(|other| same(item, other, key));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(item, order).is_some());
    named.sort_by_key(|item| place(item, order));
    others.sort_by_key(|item| place(item, before));
    let mut result = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in named {
        if let Some(at) = place(&item, before) {
            while let Some(other) =
                others.next_if(|other| place(other, before).is_some_and(|other| other < at))
            {
                result.push(other);
            }
        }
        result.push(item);
    }
    result.extend(others);
    result
}

fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        None => a == b,
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
    }
}

/// A patched value that has nothing to merge with: nulls and directives are dropped.
fn clean(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(list) => Value::Array(
            list.into_iter()
                .filter(|item| item.get(PATCH).is_none_or(|directive| directive == "merge"))
                .map(clean)
                .collect(),
        ),
        other => other,
    }
}

fn without_directives(map: Map<String, Value>) -> Map<String, Value> {
    if map.get(PATCH).is_some_and(|directive| directive == "delete") {
        return Map::new();
    }
    map.into_iter()
        .filter(|(key, value)| {
            !value.is_null()
                && key != PATCH
                && key != RETAIN_KEYS
                && !key.starts_with(DELETE_PRIMITIVES)
                && !key.starts_with(ELEMENT_ORDER)
        })
        .map(|(key, value)| (key, clean(value)))
        .collect()
}

fn struct_of(field: &'static Field) -> Option<&'static Object> {
    match field.of.shape() {
        Shape::Object(object) => Some(object),
        _ => None,
    }
}

fn item_struct(field: &'static Field) -> Option<&'static Object> {
    match field.of.shape() {
        Shape::Array(item) => match item.shape() {
            Shape::Object(object) => Some(object),
            _ => None,
        },
        _ => None,
    }
}

fn malformed(message: &str) -> PatchError {
    PatchError::Malformed(message.to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests;
