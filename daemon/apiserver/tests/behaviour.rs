//! What lists, watches, writes and encodings do at their edges.

use super::*;

#[tokio::test]
async fn a_service_gives_back_what_its_new_type_does_not_use() {
    let server = server().await;
    let path = "/api/v1/namespaces/default/services";
    let service = json!({ "metadata": { "name": "s" }, "spec": { "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{ "port": 80 }] } });
    let (status, made) = send(&server, Method::POST, path, service).await;
    assert_eq!(status, 201, "{made}");
    let spec = &made["spec"];
    assert!(spec["ports"][0]["nodePort"].is_number() && spec["healthCheckNodePort"].is_number(), "{spec}");
    assert_ne!(spec["ports"][0]["nodePort"], spec["healthCheckNodePort"]);
    let path = format!("{path}/s");
    let (status, plain) =
        send(&server, Method::PATCH, &path, json!({ "spec": { "type": "ClusterIP" } })).await;
    assert_eq!((status, &plain["spec"]["clusterIP"]), (200, &spec["clusterIP"]), "{plain}");
    for field in ["healthCheckNodePort", "externalTrafficPolicy", "allocateLoadBalancerNodePorts"] {
        assert_eq!(plain["spec"][field], Value::Null, "{field}");
    }
    assert_eq!(plain["spec"]["ports"][0]["nodePort"], Value::Null);
    let named = json!({ "spec": { "type": "ExternalName", "externalName": "example.com" } });
    let (status, named) = send(&server, Method::PATCH, &path, named).await;
    assert_eq!(
        (status, &named["spec"]["clusterIP"], &named["spec"]["clusterIPs"]),
        (200, &Value::Null, &Value::Null),
        "{named}"
    );
    let (status, back) =
        send(&server, Method::PATCH, &path, json!({ "spec": { "type": "NodePort", "externalName": null } }))
            .await;
    assert_eq!(status, 200, "{back}");
    assert!(
        back["spec"]["clusterIP"].is_string() && back["spec"]["ports"][0]["nodePort"].is_number(),
        "{back}"
    );
}

#[tokio::test]
async fn a_list_whose_state_is_gone_goes_on_from_what_is_there() {
    let clock = Arc::new(std::sync::atomic::AtomicI64::new(1_800_000_000));
    let now = {
        let clock = Arc::clone(&clock);
        Arc::new(move || Timestamp::new(clock.load(std::sync::atomic::Ordering::SeqCst), 0).unwrap())
    };
    let store = Store::open(Box::new(MemoryDisk::default()), Head::parse, &store::Config::default()).unwrap();
    let server = Server::open(store, &Config::default(), now).await.unwrap();
    for name in ["a", "b", "c"] {
        send(&server, Method::POST, MAPS, map(name, "1")).await;
    }
    let (_, first) = get(&server, &format!("{MAPS}?limit=1")).await;
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    send(&server, Method::POST, MAPS, map("bb", "1")).await;
    let (_, second) = get(&server, &format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(second["items"][1]["metadata"]["name"], "c", "the snapshot is the first page's");
    clock.fetch_add(301, std::sync::atomic::Ordering::SeqCst);
    let (status, gone) = get(&server, &format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!((status, &gone["reason"]), (410, &json!("Expired")));
    let token = gone["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = get(&server, &format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(
        (&rest["items"][0]["metadata"]["name"], &rest["items"][1]["metadata"]["name"]),
        (&json!("b"), &json!("bb"))
    );
    for query in [
        "resourceVersionMatch=Exact",
        "resourceVersionMatch=Exact&resourceVersion=0",
        "resourceVersionMatch=No&resourceVersion=1",
    ] {
        assert_eq!(get(&server, &format!("{MAPS}?{query}")).await.0, 400, "{query}");
    }
}

#[tokio::test]
async fn an_object_that_leaves_a_selection_is_told_as_it_was_in_it() {
    let server = server().await;
    let (_, made) = send(&server, Method::POST, MAPS, map("a", "in")).await;
    let version = made["metadata"]["resourceVersion"].as_str().unwrap();
    let (_, out) = send(
        &server,
        Method::PATCH,
        &format!("{MAPS}/a"),
        json!({ "metadata": { "labels": { "app": "out" } } }),
    )
    .await;
    let path = format!("{MAPS}?watch=true&resourceVersion={version}&labelSelector=app%3Din&timeoutSeconds=1");
    let request = Request::get(&path).body(kube::client::Body::empty()).unwrap();
    let response = server.door(User::room("test")).oneshot(request).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let event: Value = serde_json::from_slice(bytes.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["labels"]["app"]),
        (&json!("DELETED"), &json!("in"))
    );
    assert_eq!(event["object"]["metadata"]["resourceVersion"], out["metadata"]["resourceVersion"]);
    assert_eq!(get(&server, &format!("{MAPS}?watch=true&sendInitialEvents=true")).await.0, 422);
}

#[tokio::test]
async fn a_field_given_twice_is_told_or_refused_as_asked() {
    let server = server().await;
    let body = r#"{"metadata":{"name":"a"},"data":{"x":"1","x":"2"}}"#;
    let json_type = [("content-type", "application/json")];
    let (status, _, warnings) = raw(&server, Method::POST, MAPS, &json_type, body).await;
    assert_eq!(
        (status, warnings.as_slice()),
        (201, ["299 - \"duplicate field 'data.x'\"".to_owned()].as_slice())
    );
    let path = format!("{MAPS}?fieldValidation=Strict");
    let (status, answer, _) = raw(&server, Method::POST, &path, &json_type, body).await;
    assert_eq!(
        (status, &answer["message"]),
        (400, &json!("strict decoding error: duplicate field \"data.x\""))
    );
    let path = format!("{MAPS}?fieldValidation=Ignore");
    assert_eq!(
        raw(&server, Method::POST, &path, &json_type, &body.replace("\"a\"", "\"b\"")).await.2,
        [""; 0]
    );
}

#[tokio::test]
async fn a_deletion_on_trial_deletes_nothing() {
    let server = server().await;
    send(&server, Method::POST, MAPS, map("a", "1")).await;
    let trial = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"] });
    assert_eq!(send(&server, Method::DELETE, &format!("{MAPS}/a"), trial).await.0, 200);
    assert_eq!(get(&server, &format!("{MAPS}/a")).await.0, 200);
}

#[tokio::test]
async fn an_object_too_large_to_store_is_refused_cleanly() {
    let server = server().await;
    let mut large = map("a", "1");
    large["metadata"]["annotations"] = json!({ "a": "x".repeat(1000) });
    let list: Vec<Value> =
        (0..1700).map(|at| json!({ "name": format!("p{at}"), "image": "x".repeat(900) })).collect();
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": list } });
    let (status, answer) = send(&server, Method::POST, "/api/v1/namespaces/default/pods", pod).await;
    assert_eq!((status, &answer["reason"]), (413, &json!("RequestEntityTooLarge")));
    let deep = format!("{{\"metadata\":{}{}}}", "{\"a\":".repeat(5000), "}".repeat(5000));
    assert_eq!(raw(&server, Method::POST, MAPS, &[("content-type", "application/json")], &deep).await.0, 400);
    assert_eq!(send(&server, Method::POST, MAPS, large).await.0, 201);
}

#[tokio::test]
async fn answers_come_as_yaml_and_packed_to_those_who_ask() {
    let server = server().await;
    let value = "x".repeat(200_000);
    send(&server, Method::POST, MAPS, map("a", "1")).await;
    send(&server, Method::PATCH, &format!("{MAPS}/a"), json!({ "data": { "v": value } })).await;
    let administrator = User::certified("admin", ["system:masters".to_owned()].into_iter());
    let get = async |accept: &str, encoding: &str| {
        let request =
            Request::get(format!("{MAPS}/a")).header("accept", accept).header("accept-encoding", encoding);
        let request = request.body(kube::client::Body::empty()).unwrap();
        let response = server.door(administrator.clone()).oneshot(request).await.unwrap();
        let packed = response.headers().get("content-encoding").is_some();
        (packed, response.into_body().collect().await.unwrap().to_bytes())
    };
    let (packed, bytes) = get("application/json", "gzip").await;
    assert!(packed && bytes.len() < 20_000, "{} bytes", bytes.len());
    let (packed, bytes) = get("application/yaml", "").await;
    let read: Value = serde_yaml::from_slice(&bytes).unwrap();
    assert_eq!((packed, read["data"]["v"].as_str().map(str::len)), (false, Some(200_000)));
    assert!(!bytes.starts_with(b"{"));
}

#[tokio::test]
async fn a_status_may_come_with_annotations() {
    let server = server().await;
    let path = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let ingress = json!({ "metadata": { "name": "i" }, "spec": { "defaultBackend": { "service": { "name": "s", "port": { "number": 80 } } } } });
    assert_eq!(send(&server, Method::POST, path, ingress).await.0, 201);
    let told = json!({ "metadata": { "annotations": { "patched": "true" } }, "status": { "loadBalancer": { "ingress": [{ "ip": "10.0.0.1" }] } } });
    let (status, told) = send(&server, Method::PATCH, &format!("{path}/i/status"), told).await;
    assert_eq!((status, &told["metadata"]["annotations"]["patched"]), (200, &json!("true")), "{told}");
}

#[tokio::test]
async fn a_put_makes_roles_and_endpoints_that_are_not_there() {
    let server = server().await;
    let path = "/api/v1/namespaces/default/endpoints/e";
    assert_eq!(send(&server, Method::PUT, path, json!({ "metadata": { "name": "e" } })).await.0, 201);
    assert_eq!(send(&server, Method::PUT, path, json!({ "metadata": { "name": "e" } })).await.0, 200);
    assert_eq!(send(&server, Method::PUT, &format!("{MAPS}/m"), map("m", "1")).await.0, 404);
}
