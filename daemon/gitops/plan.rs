//! Desired × live × inventory → what to do next, and what to tell. Pure.
//!
//! Invariant: a plan is made from what is, not from what a plan before it meant to do: the newest revision wins at once.
//! Invariant: nothing is pruned that a person may still have meant to keep.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::health::{Health, HealthCode};
use api::kinds::Kind;
use jiff::Timestamp;
use reconcile::Plan;

use crate::build::{Defect, Id, Object};
use crate::config::Application;
use crate::order;
use crate::source::Sourced;
use crate::status::{HealthStatus, ObjectStatus, Source, Status, SyncStatus};

/// Health may flutter; it is told at most this often.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Everything that a plan looks at.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) application: Application,
    pub(crate) source: Source,
    pub(crate) sourced: Arc<Sourced>,
    pub(crate) desired: Vec<Wanted>,
    pub(crate) defects: Vec<Defect>,
    pub(crate) kept_back: BTreeMap<Id, Arc<str>>,
    pub(crate) unread: BTreeMap<Arc<str>, Arc<[u8]>>,
    /// In the inventory, no longer wanted.
    pub(crate) gone: Vec<Gone>,
    /// What was told last, and when.
    pub(crate) told: Status,
    pub(crate) told_at: Option<Timestamp>,
}

/// An object the files want.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) object: Object,
    pub(crate) live: Option<Live>,
    pub(crate) verdict: Verdict,
}

/// An object of the inventory that the files want no more.
#[derive(Debug)]
pub(crate) struct Gone {
    pub(crate) told: ObjectStatus,
    pub(crate) kind: Option<&'static Kind>,
    pub(crate) live: Option<Live>,
}

/// What is live of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Live {
    pub(crate) uid: String,
    /// The application its label names.
    pub(crate) owner: Option<String>,
    pub(crate) deleting: bool,
    pub(crate) health: Health,
}

/// What a dry run, or the last try, said of a wanted object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// There is none.
    Missing,
    /// Applying it would change nothing.
    Same,
    /// Applying it would change something.
    Differs,
    /// It differs in what cannot change, and may be made anew.
    Immutable(String),
    /// The last try failed.
    Failed(Failure),
    /// Another application has it.
    Taken(Defect),
}

/// A try that failed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    /// The desired state that was tried.
    pub(crate) hash: u64,
    pub(crate) defect: Defect,
    pub(crate) tries: u32,
    pub(crate) retry_at: Timestamp,
}

/// One effect.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Tell this status.
    Report(Box<Status>),
    /// Apply these, in any order.
    Apply(Vec<Object>),
    /// Delete these, in any order.
    Delete(Vec<Removal>),
}

/// An object to delete.
#[derive(Debug, Clone)]
pub(crate) struct Removal {
    pub(crate) id: Id,
    pub(crate) kind: &'static Kind,
    /// Only the very object that was looked at.
    pub(crate) uid: String,
    pub(crate) why: String,
}

impl PartialEq for Removal {
    fn eq(&self, other: &Removal) -> bool {
        std::ptr::eq(self.kind, other.kind)
            && self.id == other.id
            && self.uid == other.uid
            && self.why == other.why
    }
}

/// Decides what to do for one application.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    if *view.sourced == Sourced::default() && view.told != Status::default() {
        // The source has not spoken yet: what an earlier daemon told still holds.
        return Plan::empty();
    }
    let pending = pending(view, now);
    let holds: BTreeMap<Id, String> =
        view.gone.iter().filter_map(|gone| Some((gone.told.id(), prune_hold(view, gone)?))).collect();
    let status = status(view, &pending, &holds, now);
    let mut steps = Vec::new();
    let mut again = Vec::new();
    match report(view, &status, now) {
        Report::Now => steps.push(Step::Report(Box::new(status))),
        Report::At(at) => again.push(at),
        Report::Nothing => {}
    }
    if !view.application.suspend {
        let told = steps.len();
        steps.extend(pending.apply_steps());
        if !pending.recreate.is_empty() {
            steps.push(Step::Delete(pending.recreate.clone()));
        }
        if pending.apply.is_empty() && pending.recreate.is_empty() {
            steps.extend(prune_steps(view, &holds));
        }
        if steps.len() > told {
            again.push(now);
        }
        again.extend(pending.retry_at);
    }
    again.into_iter().fold(Plan::in_turn(steps), Plan::again_at)
}

