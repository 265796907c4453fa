//! What a kustomization does to all of its objects: names, namespaces, labels, annotations, images, replicas.
//!
//! Invariant: each of these does what kustomize's built-in transformer of the same name does, to the same objects.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use super::fields::{Create, FieldSpec, visit};
use super::file::{Image, Replica};
use super::resource::{Resource, entry, object, spelled, text};

/// Which end of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Prefix,
    Suffix,
}

/// Which subjects of a role binding follow the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subjects {
    /// Those called `default`.
    Default,
    AllAccounts,
    None,
}

/// Why a transformer stopped, and at which object.
pub(super) type Stopped = (usize, String);

/// Prefixes or suffixes names.
pub(super) fn affix(
    resources: &mut [Resource],
    end: End,
    affix: &str,
    specs: &[FieldSpec],
) -> Result<(), Stopped> {
    if affix.is_empty() {
        return Ok(());
    }
    for (at, resource) in resources.iter_mut().enumerate() {
        let gvk = resource.original().gvk;
        let is_fixed = matches!(gvk.kind.as_str(), "CustomResourceDefinition" | "Namespace")
            || (gvk.kind == "APIService" && gvk.group == "apiregistration.k8s.io");
        if is_fixed {
            continue;
        }
        for spec in specs.iter().filter(|spec| gvk.is_selected(&spec.gvk())) {
            if spec.path == "metadata/name" {
                match end {
                    End::Prefix => resource.prefixes.push(affix.to_owned()),
                    End::Suffix => resource.suffixes.push(affix.to_owned()),
                }
                resource.remember();
            }
            let set = &mut |name: &mut Value| {
                let old = spelled(name);
                *name = Value::String(match end {
                    End::Prefix => format!("{affix}{old}"),
                    End::Suffix => format!("{old}{affix}"),
                });
                Ok(())
            };
            visit(spec, &mut resource.value, Create::Scalar, set).map_err(|why| (at, why))?;
        }
    }
    Ok(())
}

/// Moves objects into a namespace.
pub(super) fn namespace(
    resources: &mut [Resource],
    namespace: &str,
    specs: &[FieldSpec],
    subjects: Subjects,
    only_unset: bool,
) -> Result<(), Stopped> {
    if namespace.is_empty() {
        return Ok(());
    }
    let set = |place: &mut Value| {
        if !only_unset || place.is_null() || text(place).is_empty() {
            *place = Value::String(namespace.to_owned());
        }
    };
    for (at, resource) in resources.iter_mut().enumerate() {
        resource.remember();
        if !resource.current().is_cluster_scoped() {
            set(entry(entry(&mut resource.value, "metadata"), "namespace"));
        }
        let is_binding = matches!(resource.gvk().kind.as_str(), "RoleBinding" | "ClusterRoleBinding");
        if is_binding && let Some(Value::Array(list)) = resource.value.get_mut("subjects") {
            let moved = |subject: &&mut Value| match subjects {
                Subjects::None => false,
                Subjects::Default => subject["name"] == "default",
                Subjects::AllAccounts => subject["kind"] == "ServiceAccount",
            };
            list.iter_mut().filter(moved).for_each(|subject| set(entry(subject, "namespace")));
        }
        for spec in specs {
            if spec.path == "metadata/namespace" || (is_binding && spec.path == "subjects") {
                continue;
            }
            visit(spec, &mut resource.value, Create::Scalar, &mut |place| {
                set(place);
                Ok(())
            })
            .map_err(|why| (at, why))?;
        }
    }
    // Two objects that were apart may have become one.
    let mut seen = BTreeMap::new();
    for (at, resource) in resources.iter().enumerate() {
        let name = resource.current();
        let key = (name.gvk.clone(), name.effective().to_owned(), name.name.clone());
        if let Some(other) = seen.insert(key, at) {
            let place = &resources[other];
            let why = format!(
                "namespace {namespace} makes it the same object as the one in {}:{}",
                place.file, place.line
            );
            return Err((at, why));
        }
    }
    Ok(())
}

/// Sets entries of maps: labels or annotations.
pub(super) fn entries(
    resources: &mut [Resource],
    pairs: &BTreeMap<String, String>,
    specs: &[FieldSpec],
) -> Result<(), Stopped> {
    if pairs.is_empty() {
        return Ok(());
    }
    for (at, resource) in resources.iter_mut().enumerate() {
        for spec in specs {
            visit(spec, &mut resource.value, Create::Map, &mut |place| match place {
                Value::Object(map) => {
                    map.extend(pairs.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))));
                    Ok(())
                }
                Value::Null => Ok(()),
                _ => Err("a map is expected there".to_owned()),
            })
            .map_err(|why| (at, why))?;
        }
    }
    Ok(())
}

