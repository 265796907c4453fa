//! Requests through the door: server-side apply, dry or real, delete, and the application's own object.
//!
//! Invariant: doing it twice is the same as once: what is applied already stays, what is gone already is success.

use std::fmt::Write as _;

use api::kinds::Kind;
use http::{Method, Request, header};
use kube::Client;
use serde_json::{Value, json};

use crate::build::{Id, Object};
use crate::plan::Removal;
use crate::status::Status;
use crate::{Error, FIELD_MANAGER};

/// Whether an apply is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    Dry,
    Real,
}

/// Applies an object and returns what it is (or would be) afterwards.
pub(crate) async fn apply(door: &Client, object: &Object, run: Run) -> Result<Value, kube::Error> {
    let mut path = path_of(object.kind, &object.id);
    let _ = write!(path, "?fieldManager={FIELD_MANAGER}&force=true");
    if run == Run::Dry {
        path.push_str("&dryRun=All");
    }
    send(door, Method::PATCH, &path, Some(("application/apply-patch+yaml", &object.value))).await
}

/// Who else changed what an apply would put back: fields and managers, in words; nothing when nobody did.
pub(crate) async fn conflicts(door: &Client, object: &Object) -> Option<String> {
    let path = format!("{}?fieldManager={FIELD_MANAGER}&dryRun=All", path_of(object.kind, &object.id));
    let sent = send(door, Method::PATCH, &path, Some(("application/apply-patch+yaml", &object.value))).await;
    let Err(kube::Error::Api(status)) = sent else { return None };
    if status.code != 409 {
        return None;
    }
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    let manager = |message: &str| message.split('"').nth(1).unwrap_or("somebody").to_owned();
    let lines: Vec<String> = causes
        .iter()
        .map(|cause| format!("{}, which {} had changed", cause.field, manager(&cause.message)))
        .collect();
    (!lines.is_empty()).then(|| format!("put back {}", lines.join("; ")))
}

/// Reads an object as it is now.
pub(crate) async fn get(door: &Client, object: &Object) -> Result<Value, kube::Error> {
    send(door, Method::GET, &path_of(object.kind, &object.id), None).await
}

/// Reads an object of a kind as it is now.
pub(crate) async fn get_by(door: &Client, kind: &Kind, id: &Id) -> Result<Value, kube::Error> {
    send(door, Method::GET, &path_of(kind, id), None).await
}

/// Asks whether a pod would be let in.
pub(crate) async fn try_pod(door: &Client, namespace: &str, pod: &Value) -> Result<Value, kube::Error> {
    let path =
        format!("/api/v1/namespaces/{}/pods?dryRun=All&fieldManager={FIELD_MANAGER}", escape(namespace));
    send(door, Method::POST, &path, Some(("application/json", pod))).await
}

