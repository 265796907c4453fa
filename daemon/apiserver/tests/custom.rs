//! Kinds that users define, from their definition to their end.

use http::Method;
use serde_json::{Value, json};

use super::{get, raw, send, server};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TABS: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";

fn definition() -> Value {
    let schema = |more: Value| {
        let mut spec = json!({ "type": "object", "required": ["cronSpec"], "properties": {
            "cronSpec": { "type": "string" }, "replicas": { "type": "integer", "default": 1 } } });
        if let Some(properties) = spec["properties"].as_object_mut() {
            properties.extend(more.as_object().cloned().unwrap_or_default());
        }
        json!({ "openAPIV3Schema": { "type": "object", "properties": {
            "spec": spec, "status": { "type": "object", "properties": { "replicas": { "type": "integer" }, "selector": { "type": "string" } } } } } })
    };
    let scale = json!({ "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector" });
    json!({
        "metadata": { "name": "crontabs.stable.example.com" },
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": { "plural": "crontabs", "kind": "CronTab", "shortNames": ["ct"], "categories": ["all"] },
            "versions": [
                { "name": "v1beta1", "served": true, "storage": false, "schema": schema(json!({})) },
                { "name": "v1", "served": true, "storage": true, "schema": schema(json!({ "note": { "type": "string" } })),
                  "subresources": { "status": {}, "scale": scale } },
            ],
        },
    })
}

fn tab(name: &str) -> Value {
    json!({ "apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": { "name": name }, "spec": { "cronSpec": "* *" } })
}

#[tokio::test]
async fn a_kind_is_served_as_soon_as_it_is_defined_and_until_its_definition_goes() {
    let server = server().await;
    assert_eq!(get(&server, TABS).await.0, 404);
    let (status, made) = send(&server, Method::POST, DEFINITIONS, definition()).await;
    assert_eq!(status, 201, "{made}");
    let one = format!("{DEFINITIONS}/crontabs.stable.example.com");
    let (_, known) = get(&server, &one).await;
    let conditions = known["status"]["conditions"].as_array().cloned().unwrap_or_default();
    assert!(conditions.iter().all(|one| one["status"] == "True") && conditions.len() == 2, "{known}");
    assert_eq!(known["status"]["storedVersions"], json!(["v1"]));
    let (_, group) = get(&server, "/apis/stable.example.com").await;
    assert_eq!(group["preferredVersion"]["version"], "v1", "{group}");
    let (_, resources) = get(&server, "/apis/stable.example.com/v1").await;
    let names: Vec<&str> =
        resources["resources"].as_array().into_iter().flatten().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["crontabs", "crontabs/status", "crontabs/scale"]);
    let (_, document) = get(&server, "/openapi/v3/apis/stable.example.com/v1").await;
    let published = &document["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(published["properties"]["spec"]["properties"]["note"]["type"], "string", "{document}");

    let (status, created) = send(&server, Method::POST, TABS, tab("a")).await;
    assert_eq!((status, &created["spec"]["replicas"]), (201, &json!(1)), "{created}");
    let old = "/apis/stable.example.com/v1beta1/namespaces/default/crontabs/a";
    let (_, seen) = get(&server, old).await;
    assert_eq!(seen["apiVersion"], "stable.example.com/v1beta1", "{seen}");
    let kept = json!({ "metadata": { "finalizers": ["example.com/hold"] } });
    assert_eq!(send(&server, Method::PATCH, &format!("{TABS}/a"), kept).await.0, 200);

    assert_eq!(send(&server, Method::DELETE, &one, Value::Null).await.0, 200);
    let (_, leaving) = get(&server, &one).await;
    assert!(leaving["metadata"]["deletionTimestamp"].is_string(), "an instance holds it: {leaving}");
    assert_eq!(send(&server, Method::POST, TABS, tab("b")).await.0, 405);
    let freed = json!({ "metadata": { "finalizers": null } });
    send(&server, Method::PATCH, &format!("{TABS}/a"), freed).await;
    assert_eq!((get(&server, &one).await.0, get(&server, TABS).await.0), (404, 404));
}

