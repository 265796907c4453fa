//! One call of a webhook over HTTPS: to a URL, or to a Service of the cluster.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::Inner;
use crate::admission::find;

/// Longer answers are refused.
const MAX_ANSWER_BYTES: usize = 3 << 20;

/// Where a webhook is: whom to connect to, and by which name it is known.
struct Target {
    address: String,
    host: String,
    uri: Uri,
}

/// Posts a review and reads the answer.
///
/// # Errors
/// In the words of the API server: what was called, and why there is no answer.
pub(in crate::admission::dynamic) async fn post(
    inner: &Inner,
    client: &Value,
    review: &Value,
    timeout: Duration,
) -> Result<Value, String> {
    let shown = shown(client, timeout);
    let called = |why: String| format!("failed to call webhook: Post {shown:?}: {why}");
    let work = async {
        let target = target(inner, client, timeout)?;
        exchange(&target, client["caBundle"].as_str(), review).await
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(answer) => answer.map_err(called),
        Err(_) => Err(called(
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned(),
        )),
    }
}

fn text<'a>(value: &'a Value, or: &'a str) -> &'a str {
    value.as_str().unwrap_or(or)
}

fn shown(client: &Value, timeout: Duration) -> String {
    let query = format!("?timeout={}s", timeout.as_secs());
    match client["url"].as_str() {
        Some(url) => format!("{url}{query}"),
        None => {
            let service = &client["service"];
            let port = service["port"].as_u64().unwrap_or(443);
            let path = text(&service["path"], "/").trim_start_matches('/');
            let (name, namespace) = (text(&service["name"], ""), text(&service["namespace"], ""));
            format!("https://{name}.{namespace}.svc:{port}/{path}{query}")
        }
    }
}

fn target(inner: &Inner, client: &Value, timeout: Duration) -> Result<Target, String> {
    let shown = shown(client, timeout);
    let uri: Uri = shown.parse().map_err(|error| format!("{shown:?} is no URL: {error}"))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let service = &client["service"];
    if service.is_null() {
        return Ok(Target { address: format!("{}:{port}", uri.host().unwrap_or_default()), host, uri });
    }
    let (name, namespace) = (text(&service["name"], ""), text(&service["namespace"], ""));
    let stored = find(inner, "v1", "Service", namespace, name);
    let stored = stored.ok_or_else(|| format!("service {name:?} not found"))?;
    let ip = text(&stored["spec"]["clusterIP"], "None");
    let known = stored["spec"]["ports"].as_array().into_iter().flatten();
    if ip == "None" || !known.into_iter().any(|known| known["port"] == port) {
        return Err(format!("no service port {port} found for service {name:?}"));
    }
    Ok(Target { address: format!("{ip}:{port}"), host, uri })
}

async fn exchange(target: &Target, authority: Option<&str>, review: &Value) -> Result<Value, String> {
    let config = trust(authority)?;
    let tcp = TcpStream::connect(&target.address)
        .await
        .map_err(|error| format!("dial tcp {}: connect: {error}", target.address))?;
    let name = ServerName::try_from(target.host.clone()).map_err(|error| error.to_string())?;
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    let tls = tls.map_err(|error| format!("tls: failed to verify certificate: {error}"))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(tls)).await.map_err(|error| error.to_string())?;
    let path = target.uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = target.uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|error| error.to_string())?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        if !status.is_success() {
            return Err(format!("the server answered {status}: {}", String::from_utf8_lossy(&body).trim()));
        }
        serde_json::from_slice(&body).map_err(|error| format!("the answer is no JSON: {error}"))
    };
    // The connection moves while the answer is waited for; however it ends, what came before counts.
    match futures::future::select(std::pin::pin!(answered), std::pin::pin!(connection)).await {
        futures::future::Either::Left((answer, _)) => answer,
        futures::future::Either::Right((_, answered)) => answered.await,
    }
}

/// Who is believed: the authority of the configuration, or those of the machine.
fn trust(authority: Option<&str>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    let Some(authority) = authority.filter(|authority| !authority.is_empty()) else {
        let builder = builder.with_platform_verifier().map_err(|error| error.to_string())?;
        return Ok(builder.with_no_client_auth());
    };
    let pem = STANDARD.decode(authority).map_err(|error| format!("caBundle: {error}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("caBundle: {error}"))?;
        roots.add(certificate).map_err(|error| format!("caBundle: {error}"))?;
    }
    if roots.is_empty() {
        return Err("unable to load root certificates: unable to parse bytes as PEM block".to_owned());
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
