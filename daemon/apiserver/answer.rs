//! The road of every request: parse → authenticate (done by the caller) → authorize → do → answer.

use std::sync::Arc;

use api::error::ApiError;
use api::{discovery, openapi, proto, schema};
use bytes::{Bytes, BytesMut};
use client::{Body, full};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tracing::debug;

use crate::auth::{self, User};
use crate::encoding::Wanted;
use crate::negotiate::{IncludeObjectChoice, Rendering, negotiated};
use crate::path::{Resource, Target, Verb};
use crate::query::{FieldValidation, Query};
use crate::rbac;
use crate::write::Asked;
use crate::{
    Inner, admission, crd, delete, list, metrics, node, proxy, read, reviews, scale, strategy, watch, yaml,
};

/// Larger bodies are refused, as Kubernetes refuses them.
const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// The Kubernetes version whose behaviour this server documents as its own.
const VERSION: (&str, &str) = ("1", "36");

/// Answers one request; an error becomes a Status object.
pub(crate) async fn answer(inner: Arc<Inner>, user: Arc<User>, request: Request<Body>) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    // Rooms of this process take answers as they are, and so do those on the other side of a proxy.
    let as_is = user.room || path.split('/').any(|part| part == "proxy");
    let wanted = (!as_is).then(|| Wanted::asked(request.headers()));
    let response = match respond(&inner, &user, request).await {
        Ok(response) => response,
        Err(error) => {
            debug!(%method, path, user = user.name, code = error.code, message = error.message, "refused");
            refuse(&error)
        }
    };
    match wanted {
        Some(wanted) => wanted.apply(response).await,
        None => response,
    }
}

pub(crate) fn refuse(error: &ApiError) -> Response<Body> {
    let mut response = json_response(
        StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        error.status().to_string(),
    );
    if let Some(seconds) = error.details["retryAfterSeconds"].as_u64() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

async fn respond(
    inner: &Inner,
    user: &Arc<User>,
    request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    let user = &*match user.room {
        true => Arc::clone(user),
        false => auth::authenticate(inner, user, request.headers())?,
    };
    let target = Target::parse(request.uri().path(), &inner.crds)?;
    let query = Query::parse(request.uri().query());
    let verb = Verb::of(request.method(), &target, query.flag("watch"))?;
    rbac::check(inner, user, verb, &target, &query)?;
    match target {
        Target::Document(path) if request.method() == Method::GET || request.method() == Method::HEAD => {
            document(inner, &path, request.headers())
        }
        Target::Document(_) => Err(ApiError::method_not_allowed()),
        Target::Resource(resource) => {
            let unbounded = user.room
                || verb == Verb::Watch
                || node::answers(resource.subresource.as_deref())
                || proxy::is_proxy(&resource);
            let _permit = match unbounded {
                true => None,
                false => Some(inner.in_flight.try_acquire().map_err(|_| {
                    ApiError::too_many_requests(
                        "too many requests are being worked on, please try again later",
                        1,
                    )
                })?),
            };
            on_resource(inner, user, verb, &resource, &query, request).await
        }
    }
}

async fn on_resource(
    inner: &Inner,
    user: &User,
    verb: Verb,
    resource: &Resource,
    query: &Query,
    request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    allowed(verb, resource)?;
    if metrics::answers(resource) {
        return metrics::give(inner, resource, query).await;
    }
    if proxy::is_proxy(resource) {
        admission::dynamic::on_connect(inner, user, resource, query).await?;
        return proxy::forward(inner, resource, request).await;
    }
    if node::answers(resource.subresource.as_deref()) {
        rbac::check_upgrade(inner, user, verb, resource)?;
        admission::dynamic::on_connect(inner, user, resource, query).await?;
        return node::forward(inner, resource, query, request).await;
    }
    let (form, media) = negotiated(request.headers(), resource, verb == Verb::Watch)?;
    let rendering = Rendering {
        kind: resource.kind,
        form,
        media,
        now: (inner.now)(),
        include: IncludeObjectChoice::asked(query),
    };
    match verb {
        Verb::Get if resource.subresource.as_deref() == Some("scale") => {
            Ok(json_response(StatusCode::OK, scale::get(inner, resource)?.to_string()))
        }
        Verb::Get => Ok(json_response(StatusCode::OK, rendering.one(&read::entry(inner, resource)?.value))),
        Verb::List => {
            let page = list::page(inner, resource, query)?;
            Ok(json_response(StatusCode::OK, rendering.many(&page.items, page.metadata)))
        }
        Verb::Watch => watch::start(inner, user, resource, query, rendering),
        _ => {
            let (parts, body) = request.into_parts();
            let content_type = content_type(&parts.headers);
            let bytes = read_body(body).await?;
            let body = decode(&content_type, &bytes)?;
            let twice = given_twice(&content_type, &bytes, query)?;
            let mut asked =
                Asked { inner, user, resource, query, headers: &parts.headers, twice, warnings: Vec::new() };
            let answer = write(&mut asked, verb, &content_type, body).await;
            if answer.is_ok() && resource.kind.kind == "ClusterRole" && resource.kind.group == rbac::GROUP {
                rbac::bootstrap::write_aggregated(inner).await?;
            }
            if answer.is_ok() {
                crd::after_write(inner, resource.kind).await?;
            }
            let mut response = match answer? {
                Answer::Object { status, bytes } => json_response(status, rendering.one(&bytes)),
                Answer::Other { status, bytes } => json_response(status, bytes),
            };
            for warning in &asked.warnings {
                let text: String = warning
                    .chars()
                    .map(|c| if c == '\n' { ' ' } else { c })
                    .filter(|c| !c.is_control())
                    .map(|c| if c == '"' { '\'' } else { c })
                    .collect();
                if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
                    response.headers_mut().append(header::WARNING, value);
                }
            }
            Ok(response)
        }
    }
}

