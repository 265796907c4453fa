//! `metrics.k8s.io`: what nodes and pods use, asked of the kubelets that are connected, never stored.

use api::error::ApiError;
use api::select::Labels;
use client::Body;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::Inner;
use crate::answer::json_response;
use crate::object::meta;
use crate::path::Resource;
use crate::query::Query;

/// Whether a resource is answered here.
pub(crate) fn answers(resource: &Resource) -> bool {
    api::kinds::computed_kinds().iter().any(|kind| std::ptr::eq(kind, resource.kind))
}

/// One object, or the list of those that are asked for.
pub(crate) async fn give(
    inner: &Inner,
    resource: &Resource,
    query: &Query,
) -> Result<Response<Body>, ApiError> {
    let kind = resource.kind;
    let labels = query.get("labelSelector").unwrap_or_default();
    let labels = Labels::parse(labels).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let mut items = Vec::new();
    for door in inner.nodes.all() {
        let uri = format!("/{}/{}", kind.group, kind.plural);
        let request = Request::builder().uri(uri).body(client::full("")).expect("a plain request");
        let body = door(request).await.into_body().collect().await;
        let body =
            body.map_err(|error| ApiError::unavailable(format!("a kubelet's answer broke off: {error}"), 1))?;
        let told: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        items.extend(told.as_array().cloned().unwrap_or_default());
    }
    items.retain(|item| {
        let in_namespace = resource.namespace.is_empty() || meta(item, "namespace") == resource.namespace;
        in_namespace
            && resource.name.as_deref().is_none_or(|name| meta(item, "name") == name)
            && labels.matches_object(item)
    });
    items.sort_by_key(|item| (meta(item, "namespace").to_owned(), meta(item, "name").to_owned()));
    if let Some(name) = &resource.name {
        let found = items.into_iter().next().ok_or_else(|| ApiError::not_found(kind, name))?;
        return Ok(json_response(StatusCode::OK, found.to_string()));
    }
    let list = json!({ "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": {}, "items": items });
    Ok(json_response(StatusCode::OK, list.to_string()))
}
