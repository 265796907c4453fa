//! Garbage: what is owned goes with its owners.
//!
//! Invariant: nothing is deleted because a cache does not show its owner: that the owner is gone is asked of the
//! cluster itself, by uid.
//! Invariant: an owner of a kind that this node does not know counts as present.

mod graph;

use std::sync::Arc;

use api::kinds::Kind;
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use reconcile::{Plan, Reconciler};
use serde_json::{Value, json};

use crate::Error;
use crate::defined::Defined;
use crate::step::{self, Door, Note, Part, Place, Propagation, Step};

pub(crate) use graph::{Graph, Node};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const COMPONENT: &str = "garbage-collector-controller";

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) node: Option<Arc<Node>>,
    /// Its owners and how they are.
    pub(crate) owners: Vec<(OwnerReference, Owner)>,
    /// What it owns.
    pub(crate) dependents: Vec<Arc<Node>>,
}

/// How an owner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// There, or not to be known.
    Present,
    /// On its way out, waiting for those it owns to go first.
    Waiting,
    /// Gone.
    Absent,
    /// In another namespace: as good as gone, as documented.
    Elsewhere,
    /// In a namespace, while what it is to own belongs to the cluster: documented as not to be resolved, so it stays.
    Misplaced,
}

/// Collects garbage. A key is the uid of an object.
pub(crate) struct Garbage {
    client: Door,
    graph: Arc<Graph>,
    defined: Arc<Defined>,
}

impl Garbage {
    /// Over this graph of objects, also of defined kinds.
    pub(crate) fn new(client: Door, graph: Arc<Graph>, defined: Arc<Defined>) -> Garbage {
        Garbage { client, graph, defined }
    }

    async fn owner(&self, node: &Node, reference: &OwnerReference) -> Result<Owner, Error> {
        if let Some(known) = self.graph.node(&reference.uid) {
            return Ok(state(node, reference, &known));
        }
        let known = api::kinds::by_kind(&reference.api_version, &reference.kind);
        let defined = || self.defined.find(&reference.api_version, &reference.kind);
        let Some(kind) = known.or_else(defined) else {
            return Ok(Owner::Present);
        };
        if kind.namespaced && node.namespace.is_none() {
            return Ok(Owner::Misplaced);
        }
        let namespace = node.namespace.clone().filter(|_| kind.namespaced);
        let at = place(kind, namespace, reference.name.clone());
        let request = Request::get(at.path()).body(Vec::new()).expect("a path made of names");
        match self.client.request::<Value>(request).await {
            Ok(live) if live["metadata"]["uid"] == json!(reference.uid) => Ok(Owner::Present),
            Ok(_) => Ok(Owner::Absent),
            Err(error) if client::is_not_found(&error) => Ok(Owner::Absent),
            Err(error) => Err(Error::Read { what: at.to_string(), source: Box::new(error) }),
        }
    }
}

fn state(node: &Node, reference: &OwnerReference, known: &Node) -> Owner {
    let elsewhere = known.namespace.is_some() && known.namespace != node.namespace;
    if elsewhere && node.namespace.is_none() {
        Owner::Misplaced
    } else if elsewhere {
        Owner::Elsewhere
    } else if known.kind.kind != reference.kind || known.name != reference.name {
        Owner::Absent
    } else if known.deleting && known.has(FOREGROUND) {
        Owner::Waiting
    } else {
        Owner::Present
    }
}

impl Reconciler for Garbage {
    type Key = String;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "garbage";

    async fn observe(&self, uid: &String) -> Result<View, Error> {
        let Some(node) = self.graph.node(uid) else { return Ok(View::default()) };
        let mut owners = Vec::new();
        if !node.deleting {
            for reference in &node.owners {
                owners.push((reference.clone(), self.owner(&node, reference).await?));
            }
        }
        Ok(View { owners, dependents: self.graph.dependents(uid), node: Some(node) })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, _: &String, step: Step) -> Result<(), Error> {
        step::act(&self.client, step, &|_| ()).await
    }
}

