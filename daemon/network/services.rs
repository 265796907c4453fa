//! The table of services as wanted, and what changes between two of them. Pure.
//!
//! Invariant: `plan(a, a)` is empty, and applying `plan(a, b)` to `a` gives `b`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// What a client of a service asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The service's address.
    pub ip: Ipv4Addr,
    /// The service's port.
    pub port: u16,
    /// The service's protocol.
    pub protocol: Protocol,
}

/// Where it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address that answers.
    pub ip: Ipv4Addr,
    /// The port that answers.
    pub port: u16,
}

/// Every service of a machine. One without endpoints refuses connections at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTable {
    /// Services on addresses of their own.
    pub services: BTreeMap<ServiceKey, Vec<Endpoint>>,
    /// Services on a port of every address of the machine, 127.0.0.1 included.
    pub node_ports: BTreeMap<(u16, Protocol), Vec<Endpoint>>,
}

/// What a call of `apply_services` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether the whole table was replaced (the first call after open, or after somebody else touched it).
    pub replaced: bool,
    /// The number of elements added and removed.
    pub elements: usize,
}

/// Under what a client finds endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Front {
    /// An address and a port of a service.
    Service(ServiceKey),
    /// A port of the machine.
    NodePort(u16, Protocol),
}

/// One element of one of the kernel's maps and sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// The front has this many endpoints, one or more.
    Count(Front, u32),
    /// The front's endpoint at an index below its count.
    Endpoint(Front, u32, Endpoint),
    /// The front has no endpoints.
    Refused(Front),
    /// An address that may be answered by itself, and then needs another source address.
    Hairpin(Ipv4Addr),
    /// An endpoint, the protocol it is reached by; where it lies outside the pods' range it needs a masquerade.
    Reached(Endpoint, Protocol),
}

/// One step from the applied table to the wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Take an element away. Removals come first: an element may come back with other contents.
    Remove(Element),
    /// Add an element.
    Add(Element),
}

/// What must change for `applied` to become `wanted`, removals first.
///
/// Looks closely only at the fronts that differ, so that one change among thousands of services stays cheap.
pub fn plan(applied: &ServiceTable, wanted: &ServiceTable) -> Vec<Change> {
    let (before, after) = (fronts(applied), fronts(wanted));
    let differs = |front: &Front, endpoints: &[Endpoint], other: &BTreeMap<Front, &[Endpoint]>| {
        other.get(front).is_none_or(|theirs| *theirs != endpoints)
    };
    let gone: BTreeMap<_, _> = before.iter().filter(|(front, all)| differs(front, all, &after)).collect();
    let new: BTreeMap<_, _> = after.iter().filter(|(front, all)| differs(front, all, &before)).collect();
    let gone_elements: BTreeSet<Element> =
        gone.iter().flat_map(|(front, all)| of_front(**front, all)).collect();
    let new_elements: BTreeSet<Element> =
        new.iter().flat_map(|(front, all)| of_front(**front, all)).collect();
    // Some elements serve several fronts: they stay while one that did not change has them.
    let shared: BTreeSet<Element> = after
        .iter()
        .filter(|(front, _)| !new.contains_key(front))
        .flat_map(|(front, all)| shared_of(*front, all))
        .filter(|element| gone_elements.contains(element) || new_elements.contains(element))
        .collect();
    let stays = |element: &&Element| !shared.contains(element);
    let gone = gone_elements.difference(&new_elements).filter(stays).map(|element| Change::Remove(*element));
    let new = new_elements.difference(&gone_elements).filter(stays).map(|element| Change::Add(*element));
    gone.chain(new).collect()
}

/// Every element that makes a table real.
pub fn elements(table: &ServiceTable) -> BTreeSet<Element> {
    fronts(table).into_iter().flat_map(|(front, all)| of_front(front, all)).collect()
}

