//! The environment of a container: pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::Key;
use imbl::OrdMap;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
};

use crate::env_files::{self, EnvFiles};
use crate::volumes::TokenKey;

/// What environment and volumes are made from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) config_maps: OrdMap<Key, Arc<ConfigMap>>,
    pub(crate) secrets: OrdMap<Key, Arc<Secret>>,
    pub(crate) services: OrdMap<Key, Arc<Service>>,
    pub(crate) claims: OrdMap<Key, Arc<PersistentVolumeClaim>>,
    pub(crate) volumes: OrdMap<Key, Arc<PersistentVolume>>,
    /// The pod's service account tokens, as far as they are here.
    pub(crate) tokens: BTreeMap<TokenKey, String>,
    /// What the container's variables name of files in the pod's volumes.
    pub(crate) env_files: EnvFiles,
}

/// What the downward API may tell.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) pod_ip: String,
    pub(crate) host_ip: String,
    pub(crate) machine_cpu_milli: i64,
    pub(crate) machine_memory_bytes: i64,
    pub(crate) machine_disk_bytes: i64,
}

impl Sources {
    /// The texts of a ConfigMap; binary data is no environment.
    pub(crate) fn config_map(&self, namespace: &str, name: &str) -> Option<&Arc<ConfigMap>> {
        self.config_maps.get(&Key::new(namespace, name))
    }

    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<Secret>> {
        self.secrets.get(&Key::new(namespace, name))
    }
}

/// The variables in the documented order: those of services, `envFrom`, `env`, later ones winning, `$(VAR)` expanded.
///
/// # Errors
/// In words, when something that is not optional is missing, as Kubernetes' `CreateContainerConfigError` says it.
pub(crate) fn variables(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    facts: &Facts,
) -> Result<Vec<(String, String)>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut set = |known: &mut BTreeMap<String, String>, name: &str, value: String| {
        if known.insert(name.to_owned(), value).is_none() {
            order.push(name.to_owned());
        }
    };
    for (name, value) in of_services(pod, sources) {
        set(&mut known, &name, value);
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(source) = &from.config_map_ref {
            match sources.config_map(namespace, &source.name) {
                Some(map) => map
                    .data
                    .iter()
                    .flatten()
                    .for_each(|(name, value)| set(&mut known, &format!("{prefix}{name}"), value.clone())),
                None if source.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", source.name)),
            }
        }
        if let Some(source) = &from.secret_ref {
            match sources.secret(namespace, &source.name) {
                Some(secret) => secret
                    .data
                    .iter()
                    .flatten()
                    .for_each(|(name, value)| set(&mut known, &format!("{prefix}{name}"), text(value))),
                None if source.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", source.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &known)),
            (None, Some(source)) => one(pod, container, source, sources, facts)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            set(&mut known, &variable.name, value);
        }
    }
    Ok(order.into_iter().map(|name| (name.clone(), known.remove(&name).unwrap_or_default())).collect())
}

/// The variables by which programs find the services of their namespace, and the API always.
fn of_services(pod: &Pod, sources: &Sources) -> Vec<(String, String)> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let api = Key::new("default", "kubernetes");
    let own = sources.services.iter().filter(|(key, _)| links && key.namespace == namespace && **key != api);
    let all = sources.services.get(&api).map(|service| (&api, service)).into_iter().chain(own);
    let mut variables = Vec::new();
    for (key, service) in all {
        let Some(spec) = &service.spec else { continue };
        let address = spec.cluster_ip.clone().filter(|ip| !ip.is_empty() && ip != "None");
        let ports = spec.ports.as_deref().unwrap_or_default();
        let (Some(ip), Some(first)) = (address, ports.first()) else { continue };
        let name = shouted(&key.name);
        let protocol = |port: &k8s_openapi::api::core::v1::ServicePort| {
            port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())
        };
        let url = |port| format!("{}://{ip}:{}", protocol(port).to_lowercase(), port.port);
        variables.push((format!("{name}_SERVICE_HOST"), ip.clone()));
        variables.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
        for port in ports {
            if let Some(named) = port.name.as_deref().filter(|name| !name.is_empty()) {
                variables.push((format!("{name}_SERVICE_PORT_{}", shouted(named)), port.port.to_string()));
            }
        }
        variables.push((format!("{name}_PORT"), url(first)));
        for port in ports {
            let prefix = format!("{name}_PORT_{}_{}", port.port, protocol(port).to_uppercase());
            variables.push((prefix.clone(), url(port)));
            variables.push((format!("{prefix}_PROTO"), protocol(port).to_lowercase()));
            variables.push((format!("{prefix}_PORT"), port.port.to_string()));
            variables.push((format!("{prefix}_ADDR"), ip.clone()));
        }
    }
    variables
}

