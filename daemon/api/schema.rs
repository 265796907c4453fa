//! The schema table: what each field of each served kind is, its list and map rules, merge keys and defaults.
//!
//! Invariant: parsed once from `facts/schema.json`, and only types reachable from served kinds stay in memory.
//! Invariant: names are borrowed from the fact text; a type is a two-byte index.

mod defaults;
mod fields;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::custom;
use crate::kinds::{self, Kind};

/// A type in the arena. Copy it; ask it for its [`Shape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeRef(u16);

/// What a value of a type looks like in JSON.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// Any JSON: `RawExtension`, `FieldsV1`, `JSON`.
    Any,
    /// A string.
    String,
    /// A base64 string.
    Bytes,
    /// `true` or `false`.
    Boolean,
    /// A 32-bit integer.
    Int32,
    /// A 64-bit integer.
    Int64,
    /// A floating point number.
    Double,
    /// `resource.Quantity`: served as a string, read also as a number.
    Quantity,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// `intstr.IntOrString`.
    IntOrString,
    /// A list of one type.
    Array(TypeRef),
    /// A map from string to one type.
    Map(TypeRef),
    /// A struct.
    Object(&'static Object),
}

/// A struct type.
#[derive(Debug)]
pub struct Object {
    /// `io.k8s.api.core.v1.PodSpec`.
    pub name: &'static str,
    /// `x-kubernetes-map-type: atomic`: server-side apply owns it as a whole.
    pub atomic: bool,
    /// Fields not listed are kept: types of ours that grow.
    pub open: bool,
    /// Group, version and kind, for those types that are kinds.
    pub gvk: Vec<[&'static str; 3]>,
    /// Unions: a discriminator and the fields of which one may be set.
    pub unions: Vec<Union>,
    /// Sorted by name.
    pub fields: Box<[Field]>,
}

/// A field of a struct type.
#[derive(Debug)]
pub struct Field {
    /// The JSON name.
    pub name: &'static str,
    /// The type of its value.
    pub of: TypeRef,
    /// Whether the type's `required` list names it.
    pub required: bool,
    /// `x-kubernetes-list-type`; `Atomic` when the facts say nothing.
    pub list: ListType,
    /// `x-kubernetes-list-map-keys`.
    pub keys: Box<[&'static str]>,
    /// `x-kubernetes-map-type: atomic` on this use of the type.
    pub atomic_map: bool,
    /// `x-kubernetes-patch-strategy` contains `merge`.
    pub merge: bool,
    /// `x-kubernetes-patch-strategy` contains `retainKeys`.
    pub retain_keys: bool,
    /// `x-kubernetes-patch-merge-key`; absent on merged lists of scalars.
    pub merge_key: Option<&'static str>,
    /// The schema's own default. `""`, `0` and `{}` there only say "not a pointer in Go".
    pub default: Option<Value>,
}

/// How server-side apply merges a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    /// Owned as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Items identified by [`Field::keys`].
    Map,
}

/// A union of fields.
#[derive(Debug)]
pub struct Union {
    /// The field that names the chosen one.
    pub discriminator: Option<&'static str>,
    /// Field → the discriminator's value for it.
    pub fields: BTreeMap<&'static str, &'static str>,
}

impl TypeRef {
    /// The type's shape.
    pub fn shape(self) -> Shape {
        match ARENA.types[usize::from(self.0)] {
            Stored::Scalar(shape) => shape,
            Stored::Object(at) => Shape::Object(&ARENA.objects[usize::from(at)]),
        }
    }
}

impl Object {
    /// The field of that JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|at| &self.fields[at])
    }
}

/// The root type of a served kind.
pub fn root(kind: &Kind) -> &'static Object {
    object(&kind.schema).expect("every served kind's schema is in the table")
}

/// A type by its full name: a kind's, a subresource's (`io.k8s.api.autoscaling.v1.Scale`), or one reachable from those.
pub fn object(name: &str) -> Option<&'static Object> {
    ARENA.by_name.get(name).map(|&at| &ARENA.objects[usize::from(at)])
}

/// Every type in memory, in the order they were reached.
pub fn objects() -> &'static [Object] {
    &ARENA.objects
}

/// Fills in every documented default that the object leaves open: the schema's own and those of Kubernetes' defaulting
/// functions. Twice is once, and what is set stays. A Job's selector is generated from `metadata.uid`, so set that before.
pub fn defaults(kind: &Kind, object: &mut Value) {
    if let Some(custom) = kind.custom() {
        return custom::default(&custom.schema, object);
    }
    defaults::apply(kind, object);
    if custom::definition::is(kind) {
        custom::definition::default(object);
    }
}

