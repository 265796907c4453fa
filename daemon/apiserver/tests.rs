//! The API as clients see it, over a store in memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by panicking")]

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::{Method, Request};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use store::Store;
use store::memory_disk::MemoryDisk;
use tower::ServiceExt;

use super::*;

mod admission;
mod behaviour;
mod custom;
mod damage;
mod dynamic;
mod history;
mod kinds;
mod mutation;
mod pods;
mod protocol;

pub(crate) async fn server() -> Server {
    let store = Store::open(Box::new(MemoryDisk::default()), Head::parse, &store::Config::default()).unwrap();
    Server::open(store, &Config::default(), Arc::new(Timestamp::now)).await.unwrap()
}

async fn raw(
    server: &Server,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, Value, Vec<String>) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(kube::client::Body::from(body.as_bytes().to_vec())).unwrap();
    let response = server.door(User::room("test")).oneshot(request).await.unwrap();
    let warnings = response
        .headers()
        .get_all("warning")
        .iter()
        .map(|value| value.to_str().unwrap().to_owned())
        .collect();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null), warnings)
}

async fn send(server: &Server, method: Method, path: &str, body: Value) -> (u16, Value) {
    let kind = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, value, _) = raw(server, method, path, &[("content-type", kind)], &body).await;
    (status, value)
}

async fn get(server: &Server, path: &str) -> (u16, Value) {
    send(server, Method::GET, path, Value::Null).await
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, value: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "labels": { "app": value } }, "data": { "v": value } })
}

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": { "containers": [{ "name": "c", "image": "kubia:1" }] } },
        },
    })
}

#[tokio::test]
async fn what_was_created_is_read_back_with_what_the_server_adds() {
    let server = server().await;
    let (status, created) = send(&server, Method::POST, MAPS, map("a", "1")).await;
    assert_eq!(status, 201);
    let (status, read) = get(&server, &format!("{MAPS}/a")).await;
    assert_eq!((status, &read), (200, &created));
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        assert!(read["metadata"][field].is_string(), "{field}: {read}");
    }
    assert_eq!(send(&server, Method::POST, MAPS, map("a", "2")).await.1["reason"], "AlreadyExists");
    assert_eq!(get(&server, &format!("{MAPS}/b")).await.1["message"], "configmaps \"b\" not found");
}

#[tokio::test]
async fn an_update_from_an_old_version_is_a_conflict() {
    let server = server().await;
    let (_, old) = send(&server, Method::POST, MAPS, map("a", "1")).await;
    let path = format!("{MAPS}/a");
    assert_eq!(send(&server, Method::PUT, &path, map("a", "2")).await.0, 200);
    let (status, refused) = send(&server, Method::PUT, &path, old).await;
    assert_eq!((status, &refused["reason"]), (409, &json!("Conflict")));
}

