//! Writes JSON objects in Kubernetes' protobuf form, by the table that they are read by.
//!
//! Invariant: what is written is read back as it was, or refused with the field that cannot be written.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::table::{Field, Form, Scalar, Table};
use super::{MAGIC, ProtoError, message_of};

/// An object's outline. The items of a list are parsed one by one: a list can be large.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline<'a> {
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

/// Encodes a JSON object or list whose kind the table of facts has.
///
/// # Errors
/// `UnknownKind` where no protobuf form is known, and what cannot be written.
pub fn encode(json: &[u8]) -> Result<Vec<u8>, ProtoError> {
    let outline: Outline<'_> = serde_json::from_slice(json).map_err(|_| ProtoError::Unnamed)?;
    let unknown = || ProtoError::UnknownKind {
        api_version: outline.api_version.to_string(),
        kind: outline.kind.to_string(),
    };
    let (name, fields) = message_of(&outline.api_version, &outline.kind).ok_or_else(unknown)?;
    let listed = fields.iter().find_map(|field| match &field.form {
        Form::List(Scalar::Message(item)) if field.json == "items" => Some((field.number, *item)),
        _ => None,
    });
    let mut raw = Vec::with_capacity(json.len());
    match (listed, &outline.items) {
        (Some((number, item)), Some(items)) => {
            let metadata: Value = outline.metadata.map_or(Ok(Value::Null), parse)?;
            let head = Map::from_iter([("metadata".to_owned(), metadata)]);
            message(name, fields, &head, &mut raw)?;
            let of = Table::get().known(item);
            for one in items {
                let one: Map<String, Value> = parse(one)?;
                let mut inner = Vec::new();
                message(item, of, &one, &mut inner)?;
                put_bytes(number, &inner, &mut raw);
            }
        }
        _ => {
            let object: Map<String, Value> = serde_json::from_slice(json).map_err(|_| ProtoError::Unnamed)?;
            message(name, fields, &object, &mut raw)?;
        }
    }
    Ok(enveloped(&outline.api_version, &outline.kind, &raw))
}

/// One event of a watch as it stands in the stream: its length in four bytes, then a WatchEvent (1 type, 2 object{1 raw}).
pub fn watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let (mut raw, mut event) = (Vec::new(), vec![0; 4]);
    put_bytes(1, object, &mut raw);
    put_bytes(1, kind.as_bytes(), &mut event);
    put_bytes(2, &raw, &mut event);
    // An object is far smaller than 4 GiB.
    let length = u32::try_from(event.len() - 4).unwrap_or(u32::MAX);
    event[..4].copy_from_slice(&length.to_be_bytes());
    event
}

/// runtime.Unknown, as `decode` reads it; Go writes the two empty fields as well.
fn enveloped(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut meta = Vec::new();
    put_bytes(1, api_version.as_bytes(), &mut meta);
    put_bytes(2, kind.as_bytes(), &mut meta);
    let mut body = Vec::with_capacity(MAGIC.len() + meta.len() + raw.len() + 16);
    body.extend_from_slice(MAGIC);
    put_bytes(1, &meta, &mut body);
    put_bytes(2, raw, &mut body);
    put_bytes(3, b"", &mut body);
    put_bytes(4, b"", &mut body);
    body
}

fn parse<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Result<T, ProtoError> {
    serde_json::from_str(json.get())
        .map_err(|_| ProtoError::Unwritable { message: "a list", field: "items".to_owned() })
}

/// The fields that an object has. Those that it has not are zero to whoever reads them.
fn message(
    name: &'static str,
    fields: &'static [Field],
    object: &Map<String, Value>,
    out: &mut Vec<u8>,
) -> Result<(), ProtoError> {
    for field in fields {
        if let Form::Inline(inlined) = field.form {
            let mut inner = Vec::new();
            message(inlined, Table::get().known(inlined), object, &mut inner)?;
            put_bytes(field.number, &inner, out);
            continue;
        }
        let Some(value) = object.get(field.json).filter(|value| !value.is_null()) else { continue };
        let unwritable = || ProtoError::Unwritable { message: name, field: field.json.to_owned() };
        match &field.form {
            Form::One { of, .. } => put(field.number, of, value, out)?.ok_or_else(unwritable)?,
            Form::List(of) => {
                for item in value.as_array().ok_or_else(unwritable)? {
                    put(field.number, of, item, out)?.ok_or_else(unwritable)?;
                }
            }
            Form::Map(of) => {
                for (key, value) in value.as_object().ok_or_else(unwritable)? {
                    let mut entry = Vec::new();
                    put_bytes(1, key.as_bytes(), &mut entry);
                    if !value.is_null() {
                        put(2, of, value, &mut entry)?.ok_or_else(unwritable)?;
                    }
                    put_bytes(field.number, &entry, out);
                }
            }
            Form::Inline(_) => {}
        }
    }
    Ok(())
}