#[tokio::test]
async fn objects_of_a_defined_kind_are_validated_pruned_scaled_and_have_a_status() {
    let server = server().await;
    send(&server, Method::POST, DEFINITIONS, definition()).await;
    let mut odd = tab("a");
    odd["spec"]["odd"] = 1.into();
    let strict = format!("{TABS}?fieldValidation=Strict");
    let (status, refused) = send(&server, Method::POST, &strict, odd.clone()).await;
    assert_eq!(
        (status, &refused["message"]),
        (400, &json!("strict decoding error: unknown field \"spec.odd\""))
    );
    let kind = [("content-type", "application/json")];
    let (status, created, warnings) = raw(&server, Method::POST, TABS, &kind, &odd.to_string()).await;
    assert_eq!((status, created["spec"].get("odd")), (201, None), "{created}");
    assert_eq!(warnings, ["299 - \"unknown field 'spec.odd'\""]);
    let mut wrong = tab("b");
    wrong["spec"] = json!({ "replicas": "many" });
    let (status, refused) = send(&server, Method::POST, TABS, wrong).await;
    let message = refused["message"].as_str().unwrap_or_default();
    assert_eq!(status, 422);
    assert!(
        message.starts_with("CronTab.stable.example.com \"b\" is invalid: [spec.cronSpec: Required value, "),
        "{message}"
    );
    let one = format!("{TABS}/a");
    let scale = json!({ "spec": { "replicas": 3 } });
    let (status, scaled) = send(&server, Method::PATCH, &format!("{one}/scale"), scale).await;
    assert_eq!((status, &scaled["spec"]["replicas"]), (200, &json!(3)), "{scaled}");
    let told = json!({ "status": { "replicas": 2, "selector": "a=b" }, "spec": { "replicas": 9 } });
    let (_, after) = send(&server, Method::PATCH, &format!("{one}/status"), told).await;
    assert_eq!((&after["spec"]["replicas"], &after["status"]["replicas"]), (&json!(3), &json!(2)));
    assert_eq!(after["metadata"]["generation"], 2, "{after}");
    let (_, scaled) = get(&server, &format!("{one}/scale")).await;
    assert_eq!(scaled["status"], json!({ "replicas": 2, "selector": "a=b" }));
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    assert_eq!(raw(&server, Method::PATCH, &one, &strategic, "{}").await.0, 415);
    let apply = [("content-type", "application/apply-patch+yaml")];
    let applied = json!({ "apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": { "name": "a" }, "spec": { "cronSpec": "1" } });
    let path = format!("{one}?fieldManager=me");
    assert_eq!(raw(&server, Method::PATCH, &path, &apply, &applied.to_string()).await.0, 409);
    let path = format!("{one}?fieldManager=me&force=true");
    let (status, merged, _) = raw(&server, Method::PATCH, &path, &apply, &applied.to_string()).await;
    assert_eq!((status, &merged["spec"]["cronSpec"]), (200, &json!("1")), "{merged}");
}

#[tokio::test]
async fn two_definitions_cannot_have_one_name() {
    let server = server().await;
    send(&server, Method::POST, DEFINITIONS, definition()).await;
    let mut other = definition();
    other["metadata"]["name"] = "tabs.stable.example.com".into();
    other["spec"]["names"] = json!({ "plural": "tabs", "kind": "CronTab" });
    send(&server, Method::POST, DEFINITIONS, other).await;
    let (_, known) = get(&server, &format!("{DEFINITIONS}/tabs.stable.example.com")).await;
    assert_eq!(known["status"]["conditions"][0]["reason"], "NamesConflict", "{known}");
    assert_eq!(get(&server, "/apis/stable.example.com/v1/tabs").await.0, 404);
    send(&server, Method::DELETE, &format!("{DEFINITIONS}/crontabs.stable.example.com"), Value::Null).await;
    assert_eq!(get(&server, "/apis/stable.example.com/v1/tabs").await.0, 200);
}

#[tokio::test]
async fn a_namespace_goes_only_after_the_objects_of_defined_kinds_in_it() {
    let server = server().await;
    send(&server, Method::POST, DEFINITIONS, definition()).await;
    send(&server, Method::POST, "/api/v1/namespaces", json!({ "metadata": { "name": "gone" } })).await;
    let tabs = "/apis/stable.example.com/v1/namespaces/gone/crontabs";
    let mut held = tab("a");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    assert_eq!(send(&server, Method::POST, tabs, held).await.0, 201);
    send(&server, Method::DELETE, "/api/v1/namespaces/gone", Value::Null).await;
    let done = json!({ "metadata": { "name": "gone" }, "spec": { "finalizers": [] } });
    let finalize = "/api/v1/namespaces/gone/finalize";
    assert_eq!(send(&server, Method::PUT, finalize, done.clone()).await.0, 409);
    send(&server, Method::PATCH, &format!("{tabs}/a"), json!({ "metadata": { "finalizers": null } })).await;
    assert_eq!(send(&server, Method::PUT, finalize, done).await.0, 200);
    assert_eq!(get(&server, "/api/v1/namespaces/gone").await.0, 404);
}
