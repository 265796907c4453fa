//! ResourceQuota: says in the status of every quota what its namespace uses of it. What is refused is the API server's
//! to say; it counts for itself.
//!
//! Invariant: what is used is the sum over the objects that are there, so that a wake missed is made good by the next.

use std::sync::Arc;

use api::kinds::Kind;
use api::pod::{self, Amounts};
use api::quantity::Quantity;
use api::quota;
use client::{Cache, Key};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceQuota;
use reconcile::{Plan, Reconciler};
use serde_json::{Map, Value, json};

use crate::Error;
use crate::namespace::can;
use crate::step::{self, Door, Part, Place, Step};

/// A quota and what is used of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// As stored; `None`: gone.
    pub(crate) quota: Option<Value>,
    /// The sum over the namespace's objects.
    pub(crate) used: Amounts,
}

/// Counts what quotas bound.
pub(crate) struct Quotas {
    client: Door,
    quotas: Cache<ResourceQuota>,
}

impl Quotas {
    /// Over this cache.
    pub(crate) fn new(client: Door, quotas: Cache<ResourceQuota>) -> Quotas {
        Quotas { client, quotas }
    }

    async fn objects(&self, kind: &Kind, namespace: &str) -> Result<Vec<Value>, Error> {
        let at = Place {
            api_version: kind.api_version(),
            kind: kind.kind.clone(),
            plural: kind.plural.clone(),
            namespace: Some(namespace.to_owned()),
            name: String::new(),
        };
        let request = Request::get(at.collection()).body(Vec::new()).expect("a path made of names");
        let mut list: Value = self
            .client
            .request(request)
            .await
            .map_err(|source| Error::Read { what: at.to_string(), source: Box::new(source) })?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }
}

impl Reconciler for Quotas {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "resourcequota";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(live) = self.quotas.get(key) else { return Ok(View::default()) };
        let one = serde_json::to_value(&*live).expect("a Kubernetes object can be written as JSON");
        let names: Vec<&str> =
            one["spec"]["hard"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let mut used = Amounts::new();
        let counted = api::kinds::stored_kinds().filter(|kind| kind.namespaced && can(kind, "list"));
        for kind in counted.filter(|kind| names.iter().any(|name| quota::concerns(name, kind))) {
            for object in self.objects(kind, &key.namespace).await? {
                if quota::is_about(&one, kind, &object) {
                    pod::add(&mut used, &quota::bounded(&one, &quota::usage(kind, &object)));
                }
            }
        }
        Ok(View { quota: Some(one), used })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

/// Writes the status when it says something else.
pub(crate) fn plan(view: &View, _: Timestamp) -> Plan<Step> {
    let Some(quota) = &view.quota else { return Plan::empty() };
    let hard = quota["spec"]["hard"].as_object().cloned().unwrap_or_default();
    let used: Map<String, Value> = hard
        .keys()
        .map(|name| (name.clone(), view.used.get(name).unwrap_or(&Quantity::ZERO).to_string().into()))
        .collect();
    let status = json!({ "hard": hard, "used": used });
    if quota["status"] == status {
        return Plan::empty();
    }
    let mut object = quota.clone();
    object["status"] = status;
    let text = |field: &str| quota["metadata"][field].as_str().unwrap_or_default().to_owned();
    let at = Place {
        api_version: "v1".to_owned(),
        kind: "ResourceQuota".to_owned(),
        plural: "resourcequotas".to_owned(),
        namespace: Some(text("namespace")),
        name: text("name"),
    };
    object["apiVersion"] = "v1".into();
    object["kind"] = "ResourceQuota".into();
    Plan::in_turn(vec![Step::Put { at, part: Part::Status, object }])
}

/// The quotas of a namespace, to be counted again.
pub(crate) fn of_namespace(quotas: &Cache<ResourceQuota>, namespace: &str) -> Vec<Key> {
    let snapshot = quotas.snapshot();
    let mine = snapshot.range(Key::new(namespace, "")..).take_while(|(key, _)| key.namespace == namespace);
    mine.map(|(key, _): (&Key, &Arc<ResourceQuota>)| key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_what_is_used_of_every_bound() {
        let quota = json!({ "metadata": { "name": "q", "namespace": "n" }, "spec": { "hard": { "pods": "5", "cpu": "1" } } });
        let used = Amounts::from([("pods".to_owned(), Quantity::from_count(2))]);
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let plan = |quota: &Value| super::plan(&View { quota: Some(quota.clone()), used: used.clone() }, now);
        let steps = plan(&quota).steps;
        let [Step::Put { part: Part::Status, object, .. }] = steps.as_slice() else { panic!("{steps:?}") };
        assert_eq!(
            object["status"],
            json!({ "hard": { "pods": "5", "cpu": "1" }, "used": { "pods": "2", "cpu": "0" } })
        );
        assert!(plan(object).steps.is_empty(), "what is said already is not written again");
    }
}
