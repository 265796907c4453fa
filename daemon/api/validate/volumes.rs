//! Judges a pod's volumes and their mounts: one source each, and every mount has its volume.
//!
//! Invariant: a mount's name is looked up among the volumes of the same pod, nowhere else.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Found, entries, items, names, resources, text};
use crate::schema::Defect;

/// `ValidateVolumes`.
pub(super) fn volumes(spec: &Value, path: &str, found: &mut Found) {
    let mut seen = BTreeSet::new();
    for (index, volume) in items(&spec["volumes"]).iter().enumerate() {
        let path = format!("{path}.volumes[{index}]");
        if let Some(name) = found.required(&volume["name"], &format!("{path}.name")) {
            found.rules(&volume["name"], &format!("{path}.name"), names::label(name));
            if !seen.insert(name) {
                found.add(Defect::duplicate(format!("{path}.name"), &volume["name"]));
            }
        }
        let sources: Vec<&String> =
            entries(volume).map(|(name, _)| name).filter(|name| *name != "name").collect();
        match sources.as_slice() {
            [] => found.add(Defect::required(path.as_str(), "must specify a volume type")),
            [_] => {}
            [_, extra @ ..] => {
                for name in extra {
                    found.add(Defect::forbidden(
                        format!("{path}.{name}"),
                        "may not specify more than 1 volume type",
                    ));
                }
            }
        }
        source(volume, &path, found);
    }
}

/// `ValidateVolumeMounts` of one container.
pub(super) fn mounts(container: &Value, spec: &Value, path: &str, found: &mut Found) {
    let known: BTreeSet<&str> = items(&spec["volumes"]).iter().map(|volume| text(&volume["name"])).collect();
    let mut targets = BTreeSet::new();
    for (index, mount) in items(&container["volumeMounts"]).iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if let Some(name) = found.required(&mount["name"], &format!("{path}.name"))
            && !known.contains(name)
        {
            found.add(Defect::not_found(format!("{path}.name"), &mount["name"]));
        }
        if let Some(target) = found.required(&mount["mountPath"], &format!("{path}.mountPath"))
            && !targets.insert(target)
        {
            found.add(Defect::invalid(format!("{path}.mountPath"), &mount["mountPath"], "must be unique"));
        }
        for field in ["subPath", "subPathExpr"] {
            local_path(&mount[field], &format!("{path}.{field}"), found);
        }
        if !text(&mount["subPath"]).is_empty() && !text(&mount["subPathExpr"]).is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            found.add(Defect::invalid(format!("{path}.subPathExpr"), &mount["subPathExpr"], why));
        }
        let modes = ["Bidirectional", "HostToContainer", "None"];
        found.one_of(&mount["mountPropagation"], &format!("{path}.mountPropagation"), &modes);
        if mount["mountPropagation"] == "Bidirectional" && container["securityContext"]["privileged"] != true
        {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            found.add(Defect::forbidden(format!("{path}.mountPropagation"), why));
        }
    }
}

fn source(volume: &Value, path: &str, found: &mut Found) {
    if !volume["emptyDir"].is_null() {
        resources::non_negative(
            &volume["emptyDir"]["sizeLimit"],
            &format!("{path}.emptyDir.sizeLimit"),
            found,
        );
    }
    let host = &volume["hostPath"];
    if !host.is_null() {
        if let Some(target) = found.required(&host["path"], &format!("{path}.hostPath.path"))
            && target.split('/').any(|part| part == "..")
        {
            found.add(Defect::invalid(
                format!("{path}.hostPath.path"),
                &host["path"],
                "must not contain '..'",
            ));
        }
        let types = [
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ];
        found.one_of(&host["type"], &format!("{path}.hostPath.type"), &types);
    }
    if !volume["configMap"].is_null() {
        found.required(&volume["configMap"]["name"], &format!("{path}.configMap.name"));
        files(&volume["configMap"], &format!("{path}.configMap"), found);
    }
    if !volume["secret"].is_null() {
        found.required(&volume["secret"]["secretName"], &format!("{path}.secret.secretName"));
        files(&volume["secret"], &format!("{path}.secret"), found);
    }
    if !volume["downwardAPI"].is_null() {
        mode(&volume["downwardAPI"]["defaultMode"], &format!("{path}.downwardAPI.defaultMode"), found);
        downward(&volume["downwardAPI"], &format!("{path}.downwardAPI"), found);
    }
    if !volume["projected"].is_null() {
        projected(&volume["projected"], &format!("{path}.projected"), found);
    }
    if !volume["persistentVolumeClaim"].is_null() {
        let claim = &volume["persistentVolumeClaim"]["claimName"];
        found.required(claim, &format!("{path}.persistentVolumeClaim.claimName"));
    }
}

