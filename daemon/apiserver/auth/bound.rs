//! What a token is bound to: requests for tokens, reviews of them, and the user that a token speaks for.
//!
//! Invariant: a token speaks for its ServiceAccount only while that lives under the same uid, and while what the token is
//! bound to (a pod, a secret, a node) does.

use api::error::ApiError;
use api::kinds::{self, Kind};
use api::schema::Defect;
use serde_json::{Value, json};

use super::tokens::ISSUER;
use super::{AUTHENTICATED, User};
use crate::object::{self, meta};
use crate::{Inner, write};

/// How long a token lives when nothing is asked, and the least that may be asked.
const EXPIRATION_SECONDS: (i64, i64) = (3600, 600);
const MAX_EXPIRATION_SECONDS: i64 = 1 << 32;
/// A pod that is being deleted may still speak for so long after its grace period.
const LEEWAY_SECONDS: i64 = 60;
const PRIVATE: &str = "kubernetes.io";
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
const LEGACY: &str = "kubernetes.io/serviceaccount";
/// The type of a Secret that holds a token which does not expire.
const TOKEN_SECRET: &str = "kubernetes.io/service-account-token";

/// POST to `serviceaccounts/{name}/token`: the request with its status filled in.
pub(crate) fn request(
    inner: &Inner,
    namespace: &str,
    name: &str,
    mut body: Value,
) -> Result<Value, ApiError> {
    let account = live(inner, "ServiceAccount", namespace, name)
        .ok_or_else(|| ApiError::not_found(row("ServiceAccount"), name))?;
    let told = body["apiVersion"].as_str().unwrap_or("authentication.k8s.io/v1");
    if told != "authentication.k8s.io/v1" || body["kind"].as_str().is_some_and(|kind| kind != "TokenRequest")
    {
        return Err(ApiError::bad_request("the body is no TokenRequest of authentication.k8s.io/v1"));
    }
    let (seconds, audiences) = asked(&body)?;
    let now = (inner.now)().as_second();
    let mut bound = json!({
        "namespace": namespace,
        "serviceaccount": { "name": name, "uid": meta(&account, "uid") },
    });
    if body["spec"]["boundObjectRef"].is_object() {
        bind(inner, namespace, name, &body["spec"]["boundObjectRef"], &mut bound)?;
    }
    let claims = json!({
        "iss": ISSUER,
        "sub": username(namespace, name),
        "aud": audiences,
        "iat": now, "nbf": now, "exp": now + seconds,
        "jti": uuid::Uuid::new_v4().to_string(),
        PRIVATE: bound,
    });
    let token =
        inner.tokens.sign(&claims).ok_or_else(|| ApiError::internal("the token could not be signed"))?;
    body["apiVersion"] = "authentication.k8s.io/v1".into();
    body["kind"] = "TokenRequest".into();
    let ends = jiff::Timestamp::from_second(now + seconds).map_err(ApiError::internal)?;
    body["metadata"]["name"] = name.into();
    body["metadata"]["namespace"] = namespace.into();
    body["metadata"]["creationTimestamp"] = write::seconds((inner.now)()).into();
    body["spec"]["audiences"] = json!(audiences);
    body["spec"]["expirationSeconds"] = seconds.into();
    body["status"] = json!({ "token": token, "expirationTimestamp": write::seconds(ends) });
    Ok(body)
}

