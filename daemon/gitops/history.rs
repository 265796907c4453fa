//! What every sync did, how long each part of it took and how it ended.
//!
//! Invariant: what happens after the first good end of a revision does not rewrite what it achieved.
//! Invariant: bounded: the last revisions, and of each the first objects.

use api::health::{Health, HealthCode};
use jiff::Timestamp;

use crate::build::Object;
use crate::decide::Choice;
use crate::hooks::Progress;
use crate::plan::{Round, Step, Verdict, View};
use crate::status::{MOST_HISTORY, Outcome, PhaseStatus, RevisionStatus, Status, Tally, seconds};
use crate::tell;

/// Objects remembered of one sync.
const MOST_OBJECTS: usize = 100;
/// Of how many syncs all of these are kept, and how many of those before.
const WHOLE: usize = 5;
const FEW_OBJECTS: usize = 10;

/// The history after this round.
pub(crate) fn carry(view: &View, round: &Round<'_>, status: &Status, now: Timestamp) -> Vec<RevisionStatus> {
    let mut history = view.told.history.clone();
    let Some(snapshot) = view.sourced.snapshot.as_ref().filter(|_| !status.sync.revision.is_empty()) else {
        return history;
    };
    if history.last().is_none_or(|last| last.revision != snapshot.revision) {
        if let Some(last) = history.last_mut().filter(|last| last.finished_at.is_empty()) {
            last.finished_at = seconds(now);
            close(last, now);
            "Superseded".clone_into(&mut last.result);
        }
        let trigger = match &view.choice.choice {
            Choice::Earlier { trigger, .. } => *trigger,
            _ => "",
        };
        history.push(RevisionStatus {
            revision: snapshot.revision.clone(),
            author: snapshot.author.clone().unwrap_or_default(),
            message: snapshot.message.clone().unwrap_or_default(),
            started_at: now.to_string(),
            trigger: trigger.to_owned(),
            ..RevisionStatus::default()
        });
        let surplus = history.len().saturating_sub(MOST_HISTORY);
        history.drain(..surplus);
        // The older a sync, the less is asked of its details.
        let old = history.len().saturating_sub(WHOLE);
        history[..old].iter_mut().for_each(|entry| entry.objects.truncate(FEW_OBJECTS));
    }
    let Some(last) = history.last_mut() else { return history };
    if last.result == "Healthy" {
        return history;
    }
    record(view, round, last);
    phase(round, last, now);
    if let Some(result) = result(view, round, status)
        && last.result != result
    {
        last.finished_at = now.to_string();
        if result == "Healthy" {
            close(last, now);
        }
        last.result = result;
    }
    history
}

fn result(view: &View, round: &Round<'_>, status: &Status) -> Option<String> {
    let failed = |progress: &Progress| match progress {
        Progress::Failed(why) => Some(format!("Failed: {why}")),
        _ => None,
    };
    if let Some(failed) = failed(&round.gate).or_else(|| failed(&round.after)) {
        return Some(failed);
    }
    if view.sourced.trouble.is_none() && !status.defects.is_empty() {
        return Some(format!("Failed: {}", status.sync.message));
    }
    if round.after != Progress::Done || status.objects.iter().any(|object| object.sync != "Synced") {
        return None;
    }
    match status.health.code.as_str() {
        "Healthy" | "Suspended" => Some("Healthy".to_owned()),
        "Degraded" => Some(format!("Degraded: {}", status.health.message)),
        _ => None,
    }
}

