//! Reads Kubernetes' protobuf bodies into the JSON that a Go client would have sent instead, and writes the answers.
//!
//! Invariant: hostile bytes end in an error: lengths are checked, depth and number of values are bounded.
//! Invariant: the table of facts decides names and meaning, the wire decides only how a value is framed.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

mod encode;
mod table;
mod wire;

pub use encode::{encode, watch_event};
use table::{Field, Form, Scalar, Table};
use wire::{Reader, Wire};

/// What every protobuf body of Kubernetes starts with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages; the deepest type that is not recursive needs 15.
const MAX_DEPTH: u32 = 64;
/// Values in one body: a million is more than 3 MiB of honest objects hold.
const MAX_VALUES: u32 = 1_000_000;
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Why a body cannot be read; answered as 400 BadRequest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// The body does not start with `k8s\0`.
    #[error("protobuf body does not start with the Kubernetes prefix")]
    NoPrefix,
    /// The bytes end in the middle of something, or a length or varint is impossible.
    #[error("protobuf body is damaged in {message}: {what}")]
    Damaged {
        /// The message being read.
        message: Cow<'static, str>,
        /// What is wrong there.
        what: &'static str,
    },
    /// The envelope does not say which kind it carries.
    #[error("protobuf body names no apiVersion and kind")]
    Unnamed,
    /// The envelope names a kind that the table of facts does not have.
    #[error("no protobuf form is known of {api_version} {kind}; send it as JSON")]
    UnknownKind {
        /// `apps/v1`.
        api_version: String,
        /// `Deployment`.
        kind: String,
    },
    /// The envelope uses an encoding of its content that is not supported.
    #[error("protobuf content encoding {0:?} is not supported; send it unencoded")]
    Encoding(String),
    /// Messages are nested too deeply.
    #[error("protobuf body is nested deeper than {MAX_DEPTH} messages in {0}")]
    TooDeep(&'static str),
    /// A value is not of the type that the table of facts gives it.
    #[error("{field} of {message} has no protobuf form; ask for JSON")]
    Unwritable {
        /// The message being written.
        message: &'static str,
        /// Its field.
        field: String,
    },
    /// The body holds too many values.
    #[error("protobuf body holds more than {MAX_VALUES} values")]
    TooMany,
}

/// Whether a body is in Kubernetes' protobuf form.
pub fn is_protobuf(body: &[u8]) -> bool {
    body.starts_with(MAGIC)
}

/// Decodes a body into a JSON object with `apiVersion` and `kind`.
///
/// As Go's encoder does: a zero value of a field that is no pointer and `omitempty` is left out, an empty struct that is
/// no pointer stays as `{}`, times that are zero are left out.
pub fn decode(body: &[u8]) -> Result<Value, ProtoError> {
    Decoder { values: 0 }.enveloped(body, 0)
}

/// Whether a kind has a protobuf form: those of Kubernetes have, those that users define have not.
pub fn has_form(api_version: &str, kind: &str) -> bool {
    message_of(api_version, kind).is_some()
}

struct Decoder {
    values: u32,
}