#[tokio::test]
async fn a_change_that_changes_nothing_keeps_the_version() {
    let server = server().await;
    let (_, created) = send(&server, Method::POST, MAPS, map("a", "1")).await;
    let (_, same) = send(&server, Method::PATCH, &format!("{MAPS}/a"), json!({ "data": { "v": "1" } })).await;
    assert_eq!(same["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn generation_counts_the_wanted_state_only() {
    let server = server().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let (status, created) = send(&server, Method::POST, path, deployment("web")).await;
    assert_eq!((status, &created["metadata"]["generation"]), (201, &json!(1)), "{created}");
    let path = format!("{path}/web");
    let (_, labelled) =
        send(&server, Method::PATCH, &path, json!({ "metadata": { "labels": { "x": "y" } } })).await;
    assert_eq!(labelled["metadata"]["generation"], 1);
    let (_, told) = send(
        &server,
        Method::PATCH,
        &format!("{path}/status"),
        json!({ "status": { "replicas": 1 }, "spec": { "replicas": 9 } }),
    )
    .await;
    assert_eq!(
        (&told["metadata"]["generation"], &told["status"]["replicas"], &told["spec"]["replicas"]),
        (&json!(1), &json!(1), &json!(1))
    );
    let (_, scaled) =
        send(&server, Method::PATCH, &format!("{path}/scale"), json!({ "spec": { "replicas": 4 } })).await;
    assert_eq!(scaled["spec"]["replicas"], 4, "{scaled}");
    assert_eq!(get(&server, &path).await.1["metadata"]["generation"], 2);
}

#[tokio::test]
async fn invalid_objects_are_refused_with_their_field_paths() {
    let server = server().await;
    let mut bad = deployment("web");
    bad["spec"]["template"]["spec"]["containers"][0]["image"] = Value::Null;
    bad["spec"]["replicas"] = json!(-1);
    let (status, refused) =
        send(&server, Method::POST, "/apis/apps/v1/namespaces/default/deployments", bad).await;
    assert_eq!(status, 422);
    let fields: Vec<&str> = refused["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|cause| cause["field"].as_str())
        .collect();
    assert!(
        fields.contains(&"spec.replicas") && fields.contains(&"spec.template.spec.containers[0].image"),
        "{refused}"
    );
}

#[tokio::test]
async fn unknown_fields_are_warned_of_or_refused_as_asked() {
    let server = server().await;
    let mut odd = map("a", "1");
    odd["dataa"] = json!({});
    let json = [("content-type", "application/json")];
    let (status, created, warnings) = raw(&server, Method::POST, MAPS, &json, &odd.to_string()).await;
    assert_eq!((status, warnings.len()), (201, 1), "{warnings:?}");
    assert!(created.get("dataa").is_none());
    odd["metadata"]["name"] = json!("b");
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let (status, refused, _) = raw(&server, Method::POST, &strict, &json, &odd.to_string()).await;
    assert_eq!(status, 400);
    assert!(refused["message"].as_str().unwrap().contains("unknown field \"dataa\""), "{refused}");
}

#[tokio::test]
async fn server_side_apply_creates_merges_and_names_the_other_manager() {
    let server = server().await;
    let apply = |manager: &str, force: bool, value: &str| {
        let path = format!("{MAPS}/a?fieldManager={manager}&force={force}");
        let body = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "v": value } }).to_string();
        let server = server.clone();
        async move {
            raw(&server, Method::PATCH, &path, &[("content-type", "application/apply-patch+yaml")], &body)
                .await
        }
    };
    assert_eq!(apply("one", false, "1").await.0, 201);
    let (_, again, _) = apply("one", false, "1").await;
    let (_, read) = get(&server, &format!("{MAPS}/a")).await;
    assert_eq!(again, read);
    let (status, refused, _) = apply("two", false, "2").await;
    assert_eq!(status, 409);
    assert!(refused["message"].as_str().unwrap().contains("conflict with \"one\""), "{refused}");
    let (status, forced, _) = apply("two", true, "2").await;
    assert_eq!((status, &forced["data"]["v"]), (200, &json!("2")));
}

#[tokio::test]
async fn a_dry_run_shows_the_object_and_stores_nothing() {
    let server = server().await;
    let before = server.revision();
    let (status, shown) = send(&server, Method::POST, &format!("{MAPS}?dryRun=All"), map("a", "1")).await;
    assert_eq!((status, &shown["data"]["v"]), (201, &json!("1")));
    assert_eq!(get(&server, &format!("{MAPS}/a")).await.0, 404);
    assert_eq!(server.revision(), before);
}

