//! Policies that change objects.

use super::*;

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

async fn made(server: &Server, path: &str, body: Value) -> Value {
    let (status, made) = send(server, Method::POST, path, body).await;
    assert_eq!(status, 201, "{made}");
    made
}

fn rules(resource: &str) -> Value {
    json!({ "resourceRules": [{ "apiGroups": ["*"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": [resource] }] })
}

#[tokio::test]
async fn policies_change_objects_by_merge_and_by_patch() {
    let server = server().await;
    let policy = json!({ "metadata": { "name": "p" }, "spec": { "matchConstraints": rules("deployments"), "reinvocationPolicy": "Never",
        "mutations": [
            { "patchType": "ApplyConfiguration", "applyConfiguration": { "expression":
                "Object{metadata: Object.metadata{annotations: {'by': 'policy'}}, spec: Object.spec{replicas: object.spec.replicas + 1}}" } },
            { "patchType": "JSONPatch", "jsonPatch": { "expression":
                "[JSONPatch{op: 'add', path: '/metadata/annotations/' + jsonpatch.escapeKey('a/b'), value: 'c'}]" } }] } });
    made(&server, &format!("{ADMISSION}/mutatingadmissionpolicies"), policy).await;
    let binding = json!({ "metadata": { "name": "b" }, "spec": { "policyName": "p" } });
    made(&server, &format!("{ADMISSION}/mutatingadmissionpolicybindings"), binding).await;
    let changed = made(&server, "/apis/apps/v1/namespaces/default/deployments", deployment("web")).await;
    assert_eq!(changed["metadata"]["annotations"], json!({ "by": "policy", "a/b": "c" }), "{changed}");
    assert_eq!(changed["spec"]["replicas"], 2);
    assert_eq!(changed["spec"]["template"]["spec"]["containers"].as_array().map(Vec::len), Some(1));
    let owners = changed["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(owners.len(), 1, "{owners:?}");
}
