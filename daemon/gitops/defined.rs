//! Kinds beyond the table: those that CustomResourceDefinitions define, in the cluster or beside their objects in the files.
//!
//! Invariant: a kind of the table is never redefined.

use std::collections::BTreeMap;

use api::custom;
use api::kinds::{self, Kind};
use serde_json::Value;

/// Kinds by `apiVersion` and `kind`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Defined(BTreeMap<(String, String), &'static Kind>);

impl PartialEq for Defined {
    fn eq(&self, other: &Defined) -> bool {
        // The same definition gives the same row.
        let same = |(ours, theirs): (&&'static Kind, &&'static Kind)| std::ptr::eq(*ours, *theirs);
        self.0.len() == other.0.len()
            && self.0.keys().eq(other.0.keys())
            && self.0.values().zip(other.0.values()).all(same)
    }
}

impl Eq for Defined {}

/// The row of definitions themselves.
pub(crate) fn row() -> &'static Kind {
    kinds::by_kind("apiextensions.k8s.io/v1", "CustomResourceDefinition").expect("definitions are served")
}

impl Defined {
    /// What these definitions define.
    pub(crate) fn of<'a>(definitions: impl Iterator<Item = &'a Value>) -> Defined {
        let rows = definitions.flat_map(custom::kept_rows);
        Defined(rows.map(|row| ((row.api_version(), row.kind.clone()), row)).collect())
    }

    /// The kind of an object, of the table or defined.
    pub(crate) fn find(&self, api_version: &str, kind: &str) -> Option<&'static Kind> {
        let defined = || self.0.get(&(api_version.to_owned(), kind.to_owned())).copied();
        kinds::by_kind(api_version, kind).or_else(defined)
    }

    /// The first kind that fits, of the table or defined.
    pub(crate) fn first(&self, fits: impl Fn(&Kind) -> bool) -> Option<&'static Kind> {
        kinds::kinds().iter().chain(self.0.values().copied()).find(|kind| fits(kind))
    }

    /// Whether objects of this kind can be there.
    pub(crate) fn serves(&self, kind: &Kind) -> bool {
        kind.custom().is_none() || self.0.contains_key(&(kind.api_version(), kind.kind.clone()))
    }

    /// The kinds here that the other has in no version.
    pub(crate) fn without(&self, other: &Defined) -> Vec<&'static Kind> {
        let has = |kind: &Kind| other.0.values().any(|one| one.group == kind.group && one.kind == kind.kind);
        self.0.values().copied().filter(|kind| !has(kind)).collect()
    }

    /// Both; `other`'s where both define the same.
    pub(crate) fn and(&self, other: &Defined) -> Defined {
        Defined(self.0.iter().chain(&other.0).map(|(name, kind)| (name.clone(), *kind)).collect())
    }
}
