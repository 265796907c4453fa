//! The instance's one nftables table: its chains, its maps, and how a table of services becomes their elements.
//!
//! A new connection to a service is looked up once and led to the chain for the number of its endpoints; there a random
//! index below it leads to the endpoint. So a change costs the elements that changed; where the number of a service's
//! endpoints is among them, the kernel also checks once where each service leads (0.15 ms for 1,000). A lookup of the
//! number and one for its chain would spare that check, but the `nft` program aborts on a lookup by what a map gave.
//!
//! Invariant: every change is one transaction; connections never see half of one.
//! Invariant: the `nft` program lists the table and takes back what it lists, so names are no words of its language.
//! Invariant: `applied` is what the kernel holds, or nothing when that is not known.

use crate::cidr::Cidr;
use crate::netlink::Socket;
use crate::nft::{self, Ct, Data, Elem, Expr, Hook, Meta, Reg, Set, Transaction, Type, Value};
use crate::services::{Change, Changes, Element, Endpoint, Front, Protocol, ServiceTable, elements, plan};
use crate::{Error, conntrack};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

/// What the fixed part of the table is made from.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) table: String,
    /// How the names of the host's ends begin.
    pub(crate) links: String,
    pub(crate) pod_cidr: Cidr,
    pub(crate) service_cidr: Cidr,
    pub(crate) dns: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
}

/// The table in the kernel.
pub(crate) struct Rules {
    layout: Layout,
    socket: Socket,
    applied: Option<Applied>,
}

struct Applied {
    table: ServiceTable,
    sizes: Sizes,
}

/// The numbers of endpoints that have a chain: of services and of node ports.
#[derive(Default)]
struct Sizes {
    services: BTreeSet<u32>,
    ports: BTreeSet<u32>,
}

impl Rules {
    /// Makes sure that there is a table: the one a process before this one left, or one without services.
    pub(crate) fn open(layout: Layout) -> Result<Rules, Error> {
        let failed = |source| failure(&layout, "open a netfilter socket to look", source);
        let socket = Socket::netfilter().map_err(failed)?;
        let exists = nft::table_exists(&socket, &layout.table).map_err(failed)?;
        let mut rules = Rules { layout, socket, applied: None };
        if !exists {
            rules.replace(ServiceTable::default())?;
            // The first call of a new process replaces, whatever it finds.
            rules.applied = None;
        }
        Ok(rules)
    }

    /// Makes the kernel's table equal to the wanted one.
    pub(crate) fn apply(&mut self, wanted: ServiceTable) -> Result<Changes, Error> {
        let Some(applied) = self.applied.take() else { return self.replace(wanted) };
        let changes = plan(&applied.table, &wanted);
        if changes.is_empty() {
            self.applied = Some(applied);
            return Ok(Changes::default());
        }
        match self.update(applied.sizes, &changes) {
            Ok((elements, sizes)) => {
                if changes.iter().any(removes_udp_endpoint) {
                    self.forget_stale(&wanted);
                }
                self.applied = Some(Applied { table: wanted, sizes });
                Ok(Changes { replaced: false, elements })
            }
            // Somebody else took the table, or elements of it, away: what is there is not known any more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EEXIST)) => {
                tracing::warn!(table = %self.layout.table, %error, "table was changed by others, replacing it");
                self.replace(wanted)
            }
            Err(source) => {
                Err(failure(&self.layout, &format!("apply {} changes of services", changes.len()), source))
            }
        }
    }

    /// Takes the table away.
    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        self.applied = None;
        let mut transaction = Transaction::new(&self.layout.table);
        transaction.delete_table();
        match transaction.commit(&self.socket) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                Err(failure(&self.layout, "remove all rules", error))
            }
            _ => Ok(()),
        }
    }

    fn update(&self, mut sizes: Sizes, changes: &[Change]) -> io::Result<(usize, Sizes)> {
        let mut transaction = Transaction::new(&self.layout.table);
        let elements = write_changes(&mut transaction, &self.layout, &mut sizes, changes);
        transaction.commit(&self.socket)?;
        Ok((elements, sizes))
    }

    /// New flows are right already; that old ones stay a while is no reason to do everything again.
    fn forget_stale(&self, table: &ServiceTable) {
        match conntrack::forget_stale(&self.socket, table) {
            Ok(0) => {}
            Ok(flows) => tracing::debug!(flows, "UDP flows to endpoints that are gone are forgotten"),
            Err(error) => {
                tracing::warn!(%error, "UDP flows to endpoints that are gone could not be forgotten")
            }
        }
    }

    fn replace(&mut self, wanted: ServiceTable) -> Result<Changes, Error> {
        let mut transaction = Transaction::new(&self.layout.table);
        // Added first, so that it can be deleted whether it was there or not.
        transaction.add_table();
        transaction.delete_table();
        transaction.add_table();
        write_layout(&mut transaction, &self.layout);
        let mut sizes = Sizes::default();
        let changes: Vec<Change> = elements(&wanted).into_iter().map(Change::Add).collect();
        let elements = write_changes(&mut transaction, &self.layout, &mut sizes, &changes);
        transaction
            .commit(&self.socket)
            .map_err(|source| failure(&self.layout, &format!("write {elements} elements"), source))?;
        self.forget_stale(&wanted);
        self.applied = Some(Applied { table: wanted, sizes });
        Ok(Changes { replaced: true, elements })
    }
}

