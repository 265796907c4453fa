//! JSON paths as definitions use them: `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`, `['a.b']`, `[0]`, `[*]`.
//!
//! Invariant: a path that is not understood finds nothing.

use serde_json::{Map, Value};

/// One step of a path.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Name(std::borrow::Cow<'a, str>),
    Index(i64),
    All,
    /// Items whose field (a path) equals a text or number.
    Where(&'a str, &'a str),
}

/// Everything the path leads to.
pub fn find<'a>(object: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut found = vec![object];
    for step in steps(path).unwrap_or_else(|| vec![Step::Name("\0".into())]) {
        found = found.into_iter().flat_map(|value| follow(value, &step)).collect();
    }
    found.retain(|value| !value.is_null());
    found
}

/// Sets what a path of plain names leads to.
pub fn put(object: &mut Value, path: &str, value: Value) {
    let mut at = object;
    for name in path.trim_start_matches('.').split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[name];
    }
    *at = value;
}

fn follow<'a>(value: &'a Value, step: &Step<'_>) -> Vec<&'a Value> {
    match (step, value) {
        (Step::Name(name), Value::Object(map)) => map.get(name.as_ref()).into_iter().collect(),
        (Step::Index(at), Value::Array(items)) => {
            let at = if *at < 0 { i64::try_from(items.len()).unwrap_or(0) + at } else { *at };
            usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
        }
        (Step::All, Value::Array(items)) => items.iter().collect(),
        (Step::All, Value::Object(map)) => map.values().collect(),
        (Step::Where(field, wanted), Value::Array(items)) => {
            let equal = |item: &&Value| match find(item, field).first() {
                Some(Value::String(text)) => text == wanted,
                Some(other) => serde_json::from_str::<Value>(wanted).is_ok_and(|wanted| wanted == **other),
                None => false,
            };
            items.iter().filter(equal).collect()
        }
        _ => Vec::new(),
    }
}

fn steps(path: &str) -> Option<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    let mut rest = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let end = closing(inner)?;
            steps.push(bracket(inner[..end].trim())?);
            rest = &inner[end + 1..];
            continue;
        }
        let tail = rest.strip_prefix('.').unwrap_or(rest);
        if tail.starts_with('[') {
            rest = tail;
            continue;
        }
        let (name, after) = name(tail);
        if !name.is_empty() {
            steps.push(if name == "*" { Step::All } else { Step::Name(name) });
        } else if after.len() == rest.len() {
            return None;
        }
        rest = after;
    }
    Some(steps)
}

/// A name up to the next dot or bracket; `\.` is a dot within it.
fn name(text: &str) -> (std::borrow::Cow<'_, str>, &str) {
    let mut escaped = false;
    let end = text.char_indices().find(|(_, c)| {
        let ends = !escaped && matches!(c, '.' | '[');
        escaped = *c == '\\';
        ends
    });
    let (name, rest) = text.split_at(end.map_or(text.len(), |(at, _)| at));
    if name.contains('\\') { (name.replace("\\.", ".").into(), rest) } else { (name.into(), rest) }
}

/// Where a bracket ends: not within quotes.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, ']') => return Some(at),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str) -> Option<Step<'_>> {
    let unquoted = |text: &'_ str| -> Option<usize> {
        let quoted = text.len() >= 2 && (text.starts_with('"') || text.starts_with('\''));
        quoted.then_some(text.len() - 1)
    };
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(end) = unquoted(inner) {
        return Some(Step::Name(inner[1..end].into()));
    }
    if let Some(condition) = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let (field, wanted) = condition.split_once("==")?;
        let (field, wanted) = (field.trim().strip_prefix('@')?, wanted.trim());
        let wanted = unquoted(wanted).map_or(wanted, |end| &wanted[1..end]);
        return Some(Step::Where(field, wanted));
    }
    inner.parse().ok().map(Step::Index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_where_definitions_mean() {
        let object = json!({
            "spec": { "replicas": 3, "a.b": "dotted", "list": [{ "n": 1 }, { "n": 2 }] },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }, { "type": "Other", "status": "False" }] },
        });
        for (path, wanted) in [
            (".spec.replicas", json!([3])),
            ("{.spec.replicas}", json!([3])),
            (".spec['a.b']", json!(["dotted"])),
            (".spec.a\\.b", json!(["dotted"])),
            (".spec.list[*].n", json!([1, 2])),
            (".spec.list[-1].n", json!([2])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type=='None')].status", json!([])),
            (".nowhere.at.all", json!([])),
            ("[", json!([])),
            ("..", json!([object])),
        ] {
            let found: Value = find(&object, path).into_iter().cloned().collect();
            assert_eq!(found, wanted, "{path}");
        }
    }

    #[test]
    fn a_value_is_put_where_nothing_was() {
        let mut object = json!({});
        put(&mut object, ".spec.replicas", 2.into());
        assert_eq!(object, json!({ "spec": { "replicas": 2 } }));
    }
}