/// Unknown fields and wrong types, as strict decoding reports them. Empty when Go would decode the object.
pub fn check_fields(kind: &Kind, object: &Value) -> Vec<Defect> {
    if let Some(custom) = kind.custom() {
        let pruned = custom::prune(&custom.schema, &mut object.clone());
        let unknown = pruned.into_iter().map(|path| {
            let message = format!("unknown field {path:?}");
            Defect { path, reason: DefectReason::Unknown, message }
        });
        return custom::check_metadata(object).into_iter().chain(unknown).collect();
    }
    fields::check(root(kind), object)
}

/// The same of a type that is no served kind: a `Scale`, a `Binding`, `DeleteOptions`.
pub fn check_fields_of(of: &'static Object, object: &Value) -> Vec<Defect> {
    fields::check(of, object)
}

/// Fields that a JSON text gives twice: a parsed [`Value`] cannot tell. Empty when the text does not parse.
pub fn duplicate_fields(text: &[u8]) -> Vec<Defect> {
    fields::duplicates(text)
}

/// Brings the object into the form that Go's decoder and encoder leave it in: null fields dropped, quantities as canonical strings.
pub fn coerce(kind: &Kind, object: &mut Value) {
    if let Some(custom) = kind.custom() {
        return custom::coerce(&custom.schema, object);
    }
    fields::coerce(root(kind), object);
}

/// The same of a type that is no served kind.
pub fn coerce_of(of: &'static Object, object: &mut Value) {
    fields::coerce(of, object);
}

/// Drops fields that the schema does not know.
pub fn prune_unknown(kind: &Kind, object: &mut Value) {
    if let Some(custom) = kind.custom() {
        if let (Some(metadata), Some(of)) =
            (object.get_mut("metadata"), self::object("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"))
        {
            fields::prune(of, metadata);
        }
        drop(custom::prune(&custom.schema, object));
        return;
    }
    fields::prune(root(kind), object);
}

/// Something wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defect {
    /// `spec.template.spec.containers[0].image`.
    pub path: String,
    /// The kind of wrong.
    pub reason: DefectReason,
    /// What Kubernetes says after the path, `Required value`; for unknown and duplicate fields and wrong types the whole sentence.
    pub message: String,
}

