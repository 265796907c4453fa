//! Says what is served: the discovery documents, made from the table of kinds.
//!
//! Invariant: both forms, the old lists and the aggregated one, are made from the same rows and so never differ.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::kinds::{self, Kind, Subresource};

/// `/api`: the versions of the core group.
pub fn api_versions() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

/// `/apis`: every group but core.
pub fn group_list() -> Value {
    let groups: Vec<Value> =
        groups().iter().filter(|(name, _)| !name.is_empty()).map(|(name, v)| of_group(name, v)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/{group}`.
pub fn group(name: &str) -> Option<Value> {
    let (name, versions) = groups().into_iter().find(|(known, _)| *known == name && !known.is_empty())?;
    let mut document = json!({ "kind": "APIGroup", "apiVersion": "v1" });
    merge(&mut document, of_group(name, &versions));
    Some(document)
}

/// `/api/v1` and `/apis/{group}/{version}`: resources and subresources in one list.
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in kinds::kinds().iter().filter(|kind| kind.group == group && kind.version == version) {
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
    aggregated(|group| group.is_empty())
}

/// `/apis` when asked for `APIGroupDiscoveryList` of `apidiscovery.k8s.io/v2`.
pub fn aggregated_groups() -> Value {
    aggregated(|group| !group.is_empty())
}

fn aggregated(wanted: fn(&str) -> bool) -> Value {
    let mut items = Vec::new();
    for (name, versions) in groups().into_iter().filter(|(name, _)| wanted(name)) {
        let metadata = if name.is_empty() { json!({}) } else { json!({ "name": name }) };
        let versions: Vec<Value> = versions
            .into_iter()
            .map(|version| {
                let rows = kinds::kinds().iter().filter(|kind| kind.group == name && kind.version == version);
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

/// Groups with their versions, preferred first: that is the order of the table.
fn groups() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for kind in kinds::kinds() {
        let versions = groups.entry(&kind.group).or_default();
        if !versions.contains(&kind.version.as_str()) {
            versions.push(&kind.version);
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
        check(&group_list(), "/groups/0/preferredVersion/groupVersion", json!("apps/v1"));
        check(&group("batch").expect("served"), "/name", json!("batch"));
        assert_eq!(group("nope"), None);
        assert_eq!(group(""), None);
        let apps = resource_list("apps", "v1").expect("served");
        check(
            &apps,
            "/resources/0",
            json!({ "name": "deployments", "singularName": "deployment", "namespaced": true, "kind": "Deployment",
                "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                "shortNames": ["deploy"], "categories": ["all"] }),
        );
        check(
            &apps,
            "/resources/1",
            json!({ "name": "deployments/scale", "singularName": "", "namespaced": true, "kind": "Scale",
                "verbs": ["get", "patch", "update"], "group": "autoscaling", "version": "v1" }),
        );
        assert_eq!(resource_list("apps", "v2"), None);
    }

    #[test]
    fn the_aggregated_documents_hold_the_same_rows() {
        let (core, groups) = (aggregated_core(), aggregated_groups());
        check(&core, "/items/0/metadata", json!({}));
        check(
            &groups,
            "/items/0/versions/0/resources/0/responseKind",
            json!({ "group": "apps", "version": "v1", "kind": "Deployment" }),
        );
        let count = |document: &Value| {
            let items = document["items"].as_array().expect("items").iter();
            items.map(|item| item["versions"][0]["resources"].as_array().map_or(0, Vec::len)).sum::<usize>()
        };
        assert_eq!(count(&core) + count(&groups), kinds::kinds().len());
    }
}
