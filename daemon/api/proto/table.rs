//! The table of messages: field numbers, JSON names and meaning, read once from `facts/protobuf.json`.
//!
//! Invariant: every message named by a field is in the table.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Every message known.
pub(super) struct Table {
    messages: HashMap<&'static str, Box<[Field]>>,
}

/// One field of a message.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) number: u32,
    /// Empty for embedded structs.
    pub(super) json: &'static str,
    pub(super) form: Form,
    /// Go's `omitempty`.
    pub(super) omit_empty: bool,
}

/// How often a field may stand, and under what names.
#[derive(Debug)]
pub(super) enum Form {
    One {
        pointer: bool,
        of: Scalar,
    },
    List(Scalar),
    /// String keys.
    Map(Scalar),
    /// An embedded struct: its fields are the parent's in JSON.
    Inline(&'static str),
}

/// The meaning of one value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// base64 in JSON.
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// A named list of strings.
    Strings,
    /// RawExtension, FieldsV1 and JSON: JSON within field 1.
    Raw,
    Message(&'static str),
    /// In JSON whichever of its fields is set.
    Choice(&'static str),
}

impl Scalar {
    pub(super) fn is_number(&self) -> bool {
        matches!(self, Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Double)
    }
}

impl Table {
    pub(super) fn get() -> &'static Table {
        static TABLE: LazyLock<Table> = LazyLock::new(read);
        &TABLE
    }

    pub(super) fn find(&self, name: &str) -> Option<(&'static str, &[Field])> {
        self.messages.get_key_value(name).map(|(name, fields)| (*name, &**fields))
    }

    /// The fields of a message that another one names.
    pub(super) fn known(&self, name: &'static str) -> &[Field] {
        self.messages.get(name).expect("every message named by a field is in the table")
    }
}

type Row = (u32, &'static str, &'static str, &'static str);

fn read() -> Table {
    let facts: HashMap<&'static str, Vec<Row>> =
        serde_json::from_str(include_str!("../facts/protobuf.json")).expect("facts/protobuf.json is ours");
    let messages =
        facts.into_iter().map(|(name, rows)| (name, rows.into_iter().map(field).collect())).collect();
    Table { messages }
}

fn field((number, json, of, flags): Row) -> Field {
    let form = if flags.contains('i') {
        Form::Inline(of)
    } else if let Some(of) = of.strip_prefix("[]") {
        Form::List(scalar(of))
    } else if let Some(of) = of.strip_prefix("map ") {
        Form::Map(scalar(of))
    } else if let Some(of) = of.strip_prefix('*') {
        Form::One { pointer: true, of: scalar(of) }
    } else {
        Form::One { pointer: false, of: scalar(of) }
    };
    Field { number, json, form, omit_empty: flags.contains('o') }
}

fn scalar(name: &'static str) -> Scalar {
    match name {
        "string" => Scalar::String,
        "bool" => Scalar::Bool,
        "int32" => Scalar::Int32,
        "int64" => Scalar::Int64,
        "float64" => Scalar::Double,
        "bytes" => Scalar::Bytes,
        "Time" => Scalar::Time,
        "MicroTime" => Scalar::MicroTime,
        "Quantity" => Scalar::Quantity,
        "IntOrString" => Scalar::IntOrString,
        "Strings" => Scalar::Strings,
        "RawExtension" | "FieldsV1" => Scalar::Raw,
        name if name.contains(".JSONSchemaPropsOr") => Scalar::Choice(name),
        name => Scalar::Message(name),
    }
}
