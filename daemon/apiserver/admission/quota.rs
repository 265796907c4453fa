//! ResourceQuota: what a namespace may hold in sum.
//!
//! Invariant: what is used is counted from what is stored, while nobody else may add to it; so no crowd of writers gets
//! past a quota, and no crash leaves a count behind.

use api::error::ApiError;
use api::kinds::Kind;
use api::pod::{self, Amounts};
use api::quota;
use serde_json::Value;

use super::{forbidden, stored};
use crate::Inner;
use crate::object::{self, meta};

/// One writer at a time where there are quotas.
#[derive(Default)]
pub(crate) struct Turn(tokio::sync::Mutex<()>);

impl Turn {
    /// Waits for the turn when a quota of the namespace may bound this kind; other writers do not wait.
    pub(crate) async fn begin(
        &self,
        inner: &Inner,
        kind: &Kind,
        namespace: &str,
    ) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let quotas = quotas(inner, kind, namespace);
        if quotas.is_empty() { None } else { Some(self.0.lock().await) }
    }
}

/// Refuses an object that would use more than is left.
pub(crate) fn admit(inner: &Inner, kind: &Kind, old: Option<&Value>, object: &Value) -> Result<(), ApiError> {
    let namespace = meta(object, "namespace");
    for one in quotas(inner, kind, namespace) {
        if !quota::is_about(&one, kind, object) {
            continue;
        }
        let is_pod = kind.kind == "Pod" && kind.group.is_empty();
        if let (true, None, Some(why)) = (is_pod, old, quota::unsaid(&one, &object["spec"])) {
            return Err(forbidden(kind, object, &why));
        }
        let mut more = quota::bounded(&one, &quota::usage(kind, object));
        if let Some(old) = old.filter(|old| quota::is_about(&one, kind, old)) {
            for (name, amount) in quota::usage(kind, old) {
                if let Some(now) = more.get_mut(&name) {
                    *now = now.subtract(&amount);
                }
            }
        }
        more.retain(|_, amount| !amount.is_zero() && !amount.is_negative());
        if more.is_empty() {
            continue;
        }
        let used = used(inner, &one, kind, namespace);
        if let Some(why) = quota::refusal(&one, &used, &more) {
            return Err(forbidden(kind, object, &why));
        }
    }
    Ok(())
}

/// What the stored objects of this kind use of a quota.
fn used(inner: &Inner, one: &Value, kind: &Kind, namespace: &str) -> Amounts {
    let snapshot = inner.store.snapshot();
    let mut sum = Amounts::new();
    for entry in snapshot.range(&object::prefix(kind, namespace), None) {
        let object = object::parse(&entry.value);
        if quota::is_about(one, kind, &object) {
            pod::add(&mut sum, &quota::bounded(one, &quota::usage(kind, &object)));
        }
    }
    sum
}

/// The quotas of a namespace that have something to say about a kind.
fn quotas(inner: &Inner, kind: &Kind, namespace: &str) -> Vec<Value> {
    if namespace.is_empty() {
        return Vec::new();
    }
    let mut quotas = stored(inner, "v1", "ResourceQuota", namespace);
    quotas.retain(|one| {
        let names = one["spec"]["hard"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        names.into_iter().any(|name| quota::concerns(name, kind))
    });
    quotas
}
