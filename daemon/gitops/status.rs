//! What an application tells of itself: the status of its `applications.holdfast.dev` object, which is also its memory.
//!
//! Invariant: the page, the command line and the API show this value; nothing else is computed elsewhere.
//! Invariant: `objects` is the inventory: an object is in it before it is made, and until it is gone.

use std::collections::{BTreeMap, BTreeSet};

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
    /// What works, but should be written otherwise: yesterday's API versions, old spellings, files that nobody reads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Defect>,
    /// The newest last.
    pub history: Vec<RevisionStatus>,
    /// `Synced` and `Healthy`, for `kubectl wait`.
    pub conditions: Vec<Condition>,
    /// The hooks of the revision, and how they ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookStatus>,
    /// What persons and the policy decided.
    #[serde(skip_serializing_if = "Decisions::is_empty")]
    pub decisions: Decisions,
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
    /// What the newest revision waits for, when it is not the one that is applied.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub waits_for: String,
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
    /// RFC 3339: since when the code is this one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub since: String,
    /// What the failing container said last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
}

impl Default for HealthStatus {
    fn default() -> HealthStatus {
        HealthStatus::new("Unknown", "")
    }
}

impl From<&Health> for HealthStatus {
    fn from(health: &Health) -> HealthStatus {
        HealthStatus::new(spell(health.code), &health.message)
    }
}

impl HealthStatus {
    pub(crate) fn new(code: &str, message: &str) -> HealthStatus {
        let (code, message) = (code.to_owned(), message.to_owned());
        HealthStatus { code, message, since: String::new(), evidence: Vec::new() }
    }

    /// Since when it is so, given what was told before.
    pub(crate) fn carry(&mut self, before: Option<&HealthStatus>, now: Timestamp) {
        let same = before.filter(|before| before.code == self.code && !before.since.is_empty());
        self.since = same.map_or_else(|| seconds(now), |before| before.since.clone());
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
    /// Which text of it was applied last.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub applied: String,
    /// How it ended, for a Job that takes itself away.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ended: String,
    /// What was put back last, and who had changed it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub healed: String,
    /// Not pruned before a person says so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub confirm: bool,
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
    /// Why it was begun when it was not the newest: `rollback`, `automatic rollback`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trigger: String,
    /// What it did, counted.
    #[serde(skip_serializing_if = "Tally::is_empty")]
    pub did: Tally,
    /// How long each part took.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseStatus>,
    /// What became of the objects that changed, the first hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<Outcome>,
}

/// Objects that a revision touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tally {
    /// Made.
    pub created: u32,
    /// Changed in place or made anew.
    pub changed: u32,
    /// Deleted.
    pub pruned: u32,
    /// Refused.
    pub failed: u32,
}

impl Tally {
    /// Nothing was touched.
    pub fn is_empty(&self) -> bool {
        *self == Tally::default()
    }
}

/// One part of a sync.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PhaseStatus {
    /// `pre-sync`, `apply`, `health`, `post-sync`.
    pub name: String,
    /// RFC 3339.
    pub started_at: String,
    /// From its begin to its end.
    pub milliseconds: u64,
}

/// What became of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outcome {
    /// `Deployment default/web`.
    pub object: String,
    /// `created`, `changed`, `recreated`, `pruned`, `failed`.
    pub did: String,
    /// `file:line`.
    pub from: String,
    /// Why, where there is more to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// One hook of the revision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HookStatus {
    /// Empty for the core group.
    pub group: String,
    /// `Job`.
    pub kind: String,
    /// Empty for objects of the cluster.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `pre-sync`, `sync`, `post-sync`, `sync-failed`, `pre-delete`, `post-delete`, `never`.
    pub phase: String,
    /// Of which content of the files: the same content runs it once.
    pub run: String,
    /// `Waiting`, `Running`, `Succeeded`, `Failed` or `Skipped`.
    pub state: String,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What it said last, when it failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// From 1.
    pub attempt: u32,
    /// RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub started_at: String,
    /// RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub finished_at: String,
    /// The file it came from.
    pub file: String,
    /// From 1.
    pub line: u32,
}

impl HookStatus {
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

/// What persons and the policy decided about the revisions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Decisions {
    /// The revision that a person let through.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub approved: String,
    /// Objects that may be pruned although they are guarded.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub confirmed: BTreeSet<String>,
    /// The revision that is held instead of the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Pin>,
    /// Revisions that are not applied again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<Quarantine>,
}

impl Decisions {
    /// Nobody decided anything.
    pub fn is_empty(&self) -> bool {
        *self == Decisions::default()
    }

    pub(crate) fn quarantine(&self, revision: &str) -> Option<&Quarantine> {
        self.quarantined.iter().find(|known| known.revision == revision)
    }
}

/// A revision that was brought back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pin {
    /// Which.
    pub revision: String,
    /// By the policy, not by a person.
    pub automatic: bool,
    /// RFC 3339.
    pub at: String,
}

/// A revision that is not applied any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Quarantine {
    /// Which.
    pub revision: String,
    /// Why not.
    pub reason: String,
    /// RFC 3339.
    pub at: String,
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

    /// Brings the conditions up to what the rest says. `before` is the status told last.
    pub(crate) fn carry(&mut self, before: &Status, now: Timestamp) {
        let synced = self.sync.state == "Synced";
        let healthy = self.health.code == "Healthy";
        let (sync, health) = (self.sync.clone(), self.health.clone());
        self.conditions = vec![
            condition("Synced", synced, &sync.state, &sync.message, before, now),
            condition("Healthy", healthy, &health.code, &health.message, before, now),
        ];
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
