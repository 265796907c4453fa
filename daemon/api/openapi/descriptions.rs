//! What types and fields mean, for those who ask: kept packed, unpacked for one document and forgotten again.
//!
//! `facts/descriptions.json.gz` holds the first sentence of each documentation comment of k8s-openapi 0.29 (`v1_36`,
//! Apache-2.0), by type and field; the empty field is the type itself. Types of ours are described here.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use serde_json::Value;

const PACKED: &[u8] = include_bytes!("../facts/descriptions.json.gz");

/// Fields that mean the same in every type.
const COMMON: &[(&str, &str)] = &[
    ("apiVersion", "Version of the schema that this object is written in."),
    ("kind", "Kind of the object, in CamelCase."),
    ("metadata", "Name, namespace, labels and everything else that every object has."),
    ("spec", "What is wanted."),
    ("status", "What was observed."),
];

/// Types of ours.
const OWN: &[(&str, &str, &str)] = &[
    ("Application", "", "A source of manifests that this node holds the cluster to."),
    ("ApplicationSpec", "source", "Where the manifests come from: a Git repository or a directory."),
    ("ApplicationSpec", "policy", "What is done about differences."),
    ("ApplicationSpec", "suspend", "Whether to leave everything as it is for now."),
    ("ApplicationSource", "git", "URL of the Git repository."),
    ("ApplicationSource", "dir", "Directory on this machine, in place of a repository."),
    ("ApplicationSource", "path", "Where in the source the manifests are."),
    ("ApplicationSource", "ref", "Branch, tag or commit of the repository."),
    ("ApplicationSource", "pollSeconds", "How often a repository elsewhere is asked for news."),
    ("ApplicationPolicy", "prune", "Whether objects that left the source are deleted."),
    ("ApplicationPolicy", "selfHeal", "Whether changes by others are undone."),
    ("ApplicationStatus", "objects", "The objects of the application, each with where it came from."),
    ("ApplicationStatus", "defects", "What is wrong with the manifests, with file and line."),
    ("ApplicationStatus", "history", "The revisions that were synced, newest first."),
    ("ApplicationStatus", "sync", "Whether what is live is what the source says."),
    ("ApplicationStatus", "health", "Whether everything works."),
];

/// Adds to each schema what it and its fields mean.
pub(super) fn describe(schemas: &mut BTreeMap<String, Value>) {
    let mut text = String::new();
    flate2::read::GzDecoder::new(PACKED).read_to_string(&mut text).expect("the fact tables are ours");
    let facts: HashMap<&str, HashMap<&str, String>> =
        serde_json::from_str(&text).expect("the fact tables are ours");
    for (name, schema) in schemas.iter_mut() {
        let known = facts.get(name.as_str());
        if let (Some(meaning), Some(map)) = (meaning(known, name, ""), schema.as_object_mut()) {
            map.entry("description").or_insert_with(|| meaning.into());
        }
        let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { continue };
        for (field, property) in properties {
            if let (Some(meaning), Some(map)) = (meaning(known, name, field), property.as_object_mut()) {
                map.entry("description").or_insert_with(|| meaning.into());
            }
        }
    }
}

fn meaning<'a>(known: Option<&'a HashMap<&str, String>>, name: &str, field: &str) -> Option<&'a str> {
    let own = || {
        let short = name.strip_prefix("dev.holdfast.v1.")?;
        OWN.iter().find(|(of, what, _)| *of == short && *what == field).map(|(.., meaning)| *meaning)
    };
    let common = || COMMON.iter().find(|(what, _)| *what == field).map(|(_, meaning)| *meaning);
    known.and_then(|fields| fields.get(field)).map(String::as_str).or_else(own).or_else(common)
}
