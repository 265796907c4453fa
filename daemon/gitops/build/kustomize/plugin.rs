//! The transformers of a kustomization: those of its fields, and built-in ones configured as files.
//!
//! Invariant: no program is ever run; a plugin that is not built in is refused by name.

use serde::Deserialize;
use serde_json::Value;

use super::super::yaml::{self, Dialect};
use super::config::{Config, merge_specs};
use super::fields::FieldSpec;
use super::file::{Image, Kustomization, Replica, read_as, shown};
use super::generate::{Generator, Kind, arguments};
use super::layer::{Failed, Layer, Renderer, absorb, at_resource, read_objects, relative};
use super::patch::{Options, Patch, Selector, merge_chosen, merge_into, operate};
use super::replace::{Replacement, replace};
use super::resource::{Resource, text};
use super::transform::{self, End, Stopped, Subjects};

/// What a transformer does.
enum Change {
    Affix(End, String, Vec<FieldSpec>),
    Namespace(String, Vec<FieldSpec>, Subjects, bool),
    Entries(std::collections::BTreeMap<String, String>, Vec<FieldSpec>),
    Patch(Patch),
    Merge(String),
    Operate(Patch),
    Replicas(Replica, Vec<FieldSpec>),
    Image(Image, Vec<FieldSpec>),
    Replace(Replacement),
}

impl Change {
    /// The name of kustomize's transformer.
    fn name(&self) -> &'static str {
        match self {
            Change::Affix(End::Prefix, ..) => "PrefixTransformer",
            Change::Affix(End::Suffix, ..) => "SuffixTransformer",
            Change::Namespace(..) => "NamespaceTransformer",
            Change::Entries(_, specs) => {
                let annotates = |spec: &FieldSpec| spec.path.ends_with("annotations");
                if specs.iter().any(annotates) { "AnnotationsTransformer" } else { "LabelTransformer" }
            }
            Change::Patch(_) => "PatchTransformer",
            Change::Merge(_) => "PatchStrategicMergeTransformer",
            Change::Operate(_) => "PatchJson6902Transformer",
            Change::Replicas(..) => "ReplicaCountTransformer",
            Change::Image(..) => "ImageTagTransformer",
            Change::Replace(_) => "ReplacementTransformer",
        }
    }
}

