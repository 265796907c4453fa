//! What a round makes of an application: its status, which is what people and the next round read. Pure.
//!
//! Invariant: equal views give equal statuses: nothing is told that is no news.

use std::collections::BTreeMap;

use api::health::{Health, HealthCode};
use jiff::Timestamp;

use crate::build::{Defect, Id};
use crate::decide::{Choice, short};
use crate::guard::Hold;
use crate::history;
use crate::hooks::Progress;
use crate::plan::{Failure, Gone, Pending, Round, Verdict, View, Wanted, is_ours};
use crate::status::{HealthStatus, ObjectStatus, Status, SyncStatus, spell};

/// The status to tell.
pub(crate) fn status(view: &View, round: &Round<'_>, now: Timestamp) -> Status {
    let known = view.told.inventory();
    let mut objects: Vec<ObjectStatus> = view
        .desired
        .iter()
        .map(|wanted| wanted_status(wanted, &round.pending, known.get(&wanted.object.id).copied()))
        .collect();
    let worst = worst(view, &objects);
    objects.extend(view.gone.iter().filter_map(|gone| gone_status(view, gone, &round.holds)));
    objects.sort_by_cached_key(ObjectStatus::id);
    let mut defects = view.defects.clone();
    defects.extend(view.desired.iter().filter_map(|wanted| match &wanted.verdict {
        Verdict::Failed(Failure { defect, .. }) | Verdict::Taken(defect) => Some(defect.clone()),
        _ => None,
    }));
    defects.sort();
    for object in &mut objects {
        object.health.carry(known.get(&object.id()).map(|known| &known.health), now);
    }
    let mut worst = worst;
    worst.carry(Some(&view.told.health), now);
    let mut status = Status { source: view.source.clone(), health: worst, defects, ..Status::default() };
    status.advice.clone_from(&view.advice);
    status.sync = sync(view, round, &objects, &status.defects);
    status.decisions = round.decisions.clone();
    let ours: Vec<String> = view.gone.iter().map(|gone| gone.told.id().to_string()).collect();
    status.decisions.confirmed.retain(|known| ours.contains(known));
    status.hooks.clone_from(&round.hooks);
    status.objects = objects;
    status.history = history::carry(view, round, &status, now);
    status.carry(&view.told, now);
    status
}

fn wanted_status(wanted: &Wanted, pending: &Pending<'_>, known: Option<&ObjectStatus>) -> ObjectStatus {
    let object = &wanted.object;
    let (sync, message) = match &wanted.verdict {
        Verdict::Same if wanted.live.as_ref().is_none_or(|live| live.deleting) => {
            ("OutOfSync", String::new())
        }
        Verdict::Same | Verdict::Ended(_) => ("Synced", String::new()),
        Verdict::Left => ("Synced", "left alone, as its annotation says".to_owned()),
        Verdict::Missing | Verdict::Differs => ("OutOfSync", String::new()),
        Verdict::Immutable(why) => ("OutOfSync", why.clone()),
        Verdict::Failed(Failure { defect, .. }) | Verdict::Taken(defect) => {
            ("Failed", defect.message.clone())
        }
    };
    let missing = |message: &str| HealthStatus::new("Missing", message);
    let health = match (&wanted.live, &wanted.verdict) {
        (_, Verdict::Ended(health)) => HealthStatus::from(health),
        (Some(live), _) => {
            HealthStatus { evidence: live.evidence.clone(), ..HealthStatus::from(&live.health) }
        }
        (None, Verdict::Left) => HealthStatus::new("Healthy", "not there"),
        (None, Verdict::Failed(failure)) => missing(&failure.defect.message),
        (None, _) => missing("not created yet"),
    };
    let told = known.map(|known| (known.applied.clone(), known.ended.clone())).unwrap_or_default();
    let applied = match &wanted.verdict {
        Verdict::Same => mark(object.hash),
        _ => told.0,
    };
    let ended = match &wanted.verdict {
        Verdict::Ended(health) => history::ended(health),
        Verdict::Same if history::takes_itself_away(object) => wanted.live.as_ref().map_or(told.1, |live| {
            let finished = matches!(live.health.code, HealthCode::Healthy | HealthCode::Degraded);
            if finished { history::ended(&live.health) } else { String::new() }
        }),
        _ => String::new(),
    };
    ObjectStatus {
        group: object.id.group.clone(),
        version: object.kind.version.clone(),
        kind: object.id.kind.clone(),
        namespace: object.id.namespace.clone(),
        name: object.id.name.clone(),
        sync: sync.to_owned(),
        message,
        health,
        file: object.file.to_string(),
        line: object.line,
        waits_for: pending.waits.get(&object.id).cloned().unwrap_or_default(),
        applied,
        ended,
        healed: wanted.healed.clone().or_else(|| known.map(|known| known.healed.clone())).unwrap_or_default(),
        confirm: false,
    }
}

