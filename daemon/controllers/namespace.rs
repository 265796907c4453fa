//! Namespace: empties a namespace that is to go, then lets it go.
//!
//! Invariant: the finalizer is taken only after the cluster itself listed every kind in the namespace as empty.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Cache, Key};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::PartialObjectMeta;
use reconcile::{Plan, Reconciler};
use serde::Deserialize;

use crate::Error;
use crate::defined::Defined;
use crate::garbage::{Node, place};
use crate::step::{self, Door, Part, Place, Propagation, Step};

const FINALIZER: &str = "kubernetes";

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone, or not on its way out.
    pub(crate) namespace: Option<Arc<Namespace>>,
    /// Everything in it.
    pub(crate) content: Vec<Node>,
}

/// Empties namespaces.
pub(crate) struct Namespaces {
    client: Door,
    namespaces: Cache<Namespace>,
    defined: Arc<Defined>,
}

impl Namespaces {
    /// Over this cache; namespaces may hold objects of defined kinds too.
    pub(crate) fn new(client: Door, namespaces: Cache<Namespace>, defined: Arc<Defined>) -> Namespaces {
        Namespaces { client, namespaces, defined }
    }
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    items: Vec<PartialObjectMeta>,
}

impl Reconciler for Namespaces {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "namespace";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(View::default()) };
        if namespace.metadata.deletion_timestamp.is_none() {
            return Ok(View::default());
        }
        let mut content = Vec::new();
        let kinds = api::kinds::stored_kinds().chain(self.defined.all());
        for kind in kinds.filter(|kind| kind.namespaced && can(kind, "list")) {
            let at = place(kind, Some(key.name.clone()), String::new());
            let request = Request::get(at.collection())
                .header("accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
                .body(Vec::new())
                .expect("a path made of names");
            let listed: Listed = match self.client.request(request).await {
                // Its definition went meanwhile, and with it all there was.
                Err(error) if kind.custom().is_some() && client::is_not_found(&error) => continue,
                answer => {
                    answer.map_err(|source| Error::Read { what: at.to_string(), source: Box::new(source) })?
                }
            };
            content.extend(listed.items.iter().map(|object| Node::new(kind, &object.metadata)));
        }
        Ok(View { namespace: Some(namespace), content })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &Key, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

/// Whether a kind can be listed, deleted and so on.
pub(crate) fn can(kind: &api::kinds::Kind, verb: &str) -> bool {
    kind.verbs.iter().any(|known| known == verb)
}

/// Deletes what is not going yet; says what is still there; takes the finalizer from an empty namespace.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(namespace) = &view.namespace else { return Plan::empty() };
    let finalizers = namespace.spec.iter().filter_map(|spec| spec.finalizers.as_ref()).flatten();
    if view.content.is_empty() {
        let rest: Vec<String> = finalizers.clone().filter(|one| *one != FINALIZER).cloned().collect();
        if rest.len() == finalizers.count() {
            return Plan::empty();
        }
        let mut namespace = Namespace::clone(namespace);
        namespace.spec.get_or_insert_default().finalizers = (!rest.is_empty()).then_some(rest);
        let object = serde_json::to_value(&namespace).expect("a Kubernetes object can be written as JSON");
        return Plan::in_turn(vec![Step::Put { at: Place::of(&namespace), part: Part::Finalize, object }]);
    }
    // As documented: pods go first, and nothing else before the last of them is gone, so that none loses what it needs
    // to end well.
    let pods: Vec<&Node> = view.content.iter().filter(|node| is_pod(node)).collect();
    let turn = if pods.is_empty() { view.content.iter().collect() } else { pods };
    let stays = turn.iter().filter(|node| !node.deleting && can(node.kind, "delete"));
    let deletes: Vec<Step> = stays
        .map(|node| Step::Delete {
            at: node.place(),
            uid: node.uid.clone(),
            propagation: Propagation::Background,
            note: None,
        })
        .collect();
    if !deletes.is_empty() {
        // Not every kind tells of what goes (events do not), so it is looked at again as soon as all is asked to go.
        return Plan::in_turn(vec![Step::Together(deletes)]).again_at(now);
    }
    let mut reported = Namespace::clone(namespace);
    report(&mut reported, &turn, now);
    if reported.status == namespace.status {
        Plan::empty()
    } else {
        Plan::in_turn(vec![Step::status(&reported)])
    }
}

fn is_pod(node: &Node) -> bool {
    node.kind.group.is_empty() && node.kind.kind == "Pod"
}

/// The conditions by which Kubernetes tells why a namespace is still there.
fn report(namespace: &mut Namespace, content: &[&Node], now: Timestamp) {
    let status = namespace.status.get_or_insert_default();
    status.phase = Some("Terminating".to_owned());
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for node in content {
        *kinds.entry(format!("{}.{}", node.kind.plural, node.kind.group)).or_default() += 1;
        for finalizer in &node.finalizers {
            *finalizers.entry(finalizer).or_default() += 1;
        }
    }
    let list = |parts: Vec<String>| parts.join(", ");
    let kinds = list(kinds.iter().map(|(kind, n)| format!("{kind} has {n} resource instances")).collect());
    let held = list(finalizers.iter().map(|(one, n)| format!("{one} in {n} resource instances")).collect());
    let conditions = status.conditions.get_or_insert_default();
    let mut set = |kind: &str, value: &str, reason: &str, message: String| {
        let known = conditions.iter().position(|known| known.type_ == kind);
        if let Some(at) = known
            && conditions[at].status == value
            && conditions[at].message.as_ref() == Some(&message)
        {
            return;
        }
        let condition = NamespaceCondition {
            type_: kind.to_owned(),
            status: value.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(Timestamp::from_second(now.as_second()).unwrap_or(now))),
        };
        match known {
            Some(at) => conditions[at] = condition,
            None => conditions.push(condition),
        }
    };
    set(
        "NamespaceDeletionDiscoveryFailure",
        "False",
        "ResourcesDiscovered",
        "All resources successfully discovered".to_owned(),
    );
    set(
        "NamespaceDeletionGroupVersionParsingFailure",
        "False",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed".to_owned(),
    );
    set(
        "NamespaceDeletionContentFailure",
        "False",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization".to_owned(),
    );
    set(
        "NamespaceContentRemaining",
        "True",
        "SomeResourcesRemain",
        format!("Some resources are remaining: {kinds}"),
    );
    if held.is_empty() {
        let message = "All content-preserving finalizers finished".to_owned();
        set("NamespaceFinalizersRemaining", "False", "ContentHasNoFinalizers", message);
    } else {
        let message = format!("Some content in the namespace has finalizers remaining: {held}");
        set("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", message);
    }
}
