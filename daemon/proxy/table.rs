//! From Services and EndpointSlices to the table of packet rules. Pure.
//!
//! Invariant: only Services with an address of their own are in it: headless ones and names for elsewhere are DNS's.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};
use network::services::{Endpoint, Protocol, ServiceKey, ServiceTable};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The slices of a Service carry its name under this label.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The table that makes these Services reachable at their endpoints.
///
/// As Kubernetes' own proxy: endpoints that are ready; where there is none, those that terminate but still serve. A
/// slice's port belongs to the Service's port of the same name and protocol, so named target ports are already
/// resolved. External and load balancer addresses that an object states are served like the Service's own.
pub(crate) fn table<'a>(
    services: impl Iterator<Item = &'a Service>,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> ServiceTable {
    let slices = by_service(slices);
    let mut table = ServiceTable::default();
    for service in services {
        let addresses = addresses(service);
        if addresses.is_empty() {
            continue;
        }
        let name = (service.metadata.namespace.as_deref(), service.metadata.name.as_deref());
        let slices = slices.get(&name).map(Vec::as_slice).unwrap_or_default();
        for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
            let Some(protocol) = protocol(port.protocol.as_deref()) else { continue };
            let endpoints = endpoints(port, protocol, slices);
            if let Ok(port) = u16::try_from(port.port) {
                let keys = addresses.iter().map(|ip| ServiceKey { ip: *ip, port, protocol });
                table.services.extend(keys.map(|key| (key, endpoints.clone())));
            }
            if let Some(node_port) = node_port(service, port) {
                table.node_ports.insert((node_port, protocol), endpoints);
            }
        }
    }
    table
}

type ByService<'a> = BTreeMap<(Option<&'a str>, Option<&'a str>), Vec<&'a EndpointSlice>>;

fn by_service<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> ByService<'a> {
    let mut by_service = ByService::new();
    for slice in slices.filter(|slice| slice.address_type == "IPv4") {
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        let name = (slice.metadata.namespace.as_deref(), service.map(String::as_str));
        by_service.entry(name).or_default().push(slice);
    }
    by_service
}

/// The Service's own addresses first; none for a headless one and for a name.
fn addresses(service: &Service) -> BTreeSet<Ipv4Addr> {
    let Some(spec) = &service.spec else { return BTreeSet::new() };
    if spec.type_.as_deref() == Some("ExternalName") {
        return BTreeSet::new();
    }
    let own = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten());
    let own: BTreeSet<Ipv4Addr> = own.filter_map(|ip| ip.parse().ok()).collect();
    if own.is_empty() {
        return own;
    }
    let balanced = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
    let balanced = balanced
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        // `Proxy` says that the balancer must see the traffic itself.
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref());
    let more = spec.external_ips.iter().flatten().chain(balanced).filter_map(|ip| ip.parse().ok());
    own.iter().copied().chain(more).collect()
}

fn node_port(service: &Service, port: &ServicePort) -> Option<u16> {
    let kind = service.spec.as_ref()?.type_.as_deref()?;
    if !matches!(kind, "NodePort" | "LoadBalancer") {
        return None;
    }
    port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
}

fn endpoints(port: &ServicePort, protocol: Protocol, slices: &[&EndpointSlice]) -> Vec<Endpoint> {
    let mut ready = BTreeSet::new();
    let mut leaving = BTreeSet::new();
    for slice in slices {
        let Some(target) = target(port, protocol, slice) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let into = match state(endpoint) {
                State::Ready => &mut ready,
                State::Leaving => &mut leaving,
                State::Away => continue,
            };
            // The further addresses of one endpoint are the same endpoint.
            let ip = endpoint.addresses.first().and_then(|ip| ip.parse().ok());
            into.extend(ip.map(|ip| Endpoint { ip, port: target }));
        }
    }
    if ready.is_empty() { leaving } else { ready }.into_iter().collect()
}

fn target(port: &ServicePort, wanted: Protocol, slice: &EndpointSlice) -> Option<u16> {
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let same =
        slice.ports.iter().flatten().find(|it| {
            name(&it.name) == name(&port.name) && protocol(it.protocol.as_deref()) == Some(wanted)
        });
    same.and_then(|it| it.port).and_then(|port| u16::try_from(port).ok())
}

enum State {
    Ready,
    Leaving,
    Away,
}

fn state(endpoint: &SliceEndpoint) -> State {
    let Some(conditions) = &endpoint.conditions else { return State::Ready };
    // As documented for EndpointSlice: an unknown `ready` means ready, an unknown `serving` follows it.
    if conditions.ready.unwrap_or(true) {
        return State::Ready;
    }
    let leaving = conditions.terminating.unwrap_or(false) && conditions.serving.unwrap_or(false);
    if leaving { State::Leaving } else { State::Away }
}