/// What of the desired objects is to be done now, and what has to wait.
#[derive(Debug, Default)]
struct Pending<'a> {
    apply: Vec<&'a Wanted>,
    recreate: Vec<Removal>,
    /// What an object waits for.
    waits: BTreeMap<&'a Id, String>,
    retry_at: Option<Timestamp>,
}

impl Pending<'_> {
    /// Grouped by wave and kind: what others need is there before them.
    fn apply_steps(&self) -> Vec<Step> {
        let mut groups: BTreeMap<(i64, usize), Vec<Object>> = BTreeMap::new();
        for wanted in &self.apply {
            let kind = &wanted.object.id.kind;
            let place = (order::wave(kind, wanted.object.wave), order::rank(kind));
            groups.entry(place).or_default().push(wanted.object.clone());
        }
        groups.into_values().map(Step::Apply).collect()
    }
}

fn pending(view: &View, now: Timestamp) -> Pending<'_> {
    let mut pending = Pending::default();
    let mut waves: BTreeMap<i64, Vec<&Wanted>> = BTreeMap::new();
    for wanted in &view.desired {
        waves.entry(order::wave(&wanted.object.id.kind, wanted.object.wave)).or_default().push(wanted);
    }
    let absent = absent_namespaces(view);
    let mut held_by: Option<String> = None;
    for (number, wave) in waves {
        let mut unsettled = None;
        for wanted in wave {
            let id = &wanted.object.id;
            let hold = held_by.clone().or_else(|| {
                let absent = absent.contains(id.namespace.as_str());
                absent.then(|| format!("Namespace {}", id.namespace))
            });
            if let (Some(first), true) = (hold, wanted.verdict != Verdict::Same) {
                pending.waits.insert(id, first);
                continue;
            }
            look(wanted, now, &mut pending);
            let settled = wanted.verdict == Verdict::Same
                && wanted
                    .live
                    .as_ref()
                    .is_some_and(|live| live.health.code <= HealthCode::Suspended && !live.deleting);
            // Namespaces are made by the same plan, before all others.
            if !settled && number != i64::MIN {
                unsettled.get_or_insert_with(|| format!("{id} of an earlier wave"));
            }
        }
        held_by = held_by.or(unsettled);
    }
    pending
}

/// Namespaces of ours in which nothing can be made now.
fn absent_namespaces(view: &View) -> BTreeSet<&str> {
    let ours = view.desired.iter().filter(|wanted| wanted.object.id.kind == "Namespace");
    let absent = ours.filter(|wanted| match (&wanted.verdict, &wanted.live) {
        (Verdict::Failed(_), None) => true,
        (_, live) => live.as_ref().is_some_and(|live| live.deleting),
    });
    absent.map(|wanted| wanted.object.id.name.as_str()).collect()
}

fn look<'a>(wanted: &'a Wanted, now: Timestamp, pending: &mut Pending<'a>) {
    let id = &wanted.object.id;
    if wanted.live.as_ref().is_some_and(|live| live.deleting) {
        pending.waits.insert(id, "the old one to be gone".to_owned());
        return;
    }
    match &wanted.verdict {
        Verdict::Same => {}
        Verdict::Missing | Verdict::Differs => pending.apply.push(wanted),
        Verdict::Immutable(why) => {
            if let Some(live) = &wanted.live {
                pending.waits.insert(id, format!("being made anew: {why}"));
                pending.recreate.push(Removal {
                    id: id.clone(),
                    kind: wanted.object.kind,
                    uid: live.uid.clone(),
                    why: format!("to be made anew: {why}"),
                });
            }
        }
        Verdict::Taken(_) => {}
        Verdict::Failed(failure) if failure.retry_at <= now => pending.apply.push(wanted),
        Verdict::Failed(failure) => {
            pending.retry_at = Some(pending.retry_at.map_or(failure.retry_at, |at| at.min(failure.retry_at)));
        }
    }
}