fn shouted(name: &str) -> String {
    name.to_uppercase().replace(['-', '.'], "_")
}

fn one(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources,
    facts: &Facts,
) -> Result<Option<String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(key) = &source.config_map_key_ref {
        let found = sources
            .config_map(namespace, &key.name)
            .map(|map| map.data.as_ref().and_then(|data| data.get(&key.key)).cloned());
        return picked(found, key.optional, "configmap", namespace, &key.name, &key.key);
    }
    if let Some(key) = &source.secret_key_ref {
        let found = sources
            .secret(namespace, &key.name)
            .map(|secret| secret.data.as_ref().and_then(|data| data.get(&key.key)).map(text));
        return picked(found, key.optional, "secret", namespace, &key.name, &key.key);
    }
    if let Some(field) = &source.field_ref {
        return field_value(pod, &field.field_path, facts).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        let of = resource.container_name.as_deref().unwrap_or(&container.name);
        return resource_value(
            pod,
            of,
            &resource.resource,
            resource.divisor.as_ref().map(|divisor| divisor.0.as_str()),
            facts,
        )
        .map(Some);
    }
    if let Some(file) = &source.file_key_ref {
        return env_files::value(&sources.env_files, file);
    }
    Err("valueFrom names no source that this node knows".to_owned())
}

fn picked(
    found: Option<Option<String>>,
    optional: Option<bool>,
    kind: &str,
    namespace: &str,
    name: &str,
    key: &str,
) -> Result<Option<String>, String> {
    match found {
        Some(Some(value)) => Ok(Some(value)),
        _ if optional == Some(true) => Ok(None),
        Some(None) => Err(format!(
            "couldn't find key {key} in {} {namespace}/{name}",
            if kind == "secret" { "Secret" } else { "ConfigMap" }
        )),
        None => Err(format!("{kind} \"{name}\" not found")),
    }
}

fn text(value: &ByteString) -> String {
    String::from_utf8_lossy(&value.0).into_owned()
}

/// A field of the downward API, for variables and files.
pub(crate) fn field_value(pod: &Pod, path: &str, facts: &Facts) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let lines = |map: &Option<BTreeMap<String, String>>| {
        let lines: Vec<String> =
            map.iter().flatten().map(|(name, value)| format!("{name}={value:?}")).collect();
        lines.join("\n")
    };
    if let Some((map, key)) = subscripted(path) {
        let map = if map == "metadata.labels" { &meta.labels } else { &meta.annotations };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
        }
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        other => return Err(format!("fieldRef {other:?} is no field that a pod can be told")),
    })
}

/// `metadata.labels['key']` to its parts.
fn subscripted(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    matches!(map, "metadata.labels" | "metadata.annotations").then_some((map, rest.strip_suffix("']")?))
}

/// A request or limit of a container, divided and rounded up, as documented; without a limit, what the machine has.
pub(crate) fn resource_value(
    pod: &Pod,
    container: &str,
    resource: &str,
    divisor: Option<&str>,
    facts: &Facts,
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let found = spec.and_then(|spec| {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .find(|known| known.name == container)
    });
    let found =
        found.ok_or_else(|| format!("resourceFieldRef: container {container:?} is not in the pod"))?;
    let (side, name) = resource
        .split_once('.')
        .ok_or_else(|| format!("resourceFieldRef {resource:?} is not limits.… or requests.…"))?;
    let resources = found.resources.as_ref();
    let amounts = match side {
        "limits" => resources.and_then(|resources| resources.limits.as_ref()),
        _ => resources.and_then(|resources| resources.requests.as_ref()),
    };
    let milli = |text: &str| {
        api::quantity::Quantity::parse(text)
            .map(|quantity| quantity.as_milli())
            .map_err(|error| format!("{text:?}: {error}"))
    };
    let amount = match (amounts.and_then(|amounts| amounts.get(name)), side, name) {
        (Some(quantity), ..) => milli(&quantity.0)?,
        (None, "limits", "cpu") => i128::from(facts.machine_cpu_milli),
        (None, "limits", "memory") => i128::from(facts.machine_memory_bytes) * 1000,
        (None, "limits", "ephemeral-storage") => i128::from(facts.machine_disk_bytes) * 1000,
        _ => 0,
    };
    let divisor = milli(divisor.filter(|divisor| *divisor != "0").unwrap_or("1"))?.max(1);
    Ok(((amount + divisor - 1) / divisor).to_string())
}

/// `$(NAME)` becomes the variable's value when there is one; `$$(NAME)` stays as `$(NAME)`, as documented.
pub(crate) fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let name = rest.strip_prefix("$(").and_then(|inside| inside.split_once(')'));
        match name.and_then(|(name, after)| known.get(name).map(|value| (value, after))) {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('$');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}
