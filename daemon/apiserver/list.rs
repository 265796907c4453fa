//! Lists and pages of lists, from one snapshot each.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::error::ApiError;
use api::select::{Fields, Labels};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use store::{Entry, Snapshot};

use crate::path::Resource;
use crate::query::Query;
use crate::{Head, Inner, object};

/// How many snapshots are kept for lists that were read in part.
const KEPT_SNAPSHOTS: usize = 8;
/// How long they are kept after they were used, as long as Kubernetes keeps versions.
const KEPT_SECONDS: i64 = 300;

/// Which objects of a kind are wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    labels: Option<Labels>,
    fields: Option<Fields>,
    name: Option<String>,
}

impl Selection {
    pub(crate) fn asked(resource: &Resource, query: &Query) -> Result<Selection, ApiError> {
        let labels = query.get("labelSelector").map(Labels::parse).transpose();
        let fields = query.get("fieldSelector").map(Fields::parse).transpose();
        let fields = fields.map_err(|error| ApiError::bad_request(error.to_string()))?;
        let fields = fields.map(|fields| fields.as_stored(resource.kind));
        if let Some(fields) = &fields {
            fields.check(resource.kind).map_err(|error| ApiError::bad_request(error.to_string()))?;
        }
        Ok(Selection {
            labels: labels
                .map_err(|error| ApiError::bad_request(format!("unable to parse requirement: {error}")))?,
            fields,
            name: resource.name.clone(),
        })
    }

    pub(crate) fn matches(&self, head: &Head) -> bool {
        self.labels.as_ref().is_none_or(|labels| labels.matches(&head.labels))
            && self
                .fields
                .as_ref()
                .is_none_or(|fields| fields.matches(|field| head.fields.get(field).cloned()))
            && self.name.as_ref().is_none_or(|name| head.fields.get("metadata.name") == Some(name))
    }
}

/// Snapshots that a `continue` token can still be answered from, and when each was last used.
#[derive(Default)]
pub(crate) struct Continuations(Mutex<VecDeque<(Timestamp, Snapshot<Head>)>>);

impl Continuations {
    fn keep(&self, snapshot: &Snapshot<Head>, now: Timestamp) {
        let mut kept = self.fresh(now);
        if let Some(known) = kept.iter_mut().find(|(_, known)| known.revision() == snapshot.revision()) {
            known.0 = now;
            return;
        }
        if kept.len() >= KEPT_SNAPSHOTS {
            kept.pop_front();
        }
        kept.push_back((now, snapshot.clone()));
    }

    fn find(&self, revision: u64, now: Timestamp) -> Option<Snapshot<Head>> {
        let kept = self.fresh(now);
        kept.iter().find(|(_, known)| known.revision() == revision).map(|(_, snapshot)| snapshot.clone())
    }

    /// What is old holds memory that nobody asks for any more.
    fn fresh(&self, now: Timestamp) -> MutexGuard<'_, VecDeque<(Timestamp, Snapshot<Head>)>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(used, _)| now.duration_since(*used).as_secs() < KEPT_SECONDS);
        kept
    }
}

/// A page of objects and the list's metadata.
pub(crate) struct Page {
    pub(crate) items: Vec<Bytes>,
    pub(crate) metadata: Value,
}

