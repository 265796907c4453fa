//! Nobody grants what they do not have: Roles and bindings are checked when they are written.
//!
//! Invariant: `escalate` on a Role, or `bind` on the role that a binding names, is the only way around it.

use std::collections::BTreeSet;

use api::error::ApiError;
use api::kinds::Kind;
use api::schema::Defect;
use serde_json::Value;

use super::{Attributes, GROUP, Rule, Subject, authorize, has, rules_of, rules_of_role};
use crate::Inner;
use crate::auth::User;
use crate::object::meta;

/// Refuses a Role, or a binding to one, that grants more than its writer has; and a binding that changes its role.
pub(crate) fn check(
    inner: &Inner,
    user: &User,
    kind: &Kind,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), ApiError> {
    if kind.group != GROUP {
        return Ok(());
    }
    let (namespace, name) = (meta(new, "namespace"), meta(new, "name"));
    let binding = kind.kind.ends_with("Binding");
    if binding
        && let Some(old) = old
        && old["roleRef"] != new["roleRef"]
    {
        let defect = Defect::invalid("roleRef", &new["roleRef"], "cannot change roleRef");
        return Err(ApiError::invalid(kind, name, vec![defect]));
    }
    if user.may_everything() || unchanged(binding, old, new) {
        return Ok(());
    }
    let (verb, wanted, on) = if binding {
        let role: Subject = serde_json::from_value(new["roleRef"].clone()).unwrap_or_default();
        let plural = if role.kind == "Role" { "roles" } else { "clusterroles" };
        let wanted = rules_of_role(inner, &inner.store.snapshot(), &role, namespace);
        ("bind", wanted, (plural, role.name))
    } else {
        let aggregates = new["aggregationRule"].is_object();
        let mut wanted: Vec<Rule> = serde_json::from_value(new["rules"].clone()).unwrap_or_default();
        if aggregates {
            // What it will hold is not known now, so its writer must hold everything.
            let all = || vec!["*".to_owned()];
            wanted.push(Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() });
            wanted.push(Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() });
        }
        ("escalate", wanted, (kind.plural.as_str(), name.to_owned()))
    };
    let asked =
        Attributes { verb, group: GROUP, resource: on.0, namespace, name: &on.1, ..Attributes::default() };
    if authorize(inner, user, &asked).allowed {
        return Ok(());
    }
    let missing = missing(&rules_of(inner, user, namespace), &wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        user.groups,
        missing.iter().map(told).collect::<Vec<_>>().join("\n")
    );
    Err(ApiError::forbidden(kind, name, &why))
}

fn unchanged(binding: bool, old: Option<&Value>, new: &Value) -> bool {
    let fields: &[&str] = if binding { &["roleRef", "subjects"] } else { &["rules", "aggregationRule"] };
    old.is_some_and(|old| fields.iter().all(|field| old[*field] == new[*field]))
}

/// Those of the wanted rules, one verb on one resource each, that no rule held covers.
fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing: Vec<Rule> = Vec::new();
    for simple in wanted.iter().flat_map(simple) {
        if !held.iter().any(|rule| covers(rule, &simple)) && !missing.contains(&simple) {
            missing.push(simple);
        }
    }
    missing
}

/// A rule as rules of one verb, group, resource and name, or path, each.
fn simple(rule: &Rule) -> Vec<Rule> {
    let mut all = Vec::new();
    let one = |text: &String| vec![text.clone()];
    let verbs: BTreeSet<&String> = rule.verbs.iter().collect();
    for verb in verbs {
        for url in &rule.non_resource_urls {
            all.push(Rule { verbs: one(verb), non_resource_urls: one(url), ..Rule::default() });
        }
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let base = Rule {
                    verbs: one(verb),
                    api_groups: one(group),
                    resources: one(resource),
                    ..Rule::default()
                };
                if rule.resource_names.is_empty() {
                    all.push(base.clone());
                }
                all.extend(
                    rule.resource_names.iter().map(|name| Rule { resource_names: one(name), ..base.clone() }),
                );
            }
        }
    }
    all
}

/// Whether a rule held allows everything that a simple one does.
fn covers(held: &Rule, simple: &Rule) -> bool {
    let within = |held: &[String], wanted: &[String]| wanted.iter().all(|one| has(held, one));
    if !within(&held.verbs, &simple.verbs) {
        return false;
    }
    if let [url] = simple.non_resource_urls.as_slice() {
        return held.non_resource_urls.iter().any(|known| super::path_matches(known, url));
    }
    let resource = |wanted: &String| {
        held.resources.iter().any(|known| {
            let of_all = wanted.split_once('/').is_some_and(|(_, sub)| known.strip_prefix("*/") == Some(sub));
            known == "*" || known == wanted || of_all
        })
    };
    let names = held.resource_names.is_empty()
        || (!simple.resource_names.is_empty()
            && simple.resource_names.iter().all(|name| held.resource_names.contains(name)));
    within(&held.api_groups, &simple.api_groups) && simple.resources.iter().all(resource) && names
}

/// `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
fn told(rule: &Rule) -> String {
    let lists = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.resource_names),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> = lists
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", serde_json::json!(list)))
        .collect();
    format!("{{{}}}", parts.join(", "))
}
