//! Admission that users define: policies, and webhooks on a server of the test's own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

async fn made(server: &Server, path: &str, object: Value) -> Value {
    let (status, created) = send(server, Method::POST, path, object).await;
    assert_eq!(status, 201, "{created}");
    created
}

fn map(name: &str, data: Value) -> Value {
    json!({ "metadata": { "name": name, "labels": { "of": name } }, "data": data })
}

/// A webhook over TLS: where it is, and whom to believe.
struct Hook {
    port: u16,
    authority: String,
}

/// Serves answers to `request` of each review.
async fn hook(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Hook {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let authority = STANDARD.encode(made.cert.pem());
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let (mut bytes, mut chunk) = (Vec::new(), [0_u8; 4096]);
                let review: Value = loop {
                    let read = stream.read(&mut chunk).await.unwrap();
                    bytes.extend_from_slice(&chunk[..read]);
                    let text = String::from_utf8_lossy(&bytes);
                    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
                    if let Some(review) = body.and_then(|body| serde_json::from_str(&body).ok()) {
                        break review;
                    }
                };
                let mut response = answer(&review["request"]);
                if response == "silence" {
                    return std::future::pending().await;
                }
                response["uid"] = review["request"]["uid"].clone();
                let body =
                    json!({ "apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response })
                        .to_string();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
            });
        }
    });
    Hook { port, authority }
}

impl Hook {
    fn configuration(&self, kind: &str, operations: &[&str], more: Value) -> Value {
        let mut webhook = json!({
            "name": "hook.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": { "url": format!("https://localhost:{}/ask", self.port), "caBundle": self.authority },
            "rules": [{ "operations": operations, "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps", "pods/*"] }],
        });
        webhook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "kind": kind, "metadata": { "name": "hooks" }, "webhooks": [webhook] })
    }
}

fn patched(patch: Value) -> Value {
    json!({ "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string()) })
}

#[tokio::test]
async fn a_mutating_webhook_changes_what_is_created_and_updated() {
    let server = server().await;
    let hook = hook(|request| {
        assert_eq!(request["resource"]["resource"], "configmaps");
        assert_eq!(request["userInfo"]["username"], "test");
        patched(json!([{ "op": "add", "path": "/data/seen", "value": request["operation"] }]))
    })
    .await;
    let configuration = hook.configuration("MutatingWebhookConfiguration", &["CREATE", "UPDATE"], json!({}));
    made(&server, &format!("{GROUP}/mutatingwebhookconfigurations"), configuration).await;
    let created = made(&server, MAPS, map("a", json!({ "k": "v" }))).await;
    assert_eq!(created["data"], json!({ "k": "v", "seen": "CREATE" }));
    let patch = json!({ "data": { "k": "w" } });
    let (_, updated) = send(&server, Method::PATCH, &format!("{MAPS}/a"), patch).await;
    assert_eq!(updated["data"], json!({ "k": "w", "seen": "UPDATE" }));
    let (status, trial) =
        send(&server, Method::POST, &format!("{MAPS}?dryRun=All"), map("b", json!({}))).await;
    assert_eq!((status, &trial["data"]["seen"]), (201, &json!("CREATE")));
}

#[tokio::test]
async fn a_validating_webhook_refuses_creation_deletion_and_connection() {
    let server = server().await;
    let hook = hook(|request| match (request["operation"].as_str().unwrap(), request["name"].as_str()) {
        ("CREATE", Some("fine")) => json!({ "allowed": true, "warnings": ["think twice"] }),
        ("CREATE", _) => json!({ "allowed": false, "status": { "message": "not today", "code": 403, "reason": "Forbidden" } }),
        ("DELETE", _) => {
            assert!(request["object"].is_null() && request["oldObject"]["data"].is_object());
            json!({ "allowed": false })
        }
        _ => {
            assert_eq!(request["object"]["kind"], "PodAttachOptions");
            json!({ "allowed": false, "status": { "reason": "nobody attaches" } })
        }
    })
    .await;
    let operations = ["CREATE", "DELETE", "CONNECT"];
    let configuration = hook.configuration("ValidatingWebhookConfiguration", &operations, json!({}));
    made(&server, &format!("{GROUP}/validatingwebhookconfigurations"), configuration).await;
    let body = map("fine", json!({ "k": "v" })).to_string();
    let (status, _, warnings) =
        raw(&server, Method::POST, MAPS, &[("content-type", "application/json")], &body).await;
    assert_eq!((status, warnings.as_slice()), (201, ["299 - \"think twice\"".to_owned()].as_slice()));
    let (status, answer) = send(&server, Method::POST, MAPS, map("bad", json!({}))).await;
    let denied = "admission webhook \"hook.example.com\" denied the request";
    assert_eq!((status, answer["message"].as_str().unwrap()), (403, format!("{denied}: not today").as_str()));
    let (status, answer) = send(&server, Method::DELETE, &format!("{MAPS}/fine"), Value::Null).await;
    assert_eq!(
        (status, answer["message"].as_str().unwrap()),
        (400, format!("{denied} without explanation").as_str())
    );
    let pod = "/api/v1/namespaces/default/pods/p";
    let (_, answer) = send(&server, Method::POST, &format!("{pod}/attach?stdout=true"), Value::Null).await;
    assert_eq!(answer["message"], format!("{denied}: nobody attaches"));
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_decides_by_its_policy() {
    let server = server().await;
    let silent = hook(|_| json!("silence")).await;
    let path = format!("{GROUP}/validatingwebhookconfigurations");
    let more = json!({ "timeoutSeconds": 1, "failurePolicy": "Fail" });
    made(&server, &path, silent.configuration("ValidatingWebhookConfiguration", &["CREATE"], more)).await;
    let (status, answer) = send(&server, Method::POST, MAPS, map("a", json!({}))).await;
    let said = answer["message"].as_str().unwrap();
    assert_eq!(status, 500, "{said}");
    assert!(said.starts_with("Internal error occurred: failed calling webhook \"hook.example.com\": failed to call webhook: Post \"https://localhost:"), "{said}");
    assert!(said.contains("/ask?timeout=1s\": context deadline exceeded"), "{said}");
    let ignored = json!([{ "op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore" }]);
    let headers = [("content-type", "application/json-patch+json")];
    let (status, ..) =
        raw(&server, Method::PATCH, &format!("{path}/hooks"), &headers, &ignored.to_string()).await;
    assert_eq!(status, 200);
    made(&server, MAPS, map("a", json!({}))).await;
}

#[tokio::test]
async fn selectors_and_conditions_leave_requests_alone() {
    let server = server().await;
    let no = hook(|_| json!({ "allowed": false })).await;
    let path = format!("{GROUP}/validatingwebhookconfigurations");
    for (number, (more, asked)) in [
        (json!({ "objectSelector": { "matchLabels": { "of": "other" } } }), false),
        (json!({ "objectSelector": { "matchLabels": { "of": "a" } } }), true),
        (
            json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "elsewhere" } } }),
            false,
        ),
        (json!({ "matchConditions": [{ "name": "c", "expression": "object.data.k == 'w'" }] }), false),
        (
            json!({ "matchConditions": [{ "name": "c", "expression": "request.operation == 'CREATE'" }] }),
            true,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        made(&server, &path, no.configuration("ValidatingWebhookConfiguration", &["CREATE"], more.clone()))
            .await;
        let (status, _) =
            send(&server, Method::POST, &format!("{MAPS}?dryRun=All"), map("a", json!({ "k": "v" }))).await;
        assert_eq!(status == 400, asked, "case {number}: {more}");
        let (status, _) = send(&server, Method::DELETE, &format!("{path}/hooks"), Value::Null).await;
        assert_eq!(status, 200);
    }
}

