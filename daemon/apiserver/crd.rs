//! Kinds that users define: which of them are served now, and what their definitions' status says.
//!
//! Observe → plan → act: every write of a definition is followed by a round, so that its kinds are served, discovered and
//! explained as soon as the write is answered. A definition that goes takes its instances with it first.
//! Invariant: a name belongs to the definition that had it first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::custom::{self, definition};
use api::error::ApiError;
use api::kinds::{self, Kind};
use serde_json::Value;

use crate::object::{self, meta};
use crate::path::Resource;
use crate::{Inner, apiservices, delete, write};

/// What is served beyond the built-in kinds.
#[derive(Default)]
pub(crate) struct Registry {
    served: Mutex<Arc<Vec<&'static Kind>>>,
    /// Rows by the definition's uid and generation: a change of status makes no new ones.
    rows: Mutex<BTreeMap<(String, i64), Vec<&'static Kind>>>,
    /// Definitions on their way out, by the prefix of their instances.
    leaving: Mutex<Vec<String>>,
    turn: tokio::sync::Mutex<()>,
}

impl Registry {
    /// Every custom row that is served.
    pub(crate) fn served(&self) -> Arc<Vec<&'static Kind>> {
        Arc::clone(&self.served.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The row behind `/apis/{group}/{version}/{plural}`.
    pub(crate) fn by_plural(&self, group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        let served = self.served();
        served
            .iter()
            .find(|row| row.plural == plural && row.group == group && row.version == version)
            .copied()
    }

    /// Whether the definition of a kind is being deleted.
    pub(crate) fn is_leaving(&self, kind: &Kind) -> bool {
        let prefix = object::prefix(kind, "");
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner).contains(&prefix)
    }

    fn rows_of(&self, definition: &Value) -> Vec<&'static Kind> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = definition["status"]["storedVersions"].as_array().map_or(0, Vec::len);
        let generation = definition["metadata"]["generation"].as_i64().unwrap_or(0);
        let key = (format!("{} {stored}", meta(definition, "uid")), generation);
        let made = || -> Vec<&'static Kind> {
            custom::rows(definition).into_iter().map(|row| &*Box::leak(Box::new(row))).collect()
        };
        rows.entry(key).or_insert_with(made).clone()
    }
}

/// The row of definitions.
fn row() -> &'static Kind {
    kinds::by_kind("apiextensions.k8s.io/v1", "CustomResourceDefinition").expect("definitions are served")
}

/// What follows a write: of a definition, of an APIService, or of an instance whose definition waits for it to go.
pub(crate) async fn after_write(inner: &Inner, kind: &Kind) -> Result<(), ApiError> {
    if apiservices::is(kind) {
        return apiservices::ensure(inner).await;
    }
    if definition::is(kind) || (kind.custom().is_some() && inner.crds.is_leaving(kind)) {
        return refresh(inner).await;
    }
    Ok(())
}

/// Brings what is served and what the definitions' status says up to date. Twice is once.
pub(crate) async fn refresh(inner: &Inner) -> Result<(), ApiError> {
    let _turn = inner.crds.turn.lock().await;
    let definitions = observe(inner);
    // Deleting the instances can end a definition, which frees its names for another.
    let mut leaving = Vec::new();
    for definition in definitions.iter().filter(|one| object::is_terminating(one)) {
        leaving.extend(inner.crds.rows_of(definition).first().map(|kind| object::prefix(kind, "")));
    }
    *inner.crds.leaving.lock().unwrap_or_else(PoisonError::into_inner) = leaving;
    for definition in definitions.iter().filter(|one| object::is_terminating(one)) {
        empty(inner, definition).await?;
    }
    let definitions = observe(inner);
    for (definition, status) in plan(&definitions, &write::seconds((inner.now)())) {
        let mut new = definition.clone();
        new["status"] = status;
        write::status(inner, row(), "", new).await?;
    }
    let definitions = observe(inner);
    let served = definitions.iter().filter(|definition| definition::is_established(definition));
    let served: Vec<&'static Kind> = served.flat_map(|definition| inner.crds.rows_of(definition)).collect();
    *inner.crds.served.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(served);
    apiservices::ensure(inner).await
}

