//! Server-side apply: merge, prune what was given up, and settle who owns what.
//!
//! Invariant: applying the same object twice is the same as once; the second changes nothing at all.
//! Invariant: a field is removed only when its last owner gives it up, or goes with the item or field that held it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::compare::compare;
use super::fieldset::{FieldSet, set_of};
use super::form::{Form, items};
use super::managed::{BEFORE_FIRST_APPLY, Entry, Managers, Operation};
use super::{ApplyError, Conflict, OnConflict, Writer};
use crate::kinds::Kind;

/// Fields of metadata that nobody owns.
const UNOWNED_METADATA: &[&str] = &[
    "f:name",
    "f:namespace",
    "f:creationTimestamp",
    "f:selfLink",
    "f:uid",
    "f:clusterName",
    "f:generation",
    "f:managedFields",
    "f:resourceVersion",
];
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

pub(super) fn apply(
    kind: &Kind,
    live: Option<&Value>,
    applied: &Value,
    by: &Writer<'_>,
    on_conflict: OnConflict,
) -> Result<Value, ApplyError> {
    let form = Form::of_kind(kind);
    let config = configuration(kind, applied, by)?;
    check_items(form, &config, "").map_err(|(path, problem)| invalid(kind, &config, path, problem))?;
    let nothing = Value::Object(Map::new());
    let old = live.unwrap_or(&nothing);
    let mut own = Entry::new(by, Operation::Apply, &kind.api_version());
    own.fields = owned(kind, set_of(form, &config), by);
    let mut managers = if own.fields.is_empty() { Managers::of(old) } else { account(form, kind, live) };

    let mut merged = merge(form, Some(old), Some(&config)).unwrap_or_default();
    let last = managers.find(&own).map(|at| managers.0.remove(at));
    if let Some(last) = &last {
        let mut kept = own.fields.clone();
        managers.0.iter().for_each(|entry| kept.union(&entry.fields));
        prune(form, &mut merged, &last.fields, Some(&kept));
    }
    let changes = compare(form, Some(old), Some(&merged));
    let claimed = changes.claimed();
    let mut conflicts = Vec::new();
    for entry in &managers.0 {
        let fields = entry.fields.intersection(&claimed);
        if !fields.is_empty() {
            conflicts.push((entry.printed(), fields));
        }
    }
    if on_conflict == OnConflict::Refuse && !conflicts.is_empty() && !migrates(form, old, by, &conflicts) {
        conflicts.sort_by(|a, b| a.0.cmp(&b.0));
        let named = |(manager, fields): (String, FieldSet)| Conflict { manager, fields: fields.paths() };
        return Err(ApplyError::Conflicts(conflicts.into_iter().map(named).collect()));
    }
    managers.take_from_others(&own, &claimed);
    managers.take_from_others(&own, &changes.removed);
    managers.0.retain(|entry| !entry.fields.is_empty());
    if let Some(last) = last.filter(|last| last.fields == own.fields && last.api_version == own.api_version) {
        own.time = last.time;
    }
    managers.0.push(own);
    managers.write(&mut merged);
    Ok(merged)
}

pub(super) fn track_update(kind: &Kind, old: Option<&Value>, new: &mut Value, by: &Writer<'_>) {
    let form = Form::of_kind(kind);
    let nothing = Value::Object(Map::new());
    let reset = new["metadata"]["managedFields"]
        .as_array()
        .is_some_and(|list| list.len() == 1 && list[0].as_object().is_some_and(Map::is_empty));
    let given = Managers::of(new);
    let mut managers = match old {
        _ if reset => Managers::default(),
        // A client that does not know managedFields must not erase them by accident.
        Some(old) if given.0.is_empty() => Managers::of(old),
        _ => given,
    };
    let unaccounted = old.is_some() && managers.0.is_empty();
    let changes = compare(form, Some(old.unwrap_or(&nothing)), Some(new));
    let mut own = Entry::new(by, Operation::Update, &kind.api_version());
    let claimed = owned(kind, changes.claimed(), by);
    // Objects nobody kept an account of get one at their first apply.
    if !unaccounted {
        let mut gone = claimed.clone();
        gone.union(&changes.removed);
        for entry in &mut managers.0 {
            entry.fields = entry.fields.difference(&gone);
        }
        if !claimed.is_empty() {
            own.fields = claimed;
            match managers.find(&own) {
                Some(at) => {
                    managers.0[at].fields.union(&own.fields);
                    managers.0[at].time = own.time;
                }
                None => managers.0.push(own),
            }
        }
    }
    managers.write(new);
}