/// Why an object that is no longer wanted is not deleted; nothing if it may be.
pub(crate) fn prune_hold(view: &View, gone: &Gone) -> Option<String> {
    let id = gone.told.id();
    if view.sourced.snapshot.is_none() {
        return Some("the source was not read yet".to_owned());
    }
    if !view.application.prune {
        return Some("prune is off for this application".to_owned());
    }
    if view.kept_back.contains_key(&id) {
        return Some(format!("its text in {} has a defect", gone.told.file));
    }
    for (file, bytes) in &view.unread {
        let below = file.ends_with('/') && gone.told.file.starts_with(&**file);
        if gone.told.file == **file || below {
            return Some(format!("{file} cannot be read"));
        }
        if mentions(bytes, &id.name) {
            return Some(format!("{file}, which cannot be read, names it"));
        }
    }
    // Renamed in its file, and the new one cannot be made: the old one serves until it can.
    let replaces = |other: &Id, file: &str| {
        other.kind == id.kind
            && other.group == id.group
            && other.namespace == id.namespace
            && file == gone.told.file
    };
    let absent = |wanted: &&Wanted| matches!(wanted.verdict, Verdict::Failed(_)) && wanted.live.is_none();
    let failed = view.desired.iter().filter(absent).map(|wanted| (&wanted.object.id, &wanted.object.file));
    let known = view.told.inventory();
    let fresh = view.kept_back.iter().filter(|(other, _)| !known.contains_key(other));
    let successor = failed.chain(fresh).find(|(other, file)| replaces(other, file)).map(|(other, _)| other);
    if let Some(successor) = successor {
        return Some(format!("{successor}, which may be meant to replace it, is not there yet"));
    }
    if view.desired.is_empty() && view.kept_back.is_empty() && !view.application.allow_empty {
        return Some("nothing is left in the source; allow_empty = true would delete all of it".to_owned());
    }
    None
}

fn mentions(text: &[u8], name: &str) -> bool {
    let inside = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'.';
    let name = name.as_bytes();
    text.windows(name.len().max(1)).enumerate().any(|(at, window)| {
        window == name
            && !at.checked_sub(1).and_then(|before| text.get(before)).is_some_and(inside)
            && !text.get(at + name.len()).is_some_and(inside)
    })
}

/// Whether the object that is live was made for this application.
fn is_ours(view: &View, live: &Live) -> bool {
    live.owner.as_deref() == Some(view.application.name.as_str())
}

fn prune_steps(view: &View, holds: &BTreeMap<Id, String>) -> Vec<Step> {
    let mut groups: BTreeMap<std::cmp::Reverse<usize>, Vec<Removal>> = BTreeMap::new();
    for gone in &view.gone {
        let id = gone.told.id();
        let (Some(kind), Some(live)) = (gone.kind, &gone.live) else { continue };
        if live.deleting || !is_ours(view, live) || holds.contains_key(&id) {
            continue;
        }
        let why = format!("{} no longer wants it", view.application.name);
        let removal = Removal { kind, uid: live.uid.clone(), why, id };
        groups.entry(std::cmp::Reverse(order::rank(&removal.id.kind))).or_default().push(removal);
    }
    groups.into_values().map(Step::Delete).collect()
}

enum Report {
    Now,
    At(Timestamp),
    Nothing,
}

/// News about the inventory or the sync is told at once, since it has to be known before it is acted on.
fn report(view: &View, status: &Status, now: Timestamp) -> Report {
    if *status == view.told {
        return Report::Nothing;
    }
    let told = &view.told;
    let inventory = |status: &Status| status.objects.iter().map(ObjectStatus::id).collect::<Vec<Id>>();
    let urgent = told.sync.state != status.sync.state
        || told.health.code != status.health.code
        || told.source.revision != status.source.revision
        || inventory(told) != inventory(status);
    match view.told_at.map(|at| at + REPORT_EVERY) {
        Some(due) if !urgent && due > now => Report::At(due),
        _ => Report::Now,
    }
}

