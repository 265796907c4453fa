//! The ports of the machine that pods ask for by `hostPort`. Pure.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{ContainerPort, Pod};
use network::services::{Endpoint, ServiceKey, ServiceTable};

use crate::table::protocol;

/// Whether a pod asks for a port of its machine.
pub(crate) fn asks(pod: &Pod) -> bool {
    ports(pod).next().is_some()
}

/// Adds the ports of the pods that run on this machine. A port of a Service keeps its Service.
pub(crate) fn add<'a>(table: &mut ServiceTable, pods: impl Iterator<Item = &'a Pod>, node: Ipv4Addr) {
    for pod in pods {
        let Some(status) = &pod.status else { continue };
        let here = status.host_ip.as_deref().and_then(|ip| ip.parse().ok()) == Some(node);
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let Some(ip) = status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()).filter(|_| here && !ended)
        else {
            continue;
        };
        for port in ports(pod) {
            let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
            let (Some(wanted), Some(inside)) = (port.host_port.and_then(number), number(port.container_port))
            else {
                continue;
            };
            let Some(protocol) = protocol(port.protocol.as_deref()) else { continue };
            let endpoints = vec![Endpoint { ip, port: inside }];
            match port.host_ip.as_deref().unwrap_or_default().parse::<Ipv4Addr>() {
                Ok(address) if !address.is_unspecified() => {
                    let key = ServiceKey { ip: address, port: wanted, protocol };
                    table.services.entry(key).or_insert(endpoints);
                }
                _ => {
                    table.node_ports.entry((wanted, protocol)).or_insert(endpoints);
                }
            }
        }
    }
}

/// In the machine's own network a port is the program's to listen on.
fn ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let spec = pod.spec.iter().filter(|spec| spec.host_network != Some(true));
    let containers =
        spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.filter(|port| port.host_port.is_some_and(|number| number > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_the_machine_leads_to_the_pod_that_asked_for_it() {
        let pod = |node: &str, port: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({
                "spec": { "containers": [{ "name": "c", "ports": [port] }] },
                "status": { "phase": "Running", "podIP": "10.1.0.2", "hostIP": node },
            }))
            .expect("a pod")
        };
        let own = pod("192.0.2.1", serde_json::json!({ "containerPort": 80, "hostPort": 8080 }));
        let of_address = pod(
            "192.0.2.1",
            serde_json::json!({ "containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1" }),
        );
        let elsewhere = pod("192.0.2.2", serde_json::json!({ "containerPort": 80, "hostPort": 8081 }));
        let none = pod("192.0.2.1", serde_json::json!({ "containerPort": 80 }));
        assert!(asks(&own) && !asks(&none));
        let mut table = ServiceTable::default();
        add(&mut table, [&own, &of_address, &elsewhere, &none].into_iter(), Ipv4Addr::new(192, 0, 2, 1));
        let ports: Vec<u16> = table.node_ports.keys().map(|(port, _)| *port).collect();
        let keys: Vec<String> = table.services.keys().map(|key| format!("{}:{}", key.ip, key.port)).collect();
        assert_eq!((ports, keys), (vec![8080], vec!["127.0.0.1:8080".to_owned()]));
    }
}
