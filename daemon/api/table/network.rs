//! Prints services, endpoint slices, ingresses and ingress classes.
//!
//! Invariant: what is not there reads `<none>`, what is awaited `<pending>`, what was left open `<unset>`.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, age_of, count, items, name, or, pairs, string, text, wide};

pub(super) const SERVICE: &[Column] =
    &[NAME, text("Type"), text("Cluster-IP"), text("External-IP"), text("Port(s)"), AGE, wide("Selector")];

pub(super) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let ports: Vec<String> = items(&spec["ports"])
        .iter()
        .map(|port| {
            let (number, protocol) = (count(&port["port"]), string(&port["protocol"]));
            match count(&port["nodePort"]) {
                0 => format!("{number}/{protocol}"),
                node_port => format!("{number}:{node_port}/{protocol}"),
            }
        })
        .collect();
    vec![
        name(object),
        string(&spec["type"]).into(),
        or(string(&spec["clusterIP"]), "<none>"),
        external_address(object),
        or(&ports.join(","), "<none>"),
        age_of(object, now),
        or(&pairs(&spec["selector"]).join(","), "<none>"),
    ]
}

fn external_address(service: &Value) -> Value {
    let spec = &service["spec"];
    let own: Vec<&str> = items(&spec["externalIPs"]).iter().map(string).collect();
    match string(&spec["type"]) {
        "ExternalName" => or(string(&spec["externalName"]), "<none>"),
        "LoadBalancer" => {
            let mut all = balancer_addresses(&service["status"]["loadBalancer"]);
            all.extend(own);
            or(&all.join(","), "<pending>")
        }
        _ => or(&own.join(","), "<none>"),
    }
}

fn balancer_addresses(balancer: &Value) -> Vec<&str> {
    let addresses = items(&balancer["ingress"]).iter();
    addresses
        .map(|one| if one["ip"].is_string() { string(&one["ip"]) } else { string(&one["hostname"]) })
        .filter(|address| !address.is_empty())
        .collect()
}

pub(super) const ENDPOINT_SLICE: &[Column] =
    &[NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE];

pub(super) fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = items(&object["ports"])
        .iter()
        .map(|port| port["port"].as_i64().map_or_else(|| "*".to_owned(), |number| number.to_string()))
        .collect();
    let addresses = items(&object["endpoints"]).iter().flat_map(|endpoint| items(&endpoint["addresses"]));
    let addresses: Vec<String> = addresses.map(|address| string(address).to_owned()).collect();
    vec![
        name(object),
        string(&object["addressType"]).into(),
        first_three(&ports, "<unset>"),
        first_three(&addresses, "<unset>"),
        age_of(object, now),
    ]
}

fn first_three(texts: &[String], otherwise: &str) -> Value {
    match texts {
        [] => otherwise.into(),
        [first @ .., _] if texts.len() > 3 => {
            format!("{} + {} more...", first[..3].join(","), texts.len() - 3).into()
        }
        all => all.join(",").into(),
    }
}

pub(super) const INGRESS: &[Column] =
    &[NAME, text("Class"), text("Hosts"), text("Address"), text("Ports"), AGE];

pub(super) fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let hosts: Vec<&str> = items(&spec["rules"])
        .iter()
        .map(|rule| string(&rule["host"]))
        .filter(|host| !host.is_empty())
        .collect();
    let hosts = match hosts.len() {
        0 => "*".to_owned(),
        1..=3 => hosts.join(","),
        all => format!("{} + {} more...", hosts[..3].join(","), all - 3),
    };
    vec![
        name(object),
        or(string(&spec["ingressClassName"]), "<none>"),
        hosts.into(),
        balancer_addresses(&object["status"]["loadBalancer"]).join(",").into(),
        if items(&spec["tls"]).is_empty() { "80".into() } else { "80, 443".into() },
        age_of(object, now),
    ]
}

pub(super) const INGRESS_CLASS: &[Column] = &[NAME, text("Controller"), text("Parameters"), AGE];

pub(super) fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = &object["spec"]["parameters"];
    let shown = match (parameters.is_null(), string(&parameters["apiGroup"])) {
        (true, _) => "<none>".to_owned(),
        (false, "") => format!("{}/{}", string(&parameters["kind"]), string(&parameters["name"])),
        (false, group) => format!("{}.{group}/{}", string(&parameters["kind"]), string(&parameters["name"])),
    };
    vec![name(object), string(&object["spec"]["controller"]).into(), shown.into(), age_of(object, now)]
}

pub(super) const ENDPOINTS: &[Column] = &[NAME, text("Endpoints"), AGE];

pub(super) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let subsets = items(&object["subsets"]).iter();
    let all: Vec<String> = subsets
        .flat_map(|subset| {
            let (addresses, ports) = (items(&subset["addresses"]), items(&subset["ports"]));
            let of = |ip: &str| match ports {
                [] => vec![ip.to_owned()],
                ports => ports.iter().map(|port| format!("{ip}:{}", count(&port["port"]))).collect(),
            };
            addresses.iter().flat_map(move |address| of(string(&address["ip"]))).collect::<Vec<_>>()
        })
        .collect();
    vec![name(object), first_three(&all, "<none>"), age_of(object, now)]
}