/// The live object's account; one that was never kept is begun as `before-first-apply`.
fn account(form: Form, kind: &Kind, live: Option<&Value>) -> Managers {
    let Some(live) = live else { return Managers::default() };
    let mut managers = Managers::of(live);
    if managers.0.is_empty() {
        let time = live["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
        let by = Writer { name: BEFORE_FIRST_APPLY, subresource: None, now: time };
        let mut entry = Entry::new(&by, Operation::Update, &kind.api_version());
        let nothing = Value::Object(Map::new());
        entry.fields = owned(kind, compare(form, Some(&nothing), Some(live)).claimed(), &by);
        managers.0.extend((!entry.fields.is_empty()).then_some(entry));
    }
    managers
}

/// The part of the applied object that this way of writing may set.
fn configuration(kind: &Kind, applied: &Value, by: &Writer<'_>) -> Result<Value, ApplyError> {
    let mut config = applied.clone();
    let Value::Object(map) = &mut config else {
        return Err(invalid(kind, applied, String::new(), "expected an object".to_owned()));
    };
    match by.subresource {
        Some("status") => {
            map.remove("spec");
        }
        _ if kind.status => {
            map.remove("status");
        }
        _ => {}
    }
    if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
        match metadata.remove("managedFields") {
            None | Some(Value::Null) => {}
            Some(Value::Array(list)) if list.is_empty() => {}
            Some(_) => return Err(ApplyError::ManagedFields),
        }
    }
    Ok(config)
}

/// Takes out of a set what nobody owns and what this way of writing cannot change.
fn owned(kind: &Kind, mut set: FieldSet, by: &Writer<'_>) -> FieldSet {
    set.member = false;
    set.cut(&["f:apiVersion"]);
    set.cut(&["f:kind"]);
    for name in UNOWNED_METADATA {
        set.cut(&["f:metadata", name]);
    }
    if let Some(metadata) = set.children.get_mut("f:metadata") {
        metadata.member = false;
        if metadata.is_empty() {
            set.children.remove("f:metadata");
        }
    }
    match by.subresource {
        Some("status") => {
            set.cut(&["f:spec"]);
            set.cut(&["f:metadata", "f:labels"]);
        }
        None if kind.status => set.cut(&["f:status"]),
        _ => {}
    }
    set
}

/// kubectl moving from client-side to server-side apply may overwrite what it had applied before.
fn migrates(form: Form, live: &Value, by: &Writer<'_>, conflicts: &[(String, FieldSet)]) -> bool {
    let last = live["metadata"]["annotations"][LAST_APPLIED].as_str();
    let Some(last) = last.filter(|_| by.name == "kubectl").and_then(|text| serde_json::from_str(text).ok())
    else {
        return false;
    };
    let allowed = set_of(form, &last);
    conflicts.iter().all(|(_, fields)| fields.difference(&allowed).is_empty())
}

/// Refuses items without their keys and items of one name, with the path of the list.
fn check_items(form: Form, value: &Value, path: &str) -> Result<(), (String, String)> {
    if form.is_list() {
        let mut seen = BTreeSet::new();
        for (step, item) in items(form, Some(value)) {
            let Some(step) = step else {
                let problem =
                    format!("associative list with keys has an element that omits a key field: {item}");
                return Err((path.to_owned(), problem));
            };
            check_items(form.item(), item, path)?;
            if !seen.insert(step.clone()) {
                return Err((path.to_owned(), format!("duplicate entries for key {}", &step[2..])));
            }
        }
    } else if let (true, Value::Object(map)) = (form.is_map(Some(value), None), value) {
        for (name, child) in map {
            check_items(form.child(name), child, &format!("{path}.{name}"))?;
        }
    }
    Ok(())
}

fn invalid(kind: &Kind, object: &Value, path: String, problem: String) -> ApplyError {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    let object =
        format!("{}/{}; {}, Kind={}", text("namespace"), text("name"), kind.api_version(), kind.kind);
    ApplyError::Invalid { object, path, problem }
}

