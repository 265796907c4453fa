//! Hooks: objects that are run once per content of the files, before, beside and after the rest.
//!
//! Invariant: how a hook ended is remembered by (content, hook); a live object only tells of the run that it was made for.
//! Invariant: pure; a run is told before it is begun, so that a crash between the two begins it again, and not twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::health::{Health, HealthCode};
use api::kinds::Kind;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::build::Object;
use crate::marks::{Hook, Phase};
use crate::order;
use crate::plan::{Failure, Live, Removal, Step, View, is_ours};
use crate::status::HookStatus;

/// The annotation that says for which run a hook's object was made.
pub(crate) const RUN: &str = "holdfast.dev/hook-run";
/// The wait after a hook's first failure; it doubles up to the most.
const FIRST_RETRY: Duration = Duration::from_secs(10);
const MOST_RETRY: Duration = Duration::from_secs(600);

/// A hook that the files have.
#[derive(Debug)]
pub(crate) struct HookView {
    pub(crate) object: Object,
    pub(crate) hook: Hook,
    pub(crate) live: Option<Live>,
    /// The run that is known to have ended, though its object may be gone.
    pub(crate) ended: Option<(String, Health)>,
    pub(crate) failure: Option<Failure>,
}

/// A hook that the files had.
#[derive(Debug)]
pub(crate) struct HookGone {
    pub(crate) told: HookStatus,
    pub(crate) kind: Option<&'static Kind>,
    pub(crate) live: Option<Live>,
}

/// How far a phase is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    Done,
    Waits(String),
    Failed(String),
}