/// Sets how many there are of what has this name.
pub(super) fn replicas(
    resources: &mut [Resource],
    replica: &Replica,
    specs: &[FieldSpec],
) -> Result<(), Stopped> {
    let mut found = false;
    for spec in specs {
        for (at, resource) in resources.iter_mut().enumerate() {
            let called =
                |name: &super::resource::Name| name.name == replica.name && name.gvk.is_selected(&spec.gvk());
            if !resource.names().iter().any(called) {
                continue;
            }
            found = true;
            visit(spec, &mut resource.value, Create::Scalar, &mut |place| {
                *place = Value::from(replica.count);
                Ok(())
            })
            .map_err(|why| (at, why))?;
        }
    }
    if found {
        return Ok(());
    }
    Err((usize::MAX, format!("nothing with replicas is called {:?}", replica.name)))
}

/// Changes an image's name, tag or digest wherever it is used.
pub(super) fn images(resources: &mut [Resource], image: &Image, specs: &[FieldSpec]) -> Result<(), Stopped> {
    let pattern = format!("^{}(:[a-zA-Z0-9_.{{}}-]*)?(@sha256:[a-zA-Z0-9_.{{}}-]*)?$", image.name);
    let pattern = Regex::new(&pattern).map_err(|error| (usize::MAX, error.to_string()))?;
    let mut set = |place: &mut Value| {
        if let Value::String(name) = place
            && pattern.is_match(name)
        {
            *name = changed(name, image);
        }
        Ok(())
    };
    for (at, resource) in resources.iter_mut().enumerate() {
        if resource.gvk().kind == "CustomResourceDefinition" {
            continue;
        }
        in_containers(&mut resource.value, &mut set).map_err(|why| (at, why))?;
        for spec in specs {
            visit(spec, &mut resource.value, Create::Nothing, &mut set).map_err(|why| (at, why))?;
        }
    }
    Ok(())
}

/// Lists called `containers` or `initContainers`, wherever they are.
fn in_containers(value: &mut Value, set: super::fields::Set<'_>) -> Result<(), String> {
    match value {
        Value::Object(map) => {
            for (name, field) in map.iter_mut() {
                if matches!(name.as_str(), "containers" | "initContainers")
                    && let Value::Array(items) = field
                {
                    items.iter_mut().filter_map(|item| item.get_mut("image")).try_for_each(&mut *set)?;
                }
                in_containers(field, set)?;
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| in_containers(item, set)),
        _ => Ok(()),
    }
}

fn changed(name: &str, image: &Image) -> String {
    let (name, tag, digest) = parts(name);
    let mut result = if image.new_name.is_empty() { name.to_owned() } else { image.new_name.clone() };
    let (tag, digest) = match (image.new_tag.as_str(), image.digest.as_str()) {
        ("", "") if !image.tag_suffix.is_empty() => (format!("{tag}{}", image.tag_suffix), String::new()),
        ("", "") => (tag.to_owned(), digest.to_owned()),
        (tag, digest) => (tag.to_owned(), digest.to_owned()),
    };
    if !tag.is_empty() {
        result.push(':');
        result.push_str(&tag);
    }
    if !digest.is_empty() {
        result.push('@');
        result.push_str(&digest);
    }
    result
}

/// Name, tag and digest. A colon before the first slash is a port.
fn parts(image: &str) -> (&str, &str, &str) {
    let start = image.find('/').filter(|at| *at > 0).unwrap_or(0);
    let find = |sign: char| image[start..].find(sign).map(|at| start + at);
    match (find(':'), find('@')) {
        (None, None) => (image, "", ""),
        (tag, Some(digest)) if tag.is_none_or(|tag| digest < tag) => {
            (&image[..digest], "", &image[digest + 1..])
        }
        (Some(tag), Some(digest)) => (&image[..tag], &image[tag + 1..digest], &image[digest + 1..]),
        (Some(tag), None) => (&image[..tag], &image[tag + 1..], ""),
        (None, Some(digest)) => (&image[..digest], "", &image[digest + 1..]),
    }
}

/// Annotations as they leave kustomize: all of them text, and none left empty where it kept notes of its own.
pub(super) fn finish(resource: &mut Resource) {
    let changed = resource.was_changed();
    let Some(meta) = resource.value.get_mut("metadata").map(object) else { return };
    match meta.get_mut("annotations") {
        Some(Value::Object(map)) if map.is_empty() && changed => {
            meta.remove("annotations");
        }
        Some(Value::Object(map)) => {
            for value in map.values_mut().filter(|value| !value.is_string()) {
                *value = Value::String(spelled(value));
            }
        }
        Some(Value::Null) if changed => {
            meta.remove("annotations");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_taken_apart_where_docker_does_it() {
        assert_eq!(parts("nginx"), ("nginx", "", ""));
        assert_eq!(parts("nginx:1"), ("nginx", "1", ""));
        assert_eq!(parts("host:5000/a/b"), ("host:5000/a/b", "", ""));
        assert_eq!(parts("host:5000/a/b:2@sha256:aa"), ("host:5000/a/b", "2", "sha256:aa"));
        assert_eq!(parts("a@sha256:bb"), ("a", "", "sha256:bb"));
    }
}