fn projected(projected: &Value, path: &str, found: &mut Found) {
    mode(&projected["defaultMode"], &format!("{path}.defaultMode"), found);
    let (mut paths, at) = (BTreeSet::new(), format!("{path}.sources"));
    for (index, source) in items(&projected["sources"]).iter().enumerate() {
        let path = format!("{path}.sources[{index}]");
        for name in ["configMap", "secret"] {
            if !source[name].is_null() {
                found.required(&source[name]["name"], &format!("{path}.{name}.name"));
                files(&source[name], &format!("{path}.{name}"), found);
            }
        }
        for (name, field) in source.as_object().into_iter().flatten() {
            let own = (name == "serviceAccountToken").then_some(&field["path"]);
            for path in items(&field["items"]).iter().map(|item| &item["path"]).chain(own) {
                if !text(path).is_empty() && !paths.insert(text(path)) {
                    let why = "conflicting duplicate paths";
                    found.add(Defect::invalid(at.as_str(), path, why));
                }
            }
        }
        if !source["downwardAPI"].is_null() {
            downward(&source["downwardAPI"], &format!("{path}.downwardAPI"), found);
        }
        let token = &source["serviceAccountToken"];
        if !token.is_null() {
            found.required(&token["path"], &format!("{path}.serviceAccountToken.path"));
            if token["expirationSeconds"].as_i64().is_some_and(|seconds| seconds < 600) {
                let why = "may not specify a duration less than 10 minutes";
                found.add(Defect::invalid(
                    format!("{path}.serviceAccountToken.expirationSeconds"),
                    &token["expirationSeconds"],
                    why,
                ));
            }
        }
    }
}

/// Keys projected to paths, and the mode of the files.
fn files(source: &Value, path: &str, found: &mut Found) {
    mode(&source["defaultMode"], &format!("{path}.defaultMode"), found);
    for (index, item) in items(&source["items"]).iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        found.required(&item["key"], &format!("{path}.key"));
        if found.required(&item["path"], &format!("{path}.path")).is_some() {
            local_path(&item["path"], &format!("{path}.path"), found);
        }
        mode(&item["mode"], &format!("{path}.mode"), found);
    }
}

/// Fields of the pod that files may show, sorted as Kubernetes lists them.
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

fn downward(source: &Value, path: &str, found: &mut Found) {
    for (index, item) in items(&source["items"]).iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        if found.required(&item["path"], &format!("{path}.path")).is_some() {
            local_path(&item["path"], &format!("{path}.path"), found);
        }
        if !item["fieldRef"].is_null() {
            let field = &item["fieldRef"]["fieldPath"];
            super::pod::field_ref(field, &format!("{path}.fieldRef.fieldPath"), FILE_FIELDS, found);
        } else if item["resourceFieldRef"].is_null() {
            found.add(Defect::required(path.as_str(), "one of fieldRef and resourceFieldRef is required"));
        }
        mode(&item["mode"], &format!("{path}.mode"), found);
    }
}

fn mode(value: &Value, path: &str, found: &mut Found) {
    if value.as_i64().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        found.add(Defect::invalid(
            path,
            value,
            "must be a number between 0 and 0777 (octal), both inclusive",
        ));
    }
}

/// `validateLocalDescendingPath`.
fn local_path(value: &Value, path: &str, found: &mut Found) {
    if text(value).starts_with('/') {
        found.add(Defect::invalid(path, value, "must be a relative path"));
    }
    if text(value).split('/').any(|part| part == "..") {
        found.add(Defect::invalid(path, value, "must not contain '..'"));
    }
}