fn fronts(table: &ServiceTable) -> BTreeMap<Front, &[Endpoint]> {
    let services = table.services.iter().map(|(key, all)| (Front::Service(*key), all.as_slice()));
    let ports = table
        .node_ports
        .iter()
        .map(|((port, protocol), all)| (Front::NodePort(*port, *protocol), all.as_slice()));
    services.chain(ports).collect()
}

fn of_front(front: Front, all: &[Endpoint]) -> impl Iterator<Item = Element> {
    let count = u32::try_from(all.len()).expect("endpoints that fit in memory count in 32 bits");
    let head = if count == 0 { Element::Refused(front) } else { Element::Count(front, count) };
    let own = (0..count).zip(all).map(move |(index, endpoint)| Element::Endpoint(front, index, *endpoint));
    std::iter::once(head).chain(own).chain(shared_of(front, all))
}

/// The elements of a front that other fronts may have as well.
fn shared_of(front: Front, all: &[Endpoint]) -> impl Iterator<Item = Element> {
    let protocol = match front {
        Front::Service(key) => key.protocol,
        Front::NodePort(_, protocol) => protocol,
    };
    all.iter().flat_map(move |it| [Element::Hairpin(it.ip), Element::Reached(*it, protocol)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(last: u8) -> Endpoint {
        Endpoint { ip: Ipv4Addr::new(10, 1, 0, last), port: 8080 }
    }

    fn key(last: u8) -> ServiceKey {
        ServiceKey { ip: Ipv4Addr::new(10, 2, 0, last), port: 80, protocol: Protocol::Tcp }
    }

    fn services(services: &[(u8, &[u8])]) -> ServiceTable {
        let endpoints = |all: &[u8]| all.iter().map(|last| endpoint(*last)).collect();
        let services = services.iter().map(|(last, all)| (key(*last), endpoints(all))).collect();
        ServiceTable { services, node_ports: BTreeMap::new() }
    }

    #[test]
    fn an_endpoint_more_changes_the_count_and_adds_itself() {
        let front = Front::Service(key(1));
        let more = plan(&services(&[(1, &[2]), (9, &[2, 3])]), &services(&[(1, &[2, 4]), (9, &[2, 3])]));
        assert_eq!(
            more,
            [
                Change::Remove(Element::Count(front, 1)),
                Change::Add(Element::Count(front, 2)),
                Change::Add(Element::Endpoint(front, 1, endpoint(4))),
                Change::Add(Element::Hairpin(endpoint(4).ip)),
                Change::Add(Element::Reached(endpoint(4), Protocol::Tcp)),
            ]
        );
    }

    #[test]
    fn a_service_that_loses_its_last_endpoint_refuses() {
        let front = Front::Service(key(1));
        let less = plan(&services(&[(1, &[2]), (9, &[2])]), &services(&[(1, &[]), (9, &[2])]));
        assert_eq!(
            less,
            [
                Change::Remove(Element::Count(front, 1)),
                Change::Remove(Element::Endpoint(front, 0, endpoint(2))),
                Change::Add(Element::Refused(front)),
            ]
        );
    }

    fn tables() -> impl Strategy<Value = ServiceTable> {
        let endpoints = || proptest::collection::vec((0u8..6).prop_map(endpoint), 0..4);
        let services = proptest::collection::btree_map((0u8..5).prop_map(key), endpoints(), 0..5);
        let ports = proptest::collection::btree_map(
            (30000u16..30003, prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]),
            endpoints(),
            0..4,
        );
        (services, ports).prop_map(|(services, node_ports)| ServiceTable { services, node_ports })
    }

    proptest! {
        #[test]
        fn a_plan_leads_from_any_table_to_any_other(applied in tables(), wanted in tables()) {
            let mut kernel = elements(&applied);
            for change in plan(&applied, &wanted) {
                match change {
                    Change::Remove(element) => prop_assert!(kernel.remove(&element)),
                    Change::Add(element) => prop_assert!(kernel.insert(element)),
                }
            }
            prop_assert_eq!(kernel, elements(&wanted));
            prop_assert!(plan(&wanted, &wanted).is_empty());
        }
    }
}
