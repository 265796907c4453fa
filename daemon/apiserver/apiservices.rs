//! APIServices: one for each group and version that this server answers itself, as the aggregator keeps them.
//!
//! Observe → plan → act. Invariant: only those that carry the label of their keeper are made and removed here.

use std::collections::BTreeMap;

use api::error::ApiError;
use api::kinds::{self, Kind};
use serde_json::{Value, json};

use crate::object::{self, meta};
use crate::path::Resource;
use crate::{Inner, delete, write};

const GROUP: &str = "apiregistration.k8s.io";
/// `onstart` for built-in groups, `true` for those that come and go.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// What Kubernetes gives each group to sort it by; the first is shown first.
const PRIORITIES: &[(&str, u32)] = &[
    ("", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
];

/// Whether a kind is that of APIServices.
pub(crate) fn is(kind: &Kind) -> bool {
    kind.group == GROUP && kind.kind == "APIService"
}

/// Brings them in line with what is served. Twice is once.
pub(crate) async fn ensure(inner: &Inner) -> Result<(), ApiError> {
    let Some(kind) = kinds::by_kind("apiregistration.k8s.io/v1", "APIService") else { return Ok(()) };
    let live: Vec<Value> = {
        let snapshot = inner.store.snapshot();
        snapshot.range(&object::prefix(kind, ""), None).map(|entry| object::parse(&entry.value)).collect()
    };
    let served = inner.crds.served();
    let (missing, left) = plan(&live, &served);
    // Together, so that they are one commit on the disk.
    let made = missing.into_iter().map(|wanted| async move {
        write::own(inner, kind, "", None, wanted.clone()).await?;
        let status = available(&write::seconds((inner.now)()));
        let mut told = wanted;
        told["status"] = status;
        write::status(inner, kind, "", told).await
    });
    futures::future::try_join_all(made).await?;
    for name in left {
        let resource = Resource { kind, namespace: String::new(), name: Some(name), subresource: None };
        write::own_delete(inner, &resource, &delete::Options::default()).await?;
    }
    Ok(())
}

/// Those to make, or whose status is missing, and the names of those to remove.
fn plan(live: &[Value], custom: &[&'static Kind]) -> (Vec<Value>, Vec<String>) {
    let mut wanted = BTreeMap::new();
    let built_in = kinds::kinds().iter().chain(kinds::computed_kinds()).map(|row| (row, "onstart"));
    for (row, label) in built_in.chain(custom.iter().map(|row| (*row, "true"))) {
        // The aggregator's own group is not among those that it asks for; the first that names a version counts.
        if row.group != GROUP {
            wanted
                .entry(format!("{}.{}", row.version, row.group))
                .or_insert_with_key(|name| local(name, row, label));
        }
    }
    let managed = |one: &Value| one["metadata"]["labels"][MANAGED].is_string();
    let left = live.iter().filter(|one| managed(one) && !wanted.contains_key(meta(one, "name")));
    let left = left.map(|one| meta(one, "name").to_owned()).collect();
    for one in live.iter().filter(|one| !managed(one) || one["status"]["conditions"].is_array()) {
        wanted.remove(meta(one, "name"));
    }
    (wanted.into_values().collect(), left)
}

fn local(name: &str, row: &Kind, label: &str) -> Value {
    let known = PRIORITIES.iter().find(|(group, _)| *group == row.group);
    let group = known.map_or(1000, |(_, priority)| *priority);
    let version = match (label, row.version.as_str()) {
        ("true", _) => 100,
        (_, "v2") => 30,
        _ if row.group.is_empty() => 1,
        _ => 15,
    };
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": { "name": name, "labels": { MANAGED: label } },
        "spec": { "group": row.group, "version": row.version, "groupPriorityMinimum": group, "versionPriority": version },
    })
}

fn available(now: &str) -> Value {
    json!({ "conditions": [{
        "type": "Available", "status": "True", "reason": "Local", "lastTransitionTime": now,
        "message": "Local APIServices are always available",
    }] })
}
