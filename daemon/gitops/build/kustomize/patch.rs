//! Patches: which objects they are for, and their two forms.
//!
//! Invariant: a patch that finds no object is an error, never a patch that silently did nothing, except by selector.

use api::select::Labels;
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::merge;
use super::resource::{Gvk, Name, Resource, text};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Patch {
    pub(super) path: String,
    pub(super) patch: String,
    pub(super) target: Option<Selector>,
    pub(super) options: Options,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Options {
    pub(super) allow_name_change: bool,
    pub(super) allow_kind_change: bool,
}

/// Which objects are meant; each part but the selectors is a regular expression for the whole word.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Selector {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) label_selector: String,
    pub(super) annotation_selector: String,
    /// Read but not needed, as kustomize.
    pub(super) api_version: String,
}

/// A selector ready to be asked.
pub(super) struct Chosen {
    group: Option<Regex>,
    version: Option<Regex>,
    kind: Option<Regex>,
    name: Option<Regex>,
    namespace: Option<Regex>,
    labels: Labels,
    annotations: Labels,
}

impl Selector {
    pub(super) fn compile(&self) -> Result<Chosen, String> {
        let whole = |text: &str| match text {
            "" => Ok(None),
            text => {
                Regex::new(&format!("^(?:{text})$")).map(Some).map_err(|error| format!("target: {error}"))
            }
        };
        let labels = |text: &str| Labels::parse(text).map_err(|error| format!("target: {error}"));
        Ok(Chosen {
            group: whole(&self.group)?,
            version: whole(&self.version)?,
            kind: whole(&self.kind)?,
            name: whole(&self.name)?,
            namespace: whole(&self.namespace)?,
            labels: labels(&self.label_selector)?,
            annotations: labels(&self.annotation_selector)?,
        })
    }

    /// The same as a name with open parts.
    pub(super) fn name(&self) -> Name {
        Name {
            gvk: Gvk { group: self.group.clone(), version: self.version.clone(), kind: self.kind.clone() },
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    pub(super) fn selects_by_text(&self) -> bool {
        !self.label_selector.is_empty() || !self.annotation_selector.is_empty()
    }
}

impl Chosen {
    pub(super) fn fits(&self, resource: &Resource) -> bool {
        let (now, then) = (resource.current(), resource.original());
        let fits = |wish: &Option<Regex>, is: &str| wish.as_ref().is_none_or(|wish| wish.is_match(is));
        let either = |wish: &Option<Regex>, then: &str, now: &str| fits(wish, then) || fits(wish, now);
        either(&self.namespace, then.effective(), now.effective())
            && either(&self.name, &then.name, &now.name)
            && fits(&self.group, &now.gvk.group)
            && fits(&self.version, &now.gvk.version)
            && fits(&self.kind, &now.gvk.kind)
            && self.fits_texts(resource)
    }

    pub(super) fn fits_texts(&self, resource: &Resource) -> bool {
        let matches = |labels: &Labels, field: &str| {
            let strings = resource.strings(field);
            labels.matches_with(|key| strings.get(key).map(text))
        };
        matches(&self.labels, "labels") && matches(&self.annotations, "annotations")
    }
}

/// Merges a patch into the object that it is for.
pub(super) fn merge_into(resource: &mut Resource, patch: &Value, options: Options) {
    let (name, namespace) = (resource.name().to_owned(), resource.namespace().to_owned());
    let gvk = resource.gvk();
    if options.allow_name_change || options.allow_kind_change {
        resource.remember();
    }
    let root = merge::root(&gvk.group, &gvk.version, &gvk.kind);
    let target = std::mem::take(&mut resource.value);
    resource.value = merge::merge(root, target, patch.clone()).unwrap_or_default();
    if resource.is_gone() {
        return;
    }
    if !options.allow_kind_change {
        resource.value["kind"] = Value::String(gvk.kind);
    }
    if !options.allow_name_change {
        resource.set_name(&name);
    }
    resource.set_namespace(&namespace);
}

/// Merges a patch into an object that a selector chose: the patch's own name and version say nothing then.
pub(super) fn merge_chosen(resource: &mut Resource, patch: &Value, options: Options) {
    let mut copy = Resource::new(patch.clone(), std::sync::Arc::clone(&resource.file), resource.line);
    let new_name = copy.name().to_owned();
    let kind = text(&copy.value["kind"]).to_owned();
    copy.take_metadata_of(resource);
    if options.allow_name_change && !new_name.is_empty() {
        copy.set_name(&new_name);
    }
    copy.value["apiVersion"] = resource.value["apiVersion"].clone();
    copy.value["kind"] = Value::String(kind);
    merge_into(resource, &copy.value, options);
}

/// Applies JSON operations to an object.
pub(super) fn operate(resource: &mut Resource, operations: &Value) -> Result<(), String> {
    resource.remember();
    let had = resource.value["metadata"].get("annotations").is_some();
    if !had {
        // kustomize keeps its own notes there meanwhile, so a path below it can be added to.
        resource.meta().insert("annotations".to_owned(), serde_json::json!({}));
    }
    let mut value = resource.value.clone();
    api::patch::json_patch(&mut value, operations).map_err(|error| error.to_string())?;
    resource.value = value;
    let empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
    if resource.value["metadata"].get("annotations").is_some_and(empty) {
        resource.meta().remove("annotations");
    }
    Ok(())
}
