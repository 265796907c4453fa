//! The cluster's names as a table: from Services and EndpointSlices, as the "Kubernetes DNS-based service discovery"
//! specification has them. Pure.
//!
//! Invariant: every ancestor of a name is in the table, so that "no such name" and "no such record" are told apart.
//! Invariant: names are held in lower case, without the dot at the end.

use crate::Config;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use network::cidr::Cidr;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The specification's version, which `dns-version.<domain>` tells.
const VERSION: &str = "1.1.0";

/// Everything that is answered without asking others.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    pub(crate) domain: String,
    ranges: Vec<Cidr>,
    names: BTreeMap<String, BTreeSet<Record>>,
    reverse: BTreeMap<Ipv4Addr, BTreeSet<Record>>,
}

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Record {
    Address(Ipv4Addr),
    Service {
        port: u16,
        target: String,
    },
    /// Another name, perhaps of elsewhere.
    Alias(String),
    /// The name of an address.
    Pointer(String),
    NameServer(String),
    Text(String),
}

/// What the table says about a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The name exists, with these records; there may be none.
    Name(Vec<Record>),
    /// There is no such name.
    Nothing,
    /// Others know.
    Elsewhere,
}

impl Table {
    pub(crate) fn new<'a>(
        config: &Config,
        services: impl Iterator<Item = &'a Service>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Table {
        let domain = config.domain.trim_end_matches('.').to_ascii_lowercase();
        let mut table =
            Table { domain, ranges: config.ranges.clone(), names: BTreeMap::new(), reverse: BTreeMap::new() };
        table.add_itself(*config.listen.ip());
        let slices = by_service(slices);
        for service in services {
            table.add_service(service, &slices);
        }
        table
    }

    /// Looks a name up; it must be in lower case, without the dot at the end.
    pub(crate) fn find(&self, name: &str) -> Found {
        if let Some(address) = name.strip_suffix(".in-addr.arpa").and_then(reversed) {
            return match self.reverse.get(&address) {
                Some(records) => Found::Name(records.iter().cloned().collect()),
                None if self.ranges.iter().any(|range| range.contains(address)) => Found::Nothing,
                None => Found::Elsewhere,
            };
        }
        if let Some(records) = self.names.get(name) {
            return Found::Name(records.iter().cloned().collect());
        }
        match self.below_domain(name) {
            Some(inside) => pod(inside),
            None => Found::Elsewhere,
        }
    }

    /// The part of the name before the domain.
    fn below_domain<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_suffix(self.domain.as_str())?.strip_suffix('.')
    }

    fn add_itself(&mut self, address: Ipv4Addr) {
        let server = format!("ns.dns.{}", self.domain);
        self.add(&server, Record::Address(address));
        self.add(&self.domain.clone(), Record::NameServer(server));
        self.add(&format!("dns-version.{}", self.domain), Record::Text(VERSION.to_owned()));
        self.add_name(&format!("svc.{}", self.domain));
        self.add_name(&format!("pod.{}", self.domain));
    }

    fn add_service(&mut self, service: &Service, slices: &BySlice<'_>) {
        let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else {
            return;
        };
        let Some(spec) = &service.spec else { return };
        let own = format!("{name}.{namespace}.svc.{}", self.domain);
        if spec.type_.as_deref() == Some("ExternalName") {
            let alias =
                spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
            if !alias.is_empty() {
                self.add(&own, Record::Alias(alias));
            }
            return;
        }
        let ports = spec.ports.as_deref().unwrap_or_default();
        if spec.cluster_ip.as_deref() == Some("None") {
            self.add_name(&own);
            let key = (namespace.as_str(), name.as_str());
            for slice in slices.get(&key).into_iter().flatten() {
                self.add_endpoints(&own, ports, slice);
            }
            return;
        }
        let addresses = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten());
        for address in addresses.filter_map(|ip| ip.parse().ok()) {
            self.add(&own, Record::Address(address));
            self.add_pointer(address, &own);
        }
        for port in ports {
            self.add_port(&own, port, port.port, &own);
        }
    }

    /// Each endpoint of a headless Service has a name of its own: its hostname, or its address with dashes.
    fn add_endpoints(&mut self, own: &str, ports: &[ServicePort], slice: &EndpointSlice) {
        for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| ready(endpoint)) {
            for address in endpoint.addresses.iter().filter_map(|ip| ip.parse::<Ipv4Addr>().ok()) {
                let host = endpoint.hostname.clone().filter(|host| !host.is_empty());
                let named = host.is_some();
                let host = host.unwrap_or_else(|| address.to_string().replace('.', "-"));
                let target = format!("{host}.{own}");
                self.add(own, Record::Address(address));
                self.add(&target, Record::Address(address));
                if named {
                    self.add_pointer(address, &target);
                }
                for port in slice.ports.iter().flatten() {
                    let of_service = ports.iter().find(|it| {
                        it.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                    });
                    if let (Some(of_service), Some(number)) = (of_service, port.port) {
                        self.add_port(own, of_service, number, &target);
                    }
                }
            }
        }
    }

    /// `_port._protocol.service` for a port with a name, and the service itself for any port.
    fn add_port(&mut self, own: &str, port: &ServicePort, number: i32, target: &str) {
        let Ok(number) = u16::try_from(number) else { return };
        let record = Record::Service { port: number, target: target.to_owned() };
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
            self.add(&format!("_{name}._{protocol}.{own}"), record.clone());
        }
        self.add(own, record);
    }

    fn add_pointer(&mut self, address: Ipv4Addr, name: &str) {
        self.reverse.entry(address).or_default().insert(Record::Pointer(name.to_owned()));
    }

    fn add(&mut self, name: &str, record: Record) {
        self.add_name(name);
        self.names.entry(name.to_owned()).or_default().insert(record);
    }

    /// The name and what it stands under, down to the domain.
    fn add_name(&mut self, name: &str) {
        let mut name = name;
        while !self.names.contains_key(name) {
            self.names.insert(name.to_owned(), BTreeSet::new());
            if name == self.domain {
                break;
            }
            name = name.split_once('.').map_or("", |(_, rest)| rest);
        }
    }
}

