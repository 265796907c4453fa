//! In which form an answer is wanted: the object, its metadata, or rows of a table; as JSON, YAML or protobuf.

use api::error::ApiError;
use api::kinds::{self, Kind};
use api::proto;
use api::table::{self, IncludeObject};
use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object;
use crate::path::Resource;
use crate::query::Query;

/// The form of objects in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Whole,
    Metadata,
    Table,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Media {
    Json,
    Yaml,
    Protobuf,
}

impl Media {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Media::Json => "application/json",
            Media::Yaml => "application/yaml",
            Media::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// One entry of `Accept` that can be served: how it is written, and as what (`as=Table`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) media: Media,
    pub(crate) what: Option<String>,
}

impl Accepted {
    /// The entries of `Accept` that are known, the most wanted first; JSON when nothing is said.
    pub(crate) fn all(headers: &HeaderMap) -> Vec<Accepted> {
        let lines = headers.get_all(http::header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let accept = lines.collect::<Vec<_>>().join(",");
        let mut known: Vec<(u32, usize, Accepted)> = accept.split(',').filter_map(entry).collect();
        if accept.trim().is_empty() {
            known.push((1000, 0, Accepted { media: Media::Json, what: None }));
        }
        // Stable: of what is wanted alike, the earlier wins.
        known.sort_by_key(|(quality, wildcards, _)| (std::cmp::Reverse(*quality), *wildcards));
        known.into_iter().map(|(.., accepted)| accepted).collect()
    }
}

/// Quality in thousandths, number of wildcards, and the entry; none when it is not wanted or not known.
fn entry(text: &str) -> Option<(u32, usize, Accepted)> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default().to_ascii_lowercase();
    let media = match name.as_str() {
        "application/json" | "application/*" | "*/*" => Media::Json,
        "application/yaml" => Media::Yaml,
        "application/vnd.kubernetes.protobuf" => Media::Protobuf,
        _ => return None,
    };
    let (mut quality, mut what) = (1000, None);
    for parameter in parts {
        match parameter.split_once('=') {
            Some(("q", value)) => quality = thousandths(value.trim())?,
            Some(("as", value)) => what = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    (quality > 0).then(|| (quality, name.matches('*').count(), Accepted { media, what }))
}

fn thousandths(quality: &str) -> Option<u32> {
    let value: f64 = quality.parse().ok()?;
    // Between 0 and 1000, so that nothing is cut off.
    Some((value.clamp(0.0, 1.0) * 1000.0).round() as u32)
}

/// The form and encoding that are served of those that a client accepts. A watch has no YAML.
pub(crate) fn negotiated(
    headers: &HeaderMap,
    resource: &Resource,
    watch: bool,
) -> Result<(Form, Media), ApiError> {
    let kind = resource.kind;
    let has_protobuf = match resource.subresource.as_deref().and_then(|name| kind.subresource(name)) {
        Some(spoken) => proto::has_form(&kinds::api_version(&spoken.group, &spoken.version), &spoken.kind),
        None => proto::has_form(&kind.api_version(), &kind.kind),
    };
    // What is answered and forgotten has no rows.
    let has_rows = kind.verbs.iter().any(|verb| verb == "get" || verb == "list");
    for Accepted { media, what } in Accepted::all(headers) {
        let form = match what.as_deref() {
            None => Form::Whole,
            Some("Table") => Form::Table,
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Form::Metadata,
            Some(_) => continue,
        };
        let served = match media {
            _ if form == Form::Table && !has_rows => false,
            Media::Json => true,
            Media::Yaml => !watch,
            Media::Protobuf => form == Form::Metadata || (form == Form::Whole && has_protobuf),
        };
        if served {
            return Ok((form, media));
        }
    }
    let mut served = vec![Media::Json.name()];
    served.extend((!watch).then_some(Media::Yaml.name()));
    served.extend(has_protobuf.then_some(Media::Protobuf.name()));
    Err(ApiError::not_acceptable(&served))
}

/// How the rows of a table are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rendering {
    pub(crate) kind: &'static Kind,
    pub(crate) form: Form,
    pub(crate) media: Media,
    pub(crate) now: Timestamp,
    pub(crate) include: IncludeObjectChoice,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum IncludeObjectChoice {
    None,
    Metadata,
    Object,
}

impl IncludeObjectChoice {
    pub(crate) fn asked(query: &Query) -> IncludeObjectChoice {
        match query.get("includeObject") {
            Some("None") => IncludeObjectChoice::None,
            Some("Object") => IncludeObjectChoice::Object,
            _ => IncludeObjectChoice::Metadata,
        }
    }

    fn choice(self) -> IncludeObject {
        match self {
            IncludeObjectChoice::None => IncludeObject::None,
            IncludeObjectChoice::Metadata => IncludeObject::Metadata,
            IncludeObjectChoice::Object => IncludeObject::Object,
        }
    }
}

impl Rendering {
    /// One object in the wanted form. Whole objects are passed on as they are stored.
    pub(crate) fn one(&self, bytes: &Bytes) -> Bytes {
        match self.form {
            Form::Whole => self.whole(bytes),
            Form::Metadata => partial(bytes).to_string().into(),
            Form::Table => {
                let object = object::parse(bytes);
                let version = json!({ "resourceVersion": object::meta(&object, "resourceVersion") });
                table::table(self.kind, &[&object], self.now, self.include.choice(), version)
                    .to_string()
                    .into()
            }
        }
    }

    /// A list in the wanted form.
    pub(crate) fn many(&self, items: &[Bytes], metadata: Value) -> Bytes {
        match self.form {
            Form::Whole if !self.kind.is_stored() => {
                let items: Vec<Bytes> = items.iter().map(|item| self.whole(item)).collect();
                self.list(&format!("{}List", self.kind.kind), &self.kind.api_version(), &items, &metadata)
            }
            Form::Whole => {
                self.list(&format!("{}List", self.kind.kind), &self.kind.api_version(), items, &metadata)
            }
            Form::Metadata => {
                let items: Vec<Bytes> = items.iter().map(|item| partial(item).to_string().into()).collect();
                self.list("PartialObjectMetadataList", "meta.k8s.io/v1", &items, &metadata)
            }
            Form::Table => {
                let objects: Vec<Value> = items.iter().map(|item| object::parse(item)).collect();
                let objects: Vec<&Value> = objects.iter().collect();
                table::table(self.kind, &objects, self.now, self.include.choice(), metadata)
                    .to_string()
                    .into()
            }
        }
    }

    fn whole(&self, bytes: &Bytes) -> Bytes {
        if self.kind.is_stored() {
            return bytes.clone();
        }
        object::parse_as(self.kind, bytes).to_string().into()
    }

    fn list(&self, kind: &str, api_version: &str, items: &[Bytes], metadata: &Value) -> Bytes {
        let head = format!(
            "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":["
        );
        let mut body =
            Vec::with_capacity(head.len() + items.iter().map(|item| item.len() + 1).sum::<usize>() + 2);
        body.extend_from_slice(head.as_bytes());
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                body.push(b',');
            }
            body.extend_from_slice(item);
        }
        body.extend_from_slice(b"]}");
        body.into()
    }
}

fn partial(bytes: &[u8]) -> Value {
    let mut object = object::parse(bytes);
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"].take() })
}
