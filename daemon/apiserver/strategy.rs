//! What a kind asks of the server beyond its schema: addresses of Services, selectors of Jobs, the way Pods go.
//!
//! Everything here is a function of the object and of what is stored; there is no other code per kind in this room.

mod pods;
mod services;

use api::custom::definition;
use api::error::ApiError;
use api::kinds::Kind;
use api::schema::Defect;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use store::Durability;

use crate::Inner;
use crate::admission;
use crate::delete::{self, Options};
use crate::object::{self, meta, metadata};

pub(crate) use pods::bind;
pub(crate) use services::Allocator;

fn is(kind: &Kind, name: &str) -> bool {
    kind.kind == name && matches!(kind.group.as_str(), "" | "apps" | "batch")
}

/// What a new object gets.
pub(crate) fn create(inner: &Inner, kind: &Kind, object: &mut Value) -> Result<(), ApiError> {
    // A kind that users define may have the name of one of ours.
    if kind.custom().is_some() {
        return Ok(());
    }
    if definition::is(kind) {
        hold(object);
    }
    match kind.kind.as_str() {
        "Service" => services::addresses(inner, kind, None, object)?,
        "Pod" => {
            let class = api::pod::quality_of_service(&object["spec"]);
            object["status"] = json!({ "phase": "Pending", "qosClass": class });
        }
        "Namespace" => object["status"] = json!({ "phase": "Active" }),
        "ValidatingAdmissionPolicy" => admission::dynamic::noted(object),
        _ => {}
    }
    Ok(())
}

/// A definition goes only after its instances.
fn hold(definition: &mut Value) {
    let fields = metadata(definition);
    let finalizers = fields.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) =
        finalizers.as_array_mut().filter(|list| !list.iter().any(|one| one == definition::FINALIZER))
    {
        list.push(definition::FINALIZER.into());
    }
}

/// Kinds of which a PUT makes what is not there yet, as Kubernetes documents for them.
pub(crate) fn is_made_by_update(kind: &Kind) -> bool {
    match kind.group.as_str() {
        "" => matches!(kind.kind.as_str(), "Endpoints" | "Event" | "LimitRange" | "Service"),
        "rbac.authorization.k8s.io" => true,
        _ => false,
    }
}

/// What a changed object gets, and what of it only a subresource may change.
pub(crate) fn update(
    inner: &Inner,
    kind: &Kind,
    subresource: Option<&str>,
    old: &Value,
    new: &mut Value,
) -> Result<(), ApiError> {
    if is(kind, "Service") {
        services::addresses(inner, kind, Some(old), new)?;
    }
    // What was asked for, and by whom, stays what somebody may have approved.
    if kind.group == "certificates.k8s.io" && kind.kind == "CertificateSigningRequest" {
        new["spec"] = old["spec"].clone();
    }
    if is(kind, "Pod") && subresource != Some("binding") && old["spec"]["nodeName"] != new["spec"]["nodeName"]
    {
        let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        return Err(ApiError::invalid(kind, meta(old, "name"), vec![Defect::forbidden("spec", why)]));
    }
    Ok(())
}

/// A write to an object leaves its status alone, a write to a subresource everything else.
pub(crate) fn keep_what_is_not_written(
    kind: &Kind,
    subresource: Option<&str>,
    old: &Value,
    wanted: Value,
) -> Value {
    let keep = |from: &Value, mut into: Value, field: &str| {
        match from.get(field) {
            Some(value) => into[field] = value.clone(),
            None => {
                into.as_object_mut().map(|fields| fields.remove(field));
            }
        }
        into
    };
    match subresource {
        None if kind.status => keep(old, wanted, "status"),
        None => wanted,
        Some("status") => status_of(kind, old, wanted),
        Some("approval") => {
            let mut new = old.clone();
            new["status"]["conditions"] = wanted["status"]["conditions"].clone();
            new
        }
        Some(part @ ("resize" | "ephemeralcontainers")) => pods::part(part, old, &wanted),
        Some("finalize") => {
            let mut new = old.clone();
            new["spec"]["finalizers"] = wanted["spec"]["finalizers"].clone();
            new
        }
        Some(_) => wanted,
    }
}