type BySlice<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>;

fn by_service<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> BySlice<'a> {
    let mut by_service = BySlice::new();
    for slice in slices.filter(|slice| slice.address_type == "IPv4") {
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        if let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service) {
            by_service.entry((namespace.as_str(), service.as_str())).or_default().push(slice);
        }
    }
    by_service
}

fn ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

/// `10-1-0-2.namespace.pod` says its address itself; whether there is such a pod is not looked at.
fn pod(inside: &str) -> Found {
    let Some(pod) = inside.strip_suffix(".pod") else { return Found::Nothing };
    match pod.split_once('.') {
        // A namespace: it has names below it, but no records.
        None => Found::Name(Vec::new()),
        Some((dashed, namespace)) if !namespace.contains('.') => match dashed.replace('-', ".").parse() {
            Ok(address) => Found::Name(vec![Record::Address(address)]),
            Err(_) => Found::Nothing,
        },
        Some(_) => Found::Nothing,
    }
}

/// `2.0.1.10` is 10.1.0.2 backwards.
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let backwards: Ipv4Addr = name.parse().ok()?;
    let [d, c, b, a] = backwards.octets();
    Some(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;
    use std::net::SocketAddrV4;

    pub(crate) fn config() -> Config {
        Config {
            listen: SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 10), 53),
            domain: "cluster.local".to_owned(),
            ranges: vec!["10.1.0.0/24".parse().expect("a range"), "10.2.0.0/24".parse().expect("a range")],
            resolv_conf: "/nowhere".into(),
        }
    }

    pub(crate) fn table() -> Table {
        let services: Vec<Service> = serde_json::from_value(json!([
            {"metadata": {"namespace": "default", "name": "web"}, "spec": {"clusterIP": "10.2.0.5",
                "ports": [{"name": "http", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}]}},
            {"metadata": {"namespace": "default", "name": "db"}, "spec": {"clusterIP": "None",
                "ports": [{"name": "sql", "port": 5432}]}},
            {"metadata": {"namespace": "default", "name": "away"},
                "spec": {"type": "ExternalName", "externalName": "Example.COM."}},
            {"metadata": {"namespace": "default", "name": "near"},
                "spec": {"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}},
            {"metadata": {"namespace": "default", "name": "empty"}, "spec": {"clusterIP": "None"}},
        ]))
        .expect("services");
        let slices: Vec<EndpointSlice> = serde_json::from_value(json!([
            {"metadata": {"namespace": "default", "name": "db-1", "labels": {SERVICE_NAME: "db"}}, "addressType": "IPv4",
             "ports": [{"name": "sql", "port": 5433}],
             "endpoints": [{"addresses": ["10.1.0.2"], "hostname": "db-0"}, {"addresses": ["10.1.0.3"]},
                           {"addresses": ["10.1.0.4"], "conditions": {"ready": false}}]},
        ]))
        .expect("slices");
        Table::new(&config(), services.iter(), slices.iter())
    }

    fn address(ip: &str) -> Record {
        Record::Address(ip.parse().expect("an address"))
    }

    fn service(port: u16, target: &str) -> Record {
        Record::Service { port, target: target.to_owned() }
    }

    fn check(name: &str, expected: Found) {
        assert_eq!(table().find(name), expected, "{name}");
    }

    #[test]
    fn a_service_has_its_address_and_its_ports() {
        let own = "web.default.svc.cluster.local";
        check(own, Found::Name(vec![address("10.2.0.5"), service(53, own), service(80, own)]));
        check("_http._tcp.web.default.svc.cluster.local", Found::Name(vec![service(80, own)]));
        check("_dns._udp.web.default.svc.cluster.local", Found::Name(vec![service(53, own)]));
        check("_http._udp.web.default.svc.cluster.local", Found::Nothing);
        check("5.0.2.10.in-addr.arpa", Found::Name(vec![Record::Pointer(own.to_owned())]));
    }

    #[test]
    fn a_headless_service_has_those_of_its_ready_endpoints() {
        let first = "db-0.db.default.svc.cluster.local";
        let second = "10-1-0-3.db.default.svc.cluster.local";
        let both = [address("10.1.0.2"), address("10.1.0.3"), service(5433, second), service(5433, first)];
        check("db.default.svc.cluster.local", Found::Name(both.to_vec()));
        check(first, Found::Name(vec![address("10.1.0.2")]));
        check(second, Found::Name(vec![address("10.1.0.3")]));
        check("_sql._tcp.db.default.svc.cluster.local", Found::Name(both[2..].to_vec()));
        check("2.0.1.10.in-addr.arpa", Found::Name(vec![Record::Pointer(first.to_owned())]));
        check("empty.default.svc.cluster.local", Found::Name(Vec::new()));
    }

    #[test]
    fn a_pod_is_named_by_its_address() {
        check("10-1-0-7.default.pod.cluster.local", Found::Name(vec![address("10.1.0.7")]));
        check("10-1-0.default.pod.cluster.local", Found::Nothing);
        check("x.10-1-0-7.default.pod.cluster.local", Found::Nothing);
        check("default.pod.cluster.local", Found::Name(Vec::new()));
    }

    #[test]
    fn names_above_names_exist_without_records() {
        for name in ["svc.cluster.local", "default.svc.cluster.local", "_tcp.web.default.svc.cluster.local"] {
            check(name, Found::Name(Vec::new()));
        }
        for name in [
            "other.svc.cluster.local",
            "web.other.svc.cluster.local",
            "web.default.svc.cluster.local.cluster.local",
        ] {
            check(name, Found::Nothing);
        }
    }

    #[test]
    fn the_server_tells_of_itself() {
        check("cluster.local", Found::Name(vec![Record::NameServer("ns.dns.cluster.local".to_owned())]));
        check("ns.dns.cluster.local", Found::Name(vec![address("10.2.0.10")]));
        check("dns-version.cluster.local", Found::Name(vec![Record::Text("1.1.0".to_owned())]));
    }

    #[test]
    fn a_name_for_elsewhere_is_an_alias() {
        check("away.default.svc.cluster.local", Found::Name(vec![Record::Alias("example.com".to_owned())]));
    }

    #[test]
    fn others_names_and_addresses_are_for_others_to_tell() {
        for name in ["example.com", "notcluster.local", "local", "", "9.2.0.192.in-addr.arpa", "in-addr.arpa"]
        {
            check(name, Found::Elsewhere);
        }
        check("9.0.1.10.in-addr.arpa", Found::Nothing);
    }
}