/// What this round does, added to what the revision did.
fn record(view: &View, round: &Round<'_>, entry: &mut RevisionStatus) {
    for wanted in &round.pending.apply {
        let did = match &wanted.verdict {
            Verdict::Missing => "created",
            Verdict::Failed(_) => continue,
            _ => "changed",
        };
        note(entry, outcome(&wanted.object, did, ""));
    }
    for removal in &round.pending.recreate {
        let from = view.desired.iter().find(|wanted| wanted.object.id == removal.id);
        if let Some(wanted) = from {
            note(entry, outcome(&wanted.object, "recreated", &removal.why));
        }
    }
    for wanted in &view.desired {
        if let Verdict::Failed(failure) = &wanted.verdict {
            note(entry, outcome(&wanted.object, "failed", &failure.defect.message));
        }
    }
    for step in &round.prunes {
        let Step::Delete(removals) = step else { continue };
        for removal in removals {
            let told = view.gone.iter().find(|gone| gone.told.id() == removal.id);
            let from = told.map(|gone| format!("{}:{}", gone.told.file, gone.told.line)).unwrap_or_default();
            let object = removal.id.to_string();
            note(entry, Outcome { object, did: "pruned".to_owned(), from, message: String::new() });
        }
    }
}

fn outcome(object: &Object, did: &str, message: &str) -> Outcome {
    Outcome {
        object: object.id.to_string(),
        did: did.to_owned(),
        from: format!("{}:{}", object.file, object.line),
        message: message.to_owned(),
    }
}

fn note(entry: &mut RevisionStatus, outcome: Outcome) {
    match entry.objects.iter_mut().find(|known| known.object == outcome.object) {
        Some(known) if known.did == outcome.did => known.message = outcome.message,
        Some(known) => {
            count(&mut entry.did, &known.did, false);
            count(&mut entry.did, &outcome.did, true);
            *known = outcome;
        }
        None => {
            count(&mut entry.did, &outcome.did, true);
            if entry.objects.len() < MOST_OBJECTS {
                entry.objects.push(outcome);
            }
        }
    }
}

fn count(tally: &mut Tally, did: &str, up: bool) {
    let number = match did {
        "created" => &mut tally.created,
        "pruned" => &mut tally.pruned,
        "failed" => &mut tally.failed,
        _ => &mut tally.changed,
    };
    *number = if up { number.saturating_add(1) } else { number.saturating_sub(1) };
}

fn phase(round: &Round<'_>, entry: &mut RevisionStatus, now: Timestamp) {
    let name = match (&round.gate, round.settled, &round.after) {
        (Progress::Waits(_) | Progress::Failed(_), _, _) => "pre-sync",
        (_, false, _) if round.pending.is_open() => "apply",
        (_, false, _) => "health",
        (_, _, Progress::Waits(_) | Progress::Failed(_)) => "post-sync",
        _ => return,
    };
    if entry.phases.last().is_some_and(|last| last.name == name) || entry.phases.len() > 20 {
        return;
    }
    close(entry, now);
    entry.phases.push(PhaseStatus { name: name.to_owned(), started_at: now.to_string(), milliseconds: 0 });
}

/// The last phase is over.
fn close(entry: &mut RevisionStatus, now: Timestamp) {
    let Some(last) = entry.phases.last_mut().filter(|last| last.milliseconds == 0) else { return };
    let begun = last.started_at.parse::<Timestamp>().unwrap_or(now);
    last.milliseconds = u64::try_from(now.duration_since(begun).as_millis()).unwrap_or(0).max(1);
}

/// Whether a finished Job is deleted by its own word: gone means done then, not drift.
pub(crate) fn takes_itself_away(object: &Object) -> bool {
    object.id.kind == "Job" && object.value["spec"]["ttlSecondsAfterFinished"].is_number()
}

/// How a Job ended, as it is remembered.
pub(crate) fn ended(health: &Health) -> String {
    match health.code {
        HealthCode::Healthy => format!("Complete: {}", health.message),
        _ => format!("Failed: {}", health.message),
    }
}

/// The same, read again.
pub(crate) fn read_end(text: &str) -> Option<Health> {
    let (word, message) = text.split_once(": ")?;
    let code = if word == "Complete" { HealthCode::Healthy } else { HealthCode::Degraded };
    Some(Health { code, message: message.to_owned() })
}

/// Whether the inventory knows this very text as applied.
pub(crate) fn was_applied(told: Option<&crate::status::ObjectStatus>, object: &Object) -> bool {
    told.is_some_and(|told| told.applied == tell::mark(object.hash))
}
