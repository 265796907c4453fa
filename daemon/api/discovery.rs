//! Says what is served: the discovery documents, made from the table of kinds.
//!
//! Invariant: both forms, the old lists and the aggregated one, are made from the same rows and so never differ.

use serde_json::{Map, Value, json};

use crate::custom;
use crate::kinds::{self, Kind, Subresource};

/// `/api`: the versions of the core group.
pub fn api_versions() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

/// `/apis`: every group but core.
pub fn group_list(custom: &[&'static Kind]) -> Value {
    let groups: Vec<Value> = groups(custom)
        .iter()
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, v)| of_group(name, v))
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/{group}`.
pub fn group(name: &str, custom: &[&'static Kind]) -> Option<Value> {
    let (name, versions) =
        groups(custom).into_iter().find(|(known, _)| *known == name && !known.is_empty())?;
    let mut document = json!({ "kind": "APIGroup", "apiVersion": "v1" });
    merge(&mut document, of_group(name, &versions));
    Some(document)
}

/// `/api/v1` and `/apis/{group}/{version}`: resources and subresources in one list.
pub fn resource_list(group: &str, version: &str, custom: &[&'static Kind]) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in rows(custom).filter(|kind| kind.group == group && kind.version == version) {
        let mut row = json!({ "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": kind.verbs });
        merge(&mut row, names(kind));
        resources.push(row);
        resources.extend(kind.subresources.iter().map(|sub| subresource_row(kind, sub)));
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = kinds::api_version(group, version);
    Some(
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources }),
    )
}

/// `/api` when asked for `APIGroupDiscoveryList` of `apidiscovery.k8s.io/v2`.
pub fn aggregated_core() -> Value {
    aggregated(&[], |group| group.is_empty())
}

/// `/apis` when asked for `APIGroupDiscoveryList` of `apidiscovery.k8s.io/v2`.
pub fn aggregated_groups(custom: &[&'static Kind]) -> Value {
    aggregated(custom, |group| !group.is_empty())
}

fn aggregated(custom: &[&'static Kind], wanted: fn(&str) -> bool) -> Value {
    let mut items = Vec::new();
    for (name, versions) in groups(custom).into_iter().filter(|(name, _)| wanted(name)) {
        let metadata = if name.is_empty() { json!({}) } else { json!({ "name": name }) };
        let versions: Vec<Value> = versions
            .into_iter()
            .map(|version| {
                let rows = rows(custom).filter(|kind| kind.group == name && kind.version == version);
                let resources: Vec<Value> = rows.map(aggregated_row).collect();
                json!({ "version": version, "resources": resources, "freshness": "Current" })
            })
            .collect();
        items.push(json!({ "metadata": metadata, "versions": versions }));
    }
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items })
}

fn aggregated_row(kind: &Kind) -> Value {
    let mut row = json!({
        "resource": kind.plural,
        "responseKind": { "group": kind.group, "version": kind.version, "kind": kind.kind },
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    merge(&mut row, names(kind));
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| {
            json!({ "subresource": sub.name, "verbs": sub.verbs,
                "responseKind": { "group": sub.group, "version": sub.version, "kind": sub.kind } })
        })
        .collect();
    if !subresources.is_empty() {
        merge(&mut row, json!({ "subresources": subresources }));
    }
    row
}

fn subresource_row(kind: &Kind, sub: &Subresource) -> Value {
    let mut row = json!({ "name": format!("{}/{}", kind.plural, sub.name), "singularName": "", "namespaced": kind.namespaced,
        "kind": sub.kind, "verbs": sub.verbs });
    if (&sub.group, &sub.version) != (&kind.group, &kind.version) {
        merge(&mut row, json!({ "group": sub.group, "version": sub.version }));
    }
    row
}

/// Short names and categories, where there are any.
fn names(kind: &Kind) -> Value {
    let mut names = Map::new();
    if !kind.short_names.is_empty() {
        names.insert("shortNames".into(), json!(kind.short_names));
    }
    if !kind.categories.is_empty() {
        names.insert("categories".into(), json!(kind.categories));
    }
    names.into()
}

fn of_group(name: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({ "groupVersion": format!("{name}/{version}"), "version": version }))
        .collect();
    json!({ "name": name, "versions": versions, "preferredVersion": versions[0] })
}

/// Every row: what is stored, what is computed, then what users define.
fn rows(custom: &[&'static Kind]) -> impl Iterator<Item = &'static Kind> {
    kinds::kinds().iter().chain(kinds::computed_kinds()).chain(custom.iter().copied())
}

/// Groups with their versions, preferred first, in the order of the table: clients look for a name in that order. Versions
/// that users define are ordered as documented.
fn groups(own: &[&'static Kind]) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for kind in rows(own) {
        let at = groups.iter().position(|(name, _)| *name == kind.group).unwrap_or_else(|| {
            groups.push((&kind.group, Vec::new()));
            groups.len() - 1
        });
        let versions = &mut groups[at].1;
        if !versions.contains(&kind.version.as_str()) {
            versions.push(&kind.version);
        }
    }
    for (name, versions) in &mut groups {
        if own.iter().any(|kind| kind.group == *name) {
            versions.sort_by_key(|version| std::cmp::Reverse(custom::priority(version)));
        }
    }
    groups
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(document: &Value, pointer: &str, wanted: Value) {
        assert_eq!(document.pointer(pointer), Some(&wanted), "{pointer} of {document:#}");
    }

    #[test]
    fn the_old_documents_list_groups_resources_and_subresources() {
        check(&group_list(&[]), "/groups/1/preferredVersion/groupVersion", json!("apps/v1"));
        let scaling = group("autoscaling", &[]).expect("served");
        check(&scaling, "/preferredVersion/version", json!("v2"));
        check(&scaling, "/versions/1/version", json!("v1"));
        check(&group("batch", &[]).expect("served"), "/name", json!("batch"));
        assert_eq!(group("nope", &[]), None);
        assert_eq!(group("", &[]), None);
        let apps = resource_list("apps", "v1", &[]).expect("served");
        check(
            &apps,
            "/resources/3",
            json!({ "name": "deployments", "singularName": "deployment", "namespaced": true, "kind": "Deployment",
                "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                "shortNames": ["deploy"], "categories": ["all"] }),
        );
        check(
            &apps,
            "/resources/4",
            json!({ "name": "deployments/scale", "singularName": "", "namespaced": true, "kind": "Scale",
                "verbs": ["get", "patch", "update"], "group": "autoscaling", "version": "v1" }),
        );
        assert_eq!(resource_list("apps", "v2", &[]), None);
    }

    #[test]
    fn the_aggregated_documents_hold_the_same_rows() {
        let (core, groups) = (aggregated_core(), aggregated_groups(&[]));
        check(&core, "/items/0/metadata", json!({}));
        check(
            &groups,
            "/items/1/versions/0/resources/2/responseKind",
            json!({ "group": "apps", "version": "v1", "kind": "Deployment" }),
        );
        let count = |document: &Value| {
            let items = document["items"].as_array().expect("items").iter();
            let versions = items.flat_map(|item| item["versions"].as_array().expect("versions"));
            versions.map(|version| version["resources"].as_array().map_or(0, Vec::len)).sum::<usize>()
        };
        assert_eq!(count(&core) + count(&groups), rows(&[]).count());
    }
}
