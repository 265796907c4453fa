//! What a directory says, checked without a node: the same build as the engine's, and the API's own validation.
//!
//! Invariant: nothing is written, reached or run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use api::{schema, validate};
use serde::Serialize;
use serde_json::Value;

use crate::Error;
use crate::build::{Builder, Built, Defaults, Defect};
use crate::defined::Defined;
use crate::source::{self, Snapshot};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Sound objects.
    pub objects: usize,
    /// Files that were read.
    pub files: usize,
    /// What keeps something from being applied.
    pub defects: Vec<Defect>,
    /// What works, but should be written otherwise; files that nobody reads.
    pub notices: Vec<Defect>,
}

/// Checks a directory or one file.
///
/// # Errors
/// When it cannot be read.
pub fn check(path: &Path, namespace: &str, substitute: BTreeMap<String, String>) -> Result<Findings, Error> {
    let snapshot = source::read(path)?;
    Ok(findings(&snapshot, namespace, substitute))
}

/// Checks a snapshot, wherever it came from.
pub(crate) fn findings(
    snapshot: &Snapshot,
    namespace: &str,
    substitute: BTreeMap<String, String>,
) -> Findings {
    let (namespace, application) = (namespace.to_owned(), "check".to_owned());
    let mut builder =
        Builder::new(Defaults { namespace, application, substitute, kinds: Defined::default() });
    let mut built = builder.build(snapshot);
    let invalid = invalid(&builder, &built);
    built.defects.extend(invalid);
    built.defects.sort();
    Findings {
        objects: built.objects.len(),
        files: snapshot.files.len(),
        defects: built.defects,
        notices: built.notices,
    }
}

/// What the API would refuse of sound text: values out of their range, names that cannot be, fields that are missing.
pub(crate) fn invalid(builder: &Builder, built: &Built) -> Vec<Defect> {
    let mut found = Vec::new();
    for object in &built.objects {
        let mut value: Value = (*object.value).clone();
        schema::defaults(object.kind, &mut value);
        for defect in validate::create(object.kind, &value) {
            let (line, column) = builder.place(object, &defect.path);
            found.push(Defect {
                file: Arc::clone(&object.file).to_string(),
                line,
                column,
                message: format!("{}: {}", defect.path, defect.message),
                help: String::new(),
                object: Some(object.id.to_string()),
            });
        }
    }
    found
}
