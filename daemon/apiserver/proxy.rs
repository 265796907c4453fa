//! The proxy subresource: HTTP to a pod or a Service by way of this server, and to a node's kubelet.
//!
//! Invariant: what a client is told to come back to (redirects, links of a page) leads through this server again.

use std::sync::atomic::{AtomicUsize, Ordering};

use api::error::ApiError;
use bytes::Bytes;
use client::{Body, BoxError, full};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tracing::debug;

use crate::object::{self, meta};
use crate::path::Resource;
use crate::{Inner, node};

/// Headers of one connection, not of the message.
const HOP: [HeaderName; 5] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
];
/// Larger pages are passed on as they are.
const MAX_PAGE: usize = 1 << 20;
/// Which endpoint is next.
static TURN: AtomicUsize = AtomicUsize::new(0);

/// Whether a resource is one to pass requests through to.
pub(crate) fn is_proxy(resource: &Resource) -> bool {
    resource.subresource.as_deref() == Some("proxy")
}

/// Passes the request on, and the answer back.
pub(crate) async fn forward(
    inner: &Inner,
    resource: &Resource,
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    let path = request.uri().path().to_owned();
    let (prefix, rest) = split(resource, &path);
    if rest.is_empty() && matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(redirect(prefix, request.uri().query()));
    }
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let rest = if rest.is_empty() { "/" } else { rest };
    let uri = format!("{rest}{query}").parse::<Uri>();
    *request.uri_mut() = uri.map_err(|error| ApiError::bad_request(error.to_string()))?;
    let name = resource.name.as_deref().unwrap_or_default();
    if resource.kind.kind == "Node" {
        let door = inner.nodes.find(name).ok_or_else(|| node::unconnected(name))?;
        return Ok(door(request).await);
    }
    let (name, port) = addressed(name)?;
    let address = match resource.kind.kind.as_str() {
        "Service" => of_service(inner, resource, &name, &port)?,
        _ => of_pod(inner, resource, &name, &port)?,
    };
    let mut response = send(&address, request).await.map_err(|error| {
        ApiError::unavailable(format!("error trying to reach service: dial tcp {address}: {error}"), 1)
    })?;
    for name in &HOP {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().remove(name);
        }
    }
    relocate(response.headers_mut(), prefix, &address);
    with_links(response, prefix).await
}

/// The path up to `proxy`, and what comes after it as the client wrote it.
fn split<'a>(resource: &Resource, path: &'a str) -> (&'a str, &'a str) {
    let segments = if resource.kind.namespaced { 7 } else { 5 };
    let end = path.match_indices('/').nth(segments).map_or(path.len(), |(at, _)| at);
    path.split_at(end)
}

fn redirect(prefix: &str, query: Option<&str>) -> Response<Body> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("{prefix}/{query}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// `name`, `name:port`, `http:name:port`.
fn addressed(text: &str) -> Result<(String, String), ApiError> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [name] => Ok(((*name).to_owned(), String::new())),
        [name, port] | ["" | "http", name, port] => Ok(((*name).to_owned(), (*port).to_owned())),
        ["https", ..] => Err(ApiError::bad_request(
            "the proxy does not speak https to pods and services; use kubectl port-forward".to_owned(),
        )),
        _ => Err(ApiError::bad_request(format!("invalid pod or service request {text:?}"))),
    }
}

fn of_pod(inner: &Inner, resource: &Resource, name: &str, port: &str) -> Result<String, ApiError> {
    let pod = crate::read::entry(inner, &Resource { name: Some(name.to_owned()), ..resource.clone() })?;
    let pod = object::parse(&pod.value);
    let ports = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = ports.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let port = match port.parse::<u16>() {
        Ok(port) => port.to_string(),
        // Unnamed: the first port that a container tells; 80 where none does.
        Err(_) => {
            let found = ports.find(|known| port.is_empty() || known["name"] == port);
            match found.and_then(|found| found["containerPort"].as_u64()) {
                Some(number) => number.to_string(),
                None if port.is_empty() => "80".to_owned(),
                None => return Err(ApiError::bad_request(format!("pod {name} has no port {port:?}"))),
            }
        }
    };
    match pod["status"]["podIP"].as_str() {
        Some(ip) if !ip.is_empty() => Ok(format!("{ip}:{port}")),
        _ => Err(ApiError::bad_request("address not allowed")),
    }
}

