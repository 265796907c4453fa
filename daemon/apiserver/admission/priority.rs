//! Priority: from the name of a class to the number that the scheduler compares.

use api::error::ApiError;
use api::kinds::{self, Kind};
use serde_json::{Value, json};

use super::{find, forbidden, stored};
use crate::object::{self, meta};
use crate::{Inner, write};

const GROUP: &str = "scheduling.k8s.io/v1";
const PREEMPTS: &str = "PreemptLowerPriority";

/// The classes that every cluster has.
const FIRST: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

pub(super) async fn make_first(inner: &Inner) -> Result<(), ApiError> {
    let row = kinds::by_kind(GROUP, "PriorityClass").expect("PriorityClasses are served");
    let snapshot = inner.store.snapshot();
    let missing = FIRST.iter().filter(|(name, ..)| snapshot.get(&object::key(row, "", name)).is_none());
    let made = missing.map(|(name, value, description)| {
        let class = json!({ "metadata": { "name": name }, "value": value, "description": description });
        write::own(inner, row, "", None, class)
    });
    futures::future::try_join_all(made).await.map(drop)
}

/// Sets number and policy of a pod from its class, from the default class, or to nothing special.
pub(super) fn resolve(inner: &Inner, kind: &Kind, pod: &mut Value) -> Result<(), ApiError> {
    let named = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class =
        if named.is_empty() {
            // Of several defaults the lowest is taken, as documented.
            let mut defaults = stored(inner, GROUP, "PriorityClass", "");
            defaults.retain(|class| class["globalDefault"] == true);
            defaults.into_iter().min_by_key(|class| class["value"].as_i64())
        } else {
            let class = find(inner, GROUP, "PriorityClass", "", &named);
            Some(class.ok_or_else(|| {
                forbidden(kind, pod, &format!("no PriorityClass with name {named} was found"))
            })?)
        };
    let (value, policy) = match &class {
        Some(class) => {
            (class["value"].as_i64().unwrap_or(0), class["preemptionPolicy"].as_str().unwrap_or(PREEMPTS))
        }
        None => (0, PREEMPTS),
    };
    let spec = &pod["spec"];
    if let Some(given) = spec["priority"].as_i64().filter(|given| *given != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(forbidden(kind, pod, &why));
    }
    if let Some(given) = spec["preemptionPolicy"].as_str().filter(|given| *given != policy) {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(forbidden(kind, pod, &why));
    }
    if let (true, Some(class)) = (named.is_empty(), &class) {
        pod["spec"]["priorityClassName"] = meta(class, "name").into();
    }
    pod["spec"]["priority"] = value.into();
    pod["spec"]["preemptionPolicy"] = policy.into();
    Ok(())
}

/// Only one class is taken when none is named.
pub(super) fn one_default(inner: &Inner, kind: &Kind, class: &Value) -> Result<(), ApiError> {
    if class["globalDefault"] != true {
        return Ok(());
    }
    let others = stored(inner, GROUP, "PriorityClass", "");
    let other = others
        .iter()
        .find(|other| other["globalDefault"] == true && meta(other, "name") != meta(class, "name"));
    match other {
        None => Ok(()),
        Some(other) => {
            let why = format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                meta(other, "name")
            );
            Err(forbidden(kind, class, &why))
        }
    }
}