/// Whether the table of kinds has this verb for the resource or its subresource.
fn allowed(verb: Verb, resource: &Resource) -> Result<(), ApiError> {
    let verbs = match resource.subresource.as_deref().and_then(|name| resource.kind.subresource(name)) {
        Some(subresource) => &subresource.verbs,
        None => &resource.kind.verbs,
    };
    if verbs.iter().any(|known| known == verb.name()) { Ok(()) } else { Err(ApiError::method_not_allowed()) }
}

enum Answer {
    /// An object of the resource's kind, to be rendered as asked.
    Object { status: StatusCode, bytes: Bytes },
    /// A Status or a Scale.
    Other { status: StatusCode, bytes: Bytes },
}

async fn write(
    asked: &mut Asked<'_>,
    verb: Verb,
    content_type: &str,
    body: Value,
) -> Result<Answer, ApiError> {
    let subresource = asked.resource.subresource.clone();
    match (verb, subresource.as_deref()) {
        (Verb::Create, Some("binding")) => bind(asked, &body).await,
        (Verb::Create, Some("eviction")) => {
            other(StatusCode::CREATED, crate::eviction::evict(asked, &body).await?)
        }
        (Verb::Create, None) if asked.resource.kind.kind == "Binding" => bind_by_name(asked, &body).await,
        (Verb::Create, Some("token")) => {
            let name = asked.resource.name.as_deref().unwrap_or_default();
            other(StatusCode::CREATED, auth::request(asked.inner, &asked.resource.namespace, name, body)?)
        }
        (Verb::Create, None) if reviews::is_review(asked.resource.kind) => {
            let body = asked.decoded(body)?;
            other(StatusCode::CREATED, reviews::answer(asked.inner, asked.user, asked.resource, body)?)
        }
        (Verb::Update, Some("scale")) => other(StatusCode::OK, scale::write(asked, None, body).await?),
        (Verb::Patch, Some("scale")) => {
            other(StatusCode::OK, scale::write(asked, Some(content_type), body).await?)
        }
        (Verb::Create, None) => stored(asked.create(body).await?),
        (Verb::Update, Some("finalize")) => {
            let name = asked.resource.name.clone().unwrap_or_default();
            let live = crate::read::entry(asked.inner, asked.resource)?;
            let going = crate::object::is_terminating(&crate::object::parse(&live.value));
            if going && !crd::empty_namespace(asked.inner, &name).await? {
                let why = "objects of kinds that users define are still in it";
                return Err(ApiError::conflict(asked.resource.kind, &name, why));
            }
            stored(asked.update(body).await?)
        }
        (Verb::Update, _) => stored(asked.update(body).await?),
        (Verb::Patch, _) => stored(asked.patch(content_type, body).await?),
        (Verb::Delete, None) => {
            let options = delete::Options::asked(asked.query, &body)?;
            Ok(match delete::one(asked, &options).await? {
                delete::Gone::Now(bytes) => Answer::Other { status: StatusCode::OK, bytes },
                delete::Gone::Later(bytes) => Answer::Object { status: StatusCode::OK, bytes },
            })
        }
        (Verb::DeleteCollection, None) => {
            let options = delete::Options::asked(asked.query, &body)?;
            Ok(Answer::Other { status: StatusCode::OK, bytes: delete::collection(asked, &options).await? })
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn stored(written: crate::write::Written) -> Result<Answer, ApiError> {
    let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(Answer::Object { status, bytes: written.value })
}

fn other(status: StatusCode, value: Value) -> Result<Answer, ApiError> {
    Ok(Answer::Other { status, bytes: value.to_string().into() })
}

async fn bind(asked: &mut Asked<'_>, binding: &Value) -> Result<Answer, ApiError> {
    let (kind, now) = (asked.resource.kind, (asked.inner.now)());
    asked.change_fields(|pod| strategy::bind(kind, pod, binding, now)).await?;
    other(
        StatusCode::CREATED,
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }),
    )
}

/// POST of a Binding to its own collection: it names the pod itself.
async fn bind_by_name(asked: &Asked<'_>, binding: &Value) -> Result<Answer, ApiError> {
    let kind = api::kinds::by_kind("v1", "Pod").expect("pods are served");
    let name = crate::object::meta(binding, "name");
    if name.is_empty() {
        return Err(ApiError::bad_request("binding: metadata.name: Required value".to_owned()));
    }
    let resource = Resource {
        kind,
        namespace: asked.resource.namespace.clone(),
        name: Some(name.to_owned()),
        subresource: Some("binding".to_owned()),
    };
    bind(&mut Asked { resource: &resource, twice: Vec::new(), warnings: Vec::new(), ..*asked }, binding).await
}

fn content_type(headers: &HeaderMap) -> String {
    let value =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

async fn read_body(mut body: Body) -> Result<Bytes, ApiError> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::bad_request(format!("the body could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BODY_BYTES {
            return Err(ApiError::too_large(MAX_BODY_BYTES));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// The fields that a body gives twice, for those who want to know.
fn given_twice(content_type: &str, body: &Bytes, query: &Query) -> Result<Vec<String>, ApiError> {
    let patch = content_type == "application/json-patch+json";
    if patch || query.field_validation()? == FieldValidation::Ignore || proto::is_protobuf(body) {
        return Ok(Vec::new());
    }
    // Clients mostly send JSON under the names of YAML.
    if content_type.ends_with("yaml")
        && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_err()
        && let Ok(text) = std::str::from_utf8(body)
    {
        let told = yaml::given_twice(text);
        let told = (!told.is_empty()).then(|| format!("yaml: unmarshal errors:\n  {}", told.join("\n  ")));
        return Ok(told.into_iter().collect());
    }
    Ok(schema::duplicate_fields(body).into_iter().map(|defect| defect.message).collect())
}

/// JSON, YAML or Kubernetes' protobuf, to JSON. An empty body is null.
fn decode(content_type: &str, body: &Bytes) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    if proto::is_protobuf(body) {
        return proto::decode(body)
            .map_err(|error| ApiError::bad_request(format!("the body is not valid protobuf: {error}")));
    }
    match content_type {
        "application/yaml" | "application/apply-patch+yaml" => {
            // Clients mostly send JSON under this name, which is YAML as well but much quicker to read.
            serde_json::from_slice(body)
                .or_else(|_| yaml::read(body))
                .map_err(|error| ApiError::bad_request(format!("the body is not valid YAML: {error}")))
        }
        "application/json"
        | "application/json-patch+json"
        | "application/merge-patch+json"
        | "application/strategic-merge-patch+json" => serde_json::from_slice(body)
            .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}"))),
        _ => Err(ApiError::unsupported_media_type(&[
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
        ])),
    }
}

/// Everything that is no object: discovery, OpenAPI, version, health.
fn document(inner: &Inner, path: &str, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let aggregated = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("as=APIGroupDiscoveryList"));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let custom = inner.crds.served();
    let value = match parts.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => {
            let mut response = Response::new(full("ok"));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            return Ok(response);
        }
        ["version"] => Some(version()),
        [".well-known", "openid-configuration"] => Some(inner.tokens.configuration()),
        ["openid", "v1", "jwks"] => Some(inner.tokens.keys()),
        ["api"] if aggregated => return Ok(aggregated_response(&discovery::aggregated_core())),
        ["apis"] if aggregated => return Ok(aggregated_response(&discovery::aggregated_groups(&custom))),
        ["api"] => Some(discovery::api_versions()),
        ["apis"] => Some(discovery::group_list(&custom)),
        ["api", version] => discovery::resource_list("", version, &[]),
        ["apis", group] => discovery::group(group, &custom),
        ["apis", group, version] => discovery::resource_list(group, version, &custom),
        ["openapi", "v2"] => Some(openapi::version_two(&custom)),
        ["openapi", "v3"] => Some(openapi::index(&custom)),
        ["openapi", "v3", rest @ ..] => openapi::document(&rest.join("/"), &custom),
        [""] => Some(
            json!({ "paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"] }),
        ),
        _ => None,
    };
    Ok(json_response(StatusCode::OK, value.ok_or_else(ApiError::no_such_path)?.to_string()))
}

fn version() -> Value {
    let (major, minor) = VERSION;
    json!({
        "major": major, "minor": minor,
        "gitVersion": format!("v{major}.{minor}.0+holdfast-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}

fn aggregated_response(value: &Value) -> Response<Body> {
    let mut response = json_response(StatusCode::OK, value.to_string());
    let media =
        HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    response
}

pub(crate) fn json_response(status: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    json_body(status, full(bytes))
}

fn json_body(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
