//! What the built-in plugins make of objects, and what they refuse.

use super::*;

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str, spec: Value) -> Value {
    let mut whole = json!({ "containers": [{ "name": "c", "image": "kubia:1" }] });
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({ "metadata": { "name": name }, "spec": whole })
}

async fn made(server: &Server, path: &str, object: Value) -> Value {
    let (status, created) = send(server, Method::POST, path, object).await;
    assert_eq!(status, 201, "{created}");
    created
}

#[track_caller]
fn refused((status, answer): (u16, Value), wanted: &str) {
    assert_eq!((status, answer["message"].as_str().unwrap()), (403, wanted));
}

#[tokio::test]
async fn a_pod_gets_its_account_s_token_unless_somebody_wants_none() {
    let server = server().await;
    let created = made(&server, PODS, pod("p", json!({}))).await;
    let volume = &created["spec"]["volumes"][0];
    assert!(volume["name"].as_str().unwrap().starts_with("kube-api-access-"), "{volume}");
    assert_eq!(volume["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3607);
    let mount = &created["spec"]["containers"][0]["volumeMounts"][0];
    assert_eq!((&mount["name"], &mount["readOnly"]), (&volume["name"], &json!(true)));
    assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");

    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    made(&server, accounts, json!({ "metadata": { "name": "mute" }, "automountServiceAccountToken": false }))
        .await;
    for (name, spec, volumes) in [
        ("no", json!({ "automountServiceAccountToken": false }), 0),
        ("no-of-account", json!({ "serviceAccountName": "mute" }), 0),
        ("yes-of-pod", json!({ "serviceAccountName": "mute", "automountServiceAccountToken": true }), 1),
    ] {
        let created = made(&server, PODS, pod(name, spec)).await;
        assert_eq!(created["spec"]["volumes"].as_array().map_or(0, Vec::len), volumes, "{name}");
    }
    // What has the token already, as a copy of another pod has, gets no second one.
    let mut copy = created["spec"].clone();
    copy["nodeName"] = Value::Null;
    let created = made(&server, PODS, json!({ "metadata": { "name": "copy" }, "spec": copy })).await;
    assert_eq!(created["spec"]["volumes"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_pod_gets_account_priority_and_tolerations() {
    let server = server().await;
    let created = made(&server, PODS, pod("p", json!({}))).await;
    let spec = &created["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["priority"]), (&json!("default"), &json!(0)));
    assert_eq!(spec["preemptionPolicy"], "PreemptLowerPriority");
    assert_eq!(spec["tolerations"][1]["key"], "node.kubernetes.io/unreachable");
    refused(
        send(&server, Method::POST, PODS, pod("q", json!({ "serviceAccountName": "nobody" }))).await,
        "pods \"q\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found",
    );
    refused(
        send(&server, Method::POST, PODS, pod("q", json!({ "priorityClassName": "high" }))).await,
        "pods \"q\" is forbidden: no PriorityClass with name high was found",
    );
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    made(&server, classes, json!({ "metadata": { "name": "high" }, "value": 100, "globalDefault": true }))
        .await;
    let created = made(&server, PODS, pod("q", json!({}))).await;
    assert_eq!(
        (&created["spec"]["priority"], &created["spec"]["priorityClassName"]),
        (&json!(100), &json!("high"))
    );
    refused(
        send(
            &server,
            Method::POST,
            classes,
            json!({ "metadata": { "name": "too" }, "value": 1, "globalDefault": true }),
        )
        .await,
        "priorityclasses.scheduling.k8s.io \"too\" is forbidden: PriorityClass high is already marked as default. Only one default can exist",
    );
}

#[tokio::test]
async fn a_limit_range_fills_in_and_refuses() {
    let server = server().await;
    let limit = json!({ "type": "Container", "max": { "cpu": "1" }, "default": { "cpu": "500m" }, "defaultRequest": { "cpu": "100m" } });
    let range = json!({ "metadata": { "name": "l" }, "spec": { "limits": [limit] } });
    made(&server, "/api/v1/namespaces/default/limitranges", range).await;
    let created = made(&server, PODS, pod("p", json!({}))).await;
    assert_eq!(
        created["spec"]["containers"][0]["resources"],
        json!({ "limits": { "cpu": "500m" }, "requests": { "cpu": "100m" } })
    );
    let greedy =
        json!({ "containers": [{ "name": "c", "image": "x", "resources": { "limits": { "cpu": "2" } } }] });
    refused(
        send(&server, Method::POST, PODS, pod("q", greedy)).await,
        "pods \"q\" is forbidden: maximum cpu usage per Container is 1, but limit is 2",
    );
}

#[tokio::test]
async fn a_quota_holds_against_a_crowd() {
    let server = server().await;
    let quota =
        json!({ "metadata": { "name": "q" }, "spec": { "hard": { "pods": "5", "count/configmaps": "1" } } });
    made(&server, "/api/v1/namespaces/default/resourcequotas", quota).await;
    let crowd = (0..20).map(|at| {
        let server = &server;
        async move { send(server, Method::POST, PODS, pod(&format!("p{at}"), json!({}))).await }
    });
    let answers = futures::future::join_all(crowd).await;
    let (let_in, kept_out): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(status, _)| *status == 201);
    assert_eq!(let_in.len(), 5);
    for (status, answer) in kept_out {
        let why = "is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5";
        assert!(status == 403 && answer["message"].as_str().unwrap().ends_with(why), "{answer}");
    }
    let first = let_in[0].1["metadata"]["name"].as_str().unwrap();
    assert_eq!(send(&server, Method::DELETE, &format!("{PODS}/{first}"), Value::Null).await.0, 200);
    made(&server, PODS, pod("again", json!({}))).await;
    made(&server, MAPS, map("a", "1")).await;
    refused(
        send(&server, Method::POST, MAPS, map("b", "1")).await,
        "configmaps \"b\" is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=1, limited: count/configmaps=1",
    );
}

#[tokio::test]
async fn a_quota_on_processors_wants_to_be_told() {
    let server = server().await;
    let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": { "requests.cpu": "1" }, "scopes": ["NotTerminating"] } });
    made(&server, "/api/v1/namespaces/default/resourcequotas", quota).await;
    refused(
        send(&server, Method::POST, PODS, pod("p", json!({}))).await,
        "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu for: c",
    );
    made(&server, PODS, pod("ends", json!({ "activeDeadlineSeconds": 5 }))).await;
}

#[tokio::test]
async fn a_namespaces_label_forbids_what_breaks_out() {
    let server = server().await;
    let namespace = |level: &str| {
        json!({ "metadata": { "name": "strict", "labels": {
        "pod-security.kubernetes.io/enforce": level, "pod-security.kubernetes.io/warn": "restricted" } } })
    };
    let (status, answer) = send(&server, Method::POST, "/api/v1/namespaces", namespace("bogus")).await;
    assert_eq!((status, &answer["reason"]), (422, &json!("Invalid")), "{answer}");
    made(&server, "/api/v1/namespaces", namespace("baseline")).await;
    let pods = "/api/v1/namespaces/strict/pods";
    refused(
        send(&server, Method::POST, pods, pod("p", json!({ "hostNetwork": true }))).await,
        "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)",
    );
    let body = pod("p", json!({})).to_string();
    let (status, created, warnings) =
        raw(&server, Method::POST, pods, &[("content-type", "application/json")], &body).await;
    assert_eq!(status, 201, "{created}");
    assert!(warnings[0].contains("would violate PodSecurity 'restricted:latest'"), "{warnings:?}");
}

#[tokio::test]
async fn claims_and_ingresses_get_the_default_class() {
    let server = server().await;
    let class = json!({ "metadata": { "name": "fast", "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } }, "provisioner": "p" });
    made(&server, "/apis/storage.k8s.io/v1/storageclasses", class).await;
    let claim = |name: &str, class: Value| {
        json!({ "metadata": { "name": name }, "spec": { "accessModes": ["ReadWriteOnce"],
        "storageClassName": class, "resources": { "requests": { "storage": "1Gi" } } } })
    };
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    assert_eq!(made(&server, claims, claim("a", Value::Null)).await["spec"]["storageClassName"], "fast");
    assert_eq!(made(&server, claims, claim("b", json!(""))).await["spec"]["storageClassName"], "");
    let class = json!({ "metadata": { "name": "own", "annotations": { "ingressclass.kubernetes.io/is-default-class": "true" } }, "spec": { "controller": "a/b" } });
    made(&server, "/apis/networking.k8s.io/v1/ingressclasses", class).await;
    let ingress = json!({ "metadata": { "name": "i" }, "spec": { "defaultBackend": { "service": { "name": "s", "port": { "number": 80 } } } } });
    let created = made(&server, "/apis/networking.k8s.io/v1/namespaces/default/ingresses", ingress).await;
    assert_eq!(created["spec"]["ingressClassName"], "own");
}