/// A hash as the inventory remembers it.
pub(crate) fn mark(hash: u64) -> String {
    format!("{hash:016x}")
}

/// Nothing for what is gone for good or belongs to somebody else now: it leaves the inventory.
fn gone_status(view: &View, gone: &Gone, holds: &BTreeMap<Id, Hold>) -> Option<ObjectStatus> {
    let read = view.sourced.snapshot.is_some();
    let Some(live) = &gone.live else { return (!read).then(|| gone.told.clone()) };
    if !is_ours(view, live) {
        return None;
    }
    let hold = holds.get(&gone.told.id());
    let (sync, message) = match hold {
        _ if live.deleting => ("Pruning", String::new()),
        Some(hold) if !read => ("Unknown", hold.why.clone()),
        Some(hold) => ("OutOfSync", format!("not pruned: {}", hold.why)),
        None => ("Pruning", String::new()),
    };
    Some(ObjectStatus {
        sync: sync.to_owned(),
        message,
        health: HealthStatus::from(&live.health),
        waits_for: String::new(),
        confirm: hold.is_some_and(|hold| hold.confirm) && !live.deleting,
        ..gone.told.clone()
    })
}

/// The worst health of what is wanted; before the source was read, of what is in the inventory.
fn worst(view: &View, wanted: &[ObjectStatus]) -> HealthStatus {
    let mut worst: Option<(HealthCode, String, String)> = None;
    let mut consider = |code: HealthCode, what: String, message: String| {
        if worst.as_ref().is_none_or(|(known, _, _)| code > *known) {
            worst = Some((code, what, message));
        }
    };
    for (object, status) in view.desired.iter().zip(wanted) {
        let code = match (&object.verdict, &object.live) {
            (Verdict::Ended(health), _) => health.code,
            (Verdict::Left, None) => HealthCode::Healthy,
            (_, live) => live.as_ref().map_or(HealthCode::Missing, |live| live.health.code),
        };
        consider(code, object.object.id.to_string(), status.health.message.clone());
    }
    let still_meant =
        |gone: &&Gone| view.sourced.snapshot.is_none() || view.kept_back.contains_key(&gone.told.id());
    for gone in view.gone.iter().filter(still_meant) {
        let health = gone.live.as_ref().map(|live| live.health.clone());
        let health = health.unwrap_or(Health { code: HealthCode::Missing, message: "not there".to_owned() });
        consider(health.code, gone.told.id().to_string(), health.message);
    }
    match worst {
        Some((HealthCode::Healthy, _, _)) => HealthStatus::new("Healthy", ""),
        None if view.sourced.snapshot.is_none() => HealthStatus::default(),
        None => HealthStatus::new("Healthy", ""),
        Some((code, what, message)) => {
            let message = if message.is_empty() { what } else { format!("{what}: {message}") };
            HealthStatus::new(spell(code), &message)
        }
    }
}