impl Renderer<'_> {
    /// Runs all transformers of a kustomization.
    pub(super) fn transform(
        &mut self,
        layer: &mut Layer,
        top: &Kustomization,
        dir: &str,
    ) -> Result<(), Failed> {
        let changes =
            changes(top, &layer.config).map_err(|(place, why)| top.at(&place, &why, "correct it"))?;
        for (place, change) in changes {
            self.change(layer, top, dir, &place, &change)?;
        }
        for (at, written) in top.fields.transformers.iter().enumerate() {
            let place = format!("transformers[{at}]");
            for config in self.plugins(top, dir, written, &place)? {
                let change =
                    plugin(&config).map_err(|why| top.at(&place, &why, "correct the transformer"))?;
                for change in change {
                    self.change(layer, top, dir, &place, &change)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn generator_plugins(
        &mut self,
        layer: &mut Layer,
        top: &Kustomization,
        dir: &str,
    ) -> Result<(), Failed> {
        for (at, written) in top.fields.generators.iter().enumerate() {
            let place = format!("generators[{at}]");
            for config in self.plugins(top, dir, written, &place)? {
                let kind = match (text(&config["apiVersion"]), text(&config["kind"])) {
                    ("builtin", "ConfigMapGenerator") => Kind::ConfigMap,
                    ("builtin", "SecretGenerator") => Kind::Secret,
                    (group, kind) => {
                        let message = format!("generator {kind} of {group} is a program, and none is run");
                        return Err(Some(top.at(&place, &message, "write its result into a file")));
                    }
                };
                let generator: Result<Generator, String> = read_as(arguments(&config));
                let made = generator.and_then(|generator| self.generated(kind, &generator, None, dir));
                let mut made = made.map_err(|why| top.at(&place, &why, "correct the generator"))?;
                (made.file, made.line) = (std::sync::Arc::clone(&top.file), top.line(&place));
                absorb(layer, made).map_err(|why| top.at(&place, &why, "correct the generator"))?;
            }
        }
        Ok(())
    }

    /// The configurations that an entry of `transformers` or `generators` stands for.
    fn plugins(
        &mut self,
        top: &Kustomization,
        dir: &str,
        written: &str,
        place: &str,
    ) -> Result<Vec<Value>, Failed> {
        if written.contains('\n') {
            let read = read_objects(&top.file, written.as_bytes());
            return read.map(values).map_err(|mut troubles| troubles.pop());
        }
        if self.files.contains_key(super::tree::join(dir, written).as_str()) {
            let (file, _) = self.read(top, dir, written, place)?;
            return Ok(self.objects(&file)?.iter().map(|(value, _)| value.clone()).collect());
        }
        let (layer, _) = self.directory(&super::tree::join(dir, written))?;
        Ok(layer.resources.into_iter().map(|resource| resource.value).collect())
    }

    fn change(
        &mut self,
        layer: &mut Layer,
        top: &Kustomization,
        dir: &str,
        place: &str,
        change: &Change,
    ) -> Result<(), Failed> {
        let noted = self.metadata.iter().any(|asked| asked == "transformerAnnotations");
        let before: Vec<Value> = match noted {
            true => layer.resources.iter().map(|resource| resource.value.clone()).collect(),
            false => Vec::new(),
        };
        let same = layer.resources.len();
        let done = match change {
            Change::Affix(end, affix, specs) => transform::affix(&mut layer.resources, *end, affix, specs),
            Change::Namespace(name, specs, subjects, only_unset) => {
                transform::namespace(&mut layer.resources, name, specs, *subjects, *only_unset)
            }
            Change::Entries(pairs, specs) => transform::entries(&mut layer.resources, pairs, specs),
            Change::Replicas(replica, specs) => transform::replicas(&mut layer.resources, replica, specs),
            Change::Image(image, specs) => transform::images(&mut layer.resources, image, specs),
            Change::Replace(replacement) => self.replace(layer, replacement, top, dir, place)?,
            Change::Patch(patch) => self.patch(layer, patch, top, dir, place)?,
            Change::Merge(written) => self.merge(layer, written, top, dir, place)?,
            Change::Operate(patch) => self.operate(layer, patch, top, dir, place)?,
        };
        done.map_err(|(at, why)| match layer.resources.get(at) {
            Some(resource) => at_resource(resource, &why),
            None => top.at(place, &why, "correct it"),
        })?;
        if noted && same == layer.resources.len() {
            let root = self.top_dir();
            let note = format!(
                "- configuredIn: {}\n  configuredBy:\n    apiVersion: builtin\n    kind: {}\n",
                relative(&root, &top.file),
                change.name()
            );
            for (resource, before) in layer.resources.iter_mut().zip(before) {
                if resource.value != before {
                    resource.transformations.push_str(&note);
                }
            }
        }
        Ok(())
    }

    /// The text of a patch, which is written inline or in a file.
    fn text(
        &mut self,
        patch: &Patch,
        top: &Kustomization,
        dir: &str,
        place: &str,
    ) -> Result<(String, String), Failed> {
        match (patch.patch.trim(), patch.path.as_str()) {
            ("", "") => Err(Some(top.at(place, "neither patch nor path is given", "give one of them"))),
            (_, path) if !path.is_empty() && !patch.patch.trim().is_empty() => {
                Err(Some(top.at(place, "both patch and path are given", "keep one of them")))
            }
            (inline, "") => Ok((inline.to_owned(), top.file.to_string())),
            (_, path) => {
                let (file, bytes) = self.read(top, dir, path, place)?;
                Ok((String::from_utf8_lossy(&bytes).into_owned(), file.to_string()))
            }
        }
    }

    fn patch(
        &mut self,
        layer: &mut Layer,
        patch: &Patch,
        top: &Kustomization,
        dir: &str,
        place: &str,
    ) -> Result<Result<(), Stopped>, Failed> {
        let (text, file) = self.text(patch, top, dir, place)?;
        if operations(&text).is_some() {
            return self.operate(layer, patch, top, dir, place);
        }
        let patches = read_objects(&file, text.as_bytes())
            .map_err(|troubles| unreadable(troubles, top, place, &file))?;
        match &patch.target {
            None => {
                for (value, _) in &patches {
                    merge_named(layer, value, patch.options).map_err(|why| top.at(place, &why, MISSED))?;
                }
            }
            Some(target) => {
                let [(value, _)] = &patches[..] else {
                    let message = format!("{} patches, but a target goes with exactly one", patches.len());
                    return Err(Some(top.at(place, &message, "give each patch its own entry")));
                };
                let chosen = target.compile().map_err(|why| top.at(place, &why, "correct the target"))?;
                for resource in layer.resources.iter_mut().filter(|resource| chosen.fits(resource)) {
                    merge_chosen(resource, value, patch.options);
                }
                layer.resources.retain(|resource| !resource.is_gone());
            }
        }
        Ok(Ok(()))
    }

    fn merge(
        &mut self,
        layer: &mut Layer,
        written: &str,
        top: &Kustomization,
        dir: &str,
        place: &str,
    ) -> Result<Result<(), Stopped>, Failed> {
        let inline = written.contains('\n') || written.trim_start().starts_with('{');
        let patch = match inline {
            true => Patch { patch: written.to_owned(), ..Patch::default() },
            false => Patch { path: written.to_owned(), ..Patch::default() },
        };
        let (text, file) = self.text(&patch, top, dir, place)?;
        let patches = read_objects(&file, text.as_bytes())
            .map_err(|troubles| unreadable(troubles, top, place, &file))?;
        for (value, _) in &patches {
            merge_named(layer, value, Options::default()).map_err(|why| top.at(place, &why, MISSED))?;
        }
        Ok(Ok(()))
    }

    fn operate(
        &mut self,
        layer: &mut Layer,
        patch: &Patch,
        top: &Kustomization,
        dir: &str,
        place: &str,
    ) -> Result<Result<(), Stopped>, Failed> {
        let (text, _) = self.text(patch, top, dir, place)?;
        let Some(list) = operations(&text) else {
            return Err(Some(top.at(
                place,
                "a list of JSON patch operations is expected",
                "write op, path, value",
            )));
        };
        let Some(target) = &patch.target else {
            return Err(Some(top.at(place, "a JSON patch needs a target", "say which objects it is for")));
        };
        let chosen = target.compile().map_err(|why| top.at(place, &why, "correct the target"))?;
        for resource in layer.resources.iter_mut().filter(|resource| chosen.fits(resource)) {
            operate(resource, &list).map_err(|why| {
                let message = format!("{} ({}): {why}", resource.original().shown(), shown(target));
                top.at(place, &message, "correct the operations")
            })?;
        }
        Ok(Ok(()))
    }

    fn replace(
        &mut self,
        layer: &mut Layer,
        replacement: &Replacement,
        top: &Kustomization,
        dir: &str,
        place: &str,
    ) -> Result<Result<(), Stopped>, Failed> {
        let mut all = vec![replacement.clone()];
        if !replacement.path.is_empty() {
            let (file, bytes) = self.read(top, dir, &replacement.path, place)?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let first = yaml::documents_in(&text, Dialect::Kustomize).into_iter().flatten().next();
            let value = first.map(|document| document.root.value()).unwrap_or_default();
            // One, or a list of them.
            let read = if value.is_array() { read_as(value) } else { read_as(Value::Array(vec![value])) };
            all = read.map_err(|why| top.at(place, &format!("{file}: {why}"), "correct the file"))?;
        }
        for one in &all {
            replace(one, &mut layer.resources)
                .map_err(|why| top.at(place, &why, "correct the replacement"))?;
        }
        Ok(Ok(()))
    }
}

const MISSED: &str = "a patch finds its object by apiVersion, kind, name and namespace; or give it a target";

fn values(objects: Vec<(Value, u32)>) -> Vec<Value> {
    objects.into_iter().map(|(value, _)| value).collect()
}

/// Complaints of a text: an inline one has no lines of its own.
fn unreadable(troubles: Vec<super::file::Trouble>, top: &Kustomization, place: &str, file: &str) -> Failed {
    let first = troubles.into_iter().next()?;
    if *file != *top.file {
        return Some(first);
    }
    Some(top.at(place, &first.message, &first.help))
}

fn merge_named(layer: &mut Layer, patch: &Value, options: Options) -> Result<(), String> {
    let name = Resource::new(patch.clone(), std::sync::Arc::from(""), 0).current();
    let mut found = layer.resources.iter_mut().filter(|resource| resource.is_called(&name));
    match (found.next(), found.next()) {
        (Some(resource), None) => merge_into(resource, patch, options),
        (None, _) => return Err(format!("the patch is for {}, which is not there", name.shown())),
        (Some(_), Some(_)) => return Err(format!("the patch fits several objects called {}", name.shown())),
    }
    layer.resources.retain(|resource| !resource.is_gone());
    Ok(())
}

/// The operations of a JSON patch, if the text is one. What begins like JSON has to be JSON; all else is read as
/// Kubernetes reads YAML, and so unlike a patch that is merged.
fn operations(text: &str) -> Option<Value> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).ok();
    }
    let mut documents = yaml::documents(text).into_iter();
    let value = documents.next()?.ok()?.root.value();
    value.is_array().then_some(value)
}

