//! Another Kubernetes as the target: the same door, over HTTPS, with what a kubeconfig says.
//!
//! Invariant: nothing is installed there; what is ours is in one ConfigMap per application.
//! Invariant: the server is checked against the kubeconfig's authority; credentials never leave for another address.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::{Body, BoxError};
use futures::TryStreamExt;
use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use serde::{Deserialize, Serialize};
use tower::Service;

/// Which cluster an application is applied to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The file.
    pub kubeconfig: PathBuf,
    /// Its context; the current one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
}

#[derive(Deserialize)]
struct Kubeconfig {
    #[serde(rename = "current-context", default)]
    current: String,
    #[serde(default)]
    contexts: Vec<Named<InContext>>,
    #[serde(default)]
    clusters: Vec<Named<Cluster>>,
    #[serde(default)]
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user")]
    value: T,
}

#[derive(Deserialize)]
struct InContext {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
    exec: Option<serde_json::Value>,
    #[serde(rename = "auth-provider")]
    auth_provider: Option<serde_json::Value>,
}

/// The door to the cluster of a target.
///
/// # Errors
/// What is wrong with the kubeconfig, in words.
pub(crate) fn door(target: &Target) -> Result<kube::Client, String> {
    let path = &target.kubeconfig;
    let text = std::fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let config: Kubeconfig = serde_yaml::from_str(&text)
        .map_err(|error| format!("{} is no kubeconfig: {error}", path.display()))?;
    let wanted = target.context.as_deref().unwrap_or(&config.current);
    let missing = |what: &str, name: &str| format!("{} has no {what} {name:?}", path.display());
    let context = named(config.contexts, wanted).ok_or_else(|| missing("context", wanted))?;
    let cluster =
        named(config.clusters, &context.cluster).ok_or_else(|| missing("cluster", &context.cluster))?;
    let user = match context.user.as_str() {
        "" => User::default(),
        name => named(config.users, name).ok_or_else(|| missing("user", name))?,
    };
    let dir = path.parent().unwrap_or(Path::new("/"));
    Ok(client::door(Https::new(dir, cluster, user)?))
}

fn named<T>(list: Vec<Named<T>>, name: &str) -> Option<T> {
    list.into_iter().find(|known| known.name == name).map(|known| known.value)
}

/// Sends what a `kube::Client` asks to a server far away.
#[derive(Clone)]
struct Https {
    http: reqwest::Client,
    server: String,
    authorization: Authorization,
}

#[derive(Clone)]
enum Authorization {
    /// A client certificate, or none.
    Connection,
    Fixed(HeaderValue),
    /// Read anew at each request: tokens in files are renewed.
    File(PathBuf),
}

impl Https {
    fn new(dir: &Path, cluster: Cluster, user: User) -> Result<Https, String> {
        if user.exec.is_some() || user.auth_provider.is_some() {
            return Err(
                "its user runs a program for credentials, which is not done; use a token or a certificate"
                    .to_owned(),
            );
        }
        if !cluster.server.starts_with("https://") && !cluster.server.starts_with("http://127.0.0.1") {
            return Err(format!("server {} is not https", cluster.server));
        }
        let authority = content(
            dir,
            cluster.certificate_authority_data.as_deref(),
            cluster.certificate_authority.as_deref(),
        )?;
        let certificate =
            content(dir, user.client_certificate_data.as_deref(), user.client_certificate.as_deref())?;
        let key = content(dir, user.client_key_data.as_deref(), user.client_key.as_deref())?;
        let wrong =
            |what: &'static str| move |error: reqwest::Error| format!("its {what} cannot be used: {error}");
        let mut builder = reqwest::Client::builder().user_agent("holdfast");
        if let Some(authority) = authority {
            let roots = reqwest::Certificate::from_pem_bundle(&authority).map_err(wrong("authority"))?;
            builder = builder.tls_certs_only(roots);
        }
        if let (Some(mut certificate), Some(key)) = (certificate, key) {
            certificate.push(b'\n');
            certificate.extend_from_slice(&key);
            let identity = reqwest::Identity::from_pem(&certificate).map_err(wrong("client certificate"))?;
            builder = builder.identity(identity);
        }
        if cluster.insecure_skip_tls_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let fixed = |text: String| {
            let mut value = HeaderValue::from_str(&text).map_err(|_| "its token is no text".to_owned())?;
            value.set_sensitive(true);
            Ok::<_, String>(Authorization::Fixed(value))
        };
        let authorization = match (user.token_file, user.token, user.username) {
            (Some(file), _, _) => Authorization::File(dir.join(file)),
            (None, Some(token), _) => fixed(format!("Bearer {token}"))?,
            (None, None, Some(name)) => fixed(format!(
                "Basic {}",
                STANDARD.encode(format!("{name}:{}", user.password.unwrap_or_default()))
            ))?,
            (None, None, None) => Authorization::Connection,
        };
        let http = builder.build().map_err(wrong("connection"))?;
        Ok(Https { http, server: cluster.server.trim_end_matches('/').to_owned(), authorization })
    }

    async fn send(self, request: Request<kube::client::Body>) -> Result<Response<Body>, BoxError> {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut headers = head.headers;
        headers.remove(HOST);
        match &self.authorization {
            Authorization::Connection => {}
            Authorization::Fixed(value) => {
                headers.insert(AUTHORIZATION, value.clone());
            }
            Authorization::File(file) => {
                let token = tokio::fs::read_to_string(file).await?;
                headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {}", token.trim()))?);
            }
        }
        let bytes = body.collect().await?.to_bytes();
        let url = format!("{}{path}", self.server);
        let answer = self.http.request(head.method, url).headers(headers).body(bytes).send().await?;
        let mut response = Response::builder().status(answer.status());
        if let Some(into) = response.headers_mut() {
            into.clone_from(answer.headers());
        }
        let frames =
            answer.bytes_stream().map_ok(http_body::Frame::data).map_err(|error| Box::new(error) as BoxError);
        Ok(response.body(BodyExt::boxed_unsync(StreamBody::new(frames)))?)
    }
}

impl Service<Request<kube::client::Body>> for Https {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

/// What stands in the kubeconfig itself, or in a file beside it.
fn content(dir: &Path, data: Option<&str>, file: Option<&Path>) -> Result<Option<Vec<u8>>, String> {
    match (data, file) {
        (Some(data), _) => {
            let decoded = STANDARD.decode(data.trim());
            decoded.map(Some).map_err(|error| format!("a certificate or key in it is not base64: {error}"))
        }
        (None, Some(file)) => {
            let path = dir.join(file);
            std::fs::read(&path).map(Some).map_err(|error| format!("read {}: {error}", path.display()))
        }
        (None, None) => Ok(None),
    }
}
