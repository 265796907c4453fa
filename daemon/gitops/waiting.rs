//! Which applications wait for what pods and endpoints will show.
//!
//! Invariant: a pod wakes those that wait for its workload or for anything of its namespace, and nobody else: among a thousand
//! applications in one namespace a change costs what it concerns.

use std::collections::{BTreeMap, BTreeSet};

use kube::api::DynamicObject;

use crate::health;

/// What an application waits for in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Awaited {
    /// What a workload or a Service of this name shows in its pods and endpoints.
    Named(String),
    /// Whatever pod or endpoint changes.
    Any,
}

impl Awaited {
    /// What to wait for of an unsettled object; nothing when its own changes tell all.
    pub(crate) fn of(kind: &str, name: &str) -> Option<Awaited> {
        match kind {
            _ if health::has_pods(kind) => Some(Awaited::Named(name.to_owned())),
            "Service" => Some(Awaited::Named(name.to_owned())),
            _ if health::looks_around(kind) => Some(Awaited::Any),
            _ => None,
        }
    }
}

/// A namespace and what is awaited in it.
pub(crate) type Place = (String, Awaited);

/// Who waits for what, both ways.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    places: BTreeMap<String, BTreeSet<Place>>,
    applications: BTreeMap<Place, BTreeSet<String>>,
}

impl Waiting {
    /// From now on an application waits for this, and for nothing else.
    pub(crate) fn set(&mut self, application: &str, places: BTreeSet<Place>) {
        let before = match places.is_empty() {
            true => self.places.remove(application),
            false if self.places.get(application) == Some(&places) => return,
            false => self.places.insert(application.to_owned(), places.clone()),
        };
        for place in before.into_iter().flatten() {
            if let Some(known) = self.applications.get_mut(&place) {
                known.remove(application);
                if known.is_empty() {
                    self.applications.remove(&place);
                }
            }
        }
        for place in places {
            self.applications.entry(place).or_default().insert(application.to_owned());
        }
    }

    /// The applications that a change of this pod or EndpointSlice concerns.
    pub(crate) fn concerned(&self, object: &DynamicObject) -> BTreeSet<String> {
        if self.applications.is_empty() {
            return BTreeSet::new();
        }
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let names = names(object);
        if names.is_empty() {
            // It may be about to belong to anybody here.
            let from = (namespace.clone(), Awaited::Named(String::new()));
            let here = self.applications.range(from..).take_while(|((known, _), _)| *known == namespace);
            return here.flat_map(|(_, applications)| applications.clone()).collect();
        }
        let awaited = names.into_iter().map(Awaited::Named).chain([Awaited::Any]);
        let found = awaited.filter_map(|awaited| self.applications.get(&(namespace.clone(), awaited)));
        found.flatten().cloned().collect()
    }
}

/// The Service of an EndpointSlice; the owner of a pod, and what may own that one: a Deployment's ReplicaSets bear its name
/// with a hash behind it.
fn names(object: &DynamicObject) -> Vec<String> {
    let meta = &object.metadata;
    let service = meta.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
    if let Some(service) = service {
        return vec![service.clone()];
    }
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) else { return Vec::new() };
    let above = owner.name.rsplit_once('-').map(|(above, _)| above.to_owned());
    [Some(owner.name.clone()), above].into_iter().flatten().collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(metadata: Value) -> DynamicObject {
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    fn pod(namespace: &str, owner: &str) -> DynamicObject {
        object(json!({"name": "p", "namespace": namespace, "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": "1", "controller": true}]}))
    }

    fn waits(places: &[(&str, Option<Awaited>)]) -> BTreeSet<Place> {
        let places = places
            .iter()
            .filter_map(|(namespace, awaited)| Some(((*namespace).to_owned(), awaited.clone()?)));
        places.collect()
    }

    #[test]
    fn a_pod_wakes_who_waits_for_its_workload_and_who_waits_for_anything() {
        let mut waiting = Waiting::default();
        for at in 0..100 {
            let name = format!("web-{at}");
            waiting.set(&name, waits(&[("default", Awaited::of("Deployment", &name))]));
        }
        waiting.set("routes", waits(&[("default", Awaited::of("Ingress", "r"))]));
        waiting.set("far", waits(&[("other", Awaited::of("Ingress", "r"))]));
        waiting.set("plain", waits(&[("default", Awaited::of("ConfigMap", "c"))]));
        let names = |found: BTreeSet<String>| found.into_iter().collect::<Vec<_>>();
        assert_eq!(names(waiting.concerned(&pod("default", "web-7-5d4f"))), ["routes", "web-7"]);
        assert_eq!(names(waiting.concerned(&pod("other", "web-7-5d4f"))), ["far"]);
        let slice = object(json!({"name": "web-3-abcde", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web-3"}}));
        assert_eq!(names(waiting.concerned(&slice)), ["routes", "web-3"]);
        let orphan = object(json!({"name": "p", "namespace": "default"}));
        assert_eq!(waiting.concerned(&orphan).len(), 101, "any workload may take it");
    }

    #[test]
    fn who_waits_no_more_is_not_woken() {
        let mut waiting = Waiting::default();
        waiting.set("a", waits(&[("default", Awaited::of("StatefulSet", "db"))]));
        assert_eq!(waiting.concerned(&pod("default", "db")).len(), 1);
        waiting.set("a", waits(&[("default", Awaited::of("StatefulSet", "other"))]));
        assert!(waiting.concerned(&pod("default", "db")).is_empty());
        waiting.set("a", BTreeSet::new());
        assert!(waiting.concerned(&pod("default", "other")).is_empty() && waiting.places.is_empty());
    }
}
