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