/// The live value with the applied one laid over it.
fn merge(form: Form, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
    let (live_value, config_value) = match (live, config) {
        (Some(live), Some(config)) => (live, config),
        // What is new takes the same way, so that a null in it is no field the first time either.
        (None, Some(Value::Object(map))) if form.is_map(live, config) => {
            return Some(Value::Object(merge_maps(form, &Map::new(), map)));
        }
        (None, Some(Value::Array(_))) if form.is_list() => return Some(merge_lists(form, live, config)),
        _ => return live.or(config).cloned(),
    };
    if form.is_map(live, config) {
        // null is a wildcard: it takes whatever form the other side has.
        if config_value.is_null() || live_value.is_null() {
            let kept = if config_value.is_null() { live_value } else { config_value };
            return Some(kept.clone());
        }
        if let (Value::Object(a), Value::Object(b)) = (live_value, config_value) {
            return Some(Value::Object(merge_maps(form, a, b)));
        }
    } else if form.is_list()
        && let (Value::Array(a), Value::Array(b)) = (live_value, config_value)
    {
        return Some(if a.is_empty() && b.is_empty() {
            config_value.clone()
        } else {
            merge_lists(form, live, config)
        });
    }
    Some(if form.equal(live_value, config_value) { live_value.clone() } else { config_value.clone() })
}

fn merge_maps(form: Form, live: &Map<String, Value>, config: &Map<String, Value>) -> Map<String, Value> {
    let mut merged = live.clone();
    for (name, value) in config {
        let result = merge(form.child(name), live.get(name), Some(value));
        match result {
            // A null that was merged is a field that is not there.
            None | Some(Value::Null) => merged.remove(name),
            Some(result) => merged.insert(name.clone(), result),
        };
    }
    merged
}

/// Items of both, those of the applied list in its order, the others where they stood.
fn merge_lists(form: Form, live: Option<&Value>, config: Option<&Value>) -> Value {
    let (left, right) = (items(form, live), items(form, config));
    let index = |list: &[(Option<String>, &Value)]| -> BTreeMap<String, usize> {
        list.iter().enumerate().rev().filter_map(|(at, (step, _))| Some((step.clone()?, at))).collect()
    };
    let (in_left, in_right) = (index(&left), index(&right));
    let both = |step: &Option<String>| step.as_ref().and_then(|step| in_left.get(step)).map(|at| left[*at].1);
    let mut shared = right.iter().filter(|(step, _)| both(step).is_some()).map(|(step, _)| step).peekable();
    let mut done = BTreeSet::new();
    let mut merged = Vec::with_capacity(left.len().max(right.len()));
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if let Some((step, item)) = left.get(l) {
            let known = step.as_ref().is_some_and(|step| in_right.contains_key(step));
            if !known {
                merged.push((*item).clone());
                l += 1;
                continue;
            }
            // One that is shared but not next in the applied order gives way to that order.
            if done.contains(step) || (r < right.len() && shared.peek().is_some_and(|next| *next != step)) {
                l += 1;
                continue;
            }
        }
        if let Some((step, item)) = right.get(r) {
            merged.extend(merge(form.item(), both(step), Some(item)));
            done.insert(step);
            shared.next_if(|next| *next == step);
            l += usize::from(left.get(l).is_some_and(|(left_step, _)| left_step == step));
            r += 1;
        } else {
            l += 1;
        }
    }
    Value::Array(merged)
}

/// Removes what `last` had set and nobody keeps.
fn prune(form: Form, value: &mut Value, last: &FieldSet, kept: Option<&FieldSet>) {
    let below = |step: &str| kept.and_then(|kept| kept.children.get(step));
    match value {
        Value::Object(map) if form.is_map(None, Some(&Value::Object(Map::new()))) => {
            for (step, child_last) in &last.children {
                let Some(name) = step.strip_prefix("f:") else { continue };
                let Some(child) = map.get_mut(name) else { continue };
                // Named fields count as owned as soon as anything below them is.
                let Some(child_kept) = below(step) else {
                    map.remove(name);
                    continue;
                };
                let before = is_empty(child);
                prune(form.child(name), child, child_last, Some(child_kept));
                // What was emptied goes, unless someone asks for it to be there though empty.
                if is_empty(child) && !before && !child_kept.member {
                    map.remove(name);
                }
            }
        }
        Value::Array(list) if form.is_list() => {
            list.retain_mut(|item| {
                let step = super::fieldset::item_step(form, item).unwrap_or_default();
                let Some(item_last) = last.children.get(&step) else { return true };
                let item_kept = below(&step);
                if item_last.member && !item_kept.is_some_and(|kept| kept.member) {
                    return false;
                }
                prune(form.item(), item, item_last, item_kept);
                true
            });
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests;