/// The definitions, oldest first.
fn observe(inner: &Inner) -> Vec<Value> {
    let snapshot = inner.store.snapshot();
    let mut entries: Vec<_> = snapshot.range(&object::prefix(row(), ""), None).collect();
    entries.sort_by_key(|entry| entry.created);
    entries.into_iter().map(|entry| object::parse(&entry.value)).collect()
}

/// The definitions whose status is to change, each with its new one.
fn plan<'a>(definitions: &'a [Value], now: &str) -> Vec<(&'a Value, Value)> {
    let mut changes = Vec::new();
    let mut taken: Vec<(String, String)> = Vec::new();
    for definition in definitions {
        let names = names(definition);
        let conflict = names.iter().find(|name| taken.contains(name));
        let conflict = conflict.map(|(_, name)| format!("{name:?} is already in use"));
        let status = definition::status(definition, conflict.as_deref(), now);
        if conflict.is_none() {
            taken.extend(names);
        }
        if status != definition["status"] {
            changes.push((definition, status));
        }
    }
    changes
}

/// Group and name, of everything that must be one definition's alone; kinds are told apart from resources.
fn names(definition: &Value) -> Vec<(String, String)> {
    let spec = &definition["spec"];
    let group = spec["group"].as_str().unwrap_or_default();
    let names = &spec["names"];
    let short = names["shortNames"].as_array().into_iter().flatten();
    let resources = [&names["plural"], &names["singular"]].into_iter().chain(short);
    let kinds = [&names["kind"], &names["listKind"]];
    let told = |space: &str, name: &Value| {
        (format!("{group} {space}"), name.as_str().unwrap_or_default().to_owned())
    };
    resources.map(|name| told("resource", name)).chain(kinds.map(|name| told("kind", name))).collect()
}

/// Deletes the instances of a definition that is going; lets it go when there are none.
async fn empty(inner: &Inner, definition: &Value) -> Result<(), ApiError> {
    let rows = inner.crds.rows_of(definition);
    if let Some(kind) = rows.first() {
        let resource = Resource { kind, namespace: String::new(), name: None, subresource: None };
        write::own_delete(inner, &resource, &delete::Options::default()).await?;
        if inner.store.snapshot().range(&object::prefix(kind, ""), None).next().is_some() {
            return Ok(());
        }
    }
    let mut new = definition.clone();
    let finalizers = new["metadata"]["finalizers"].as_array_mut();
    if let Some(finalizers) = finalizers {
        finalizers.retain(|one| one != definition::FINALIZER);
    }
    let name = meta(definition, "name").to_owned();
    match write::own(inner, row(), "", Some(&name), new).await {
        // Somebody else writes it too, and what follows that write comes here again.
        Err(error) if error.code != 409 && error.code != 404 => Err(error),
        _ => Ok(()),
    }
}

/// Before a namespace may go: asks the objects in it of kinds that users define to go. False while some are there.
pub(crate) async fn empty_namespace(inner: &Inner, namespace: &str) -> Result<bool, ApiError> {
    let served = inner.crds.served();
    let mut empty = true;
    for kind in served.iter().filter(|kind| kind.namespaced) {
        let prefix = object::prefix(kind, namespace);
        if inner.store.snapshot().range(&prefix, None).next().is_none() {
            continue;
        }
        let resource = Resource { kind, namespace: namespace.to_owned(), name: None, subresource: None };
        write::own_delete(inner, &resource, &delete::Options::default()).await?;
        empty &= inner.store.snapshot().range(&prefix, None).next().is_none();
    }
    Ok(empty)
}
