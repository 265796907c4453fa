//! What a pod asks of a node: resources and host ports.
//!
//! Invariant: the sums are those of Kubernetes: containers and sidecars together, or the largest init container.

use std::collections::{BTreeMap, BTreeSet};

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;

/// Amounts by resource name.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// What a node must have free.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Demand {
    /// Requests, `pods` among them.
    pub(crate) amounts: Amounts,
    /// Requests as the scores see them: a container that asks for nothing counts as a small one.
    pub(crate) scored: Amounts,
    /// Ports of the host.
    pub(crate) ports: BTreeSet<HostPort>,
}

/// A port of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostPort {
    /// `TCP`, `UDP`, `SCTP`.
    pub(crate) protocol: String,
    /// The number.
    pub(crate) port: i32,
    /// Empty: every address.
    pub(crate) address: String,
}

impl HostPort {
    /// Whether both cannot be had at once.
    pub(crate) fn conflicts(&self, other: &HostPort) -> bool {
        let overlap = self.address == other.address || self.address.is_empty() || other.address.is_empty();
        self.protocol == other.protocol && self.port == other.port && overlap
    }
}

impl Demand {
    /// Of a pod.
    pub(crate) fn of(pod: &Pod) -> Demand {
        let Some(spec) = &pod.spec else { return Demand::default() };
        let mut amounts = total(spec, |container| requests(container.resources.as_ref()));
        let mut scored = total(spec, |container| {
            let mut amounts = requests(container.resources.as_ref());
            // As documented for Kubernetes' scores.
            for (name, least) in [("cpu", "100m"), ("memory", "200Mi")] {
                let least = Quantity::parse(least).unwrap_or(Quantity::ZERO);
                amounts.entry(name.to_owned()).or_insert(least);
            }
            amounts
        });
        // Requests of the pod as a whole stand above those of its containers.
        for (name, amount) in requests(spec.resources.as_ref()) {
            scored.insert(name.clone(), amount);
            amounts.insert(name, amount);
        }
        for (name, amount) in read(spec.overhead.as_ref()) {
            add(&mut scored, &name, &amount);
            add(&mut amounts, &name, &amount);
        }
        amounts.insert("pods".to_owned(), Quantity::from_count(1));
        Demand { amounts, scored, ports: host_ports(spec) }
    }
}

/// Adds to an amount.
pub(crate) fn add(amounts: &mut Amounts, name: &str, more: &Quantity) {
    match amounts.get_mut(name) {
        Some(amount) => *amount = amount.add(more),
        None => {
            amounts.insert(name.to_owned(), *more);
        }
    }
}

/// Reads amounts; what cannot be read was refused by validation before.
pub(crate) fn read(written: Option<&BTreeMap<String, Written>>) -> Amounts {
    let parse = |(name, amount): (&String, &Written)| Some((name.clone(), Quantity::parse(&amount.0).ok()?));
    written.into_iter().flatten().filter_map(parse).collect()
}

fn requests(resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>) -> Amounts {
    read(resources.and_then(|resources| resources.requests.as_ref()))
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for init in spec.init_containers.iter().flatten() {
        let mut during = of(init);
        let sidecar = init.restart_policy.as_deref() == Some("Always");
        for (name, amount) in &sidecars {
            add(&mut during, name, amount);
        }
        if sidecar {
            sidecars.clone_from(&during);
        }
        for (name, amount) in during {
            let known = most.entry(name).or_insert(amount);
            *known = (*known).max(amount);
        }
    }
    let mut sum = sidecars;
    for container in &spec.containers {
        for (name, amount) in of(container) {
            add(&mut sum, &name, &amount);
        }
    }
    for (name, amount) in most {
        let known = sum.entry(name).or_insert(amount);
        *known = (*known).max(amount);
    }
    sum
}

fn host_ports(spec: &PodSpec) -> BTreeSet<HostPort> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let on_host = if spec.host_network == Some(true) { Some(port.container_port) } else { None };
            let number = port.host_port.or(on_host).filter(|port| *port > 0)?;
            let address = port.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::").unwrap_or_default();
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some(HostPort { protocol, port: number, address })
        })
        .collect()
}
