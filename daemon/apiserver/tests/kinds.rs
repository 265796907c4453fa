//! Every served kind, and the versions that some have.

use super::*;

fn collection(kind: &api::kinds::Kind) -> String {
    let group = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    let scope = if kind.namespaced { "/namespaces/default" } else { "" };
    format!("{group}/{}{scope}/{}", kind.version, kind.plural)
}

#[tokio::test]
async fn every_served_kind_is_listed_and_watched() {
    let server = server().await;
    for kind in api::kinds::kinds().iter().filter(|kind| kind.verbs.iter().any(|verb| verb == "watch")) {
        let path = collection(kind);
        let (status, list) = get(&server, &path).await;
        assert_eq!((status, &list["kind"]), (200, &json!(format!("{}List", kind.kind))), "{path}");
        assert_eq!(list["apiVersion"], kind.api_version());
        assert_eq!(get(&server, &format!("{path}?watch=true&timeoutSeconds=0")).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn an_event_is_one_object_in_both_its_groups() {
    let server = server().await;
    let (old, new) =
        ("/api/v1/namespaces/default/events", "/apis/events.k8s.io/v1/namespaces/default/events");
    let event = json!({ "metadata": { "name": "e" }, "regarding": { "kind": "Pod", "name": "p", "namespace": "default" },
        "note": "hello", "reason": "Tested", "type": "Normal", "action": "test", "eventTime": "2026-11-24T01:02:03.000004Z",
        "reportingController": "test", "reportingInstance": "t-1" });
    let (status, created) = send(&server, Method::POST, new, event).await;
    assert_eq!((status, &created["note"]), (201, &json!("hello")), "{created}");
    let (_, seen) = get(&server, &format!("{old}/e")).await;
    assert_eq!((&seen["message"], &seen["involvedObject"]["name"]), (&json!("hello"), &json!("p")));
    assert_eq!(seen["apiVersion"], "v1");
    let path = format!("{new}/e");
    let (_, changed) = send(&server, Method::PATCH, &path, json!({ "note": "again" })).await;
    assert_eq!(changed["note"], "again", "{changed}");
    let (_, listed) = get(&server, &format!("{new}?fieldSelector=regarding.name=p,type=Normal")).await;
    assert_eq!(listed["items"][0]["note"], "again", "{listed}");
    assert_eq!(
        get(&server, &format!("{old}?fieldSelector=involvedObject.name=q")).await.1["items"],
        json!([])
    );
    assert_eq!(send(&server, Method::DELETE, &path, Value::Null).await.0, 200);
    assert_eq!(get(&server, &format!("{old}/e")).await.0, 404);
}

#[tokio::test]
async fn a_kind_that_nothing_acts_on_yet_says_so_when_one_is_made() {
    let server = server().await;
    let set = json!({ "metadata": { "name": "s" }, "spec": { "serviceName": "s", "selector": { "matchLabels": { "app": "s" } },
        "template": { "metadata": { "labels": { "app": "s" } }, "spec": { "containers": [{ "name": "c", "image": "kubia:1" }] } } } });
    let kinds = api::kinds::kinds().iter().filter(|kind| kind.unattended().is_some());
    for kind in kinds.filter(|kind| kind.kind == "StatefulSet") {
        let (status, created, warnings) = raw(
            &server,
            Method::POST,
            &collection(kind),
            &[("content-type", "application/json")],
            &set.to_string(),
        )
        .await;
        assert_eq!(status, 201, "{created}");
        assert_eq!(created["status"]["replicas"], 0);
        assert!(warnings[0].contains("StatefulSet is stored, but nothing acts on it yet"), "{warnings:?}");
    }
}

#[tokio::test]
async fn a_replication_controller_is_scaled_by_its_labels() {
    let server = server().await;
    let controller = json!({ "metadata": { "name": "c" }, "spec": { "template": { "metadata": { "labels": { "app": "c" } },
        "spec": { "containers": [{ "name": "c", "image": "kubia:1" }] } } } });
    let path = "/api/v1/namespaces/default/replicationcontrollers";
    let (status, created) = send(&server, Method::POST, path, controller).await;
    assert_eq!((status, &created["spec"]["selector"]), (201, &json!({ "app": "c" })), "{created}");
    let scale = format!("{path}/c/scale");
    let (_, scaled) = send(&server, Method::PATCH, &scale, json!({ "spec": { "replicas": 2 } })).await;
    assert_eq!((&scaled["spec"]["replicas"], &scaled["status"]["selector"]), (&json!(2), &json!("app=c")));
}

#[tokio::test]
async fn kinds_of_flow_control_devices_and_addresses_are_kept_with_a_word_that_nothing_acts_on_them() {
    let server = server().await;
    let flow = json!({ "metadata": { "name": "a" }, "spec": { "matchingPrecedence": 10_000, "priorityLevelConfiguration": { "name": "low" },
        "rules": [{ "subjects": [{ "kind": "User", "user": { "name": "u" } }],
            "nonResourceRules": [{ "verbs": ["get"], "nonResourceURLs": ["*"] }] }] } });
    let level = json!({ "metadata": { "name": "a" }, "spec": { "type": "Limited", "limited": { "nominalConcurrencyShares": 2, "limitResponse": { "type": "Reject" } } } });
    let range = json!({ "metadata": { "name": "a" }, "spec": { "cidrs": ["10.9.0.0/24"] } });
    let address = json!({ "metadata": { "name": "10.9.0.1" }, "spec": { "parentRef": { "resource": "services", "namespace": "default", "name": "s" } } });
    let class = json!({ "metadata": { "name": "a" }, "spec": { "selectors": [{ "cel": { "expression": "true" } }] } });
    let claim = json!({ "metadata": { "name": "a" }, "spec": { "devices": { "requests": [{ "name": "r", "exactly": { "deviceClassName": "a" } }] } } });
    for (path, object) in [
        ("/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas", flow),
        ("/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations", level),
        ("/apis/networking.k8s.io/v1/servicecidrs", range),
        ("/apis/networking.k8s.io/v1/ipaddresses", address),
        ("/apis/resource.k8s.io/v1/deviceclasses", class),
        ("/apis/resource.k8s.io/v1/namespaces/default/resourceclaims", claim),
    ] {
        let json = [("content-type", "application/json")];
        let (status, made, warnings) = raw(&server, Method::POST, path, &json, &object.to_string()).await;
        assert_eq!((status, warnings.len()), (201, 1), "{made} {warnings:?}");
        let one = format!("{path}/{}", made["metadata"]["name"].as_str().unwrap());
        let label = json!({ "metadata": { "labels": { "a": "b" } } });
        assert_eq!(send(&server, Method::PATCH, &one, label).await.0, 200);
        if !path.ends_with("classes") && !path.ends_with("addresses") {
            let told = json!({ "status": { "conditions": [] } });
            let (status, told) = send(&server, Method::PATCH, &format!("{one}/status"), told).await;
            assert!(status == 200 || path.ends_with("claims"), "{told}");
        }
        let (_, list) = get(&server, &format!("{path}?labelSelector=a%3Db")).await;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
        assert_eq!(
            send(&server, Method::DELETE, &format!("{path}?labelSelector=a%3Db"), Value::Null).await.0,
            200
        );
        assert_eq!(get(&server, &one).await.0, 404);
    }
}