pub(crate) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Writes a table as lines, sorted: what is asked for, and who answers.
    fn lines(services: Value, slices: Value) -> Vec<String> {
        let services: Vec<Service> = serde_json::from_value(services).expect("services");
        let slices: Vec<EndpointSlice> = serde_json::from_value(slices).expect("slices");
        let table = table(services.iter(), slices.iter());
        let all = |endpoints: &[Endpoint]| {
            endpoints.iter().map(|it| format!("{}:{}", it.ip, it.port)).collect::<Vec<_>>().join(" ")
        };
        let services = table.services.iter().map(|(key, endpoints)| {
            format!("{:?} {}:{} -> {}", key.protocol, key.ip, key.port, all(endpoints))
        });
        let ports = table
            .node_ports
            .iter()
            .map(|((port, protocol), endpoints)| format!("{protocol:?} node:{port} -> {}", all(endpoints)));
        services.chain(ports).collect()
    }

    fn service(name: &str, spec: Value) -> Value {
        json!({"metadata": {"namespace": "default", "name": name}, "spec": spec})
    }

    fn slice(service: &str, ports: Value, endpoints: Value) -> Value {
        json!({
            "metadata": {"namespace": "default", "name": format!("{service}-1"), "labels": {SERVICE_NAME: service}},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        })
    }

    fn endpoint(ip: &str, conditions: Value) -> Value {
        json!({"addresses": [ip], "conditions": conditions})
    }

    #[test]
    fn ports_are_matched_by_name_and_served_on_every_address() {
        let web = service(
            "web",
            json!({"type": "NodePort", "clusterIP": "10.2.0.5", "clusterIPs": ["10.2.0.5"], "externalIPs": ["192.0.2.9"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"},
                      {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        );
        let behind = slice(
            "web",
            json!([{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "UDP"}]),
            json!([endpoint("10.1.0.3", json!({"ready": true})), endpoint("10.1.0.2", json!({}))]),
        );
        assert_eq!(
            lines(json!([web]), json!([behind])),
            [
                "Udp 10.2.0.5:53 -> 10.1.0.2:5353 10.1.0.3:5353",
                "Tcp 10.2.0.5:80 -> 10.1.0.2:8080 10.1.0.3:8080",
                "Udp 192.0.2.9:53 -> 10.1.0.2:5353 10.1.0.3:5353",
                "Tcp 192.0.2.9:80 -> 10.1.0.2:8080 10.1.0.3:8080",
                "Tcp node:30080 -> 10.1.0.2:8080 10.1.0.3:8080",
            ]
            .map(str::to_owned)
            .into_iter()
            .collect::<Vec<_>>()
        );
    }

    #[test]
    fn endpoints_that_leave_serve_only_where_none_is_ready() {
        let web = service("web", json!({"clusterIP": "10.2.0.5", "ports": [{"port": 80}]}));
        let leaving = json!({"ready": false, "serving": true, "terminating": true});
        let dead = json!({"ready": false, "serving": false, "terminating": true});
        let ports = json!([{"port": 8080}]);
        let both = slice(
            "web",
            ports.clone(),
            json!([
                endpoint("10.1.0.2", leaving.clone()),
                endpoint("10.1.0.3", json!({"ready": true})),
                endpoint("10.1.0.4", dead.clone()),
            ]),
        );
        assert_eq!(lines(json!([web]), json!([both])), ["Tcp 10.2.0.5:80 -> 10.1.0.3:8080"]);
        let one = slice("web", ports, json!([endpoint("10.1.0.2", leaving), endpoint("10.1.0.4", dead)]));
        assert_eq!(lines(json!([web]), json!([one])), ["Tcp 10.2.0.5:80 -> 10.1.0.2:8080"]);
    }

    #[test]
    fn a_service_without_endpoints_is_in_the_table_to_be_refused() {
        let web = service(
            "web",
            json!({"type": "LoadBalancer", "clusterIP": "10.2.0.5", "ports": [{"port": 80, "nodePort": 30080}]}),
        );
        let of_another = slice("other", json!([{"port": 8080}]), json!([endpoint("10.1.0.2", json!({}))]));
        assert_eq!(lines(json!([web]), json!([of_another])), ["Tcp 10.2.0.5:80 -> ", "Tcp node:30080 -> "]);
    }

    #[test]
    fn headless_services_and_names_for_elsewhere_have_no_rules() {
        let headless = service("a", json!({"clusterIP": "None", "ports": [{"port": 80}]}));
        let name = service(
            "b",
            json!({"type": "ExternalName", "externalName": "example.com", "ports": [{"port": 80}]}),
        );
        let waiting = service("c", json!({"ports": [{"port": 80}], "externalIPs": ["192.0.2.9"]}));
        assert_eq!(lines(json!([headless, name, waiting]), json!([])), Vec::<String>::new());
    }

    #[test]
    fn addresses_that_a_balancer_gave_are_served_here() {
        let mut web =
            service("web", json!({"type": "LoadBalancer", "clusterIP": "10.2.0.5", "ports": [{"port": 80}]}));
        web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}]}});
        assert_eq!(lines(json!([web]), json!([])), ["Tcp 10.2.0.5:80 -> ", "Tcp 192.0.2.7:80 -> "]);
    }

    #[test]
    fn nonsense_in_an_object_costs_only_that_object() {
        let bad = service(
            "bad",
            json!({"clusterIP": "10.2.0.4", "ports": [{"port": 99999}, {"port": 81, "protocol": "XYZ"}]}),
        );
        let good = service("good", json!({"clusterIP": "10.2.0.5", "ports": [{"port": 80}]}));
        let slices = json!([slice(
            "good",
            json!([{"port": 8080}, {"name": "x"}]),
            json!([endpoint("fd00::1", json!({})), endpoint("10.1.0.2", json!({}))])
        )]);
        assert_eq!(lines(json!([bad, good]), slices), ["Tcp 10.2.0.5:80 -> 10.1.0.2:8080"]);
    }
}
