//! Judges services, endpoint slices, ingresses and ingress classes.
//!
//! Invariant: addresses that the node allocates may be absent; those that are given must be well formed.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Found, items, meta, names, probes, text};
use crate::schema::Defect;

/// `ValidateService`.
pub(super) fn service(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    let of_type = text(&spec["type"]);
    let headless = spec["clusterIP"] == "None";
    found.one_of(&spec["type"], "spec.type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    match of_type {
        "ExternalName" => {
            if let Some(name) = found.required(&spec["externalName"], "spec.externalName") {
                found.rules(
                    &spec["externalName"],
                    "spec.externalName",
                    names::subdomain(name.trim_end_matches('.')),
                );
            }
            if !text(&spec["clusterIP"]).is_empty() {
                found.add(Defect::forbidden(
                    "spec.clusterIPs[0]",
                    "may not be set when `type` is 'ExternalName'",
                ));
            }
        }
        _ => {
            if items(&spec["ports"]).is_empty() && !headless {
                found.add(Defect::required("spec.ports", ""));
            }
            if headless && matches!(of_type, "NodePort" | "LoadBalancer") {
                let why = format!("may not be set to 'None' for {of_type} services");
                found.add(Defect::invalid("spec.clusterIPs[0]", &spec["clusterIP"], &why));
            }
        }
    }
    cluster_ips(spec, found);
    ports(spec, found);
    meta::labels(&spec["selector"], "spec.selector", found);
    found.one_of(&spec["sessionAffinity"], "spec.sessionAffinity", &["ClientIP", "None"]);
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if timeout.as_i64().is_some_and(|seconds| !(1..=86400).contains(&seconds)) {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        found.add(Defect::invalid(path, timeout, "must be greater than 0 and less than 86400"));
    }
    if spec["sessionAffinity"] == "None" && !spec["sessionAffinityConfig"].is_null() {
        let why = "must not be set when session affinity is None";
        found.add(Defect::forbidden("spec.sessionAffinityConfig", why));
    }
    found.one_of(&spec["externalTrafficPolicy"], "spec.externalTrafficPolicy", &["Cluster", "Local"]);
    found.one_of(&spec["internalTrafficPolicy"], "spec.internalTrafficPolicy", &["Cluster", "Local"]);
    for (index, ip) in items(&spec["externalIPs"]).iter().enumerate() {
        found.rules(ip, &format!("spec.externalIPs[{index}]"), names::ip(text(ip)));
    }
}

fn cluster_ips(spec: &Value, found: &mut Found) {
    for (index, ip) in items(&spec["clusterIPs"]).iter().enumerate() {
        if ip != "None" {
            found.rules(ip, &format!("spec.clusterIPs[{index}]"), names::ip(text(ip)));
        }
    }
    let first = items(&spec["clusterIPs"]).first();
    let given = text(&spec["clusterIP"]);
    if !given.is_empty() && first.is_some_and(|first| first != given) {
        found.add(Defect::invalid(
            "spec.clusterIPs",
            &spec["clusterIPs"],
            "first value must match `clusterIP`",
        ));
    }
    if !given.is_empty() && first.is_none() {
        found.rules(
            &spec["clusterIP"],
            "spec.clusterIP",
            if given == "None" { Vec::new() } else { names::ip(given) },
        );
    }
    for (index, family) in items(&spec["ipFamilies"]).iter().enumerate() {
        found.one_of(family, &format!("spec.ipFamilies[{index}]"), &["IPv4", "IPv6"]);
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    found.one_of(&spec["ipFamilyPolicy"], "spec.ipFamilyPolicy", &policies);
}

fn ports(spec: &Value, found: &mut Found) {
    let list = items(&spec["ports"]);
    let (mut seen_names, mut seen_ports, mut seen_node_ports) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in list.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = text(&port["name"]);
        if name.is_empty() && list.len() > 1 {
            found.add(Defect::required(format!("{path}.name"), ""));
        } else if !name.is_empty() {
            found.rules(&port["name"], &format!("{path}.name"), names::label(name));
            if !seen_names.insert(name) {
                found.add(Defect::duplicate(format!("{path}.name"), &port["name"]));
            }
        }
        let number = port["port"].as_i64().unwrap_or(0);
        found.rules(&number.into(), &format!("{path}.port"), names::port_number(number));
        found.one_of(&port["protocol"], &format!("{path}.protocol"), &["SCTP", "TCP", "UDP"]);
        if !port["targetPort"].is_null() {
            probes::port(&port["targetPort"], &format!("{path}.targetPort"), found);
        }
        let node_port = port["nodePort"].as_i64().unwrap_or(0);
        if node_port != 0 {
            let of_type = text(&spec["type"]);
            if !matches!(of_type, "NodePort" | "LoadBalancer") {
                let why = format!("may not be used when `type` is '{of_type}'");
                found.add(Defect::forbidden(format!("{path}.nodePort"), &why));
            }
            found.rules(&port["nodePort"], &format!("{path}.nodePort"), names::port_number(node_port));
            if !seen_node_ports.insert((text(&port["protocol"]), node_port)) {
                found.add(Defect::duplicate(format!("{path}.nodePort"), &port["nodePort"]));
            }
        }
        if !seen_ports.insert((text(&port["protocol"]), number)) {
            let shown = serde_json::json!({ "port": number, "protocol": text(&port["protocol"]) });
            found.add(Defect::duplicate(path, &shown));
        }
    }
}

