//! The rules that `restricted` adds to `baseline`: only what needs nothing special.
//!
//! Invariant: one function per rule, each giving at most one reason.

use serde_json::Value;

use super::{containers, listed, named, quoted};

const VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

pub(super) fn reasons(spec: &Value) -> Vec<String> {
    [escalation(spec), capabilities(spec), volumes(spec), non_root(spec), user(spec), seccomp(spec)]
        .into_iter()
        .flatten()
        .collect()
}

fn escalation(spec: &Value) -> Option<String> {
    let names = named(spec, |container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    (!names.is_empty()).then(|| {
        format!(
            "allowPrivilegeEscalation != false ({} must set securityContext.allowPrivilegeEscalation=false)",
            listed(&names)
        )
    })
}

fn capabilities(spec: &Value) -> Option<String> {
    let list = |container: &Value, field: &str| -> Vec<String> {
        let words = container["securityContext"]["capabilities"][field].as_array().into_iter().flatten();
        words.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let added = |container: &Value| {
        let mut words = list(container, "add");
        words.retain(|word| word != "NET_BIND_SERVICE");
        words
    };
    let mut told = Vec::new();
    let keeping = named(spec, |container| !list(container, "drop").iter().any(|word| word == "ALL"));
    if !keeping.is_empty() {
        told.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", listed(&keeping)));
    }
    let adding = named(spec, |container| !added(container).is_empty());
    if !adding.is_empty() {
        let all: Vec<String> = containers(spec).flat_map(|(_, container)| added(container)).collect();
        let words = quoted(all.iter().map(String::as_str).collect());
        told.push(format!(
            "{} must not include {words} in securityContext.capabilities.add",
            listed(&adding)
        ));
    }
    (!told.is_empty()).then(|| format!("unrestricted capabilities ({})", told.join("; ")))
}

fn volumes(spec: &Value) -> Option<String> {
    let of_type = |volume: &Value| {
        let fields = volume.as_object().into_iter().flatten();
        let source =
            fields.map(|(name, _)| name.as_str()).find(|name| *name != "name" && !VOLUMES.contains(name));
        source.map(str::to_owned)
    };
    let (mut names, mut types) = (Vec::new(), Vec::new());
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        if let Some(source) = of_type(volume) {
            names.push(volume["name"].as_str().unwrap_or_default());
            types.push(source);
        }
    }
    let (volumes, verb) = if names.len() > 1 { ("volumes", "use") } else { ("volume", "uses") };
    let plural = if types.len() > 1 { "s" } else { "" };
    (!names.is_empty()).then(|| {
        format!(
            "restricted volume types ({volumes} {} {verb} restricted volume type{plural} {})",
            quoted(names.clone()),
            quoted(types.iter().map(String::as_str).collect())
        )
    })
}

fn non_root(spec: &Value) -> Option<String> {
    let pod = &spec["securityContext"]["runAsNonRoot"];
    let explicit = named(spec, |container| container["securityContext"]["runAsNonRoot"] == false);
    if *pod == false {
        return Some("runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false)".to_owned());
    }
    if !explicit.is_empty() {
        return Some(format!(
            "runAsNonRoot != true ({} must not set securityContext.runAsNonRoot=false)",
            listed(&explicit)
        ));
    }
    let silent = named(spec, |container| container["securityContext"]["runAsNonRoot"] != true);
    (*pod != true && !silent.is_empty()).then(|| {
        format!(
            "runAsNonRoot != true (pod or {} must set securityContext.runAsNonRoot=true)",
            listed(&silent)
        )
    })
}

fn user(spec: &Value) -> Option<String> {
    let mut told = Vec::new();
    if spec["securityContext"]["runAsUser"] == 0 {
        told.push("pod must not set runAsUser=0".to_owned());
    }
    let names = named(spec, |container| container["securityContext"]["runAsUser"] == 0);
    if !names.is_empty() {
        told.push(format!("{} must not set runAsUser=0", listed(&names)));
    }
    (!told.is_empty()).then(|| format!("runAsUser=0 ({})", told.join(", ")))
}

fn seccomp(spec: &Value) -> Option<String> {
    let of = |context: &Value| context["seccompProfile"]["type"].as_str().map(str::to_owned);
    let good = |found: &Option<String>| matches!(found.as_deref(), Some("RuntimeDefault" | "Localhost"));
    let pod = of(&spec["securityContext"]);
    if pod.is_some() && !good(&pod) {
        let word = pod.unwrap_or_default();
        return Some(format!(
            "seccompProfile (pod must not set securityContext.seccompProfile.type to {word:?})"
        ));
    }
    let bad = named(spec, |container| {
        let own = of(&container["securityContext"]);
        own.is_some() && !good(&own)
    });
    if !bad.is_empty() {
        return Some(format!(
            "seccompProfile ({} must not set securityContext.seccompProfile.type to \"Unconfined\")",
            listed(&bad)
        ));
    }
    let silent = named(spec, |container| of(&container["securityContext"]).is_none());
    (!good(&pod) && !silent.is_empty()).then(|| {
        format!(
            "seccompProfile (pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
            listed(&silent)
        )
    })
}