/// How long and for whom, within the documented bounds.
fn asked(body: &Value) -> Result<(i64, Vec<String>), ApiError> {
    let mut defects = Vec::new();
    let seconds = match &body["spec"]["expirationSeconds"] {
        Value::Null => EXPIRATION_SECONDS.0,
        value => value.as_i64().unwrap_or(0),
    };
    let path = "spec.expirationSeconds";
    if seconds < EXPIRATION_SECONDS.1 {
        defects.push(Defect::invalid(
            path,
            &seconds.into(),
            "may not specify a duration less than 10 minutes",
        ));
    } else if seconds > MAX_EXPIRATION_SECONDS {
        defects.push(Defect::invalid(
            path,
            &seconds.into(),
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    if !defects.is_empty() {
        return Err(invalid_request(defects));
    }
    let audiences: Vec<String> = strings(&body["spec"]["audiences"]);
    Ok((seconds, if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences }))
}

fn invalid_request(defects: Vec<Defect>) -> ApiError {
    let mut row = row("ServiceAccount").clone();
    row.group = "authentication.k8s.io".to_owned();
    row.kind = "TokenRequest".to_owned();
    ApiError::invalid(&row, "", defects)
}

/// The object that the token is to die with, which must be there and, of a pod, run as this account.
fn bind(
    inner: &Inner,
    namespace: &str,
    account: &str,
    reference: &Value,
    bound: &mut Value,
) -> Result<(), ApiError> {
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let kind = text("kind");
    let (field, place) = match kind {
        "Pod" => ("pod", namespace),
        "Secret" => ("secret", namespace),
        "Node" => ("node", ""),
        _ => {
            let why = format!("cannot bind token to object of type {} {kind}", text("apiVersion"));
            return Err(ApiError::bad_request(why));
        }
    };
    let name = text("name");
    let object = live(inner, kind, place, name).ok_or_else(|| ApiError::not_found(row(kind), name))?;
    let (asked, uid) = (text("uid"), meta(&object, "uid"));
    if !asked.is_empty() && asked != uid {
        let why = format!(
            "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(row(kind), name, &why));
    }
    if kind == "Pod" && object["spec"]["serviceAccountName"].as_str().unwrap_or_default() != account {
        let why = format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        );
        return Err(ApiError::bad_request(why));
    }
    bound[field] = json!({ "name": name, "uid": uid });
    let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
    if kind == "Pod"
        && let Some(node) = live(inner, "Node", "", node)
    {
        bound["node"] = json!({ "name": meta(&node, "name"), "uid": meta(&node, "uid") });
    }
    Ok(())
}

/// The user of a token for this server, or why it is none.
pub(super) fn user_of_token(inner: &Inner, token: &str) -> Result<User, String> {
    let user = user_of_claims(inner, token, &[])?;
    Ok(user.0)
}

/// The user and for which of the wanted audiences the token is good; the API's own when none is wanted.
fn user_of_claims(inner: &Inner, token: &str, wanted: &[String]) -> Result<(User, Vec<String>), String> {
    let claims = inner.tokens.claims(token).ok_or("the token is none that this node signed")?;
    if claims["iss"] == LEGACY_ISSUER {
        return user_of_legacy(inner, &claims).map(|user| (user, vec![ISSUER.to_owned()]));
    }
    let now = (inner.now)().as_second();
    if claims["exp"].as_i64().is_none_or(|end| end < now) {
        return Err("service account token has expired".to_owned());
    }
    if claims["nbf"].as_i64().is_some_and(|start| start > now + LEEWAY_SECONDS) || claims["iss"] != ISSUER {
        return Err("service account token is not valid yet".to_owned());
    }
    let own = [ISSUER.to_owned()];
    let wanted = if wanted.is_empty() { &own[..] } else { wanted };
    let audiences: Vec<String> =
        strings(&claims["aud"]).into_iter().filter(|audience| wanted.contains(audience)).collect();
    if audiences.is_empty() {
        return Err(format!(
            "token audiences {} is invalid for the target audiences {wanted:?}",
            claims["aud"]
        ));
    }
    let bound = &claims[PRIVATE];
    let (namespace, account) = (text(bound, "namespace"), &bound["serviceaccount"]);
    let mut user = user_of_account(inner, namespace, text(account, "name"), text(account, "uid"))?;
    user.extra.insert(
        "authentication.kubernetes.io/credential-id".to_owned(),
        vec![format!("JTI={}", text(&claims, "jti"))],
    );
    for (field, kind) in [("pod", "Pod"), ("secret", "Secret"), ("node", "Node")] {
        let (name, uid) = (text(&bound[field], "name"), text(&bound[field], "uid"));
        if name.is_empty() {
            continue;
        }
        // The node of a pod is told, but a token dies with its pod, not with the node.
        let told_only = kind == "Node" && bound["pod"].is_object();
        if !told_only && !still_there(inner, kind, namespace, name, uid) {
            return Err(format!("service account token has been invalidated: its {kind} {name} is gone"));
        }
        if kind != "Secret" {
            let key = |what: &str| format!("authentication.kubernetes.io/{field}-{what}");
            user.extra.insert(key("name"), vec![name.to_owned()]);
            user.extra.insert(key("uid"), vec![uid.to_owned()]);
        }
    }
    Ok((user, audiences))
}

fn user_of_account(inner: &Inner, namespace: &str, name: &str, uid: &str) -> Result<User, String> {
    let account = live(inner, "ServiceAccount", namespace, name)
        .filter(|account| meta(account, "uid") == uid)
        .ok_or_else(|| format!("service account {namespace}/{name} of the token is gone"))?;
    if expired(inner, &account) {
        return Err(format!("service account {namespace}/{name} is being deleted"));
    }
    Ok(User {
        name: username(namespace, name),
        groups: groups_of_account(namespace),
        uid: uid.to_owned(),
        ..User::default()
    })
}

fn user_of_legacy(inner: &Inner, claims: &Value) -> Result<User, String> {
    let claim = |name: &str| claims[format!("{LEGACY}/{name}")].as_str().unwrap_or_default();
    let (namespace, secret) = (claim("namespace"), claim("secret.name"));
    let known = live(inner, "Secret", namespace, secret).is_some_and(|secret| !expired(inner, &secret));
    if !known {
        return Err(format!("secret {namespace}/{secret} of the token is gone"));
    }
    user_of_account(inner, namespace, claim("service-account.name"), claim("service-account.uid"))
}

/// POST of a TokenReview: whose token it is, told in the status.
pub(crate) fn review(inner: &Inner, review: &mut Value) -> Result<(), ApiError> {
    let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let wanted = strings(&review["spec"]["audiences"]);
    review["status"] = match user_of_claims(inner, &token, &wanted) {
        Ok((user, audiences)) => {
            json!({ "authenticated": true, "user": user.to_json(), "audiences": audiences })
        }
        Err(why) => json!({ "user": {}, "error": format!("[invalid bearer token, {why}]") }),
    };
    Ok(())
}

/// Fills in a Secret that asks for a token which does not expire, as Kubernetes does for those who still need one.
pub(crate) fn legacy_secret(inner: &Inner, kind: &Kind, secret: &mut Value) -> Result<(), ApiError> {
    if kind.kind != "Secret" || !kind.group.is_empty() || secret["type"] != TOKEN_SECRET {
        return Ok(());
    }
    let namespace = meta(secret, "namespace").to_owned();
    let named = |field: &str| {
        let annotation = format!("kubernetes.io/service-account.{field}");
        secret["metadata"]["annotations"][&annotation].as_str().unwrap_or_default().to_owned()
    };
    let (name, uid) = (named("name"), named("uid"));
    let Some(account) = live(inner, "ServiceAccount", &namespace, &name)
        .filter(|account| uid.is_empty() || uid == meta(account, "uid"))
    else {
        return Ok(());
    };
    let uid = meta(&account, "uid");
    let claims = json!({
        "iss": LEGACY_ISSUER, "sub": username(&namespace, &name),
        (format!("{LEGACY}/namespace")): namespace,
        (format!("{LEGACY}/secret.name")): meta(secret, "name"),
        (format!("{LEGACY}/service-account.name")): name,
        (format!("{LEGACY}/service-account.uid")): uid,
    });
    let token =
        inner.tokens.sign(&claims).ok_or_else(|| ApiError::internal("the token could not be signed"))?;
    let encode = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    secret["metadata"]["annotations"]["kubernetes.io/service-account.uid"] = uid.into();
    secret["data"]["token"] = encode(&token).into();
    secret["data"]["namespace"] = encode(&namespace).into();
    secret["data"]["ca.crt"] = encode(&inner.ca).into();
    Ok(())
}

/// `system:serviceaccount:{namespace}:{name}`.
pub(super) fn username(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// The groups that every ServiceAccount of a namespace is in.
pub(super) fn groups_of_account(namespace: &str) -> Vec<String> {
    vec![
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        AUTHENTICATED.to_owned(),
    ]
}

fn still_there(inner: &Inner, kind: &str, namespace: &str, name: &str, uid: &str) -> bool {
    let place = if kind == "Node" { "" } else { namespace };
    live(inner, kind, place, name)
        .is_some_and(|object| meta(&object, "uid") == uid && !expired(inner, &object))
}

/// Whether its deletion is due for longer than the leeway.
fn expired(inner: &Inner, object: &Value) -> bool {
    let Some(deleted) = object["metadata"]["deletionTimestamp"].as_str() else { return false };
    let Ok(deleted) = deleted.parse::<jiff::Timestamp>() else { return false };
    deleted.as_second() + LEEWAY_SECONDS < (inner.now)().as_second()
}

fn live(inner: &Inner, kind: &str, namespace: &str, name: &str) -> Option<Value> {
    let snapshot = inner.store.snapshot();
    snapshot.get(&object::key(row(kind), namespace, name)).map(|entry| object::parse(&entry.value))
}

fn row(kind: &str) -> &'static Kind {
    kinds::by_kind("v1", kind).expect("core kinds are served")
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
