//! Which form an answer has: JSON, YAML or protobuf, whole or in part, whole or as a stream.

use api::proto;
use bytes::Bytes;

use super::*;

/// Status, content type and bytes of what an administrator on the network gets.
async fn ask(server: &Server, method: Method, path: &str, accept: &str, body: &str) -> (u16, String, Bytes) {
    let request = Request::builder().method(method).uri(path).header("accept", accept);
    let request = request.body(kube::client::Body::from(body.as_bytes().to_vec())).unwrap();
    let admin = User { room: false, ..User::room("admin") };
    let response = server.door(admin).oneshot(request).await.unwrap();
    let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    (response.status().as_u16(), content_type, response.into_body().collect().await.unwrap().to_bytes())
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

#[tokio::test]
async fn answers_come_in_protobuf_to_those_who_ask() {
    let server = server().await;
    let (status, kind, made) = ask(&server, Method::POST, MAPS, PROTOBUF, &map("a", "1").to_string()).await;
    assert_eq!((status, kind.as_str()), (201, PROTOBUF));
    let path = format!("{MAPS}/a");
    let stored = get(&server, &path).await.1;
    assert_eq!(proto::decode(&made).unwrap(), stored);
    let (_, _, read) = ask(&server, Method::GET, &path, PROTOBUF, "").await;
    assert_eq!(proto::decode(&read).unwrap(), stored);
    let (_, _, listed) = ask(&server, Method::GET, MAPS, PROTOBUF, "").await;
    let listed = proto::decode(&listed).unwrap();
    assert_eq!((&listed["kind"], &listed["items"][0]["data"]), (&json!("ConfigMapList"), &stored["data"]));
    let partial = format!("{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
    let (_, _, part) = ask(&server, Method::GET, &path, &partial, "").await;
    let part = proto::decode(&part).unwrap();
    assert_eq!((&part["metadata"], part.get("data")), (&stored["metadata"], None));
    let (status, kind, gone) = ask(&server, Method::GET, &format!("{MAPS}/none"), PROTOBUF, "").await;
    assert_eq!((status, kind.as_str()), (404, PROTOBUF));
    assert_eq!(proto::decode(&gone).unwrap()["message"], "configmaps \"none\" not found");
}

#[tokio::test]
async fn a_watch_in_protobuf_is_a_row_of_events_behind_their_lengths() {
    let server = server().await;
    let stored = send(&server, Method::POST, MAPS, map("a", "1")).await.1;
    let path = format!("{MAPS}?watch=1&timeoutSeconds=0&allowWatchBookmarks=1&resourceVersion=0");
    let (status, kind, bytes) =
        ask(&server, Method::GET, &path, "application/vnd.kubernetes.protobuf;stream=watch", "").await;
    assert_eq!((status, kind.as_str()), (200, "application/vnd.kubernetes.protobuf;stream=watch"));
    let (mut rest, mut events) = (&bytes[..], Vec::new());
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (event, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        events.push(event.to_vec());
        rest = after;
    }
    let mark = events.last().unwrap();
    assert!(mark.starts_with(b"\x0a\x08BOOKMARK"), "{events:?}");
    let maps: Vec<Value> = events
        .iter()
        .filter_map(|event| {
            let start = event.windows(4).position(|four| four == b"k8s\0")?;
            proto::decode(&event[start..]).ok()
        })
        .collect();
    assert!(maps.contains(&stored), "{maps:?}");
}

#[tokio::test]
async fn of_what_is_accepted_the_most_wanted_that_is_served_is_given() {
    let server = server().await;
    send(&server, Method::POST, MAPS, map("a", "1")).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    for (accept, status, kind) in [
        ("", 200, "application/json"),
        ("*/*", 200, "application/json"),
        ("application/*;q=0.3, application/yaml;q=0.5", 200, "application/yaml"),
        ("application/yaml;q=0.2,application/vnd.kubernetes.protobuf;q=0.7", 200, PROTOBUF),
        ("application/yaml, application/vnd.kubernetes.protobuf", 200, "application/yaml"),
        ("*/*, application/vnd.kubernetes.protobuf", 200, PROTOBUF),
        ("application/json;q=0, application/yaml", 200, "application/yaml"),
        ("text/html, */*;q=0.8", 200, "application/json"),
        ("application/vnd.kubernetes.protobuf;as=Table, application/json", 200, "application/json"),
        ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", 406, "application/json"),
        ("text/plain", 406, "application/json"),
        ("application/json;q=0", 406, "application/json"),
        (table, 200, "application/json"),
    ] {
        let (found, told, _) = ask(&server, Method::GET, &format!("{MAPS}/a"), accept, "").await;
        assert_eq!((found, told.as_str()), (status, kind), "{accept:?}");
    }
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(ask(&server, Method::POST, path, table, &review.to_string()).await.0, 406);
    assert_eq!(ask(&server, Method::GET, &format!("{MAPS}?watch=1"), "application/yaml", "").await.0, 406);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_asked_is_told_each_minute_how_far_it_has_come() {
    let server = server().await;
    let ask = async |asked: &str| {
        let path = format!("{MAPS}?watch=1&timeoutSeconds=200{asked}");
        String::from_utf8(ask(&server, Method::GET, &path, "", "").await.2.to_vec()).unwrap()
    };
    let told = ask("&allowWatchBookmarks=true").await;
    let marks: Vec<&str> = told.lines().filter(|line| line.contains("BOOKMARK")).collect();
    // Three full minutes at least lie in 200 seconds, and one mark comes at the end.
    assert!(matches!(marks.len(), 4 | 5), "{told}");
    assert!(marks.iter().all(|mark| !mark.contains("initial-events-end")), "{told}");
    assert!(!ask("").await.contains("BOOKMARK"));
    let listed = "&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let told = ask(listed).await;
    let ends: Vec<&str> = told.lines().filter(|line| line.contains("initial-events-end")).collect();
    assert_eq!(ends.len(), 1, "{told}");
    let mark: Value = serde_json::from_str(ends[0]).unwrap();
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn a_key_that_a_yaml_body_gives_twice_is_told_or_refused_as_asked() {
    let server = server().await;
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  a: x\n  a: y\n";
    let create = [("content-type", "application/yaml")];
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let (status, refused, _) = raw(&server, Method::POST, &strict, &create, body).await;
    let message = refused["message"].as_str().unwrap();
    assert_eq!(status, 400);
    assert!(
        message.starts_with("strict decoding error: ")
            && message.contains("line 7: key \"a\" already set in map"),
        "{refused}"
    );
    let (status, made, warnings) = raw(&server, Method::POST, MAPS, &create, body).await;
    assert_eq!((status, &made["data"]["a"]), (201, &json!("y")));
    assert!(warnings[0].contains("line 7: key 'a' already set in map"), "{warnings:?}");
    let ignored = format!("{MAPS}/a?fieldManager=m&fieldValidation=Ignore&force=true");
    let apply = [("content-type", "application/apply-patch+yaml")];
    let (status, _, warnings) = raw(&server, Method::PATCH, &ignored, &apply, body).await;
    assert_eq!((status, warnings.len()), (200, 0), "{warnings:?}");
    let strict = format!("{MAPS}/a?fieldManager=m&fieldValidation=Strict&force=true");
    assert_eq!(raw(&server, Method::PATCH, &strict, &apply, body).await.0, 400);
}

#[tokio::test]
async fn whoever_applies_a_scale_owns_the_replicas_and_nothing_else() {
    let server = server().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    send(&server, Method::POST, path, deployment("web")).await;
    let apply = async |manager: &str, force: bool, replicas: i64| {
        let path = format!("{path}/web/scale?fieldManager={manager}&force={force}");
        let body = json!({ "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": { "name": "web" }, "spec": { "replicas": replicas } });
        raw(
            &server,
            Method::PATCH,
            &path,
            &[("content-type", "application/apply-patch+yaml")],
            &body.to_string(),
        )
        .await
    };
    // Whoever made the Deployment owns its default.
    let (status, refused, _) = apply("scaler", false, 4).await;
    assert_eq!((status, &refused["reason"]), (409, &json!("Conflict")), "{refused}");
    let (status, scale, _) = apply("scaler", true, 4).await;
    assert_eq!(
        (status, &scale["kind"], &scale["spec"]["replicas"]),
        (200, &json!("Scale"), &json!(4)),
        "{scale}"
    );
    let (_, live) = get(&server, &format!("{path}/web")).await;
    let own = |manager: &str| {
        live["metadata"]["managedFields"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["manager"] == manager)
            .cloned()
    };
    let entry = own("scaler").unwrap();
    assert_eq!(
        (&entry["subresource"], &entry["operation"], &entry["apiVersion"]),
        (&json!("scale"), &json!("Apply"), &json!("apps/v1"))
    );
    assert_eq!(entry["fieldsV1"], json!({ "f:spec": { "f:replicas": {} } }));
    assert_eq!(live["spec"]["replicas"], 4);
    let (status, refused, _) = apply("other", false, 5).await;
    assert_eq!(status, 409);
    assert!(
        refused["message"].as_str().unwrap().contains("\"scaler\" with subresource \"scale\""),
        "{refused}"
    );
}

#[tokio::test]
async fn every_group_that_is_served_here_has_a_local_api_service() {
    let server = server().await;
    let path = "/apis/apiregistration.k8s.io/v1/apiservices";
    let names = async || {
        let (_, list) = get(&server, path).await;
        let items = list["items"].as_array().unwrap().clone();
        for item in &items {
            let told = &item["status"]["conditions"][0];
            assert_eq!(
                (&told["type"], &told["status"], &told["reason"]),
                (&json!("Available"), &json!("True"), &json!("Local")),
                "{item}"
            );
        }
        items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = names().await;
    for name in ["v1.", "v1.apps", "v2.autoscaling", "v1.apiextensions.k8s.io"] {
        assert!(first.iter().any(|known| known == name), "{name}: {first:?}");
    }
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = json!({ "metadata": { "name": "tabs.example.com" }, "spec": { "group": "example.com", "scope": "Cluster",
        "names": { "plural": "tabs", "kind": "Tab" }, "versions": [{ "name": "v1", "served": true, "storage": true,
        "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }] } });
    let (status, made) = send(&server, Method::POST, definitions, definition).await;
    assert_eq!(status, 201, "{made}");
    assert!(names().await.contains(&"v1.example.com".to_owned()));
    // One that is deleted comes back, as long as its group is served.
    send(&server, Method::DELETE, &format!("{path}/v1.example.com"), Value::Null).await;
    assert!(names().await.contains(&"v1.example.com".to_owned()));
    send(&server, Method::DELETE, &format!("{definitions}/tabs.example.com"), Value::Null).await;
    assert_eq!(names().await, first);
}