fn policy(spec: Value) -> Value {
    let mut whole = json!({
        "matchConstraints": { "resourceRules": [{
            "operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
        }] },
    });
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({ "metadata": { "name": "p" }, "spec": whole })
}

fn binding(more: Value) -> Value {
    let mut spec = json!({ "policyName": "p", "validationActions": ["Deny"] });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "metadata": { "name": "b" }, "spec": spec })
}

#[tokio::test]
async fn a_policy_with_a_binding_denies_what_its_expressions_do_not_allow() {
    let server = server().await;
    let created = made(
        &server,
        &format!("{GROUP}/validatingadmissionpolicies"),
        policy(json!({
            "variables": [{ "name": "keys", "expression": "size(object.data)" }],
            "validations": [{
                "expression": "variables.keys <= int(params.data.most)",
                "messageExpression": "'at most ' + params.data.most + ' keys in ' + request.namespace",
                "reason": "Forbidden",
            }],
            "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" },
            "matchConditions": [{ "name": "not-it", "expression": "object.metadata.name != 'limits'" }],
        })),
    )
    .await;
    assert_eq!(
        (&created["status"]["observedGeneration"], &created["status"]["typeChecking"]),
        (&json!(1), &json!({}))
    );
    made(&server, MAPS, map("limits", json!({ "most": "1", "b": "c", "d": "e" }))).await;
    let bound = binding(
        json!({ "paramRef": { "name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny" } }),
    );
    let bindings = format!("{GROUP}/validatingadmissionpolicybindings");
    made(&server, &bindings, bound).await;
    made(&server, MAPS, map("a", json!({ "k": "v" }))).await;
    let (status, answer) = send(&server, Method::POST, MAPS, map("b", json!({ "k": "v", "l": "w" }))).await;
    assert_eq!((status, answer["reason"].as_str()), (403, Some("Forbidden")));
    assert_eq!(
        answer["message"],
        "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: at most 1 keys in default"
    );
    let warn = json!({ "spec": { "validationActions": ["Warn"] } });
    let (status, _) = send(&server, Method::PATCH, &format!("{bindings}/b"), warn).await;
    assert_eq!(status, 200);
    let body = map("b", json!({ "k": "v", "l": "w" })).to_string();
    let (status, _, warnings) =
        raw(&server, Method::POST, MAPS, &[("content-type", "application/json")], &body).await;
    assert_eq!(status, 201);
    assert!(
        warnings[0]
            .contains("Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': at most 1"),
        "{warnings:?}"
    );
}

#[tokio::test]
async fn a_policy_whose_parameters_are_missing_or_that_fails_decides_by_its_policy() {
    let server = server().await;
    let policies = format!("{GROUP}/validatingadmissionpolicies");
    made(
        &server,
        &policies,
        policy(json!({ "validations": [{ "expression": "object.data.absent == 'x'" }] })),
    )
    .await;
    made(&server, MAPS, map("unbound", json!({}))).await;
    made(&server, &format!("{GROUP}/validatingadmissionpolicybindings"), binding(json!({}))).await;
    let (status, answer) = send(&server, Method::POST, MAPS, map("a", json!({ "k": "v" }))).await;
    assert_eq!(status, 422, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("resulted in error: "), "{answer}");
    let ignore = json!({ "spec": { "failurePolicy": "Ignore" } });
    send(&server, Method::PATCH, &format!("{policies}/p"), ignore).await;
    made(&server, MAPS, map("a", json!({ "k": "v" }))).await;
}