#[tokio::test]
async fn pages_of_a_list_come_from_one_snapshot() {
    let server = server().await;
    for n in 0..7 {
        send(&server, Method::POST, MAPS, map(&format!("m{n}"), "x")).await;
    }
    let (_, first) = get(&server, &format!("{MAPS}?limit=3")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    send(&server, Method::DELETE, &format!("{MAPS}/m5"), Value::Null).await;
    let mut names: Vec<String> = Vec::new();
    let mut page = first;
    loop {
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        page = get(&server, &format!("{MAPS}?limit=3&continue={token}")).await.1;
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
}

#[tokio::test]
async fn selectors_choose_by_label_and_field() {
    let server = server().await;
    send(&server, Method::POST, MAPS, map("a", "1")).await;
    send(&server, Method::POST, MAPS, map("b", "2")).await;
    let count = |list: Value| list["items"].as_array().unwrap().len();
    assert_eq!(count(get(&server, &format!("{MAPS}?labelSelector=app%20in%20(1,3)")).await.1), 1);
    assert_eq!(count(get(&server, &format!("{MAPS}?fieldSelector=metadata.name!=a")).await.1), 1);
    assert_eq!(get(&server, &format!("{MAPS}?fieldSelector=data.v=1")).await.0, 400);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_they_are_gone() {
    let server = server().await;
    let mut held = map("a", "1");
    held["metadata"]["finalizers"] = json!(["example.org/hold"]);
    send(&server, Method::POST, MAPS, held).await;
    let path = format!("{MAPS}/a");
    let (_, going) = send(&server, Method::DELETE, &path, Value::Null).await;
    assert!(going["metadata"]["deletionTimestamp"].is_string(), "{going}");
    assert_eq!(
        send(&server, Method::PATCH, &path, json!({ "metadata": { "finalizers": null } })).await.0,
        200
    );
    assert_eq!(get(&server, &path).await.0, 404);
}

#[tokio::test]
async fn services_get_addresses_that_nobody_else_has() {
    let server = server().await;
    let path = "/api/v1/namespaces/default/services";
    let service = |name: &str| json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": { "type": "NodePort", "selector": { "a": "b" }, "ports": [{ "port": 80 }] } });
    let makes = (0..20).map(|n| send(&server, Method::POST, path, service(&format!("s{n}"))));
    let made: Vec<Value> = futures::future::join_all(makes).await.into_iter().map(|(_, made)| made).collect();
    let distinct = |pick: &dyn Fn(&Value) -> String| {
        made.iter().map(pick).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(distinct(&|made| made["spec"]["clusterIP"].to_string()), 20);
    assert_eq!(distinct(&|made| made["spec"]["ports"][0]["nodePort"].to_string()), 20);
    let mut taken = service("t");
    taken["spec"]["clusterIP"] = made[0]["spec"]["clusterIP"].clone();
    assert_eq!(send(&server, Method::POST, path, taken).await.0, 422);
}

#[tokio::test]
async fn a_watch_tells_every_change_after_its_start_in_order() {
    let server = server().await;
    let (_, list) = get(&server, MAPS).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let path = format!("{MAPS}?watch=true&resourceVersion={version}&labelSelector=app=1");
    let request = Request::builder().uri(path).body(kube::client::Body::empty()).unwrap();
    let response = server.door(User::room("test")).oneshot(request).await.unwrap();
    let mut body = response.into_body().into_data_stream();
    send(&server, Method::POST, MAPS, map("a", "1")).await;
    send(&server, Method::PATCH, &format!("{MAPS}/a"), json!({ "data": { "v": "2" } })).await;
    send(&server, Method::PATCH, &format!("{MAPS}/a"), json!({ "metadata": { "labels": { "app": "0" } } }))
        .await;
    let mut told = String::new();
    while told.lines().count() < 3 {
        let chunk = tokio::time::timeout(Duration::from_secs(5), body.next())
            .await
            .expect("events arrive")
            .unwrap()
            .unwrap();
        told.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    let types: Vec<String> = told
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(types, ["ADDED", "MODIFIED", "DELETED"]);
}

#[tokio::test]
async fn strangers_may_ask_for_the_version_only() {
    let server = server().await;
    let ask = |path: &'static str| {
        let door = server.door(User::anonymous());
        async move {
            door.oneshot(Request::builder().uri(path).body(kube::client::Body::empty()).unwrap())
                .await
                .unwrap()
                .status()
                .as_u16()
        }
    };
    assert_eq!(ask("/version").await, 200);
    assert_eq!(ask("/api/v1/namespaces/default/secrets").await, 403);
}

#[tokio::test]
async fn nothing_enters_a_namespace_that_is_missing_or_going() {
    let server = server().await;
    assert_eq!(
        send(&server, Method::POST, "/api/v1/namespaces/nowhere/configmaps", map("a", "1")).await.0,
        404
    );
    send(&server, Method::POST, "/api/v1/namespaces", json!({ "metadata": { "name": "gone" } })).await;
    send(&server, Method::DELETE, "/api/v1/namespaces/gone", Value::Null).await;
    assert_eq!(send(&server, Method::POST, "/api/v1/namespaces/gone/configmaps", map("a", "1")).await.0, 403);
}

#[tokio::test]
async fn bodies_that_are_hostile_get_a_clean_refusal() {
    let server = server().await;
    let json = [("content-type", "application/json")];
    assert_eq!(raw(&server, Method::POST, MAPS, &json, "{").await.0, 400);
    assert_eq!(raw(&server, Method::POST, MAPS, &json, "[]").await.0, 400);
    assert_eq!(raw(&server, Method::POST, MAPS, &json, &"[".repeat(100_000)).await.0, 400);
    assert_eq!(raw(&server, Method::POST, MAPS, &json, &" ".repeat(4 << 20)).await.0, 413);
    assert_eq!(raw(&server, Method::POST, MAPS, &[("content-type", "text/html")], "<p>").await.0, 415);
    assert_eq!(raw(&server, Method::GET, "/api/v1/namespaces/%ff/pods", &[], "").await.0, 404);
}
