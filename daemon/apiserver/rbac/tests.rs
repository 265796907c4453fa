//! What the rules say, and what happens to those who ask for more.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by panicking")]

use std::sync::Arc;

use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::*;
use crate::tests::server;
use crate::{Server, answer};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn somebody(name: &str) -> User {
    User::certified(name, std::iter::empty())
}

async fn ask(
    server: &Server,
    user: &User,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let request = request.body(client::full(text)).unwrap();
    let response = answer::answer(Arc::clone(&server.inner), Arc::new(user.clone()), request).await;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn make(server: &Server, path: &str, object: Value) {
    let (status, answer) = ask(server, &User::room("test"), Method::POST, path, &[], object).await;
    assert_eq!(status, 201, "{answer}");
}

/// A Role that allows some verbs on pods of `default`, bound to a user.
async fn allow(server: &Server, user: &str, verbs: &[&str]) {
    let roles = format!("{RBAC}/namespaces/default/roles");
    let rules = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": verbs }]);
    make(server, &roles, json!({ "metadata": { "name": user }, "rules": rules })).await;
    bind(server, user, json!({ "apiGroup": GROUP, "kind": "Role", "name": user })).await;
}

async fn bind(server: &Server, user: &str, role: Value) {
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let subjects = json!([{ "apiGroup": GROUP, "kind": "User", "name": user }]);
    let binding = json!({ "metadata": { "name": user }, "roleRef": role, "subjects": subjects });
    make(server, &bindings, binding).await;
}

#[tokio::test]
async fn a_role_allows_in_its_namespace_what_it_says_and_nothing_else() {
    let server = server().await;
    allow(&server, "ann", &["get", "list"]).await;
    let ann = somebody("ann");
    let get = |path: &'static str| ask(&server, &ann, Method::GET, path, &[], Value::Null);
    assert_eq!(get("/api/v1/namespaces/default/pods").await.0, 200);
    let (status, refused) = get("/api/v1/namespaces/default/pods/a/log").await;
    assert_eq!(
        (status, refused["message"].as_str().unwrap()),
        (
            403,
            "pods \"a\" is forbidden: User \"ann\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"default\""
        )
    );
    let (status, refused) = get("/api/v1/pods").await;
    assert_eq!(
        (status, refused["message"].as_str().unwrap()),
        (
            403,
            "pods is forbidden: User \"ann\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
        )
    );
    assert_eq!(get("/apis").await.0, 200);
    let (status, refused) = get("/metrics").await;
    assert_eq!(
        (status, refused["message"].as_str().unwrap()),
        (403, "forbidden: User \"ann\" cannot get path \"/metrics\"")
    );
}

#[tokio::test]
async fn nobody_reads_health_and_version_only() {
    let server = server().await;
    let nobody = User::anonymous();
    for (path, wanted) in [("/version", 200), ("/healthz", 200), ("/apis", 403), ("/api/v1/pods", 403)] {
        assert_eq!(ask(&server, &nobody, Method::GET, path, &[], Value::Null).await.0, wanted, "{path}");
    }
}

#[tokio::test]
async fn a_role_made_of_parts_gains_what_a_part_gains() {
    let server = server().await;
    bind(&server, "ann", json!({ "apiGroup": GROUP, "kind": "ClusterRole", "name": "admin" })).await;
    let ann = somebody("ann");
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({ "metadata": { "name": "a" } });
    assert_eq!(ask(&server, &ann, Method::POST, maps, &[], map).await.0, 201);
    let leases = "/apis/networking.k8s.io/v1/ingressclasses";
    assert_eq!(ask(&server, &ann, Method::GET, leases, &[], Value::Null).await.0, 403);
    let labels = json!({ "rbac.authorization.k8s.io/aggregate-to-view": "true" });
    let rule = json!({ "apiGroups": ["stable.example.com"], "resources": ["crontabs"], "verbs": ["get"] });
    let part = json!({ "metadata": { "name": "crontabs", "labels": labels }, "rules": [rule] });
    make(&server, &format!("{RBAC}/clusterroles"), part).await;
    let asked = Attributes {
        verb: "get",
        group: "stable.example.com",
        resource: "crontabs",
        namespace: "default",
        ..Attributes::default()
    };
    let decision = authorize(&server.inner, &ann, &asked);
    assert_eq!(
        (decision.allowed, decision.reason.as_str()),
        (true, "RBAC: allowed by RoleBinding \"default/ann\" of ClusterRole \"admin\" to User \"ann\"")
    );
    let admin = format!("{RBAC}/clusterroles/admin");
    let (_, admin) = ask(&server, &User::room("test"), Method::GET, &admin, &[], Value::Null).await;
    assert!(admin["rules"].as_array().unwrap().contains(&rule), "{admin}");
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_have() {
    let server = server().await;
    bind(&server, "ann", json!({ "apiGroup": GROUP, "kind": "ClusterRole", "name": "admin" })).await;
    let ann = somebody("ann");
    let roles = format!("{RBAC}/namespaces/default/roles");
    let role = |name: &str, resource: &str| {
        let rule = json!({ "apiGroups": [""], "resources": [resource], "verbs": ["get"] });
        json!({ "metadata": { "name": name }, "rules": [rule] })
    };
    assert_eq!(ask(&server, &ann, Method::POST, &roles, &[], role("a", "pods")).await.0, 201);
    let (status, refused) = ask(&server, &ann, Method::POST, &roles, &[], role("b", "nodes")).await;
    let message = refused["message"].as_str().unwrap();
    assert_eq!(status, 403);
    assert!(
        message.ends_with(
            "is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}"
        ),
        "{message}"
    );
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let binding = |role: &str| {
        let role = json!({ "apiGroup": GROUP, "kind": "ClusterRole", "name": role });
        json!({ "metadata": { "name": "x" }, "roleRef": role, "subjects": [{ "kind": "User", "name": "bob" }] })
    };
    assert_eq!(ask(&server, &ann, Method::POST, &bindings, &[], binding("cluster-admin")).await.0, 403);
    assert_eq!(ask(&server, &ann, Method::POST, &bindings, &[], binding("view")).await.0, 201);
}

#[tokio::test]
async fn a_user_speaks_for_another_when_a_rule_allows_it() {
    let server = server().await;
    allow(&server, "ann", &["list"]).await;
    let bob = somebody("bob");
    let as_ann = [("impersonate-user", "ann")];
    let pods = "/api/v1/namespaces/default/pods";
    let (status, refused) = ask(&server, &bob, Method::GET, pods, &as_ann, Value::Null).await;
    assert_eq!(
        (status, refused["message"].as_str().unwrap()),
        (
            403,
            "users \"ann\" is forbidden: User \"bob\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
        )
    );
    let admin = User::certified("root", [crate::auth::MASTERS.to_owned()].into_iter());
    assert_eq!(ask(&server, &admin, Method::GET, pods, &as_ann, Value::Null).await.0, 200);
    assert_eq!(ask(&server, &admin, Method::GET, "/api/v1/pods", &as_ann, Value::Null).await.0, 403);
}

#[tokio::test]
async fn a_token_speaks_for_its_account_until_what_it_is_bound_to_is_gone() {
    let server = server().await;
    let room = User::room("test");
    make(&server, "/api/v1/namespaces/default/serviceaccounts", json!({ "metadata": { "name": "build" } }))
        .await;
    let secret = json!({ "metadata": { "name": "s" } });
    make(&server, "/api/v1/namespaces/default/secrets", secret).await;
    let token = |body: Value| {
        let path = "/api/v1/namespaces/default/serviceaccounts/build/token";
        ask(&server, &room, Method::POST, path, &[], body)
    };
    let bound = json!({ "kind": "Secret", "apiVersion": "v1", "name": "s" });
    let (status, asked) = token(json!({ "spec": { "boundObjectRef": bound } })).await;
    assert_eq!(status, 201, "{asked}");
    let bearer = format!("Bearer {}", asked["status"]["token"].as_str().unwrap());
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let nobody = User::anonymous();
    let with = [("authorization", bearer.as_str())];
    let (status, review) = ask(&server, &nobody, Method::POST, who, &with, json!({})).await;
    let user = &review["status"]["userInfo"];
    assert_eq!((status, &user["username"]), (201, &json!("system:serviceaccount:default:build")), "{review}");
    assert_eq!(user["groups"][1], "system:serviceaccounts:default");
    let review = json!({ "spec": { "token": asked["status"]["token"] } });
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let (_, told) = ask(&server, &room, Method::POST, reviews, &[], review.clone()).await;
    assert_eq!(told["status"]["authenticated"], true, "{told}");
    let gone = "/api/v1/namespaces/default/secrets/s";
    assert_eq!(ask(&server, &room, Method::DELETE, gone, &[], Value::Null).await.0, 200);
    assert_eq!(ask(&server, &nobody, Method::POST, who, &with, json!({})).await.0, 401);
    let (_, told) = ask(&server, &room, Method::POST, reviews, &[], review).await;
    assert_eq!(told["status"].get("authenticated"), None, "{told}");
    let (status, refused) = token(json!({ "spec": { "expirationSeconds": 10 } })).await;
    assert_eq!(status, 422, "{refused}");
}

#[tokio::test]
async fn reviews_tell_what_the_rules_say() {
    let server = server().await;
    allow(&server, "ann", &["get"]).await;
    let ann = somebody("ann");
    let of = |verb: &str| json!({ "spec": { "resourceAttributes": { "namespace": "default", "verb": verb, "resource": "pods" } } });
    let own = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    for (verb, allowed) in [("get", true), ("delete", false)] {
        let (status, review) = ask(&server, &ann, Method::POST, own, &[], of(verb)).await;
        assert_eq!((status, &review["status"]["allowed"]), (201, &json!(allowed)), "{verb}: {review}");
    }
    let (status, _) = ask(&server, &ann, Method::POST, own, &[], json!({ "spec": {} })).await;
    assert_eq!(status, 422);
    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let asked = json!({ "spec": { "namespace": "default" } });
    let (_, review) = ask(&server, &ann, Method::POST, rules, &[], asked).await;
    let wanted = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] });
    assert!(review["status"]["resourceRules"].as_array().unwrap().contains(&wanted), "{review}");
    let others = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let mut about = of("get");
    about["spec"]["user"] = "ann".into();
    assert_eq!(ask(&server, &ann, Method::POST, others, &[], about.clone()).await.0, 403);
    let (_, review) = ask(&server, &User::room("test"), Method::POST, others, &[], about).await;
    assert_eq!(review["status"]["allowed"], true, "{review}");
}
