//! In which form an answer is wanted: the object, its metadata, or rows of a table.

use api::error::ApiError;
use api::kinds::Kind;
use api::table::{self, IncludeObject};
use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object;
use crate::query::Query;

/// The form of objects in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Whole,
    Metadata,
    Table,
}

impl Form {
    /// Reads `Accept`: the first alternative that is served wins; JSON when nothing is said.
    pub(crate) fn asked(headers: &HeaderMap) -> Result<Form, ApiError> {
        let Some(accept) = headers.get(http::header::ACCEPT).and_then(|value| value.to_str().ok()) else {
            return Ok(Form::Whole);
        };
        let alternatives = accept.split(',').map(|one| {
            let mut parts = one.split(';').map(str::trim);
            (parts.next().unwrap_or_default().to_owned(), parts.collect::<Vec<_>>())
        });
        for (media, parameters) in alternatives {
            if !matches!(media.as_str(), "application/json" | "*/*" | "application/*" | "") {
                continue;
            }
            let kind = parameters.iter().find_map(|parameter| parameter.strip_prefix("as="));
            match kind {
                None => return Ok(Form::Whole),
                Some("Table") => return Ok(Form::Table),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => return Ok(Form::Metadata),
                Some(_) => {}
            }
        }
        if accept.contains("application/yaml") || accept.contains("text/html") || accept.contains("protobuf")
        {
            return Ok(Form::Whole);
        }
        Err(ApiError::not_acceptable(&["application/json"]))
    }
}

/// How the rows of a table are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rendering {
    pub(crate) kind: &'static Kind,
    pub(crate) form: Form,
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
