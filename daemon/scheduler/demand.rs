//! What a pod asks of a node: resources and host ports.
//!
//! Invariant: the sums are those of Kubernetes: containers and sidecars together, or the largest init container.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;

/// Counted by scores for a container that asks for no cpu: a tenth of one, as documented.
const LEAST_CPU: i64 = 100;
/// Counted by scores for a container that asks for no memory: 200 MiB, as documented.
const LEAST_MEMORY: i64 = 200 << 20;

/// Amounts of resources in the units the scheduler compares: thousandths of a cpu, bytes, pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// Thousandths.
    pub(crate) cpu: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes of `ephemeral-storage`.
    pub(crate) storage: i64,
    /// Pods.
    pub(crate) pods: i64,
    /// Everything else by name: huge pages, devices.
    others: Vec<(Arc<str>, i64)>,
}

/// What a node must have free.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Demand {
    /// Requests, `pods` among them.
    pub(crate) amounts: Amounts,
    /// cpu as the scores see it: a container that asks for nothing counts as a small one.
    pub(crate) scored_cpu: i64,
    /// The same of memory.
    pub(crate) scored_memory: i64,
    /// Ports of the host.
    pub(crate) ports: Vec<HostPort>,
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

impl Amounts {
    /// Reads amounts; what cannot be read was refused by validation before.
    pub(crate) fn read(written: Option<&BTreeMap<String, Written>>) -> Amounts {
        let mut amounts = Amounts::default();
        for (name, text) in written.into_iter().flatten() {
            if let Ok(quantity) = Quantity::parse(&text.0) {
                let whole = if name == "cpu" { quantity.as_milli() } else { quantity.as_bytes() };
                *amounts.slot(name) = i64::try_from(whole).unwrap_or(i64::MAX);
            }
        }
        amounts
    }

    /// The amount of one resource.
    pub(crate) fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.storage,
            "pods" => self.pods,
            other => self.others.iter().find(|(known, _)| **known == *other).map_or(0, |(_, amount)| *amount),
        }
    }

    /// Every resource of which there is something.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&str, i64)> {
        let known = [
            ("cpu", self.cpu),
            ("memory", self.memory),
            ("ephemeral-storage", self.storage),
            ("pods", self.pods),
        ];
        known.into_iter().chain(self.others()).filter(|(_, amount)| *amount != 0)
    }

    /// What has no field of its own.
    pub(crate) fn others(&self) -> impl Iterator<Item = (&str, i64)> {
        self.others.iter().map(|(name, amount)| (&**name, *amount))
    }

    /// More of everything.
    pub(crate) fn add(&mut self, more: &Amounts) {
        self.each(more, i64::saturating_add);
    }

    /// Less of everything.
    pub(crate) fn subtract(&mut self, less: &Amounts) {
        self.each(less, i64::saturating_sub);
        self.others.retain(|(_, amount)| *amount != 0);
    }

    /// Of each resource the larger amount.
    fn raise(&mut self, to: &Amounts) {
        self.each(to, i64::max);
    }

    fn each(&mut self, other: &Amounts, change: impl Fn(i64, i64) -> i64) {
        self.cpu = change(self.cpu, other.cpu);
        self.memory = change(self.memory, other.memory);
        self.storage = change(self.storage, other.storage);
        self.pods = change(self.pods, other.pods);
        for (name, amount) in &other.others {
            let slot = self.slot(name);
            *slot = change(*slot, *amount);
        }
    }

    fn slot(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.cpu,
            "memory" => &mut self.memory,
            "ephemeral-storage" => &mut self.storage,
            "pods" => &mut self.pods,
            other => {
                let at = match self.others.binary_search_by(|(known, _)| (**known).cmp(other)) {
                    Ok(at) => at,
                    Err(at) => {
                        self.others.insert(at, (other.into(), 0));
                        at
                    }
                };
                &mut self.others[at].1
            }
        }
    }
}

impl Demand {
    /// Of a pod.
    pub(crate) fn of(pod: &Pod) -> Demand {
        let Some(spec) = &pod.spec else { return Demand::default() };
        let mut amounts = total(spec, |container| granted(pod, container));
        let mut scored = total(spec, |container| {
            let mut amounts = granted(pod, container);
            let asks = |name: &str| {
                let requests = container.resources.as_ref().and_then(|all| all.requests.as_ref());
                requests.is_some_and(|requests| requests.contains_key(name))
            };
            if !asks("cpu") {
                amounts.cpu = LEAST_CPU;
            }
            if !asks("memory") {
                amounts.memory = LEAST_MEMORY;
            }
            amounts
        });
        // Requests of the pod as a whole stand above those of its containers.
        let whole = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        for (name, amount) in Amounts::read(whole).named() {
            *amounts.slot(name) = amount;
            *scored.slot(name) = amount;
        }
        let overhead = Amounts::read(spec.overhead.as_ref());
        amounts.add(&overhead);
        scored.add(&overhead);
        amounts.pods = 1;
        Demand { amounts, scored_cpu: scored.cpu, scored_memory: scored.memory, ports: host_ports(spec) }
    }
}

fn requests(resources: Option<&ResourceRequirements>) -> Amounts {
    Amounts::read(resources.and_then(|resources| resources.requests.as_ref()))
}

/// What a container asks for, or, while a resize is under way, the larger of that and what it was given.
fn granted(pod: &Pod, container: &Container) -> Amounts {
    let mut amounts = requests(container.resources.as_ref());
    let status = pod.status.as_ref();
    let all = status.into_iter().flat_map(|status| {
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten())
    });
    if let Some(known) = all.into_iter().find(|known| known.name == container.name) {
        amounts.raise(&Amounts::read(known.allocated_resources.as_ref()));
        amounts.raise(&requests(known.resources.as_ref()));
    }
    amounts
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let (mut sidecars, mut most) = (Amounts::default(), Amounts::default());
    for init in spec.init_containers.iter().flatten() {
        let mut during = of(init);
        during.add(&sidecars);
        if is_sidecar(init) {
            sidecars.clone_from(&during);
        }
        most.raise(&during);
    }
    let mut sum = sidecars;
    for container in &spec.containers {
        sum.add(&of(container));
    }
    sum.raise(&most);
    sum
}

fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|init| is_sidecar(init));
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