/// The old object with the status that is wanted, and with what of the metadata may come with it. Made of what is wanted,
/// which mostly is the old one but for the status: so little is copied.
fn status_of(kind: &Kind, old: &Value, mut wanted: Value) -> Value {
    // Labels of what makes pods are its own business; elsewhere status may come with labels and annotations.
    let comes = |field: &str| {
        matches!(field, "managedFields" | "annotations") || (field == "labels" && kind.group != "apps")
    };
    let (none, metadata) = (Map::new(), metadata(&mut wanted));
    like(metadata, old["metadata"].as_object().unwrap_or(&none), &comes);
    if let Some(fields) = wanted.as_object_mut() {
        like(fields, old.as_object().unwrap_or(&none), &|field| matches!(field, "status" | "metadata"));
    }
    wanted
}

/// Makes a map like another one, but for fields of its own.
fn like(map: &mut Map<String, Value>, other: &Map<String, Value>, own: &dyn Fn(&str) -> bool) {
    map.retain(|field, _| own(field) || other.contains_key(field));
    for (field, value) in other.iter().filter(|(field, _)| !own(field)) {
        if map.get(field) != Some(value) {
            map.insert(field.clone(), value.clone());
        }
    }
}

/// Whether anything but metadata and status changed: what `metadata.generation` counts.
pub(crate) fn wanted_state_differs(old: &Value, new: &Value) -> bool {
    let counts = |name: &str| !matches!(name, "metadata" | "status");
    let none = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&none), new.as_object().unwrap_or(&none));
    let names = |of: &Map<String, Value>| of.keys().filter(|name| counts(name)).count();
    names(old) != names(new) || old.iter().any(|(name, value)| counts(name) && new.get(name) != Some(value))
}

/// Must an acknowledged write have reached the disk? What the machine can tell again need not.
pub(crate) fn durability(kind: &Kind, subresource: Option<&str>) -> Durability {
    let observed = subresource == Some("status")
        && matches!(
            kind.kind.as_str(),
            "Pod" | "Node" | "Service" | "Ingress" | "Deployment" | "ReplicaSet" | "HorizontalPodAutoscaler"
        );
    if observed || matches!(kind.kind.as_str(), "Event" | "Lease" | "EndpointSlice") {
        Durability::Journalled
    } else {
        Durability::Synced
    }
}

/// Whether a deleted object can go now.
pub(crate) fn nothing_holds(kind: &Kind, object: &Value) -> bool {
    let graceful =
        is(kind, "Pod") && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0;
    let contents =
        is(kind, "Namespace") && object["spec"]["finalizers"].as_array().is_some_and(|held| !held.is_empty());
    !graceful && !contents && object::finalizers(object).is_empty()
}

/// The object with the marks of this deletion: grace period, finalizers of the propagation policy.
pub(crate) fn mark_deleted(kind: &Kind, old: &Value, options: &Options, now: Timestamp) -> Value {
    let mut marked = old.clone();
    let policy_finalizer = match options.propagation.as_deref() {
        Some("Foreground") => Some("foregroundDeletion"),
        Some("Orphan") => Some("orphan"),
        _ => None,
    };
    let mut held: Vec<&str> = object::finalizers(old);
    if let Some(finalizer) = policy_finalizer
        && !held.contains(&finalizer)
    {
        held.push(finalizer);
    }
    if !held.is_empty() {
        let held: Vec<Value> = held.into_iter().map(Value::from).collect();
        metadata(&mut marked).insert("finalizers".to_owned(), held.into());
    }
    let grace = grace_seconds(kind, old, options);
    let known = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if !object::is_terminating(old) || known.is_some_and(|known| grace < known) {
        delete::marks(&mut marked, now, grace);
    }
    if is(kind, "Namespace") {
        marked["status"]["phase"] = "Terminating".into();
    }
    marked
}

/// Pods that run somewhere get time to end; what no kubelet has taken, or has ended, goes at once.
fn grace_seconds(kind: &Kind, old: &Value, options: &Options) -> i64 {
    let ended = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let unbound = old["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    if !is(kind, "Pod") || ended || unbound {
        return 0;
    }
    let own = old["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    options.grace_seconds.unwrap_or(own).max(0)
}