/// One value. None: it is not of its type.
fn put(number: u32, of: &'static Scalar, value: &Value, out: &mut Vec<u8>) -> Result<Option<()>, ProtoError> {
    let mut inner = Vec::new();
    let told = match of {
        Scalar::Message(name) => match value.as_object() {
            Some(object) => {
                message(name, Table::get().known(name), object, &mut inner)?;
                Some(())
            }
            None => None,
        },
        Scalar::Choice(name) => choice(name, value, &mut inner)?,
        of => return Ok(plain(number, of, value, out)),
    };
    put_bytes(number, &inner, out);
    Ok(told)
}

/// A value that holds no other messages of the table.
fn plain(number: u32, of: &Scalar, value: &Value, out: &mut Vec<u8>) -> Option<()> {
    let mut inner = Vec::new();
    match of {
        Scalar::String => inner.extend_from_slice(value.as_str()?.as_bytes()),
        Scalar::Bool => {
            put_number(number, u64::from(value.as_bool()?), out);
            return Some(());
        }
        // Negative numbers travel as if they had 64 bits: the cast is the protobuf rule.
        Scalar::Int32 | Scalar::Int64 => {
            put_number(number, value.as_i64()? as u64, out);
            return Some(());
        }
        Scalar::Double => {
            varint(u64::from(number) << 3 | 1, out);
            out.extend_from_slice(&value.as_f64()?.to_le_bytes());
            return Some(());
        }
        Scalar::Bytes => inner = STANDARD.decode(value.as_str()?).ok()?,
        Scalar::Time | Scalar::MicroTime => {
            let stamp: Timestamp = value.as_str()?.parse().ok()?;
            put_number(1, stamp.as_second() as u64, &mut inner);
            put_number(2, stamp.subsec_nanosecond() as u64, &mut inner);
        }
        Scalar::Quantity => match value {
            Value::String(text) => put_bytes(1, text.as_bytes(), &mut inner),
            Value::Number(number) => put_bytes(1, number.to_string().as_bytes(), &mut inner),
            _ => return None,
        },
        Scalar::IntOrString => {
            let text = value.as_str();
            let whole = if text.is_some() { 0 } else { value.as_i64()? };
            put_number(1, u64::from(text.is_some()), &mut inner);
            put_number(2, whole as u64, &mut inner);
            put_bytes(3, text.unwrap_or_default().as_bytes(), &mut inner);
        }
        Scalar::Strings => {
            for item in value.as_array()? {
                put_bytes(1, item.as_str()?.as_bytes(), &mut inner);
            }
        }
        Scalar::Raw => put_bytes(1, value.to_string().as_bytes(), &mut inner),
        Scalar::Message(_) | Scalar::Choice(_) => return None,
    }
    put_bytes(number, &inner, out);
    Some(())
}

/// JSONSchemaPropsOr…: the field that fits what stands in JSON. A schema beside `allows` allows.
fn choice(name: &'static str, value: &Value, out: &mut Vec<u8>) -> Result<Option<()>, ProtoError> {
    let mut told = None;
    for field in Table::get().known(name) {
        match (&field.form, value) {
            (Form::List(of), Value::Array(items)) => {
                told = Some(());
                for item in items {
                    told = told.and(put(field.number, of, item, out)?);
                }
            }
            (Form::One { of: Scalar::Bool, .. }, Value::Object(_)) => put_number(field.number, 1, out),
            (Form::One { of: of @ Scalar::Bool, .. }, Value::Bool(_))
            | (Form::One { of: of @ Scalar::Message(_), .. }, Value::Object(_)) => {
                told = put(field.number, of, value, out)?;
            }
            _ => {}
        }
    }
    Ok(told)
}

pub(super) fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(number) << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

pub(super) fn put_number(number: u32, value: u64, out: &mut Vec<u8>) {
    varint(u64::from(number) << 3, out);
    varint(value, out);
}