fn sync(view: &View, round: &Round<'_>, objects: &[ObjectStatus], defects: &[Defect]) -> SyncStatus {
    let (revision, waits_for) = match &view.choice.choice {
        Choice::None { why } => (String::new(), why.clone()),
        Choice::Earlier { why, .. } => (held(view), why.clone()),
        Choice::Newest => (held(view), view.blocked.clone().unwrap_or_default()),
    };
    let (state, message) = match (&view.sourced.trouble, &view.sourced.snapshot) {
        (Some(trouble), Some(_)) => {
            ("Failed", format!("the source cannot be read, its last good state stays: {trouble}"))
        }
        (Some(trouble), None) => ("Failed", format!("the source cannot be read: {trouble}")),
        (None, None) => ("Unknown", "the source was not read yet".to_owned()),
        (None, Some(_)) => match defects {
            [] => choice(view, round, objects),
            [only] => ("Failed", only.to_string()),
            [first, ..] => ("Failed", format!("{} defects, the first: {first}", defects.len())),
        },
    };
    let message = if view.application.suspend { format!("suspended; {message}") } else { message };
    SyncStatus { state: state.to_owned(), revision, message, waits_for }
}

/// The revision whose objects are in the view.
pub(crate) fn held(view: &View) -> String {
    view.sourced.snapshot.as_ref().map(|snapshot| snapshot.revision.clone()).unwrap_or_default()
}

fn choice(view: &View, round: &Round<'_>, objects: &[ObjectStatus]) -> (&'static str, String) {
    let (state, message) = hooks(round, objects);
    match &view.choice.choice {
        Choice::None { why } => ("OutOfSync", why.clone()),
        Choice::Earlier { why, trigger: "automatic rollback", .. } => {
            ("Failed", format!("{why}; rolled back to {}, the next commit is tried", short(&held(view))))
        }
        Choice::Earlier { why, trigger: "rollback", .. } if state == "Synced" => {
            ("Synced", format!("{message} at {}; {why}, the next commit is tried", short(&held(view))))
        }
        Choice::Earlier { why, .. } if state == "Synced" => ("OutOfSync", why.clone()),
        _ if view.leaving => {
            ("OutOfSync", format!("no longer declared: everything of it is deleted; {message}"))
        }
        _ => (state, message),
    }
}

/// The objects alone are not all: a sync ends with its hooks.
fn hooks(round: &Round<'_>, objects: &[ObjectStatus]) -> (&'static str, String) {
    match (&round.gate, &round.after) {
        (Progress::Failed(why), _) | (_, Progress::Failed(why)) => ("Failed", why.clone()),
        (Progress::Waits(why), _) => ("OutOfSync", format!("waits for {why}")),
        (_, Progress::Waits(why)) => match open(objects) {
            ("Synced", _) => ("OutOfSync", format!("waits for {why}")),
            other => other,
        },
        _ => open(objects),
    }
}

fn open(objects: &[ObjectStatus]) -> (&'static str, String) {
    let count = |sync: &str| objects.iter().filter(|object| object.sync == sync).count();
    let (apply, prune, all) = (count("OutOfSync"), count("Pruning"), objects.len());
    let held = objects.iter().find(|object| object.message.starts_with("not pruned"));
    match (apply, prune, held) {
        (0, 0, None) if all == 1 => ("Synced", "1 object as the files say".to_owned()),
        (0, 0, _) => ("Synced", format!("{all} objects as the files say")),
        (_, _, Some(held)) => ("OutOfSync", format!("{} {}: {}", held.kind, held.name, held.message)),
        (apply, 0, _) => ("OutOfSync", format!("{apply} of {all} objects to apply")),
        (0, prune, _) => ("OutOfSync", format!("{prune} of {all} objects to prune")),
        (apply, prune, _) => ("OutOfSync", format!("{apply} of {all} objects to apply, {prune} to prune")),
    }
}
