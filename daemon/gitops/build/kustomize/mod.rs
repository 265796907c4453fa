//! Kustomize without its program: a kustomization and all it refers to → the objects that `kubectl kustomize` prints.
//!
//! Each object keeps the file and line of the resource that it began as.
//!
//! Invariant: the result is kustomize's own, checked against `kubectl kustomize` on the trees of `tests/kustomize.txt`.
//! Invariant: it reads nothing but the files of the snapshot, and stops at the first kustomization that cannot be meant.

mod config;
mod crds;
mod fields;
mod file;
mod generate;
mod layer;
mod merge;
mod names;
mod order;
mod patch;
mod plugin;
mod replace;
mod resource;
mod scope;
mod transform;
mod tree;
mod vars;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Defect;
use layer::{Layer, Renderer};
use resource::Resource;

pub(crate) use file::{NAMES, is_component, plugin_references, references};
pub(crate) use tree::{Files, is_below, join, kustomizations, parent};

/// The label that `buildMetadata: [managedByLabel]` asks for, with the version that this imitates.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "kustomize-v5.5.0");
const ORIGIN: &str = "config.kubernetes.io/origin";
const TRANSFORMATIONS: &str = "alpha.config.kubernetes.io/transformations";
const LOCAL: &str = "config.kubernetes.io/local-config";

/// An object and where it began.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) value: Value,
    pub(crate) file: Arc<str>,
    pub(crate) line: u32,
}

/// What a kustomization gave.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rendered {
    /// In kustomize's order. Empty when there are defects.
    pub(crate) objects: Vec<Made>,
    pub(crate) defects: Vec<Defect>,
    /// What works, but should be written otherwise.
    pub(crate) notices: Vec<Defect>,
    /// Every file that was looked into.
    pub(crate) used: BTreeSet<Arc<str>>,
}

/// Renders the kustomization of a directory.
pub(crate) fn render(files: &Files, dir: &str) -> Rendered {
    let mut renderer = Renderer::new(files);
    let objects = renderer.directory(dir).and_then(|(layer, top)| finish(layer, &top));
    let mut rendered = Rendered { notices: renderer.notices, used: renderer.used, ..Rendered::default() };
    let mut troubles = renderer.troubles;
    match objects {
        Ok(objects) if troubles.is_empty() => rendered.objects = objects,
        Ok(_) => {}
        Err(trouble) => troubles.extend(trouble),
    }
    rendered.defects = troubles.into_iter().map(|trouble| *trouble).collect();
    rendered
}

/// What is done once, at the top: hashes, references, variables, order.
fn finish(layer: Layer, top: &file::Kustomization) -> Result<Vec<Made>, Option<file::Trouble>> {
    let Layer { mut resources, config, vars, .. } = layer;
    for resource in resources.iter_mut().filter(|resource| resource.wants_hash) {
        let name = format!("{}-{}", resource.name(), generate::hash(&resource.value));
        resource.remember();
        resource.set_name(&name);
    }
    let corrected = names::correct(&mut resources, &config.name_reference);
    corrected.map_err(|(at, why)| layer::at_resource(&resources[at], &why))?;
    vars::resolve(&vars, &config.var_reference, &mut resources)
        .map_err(|why| top.at("vars", &why, "correct the variable"))?;
    resources.retain(|resource| resource.value["metadata"]["annotations"].get(LOCAL).is_none());
    order::sort(&mut resources, top.fields.sort_options.as_ref())
        .map_err(|why| top.at("sortOptions", &why, "correct it"))?;
    let asked = |what: &str| top.fields.build_metadata.iter().any(|asked| asked == what);
    let (label, origin, transformations) =
        (asked("managedByLabel"), asked("originAnnotations"), asked("transformerAnnotations"));
    for resource in &mut resources {
        if label {
            resource::object(resource::entry(resource::entry(&mut resource.value, "metadata"), "labels"))
                .insert(MANAGED_BY.0.to_owned(), json!(MANAGED_BY.1));
        }
        let mut annotate = |name: &str, text: String| {
            resource::object(resource::entry(
                resource::entry(&mut resource.value, "metadata"),
                "annotations",
            ))
            .insert(name.to_owned(), Value::String(text));
        };
        if let Some(text) = resource.origin.clone().filter(|_| origin) {
            annotate(ORIGIN, text);
        }
        if transformations && !resource.transformations.is_empty() {
            annotate(TRANSFORMATIONS, resource.transformations.clone());
        }
        transform::finish(resource);
    }
    let made = |resource: Resource| Made { value: resource.value, file: resource.file, line: resource.line };
    Ok(resources.into_iter().map(made).collect())
}

#[cfg(test)]
mod tests;