/// `ValidateEndpoints`.
pub(super) fn endpoints(object: &Value, found: &mut Found) {
    for (index, subset) in items(&object["subsets"]).iter().enumerate() {
        let path = format!("subsets[{index}]");
        if items(&subset["addresses"]).is_empty() && items(&subset["notReadyAddresses"]).is_empty() {
            found.add(Defect::required(path.clone(), "must specify `addresses` or `notReadyAddresses`"));
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (at, address) in items(&subset[list]).iter().enumerate() {
                let path = format!("{path}.{list}[{at}].ip");
                found.rules(&address["ip"], &path, names::ip(text(&address["ip"])));
                if text(&address["ip"]).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
                    let why = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
                    found.add(Defect::invalid(path, &address["ip"], why));
                }
            }
        }
        let ports = items(&subset["ports"]);
        for (at, port) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{at}]");
            let name = text(&port["name"]);
            if name.is_empty() && ports.len() > 1 {
                found.add(Defect::required(format!("{path}.name"), ""));
            } else if !name.is_empty() {
                found.rules(&port["name"], &format!("{path}.name"), names::label(name));
            }
            let number = port["port"].as_i64().unwrap_or(0);
            found.rules(&number.into(), &format!("{path}.port"), names::port_number(number));
            found.one_of(&port["protocol"], &format!("{path}.protocol"), &["SCTP", "TCP", "UDP"]);
        }
    }
}

/// `ValidateEndpointSlice`.
pub(super) fn endpoint_slice(object: &Value, found: &mut Found) {
    let of_type = text(&object["addressType"]);
    if found.required(&object["addressType"], "addressType").is_some() {
        found.one_of(&object["addressType"], "addressType", &["FQDN", "IPv4", "IPv6"]);
    }
    for (index, endpoint) in items(&object["endpoints"]).iter().enumerate() {
        let path = format!("endpoints[{index}]");
        let addresses = items(&endpoint["addresses"]);
        if addresses.is_empty() {
            found.add(Defect::required(format!("{path}.addresses"), "must contain at least 1 address"));
        }
        for (index, address) in addresses.iter().enumerate() {
            let path = format!("{path}.addresses[{index}]");
            let parsed = text(address).parse::<std::net::IpAddr>().ok();
            match of_type {
                "IPv4" if !parsed.is_some_and(|ip| ip.is_ipv4()) => {
                    found.add(Defect::invalid(path, address, "must be an IPv4 address"))
                }
                "IPv6" if !parsed.is_some_and(|ip| ip.is_ipv6()) => {
                    found.add(Defect::invalid(path, address, "must be an IPv6 address"))
                }
                "FQDN" => found.rules(address, &path, names::subdomain(text(address))),
                _ => {}
            }
        }
    }
    let mut seen = BTreeSet::new();
    for (index, port) in items(&object["ports"]).iter().enumerate() {
        let path = format!("ports[{index}]");
        let name = text(&port["name"]);
        if !name.is_empty() {
            found.rules(&port["name"], &format!("{path}.name"), names::label(name));
        }
        if !seen.insert(name) {
            found.add(Defect::duplicate(format!("{path}.name"), &port["name"]));
        }
        found.one_of(&port["protocol"], &format!("{path}.protocol"), &["SCTP", "TCP", "UDP"]);
    }
}

