//! kustomization.yaml as a person writes it: every field that kustomize knows, and a place for every complaint.
//!
//! Invariant: a field that kustomize does not know is refused with its line; nothing is passed over.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::Defect;
use super::super::suggest::nearest;
use super::super::yaml::{self, Node, Shape};
use super::fields::FieldSpec;
use super::generate::{Generator, Options};
use super::patch::{Patch, Selector};
use super::replace::Replacement;

/// The names of the file, in the order that they are looked for.
pub(crate) const NAMES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// What went wrong, and where.
pub(super) type Trouble = Box<Defect>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Fields {
    #[serde(rename = "apiVersion")]
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) metadata: Value,
    pub(super) openapi: BTreeMap<String, String>,
    pub(super) name_prefix: String,
    pub(super) name_suffix: String,
    pub(super) namespace: String,
    pub(super) common_labels: BTreeMap<String, String>,
    pub(super) labels: Vec<Label>,
    pub(super) common_annotations: BTreeMap<String, String>,
    pub(super) patches_strategic_merge: Vec<String>,
    pub(super) patches_json6902: Vec<Patch>,
    pub(super) patches: Vec<Patch>,
    pub(super) images: Vec<Image>,
    pub(super) image_tags: Vec<Image>,
    pub(super) replacements: Vec<Replacement>,
    pub(super) replicas: Vec<Replica>,
    pub(super) vars: Vec<Var>,
    pub(super) sort_options: Option<SortOptions>,
    pub(super) resources: Vec<String>,
    pub(super) components: Vec<String>,
    pub(super) crds: Vec<String>,
    pub(super) bases: Vec<String>,
    pub(super) config_map_generator: Vec<Generator>,
    pub(super) secret_generator: Vec<Generator>,
    pub(super) helm_globals: Value,
    pub(super) helm_charts: Vec<Value>,
    pub(super) helm_chart_inflation_generator: Vec<Value>,
    pub(super) generator_options: Option<Options>,
    pub(super) configurations: Vec<String>,
    pub(super) generators: Vec<String>,
    pub(super) transformers: Vec<String>,
    pub(super) validators: Vec<String>,
    pub(super) inventory: Value,
    pub(super) build_metadata: Vec<String>,
}