/// The transformers of the kustomization's own fields, in kustomize's order.
fn changes(top: &Kustomization, config: &Config) -> Result<Vec<(String, Change)>, (String, String)> {
    let fields = &top.fields;
    let mut all: Vec<(String, Change)> = Vec::new();
    for (at, written) in fields.patches_strategic_merge.iter().enumerate() {
        all.push((format!("patchesStrategicMerge[{at}]"), Change::Merge(written.clone())));
    }
    for (at, patch) in fields.patches.iter().enumerate() {
        all.push((format!("patches[{at}]"), Change::Patch(patch.clone())));
    }
    let moved =
        Change::Namespace(fields.namespace.clone(), config.namespace.clone(), Subjects::Default, false);
    all.push(("namespace".to_owned(), moved));
    let prefix = Change::Affix(End::Prefix, fields.name_prefix.clone(), config.name_prefix.clone());
    all.push(("namePrefix".to_owned(), prefix));
    let suffix = Change::Affix(End::Suffix, fields.name_suffix.clone(), config.name_suffix.clone());
    all.push(("nameSuffix".to_owned(), suffix));
    for (at, label) in fields.labels.iter().enumerate() {
        let place = format!("labels[{at}]");
        let mut specs = label.specs.clone();
        let more = if label.include_selectors {
            config.common_labels.clone()
        } else {
            let mut more = if label.include_templates { config.template_labels.clone() } else { Vec::new() };
            more.push(FieldSpec::everywhere("metadata/labels", true));
            more
        };
        merge_specs(&mut specs, more).map_err(|why| (place.clone(), why))?;
        all.push((place, Change::Entries(label.pairs.clone(), specs)));
    }
    let labels = Change::Entries(fields.common_labels.clone(), config.common_labels.clone());
    all.push(("commonLabels".to_owned(), labels));
    let annotations = Change::Entries(fields.common_annotations.clone(), config.common_annotations.clone());
    all.push(("commonAnnotations".to_owned(), annotations));
    for (at, patch) in fields.patches_json6902.iter().enumerate() {
        all.push((format!("patchesJson6902[{at}]"), Change::Operate(patch.clone())));
    }
    for (at, replica) in fields.replicas.iter().enumerate() {
        let change = Change::Replicas(replica.clone(), config.replicas.clone());
        all.push((format!("replicas[{at}]"), change));
    }
    for (at, image) in fields.images.iter().enumerate() {
        all.push((format!("images[{at}]"), Change::Image(image.clone(), config.images.clone())));
    }
    for (at, replacement) in fields.replacements.iter().enumerate() {
        all.push((format!("replacements[{at}]"), Change::Replace(replacement.clone())));
    }
    Ok(all)
}