impl Decoder {
    /// `k8s\0` and runtime.Unknown: 1 typeMeta{1 apiVersion, 2 kind}, 2 raw, 3 contentEncoding, 4 contentType.
    fn enveloped(&mut self, body: &[u8], depth: u32) -> Result<Value, ProtoError> {
        const NAME: &str = "runtime.Unknown";
        let body = body.strip_prefix(MAGIC).ok_or(ProtoError::NoPrefix)?;
        let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &body[..0]);
        let mut content_type = String::new();
        let mut reader = Reader::new(body, NAME);
        while let Some((number, wire)) = reader.next()? {
            match number {
                1 => {
                    let mut meta = Reader::new(wire.bytes(NAME)?, NAME);
                    while let Some((number, wire)) = meta.next()? {
                        match number {
                            1 => api_version = wire.text(NAME)?,
                            2 => kind = wire.text(NAME)?,
                            _ => {}
                        }
                    }
                }
                2 => raw = wire.bytes(NAME)?,
                3 => match wire.text(NAME)? {
                    empty if empty.is_empty() => {}
                    encoding => return Err(ProtoError::Encoding(encoding)),
                },
                4 => content_type = wire.text(NAME)?,
                _ => {}
            }
        }
        if kind.is_empty() || api_version.is_empty() {
            return Err(ProtoError::Unnamed);
        }
        let mut object = if content_type == "application/json" {
            match serde_json::from_slice(raw) {
                Ok(Value::Object(map)) => map,
                _ => return Err(damaged(NAME, "raw is no JSON object")),
            }
        } else {
            let message = message_of(&api_version, &kind);
            let (name, fields) = message.ok_or_else(|| ProtoError::UnknownKind {
                api_version: api_version.clone(),
                kind: kind.clone(),
            })?;
            let mut map = Map::new();
            self.message(name, fields, raw, &mut map, depth + 1)?;
            map
        };
        object.insert("apiVersion".to_owned(), Value::String(api_version));
        object.insert("kind".to_owned(), Value::String(kind));
        Ok(Value::Object(object))
    }

    fn message(
        &mut self,
        name: &'static str,
        fields: &'static [Field],
        bytes: &[u8],
        into: &mut Map<String, Value>,
        depth: u32,
    ) -> Result<(), ProtoError> {
        if depth > MAX_DEPTH {
            return Err(ProtoError::TooDeep(name));
        }
        let mut reader = Reader::new(bytes, name);
        while let Some((number, wire)) = reader.next()? {
            // A field of a newer Kubernetes is skipped, as its own decoder skips it.
            let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
            self.values += 1;
            if self.values > MAX_VALUES {
                return Err(ProtoError::TooMany);
            }
            self.field(name, field, wire, into, depth)?;
        }
        Ok(())
    }

    fn field(
        &mut self,
        name: &'static str,
        field: &'static Field,
        wire: Wire<'_>,
        into: &mut Map<String, Value>,
        depth: u32,
    ) -> Result<(), ProtoError> {
        match &field.form {
            Form::Inline(message) => {
                let fields = Table::get().known(message);
                self.message(message, fields, wire.bytes(name)?, into, depth + 1)?;
            }
            Form::One { pointer, of } => {
                let value = self.value(name, of, wire, depth)?;
                let dropped = match of {
                    Scalar::Time | Scalar::MicroTime => value.is_null(),
                    _ => field.omit_empty && !pointer && is_zero(&value),
                };
                if dropped {
                    into.remove(field.json);
                } else {
                    into.insert(field.json.to_owned(), value);
                }
            }
            Form::List(of) => {
                let items = self.items(name, of, wire, depth)?;
                if let Value::Array(list) = into.entry(field.json).or_insert_with(|| Value::Array(Vec::new()))
                {
                    list.extend(items);
                }
            }
            Form::Map(of) => {
                let (key, value) = self.entry(name, of, wire.bytes(name)?, depth)?;
                if let Value::Object(map) =
                    into.entry(field.json).or_insert_with(|| Value::Object(Map::new()))
                {
                    map.insert(key, value);
                }
            }
        }
        Ok(())
    }

    /// One item of a list, or many packed numbers.
    fn items(
        &mut self,
        name: &'static str,
        of: &'static Scalar,
        wire: Wire<'_>,
        depth: u32,
    ) -> Result<Vec<Value>, ProtoError> {
        let packed = match wire {
            Wire::Bytes(packed) if of.is_number() => packed,
            wire => return Ok(vec![self.value(name, of, wire, depth)?]),
        };
        let mut items = Vec::new();
        let mut reader = Reader::new(packed, name);
        while let Some(item) = reader.packed(of == &Scalar::Double)? {
            self.values += 1;
            if self.values > MAX_VALUES {
                return Err(ProtoError::TooMany);
            }
            items.push(self.value(name, of, item, depth)?);
        }
        Ok(items)
    }

    /// A map's entry: 1 key, 2 value; either may be left out when zero.
    fn entry(
        &mut self,
        name: &'static str,
        of: &'static Scalar,
        bytes: &[u8],
        depth: u32,
    ) -> Result<(String, Value), ProtoError> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader::new(bytes, name);
        while let Some((number, wire)) = reader.next()? {
            match number {
                1 => key = wire.text(name)?,
                2 => value = Some(self.value(name, of, wire, depth)?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            None => {
                self.value(name, of, if of.is_number() { Wire::Number(0) } else { Wire::Bytes(&[]) }, depth)?
            }
        };
        Ok((key, value))
    }

    fn value(
        &mut self,
        name: &'static str,
        of: &'static Scalar,
        wire: Wire<'_>,
        depth: u32,
    ) -> Result<Value, ProtoError> {
        Ok(match of {
            Scalar::String => Value::String(wire.text(name)?),
            Scalar::Bool => Value::Bool(wire.number(name)? != 0),
            // Negative 32-bit numbers travel as ten-byte varints; the cut to 32 bits is the protobuf rule.
            Scalar::Int32 => Value::from(wire.number(name)? as i32),
            Scalar::Int64 => Value::from(wire.number(name)? as i64),
            Scalar::Double => Value::from(f64::from_bits(wire.number(name)?)),
            Scalar::Bytes => Value::String(STANDARD.encode(wire.bytes(name)?)),
            Scalar::Time => time(name, wire.bytes(name)?, false)?,
            Scalar::MicroTime => time(name, wire.bytes(name)?, true)?,
            Scalar::Quantity => match inner_text(name, wire.bytes(name)?)? {
                empty if empty.is_empty() => Value::from("0"),
                text => Value::String(text),
            },
            Scalar::IntOrString => int_or_string(name, wire.bytes(name)?)?,
            Scalar::Strings => strings(name, wire.bytes(name)?)?,
            Scalar::Raw => self.raw(name, inner_bytes(name, wire.bytes(name)?)?, depth)?,
            Scalar::Message(message) => {
                let mut map = Map::new();
                self.message(message, Table::get().known(message), wire.bytes(name)?, &mut map, depth + 1)?;
                Value::Object(map)
            }
            Scalar::Choice(message) => self.choice(message, wire.bytes(name)?, depth)?,
        })
    }

    /// RawExtension and FieldsV1: JSON, or an enveloped protobuf object.
    fn raw(&mut self, name: &'static str, bytes: &[u8], depth: u32) -> Result<Value, ProtoError> {
        if is_protobuf(bytes) {
            return self.enveloped(bytes, depth + 1);
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        // serde_json bounds the depth itself.
        serde_json::from_slice(bytes).map_err(|_| damaged(name, "raw content is no JSON"))
    }

    /// CustomResourceDefinitions' JSONSchemaPropsOr…: in JSON whichever of its fields is set.
    fn choice(&mut self, message: &'static str, bytes: &[u8], depth: u32) -> Result<Value, ProtoError> {
        if depth >= MAX_DEPTH {
            return Err(ProtoError::TooDeep(message));
        }
        let fields = Table::get().known(message);
        let mut chosen = Value::Null;
        let mut list = Vec::new();
        let mut reader = Reader::new(bytes, message);
        while let Some((number, wire)) = reader.next()? {
            match fields.iter().find(|field| field.number == number).map(|field| &field.form) {
                Some(Form::List(of)) => list.push(self.value(message, of, wire, depth + 1)?),
                Some(Form::One { of, .. }) => {
                    let value = self.value(message, of, wire, depth + 1)?;
                    // A schema outweighs the `allows` beside it.
                    if !(chosen.is_object() && value.is_boolean()) {
                        chosen = value;
                    }
                }
                _ => {}
            }
        }
        Ok(if list.is_empty() { chosen } else { Value::Array(list) })
    }
}

fn damaged(message: &'static str, what: &'static str) -> ProtoError {
    ProtoError::Damaged { message: Cow::Borrowed(message), what }
}

/// The message of a kind: packages are named after the group's first word, with a few exceptions.
fn message_of(api_version: &str, kind: &str) -> Option<(&'static str, &'static [Field])> {
    let (group, version) = crate::kinds::split_api_version(api_version);
    let package = match group {
        "" => "io.k8s.api.core",
        "apiextensions.k8s.io" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration",
        "meta.k8s.io" => "io.k8s.apimachinery.pkg.apis.meta",
        group => {
            let first = group.split('.').next().unwrap_or(group);
            return find(&format!("io.k8s.api.{first}.{version}.{kind}")).or_else(|| find_meta(kind));
        }
    };
    find(&format!("{package}.{version}.{kind}")).or_else(|| find_meta(kind))
}

/// DeleteOptions and the like belong to every group.
fn find_meta(kind: &str) -> Option<(&'static str, &'static [Field])> {
    if kind.ends_with("Options")
        || matches!(kind, "Status" | "List" | "PartialObjectMetadata" | "PartialObjectMetadataList")
    {
        return find(&format!("{META}{kind}"));
    }
    None
}

fn find(name: &str) -> Option<(&'static str, &'static [Field])> {
    Table::get().find(name)
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    }
}

