//! In which encoding an answer travels: JSON as it is, YAML and protobuf for those who ask for it, packed when it is large.
//!
//! Invariant: a body that is still growing (a watch, a log) travels as it is.

use bytes::Bytes;
use client::{Body, full};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use serde_json::Value;

use crate::negotiate::{Accepted, Media};

/// Smaller answers are not worth packing, as Kubernetes finds too.
const PACKED_FROM_BYTES: u64 = 128 * 1024;

/// What a request says about the encoding of its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    accepted: Vec<Accepted>,
    gzip: bool,
}

impl Wanted {
    pub(crate) fn asked(headers: &HeaderMap) -> Wanted {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let gzip = text(header::ACCEPT_ENCODING).split(',').any(|one| {
            let (name, quality) = one.split_once(';').unwrap_or((one, ""));
            name.trim() == "gzip" && quality.trim() != "q=0"
        });
        Wanted { accepted: Accepted::all(headers), gzip }
    }

    /// The answer as wanted.
    pub(crate) async fn apply(self, response: Response<Body>) -> Response<Body> {
        let size = response.body().size_hint().exact().unwrap_or(0);
        let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|of| of == "application/json");
        let packed_already = response.headers().contains_key(header::CONTENT_ENCODING);
        let first = self.accepted.first().map_or(Media::Json, |accepted| accepted.media);
        let rewritten = first != Media::Json && is_json && size > 0 && !packed_already;
        let to_gzip = self.gzip && size > PACKED_FROM_BYTES && !packed_already;
        if !rewritten && !to_gzip {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        // The whole body is in memory already: its size is known.
        let Ok(collected) = body.collect().await else { return Response::from_parts(parts, full("")) };
        let mut bytes = collected.to_bytes();
        if rewritten && let Some((media, other)) = self.rewritten(&bytes) {
            bytes = other;
            parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media.name()));
        }
        if let (true, Some(packed)) = (to_gzip, packed(&bytes)) {
            bytes = packed;
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        Response::from_parts(parts, full(bytes))
    }
}

impl Wanted {
    /// The first accepted form that this JSON can be written in; none when it stays JSON.
    fn rewritten(&self, json: &[u8]) -> Option<(Media, Bytes)> {
        for Accepted { media, what } in &self.accepted {
            match media {
                Media::Json => return None,
                Media::Yaml => return Some((Media::Yaml, yaml_of(json)?)),
                // A table has no protobuf form.
                Media::Protobuf if what.as_deref() == Some("Table") => {}
                Media::Protobuf => {
                    if let Ok(bytes) = api::proto::encode(json) {
                        return Some((Media::Protobuf, bytes.into()));
                    }
                }
            }
        }
        None
    }
}

fn yaml_of(json: &[u8]) -> Option<Bytes> {
    let value: Value = serde_json::from_slice(json).ok()?;
    Some(serde_yaml::to_string(&value).ok()?.into())
}

fn packed(bytes: &[u8]) -> Option<Bytes> {
    use std::io::Write;
    let mut packer =
        flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 4), flate2::Compression::fast());
    packer.write_all(bytes).ok()?;
    Some(packer.finish().ok()?.into())
}
