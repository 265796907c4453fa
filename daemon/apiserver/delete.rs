//! Deletion: at once, gracefully, or held by finalizers, as documented for each propagation policy.

use api::error::ApiError;
use bytes::Bytes;
use serde_json::{Value, json};
use store::Expect;

use crate::object::{self, meta, metadata};
use crate::write::{Asked, Lost, success};
use crate::{admission, list, strategy};

/// What a DELETE says in its body or query.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) grace_seconds: Option<i64>,
    pub(crate) propagation: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    /// Only tell what would be.
    pub(crate) dry_run: bool,
}

impl Options {
    pub(crate) fn asked(query: &crate::query::Query, body: &Value) -> Result<Options, ApiError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let orphan = match body["orphanDependents"].as_bool() {
            Some(true) => Some("Orphan".to_owned()),
            Some(false) => Some("Background".to_owned()),
            None => None,
        };
        let propagation =
            text(&body["propagationPolicy"]).or(query.get("propagationPolicy").map(str::to_owned)).or(orphan);
        if let Some(policy) = &propagation
            && !matches!(policy.as_str(), "Orphan" | "Background" | "Foreground")
        {
            return Err(ApiError::bad_request(format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: {policy:?}: valid values are \"Background\", \"Foreground\", \"Orphan\""
            )));
        }
        let grace = query.number("gracePeriodSeconds")?.and_then(|seconds| i64::try_from(seconds).ok());
        if let Some(one) = body["dryRun"].as_array().into_iter().flatten().find(|one| **one != "All") {
            return Err(ApiError::bad_request(format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: {one}: supported values: \"All\""
            )));
        }
        let dry_run = query.dry_run()? || body["dryRun"].as_array().is_some_and(|list| !list.is_empty());
        Ok(Options {
            dry_run,
            grace_seconds: body["gracePeriodSeconds"].as_i64().or(grace),
            propagation,
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
        })
    }
}

/// What became of an object that was deleted.
pub(crate) enum Gone {
    /// It is gone; the bytes are a Status.
    Now(Bytes),
    /// Something holds it still, or its kind answers so: the bytes are the object as it was stored last.
    Later(Bytes),
}

/// Kinds whose deletion is answered with the object, also when it is gone, as their documentation says.
fn returns_object(kind: &api::kinds::Kind) -> bool {
    match kind.group.as_str() {
        "" => matches!(
            kind.kind.as_str(),
            "PersistentVolume"
                | "PersistentVolumeClaim"
                | "Pod"
                | "PodTemplate"
                | "ResourceQuota"
                | "Service"
                | "ServiceAccount"
        ),
        "storage.k8s.io" => kind.kind != "CSIStorageCapacity",
        _ => false,
    }
}

/// DELETE of one object. Answers with the object while it is still going, with a Status when it is gone.
pub(crate) async fn one(asked: &mut Asked<'_>, options: &Options) -> Result<Gone, ApiError> {
    // The body may ask for a trial as well as the query.
    let trial = options.dry_run.then(|| asked.query.as_trial());
    let warnings = &mut asked.warnings;
    let asked = &Asked {
        query: trial.as_ref().unwrap_or(asked.query),
        twice: Vec::new(),
        warnings: Vec::new(),
        ..*asked
    };
    loop {
        let entry = crate::read::entry(asked.inner, asked.resource)?;
        let kind = asked.resource.kind;
        let old = object::parse_as(kind, &entry.value);
        check(asked, options, &old)?;
        admission::dynamic::on_delete(asked, &old, warnings).await?;
        let marked = strategy::mark_deleted(kind, &old, options, (asked.inner.now)());
        let expect = Expect::At(entry.modified);
        let outcome = if strategy::nothing_holds(kind, &marked) {
            asked.remove(&marked, expect).await.map(|last| match returns_object(kind) {
                true => Gone::Later(last),
                false => Gone::Now(success(kind, &marked)),
            })
        } else if marked == old {
            Ok(Gone::Later(entry.value.clone()))
        } else {
            asked.store_marked(&marked, expect).await.map(Gone::Later)
        };
        match outcome {
            Ok(gone) => return Ok(gone),
            Err(Lost::Error(error)) => return Err(error),
            Err(Lost::Race) => tokio::task::yield_now().await,
        }
    }
}

/// DELETE of a collection: each object that the query selects, as by `one`.
pub(crate) async fn collection(asked: &mut Asked<'_>, options: &Options) -> Result<Bytes, ApiError> {
    let kind = asked.resource.kind;
    let entries = list::entries(asked.inner, asked.resource, asked.query)?;
    for entry in entries {
        let object = object::parse(&entry.value);
        let resource = crate::path::Resource {
            kind,
            namespace: meta(&object, "namespace").to_owned(),
            name: Some(meta(&object, "name").to_owned()),
            subresource: None,
        };
        let mut each = Asked { resource: &resource, twice: Vec::new(), warnings: Vec::new(), ..*asked };
        match one(&mut each, options).await {
            Err(error) if error.code != 404 => return Err(error),
            _ => {}
        }
    }
    Ok(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": { "group": kind.group, "kind": kind.plural } })
        .to_string()
        .into())
}

fn check(asked: &Asked<'_>, options: &Options, old: &Value) -> Result<(), ApiError> {
    let kind = asked.resource.kind;
    let name = meta(old, "name");
    if let Some(uid) = &options.uid
        && uid != meta(old, "uid")
    {
        return Err(crate::write::wrong_uid(kind, name, uid, meta(old, "uid")));
    }
    if let Some(version) = &options.resource_version
        && version != meta(old, "resourceVersion")
    {
        return Err(crate::write::modified(kind, name));
    }
    if kind.kind == "Namespace"
        && kind.group.is_empty()
        && matches!(name, "default" | "kube-system" | "kube-public")
    {
        return Err(ApiError::forbidden(kind, name, "this namespace may not be deleted"));
    }
    Ok(())
}

/// The marks of a deletion that has been asked for, on an object that something still holds.
pub(crate) fn marks(object: &mut Value, now: jiff::Timestamp, grace_seconds: i64) {
    let at = now + std::time::Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0));
    // A shorter grace period later on is no new wish.
    let first = object["metadata"]["deletionTimestamp"].is_null();
    let generation = object["metadata"]["generation"].as_i64().filter(|_| first);
    let fields = metadata(object);
    fields.insert("deletionTimestamp".to_owned(), crate::write::seconds(at).into());
    fields.insert("deletionGracePeriodSeconds".to_owned(), grace_seconds.into());
    if let Some(generation) = generation {
        fields.insert("generation".to_owned(), (generation + 1).into());
    }
}