fn removes_udp_endpoint(change: &Change) -> bool {
    let Change::Remove(Element::Endpoint(front, ..)) = change else { return false };
    let protocol = match front {
        Front::Service(key) => key.protocol,
        Front::NodePort(_, protocol) => *protocol,
    };
    protocol == Protocol::Udp
}

fn failure(layout: &Layout, attempt: &str, source: io::Error) -> Error {
    Error::Rules { attempt: attempt.to_owned(), table: layout.table.clone(), source }
}

const SERVICE: &[Type] = &[Type::Address, Type::Protocol, Type::Port];
const PORT: &[Type] = &[Type::Protocol, Type::Port];
const TARGET: Data = Data::Values(&[Type::Address, Type::Port]);

/// Every set and map of the table.
const SETS: [Set; 8] = [
    Set { name: "services", key: SERVICE, data: Data::Verdict },
    Set { name: "endpoints", key: &[Type::Address, Type::Protocol, Type::Port, Type::Random], data: TARGET },
    Set { name: "ports", key: PORT, data: Data::Verdict },
    Set { name: "port-endpoints", key: &[Type::Protocol, Type::Port, Type::Random], data: TARGET },
    Set { name: "refused", key: SERVICE, data: Data::Nothing },
    Set { name: "refused-ports", key: PORT, data: Data::Nothing },
    Set { name: "hairpin", key: &[Type::Address, Type::Address], data: Data::Nothing },
    Set { name: "remote", key: SERVICE, data: Data::Nothing },
];

const R0: Reg = Reg(0);
const R1: Reg = Reg(1);
const R2: Reg = Reg(2);
const R3: Reg = Reg(3);

fn write_layout(transaction: &mut Transaction<'_>, layout: &Layout) {
    for (id, set) in (1..).zip(&SETS) {
        transaction.add_set(set, id);
    }
    write_translation(transaction);
    write_sources(transaction, layout);
    write_refusals(transaction, layout);
    // Links accept packets for 127.0.0.1 so that answers to node ports come back; nobody else may use that.
    transaction.add_base_chain("guard", "filter", Hook::Prerouting, -300);
    let mut guard = vec![Expr::Meta(Meta::IifName, R0), Expr::Equal(R0, layout.links.clone().into_bytes())];
    guard.extend(within(Expr::Destination(R0), loopback()));
    guard.push(Expr::Drop);
    transaction.add_rule("guard", &guard);
}

/// Services to endpoints, for what comes from elsewhere and for what starts on this machine.
fn write_translation(transaction: &mut Transaction<'_>) {
    for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        transaction.add_base_chain(chain, "nat", hook, -100);
        let mut by_service = service_key();
        by_service.push(Expr::VerdictMap("services", R0));
        transaction.add_rule(chain, &by_service);
        let mut by_port = to_this_machine();
        by_port.extend(port_key());
        by_port.push(Expr::VerdictMap("ports", R0));
        transaction.add_rule(chain, &by_port);
    }
}