fn of_service(inner: &Inner, resource: &Resource, name: &str, port: &str) -> Result<String, ApiError> {
    let service = crate::read::entry(inner, &Resource { name: Some(name.to_owned()), ..resource.clone() })?;
    let service = object::parse(&service.value);
    let none = || ApiError::unavailable(format!("no endpoints available for service {name:?}"), 1);
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let wanted = ports.find(|known| {
        port.is_empty()
            || known["name"] == port
            || known["port"].as_u64().is_some_and(|n| n.to_string() == port)
    });
    let Some(wanted) = wanted else {
        return Err(ApiError::unavailable(format!("no service port {port:?} found for service {name:?}"), 1));
    };
    let port_name = wanted["name"].as_str().unwrap_or_default();
    let kind = api::kinds::by_kind("discovery.k8s.io/v1", "EndpointSlice").ok_or_else(none)?;
    let snapshot = inner.store.snapshot();
    let mut addresses = Vec::new();
    for entry in snapshot.range(&object::prefix(kind, meta(&service, "namespace")), None) {
        if entry.head.labels.get("kubernetes.io/service-name").map(String::as_str) == Some(name) {
            addresses.extend(ready(&object::parse(&entry.value), port_name));
        }
    }
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    addresses.get(turn % addresses.len().max(1)).cloned().ok_or_else(none)
}

/// Addresses with port of a slice's endpoints that are ready.
fn ready(slice: &Value, port_name: &str) -> Vec<String> {
    let mut ports = slice["ports"].as_array().into_iter().flatten();
    let port = ports.find(|port| port["name"].as_str().unwrap_or_default() == port_name);
    let Some(port) = port.and_then(|port| port["port"].as_u64()) else { return Vec::new() };
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != false);
    ready.filter_map(|endpoint| Some(format!("{}:{port}", endpoint["addresses"][0].as_str()?))).collect()
}

async fn send(address: &str, mut request: Request<Body>) -> Result<Response<Body>, BoxError> {
    let upgraded = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let headers = request.headers_mut();
    let upgrade = headers.contains_key(header::UPGRADE);
    for name in HOP.iter().filter(|name| !upgrade || **name != header::CONNECTION) {
        headers.remove(name);
    }
    // Who the client is to this server is nobody else's business.
    headers.remove(header::AUTHORIZATION);
    headers.insert(header::HOST, HeaderValue::from_str(address)?);
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(error = %error, "proxied connection ended");
        }
    });
    let mut response = sender.send_request(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(ours) = upgraded
    {
        let theirs = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) else { return };
            // Whoever ends first ends it for both.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await;
        });
    }
    Ok(response.map(|body| body.map_err(|error| -> BoxError { Box::new(error) }).boxed_unsync()))
}

/// A redirect of the server behind leads through this one again.
fn relocate(headers: &mut http::HeaderMap, prefix: &str, address: &str) {
    let Some(location) = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) else { return };
    let own = format!("http://{address}");
    let path = location.strip_prefix(&own).unwrap_or(location);
    if path.starts_with('/')
        && let Ok(value) = HeaderValue::from_str(&format!("{prefix}{path}"))
    {
        headers.insert(header::LOCATION, value);
    }
}

/// Links of a page that name a path on the server behind lead through this one.
async fn with_links(response: Response<Body>, prefix: &str) -> Result<Response<Body>, ApiError> {
    if !is_page(response.headers()) {
        return Ok(response);
    }
    let (mut parts, body) = response.into_parts();
    let bytes = body.collect().await.map_err(|error| ApiError::internal(error.to_string()))?.to_bytes();
    let bytes = match std::str::from_utf8(&bytes) {
        Ok(text) => Bytes::from(relinked(text, prefix)),
        Err(_) => bytes,
    };
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    Ok(Response::from_parts(parts, full(bytes)))
}

/// A page that is small enough to be read whole.
fn is_page(headers: &http::HeaderMap) -> bool {
    let of = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let length = of(header::CONTENT_LENGTH).and_then(|text| text.parse::<usize>().ok());
    of(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html"))
        && of(header::CONTENT_ENCODING).is_none()
        && length.is_some_and(|length| length <= MAX_PAGE)
}

fn relinked(page: &str, prefix: &str) -> String {
    let mut out = page.to_owned();
    for attribute in ["href", "src", "action"] {
        for quote in ['"', '\''] {
            let whole = format!("{attribute}={quote}/");
            let protected = format!("{attribute}={quote}//");
            // A link that begins with two slashes is to another server.
            let parts: Vec<&str> = out.split(&protected).collect();
            let parts: Vec<String> = parts
                .iter()
                .map(|part| part.replace(&whole, &format!("{attribute}={quote}{prefix}/")))
                .collect();
            out = parts.join(&protected);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_carry_a_scheme_and_a_port() {
        for (text, wanted) in
            [("a", ("a", "")), ("a:80", ("a", "80")), ("http:a:web", ("a", "web")), (":a:80", ("a", "80"))]
        {
            let found = addressed(text).expect(text);
            assert_eq!((found.0.as_str(), found.1.as_str()), wanted, "{text}");
        }
        assert!(addressed("https:a:443").is_err() && addressed("a:b:c:d").is_err());
    }

    #[test]
    fn links_of_a_page_lead_through_the_proxy() {
        let page = r#"<a href="/x">x</a><img src='/y'><a href="//other/z"><a href="w">"#;
        let wanted = r#"<a href="/p/x">x</a><img src='/p/y'><a href="//other/z"><a href="w">"#;
        assert_eq!(relinked(page, "/p"), wanted);
    }
}