/// Lists what the query asks for: everything, or `limit` objects and a token to go on with from the same snapshot.
pub(crate) fn page(inner: &Inner, resource: &Resource, query: &Query) -> Result<Page, ApiError> {
    let selection = Selection::asked(resource, query)?;
    let limit =
        query.number("limit")?.filter(|limit| *limit > 0).and_then(|limit| usize::try_from(limit).ok());
    check(query)?;
    let (snapshot, after) = match query.get("continue") {
        Some(token) => resume(inner, token)?,
        None => (at_version(inner, query)?, None),
    };
    let prefix = object::prefix(resource.kind, &resource.namespace);
    let mut matching =
        snapshot.range(&prefix, after.as_deref()).filter(|entry| selection.matches(&entry.head));
    let wanted = limit.unwrap_or(usize::MAX);
    let mut last: Option<&Entry<Head>> = None;
    let mut items = Vec::new();
    for entry in matching.by_ref().take(wanted) {
        items.push(entry.value.clone());
        last = Some(entry);
    }
    let mut metadata = json!({ "resourceVersion": snapshot.revision().to_string() });
    let remaining = if limit.is_some() { matching.count() } else { 0 };
    if let (Some(last), true) = (last, remaining > 0) {
        inner.continuations.keep(&snapshot, (inner.now)());
        metadata["continue"] = token_after(snapshot.revision(), &last.key).into();
        if selection.labels.is_none() && selection.fields.is_none() {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    Ok(Page { items, metadata })
}

/// The entries that the query selects, of now.
pub(crate) fn entries(
    inner: &Inner,
    resource: &Resource,
    query: &Query,
) -> Result<Vec<Entry<Head>>, ApiError> {
    let selection = Selection::asked(resource, query)?;
    let prefix = object::prefix(resource.kind, &resource.namespace);
    let snapshot = inner.store.snapshot();
    Ok(snapshot.range(&prefix, None).filter(|entry| selection.matches(&entry.head)).cloned().collect())
}

/// The newest state is never older than a version that was asked for, unless that version is in the future.
fn at_version(inner: &Inner, query: &Query) -> Result<Snapshot<Head>, ApiError> {
    let snapshot = inner.store.snapshot();
    let asked = query.number("resourceVersion")?.unwrap_or(0);
    if asked > snapshot.revision() {
        return Err(too_new(asked, snapshot.revision()));
    }
    if query.get("resourceVersionMatch") == Some("Exact") && asked != snapshot.revision() {
        return inner.continuations.find(asked, (inner.now)()).ok_or_else(|| {
            ApiError::expired("The provided resource version is too old to be listed exactly")
        });
    }
    Ok(snapshot)
}

fn resume(inner: &Inner, token: &str) -> Result<(Snapshot<Head>, Option<String>), ApiError> {
    let invalid =
        || ApiError::bad_request("continue key is not valid: it is not one that this server gave".to_owned());
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    let token: Value = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    let revision = token["rv"].as_u64().ok_or_else(invalid)?;
    let after = token["after"].as_str().ok_or_else(invalid)?;
    if revision == 0 {
        return Ok((inner.store.snapshot(), Some(after.to_owned())));
    }
    match inner.continuations.find(revision, (inner.now)()) {
        Some(snapshot) => Ok((snapshot, Some(after.to_owned()))),
        None => {
            let mut gone = ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
            );
            gone.details["continue"] = token_after(0, after).into();
            Err(gone)
        }
    }
}

/// A token to go on with after a key, from the state of a revision; from whatever is there when it is zero.
fn token_after(revision: u64, key: &str) -> String {
    URL_SAFE_NO_PAD.encode(json!({ "rv": revision, "after": key }).to_string())
}

/// Parameters that contradict each other, in Kubernetes' words.
fn check(query: &Query) -> Result<(), ApiError> {
    let how = query.get("resourceVersionMatch");
    let version = query.get("resourceVersion");
    let refuse = |message: &str| {
        Err(ApiError::bad_request(format!("ListOptions.meta.k8s.io \"\" is invalid: {message}")))
    };
    match (how, version) {
        (None, _) => Ok(()),
        (Some(_), _) if query.get("continue").is_some() => refuse(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided",
        ),
        (Some(_), None) => refuse(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (Some("Exact"), Some("0")) => refuse(
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        (Some("Exact" | "NotOlderThan"), _) => Ok(()),
        (Some(other), _) => refuse(&format!(
            "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""
        )),
    }
}

/// A version that this server has not reached: of another server's, or of a store that was lost.
pub(crate) fn too_new(asked: u64, newest: u64) -> ApiError {
    ApiError::timeout(&format!("Too large resource version: {asked}, current: {newest}"), 1)
}