/// Deletes what nobody owns any more; lets an owner go when it waits for nothing more.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(node) = &view.node else { return Plan::empty() };
    if node.deleting {
        return Plan::in_turn(leave(node, &view.dependents));
    }
    let misplaced = |owner: &Owner| matches!(owner, Owner::Elsewhere | Owner::Misplaced);
    let mut steps: Vec<Step> = view
        .owners
        .iter()
        .filter(|(_, owner)| misplaced(owner))
        .map(|(at, _)| Step::Record(refused(node, at, now)))
        .collect();
    let gone: Vec<&str> = view
        .owners
        .iter()
        .filter(|(_, owner)| !matches!(owner, Owner::Present | Owner::Misplaced))
        .map(|(at, _)| at.uid.as_str())
        .collect();
    if gone.is_empty() {
        return Plan::in_turn(steps);
    }
    if gone.len() < view.owners.len() {
        steps.push(disowned(node, &gone));
        return Plan::in_turn(steps);
    }
    let waited_for = view.owners.iter().any(|(_, owner)| *owner == Owner::Waiting);
    let propagation = if node.has(ORPHAN) {
        Propagation::Orphan
    } else if node.has(FOREGROUND) || (waited_for && !view.dependents.is_empty()) {
        // An owner that waits waits for the whole tree below it.
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    steps.push(Step::Delete { at: node.place(), uid: node.uid.clone(), propagation, note: None });
    Plan::in_turn(steps)
}

/// That an owner is not where an owner may be.
fn refused(node: &Node, owner: &OwnerReference, now: Timestamp) -> Note {
    let namespace = node.namespace.as_deref().unwrap_or_default();
    let message = format!(
        "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace {namespace:?}",
        owner.api_version, owner.kind, owner.name, owner.uid
    );
    let about = ObjectReference {
        api_version: Some(node.kind.api_version()),
        kind: Some(node.kind.kind.clone()),
        namespace: node.namespace.clone(),
        name: Some(node.name.clone()),
        uid: Some(node.uid.clone()),
        ..ObjectReference::default()
    };
    Note::of(about, now).warns(COMPONENT, "OwnerRefInvalidNamespace", message)
}

/// What a deleted owner waits for.
fn leave(node: &Node, dependents: &[Arc<Node>]) -> Vec<Step> {
    if node.has(ORPHAN) {
        if dependents.is_empty() {
            return vec![unfinalized(node, ORPHAN)];
        }
        return vec![Step::Together(dependents.iter().map(|one| disowned(one, &[&node.uid])).collect())];
    }
    let blocks = |one: &Arc<Node>| {
        one.owners.iter().any(|owner| owner.uid == node.uid && owner.block_owner_deletion == Some(true))
    };
    if node.has(FOREGROUND) && !dependents.iter().any(blocks) {
        return vec![unfinalized(node, FOREGROUND)];
    }
    Vec::new()
}

fn disowned(node: &Node, gone: &[&str]) -> Step {
    let rest: Vec<_> = node.owners.iter().filter(|owner| !gone.contains(&owner.uid.as_str())).collect();
    changed(node, "ownerReferences", if rest.is_empty() { json!(null) } else { json!(rest) })
}

fn unfinalized(node: &Node, finalizer: &str) -> Step {
    let rest: Vec<_> = node.finalizers.iter().filter(|one| *one != finalizer).collect();
    changed(node, "finalizers", if rest.is_empty() { json!(null) } else { json!(rest) })
}

fn changed(node: &Node, field: &str, value: Value) -> Step {
    let patch = json!({"metadata": {
        field: value,
        "uid": node.uid,
        "resourceVersion": node.resource_version,
    }});
    Step::Patch { at: node.place(), part: Part::Whole, patch, note: None }
}

/// The place of an object whose kind is a row of the table.
pub(crate) fn place(kind: &Kind, namespace: Option<String>, name: String) -> Place {
    Place {
        api_version: kind.api_version(),
        kind: kind.kind.clone(),
        plural: kind.plural.clone(),
        namespace,
        name,
    }
}
