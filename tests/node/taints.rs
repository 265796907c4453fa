//! Taints drive pods off the real node, and an autoscaler follows what its pods really use.

use super::node::{Node, PATIENCE, until};

fn pod(name: &str, tolerations: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: {tolerations}
  containers: [{{name: a, image: 'kubia:1', imagePullPolicy: Never}}]
---
"
    )
}

fn gone(node: &Node, pod: &str) {
    until(&format!("pod {pod} is gone"), PATIENCE, || match node.find("pod", pod) {
        None => Ok(()),
        Some(pod) => Err(pod["status"].to_string()),
    });
}

fn taints(node: &Node) -> String {
    node.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].spec.taints[*].key}"])
}

#[test]
fn a_no_execute_taint_drives_pods_off_as_long_as_they_say() {
    let node = Node::empty();
    let tolerated =
        |rest: &str| format!("[{{key: example.org/work, operator: Exists, effect: NoExecute{rest}}}]");
    let all = pod("goes", "[]")
        + &pod("brief", &tolerated(", tolerationSeconds: 2"))
        + &pod("patient", &tolerated(", tolerationSeconds: 3600"))
        + &pod("stays", &tolerated(""));
    node.kubectl_with(&["apply", "-f", "-"], &all);
    for name in ["goes", "brief", "patient", "stays"] {
        node.ready(&format!("app={name}"), 1);
    }
    node.kubectl(&["taint", "nodes", "--all", "example.org/work=now:NoExecute"]);
    gone(&node, "goes");
    gone(&node, "brief");
    node.kubectl(&["taint", "nodes", "--all", "example.org/work-"]);
    until("it is told who may stay after all", PATIENCE, || {
        let told = node.kubectl(&["get", "events", "--field-selector", "involvedObject.name=patient"]);
        if told.contains("Cancelling deletion of Pod default/patient") { Ok(()) } else { Err(told) }
    });
    for name in ["patient", "stays"] {
        let pod = node.object("pod", name);
        assert!(pod["metadata"]["deletionTimestamp"].is_null(), "{pod}");
    }
    let name = node.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    node.kubectl(&["cordon", &name]);
    until("a cordoned node is tainted", PATIENCE, || {
        Some(()).filter(|()| taints(&node).contains("node.kubernetes.io/unschedulable")).ok_or(taints(&node))
    });
    node.kubectl(&["uncordon", &name]);
    until("and then no more", PATIENCE, || {
        Some(()).filter(|()| taints(&node).is_empty()).ok_or(taints(&node))
    });
}

#[test]
fn an_autoscaler_goes_up_with_what_is_used_and_down_when_it_may() {
    let node = Node::empty();
    let scaler = |memory: &str| {
        format!(
            "apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: web}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: web}}
  minReplicas: 1
  maxReplicas: 3
  behavior: {{scaleDown: {{stabilizationWindowSeconds: 5}}}}
  metrics: [{{type: Resource, resource: {{name: memory, target: {{type: AverageValue, averageValue: {memory}}}}}}}]
"
        )
    };
    node.kubectl(&["create", "deployment", "web", "--image=kubia:1"]);
    node.ready("app=web", 1);
    // Whatever a pod uses is far more than this, and far less than that.
    node.kubectl_with(&["apply", "-f", "-"], &scaler("1Ki"));
    node.ready("app=web", 3);
    node.kubectl_with(&["apply", "-f", "-"], &scaler("100Gi"));
    node.ready("app=web", 1);
    let scaler = node.object("hpa", "web");
    assert_eq!(scaler["status"]["desiredReplicas"], 1, "{scaler}");
    let told = node.kubectl(&[
        "get",
        "events",
        "--field-selector",
        "involvedObject.name=web,reason=SuccessfulRescale",
    ]);
    assert!(told.contains("New size: 3") && told.contains("New size: 1"), "{told}");
}
