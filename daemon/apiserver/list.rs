//! Lists and pages of lists, from one snapshot each.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use api::error::ApiError;
use api::select::{Fields, Labels};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};
use store::{Entry, Snapshot};

use crate::path::Resource;
use crate::query::Query;
use crate::{Head, Inner, object};

/// How many snapshots are kept for lists that were read in part.
const KEPT_SNAPSHOTS: usize = 8;

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

/// Snapshots that a `continue` token can still be answered from.
#[derive(Default)]
pub(crate) struct Continuations(Mutex<VecDeque<Snapshot<Head>>>);

impl Continuations {
    fn keep(&self, snapshot: &Snapshot<Head>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().any(|known| known.revision() == snapshot.revision()) {
            return;
        }
        if kept.len() >= KEPT_SNAPSHOTS {
            kept.pop_front();
        }
        kept.push_back(snapshot.clone());
    }

    fn find(&self, revision: u64) -> Option<Snapshot<Head>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|snapshot| snapshot.revision() == revision).cloned()
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
        inner.continuations.keep(&snapshot);
        let token = json!({ "rv": snapshot.revision(), "after": last.key });
        metadata["continue"] = URL_SAFE_NO_PAD.encode(token.to_string()).into();
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
        return inner.continuations.find(asked).ok_or_else(|| {
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
    let snapshot = inner.continuations.find(revision).ok_or_else(|| {
        ApiError::expired("The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.")
    })?;
    Ok((snapshot, Some(after.to_owned())))
}

/// A version that this server has not reached: of another server's, or of a store that was lost.
pub(crate) fn too_new(asked: u64, newest: u64) -> ApiError {
    ApiError::timeout(&format!("Too large resource version: {asked}, current: {newest}"), 1)
}
