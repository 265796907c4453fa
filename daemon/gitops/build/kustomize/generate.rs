//! ConfigMaps and Secrets from files, env files and literals; the hash that their names get.
//!
//! Invariant: the hash is that of kustomize to the last letter, or a name would differ from what another tool makes.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::resource::Behaviour;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Options {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) disable_name_suffix_hash: bool,
    pub(super) immutable: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Generator {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) behavior: String,
    pub(super) literals: Vec<String>,
    pub(super) files: Vec<String>,
    pub(super) envs: Vec<String>,
    pub(super) env: String,
    /// Of a Secret.
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) options: Option<Options>,
}

/// What is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::ConfigMap => "ConfigMap",
            Kind::Secret => "Secret",
        }
    }
}

/// A plugin's configuration as a generator's arguments.
pub(super) fn arguments(value: &Value) -> Value {
    let mut arguments = value.as_object().cloned().unwrap_or_default();
    arguments.remove("apiVersion");
    arguments.remove("kind");
    let meta = arguments.remove("metadata").unwrap_or_default();
    for field in ["name", "namespace"] {
        if let Some(text) = meta.get(field) {
            arguments.insert(field.to_owned(), text.clone());
        }
    }
    Value::Object(arguments)
}

impl Generator {
    /// The files it reads.
    pub(super) fn references(&self) -> Vec<String> {
        let files = self.files.iter().filter_map(|file| key_and_path(file).ok()).map(|(_, path)| path);
        let envs = self.envs.iter().cloned().chain(Some(self.env.clone()).filter(|env| !env.is_empty()));
        files.chain(envs).collect()
    }

    pub(super) fn behaviour(&self) -> Result<Behaviour, String> {
        match self.behavior.as_str() {
            "" | "create" | "unspecified" => Ok(Behaviour::Create),
            "merge" => Ok(Behaviour::Merge),
            "replace" => Ok(Behaviour::Replace),
            other => Err(format!("behavior {other:?} is none of create, merge and replace")),
        }
    }

    /// The object and whether its name gets a hash. `read` gives a file's bytes.
    pub(super) fn generate(
        &self,
        kind: Kind,
        global: Option<&Options>,
        read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
    ) -> Result<(Value, bool), String> {
        if self.name.is_empty() {
            return Err("a generator needs a name".to_owned());
        }
        let mut object = json!({
            "apiVersion": "v1",
            "kind": kind.name(),
            "metadata": {"name": self.name},
        });
        if !self.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(self.namespace);
        }
        if kind == Kind::Secret {
            object["type"] = json!(if self.kind.is_empty() { "Opaque" } else { &self.kind });
        }
        for (key, bytes) in self.pairs(read)? {
            put(&mut object, kind, key, &bytes)?;
        }
        let own = self.options.clone().unwrap_or_default();
        let global = global.cloned().unwrap_or_default();
        for (field, global, own) in
            [("labels", global.labels, own.labels), ("annotations", global.annotations, own.annotations)]
        {
            let mut all = global;
            all.extend(own);
            if !all.is_empty() {
                object["metadata"][field] = json!(all);
            }
        }
        if own.immutable || global.immutable {
            object["immutable"] = json!(true);
        }
        Ok((object, !own.disable_name_suffix_hash && !global.disable_name_suffix_hash))
    }

    fn pairs(
        &self,
        read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
    ) -> Result<Vec<(String, Vec<u8>)>, String> {
        let mut pairs = Vec::new();
        let envs = self.envs.iter().chain(Some(&self.env).filter(|env| !env.is_empty()));
        for path in envs {
            pairs.extend(env_lines(&read(path)?, path)?);
        }
        for literal in &self.literals {
            let pair = literal.split_once('=').filter(|(key, _)| !key.is_empty());
            let (key, value) = pair.ok_or_else(|| format!("literal {literal:?} is not key=value"))?;
            pairs.push((key.to_owned(), value.trim_matches(['"', '\'']).as_bytes().to_vec()));
        }
        for file in &self.files {
            let (key, path) = key_and_path(file)?;
            pairs.push((key, read(&path)?));
        }
        Ok(pairs)
    }
}