fn status(view: &View, pending: &Pending<'_>, holds: &BTreeMap<Id, String>, now: Timestamp) -> Status {
    let mut objects: Vec<ObjectStatus> =
        view.desired.iter().map(|wanted| wanted_status(wanted, pending)).collect();
    let worst = worst(view, &objects);
    objects.extend(view.gone.iter().filter_map(|gone| gone_status(view, gone, holds)));
    objects.sort_by_cached_key(ObjectStatus::id);
    let mut defects = view.defects.clone();
    defects.extend(view.desired.iter().filter_map(|wanted| match &wanted.verdict {
        Verdict::Failed(Failure { defect, .. }) | Verdict::Taken(defect) => Some(defect.clone()),
        _ => None,
    }));
    defects.sort();
    let mut status = Status { source: view.source.clone(), health: worst, defects, ..Status::default() };
    status.sync = sync(view, &objects, &status.defects);
    status.objects = objects;
    status.carry(&view.told, now);
    status
}

fn wanted_status(wanted: &Wanted, pending: &Pending<'_>) -> ObjectStatus {
    let object = &wanted.object;
    let (sync, message) = match &wanted.verdict {
        Verdict::Same if wanted.live.as_ref().is_none_or(|live| live.deleting) => {
            ("OutOfSync", String::new())
        }
        Verdict::Same => ("Synced", String::new()),
        Verdict::Missing | Verdict::Differs => ("OutOfSync", String::new()),
        Verdict::Immutable(why) => ("OutOfSync", why.clone()),
        Verdict::Failed(Failure { defect, .. }) | Verdict::Taken(defect) => {
            ("Failed", defect.message.clone())
        }
    };
    let health = match (&wanted.live, &wanted.verdict) {
        (Some(live), _) => HealthStatus::from(&live.health),
        (None, Verdict::Failed(failure)) => {
            HealthStatus { code: "Missing".to_owned(), message: failure.defect.message.clone() }
        }
        (None, _) => HealthStatus { code: "Missing".to_owned(), message: "not created yet".to_owned() },
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
    }
}

/// Nothing for what is gone for good or belongs to somebody else now: it leaves the inventory.
fn gone_status(view: &View, gone: &Gone, holds: &BTreeMap<Id, String>) -> Option<ObjectStatus> {
    let read = view.sourced.snapshot.is_some();
    let Some(live) = &gone.live else { return (!read).then(|| gone.told.clone()) };
    if !is_ours(view, live) {
        return None;
    }
    let (sync, message) = match holds.get(&gone.told.id()) {
        _ if live.deleting => ("Pruning", String::new()),
        Some(hold) if !read => ("Unknown", hold.clone()),
        Some(hold) => ("OutOfSync", format!("not pruned: {hold}")),
        None => ("Pruning", String::new()),
    };
    Some(ObjectStatus {
        sync: sync.to_owned(),
        message,
        health: HealthStatus::from(&live.health),
        waits_for: String::new(),
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
        let code = object.live.as_ref().map_or(HealthCode::Missing, |live| live.health.code);
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
        Some((HealthCode::Healthy, _, _)) => {
            HealthStatus { code: "Healthy".to_owned(), message: String::new() }
        }
        None if view.sourced.snapshot.is_none() => HealthStatus::default(),
        None => HealthStatus { code: "Healthy".to_owned(), message: String::new() },
        Some((code, what, message)) => {
            let message = if message.is_empty() { what } else { format!("{what}: {message}") };
            HealthStatus { code: crate::status::spell(code).to_owned(), message }
        }
    }
}

fn sync(view: &View, objects: &[ObjectStatus], defects: &[Defect]) -> SyncStatus {
    let revision =
        view.sourced.snapshot.as_ref().map(|snapshot| snapshot.revision.clone()).unwrap_or_default();
    let (state, message) = match (&view.sourced.trouble, &view.sourced.snapshot) {
        (Some(trouble), Some(_)) => {
            ("Failed", format!("the source cannot be read, its last good state stays: {trouble}"))
        }
        (Some(trouble), None) => ("Failed", format!("the source cannot be read: {trouble}")),
        (None, None) => ("Unknown", "the source was not read yet".to_owned()),
        (None, Some(_)) => match defects {
            [] => open(objects),
            [only] => ("Failed", only.to_string()),
            [first, ..] => ("Failed", format!("{} defects, the first: {first}", defects.len())),
        },
    };
    let message = if view.application.suspend { format!("suspended; {message}") } else { message };
    SyncStatus { state: state.to_owned(), revision, message }
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

#[cfg(test)]
mod tests;
