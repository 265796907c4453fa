//! What an application tells of itself: the status of its `applications.holdfast.dev` object, which is also its memory.
//!
//! Invariant: the page, the command line and the API show this value; nothing else is computed elsewhere.
//! Invariant: `objects` is the inventory: an object is in it before it is made, and until it is gone.

use std::collections::BTreeMap;

use api::health::{Health, HealthCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::build::{Defect, Id};

/// Revisions remembered.
pub(crate) const MOST_HISTORY: usize = 20;

/// The status of an application.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Whether live is what the files say.
    pub sync: SyncStatus,
    /// What is followed, and what was read last.
    pub source: Source,
    /// The worst of the objects' healths.
    pub health: HealthStatus,
    /// The objects, in the order of their ids.
    pub objects: Vec<ObjectStatus>,
    /// What a person has to mend.
    pub defects: Vec<Defect>,
    /// The newest last.
    pub history: Vec<RevisionStatus>,
    /// `Synced` and `Healthy`, for `kubectl wait`.
    pub conditions: Vec<Condition>,
}

/// `Synced`, `OutOfSync`, `Failed` or `Unknown`, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SyncStatus {
    /// The state.
    pub state: String,
    /// The revision that is applied or being applied.
    pub revision: String,
    /// One sentence.
    pub message: String,
}

/// Where the files come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// `dir` or `git`.
    pub kind: String,
    /// The path or URL, without credentials.
    pub location: String,
    /// As configured.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The last one that was read.
    pub revision: String,
    /// Of the commit.
    pub author: String,
    /// Of the commit.
    pub commit_message: String,
    /// RFC 3339.
    pub fetched_at: String,
}

impl Source {
    /// The same revision, said of this place.
    pub(crate) fn with_place(self, place: &Source) -> Source {
        let (kind, location, reference) =
            (place.kind.clone(), place.location.clone(), place.reference.clone());
        Source { kind, location, reference, ..self }
    }
}

/// A health code and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthStatus {
    /// `Healthy`, `Suspended`, `Progressing`, `Missing`, `Degraded` or `Unknown`.
    pub code: String,
    /// Empty when there is nothing to tell.
    pub message: String,
}

impl Default for HealthStatus {
    fn default() -> HealthStatus {
        HealthStatus { code: "Unknown".to_owned(), message: String::new() }
    }
}

impl From<&Health> for HealthStatus {
    fn from(health: &Health) -> HealthStatus {
        HealthStatus { code: spell(health.code).to_owned(), message: health.message.clone() }
    }
}

/// The code as it is spelled everywhere.
pub(crate) fn spell(code: HealthCode) -> &'static str {
    match code {
        HealthCode::Healthy => "Healthy",
        HealthCode::Suspended => "Suspended",
        HealthCode::Progressing => "Progressing",
        HealthCode::Missing => "Missing",
        HealthCode::Degraded => "Degraded",
        HealthCode::Unknown => "Unknown",
    }
}

/// One object of an application.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectStatus {
    /// Empty for the core group.
    pub group: String,
    /// `v1`.
    pub version: String,
    /// `Deployment`.
    pub kind: String,
    /// Empty for objects of the cluster.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `Synced`, `OutOfSync`, `Failed`, `Pruning` or `Unknown`.
    pub sync: String,
    /// Why it is not synced; empty when it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// As observed.
    pub health: HealthStatus,
    /// The file it came from.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// What has to happen first.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub waits_for: String,
}

impl ObjectStatus {
    /// Which object it is.
    pub fn id(&self) -> Id {
        Id {
            group: self.group.clone(),
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

/// One revision that was synced, or is being synced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionStatus {
    /// The commit or content hash.
    pub revision: String,
    /// Of the commit.
    pub author: String,
    /// Of the commit.
    pub message: String,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339; empty while it is going on.
    pub finished_at: String,
    /// `Healthy`, `Degraded`, `Failed: …`, `Superseded`; empty while it is going on.
    pub result: String,
}

/// A Kubernetes condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// `Synced` or `Healthy`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True` or `False`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// One sentence.
    pub message: String,
    /// RFC 3339.
    pub last_transition_time: String,
}

impl Status {
    /// Everything in sync, healthy and without a defect.
    pub fn is_good(&self) -> bool {
        self.sync.state == "Synced" && self.health.code == "Healthy" && self.defects.is_empty()
    }

    /// The inventory by id.
    pub(crate) fn inventory(&self) -> BTreeMap<Id, &ObjectStatus> {
        self.objects.iter().map(|object| (object.id(), object)).collect()
    }

    /// Brings history and conditions up to what the rest says. `before` is the status told last.
    pub(crate) fn carry(&mut self, before: &Status, now: Timestamp) {
        self.history.clone_from(&before.history);
        self.carry_history(now);
        let synced = self.sync.state == "Synced";
        let healthy = self.health.code == "Healthy";
        let (sync, health) = (self.sync.clone(), self.health.clone());
        self.conditions = vec![
            condition("Synced", synced, &sync.state, &sync.message, before, now),
            condition("Healthy", healthy, &health.code, &health.message, before, now),
        ];
    }

    fn carry_history(&mut self, now: Timestamp) {
        if self.source.revision.is_empty() {
            return;
        }
        if self.history.last().is_none_or(|last| last.revision != self.source.revision) {
            if let Some(last) = self.history.last_mut().filter(|last| last.finished_at.is_empty()) {
                last.finished_at = seconds(now);
                "Superseded".clone_into(&mut last.result);
            }
            self.history.push(RevisionStatus {
                revision: self.source.revision.clone(),
                author: self.source.author.clone(),
                message: self.source.commit_message.clone(),
                started_at: now.to_string(),
                ..RevisionStatus::default()
            });
            let surplus = self.history.len().saturating_sub(MOST_HISTORY);
            self.history.drain(..surplus);
        }
        let result = match (self.sync.state.as_str(), self.health.code.as_str()) {
            ("Synced", "Healthy" | "Suspended") => "Healthy".to_owned(),
            ("Synced", "Degraded") => format!("Degraded: {}", self.health.message),
            ("Failed", _) => format!("Failed: {}", self.sync.message),
            _ => return,
        };
        let Some(last) = self.history.last_mut() else { return };
        // Drift and crashes after the first good end do not rewrite what this revision achieved.
        if last.result != result && last.result != "Healthy" {
            last.finished_at = now.to_string();
            last.result = result;
        }
    }
}

fn condition(
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
    before: &Status,
    now: Timestamp,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let known = before.conditions.iter().find(|known| known.kind == kind && known.status == status);
    Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: known.map_or_else(|| seconds(now), |known| known.last_transition_time.clone()),
    }
}

/// RFC 3339 without a fraction, as Kubernetes' `metav1.Time`.
pub(crate) fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