fn time(name: &'static str, bytes: &[u8], micro: bool) -> Result<Value, ProtoError> {
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    let mut reader = Reader::new(bytes, name);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => seconds = wire.number(name)? as i64,
            2 => nanos = wire.number(name)? as i32,
            _ => {}
        }
    }
    if seconds == 0 && nanos == 0 {
        return Ok(Value::Null);
    }
    let stamp = Timestamp::new(seconds, if micro { nanos } else { 0 })
        .map_err(|_| damaged(name, "a time is out of range"))?;
    Ok(Value::String(if micro { format!("{stamp:.6}") } else { format!("{stamp:.0}") }))
}

fn int_or_string(name: &'static str, bytes: &[u8]) -> Result<Value, ProtoError> {
    let (mut is_text, mut number_value, mut text) = (false, 0_i32, String::new());
    let mut reader = Reader::new(bytes, name);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => is_text = wire.number(name)? != 0,
            2 => number_value = wire.number(name)? as i32,
            3 => text = wire.text(name)?,
            _ => {}
        }
    }
    Ok(if is_text { Value::String(text) } else { Value::from(number_value) })
}

/// Named lists of strings (ExtraValue): 1 items.
fn strings(name: &'static str, bytes: &[u8]) -> Result<Value, ProtoError> {
    let mut list = Vec::new();
    let mut reader = Reader::new(bytes, name);
    while let Some((number, wire)) = reader.next()? {
        if number == 1 {
            list.push(Value::String(wire.text(name)?));
        }
    }
    Ok(Value::Array(list))
}

/// The bytes of field 1.
fn inner_bytes<'a>(name: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], ProtoError> {
    let mut found = &bytes[..0];
    let mut reader = Reader::new(bytes, name);
    while let Some((number, wire)) = reader.next()? {
        if number == 1 {
            found = wire.bytes(name)?;
        }
    }
    Ok(found)
}

fn inner_text(name: &'static str, bytes: &[u8]) -> Result<String, ProtoError> {
    Wire::Bytes(inner_bytes(name, bytes)?).text(name)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests;