/// `key=path`, or a path whose last part is the key.
fn key_and_path(file: &str) -> Result<(String, String), String> {
    match file.split_once('=') {
        None => Ok((file.rsplit('/').next().unwrap_or(file).to_owned(), file.to_owned())),
        Some(("", _)) => Err(format!("key name for file path {file:?} is missing")),
        Some((_, "")) => Err(format!("file path for key {file:?} is missing")),
        Some((_, path)) if path.contains('=') => {
            Err(format!("{file:?}: key names and file paths cannot contain \"=\""))
        }
        Some((key, path)) => Ok((key.to_owned(), path.to_owned())),
    }
}

fn env_lines(bytes: &[u8], path: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{path} is not UTF-8 text"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut pairs = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some((key, value)) => pairs.push((key.to_owned(), value.as_bytes().to_vec())),
            None => {
                return Err(format!(
                    "{path}: {line:?} would take its value from the environment of whoever builds; write {line}=value"
                ));
            }
        }
    }
    Ok(pairs)
}

fn put(object: &mut Value, kind: Kind, key: String, bytes: &[u8]) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if key.is_empty() || key.len() > 253 || !key.bytes().all(fits) || key == "." || key.starts_with("..") {
        return Err(format!("{key:?} is no valid key: letters, digits, '-', '_' and '.' only"));
    }
    let (field, value) = match (kind, std::str::from_utf8(bytes)) {
        (Kind::ConfigMap, Ok(text)) => ("data", text.to_owned()),
        (Kind::ConfigMap, Err(_)) => ("binaryData", in_lines(bytes)),
        (Kind::Secret, _) => ("data", in_lines(bytes)),
    };
    let taken = ["data", "binaryData"].iter().any(|field| object[*field].get(&key).is_some());
    if taken {
        let name = super::resource::text(&object["metadata"]["name"]);
        return Err(format!("{} {name} gets the key {key} twice", kind.name()));
    }
    super::resource::object(super::resource::entry(object, field)).insert(key, Value::String(value));
    Ok(())
}

/// Base64 in lines of 70, as kustomize writes it when it is longer than one.
fn in_lines(bytes: &[u8]) -> String {
    let encoded = STANDARD.encode(bytes);
    if encoded.len() < 70 {
        return encoded;
    }
    let mut text = String::with_capacity(encoded.len() + encoded.len() / 70 + 1);
    for line in encoded.as_bytes().chunks(70) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text
}

/// The ten letters that a generated object's name ends with. Its name is no part of them, as kustomize has it.
pub(super) fn hash(object: &Value) -> String {
    let mut seen = Map::new();
    let or_empty = |value: &Value| if value.is_null() { json!("") } else { value.clone() };
    match super::resource::text(&object["kind"]) {
        "ConfigMap" => {
            seen.insert("kind".to_owned(), json!("ConfigMap"));
            seen.insert("name".to_owned(), json!(""));
            seen.insert("data".to_owned(), or_empty(&object["data"]));
            if object["binaryData"].is_object() {
                seen.insert("binaryData".to_owned(), object["binaryData"].clone());
            }
        }
        "Secret" => {
            seen.insert("kind".to_owned(), json!("Secret"));
            seen.insert("type".to_owned(), or_empty(&object["type"]));
            seen.insert("name".to_owned(), json!(""));
            seen.insert("data".to_owned(), or_empty(&object["data"]));
            if object["stringData"].is_object() {
                seen.insert("stringData".to_owned(), object["stringData"].clone());
            }
        }
        _ => seen = object.as_object().cloned().unwrap_or_default(),
    }
    let mut text = Value::Object(seen).to_string();
    // Go's encoder spells these so that JSON may stand in HTML.
    for (plain, spelled) in [
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u{2028}", "\\u2028"),
        ("\u{2029}", "\\u2029"),
    ] {
        text = text.replace(plain, spelled);
    }
    let digest = Sha256::digest(text.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let letter = |digit: char| match digit {
        '0' => 'g',
        '1' => 'h',
        '3' => 'k',
        'a' => 'm',
        'e' => 't',
        other => other,
    };
    hex.chars().take(10).map(letter).collect()
}
