//! One request: which backend, what is passed on, and what is said where that is not possible.
//!
//! Invariant: headers that concern one connection only are never passed on, except to switch protocols.
//! Invariant: what a client says about itself in forwarding headers is replaced, not believed.

use crate::routes::{Backend, Routes};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TE, UPGRADE};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an endpoint may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// How long an endpoint may take to begin its answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// Endpoints tried before giving up.
const MOST_ENDPOINTS: usize = 3;

/// Headers of one connection (RFC 9110, section 7.6.1), and those that only look like it.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

type Body = BoxBody<Bytes, hyper::Error>;

/// Answers a request: from an endpoint, starting with the one whose turn it is, or with an explanation.
pub(crate) async fn answer(
    routes: Option<&Routes>,
    request: Request<Incoming>,
    client: SocketAddr,
    turn: usize,
) -> Response<Body> {
    let Some(routes) = routes else {
        return explain(StatusCode::SERVICE_UNAVAILABLE, "the cluster's Ingresses are not known yet");
    };
    if request.method() == Method::CONNECT {
        return explain(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not served here");
    }
    let host = host(&request);
    let path = request.uri().path();
    let Some(backend) = routes.find(&host, path) else {
        return explain(StatusCode::NOT_FOUND, &format!("no Ingress has a rule for http://{host}{path}"));
    };
    if backend.endpoints.is_empty() {
        return explain(StatusCode::SERVICE_UNAVAILABLE, &format!("{} {}", backend.what, backend.why));
    }
    match connect(backend, turn).await {
        Ok(endpoint) => pass_on(endpoint, request, (&host, client), backend).await,
        Err(error) => explain(
            StatusCode::BAD_GATEWAY,
            &format!("{}: no endpoint accepts a connection: {error}", backend.what),
        ),
    }
}

async fn connect(backend: &Backend, turn: usize) -> io::Result<TcpStream> {
    let count = backend.endpoints.len();
    let mut last = io::Error::other("there is none");
    for endpoint in (0..count.min(MOST_ENDPOINTS)).map(|i| backend.endpoints[turn.wrapping_add(i) % count]) {
        match timeout(CONNECT_PATIENCE, TcpStream::connect(endpoint)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = io::Error::new(error.kind(), format!("{endpoint}: {error}")),
            Err(_) => last = io::Error::other(format!("{endpoint}: no answer in {CONNECT_PATIENCE:?}")),
        }
    }
    Err(last)
}

async fn pass_on(
    endpoint: TcpStream,
    mut request: Request<Incoming>,
    (host, client): (&str, SocketAddr),
    backend: &Backend,
) -> Response<Body> {
    let failed = |error: &dyn std::error::Error| {
        let why = format!("{}: its endpoint did not answer: {}", backend.what, reconcile::chain(error));
        explain(StatusCode::BAD_GATEWAY, &why)
    };
    let client_side = hyper::upgrade::on(&mut request);
    let wanted = upgrade(request.headers());
    prepare(&mut request, host, client, wanted.as_ref());
    let mut sender = match open(endpoint).await {
        Ok(sender) => sender,
        Err(error) => return failed(&error),
    };
    let mut response = match timeout(ANSWER_PATIENCE, sender.send_request(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return failed(&error),
        Err(_) => {
            let why = format!("{}: its endpoint did not answer in {ANSWER_PATIENCE:?}", backend.what);
            return explain(StatusCode::GATEWAY_TIMEOUT, &why);
        }
    };
    let switched =
        upgrade(response.headers()).filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS);
    strip(response.headers_mut());
    if let Some(protocol) = switched {
        restore(response.headers_mut(), &protocol);
        let endpoint_side = hyper::upgrade::on(&mut response);
        tokio::spawn(splice(client_side, endpoint_side));
    }
    response.map(BodyExt::boxed)
}

async fn open(endpoint: TcpStream) -> hyper::Result<SendRequest<Incoming>> {
    let (sender, connection) = http1::handshake(TokioIo::new(endpoint)).await?;
    // Ends with the answer, or with the connection it was upgraded to.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to an endpoint ended");
        }
    });
    Ok(sender)
}

/// Carries bytes both ways until both ends are done.
async fn splice(client: hyper::upgrade::OnUpgrade, endpoint: hyper::upgrade::OnUpgrade) {
    match tokio::try_join!(client, endpoint) {
        Ok((client, endpoint)) => {
            let (mut client, mut endpoint) = (TokioIo::new(client), TokioIo::new(endpoint));
            // However it ends, both sides see it.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut endpoint).await;
        }
        Err(error) => tracing::debug!(%error, "a switch of protocols did not happen"),
    }
}

fn prepare(request: &mut Request<Incoming>, host: &str, client: SocketAddr, upgrade: Option<&HeaderValue>) {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    // A request for a proxy names the host in its first line; an endpoint expects the path alone.
    *request.uri_mut() = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    strip(headers);
    if let Some(protocol) = upgrade {
        restore(headers, protocol);
    }
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(host)
    {
        headers.insert(HOST, host);
    }
    let forwarded = [
        ("x-forwarded-for", Some(client.ip().to_string())),
        ("x-real-ip", Some(client.ip().to_string())),
        ("x-forwarded-proto", Some("http".to_owned())),
        ("x-forwarded-host", headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned)),
        ("forwarded", None),
    ];
    for (name, value) in forwarded {
        headers.remove(name);
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// The host that is asked for, without its port.
fn host(request: &Request<Incoming>) -> String {
    let header = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host =
        request.uri().authority().map(http::uri::Authority::as_str).or_else(header).unwrap_or_default();
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name.to_owned(),
        _ => host.to_owned(),
    }
}

/// The protocol that the headers ask to switch to.
fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    listed(headers).iter().any(|name| name == "upgrade").then(|| headers.get(UPGRADE).cloned())?
}

fn restore(headers: &mut HeaderMap, protocol: &HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol.clone());
}

/// The headers that `Connection` names, in lower case.
fn listed(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect()
}

fn strip(headers: &mut HeaderMap) {
    for name in listed(headers) {
        if name != "host" {
            headers.remove(name.as_str());
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|value| value != "trailers") {
        headers.remove(TE);
    }
}

fn explain(code: StatusCode, why: &str) -> Response<Body> {
    let text = format!("{} {}: {why}\n", code.as_u16(), code.canonical_reason().unwrap_or_default());
    let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed());
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
