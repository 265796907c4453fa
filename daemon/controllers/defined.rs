//! The kinds that CustomResourceDefinitions define: followed from the moment they are established until they are gone.
//!
//! Invariant: of every definition one version is followed; its objects are the same in all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::kinds::{self, Kind};
use client::{Cache, Caches, Key, key_of};
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;

use crate::wakes::resource;

/// What the cache of a defined kind holds.
type Meta = PartialObjectMeta<DynamicObject>;

/// The defined kinds of now, by the key of their definition.
#[derive(Default)]
pub(crate) struct Defined(Mutex<BTreeMap<Key, &'static Kind>>);

impl Defined {
    /// All of them.
    pub(crate) fn all(&self) -> Vec<&'static Kind> {
        self.known().values().copied().collect()
    }

    /// The kind of that name in a group, whatever the version.
    pub(crate) fn find(&self, api_version: &str, kind: &str) -> Option<&'static Kind> {
        let (group, _) = kinds::split_api_version(api_version);
        self.known().values().copied().find(|row| row.group == group && row.kind == kind)
    }

    /// Keeps itself current. `appeared` gets every kind with the cache of its objects; a kind that is gone has its
    /// cache emptied.
    pub(crate) fn follow(
        self: &Arc<Self>,
        caches: &Caches,
        appeared: impl Fn(&'static Kind, &Cache<Meta>) + Send + 'static,
    ) {
        let row = kinds::by_kind("apiextensions.k8s.io/v1", "CustomResourceDefinition")
            .expect("definitions are served");
        let (defined, caches) = (Arc::clone(self), caches.clone());
        let definitions = caches.dynamic(&resource(row));
        let seen = definitions.clone();
        definitions.listen(move |definition| {
            let key = key_of(&**definition);
            let live = seen.get(&key).filter(|live| is_established(live));
            let kind = live.and_then(|live| api::custom::kept_rows(&live.data).into_iter().next());
            let before = match kind {
                Some(kind) => defined.known().insert(key, kind),
                None => defined.known().remove(&key),
            };
            let same = |one: &'static Kind, other: &'static Kind| resource(one) == resource(other);
            if let Some(before) = before.filter(|before| kind.is_none_or(|kind| !same(before, kind))) {
                caches.forget(&resource(before));
            }
            if let Some(kind) = kind.filter(|kind| before.is_none_or(|before| !same(before, kind))) {
                appeared(kind, &caches.metadata(&resource(kind)));
            }
        });
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Key, &'static Kind>> {
        // One insertion or removal at a time: nothing can be left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_established(definition: &DynamicObject) -> bool {
    let conditions = definition.data["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}