/// Whose source address must change, so that answers find back.
fn write_sources(transaction: &mut Transaction<'_>, layout: &Layout) {
    const CHAIN: &str = "postrouting";
    transaction.add_base_chain(CHAIN, "nat", Hook::Postrouting, 100);
    let from_gateway = || [Expr::Load(R0, layout.gateway.octets().to_vec()), Expr::Snat(R0)];
    let leaves =
        || [Expr::Meta(Meta::Oif, R0), Expr::Different(R0, crate::rtnl::LOOPBACK.to_ne_bytes().to_vec())];

    // Whoever reaches itself through a service would answer itself directly.
    let mut hairpin = translated();
    hairpin.extend([Expr::Source(R0), Expr::Destination(R1), Expr::In("hairpin", R0)]);
    hairpin.extend(from_gateway());
    transaction.add_rule(CHAIN, &hairpin);

    // A node port asked for on 127.0.0.1: that source means something else inside.
    let mut from_loopback = within(Expr::Source(R0), loopback());
    from_loopback.extend(within(Expr::Destination(R0), layout.pod_cidr));
    from_loopback.extend(from_gateway());
    transaction.add_rule(CHAIN, &from_loopback);

    // Nobody outside knows our range.
    let mut outside = within(Expr::Source(R0), layout.pod_cidr);
    outside.extend([
        Expr::Destination(R0),
        Expr::Mask(R0, layout.pod_cidr.netmask().octets().to_vec()),
        Expr::Different(R0, layout.pod_cidr.base().octets().to_vec()),
    ]);
    outside.extend(leaves());
    outside.push(Expr::Masquerade);
    transaction.add_rule(CHAIN, &outside);

    // An endpoint on another machine would answer the client directly.
    let mut remote = translated();
    remote.extend(leaves());
    remote.extend(service_key());
    remote.extend([Expr::In("remote", R0), Expr::Masquerade]);
    transaction.add_rule(CHAIN, &remote);
}

/// What nobody answers is refused at once, so that clients need not wait.
fn write_refusals(transaction: &mut Transaction<'_>, layout: &Layout) {
    transaction.add_chain("refuse-now");
    let tcp = [Expr::Meta(Meta::L4Proto, R0), Expr::Equal(R0, vec![6]), Expr::RejectWithReset];
    transaction.add_rule("refuse-now", &tcp);
    transaction.add_rule("refuse-now", &[Expr::RejectAsUnreachable]);

    transaction.add_chain("refuse");
    let mut service = service_key();
    service.extend([Expr::In("refused", R0), Expr::Jump("refuse-now")]);
    transaction.add_rule("refuse", &service);
    let mut port = to_this_machine();
    port.extend(port_key());
    port.extend([Expr::In("refused-ports", R0), Expr::Jump("refuse-now")]);
    transaction.add_rule("refuse", &port);
    let dns = layout.dns.octets().to_vec();
    transaction.add_rule("refuse", &[Expr::Destination(R0), Expr::Equal(R0, dns), Expr::Return]);
    // Still on its way to a service's address: no service has it.
    let mut unknown = within(Expr::Destination(R0), layout.service_cidr);
    unknown.push(Expr::Jump("refuse-now"));
    transaction.add_rule("refuse", &unknown);

    for (chain, hook) in [("input", Hook::Input), ("forward", Hook::Forward), ("filter-output", Hook::Output)]
    {
        transaction.add_base_chain(chain, "filter", hook, 0);
        const NEW: u32 = 8;
        let mut new = has_bits(Expr::Ct(Ct::State, R0), NEW);
        new.push(Expr::Jump("refuse"));
        transaction.add_rule(chain, &new);
    }
}

fn write_changes(
    transaction: &mut Transaction<'_>,
    layout: &Layout,
    sizes: &mut Sizes,
    changes: &[Change],
) -> usize {
    let mut removed: BTreeMap<&str, Vec<Elem>> = BTreeMap::new();
    let mut added: BTreeMap<&str, Vec<Elem>> = BTreeMap::new();
    for change in changes {
        let (into, element) = match change {
            Change::Remove(element) => (&mut removed, element),
            Change::Add(element) => (&mut added, element),
        };
        if let Some((set, elem)) = kernel_element(element, layout.pod_cidr) {
            into.entry(set).or_default().push(elem);
        }
        if let Change::Add(Element::Count(front, count)) = change {
            write_size(transaction, sizes, front, *count);
        }
    }
    for (set, elements) in &removed {
        transaction.delete_elements(set, elements);
    }
    for (set, elements) in &added {
        transaction.add_elements(set, elements);
    }
    removed.values().chain(added.values()).map(Vec::len).sum()
}

