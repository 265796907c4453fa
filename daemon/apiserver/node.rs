//! The way to the kubelets: logs and streams of a pod are answered by the node that runs it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use api::error::ApiError;
use client::{Body, NodeDoor};
use http::{Request, Response, Uri};

use crate::Inner;
use crate::object;
use crate::path::Resource;
use crate::query::Query;

#[derive(Default)]
pub(crate) struct Nodes(Mutex<BTreeMap<String, NodeDoor>>);

impl Nodes {
    pub(crate) fn connect(&self, name: &str, door: NodeDoor) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), door);
    }

    /// The doors of all nodes, in the order of their names.
    pub(crate) fn all(&self) -> Vec<NodeDoor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn find(&self, name: &str) -> Option<NodeDoor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

/// Passes a request that [`answers`] on to the pod's node, in the kubelet's own words.
pub(crate) async fn forward(
    inner: &Inner,
    resource: &Resource,
    query: &Query,
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    let entry = crate::read::entry(inner, resource)?;
    let pod = object::parse(&entry.value);
    let name = object::meta(&pod, "name");
    let container = match resource.subresource.as_deref() {
        Some("portforward") => String::new(),
        _ => container(&pod, query.get("container"))?,
    };
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let door = inner.nodes.find(node).ok_or_else(|| unconnected(node))?;
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let namespace = object::meta(&pod, "namespace");
    let path = match resource.subresource.as_deref() {
        Some("portforward") => format!("/portForward/{namespace}/{name}{query}"),
        Some("log") => format!("/containerLogs/{namespace}/{name}/{container}{query}"),
        verb => format!("/{}/{namespace}/{name}/{container}{query}", verb.unwrap_or_default()),
    };
    *request.uri_mut() = path.parse::<Uri>().map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok(door(request).await)
}

/// The node is known, or its name is, but nobody answers for it.
pub(crate) fn unconnected(node: &str) -> ApiError {
    ApiError::unavailable(format!("node {node:?} has no kubelet connected to this server"), 1)
}

/// Whether requests for a subresource are answered by the pod's node.
pub(crate) fn answers(subresource: Option<&str>) -> bool {
    matches!(subresource, Some("log" | "exec" | "attach" | "portforward"))
}

/// The container meant, or Kubernetes' question which one is.
fn container(pod: &serde_json::Value, asked: Option<&str>) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.filter_map(|container| container["name"].as_str().map(str::to_owned)).collect()
    };
    let main = names("containers");
    let others = [names("initContainers"), names("ephemeralContainers")].concat();
    let name = object::meta(pod, "name");
    match asked {
        Some(asked) if main.iter().chain(&others).any(|known| known == asked) => Ok(asked.to_owned()),
        Some(asked) => Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}"))),
        None if main.len() == 1 => Ok(main.into_iter().next().unwrap_or_default()),
        None => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            main.join(" ")
        ))),
    }
}
