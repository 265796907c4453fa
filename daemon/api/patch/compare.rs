//! Which paths were added, changed and removed between two versions of an object.
//!
//! Invariant: comparing a version with itself finds nothing.
//! Invariant: `metadata.managedFields` is never looked at; it is the account, not the goods.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fieldset::FieldSet;
use super::form::{Form, entries, items};
use crate::schema::{Field, Shape};

/// The difference between two versions.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Difference {
    /// What the writer of the newer version claims.
    pub(super) fn claimed(&self) -> FieldSet {
        let mut claimed = self.added.clone();
        claimed.union(&self.modified);
        claimed
    }

    fn attach(&mut self, step: String, child: Difference) {
        self.added.put(step.clone(), child.added);
        self.modified.put(step.clone(), child.modified);
        self.removed.put(step, child.removed);
    }
}

/// Compares two values of one form; at least one of them is there.
pub(super) fn compare(form: Form, old: Option<&Value>, new: Option<&Value>) -> Difference {
    let mut difference = Difference::default();
    if form.is_map(old, new) {
        let (a, b) = (entries(old), entries(new));
        if a.is_some_and(|map| !map.is_empty()) || b.is_some_and(|map| !map.is_empty()) {
            fields(form, old, new, &mut difference);
        } else {
            leaf(form, old, new, &mut difference);
        }
    } else if form.is_list() {
        let (a, b) = (items(form, old), items(form, new));
        if a.is_empty() && b.is_empty() {
            leaf(form, old, new, &mut difference);
        } else {
            list(form, &a, &b, &mut difference);
        }
    } else {
        leaf(form, old, new, &mut difference);
    }
    // A path that came or went is itself a member, whatever is below it.
    difference.added.member |= old.is_none();
    difference.removed.member |= new.is_none();
    difference
}

fn leaf(form: Form, old: Option<&Value>, new: Option<&Value>, difference: &mut Difference) {
    if let (Some(old), Some(new)) = (old, new) {
        difference.modified.member |= !form.equal(old, new);
    }
}

fn fields(form: Form, old: Option<&Value>, new: Option<&Value>, difference: &mut Difference) {
    let (a, b) = (entries(old), entries(new));
    let empty = Map::new();
    let names = a
        .unwrap_or(&empty)
        .keys()
        .chain(b.unwrap_or(&empty).keys().filter(|name| !a.is_some_and(|map| map.contains_key(*name))));
    for name in names {
        if name == "managedFields"
            && matches!(form, Form::Fields(object) if object.name.ends_with(".ObjectMeta"))
        {
            continue;
        }
        let absent = match form {
            Form::Fields(object) => object.field(name).and_then(stands_for_absent),
            _ => None,
        };
        // A struct that Go holds by value is there as soon as its parent is.
        let side =
            |map: Option<&'_ Map<String, Value>>, present: bool| match map.and_then(|map| map.get(name)) {
                None if present => absent.clone(),
                found => found.cloned(),
            };
        let child = match (a.and_then(|map| map.get(name)), b.and_then(|map| map.get(name))) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(a), Some(b)) => compare(form.child(name), Some(a), Some(b)),
            (a_value, b_value) if absent.is_none() => compare(form.child(name), a_value, b_value),
            _ => {
                let (a, b) = (side(a, old.is_some()), side(b, new.is_some()));
                compare(form.child(name), a.as_ref(), b.as_ref())
            }
        };
        difference.attach(format!("f:{name}"), child);
    }
}

/// What Go has in place of a field that JSON leaves out: an empty struct, or null for a list without omitempty.
fn stands_for_absent(field: &'static Field) -> Option<Value> {
    match field.of.shape() {
        Shape::Object(_) if field.default.as_ref().is_some_and(Value::is_object) => {
            Some(Value::Object(Map::new()))
        }
        Shape::Array(_) if field.required => Some(Value::Null),
        _ => None,
    }
}

fn list(
    form: Form,
    old: &[(Option<String>, &Value)],
    new: &[(Option<String>, &Value)],
    difference: &mut Difference,
) {
    let mut pairs: BTreeMap<&str, (Option<&Value>, Option<&Value>)> = BTreeMap::new();
    // The first of duplicates speaks for its name.
    for (step, item) in old.iter().filter_map(|(step, item)| Some((step.as_deref()?, item))) {
        pairs.entry(step).or_default().0.get_or_insert(item);
    }
    for (step, item) in new.iter().filter_map(|(step, item)| Some((step.as_deref()?, item))) {
        pairs.entry(step).or_default().1.get_or_insert(item);
    }
    for (step, (a, b)) in pairs {
        if a != b {
            difference.attach(step.to_owned(), compare(form.item(), a, b));
        }
    }
}