/// Adds the chain that picks one of `count` endpoints, if it is not there.
fn write_size(transaction: &mut Transaction<'_>, sizes: &mut Sizes, front: &Front, count: u32) {
    let (known, mut rule) = match front {
        Front::Service(_) => (&mut sizes.services, service_key()),
        Front::NodePort(..) => (&mut sizes.ports, port_key()),
    };
    if !known.insert(count) {
        return;
    }
    match front {
        Front::Service(_) => rule.extend([Expr::Random(count, R3), Expr::Map("endpoints", R0, R0)]),
        Front::NodePort(..) => rule.extend([Expr::Random(count, R2), Expr::Map("port-endpoints", R0, R0)]),
    }
    rule.push(Expr::Dnat(R0, R1));
    let chain = size_chain(front, count);
    transaction.add_chain(&chain);
    transaction.add_rule(&chain, &rule);
}

fn size_chain(front: &Front, count: u32) -> String {
    match front {
        Front::Service(_) => format!("service-{count}"),
        Front::NodePort(..) => format!("port-{count}"),
    }
}

/// The set an element belongs to and how it looks there, or nothing if the kernel needs none.
fn kernel_element(element: &Element, pod_cidr: Cidr) -> Option<(&'static str, Elem)> {
    let of_front = |front: &Front, service: &'static str, port: &'static str| match front {
        Front::Service(key) => (service, service_bytes(key.ip, key.protocol.number(), key.port)),
        Front::NodePort(number, protocol) => (port, port_bytes(protocol.number(), *number)),
    };
    let (set, key, value) = match element {
        Element::Count(front, count) => {
            let (set, key) = of_front(front, "services", "ports");
            (set, key, Value::Goto(size_chain(front, *count)))
        }
        Element::Endpoint(front, index, Endpoint { ip, port }) => {
            let (set, mut key) = of_front(front, "endpoints", "port-endpoints");
            key.extend(index.to_ne_bytes());
            (set, key, Value::Bytes([&ip.octets()[..], &padded_port(*port)].concat()))
        }
        Element::Refused(front) => {
            let (set, key) = of_front(front, "refused", "refused-ports");
            (set, key, Value::Nothing)
        }
        Element::Hairpin(ip) => ("hairpin", [ip.octets(), ip.octets()].concat(), Value::Nothing),
        Element::Reached(endpoint, _) if pod_cidr.contains(endpoint.ip) => return None,
        Element::Reached(Endpoint { ip, port }, protocol) => {
            ("remote", service_bytes(*ip, protocol.number(), *port), Value::Nothing)
        }
    };
    Some((set, Elem { key, value }))
}

fn service_bytes(ip: Ipv4Addr, protocol: u8, port: u16) -> Vec<u8> {
    [&ip.octets()[..], &port_bytes(protocol, port)].concat()
}

fn port_bytes(protocol: u8, port: u16) -> Vec<u8> {
    [[protocol, 0, 0, 0], padded_port(port)].concat()
}

fn padded_port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// Loads the key of `services` into the registers from 0 on.
fn service_key() -> Vec<Expr> {
    vec![Expr::Destination(R0), Expr::Meta(Meta::L4Proto, R1), Expr::DestinationPort(R2)]
}

/// Loads the key of `ports` into the registers from 0 on.
fn port_key() -> Vec<Expr> {
    vec![Expr::Meta(Meta::L4Proto, R0), Expr::DestinationPort(R1)]
}

/// Goes on only with packets to an address of this machine.
fn to_this_machine() -> Vec<Expr> {
    let local = u32::from(libc::RTN_LOCAL).to_ne_bytes().to_vec();
    vec![Expr::DestinationKind(R0), Expr::Equal(R0, local)]
}

/// Goes on only with connections whose destination was changed.
fn translated() -> Vec<Expr> {
    const DESTINATION_CHANGED: u32 = 32;
    has_bits(Expr::Ct(Ct::Status, R0), DESTINATION_CHANGED)
}

fn has_bits(load: Expr, bits: u32) -> Vec<Expr> {
    vec![load, Expr::Mask(R0, bits.to_ne_bytes().to_vec()), Expr::Different(R0, vec![0; 4])]
}

/// Goes on only if the address that `load` puts in register 0 lies in the range.
fn within(load: Expr, cidr: Cidr) -> Vec<Expr> {
    let mask = Expr::Mask(R0, cidr.netmask().octets().to_vec());
    vec![load, mask, Expr::Equal(R0, cidr.base().octets().to_vec())]
}

fn loopback() -> Cidr {
    Cidr::around(Ipv4Addr::LOCALHOST, 8)
}
