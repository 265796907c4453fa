//! Pods find their node, their volume and their way to the world on one real machine.

use std::net::Ipv4Addr;

use super::node::{Node, PATIENCE, free_port, get, until};

fn manifests(port: u16) -> String {
    format!(
        "apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: web}}
spec:
  serviceName: web
  replicas: 1
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - topologyKey: kubernetes.io/hostname
            labelSelector: {{matchLabels: {{app: web}}}}
      containers:
      - name: web
        image: kubia:1
        imagePullPolicy: Never
        ports: [{{containerPort: 8080}}]
        volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{type: LoadBalancer, selector: {{app: web}}, ports: [{{port: {port}, targetPort: 8080}}]}}
"
    )
}

#[test]
fn a_pod_gets_a_volume_and_is_reached_at_the_address_of_the_node() {
    let port = free_port();
    let node = Node::with(&[("web.yaml", &manifests(port))]);
    node.ready("app=web", 1);
    let claim = node.object("pvc", "data-web-0");
    assert_eq!(claim["status"]["phase"], "Bound", "{claim}");
    let volume = node.object("pv", claim["spec"]["volumeName"].as_str().unwrap());
    let directory = volume["spec"]["local"]["path"].as_str().unwrap().to_owned();
    assert!(std::path::Path::new(&directory).starts_with(node.data()), "{directory}");
    assert!(std::path::Path::new(&directory).is_dir(), "{directory}");
    let address: Ipv4Addr = until("the Service has an address", PATIENCE, || {
        let service = node.object("service", "web");
        let ip = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str();
        ip.and_then(|ip| ip.parse().ok()).ok_or(service.to_string())
    });
    until("it answers there", PATIENCE, || {
        get((address, port), "/").and_then(
            |(code, body)| {
                if code == 200 { Ok(()) } else { Err(format!("{code} {body}")) }
            },
        )
    });
    // There is one machine, and no two of these may be on it.
    node.edit("web.yaml", "replicas: 1", "replicas: 2");
    until("the second says why it waits", PATIENCE, || {
        let pod = node.find("pod", "web-1").ok_or("there is none")?;
        let told = pod["status"]["conditions"].to_string();
        let wanted = "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.";
        if told.contains(wanted) { Ok(()) } else { Err(told) }
    });
}
