//! LoadBalancer: the nodes themselves serve Services of that type, each at its own address.
//!
//! Invariant: a port that the machine listens on, or that another Service has, is never taken: its Service waits and
//! says why.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use client::{Cache, Key, key_of};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service};
use reconcile::{Plan, Reconciler};
use serde_json::{Value, json};

use crate::Error;
use crate::cluster::{Listening, Port};
use crate::step::{self, Door, Note, Part, Place, Step};

const COMPONENT: &str = "service-controller";

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) service: Option<Arc<Service>>,
    /// The addresses of the nodes.
    pub(crate) addresses: Vec<String>,
    /// Ports that others have, and who.
    pub(crate) taken: BTreeMap<Port, String>,
    /// What was told of it last.
    pub(crate) told: Option<String>,
}

/// Keeps the status of Services of type LoadBalancer.
pub(crate) struct LoadBalancers {
    client: Door,
    services: Cache<Service>,
    nodes: Cache<Node>,
    listening: Listening,
    told: Mutex<BTreeMap<Key, String>>,
}

impl LoadBalancers {
    /// Over these caches.
    pub(crate) fn new(
        client: Door,
        services: Cache<Service>,
        nodes: Cache<Node>,
        listening: Listening,
    ) -> LoadBalancers {
        LoadBalancers { client, services, nodes, listening, told: Mutex::default() }
    }
}

impl Reconciler for LoadBalancers {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "loadbalancer";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(service) = self.services.get(key) else { return Ok(View::default()) };
        let served = !ingress(&service).is_empty();
        let mut taken: BTreeMap<Port, String> = BTreeMap::new();
        // What it has it keeps: its own ports would look like those of a program.
        if is_ours(&service) && !served {
            let machine = (self.listening)().into_iter();
            taken.extend(machine.map(|port| (port, "a program on this machine".to_owned())));
        }
        for (other, one) in self.services.snapshot().iter().filter(|(other, _)| *other != key) {
            if is_ours(one) && !ingress(one).is_empty() {
                taken.extend(ports(one).into_iter().map(|port| (port, format!("Service {other}"))));
            }
        }
        let addresses = self.nodes.snapshot().values().flat_map(|node| addresses(node)).collect();
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        Ok(View { service: Some(service), addresses, taken, told })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, key: &Key, step: Step) -> Result<(), Error> {
        let message = if let Step::Record(note) = &step { Some(note.message.clone()) } else { None };
        if let Some(message) = message {
            self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), message);
        }
        step::act(&self.client, step, &|_| ()).await
    }
}

/// Whether a Service wants a load balancer and leaves it to the cluster which.
pub(crate) fn is_ours(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
    }) && service.metadata.deletion_timestamp.is_none()
}

/// Gives a Service the addresses of the nodes, or takes them away when it is no longer of that type.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(service) = &view.service else { return Plan::empty() };
    let elsewhere = service.spec.as_ref().is_some_and(|spec| spec.load_balancer_class.is_some());
    if elsewhere {
        return Plan::empty();
    }
    let mut steps = Vec::new();
    let mut wanted: Vec<Value> = Vec::new();
    if is_ours(service) {
        let clash = ports(service).into_iter().find_map(|port| {
            let who = view.taken.get(&port)?;
            Some(format!("port {}/{} belongs to {who}: choose another port, or free it", port.1, port.0))
        });
        match clash {
            None => {
                wanted = view.addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
            }
            Some(message) if view.told.as_ref() != Some(&message) => {
                let note = Note::about(&**service, now);
                steps.push(Step::Record(note.warns(COMPONENT, "SyncLoadBalancerFailed", message)));
            }
            Some(_) => {}
        }
    }
    let has: Vec<Value> = ingress(service).iter().map(|one| json!({"ip": one, "ipMode": "VIP"})).collect();
    if has != wanted {
        let balancer = if wanted.is_empty() { Value::Null } else { json!({"ingress": wanted}) };
        let patch = json!({"metadata": {"uid": service.metadata.uid}, "status": {"loadBalancer": balancer}});
        let note = Note::about(&**service, now);
        let told = note.says(COMPONENT, "EnsuredLoadBalancer", "Ensured load balancer".to_owned());
        let note = (!wanted.is_empty()).then_some(told);
        steps.push(Step::Patch { at: Place::of(&**service), part: Part::Status, patch, note });
    }
    Plan::in_turn(steps)
}

/// The addresses by which a node is reached.
fn addresses(node: &Node) -> Vec<String> {
    let status = node.status.as_ref();
    let all = status.into_iter().flat_map(|status| status.addresses.iter().flatten());
    all.filter(|address| address.type_ == "InternalIP").map(|address| address.address.clone()).collect()
}

fn ingress(service: &Service) -> Vec<String> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let all = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    all.filter_map(|one| one.ip.clone()).collect()
}

fn ports(service: &Service) -> Vec<Port> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        u16::try_from(port.port).ok().map(|number| (protocol, number))
    };
    ports.filter_map(port).collect()
}

/// The Services whose status may follow from another one, or from a node.
pub(crate) fn all_ours(services: &Cache<Service>) -> Vec<Key> {
    services
        .snapshot()
        .values()
        .filter(|service| is_ours(service))
        .map(|service| key_of(&**service))
        .collect()
}
