//! From a request's method and path to what is asked: the only place that knows the shape of URLs.

use api::error::ApiError;
use api::kinds::{self, Kind};
use http::Method;

use crate::crd::Registry;

/// What a request is about.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// `/api`, `/apis`, `/version`, `/healthz` …: everything that is no object.
    Document(String),
    /// Objects of a served kind.
    Resource(Resource),
}

#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub(crate) kind: &'static Kind,
    /// Empty: all namespaces, or a kind of the cluster.
    pub(crate) namespace: String,
    /// None: the collection.
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }

    /// The verb of a method on an object (or, with `watch` in the query, a collection).
    pub(crate) fn of(method: &Method, target: &Target, watch: bool) -> Result<Verb, ApiError> {
        let named = !matches!(target, Target::Resource(Resource { name: None, .. }));
        Ok(match (method, named) {
            (&Method::GET | &Method::HEAD, false) if watch => Verb::Watch,
            (&Method::GET | &Method::HEAD, false) => Verb::List,
            (&Method::GET | &Method::HEAD, true) => Verb::Get,
            (&Method::POST, _) => Verb::Create,
            (&Method::PUT, true) => Verb::Update,
            (&Method::PATCH, true) => Verb::Patch,
            (&Method::DELETE, true) => Verb::Delete,
            // Only the server behind a proxy is asked what it can do.
            (&Method::OPTIONS, true) if matches!(target, Target::Resource(resource) if resource.subresource.as_deref() == Some("proxy")) => {
                Verb::Get
            }
            (&Method::DELETE, false) => Verb::DeleteCollection,
            _ => return Err(ApiError::method_not_allowed()),
        })
    }
}

impl Target {
    /// Parses a path. A path under `/api` or `/apis` that names no served resource is 404, as in Kubernetes.
    pub(crate) fn parse(path: &str, crds: &Registry) -> Result<Target, ApiError> {
        let segments: Vec<String> =
            path.trim_matches('/').split('/').map(decode).collect::<Option<_>>().ok_or_else(not_found)?;
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Ok(Target::Document(format!("/{}", parts.join("/")))),
        };
        let (namespace, rest) = match rest {
            // "namespaces/x" and its subresources are the namespace itself.
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            _ => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, None, None),
            [plural, name] => (*plural, Some((*name).to_owned()), None),
            [plural, name, subresource] => {
                (*plural, Some((*name).to_owned()), Some((*subresource).to_owned()))
            }
            // What comes after it is the path on the other side.
            [plural, name, "proxy", ..] => (*plural, Some((*name).to_owned()), Some("proxy".to_owned())),
            _ => return Err(not_found()),
        };
        let kind = kinds::by_plural(group, version, plural)
            .or_else(|| kinds::computed_by_plural(group, version, plural))
            .or_else(|| crds.by_plural(group, version, plural))
            .ok_or_else(not_found)?;
        if kind.namespaced == namespace.is_empty() && (name.is_some() || !namespace.is_empty()) {
            return Err(not_found());
        }
        if let Some(subresource) = &subresource
            && kind.subresource(subresource).is_none()
        {
            return Err(not_found());
        }
        Ok(Target::Resource(Resource { kind, namespace: namespace.to_owned(), name, subresource }))
    }
}

pub(crate) fn not_found() -> ApiError {
    ApiError::no_such_path()
}

/// Percent-decoding of one segment; none when it is not UTF-8 or not well formed.
pub(crate) fn decode(segment: &str) -> Option<String> {
    if !segment.contains('%') {
        return Some(segment.to_owned());
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}
