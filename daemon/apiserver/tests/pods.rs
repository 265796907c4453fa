//! The subresources of pods, and what only they may change.

use super::*;

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "kubia:1",
        "resources": { "requests": { "cpu": "100m" } } }] } })
}

async fn running(server: &Server, name: &str) -> Value {
    let (status, created) = send(server, Method::POST, PODS, pod(name)).await;
    assert_eq!(status, 201, "{created}");
    let binding = json!({ "metadata": { "name": name }, "target": { "kind": "Node", "name": "n" } });
    assert_eq!(send(server, Method::POST, "/api/v1/namespaces/default/bindings", binding).await.0, 201);
    let status =
        json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
    send(server, Method::PATCH, &format!("{PODS}/{name}/status"), status).await.1
}

#[tokio::test]
async fn only_a_binding_names_the_node() {
    let server = server().await;
    let (_, mut created) = send(&server, Method::POST, PODS, pod("p")).await;
    created["spec"]["nodeName"] = json!("n");
    let (status, answer) = send(&server, Method::PUT, &format!("{PODS}/p"), created).await;
    assert_eq!((status, &answer["reason"]), (422, &json!("Invalid")), "{answer}");
    let other = running(&server, "q").await;
    assert_eq!((&other["spec"]["nodeName"], &other["status"]["phase"]), (&json!("n"), &json!("Running")));
}

#[tokio::test]
async fn an_eviction_spends_the_budget_and_no_more() {
    let server = server().await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({ "metadata": { "name": "b" }, "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
    assert_eq!(send(&server, Method::POST, budgets, budget).await.0, 201);
    let counted = json!({ "status": { "observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2 } });
    send(&server, Method::PATCH, &format!("{budgets}/b/status"), counted).await;
    for name in ["p", "q"] {
        running(&server, name).await;
    }
    let evict = |name: &str, trial: Value| {
        let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": name }, "deleteOptions": trial });
        (format!("{PODS}/{name}/eviction"), eviction)
    };
    let (path, trial) = evict("p", json!({ "dryRun": ["All"] }));
    assert_eq!(send(&server, Method::POST, &path, trial).await.0, 201);
    assert_eq!(get(&server, &format!("{PODS}/p")).await.1["metadata"]["deletionTimestamp"], Value::Null);
    let (path, eviction) = evict("p", json!({}));
    assert_eq!(send(&server, Method::POST, &path, eviction).await.0, 201);
    assert!(get(&server, &format!("{PODS}/p")).await.1["metadata"]["deletionTimestamp"].is_string());
    let (path, eviction) = evict("q", json!({}));
    let (status, answer) = send(&server, Method::POST, &path, eviction).await;
    assert_eq!(
        (status, &answer["message"]),
        (429, &json!("Cannot evict pod as it would violate the pod's disruption budget."))
    );
    assert_eq!(answer["details"]["causes"][0]["reason"], "DisruptionBudget");
    let (_, budget) = get(&server, &format!("{budgets}/b")).await;
    assert!(budget["status"]["disruptedPods"]["p"].is_string(), "{budget}");
}

#[tokio::test]
async fn resources_and_ephemeral_containers_change_through_their_subresources_only() {
    let server = server().await;
    running(&server, "p").await;
    let path = format!("{PODS}/p");
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    let more = json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "200m" } } }] } }).to_string();
    assert_eq!(raw(&server, Method::PATCH, &path, &strategic, &more).await.0, 422);
    let (status, resized, _) =
        raw(&server, Method::PATCH, &format!("{path}/resize"), &strategic, &more).await;
    assert_eq!(
        (status, &resized["spec"]["containers"][0]["resources"]["requests"]["cpu"]),
        (200, &json!("200m")),
        "{resized}"
    );
    let other = json!({ "spec": { "containers": [{ "name": "c", "resources": { "limits": { "cpu": "200m", "memory": "1Gi" }, "requests": { "memory": "1Gi" } } }] } });
    let (status, answer, _) =
        raw(&server, Method::PATCH, &format!("{path}/resize"), &strategic, &other.to_string()).await;
    assert_eq!(status, 422, "{answer}");
    let debug =
        json!({ "spec": { "ephemeralContainers": [{ "name": "d", "image": "busybox" }] } }).to_string();
    let (status, joined, _) =
        raw(&server, Method::PATCH, &format!("{path}/ephemeralcontainers"), &strategic, &debug).await;
    assert_eq!((status, &joined["spec"]["ephemeralContainers"][0]["name"]), (200, &json!("d")), "{joined}");
    let gone = json!([{ "op": "remove", "path": "/spec/ephemeralContainers" }]).to_string();
    let json_patch = [("content-type", "application/json-patch+json")];
    assert_eq!(
        raw(&server, Method::PATCH, &format!("{path}/ephemeralcontainers"), &json_patch, &gone).await.0,
        422
    );
}
