//! Requests damaged in every way that a few seconds allow: each is answered, and none by a failure of the server.

use super::*;

#[path = "../../../tests/damage.rs"]
mod damaged;

/// Method, path and type of the body on the first line, then the body.
const REQUESTS: [&str; 9] = [
    "POST /api/v1/namespaces/default/configmaps?fieldManager=me&dryRun=All application/json\n{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"b\",\"labels\":{\"a\":\"1\"},\"generateName\":\"x-\"},\"data\":{\"v\":\"1\"}}",
    "POST /apis/apps/v1/namespaces/default/deployments?fieldValidation=Strict application/yaml\napiVersion: apps/v1\nkind: Deployment\nmetadata: &m {name: web}\nspec:\n  selector: {matchLabels: &l {app: web}}\n  template:\n    metadata: {labels: *l}\n    spec: {containers: [{name: c, image: i}]}\n",
    "PATCH /api/v1/namespaces/default/configmaps/a application/strategic-merge-patch+json\n{\"metadata\":{\"labels\":{\"app\":null},\"$deleteFromPrimitiveList/finalizers\":[\"x\"]},\"data\":{\"$patch\":\"replace\",\"w\":\"2\"}}",
    "PATCH /api/v1/namespaces/default/configmaps/a?fieldManager=me&force=true application/apply-patch+yaml\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata: {x: \"1\"}\n",
    "PATCH /api/v1/namespaces/default/configmaps/a application/json-patch+json\n[{\"op\":\"add\",\"path\":\"/data/x\",\"value\":\"1\"},{\"op\":\"copy\",\"from\":\"/data\",\"path\":\"/metadata/annotations\"}]",
    "PUT /api/v1/namespaces/default/configmaps/a application/json\n{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"1\",\"managedFields\":[{\"manager\":\"m\",\"operation\":\"Update\",\"fieldsV1\":{\"f:data\":{}}}]},\"data\":{}}",
    "GET /api/v1/pods?labelSelector=a+in+(b,c),!d&fieldSelector=status.phase%3DRunning&limit=5&continue=eyJydiI6MX0&resourceVersion=3&resourceVersionMatch=Exact application/json\n",
    "GET /api/v1/namespaces/default/configmaps?watch=true&resourceVersion=1&allowWatchBookmarks=true&sendInitialEvents=true&timeoutSeconds=1 application/json\n",
    "DELETE /api/v1/namespaces/default/configmaps/none?gracePeriodSeconds=0 application/json\n{\"kind\":\"DeleteOptions\",\"preconditions\":{\"uid\":\"u\"},\"propagationPolicy\":\"Orphan\"}",
];

const WORDS: [&str; 20] = [
    "/",
    "//",
    "%2F",
    "%",
    "?",
    "&",
    "=",
    "..",
    "/status",
    "/scale",
    "/apis/",
    "resourceVersion=",
    "\"metadata\":",
    "null",
    "application/yaml",
    "application/json",
    "\n",
    "*m",
    "&m ",
    "watch=1",
];

#[test]
fn damaged_requests_are_answered_and_leave_the_server_sound() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(async {
        let server = server().await;
        assert_eq!(send(&server, Method::POST, MAPS, map("a", "1")).await.0, 201);
        server
    });
    let mut answered = 0;
    damaged::each_text(&REQUESTS, &WORDS, 4000, |text| {
        let (head, body) = text.split_once('\n').unwrap_or((text, ""));
        let mut words = head.splitn(3, ' ');
        let method = words.next().and_then(|word| Method::from_bytes(word.as_bytes()).ok());
        let Some(method) = method else { return };
        let request = Request::builder()
            .method(method)
            .uri(words.next().unwrap_or("/"))
            .header("content-type", words.next().unwrap_or_default())
            .body(kube::client::Body::from(body.as_bytes().to_vec()));
        let Ok(request) = request else { return };
        let response = runtime.block_on(server.door(User::room("test")).oneshot(request)).unwrap();
        assert_ne!(response.status().as_u16(), 500, "{text:?}");
        answered += 1;
    });
    assert!(answered > 2000, "only {answered} were requests still");
    let (status, list) = runtime.block_on(get(&server, MAPS));
    assert_eq!(status, 200, "{list}");
}

#[tokio::test]
async fn bodies_that_unfold_or_nest_without_end_are_refused() {
    let server = server().await;
    let aliases = format!(
        "kind: ConfigMap\nmetadata: {{name: b}}\ndata: {{a: &a \"{}\"}}\nx: [{}]",
        "x".repeat(500_000),
        "*a,".repeat(100_000)
    );
    let bombs = [
        aliases,
        "[".repeat(1_000_000),
        "{\"a\":".repeat(500_000),
        "- ".repeat(20_000),
        "a: ".repeat(500_000),
    ];
    for body in bombs {
        for kind in ["application/json", "application/yaml"] {
            let (status, ..) = raw(&server, Method::POST, MAPS, &[("content-type", kind)], &body).await;
            assert_eq!(status, 400, "{kind} {}", &body[..60]);
        }
    }
}