/// Walks through the phases of one round.
pub(crate) struct Runner<'a> {
    view: &'a View,
    now: Timestamp,
    /// Whether anything may be begun.
    acts: bool,
    records: BTreeMap<(String, crate::build::Id), HookStatus>,
    pub(crate) steps: Vec<Step>,
    pub(crate) again: Option<Timestamp>,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(view: &'a View, acts: bool, now: Timestamp) -> Runner<'a> {
        let mut runner = Runner { view, now, acts, records: BTreeMap::new(), steps: Vec::new(), again: None };
        for hook in &view.hooks {
            let phases: Vec<&str> = match hook.hook.phases.as_slice() {
                [] => vec!["never"],
                phases => phases.iter().map(|phase| phase.spelled()).collect(),
            };
            for phase in phases {
                let record = runner.known(hook, phase);
                runner.records.insert((phase.to_owned(), hook.object.id.clone()), record);
            }
        }
        for gone in &view.hooks_gone {
            runner.leave(gone);
        }
        runner
    }

    /// What is remembered of a hook, or that it has not run.
    fn known(&self, hook: &HookView, phase: &str) -> HookStatus {
        let told = &self.view.told.hooks;
        let id = &hook.object.id;
        let state = if hook.hook.phases.is_empty() { "Skipped" } else { "Waiting" };
        let fresh = HookStatus {
            group: id.group.clone(),
            kind: id.kind.clone(),
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            phase: phase.to_owned(),
            run: self.view.content.clone(),
            state: state.to_owned(),
            file: hook.object.file.to_string(),
            line: hook.object.line,
            ..HookStatus::default()
        };
        let same =
            |known: &&HookStatus| known.phase == phase && known.run == self.view.content && known.id() == *id;
        let known = told.iter().find(same).cloned();
        known.map_or(fresh.clone(), |known| HookStatus { file: fresh.file, line: fresh.line, ..known })
    }

    fn leave(&mut self, gone: &HookGone) {
        let (Some(kind), Some(live)) = (gone.kind, &gone.live) else { return };
        if !is_ours(self.view, live) {
            return;
        }
        self.records.insert((gone.told.phase.clone(), gone.told.id()), gone.told.clone());
        if self.acts && !live.deleting && self.view.sourced.snapshot.is_some() {
            self.remove(gone.told.id(), kind, live, "no file has this hook any more".to_owned());
        }
    }

    /// Brings one phase as far as it gets now.
    pub(crate) fn phase(&mut self, phase: Phase) -> Progress {
        let mut groups: BTreeMap<i64, Vec<&'a HookView>> = BTreeMap::new();
        for hook in self.view.hooks.iter().filter(|hook| hook.hook.phases.contains(&phase)) {
            groups.entry(hook.hook.weight).or_default().push(hook);
        }
        for group in groups.values_mut() {
            group.sort_by_key(|hook| (order::rank(&hook.object.id.kind), hook.object.id.clone()));
            let ends: Vec<Progress> = group.iter().map(|hook| self.one(hook, phase)).collect();
            let failed = ends.iter().find(|end| matches!(end, Progress::Failed(_)));
            if let Some(open) = failed.or(ends.iter().find(|end| **end != Progress::Done)) {
                return open.clone();
            }
        }
        Progress::Done
    }

    /// The records, in a fixed order.
    pub(crate) fn records(self) -> Vec<HookStatus> {
        self.records.into_values().collect()
    }

    fn one(&mut self, hook: &HookView, phase: Phase) -> Progress {
        let key = (phase.spelled().to_owned(), hook.object.id.clone());
        let Some(mut record) = self.records.get(&key).cloned() else { return Progress::Done };
        let what = format!("the {} hook {}", phase.spelled(), hook.object.id);
        match record.state.as_str() {
            "Succeeded" | "Skipped" => {}
            "Failed" => {
                let due =
                    record.finished_at.parse().map_or(self.now, |at: Timestamp| at + retry(record.attempt));
                if (due > self.now && !self.view.hurried) || !self.acts {
                    self.look_again(due);
                } else {
                    self.begin(&mut record);
                }
            }
            "Running" => {}
            _ if !self.acts => return Progress::Waits(format!("{what} has not run yet")),
            _ => self.begin(&mut record),
        }
        if record.state == "Running" {
            self.watch(hook, &mut record);
        }
        self.tidy(hook, &record);
        let progress = match record.state.as_str() {
            "Succeeded" | "Skipped" => Progress::Done,
            "Failed" => Progress::Failed(format!("{what} failed: {}", record.message)),
            _ if record.message.is_empty() => Progress::Waits(format!("{what} to end")),
            _ => Progress::Waits(format!("{what}: {}", record.message)),
        };
        self.records.insert(key, record);
        progress
    }

    fn begin(&mut self, record: &mut HookStatus) {
        record.state = "Running".to_owned();
        record.message.clear();
        record.evidence.clear();
        record.attempt += 1;
        record.started_at = self.now.to_string();
        record.finished_at.clear();
    }

    /// Looks at a run that was begun.
    fn watch(&mut self, hook: &HookView, record: &mut HookStatus) {
        let run = run_name(record);
        if let Some((ended, health)) = &hook.ended
            && *ended == run
        {
            return self.finish(record, health);
        }
        match &hook.live {
            Some(live) if live.run.as_deref() == Some(&run) => match live.health.code {
                HealthCode::Healthy | HealthCode::Degraded => {
                    record.evidence.clone_from(&live.evidence);
                    self.finish(record, &live.health);
                }
                _ => record.message.clone_from(&live.health.message),
            },
            Some(live) => {
                record.message = "its earlier run has to be gone first".to_owned();
                if self.acts && !live.deleting {
                    self.remove(
                        hook.object.id.clone(),
                        hook.object.kind,
                        live,
                        "to run the hook again".to_owned(),
                    );
                }
            }
            None => match &hook.failure {
                Some(failure) if failure.retry_at > self.now => {
                    record.message = format!("cannot be made: {}", failure.defect.message);
                    self.look_again(failure.retry_at);
                }
                _ if self.acts => {
                    record.message.clear();
                    self.steps.push(Step::Apply(vec![marked(&hook.object, &run)]));
                }
                _ => {}
            },
        }
    }

    fn finish(&self, record: &mut HookStatus, health: &Health) {
        let state = if health.code == HealthCode::Healthy { "Succeeded" } else { "Failed" };
        record.state = state.to_owned();
        record.message.clone_from(&health.message);
        record.finished_at = self.now.to_string();
    }

    /// Deletes a run that has ended, where its policy says so.
    fn tidy(&mut self, hook: &HookView, record: &HookStatus) {
        let due = match record.state.as_str() {
            "Succeeded" => hook.hook.delete_on_success,
            "Failed" => hook.hook.delete_on_failure,
            _ => false,
        };
        let run = run_name(record);
        let live = hook.live.as_ref().filter(|live| live.run.as_deref() == Some(&run) && !live.deleting);
        if let (true, true, Some(live)) = (due, self.acts, live) {
            self.remove(hook.object.id.clone(), hook.object.kind, live, "its hook has ended".to_owned());
        }
    }

    fn remove(&mut self, id: crate::build::Id, kind: &'static Kind, live: &Live, why: String) {
        self.steps.push(Step::Delete(vec![Removal { id, kind, uid: live.uid.clone(), why, keep: false }]));
    }

    fn look_again(&mut self, at: Timestamp) {
        self.again = Some(self.again.map_or(at, |known| known.min(at)));
    }
}

fn run_name(record: &HookStatus) -> String {
    format!("{}.{}.{}", record.run, record.phase, record.attempt)
}

fn retry(attempt: u32) -> Duration {
    FIRST_RETRY.saturating_mul(2u32.saturating_pow(attempt.saturating_sub(1).min(16))).min(MOST_RETRY)
}

/// The object with the name of its run on it.
fn marked(object: &Object, run: &str) -> Object {
    let mut value: Value = (*object.value).clone();
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = meta.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(RUN.to_owned(), json!(run));
        }
    }
    Object { value: Arc::new(value), ..object.clone() }
}
