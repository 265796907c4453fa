//! The roles and bindings that every cluster has, and the rules of those that are made of others.
//!
//! Invariant: what somebody added stays; a rule that is missing comes back, unless the object says `autoupdate: "false"`.

use api::error::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{GROUP, Rule, aggregated, row};
use crate::{Inner, object, write};

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const API_VERSION: &str = "rbac.authorization.k8s.io/v1";

/// A line of `roles.json`.
#[derive(Deserialize)]
struct Line {
    name: String,
    /// `verbs | groups | resources | names`, or `verbs | paths`; lists are written with commas.
    #[serde(default)]
    rules: Vec<String>,
    /// Its rules are those of the ClusterRoles labelled for this.
    aggregates: Option<String>,
    /// Labelled for this.
    part_of: Option<String>,
    /// Subjects of the binding of the same name, `Kind name`.
    #[serde(default)]
    to: Vec<String>,
}

/// Makes the roles and bindings that are missing, all at once. Twice is once.
pub(crate) async fn ensure(inner: &Inner) -> Result<(), ApiError> {
    let lines: Vec<Line> = serde_json::from_str(include_str!("roles.json")).expect("roles.json is ours");
    let roles = lines.iter().map(|line| one(inner, "ClusterRole", role(line)));
    let bindings = lines.iter().filter(|line| !line.to.is_empty());
    let bindings = bindings.map(|line| one(inner, "ClusterRoleBinding", binding(line)));
    futures::future::try_join_all(roles).await?;
    futures::future::try_join_all(bindings).await?;
    write_aggregated(inner).await
}

/// Writes down the rules of ClusterRoles that are made of others, where they have changed.
pub(crate) async fn write_aggregated(inner: &Inner) -> Result<(), ApiError> {
    let Some(kind) = row("ClusterRole") else { return Ok(()) };
    let snapshot = inner.store.snapshot();
    let mut changed = Vec::new();
    for entry in snapshot.range(&object::prefix(kind, ""), None) {
        let role = inner.parsed.roles.of(entry);
        let Some(aggregation) = &role.aggregation_rule else { continue };
        let rules = aggregated(inner, &snapshot, kind, &entry.key, aggregation, 0);
        if role.rules.as_deref().unwrap_or_default() != rules {
            let mut new = object::parse(&entry.value);
            new["rules"] = rules.iter().map(told).collect();
            changed.push(new);
        }
    }
    for new in changed {
        let name = object::meta(&new, "name").to_owned();
        // Somebody else who writes the role causes the next round.
        match write::own(inner, kind, "", Some(&name), new).await {
            Err(error) if error.code != 409 && error.code != 404 => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Creates the object, or gives back what it lacks.
async fn one(inner: &Inner, kind: &str, wanted: Value) -> Result<(), ApiError> {
    let Some(kind) = row(kind) else { return Ok(()) };
    let name = object::meta(&wanted, "name").to_owned();
    let snapshot = inner.store.snapshot();
    let Some(entry) = snapshot.get(&object::key(kind, "", &name)) else {
        return write::own(inner, kind, "", None, wanted).await;
    };
    let mut live = object::parse(&entry.value);
    if live["metadata"]["annotations"][AUTOUPDATE] == "false" || wanted["aggregationRule"].is_object() {
        return Ok(());
    }
    let list = if wanted["rules"].is_array() { "rules" } else { "subjects" };
    let held = live[list].as_array().cloned().unwrap_or_default();
    let missing: Vec<Value> = wanted[list].as_array().into_iter().flatten().cloned().collect();
    let missing: Vec<Value> = missing.into_iter().filter(|one| !held.contains(one)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    live[list] = held.into_iter().chain(missing).collect();
    write::own(inner, kind, "", Some(&name), live).await
}

fn metadata(line: &Line) -> Value {
    let mut labels = json!({ "kubernetes.io/bootstrapping": "rbac-defaults" });
    if let Some(part_of) = &line.part_of {
        labels[format!("{GROUP}/aggregate-to-{part_of}")] = "true".into();
    }
    json!({ "name": line.name, "labels": labels, "annotations": { AUTOUPDATE: "true" } })
}

fn role(line: &Line) -> Value {
    let mut role = json!({
        "apiVersion": API_VERSION, "kind": "ClusterRole", "metadata": metadata(line),
        "rules": line.rules.iter().map(|text| told(&parse(text))).collect::<Vec<_>>(),
    });
    if let Some(aggregates) = &line.aggregates {
        let label = format!("{GROUP}/aggregate-to-{aggregates}");
        role["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { label: "true" } }] });
    }
    role
}

fn binding(line: &Line) -> Value {
    let subjects: Vec<Value> = line.to.iter().filter_map(|text| subject(text)).collect();
    let mut metadata = metadata(line);
    metadata["labels"] = json!({ "kubernetes.io/bootstrapping": "rbac-defaults" });
    json!({
        "apiVersion": API_VERSION, "kind": "ClusterRoleBinding", "metadata": metadata,
        "roleRef": { "apiGroup": GROUP, "kind": "ClusterRole", "name": line.name },
        "subjects": subjects,
    })
}

fn subject(text: &str) -> Option<Value> {
    let (kind, name) = text.split_once(' ')?;
    Some(match name.split_once('/') {
        Some((namespace, name)) => json!({ "kind": kind, "namespace": namespace, "name": name }),
        None => json!({ "apiGroup": GROUP, "kind": kind, "name": name }),
    })
}

fn parse(text: &str) -> Rule {
    let list = |text: &str| -> Vec<String> {
        text.split(',').map(|one| if one == "core" { String::new() } else { one.to_owned() }).collect()
    };
    let parts: Vec<&str> = text.split('|').map(str::trim).collect();
    match parts.as_slice() {
        [verbs, paths] => Rule { verbs: list(verbs), non_resource_urls: list(paths), ..Rule::default() },
        [verbs, groups, resources, names @ ..] => Rule {
            verbs: list(verbs),
            api_groups: list(groups),
            resources: list(resources),
            resource_names: names.iter().flat_map(|names| list(names)).collect(),
            ..Rule::default()
        },
        _ => Rule::default(),
    }
}

/// A rule as it is stored: lists that are empty are left out.
fn told(rule: &Rule) -> Value {
    let lists = [
        ("verbs", &rule.verbs),
        ("apiGroups", &rule.api_groups),
        ("resources", &rule.resources),
        ("resourceNames", &rule.resource_names),
        ("nonResourceURLs", &rule.non_resource_urls),
    ];
    let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
    Value::Object(lists.map(|(name, list)| (name.to_owned(), json!(list))).collect())
}