/// Makes an object that was pruned once more. One that is there already stays as it is.
pub(crate) async fn restore(
    door: &Client,
    kind: &Kind,
    id: &Id,
    object: &Value,
) -> Result<bool, kube::Error> {
    let path = path_of(kind, id);
    let list = path.rsplit_once('/').map_or("", |(list, _)| list);
    let path = format!("{list}?fieldManager={FIELD_MANAGER}-undo");
    match send(door, Method::POST, &path, Some(("application/json", object))).await {
        Ok(_) => Ok(true),
        Err(error) if client::is_already_exists(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What an engine wrote into a target, if it did.
pub(crate) async fn read_inventory(
    door: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<String>, Error> {
    match send(door, Method::GET, &inventory_path(namespace, name), None).await {
        Ok(object) => Ok(object["data"]["inventory"].as_str().map(str::to_owned)),
        Err(error) if client::is_not_found(&error) => Ok(None),
        Err(source) => Err(Error::Door {
            verb: "get",
            what: format!("the inventory of {name}"),
            source: Box::new(source),
        }),
    }
}

/// Writes what was applied into the one ConfigMap of ours in a target.
pub(crate) async fn write_inventory(
    door: &Client,
    namespace: &str,
    name: &str,
    text: &str,
) -> Result<(), Error> {
    let body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": format!("holdfast.{name}"), "namespace": namespace},
        "data": {"inventory": text},
    });
    let path = format!("{}?fieldManager={FIELD_MANAGER}&force=true", inventory_path(namespace, name));
    let sent = send(door, Method::PATCH, &path, Some(("application/apply-patch+yaml", &body))).await;
    let what = || format!("the inventory of {name}");
    sent.map(|_| ()).map_err(|source| Error::Door { verb: "write", what: what(), source: Box::new(source) })
}

fn inventory_path(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{}/configmaps/holdfast.{}", escape(namespace), escape(name))
}

/// Deletes the application's own object.
pub(crate) async fn forget(door: &Client, name: &str) -> Result<(), Error> {
    let path = format!("/apis/holdfast.dev/v1/applications/{}", escape(name));
    match send(door, Method::DELETE, &path, None).await {
        Ok(_) => Ok(()),
        Err(error) if client::is_not_found(&error) => Ok(()),
        Err(source) => {
            Err(Error::Door { verb: "delete", what: format!("application {name}"), source: Box::new(source) })
        }
    }
}

/// Every object of a kind that is there, whole.
pub(crate) async fn list(door: &Client, kind: &Kind) -> Result<Vec<Value>, kube::Error> {
    let root = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    let listed = send(door, Method::GET, &format!("{root}/{}/{}", kind.version, kind.plural), None).await?;
    let mut items = listed["items"].as_array().cloned().unwrap_or_default();
    for item in &mut items {
        (item["apiVersion"], item["kind"]) = (json!(kind.api_version()), json!(kind.kind));
    }
    Ok(items)
}

/// Every application object that is there.
pub(crate) async fn applications(door: &Client) -> Result<Vec<Value>, Error> {
    let listed = send(door, Method::GET, "/apis/holdfast.dev/v1/applications", None).await;
    let listed = listed.map_err(|source| Error::Door {
        verb: "list",
        what: "applications".to_owned(),
        source: Box::new(source),
    })?;
    Ok(listed["items"].as_array().cloned().unwrap_or_default())
}

/// Deletes an object if it is still the one that was looked at.
pub(crate) async fn delete(door: &Client, removal: &Removal) -> Result<(), kube::Error> {
    let body = json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Background",
        "preconditions": {"uid": removal.uid},
    });
    let path = path_of(removal.kind, &removal.id);
    match send(door, Method::DELETE, &path, Some(("application/json", &body))).await {
        Ok(_) => Ok(()),
        Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The application's own object with this spec, made if it is not there.
pub(crate) async fn declare(door: &Client, name: &str, spec: &Value) -> Result<Value, Error> {
    let body = json!({
        "apiVersion": "holdfast.dev/v1",
        "kind": "Application",
        "metadata": {"name": name},
        "spec": spec,
    });
    let path = format!("/apis/holdfast.dev/v1/applications/{name}?fieldManager={FIELD_MANAGER}&force=true");
    let sent = send(door, Method::PATCH, &path, Some(("application/apply-patch+yaml", &body))).await;
    sent.map_err(|source| Error::Door {
        verb: "declare",
        what: format!("application {name}"),
        source: Box::new(source),
    })
}

/// Writes the application's status.
pub(crate) async fn report(door: &Client, name: &str, status: &Status) -> Result<(), Error> {
    let what = || format!("the status of application {name}");
    let status = serde_json::to_value(status).map_err(|source| Error::Json { what: what(), source })?;
    let path = format!("/apis/holdfast.dev/v1/applications/{name}/status?fieldManager={FIELD_MANAGER}");
    let sent =
        send(door, Method::PATCH, &path, Some(("application/merge-patch+json", &json!({"status": status}))))
            .await;
    sent.map(|_| ()).map_err(|source| Error::Door { verb: "write", what: what(), source: Box::new(source) })
}

async fn send(
    door: &Client,
    method: Method,
    path: &str,
    body: Option<(&str, &Value)>,
) -> Result<Value, kube::Error> {
    let mut request = Request::builder().method(method).uri(path);
    let mut bytes = Vec::new();
    if let Some((kind, value)) = body {
        request = request.header(header::CONTENT_TYPE, kind);
        bytes = serde_json::to_vec(value).map_err(kube::Error::SerdeError)?;
    }
    door.request::<Value>(request.body(bytes).map_err(kube::Error::HttpError)?).await
}

fn path_of(kind: &Kind, id: &Id) -> String {
    let mut path = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    if !id.namespace.is_empty() {
        let _ = write!(path, "/namespaces/{}", escape(&id.namespace));
    }
    let _ = write!(path, "/{}/{}", kind.plural, escape(&id.name));
    path
}

/// Names come from files: what is not plain must not change the path.
fn escape(part: &str) -> String {
    let mut escaped = String::new();
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b':' => {
                escaped.push(char::from(byte))
            }
            _ => {
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
    }
    if matches!(escaped.as_str(), "." | "..") { escaped.replace('.', "%2E") } else { escaped }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_path() {
        let kind = api::kinds::by_kind("v1", "ConfigMap").unwrap();
        let id = Id { namespace: "a/b".to_owned(), name: "../x?y".to_owned(), ..Id::default() };
        assert_eq!(path_of(kind, &id), "/api/v1/namespaces/a%2Fb/configmaps/..%2Fx%3Fy");
    }
}