/// What a built-in transformer may be configured with.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    metadata: Value,
    prefix: String,
    suffix: String,
    field_specs: Vec<FieldSpec>,
    labels: std::collections::BTreeMap<String, String>,
    annotations: std::collections::BTreeMap<String, String>,
    path: String,
    paths: Vec<String>,
    patch: String,
    patches: Value,
    json_op: String,
    target: Option<Selector>,
    options: Options,
    replica: Replica,
    image_tag: Image,
    replacements: Vec<Replacement>,
    unset_only: bool,
    set_role_binding_subjects: String,
}

/// The changes that a configured transformer makes.
fn plugin(config: &Value) -> Result<Vec<Change>, String> {
    let (group, kind) = (text(&config["apiVersion"]), text(&config["kind"]).to_owned());
    if group != "builtin" {
        return Err(format!("transformer {kind} of {group} is a program, and none is run"));
    }
    let written: Written = read_as(config.clone())?;
    let patch = |text: String| Patch {
        path: written.path.clone(),
        patch: text,
        target: written.target.clone(),
        options: written.options,
    };
    let one = match kind.as_str() {
        "PrefixTransformer" => Change::Affix(End::Prefix, written.prefix, written.field_specs),
        "SuffixTransformer" => Change::Affix(End::Suffix, written.suffix, written.field_specs),
        "NamespaceTransformer" => {
            let subjects = match written.set_role_binding_subjects.as_str() {
                "" | "defaultOnly" => Subjects::Default,
                "allServiceAccounts" => Subjects::AllAccounts,
                "none" => Subjects::None,
                other => return Err(format!("setRoleBindingSubjects {other:?} is not known")),
            };
            let name = text(&written.metadata["namespace"]).to_owned();
            Change::Namespace(name, written.field_specs, subjects, written.unset_only)
        }
        "LabelTransformer" => Change::Entries(written.labels, written.field_specs),
        "AnnotationsTransformer" => Change::Entries(written.annotations, written.field_specs),
        "PatchTransformer" => Change::Patch(patch(written.patch.clone())),
        "PatchJson6902Transformer" => Change::Operate(patch(written.json_op.clone())),
        "PatchStrategicMergeTransformer" => {
            let inline = written.patches.as_str().map(str::to_owned);
            return Ok(written.paths.into_iter().chain(inline).map(Change::Merge).collect());
        }
        "ReplicaCountTransformer" => Change::Replicas(written.replica, written.field_specs),
        "ImageTagTransformer" => Change::Image(written.image_tag, written.field_specs),
        "ReplacementTransformer" => {
            return Ok(written.replacements.into_iter().map(Change::Replace).collect());
        }
        other => return Err(format!("transformer {other} cannot be used here")),
    };
    Ok(vec![one])
}