/// `ValidateIngress`.
pub(super) fn ingress(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    if items(&spec["rules"]).is_empty() && spec["defaultBackend"].is_null() {
        let why = "either `defaultBackend` or `rules` must be specified";
        found.add(Defect::invalid("spec", spec, why));
    }
    if !spec["defaultBackend"].is_null() {
        backend(&spec["defaultBackend"], "spec.defaultBackend", found);
    }
    if !text(&spec["ingressClassName"]).is_empty() {
        let broken = names::subdomain(text(&spec["ingressClassName"]));
        found.rules(&spec["ingressClassName"], "spec.ingressClassName", broken);
    }
    for (index, tls) in items(&spec["tls"]).iter().enumerate() {
        for (at, host) in items(&tls["hosts"]).iter().enumerate() {
            found.rules(host, &format!("spec.tls[{index}].hosts[{at}]"), host_rules(text(host)));
        }
    }
    for (index, rule) in items(&spec["rules"]).iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        let host = text(&rule["host"]);
        if host.parse::<std::net::IpAddr>().is_ok() {
            found.add(Defect::invalid(
                format!("{path}.host"),
                &rule["host"],
                "must be a DNS name, not an IP address",
            ));
        } else if !host.is_empty() {
            found.rules(&rule["host"], &format!("{path}.host"), host_rules(host));
        }
        if !rule["http"].is_null() {
            paths(&rule["http"], &format!("{path}.http"), found);
        }
    }
}

fn host_rules(host: &str) -> Vec<String> {
    if host.contains('*') { names::wildcard(host) } else { names::subdomain(host) }
}

fn paths(http: &Value, path: &str, found: &mut Found) {
    if items(&http["paths"]).is_empty() {
        found.add(Defect::required(format!("{path}.paths"), ""));
    }
    for (index, one) in items(&http["paths"]).iter().enumerate() {
        let path = format!("{path}.paths[{index}]");
        let types = ["Exact", "ImplementationSpecific", "Prefix"];
        match text(&one["pathType"]) {
            "" => found.add(Defect::required(format!("{path}.pathType"), "pathType must be specified")),
            "Exact" | "Prefix" if !text(&one["path"]).starts_with('/') => {
                found.add(Defect::invalid(
                    format!("{path}.path"),
                    &text(&one["path"]).into(),
                    "must be an absolute path",
                ));
            }
            "ImplementationSpecific"
                if !text(&one["path"]).is_empty() && !text(&one["path"]).starts_with('/') =>
            {
                found.add(Defect::invalid(format!("{path}.path"), &one["path"], "must be an absolute path"));
            }
            _ => found.one_of(&one["pathType"], &format!("{path}.pathType"), &types),
        }
        backend(&one["backend"], &format!("{path}.backend"), found);
    }
}

fn backend(backend: &Value, path: &str, found: &mut Found) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    if !service.is_null() && !resource.is_null() {
        found.add(Defect::invalid(path, &"".into(), "cannot set both resource and service backends"));
        return;
    }
    if !resource.is_null() {
        found.required(&resource["kind"], &format!("{path}.resource.kind"));
        found.required(&resource["name"], &format!("{path}.resource.name"));
        return;
    }
    let name = found.required(&service["name"], &format!("{path}.service.name"));
    if let Some(name) = name {
        found.rules(&service["name"], &format!("{path}.service.name"), names::label_1035(name));
    }
    let port = &service["port"];
    match (text(&port["name"]), port["number"].as_i64().unwrap_or(0)) {
        ("", 0) if name.is_some() => found.add(Defect::required(path, "port name or number is required")),
        ("", 0) => {}
        ("", number) => {
            found.rules(&port["number"], &format!("{path}.service.port.number"), names::port_number(number))
        }
        (name, 0) => found.rules(&port["name"], &format!("{path}.service.port.name"), names::port_name(name)),
        _ => found.add(Defect::invalid(path, &"".into(), "cannot set both port name & port number")),
    }
}

/// `ValidateIngressClass`.
pub(super) fn ingress_class(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    if text(&spec["controller"]).len() > 250 {
        found.add(Defect::too_long("spec.controller", 250));
    }
    if found.required(&spec["controller"], "spec.controller").is_some()
        && !text(&spec["controller"]).contains('/')
    {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        found.add(Defect::invalid("spec.controller", &spec["controller"], why));
    }
    let parameters = &spec["parameters"];
    if !parameters.is_null() {
        found.required(&parameters["kind"], "spec.parameters.kind");
        found.required(&parameters["name"], "spec.parameters.name");
        found.one_of(&parameters["scope"], "spec.parameters.scope", &["Cluster", "Namespace"]);
    }
}