/// The names of all fields, for suggestions and for telling what is unknown.
const KNOWN: [&str; 35] = [
    "apiVersion",
    "kind",
    "metadata",
    "openapi",
    "namePrefix",
    "nameSuffix",
    "namespace",
    "commonLabels",
    "labels",
    "commonAnnotations",
    "patchesStrategicMerge",
    "patchesJson6902",
    "patches",
    "images",
    "imageTags",
    "replacements",
    "replicas",
    "vars",
    "sortOptions",
    "resources",
    "components",
    "crds",
    "bases",
    "configMapGenerator",
    "secretGenerator",
    "helmGlobals",
    "helmCharts",
    "helmChartInflationGenerator",
    "generatorOptions",
    "configurations",
    "generators",
    "transformers",
    "validators",
    "inventory",
    "buildMetadata",
];

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Label {
    pub(super) pairs: BTreeMap<String, String>,
    pub(super) include_selectors: bool,
    pub(super) include_templates: bool,
    #[serde(rename = "fields")]
    pub(super) specs: Vec<FieldSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Image {
    pub(super) name: String,
    pub(super) new_name: String,
    pub(super) tag_suffix: String,
    pub(super) new_tag: String,
    pub(super) digest: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Replica {
    pub(super) name: String,
    pub(super) count: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Var {
    pub(super) name: String,
    pub(super) objref: Objref,
    pub(super) fieldref: Fieldref,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Objref {
    pub(super) api_version: String,
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) namespace: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fieldref {
    #[serde(alias = "fieldPath")]
    pub(super) fieldpath: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct SortOptions {
    pub(super) order: String,
    pub(super) legacy_sort_options: Option<LegacyOrder>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct LegacyOrder {
    pub(super) order_first: Vec<String>,
    pub(super) order_last: Vec<String>,
}

/// A read kustomization file.
pub(super) struct Kustomization {
    pub(super) file: Arc<str>,
    node: Rc<Node>,
    pub(super) fields: Fields,
}

impl Kustomization {
    /// Reads the file's text.
    pub(super) fn read(file: &Arc<str>, bytes: &[u8]) -> Result<Kustomization, Vec<Trouble>> {
        let defect = |line, column, message: String, help: &str| {
            Box::new(Defect {
                line,
                column,
                message,
                help: help.to_owned(),
                file: file.to_string(),
                object: None,
            })
        };
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Err(vec![defect(0, 0, "not UTF-8 text".to_owned(), "save the file as UTF-8")]);
        };
        let mut documents = yaml::documents(text).into_iter();
        let document = match (documents.next(), documents.next()) {
            (Some(Ok(document)), None) => document,
            (Some(Err(flaw)), _) | (_, Some(Err(flaw))) => {
                return Err(vec![defect(flaw.line, flaw.column, flaw.message, &flaw.help)]);
            }
            (_, Some(Ok(other))) => {
                let message = "a kustomization is one document; this is another one".to_owned();
                return Err(vec![defect(other.root.line, 0, message, "remove what begins here")]);
            }
            (None, None) => {
                let message = "the kustomization is empty".to_owned();
                return Err(vec![defect(1, 0, message, "list the files under resources:")]);
            }
        };
        let twice = |flaw: &yaml::Flaw| defect(flaw.line, flaw.column, flaw.message.clone(), &flaw.help);
        if !document.flaws.is_empty() {
            return Err(document.flaws.iter().map(twice).collect());
        }
        let node = document.root;
        let Shape::Map(entries) = &node.shape else {
            let message = "a kustomization is a map".to_owned();
            return Err(vec![defect(node.line, node.column, message, "list the files under resources:")]);
        };
        let mut troubles = Vec::new();
        for entry in entries {
            if !KNOWN.contains(&entry.name.as_str()) {
                let help = match nearest(&entry.name, KNOWN.iter().copied()) {
                    Some(field) => format!("did you mean {field}?"),
                    None => "kustomize has no such field; remove it".to_owned(),
                };
                let message = format!("unknown field {}", entry.name);
                troubles.push(defect(entry.line, entry.column, message, &help));
            } else if let Err(error) = fields_of(&entry.name, entry.value.value()) {
                let message = format!("{}: {error}", entry.name);
                let help = "correct what is written there";
                troubles.push(defect(entry.line, entry.column, message, help));
            }
        }
        if !troubles.is_empty() {
            return Err(troubles);
        }
        let fields = serde_json::from_value(without_nulls(node.value()))
            .map_err(|error| vec![defect(node.line, node.column, error.to_string(), "correct it")])?;
        let mut read = Kustomization { file: Arc::clone(file), node: Rc::clone(&node), fields };
        read.settle().map_err(|trouble| vec![trouble])?;
        Ok(read)
    }

    /// Old spellings become today's, and what cannot be meant is refused.
    fn settle(&mut self) -> Result<(), Trouble> {
        let fields = &mut self.fields;
        if fields.kind.is_empty() {
            "Kustomization".clone_into(&mut fields.kind);
        }
        let wanted = match fields.kind.as_str() {
            "Kustomization" => "kustomize.config.k8s.io/v1beta1",
            "Component" => "kustomize.config.k8s.io/v1alpha1",
            _ => return Err(self.at("kind", "kind has to be Kustomization or Component", "correct it")),
        };
        if !fields.api_version.is_empty() && fields.api_version != wanted {
            let message = format!("apiVersion of a {} has to be {wanted}", fields.kind);
            return Err(self.at("apiVersion", &message, "correct it"));
        }
        let bases = std::mem::take(&mut fields.bases);
        fields.resources.extend(bases);
        let tags = std::mem::take(&mut fields.image_tags);
        fields.images.extend(tags);
        for generator in fields.config_map_generator.iter_mut().chain(&mut fields.secret_generator) {
            let env = std::mem::take(&mut generator.env);
            generator.envs.extend(Some(env).filter(|env| !env.is_empty()));
        }
        Ok(())
    }

    /// A complaint about a field (`resources[0]`).
    pub(super) fn at(&self, path: &str, message: &str, help: &str) -> Trouble {
        let (line, column) = self.node.place(path);
        Box::new(Defect {
            file: self.file.to_string(),
            line,
            column,
            message: message.to_owned(),
            help: help.to_owned(),
            object: None,
        })
    }

    /// Where a field is written.
    pub(super) fn line(&self, path: &str) -> u32 {
        self.node.place(path).0
    }

    pub(super) fn is_component(&self) -> bool {
        self.fields.kind == "Component"
    }

    /// Fields in old spellings, which kustomize still reads: field, and what to write today.
    pub(super) fn outdated(&self) -> Vec<(u32, u32, &'static str, &'static str)> {
        let old = [
            ("bases", "resources"),
            ("imageTags", "images"),
            ("patchesJson6902", "patches"),
            ("patchesStrategicMerge", "patches"),
            ("commonLabels", "labels"),
            ("vars", "replacements"),
        ];
        let there = |(field, today)| {
            let entry = self.node.get(field)?;
            Some((entry.line, entry.column, field, today))
        };
        old.into_iter().filter_map(there).collect()
    }
}

/// Go reads a null as if the field were not there.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// Reads one field alone, so that a complaint has its line.
fn fields_of(name: &str, value: Value) -> Result<Fields, serde_json::Error> {
    let one = serde_json::Map::from_iter([(name.to_owned(), value)]);
    serde_json::from_value(without_nulls(Value::Object(one)))
}

/// Reads a value that is not part of the file itself, such as a plugin's configuration.
pub(super) fn read_as<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(without_nulls(value)).map_err(|error| error.to_string())
}

/// Everything a kustomization file refers to, and whether that may be a directory.
pub(crate) fn references(bytes: &[u8]) -> Vec<String> {
    let file: Arc<str> = Arc::from("");
    let Ok(read) = Kustomization::read(&file, bytes) else { return Vec::new() };
    let fields = read.fields;
    let mut found = Vec::new();
    found.extend(fields.resources);
    found.extend(fields.components);
    found.extend(fields.crds);
    found.extend(fields.configurations);
    found.extend(fields.generators);
    found.extend(fields.transformers);
    found.extend(fields.validators);
    found.extend(fields.openapi.get("path").cloned());
    found.extend(fields.patches_strategic_merge);
    found.extend(fields.patches.into_iter().chain(fields.patches_json6902).map(|patch| patch.path));
    found.extend(fields.replacements.into_iter().map(|replacement| replacement.path));
    for generator in fields.config_map_generator.into_iter().chain(fields.secret_generator) {
        found.extend(generator.references());
    }
    found.retain(|path| !path.is_empty() && !path.contains('\n'));
    found
}

/// Whether a kustomization file says that it is a component.
pub(crate) fn is_component(bytes: &[u8]) -> bool {
    Kustomization::read(&Arc::from(""), bytes).is_ok_and(|read| read.is_component())
}

/// What a plugin's configuration file refers to.
pub(crate) fn plugin_references(bytes: &[u8]) -> Vec<String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Vec::new() };
    let mut found = Vec::new();
    for document in yaml::documents(text).into_iter().flatten() {
        let value = document.root.value();
        if value["apiVersion"] != "builtin" {
            continue;
        }
        found.extend(value["path"].as_str().map(str::to_owned));
        let each = |field: &str| value[field].as_array().cloned().unwrap_or_default();
        found.extend(each("paths").iter().filter_map(Value::as_str).map(str::to_owned));
        found.extend(each("replacements").iter().filter_map(|r| r["path"].as_str()).map(str::to_owned));
        if let Ok(generator) = read_as::<Generator>(super::generate::arguments(&value)) {
            found.extend(generator.references());
        }
    }
    found
}

/// A selector as kustomize writes it in messages.
pub(super) fn shown(selector: &Selector) -> String {
    let parts = [
        ("kind", &selector.kind),
        ("name", &selector.name),
        ("namespace", &selector.namespace),
        ("labelSelector", &selector.label_selector),
        ("annotationSelector", &selector.annotation_selector),
    ];
    let given = parts.into_iter().filter(|(_, text)| !text.is_empty());
    given.map(|(name, text)| format!("{name} {text}")).collect::<Vec<_>>().join(", ")
}