/// The kind of wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefectReason {
    /// A field that the type does not have.
    Unknown,
    /// A field or a value given twice.
    Duplicate,
    /// A string where a number is wanted, and the like.
    WrongType,
    /// Missing.
    Required,
    /// Malformed.
    Invalid,
    /// Not one of the values there are.
    NotSupported,
    /// A reference to something that the object does not have.
    NotFound,
    /// Not allowed here or now.
    Forbidden,
    /// Over the limit of bytes.
    TooLong,
    /// Over the limit of items.
    TooMany,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = matches!(self.reason, DefectReason::Unknown | DefectReason::WrongType)
            || self.message.starts_with("duplicate field");
        if whole { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

impl Defect {
    /// `Required value: detail`.
    pub fn required(path: impl Into<String>, detail: &str) -> Defect {
        Defect::new(path, DefectReason::Required, with_detail("Required value", detail))
    }

    /// `Invalid value: "x": detail`.
    pub fn invalid(path: impl Into<String>, value: &Value, detail: &str) -> Defect {
        Defect::new(path, DefectReason::Invalid, with_detail(&format!("Invalid value: {value}"), detail))
    }

    /// `Unsupported value: "x": supported values: "A", "B"`.
    pub fn not_supported(path: impl Into<String>, value: &Value, supported: &[&str]) -> Defect {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", list.join(", "));
        Defect::new(path, DefectReason::NotSupported, message)
    }

    /// `Duplicate value: "x"`.
    pub fn duplicate(path: impl Into<String>, value: &Value) -> Defect {
        Defect::new(path, DefectReason::Duplicate, format!("Duplicate value: {value}"))
    }

    /// `Not found: "x"`.
    pub fn not_found(path: impl Into<String>, value: &Value) -> Defect {
        Defect::new(path, DefectReason::NotFound, format!("Not found: {value}"))
    }

    /// `Forbidden: detail`.
    pub fn forbidden(path: impl Into<String>, detail: &str) -> Defect {
        Defect::new(path, DefectReason::Forbidden, with_detail("Forbidden", detail))
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(path: impl Into<String>, limit_bytes: usize) -> Defect {
        Defect::new(
            path,
            DefectReason::TooLong,
            format!("Too long: may not be more than {limit_bytes} bytes"),
        )
    }

    fn new(path: impl Into<String>, reason: DefectReason, message: String) -> Defect {
        Defect { path: path.into(), reason, message }
    }
}

fn with_detail(what: &str, detail: &str) -> String {
    if detail.is_empty() { what.to_owned() } else { format!("{what}: {detail}") }
}

/// Roots that no row of the table names: bodies of requests and answers.
const EXTRA_ROOTS: &[&str] = &[
    "io.k8s.api.autoscaling.v1.Scale",
    "io.k8s.api.core.v1.Binding",
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
];

#[derive(Debug, Clone, Copy)]
enum Stored {
    Scalar(Shape),
    Object(u16),
}

struct Arena {
    types: Vec<Stored>,
    objects: Vec<Object>,
    by_name: HashMap<&'static str, u16>,
}

static ARENA: LazyLock<Arena> = LazyLock::new(|| {
    let mut loader = Loader::default();
    for text in [include_str!("facts/schema.json"), include_str!("facts/holdfast.json")] {
        let facts: HashMap<&'static str, &'static RawValue> =
            serde_json::from_str(text).expect("the fact tables are ours");
        loader.facts.extend(facts);
    }
    for name in kinds::kinds().iter().map(|kind| kind.schema.as_str()).chain(EXTRA_ROOTS.iter().copied()) {
        let (&name, _) = loader.facts.get_key_value(name).expect("every root is in the fact tables");
        loader.named(name);
    }
    let objects =
        loader.objects.into_iter().map(|object| object.expect("every reached type was read")).collect();
    Arena { types: loader.types, objects, by_name: loader.by_name }
});

#[derive(Deserialize)]
struct RawObject<'a> {
    #[serde(borrow, default)]
    fields: HashMap<&'a str, RawField<'a>>,
    #[serde(borrow, default)]
    required: Vec<&'a str>,
    #[serde(borrow, default)]
    gvk: Vec<[&'a str; 3]>,
    #[serde(borrow, default)]
    unions: Vec<RawUnion<'a>>,
    #[serde(borrow, default, rename = "map-type")]
    map_type: &'a str,
    #[serde(default)]
    open: bool,
}

#[derive(Deserialize)]
struct RawUnion<'a> {
    #[serde(borrow)]
    discriminator: Option<&'a str>,
    #[serde(borrow, rename = "fields-to-discriminateBy")]
    fields: BTreeMap<&'a str, &'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawField<'a> {
    #[serde(rename = "type", borrow)]
    of: RawType<'a>,
    #[serde(borrow, default)]
    list_type: &'a str,
    #[serde(borrow, default)]
    list_map_keys: Vec<&'a str>,
    #[serde(borrow, default)]
    map_type: &'a str,
    #[serde(borrow, default)]
    patch_strategy: &'a str,
    #[serde(borrow)]
    patch_merge_key: Option<&'a str>,
    default: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawType<'a> {
    Name(#[serde(borrow)] &'a str),
    Of(#[serde(borrow)] &'a str, #[serde(borrow)] Box<RawType<'a>>),
}

#[derive(Default)]
struct Loader {
    facts: HashMap<&'static str, &'static RawValue>,
    types: Vec<Stored>,
    scalars: HashMap<String, TypeRef>,
    objects: Vec<Option<Object>>,
    by_name: HashMap<&'static str, u16>,
}

impl Loader {
    fn of(&mut self, raw: &RawType<'static>) -> TypeRef {
        match raw {
            RawType::Name(name) => self.named(name),
            RawType::Of(container, inner) => {
                let inner = self.of(inner);
                let shape = if *container == "array" { Shape::Array(inner) } else { Shape::Map(inner) };
                self.scalar(format!("{container}:{}", inner.0), shape)
            }
        }
    }

    fn named(&mut self, name: &'static str) -> TypeRef {
        if let Some(shape) = scalar_shape(name) {
            return self.scalar(name.to_owned(), shape);
        }
        if let Some(&known) = self.scalars.get(name) {
            return known;
        }
        let at = u16::try_from(self.objects.len()).expect("fewer than 65,536 types");
        self.objects.push(None);
        self.by_name.insert(name, at);
        let reference = self.push(name.to_owned(), Stored::Object(at));
        let raw = self.facts.get(name).expect("every type named by a fact is a fact");
        let raw: RawObject<'static> = serde_json::from_str(raw.get()).expect("the fact tables are ours");
        let mut fields: Vec<Field> = raw
            .fields
            .into_iter()
            .map(|(name, field)| Field {
                name,
                of: self.of(&field.of),
                required: raw.required.contains(&name),
                list: list_type(field.list_type),
                keys: field.list_map_keys.into(),
                atomic_map: field.map_type == "atomic",
                merge: field.patch_strategy.split(',').any(|word| word == "merge"),
                retain_keys: field.patch_strategy.split(',').any(|word| word == "retainKeys"),
                merge_key: field.patch_merge_key,
                default: field.default,
            })
            .collect();
        fields.sort_by_key(|field| field.name);
        self.objects[usize::from(at)] = Some(Object {
            name,
            atomic: raw.map_type == "atomic",
            open: raw.open,
            gvk: raw.gvk,
            unions: raw
                .unions
                .into_iter()
                .map(|u| Union { discriminator: u.discriminator, fields: u.fields })
                .collect(),
            fields: fields.into(),
        });
        reference
    }

    fn scalar(&mut self, key: String, shape: Shape) -> TypeRef {
        match self.scalars.get(&key) {
            Some(&known) => known,
            None => self.push(key, Stored::Scalar(shape)),
        }
    }

    fn push(&mut self, key: String, stored: Stored) -> TypeRef {
        let reference = TypeRef(u16::try_from(self.types.len()).expect("fewer than 65,536 types"));
        self.types.push(stored);
        self.scalars.insert(key, reference);
        reference
    }
}

fn list_type(name: &str) -> ListType {
    match name {
        "set" => ListType::Set,
        "map" => ListType::Map,
        _ => ListType::Atomic,
    }
}

fn scalar_shape(name: &str) -> Option<Shape> {
    Some(match name {
        "string" => Shape::String,
        "string:byte" => Shape::Bytes,
        "boolean" => Shape::Boolean,
        "integer:int32" => Shape::Int32,
        "integer:int64" => Shape::Int64,
        "number:double" => Shape::Double,
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => Shape::Quantity,
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => Shape::Time,
        "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => Shape::MicroTime,
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => Shape::IntOrString,
        "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1"
        | "io.k8s.apimachinery.pkg.apis.meta.v1.Patch"
        | "io.k8s.apimachinery.pkg.runtime.RawExtension"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray" => {
            Shape::Any
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: (&str, &str), path: &[&str], wanted: &str) {
        let mut object = root(kinds::by_kind(kind.0, kind.1).expect("a served kind"));
        let (last, parents) = path.split_last().expect("a path");
        for name in parents {
            let mut of = object.field(name).expect(name).of;
            while let Shape::Array(inner) | Shape::Map(inner) = of.shape() {
                of = inner;
            }
            let Shape::Object(next) = of.shape() else { panic!("{name} is no struct") };
            object = next;
        }
        let field = object.field(last).expect(last);
        assert_eq!(
            format!("{:?} {:?} {:?} {}", field.list, field.keys, field.merge_key, field.atomic_map),
            wanted
        );
    }

    #[test]
    fn merge_rules_come_from_the_fact_table() {
        check(("v1", "Pod"), &["spec", "containers"], r#"Map ["name"] Some("name") false"#);
        check(
            ("apps/v1", "Deployment"),
            &["spec", "template", "spec", "containers", "ports"],
            r#"Map ["containerPort", "protocol"] Some("containerPort") false"#,
        );
        check(("v1", "Service"), &["spec", "selector"], "Atomic [] None true");
        check(("v1", "Pod"), &["metadata", "finalizers"], "Set [] None false");
    }

    #[test]
    fn only_types_reachable_from_served_kinds_are_kept() {
        assert!(object("io.k8s.api.core.v1.PodSpec").is_some());
        assert!(object("io.k8s.api.storagemigration.v1beta1.StorageVersionMigration").is_none());
        assert!(objects().len() < 512, "{} types", objects().len());
    }

    #[test]
    fn every_served_kind_has_a_schema_that_names_it() {
        for kind in kinds::kinds() {
            assert!(
                root(kind).gvk.iter().any(|gvk| *gvk == [kind.group.as_str(), &kind.version, &kind.kind]),
                "{}",
                kind.kind
            );
        }
    }
}
