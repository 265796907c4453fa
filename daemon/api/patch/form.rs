//! How server-side apply sees a value: a leaf owned as a whole, a struct or map, a set, or a list of keyed items.
//!
//! Invariant: two values at one path are seen in the same form by whoever walks them.

use serde_json::{Map, Value};

use super::fieldset::item_step;
use crate::kinds::Kind;
use crate::schema::{self, Field, ListType, Object, Shape, TypeRef};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The form of the values at one path.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// Owned as a whole: scalars, atomic lists and maps, arbitrary JSON.
    Leaf,
    /// A leaf whose values are equal when the quantities are.
    Quantity,
    /// A struct: fields by name.
    Fields(&'static Object),
    /// A map from any name to one type.
    Map(TypeRef),
    /// A list of scalars, each once.
    Set,
    /// A list of objects identified by keys.
    Items(&'static [&'static str], &'static Object),
    /// As the schema of a kind that users define has it; the second says whether it is a whole object.
    Schema(&'static Value, bool),
    /// A list of objects identified by keys, as such a schema has it.
    Keyed(&'static Value),
    /// Not in the table: objects are maps, all else is a leaf.
    Unknown,
}

impl Form {
    /// The form of whole objects of a kind.
    pub(super) fn of_kind(kind: &Kind) -> Form {
        match kind.custom() {
            Some(custom) => Form::Schema(&custom.schema, true),
            None => Form::Fields(schema::root(kind)),
        }
    }

    /// The form that a schema of a kind that users define says.
    fn of_schema(of: &'static Value) -> Form {
        match of["type"].as_str() {
            Some("array") => match of["x-kubernetes-list-type"].as_str() {
                Some("set") => Form::Set,
                Some("map") => Form::Keyed(of),
                _ => Form::Leaf,
            },
            Some("object") if of["x-kubernetes-map-type"] == "atomic" => Form::Leaf,
            Some("object") => Form::Schema(of, of["x-kubernetes-embedded-resource"] == true),
            // What may be anything is walked as what it is.
            None if of["x-kubernetes-preserve-unknown-fields"] == true => Form::Unknown,
            _ => Form::Leaf,
        }
    }

    /// The form of a field of a struct.
    pub(super) fn of_field(field: &'static Field) -> Form {
        match field.of.shape() {
            Shape::Array(item) => match (field.list, item.shape()) {
                (ListType::Set, _) => Form::Set,
                (ListType::Map, Shape::Object(object)) => Form::Items(&field.keys, object),
                _ => Form::Leaf,
            },
            _ if field.atomic_map => Form::Leaf,
            _ => Form::of_type(field.of),
        }
    }

    fn of_type(of: TypeRef) -> Form {
        match of.shape() {
            Shape::Object(object) if object.atomic => Form::Leaf,
            Shape::Object(object) => Form::Fields(object),
            Shape::Map(value) => Form::Map(value),
            Shape::Quantity => Form::Quantity,
            _ => Form::Leaf,
        }
    }

    /// The form of what stands under a name.
    pub(super) fn child(self, name: &str) -> Form {
        match self {
            Form::Fields(object) => object.field(name).map_or(Form::Unknown, Form::of_field),
            Form::Map(value) => Form::of_type(value),
            Form::Schema(_, true) if name == "metadata" => {
                schema::object(META).map_or(Form::Unknown, Form::Fields)
            }
            Form::Schema(of, _) => {
                let child = of["properties"].get(name).or_else(|| of.get("additionalProperties"));
                child.filter(|child| child.is_object()).map_or(Form::Unknown, Form::of_schema)
            }
            _ => Form::Unknown,
        }
    }

    /// Whether a name is a field of a struct rather than an entry of a map.
    pub(super) fn has_field(self, name: &str) -> bool {
        match self {
            Form::Fields(object) => object.field(name).is_some(),
            Form::Schema(of, whole) => {
                of["properties"].get(name).is_some()
                    || (whole && matches!(name, "apiVersion" | "kind" | "metadata"))
            }
            _ => false,
        }
    }

    /// Whether values are walked name by name.
    pub(super) fn is_map(self, a: Option<&Value>, b: Option<&Value>) -> bool {
        match self {
            Form::Fields(_) | Form::Map(_) | Form::Schema(..) => true,
            Form::Unknown => [a, b].into_iter().flatten().any(Value::is_object),
            _ => false,
        }
    }

    /// Whether values are walked item by item.
    pub(super) fn is_list(self) -> bool {
        matches!(self, Form::Set | Form::Items(..) | Form::Keyed(_))
    }

    /// The form of the items of a list.
    pub(super) fn item(self) -> Form {
        match self {
            Form::Items(_, object) => Form::Fields(object),
            Form::Keyed(list) => Form::of_schema(&list["items"]),
            _ => Form::Leaf,
        }
    }

    /// Whether two leaves are the same value.
    pub(super) fn equal(self, a: &Value, b: &Value) -> bool {
        a == b
            || matches!(self, Form::Quantity) && {
                let quantity = |value| crate::quantity::Quantity::from_value(value).ok();
                quantity(a).is_some_and(|a| Some(a) == quantity(b))
            }
    }
}

/// The fields of an object; nothing for null and absent.
pub(super) fn entries(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

/// The items of a list with the step that names each of them. An item without its keys has no name.
pub(super) fn items(form: Form, value: Option<&Value>) -> Vec<(Option<String>, &Value)> {
    let list = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|item| (item_step(form, item), item)).collect()
}
