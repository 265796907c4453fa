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
use crate::decide::{self, Choice, Chosen};
use crate::guard::{self, Hold};
use crate::hooks::{HookGone, HookView, Progress, Runner};
use crate::marks::{Phase, Prune};
use crate::source::Sourced;
use crate::status::{Decisions, HookStatus, ObjectStatus, Source, Status};
use crate::{order, tell};

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
    /// What works, but should be written otherwise.
    pub(crate) advice: Vec<Defect>,
    pub(crate) kept_back: BTreeMap<Id, Arc<str>>,
    pub(crate) unread: BTreeMap<Arc<str>, Arc<[u8]>>,
    /// In the inventory, no longer wanted.
    pub(crate) gone: Vec<Gone>,
    /// The newest revision of the source, whichever is held.
    pub(crate) newest: String,
    pub(crate) choice: Chosen,
    pub(crate) decisions: Decisions,
    /// The application that this one waits for.
    pub(crate) blocked: Option<String>,
    /// A person asked for a sync.
    pub(crate) hurried: bool,
    /// Not declared any more: everything goes.
    pub(crate) leaving: bool,
    /// Names what the files say; the same content runs a hook once.
    pub(crate) content: String,
    pub(crate) hooks: Vec<HookView>,
    pub(crate) hooks_gone: Vec<HookGone>,
    /// What was told last, and when.
    pub(crate) told: Arc<Status>,
    pub(crate) told_at: Option<Timestamp>,
}

/// An object the files want.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) object: Object,
    pub(crate) live: Option<Live>,
    pub(crate) verdict: Verdict,
    /// The hash of the text that was applied last.
    pub(crate) known: u64,
    /// What was put back since it was told last.
    pub(crate) healed: Option<String>,
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
    /// What its annotations say of pruning.
    pub(crate) prune: Prune,
    /// The run of a hook that it was made for.
    pub(crate) run: Option<String>,
    /// What its failing container said last.
    pub(crate) evidence: Vec<String>,
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
    /// A Job that ended and took itself away.
    Ended(Health),
    /// Its annotation says that it is left alone.
    Left,
}

impl Verdict {
    /// Nothing is to be done.
    pub(crate) fn is_good(&self) -> bool {
        matches!(self, Verdict::Same | Verdict::Ended(_) | Verdict::Left)
    }
}

impl Wanted {
    /// As the files say, and healthy.
    pub(crate) fn is_settled(&self) -> bool {
        match (&self.verdict, &self.live) {
            (Verdict::Ended(health), _) => health.code <= HealthCode::Suspended,
            (Verdict::Left, None) => true,
            (Verdict::Same | Verdict::Left, Some(live)) => {
                live.health.code <= HealthCode::Suspended && !live.deleting
            }
            _ => false,
        }
    }

    /// It cannot be applied, or does not get well by itself.
    pub(crate) fn is_failed(&self) -> bool {
        let refused = matches!(&self.verdict, Verdict::Failed(failure) if failure.tries > 2);
        let ended = matches!(&self.verdict, Verdict::Ended(health) if health.code == HealthCode::Degraded);
        refused || ended || self.live.as_ref().is_some_and(|live| live.health.code == HealthCode::Degraded)
    }
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
    /// Delete the application's own object: nothing of it is left.
    Forget,
}

/// An object to delete.
#[derive(Debug, Clone)]
pub(crate) struct Removal {
    pub(crate) id: Id,
    pub(crate) kind: &'static Kind,
    /// Only the very object that was looked at.
    pub(crate) uid: String,
    pub(crate) why: String,
    /// Whether it is kept for a while, to be brought back.
    pub(crate) keep: bool,
}

impl PartialEq for Removal {
    fn eq(&self, other: &Removal) -> bool {
        std::ptr::eq(self.kind, other.kind)
            && self.id == other.id
            && self.uid == other.uid
            && self.why == other.why
            && self.keep == other.keep
    }
}

/// Decides what to do for one application.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    if *view.sourced == Sourced::default() && *view.told != Status::default() {
        // The source has not spoken yet: what an earlier daemon told still holds.
        return Plan::empty();
    }
    let (decisions, due) = decide::judge(&view.application, &view.told, &view.decisions, &view.newest, now);
    // Another revision is held from the next round on.
    let turns = decisions.pinned != view.decisions.pinned;
    let acts = !view.application.suspend && !turns && !matches!(view.choice.choice, Choice::None { .. });
    let round = Round::new(view, decisions, acts, now);
    let status = tell::status(view, &round, now);
    let mut steps = Vec::new();
    let mut again: Vec<Timestamp> = due.into_iter().chain(view.choice.until).collect();
    match report(view, &status, now) {
        Report::Now => steps.push(Step::Report(Box::new(status))),
        Report::At(at) => again.push(at),
        Report::Nothing => {}
    }
    if acts {
        let told = steps.len();
        steps.extend(round.steps(view));
        if steps.len() > told {
            again.push(now);
        }
        again.extend(round.pending.retry_at);
        again.extend(round.hooks_again);
    }
    if turns {
        again.push(now);
    }
    again.into_iter().fold(Plan::in_turn(steps), Plan::again_at)
}

/// What one round found out, before it is told and done.
pub(crate) struct Round<'a> {
    pub(crate) pending: Pending<'a>,
    pub(crate) holds: BTreeMap<Id, Hold>,
    pub(crate) decisions: Decisions,
    /// Before the objects: hooks.
    pub(crate) gate: Progress,
    /// After the objects: hooks.
    pub(crate) after: Progress,
    /// Every object is as wanted and healthy.
    pub(crate) settled: bool,
    pub(crate) hooks: Vec<HookStatus>,
    pub(crate) prunes: Vec<Step>,
    hook_steps: Vec<Step>,
    hooks_again: Option<Timestamp>,
}

impl<'a> Round<'a> {
    fn new(view: &'a View, decisions: Decisions, acts: bool, now: Timestamp) -> Round<'a> {
        let holds = guard::holds(view);
        let may_run = acts && view.blocked.is_none() && view.sourced.snapshot.is_some();
        let mut runner = Runner::new(view, may_run, now);
        let gate = runner.phase(if view.leaving { Phase::PreDelete } else { Phase::PreSync });
        let hold = match (&view.choice.choice, &view.blocked, &gate) {
            (Choice::None { why }, _, _) => Some((why.clone(), true)),
            (_, Some(blocked), _) => Some((blocked.clone(), true)),
            // The details are the hook's own.
            (_, _, Progress::Waits(why) | Progress::Failed(why)) => {
                Some((why.split_once(": ").map_or(why.as_str(), |(what, _)| what).to_owned(), false))
            }
            _ => None,
        };
        let pending = pending(view, hold, now);
        let settled = !pending.is_open() && view.desired.iter().all(Wanted::is_settled);
        let mut after = Progress::Done;
        if gate == Progress::Done && !view.leaving {
            after = runner.phase(Phase::Sync);
            let failed = matches!(after, Progress::Failed(_)) || !view.defects.is_empty();
            if settled && !failed && after == Progress::Done {
                after = runner.phase(Phase::PostSync);
            }
        }
        if view.leaving && view.gone.iter().all(|gone| gone.live.is_none()) {
            after = runner.phase(Phase::PostDelete);
        }
        let failed = |progress: &Progress| matches!(progress, Progress::Failed(_));
        if !view.leaving && (failed(&gate) || failed(&after) || view.desired.iter().any(Wanted::is_failed)) {
            // How it ends changes nothing: the sync has failed already.
            let _ = runner.phase(Phase::SyncFailed);
        }
        let (hook_steps, hooks_again) = (std::mem::take(&mut runner.steps), runner.again);
        let hooks = runner.records();
        let calm = pending.apply.is_empty() && pending.recreate.is_empty() && !pending.held;
        let free = acts && calm && view.blocked.is_none() && gate == Progress::Done;
        let prunes = if free { prune_steps(view, &holds) } else { Vec::new() };
        Round { pending, holds, decisions, gate, after, settled, hooks, prunes, hook_steps, hooks_again }
    }

    fn steps(&self, view: &View) -> Vec<Step> {
        let mut steps = self.hook_steps.clone();
        steps.extend(self.pending.apply_steps());
        if !self.pending.recreate.is_empty() {
            steps.push(Step::Delete(self.pending.recreate.clone()));
        }
        steps.extend(self.prunes.iter().cloned());
        let empty = view.gone.iter().all(|gone| gone.live.is_none())
            && view.hooks_gone.iter().all(|h| h.live.is_none());
        if view.leaving && empty && self.after == Progress::Done {
            steps.push(Step::Forget);
        }
        steps
    }
}

/// What of the desired objects is to be done now, and what has to wait.
#[derive(Debug, Default)]
pub(crate) struct Pending<'a> {
    pub(crate) apply: Vec<&'a Wanted>,
    pub(crate) recreate: Vec<Removal>,
    /// What an object waits for.
    pub(crate) waits: BTreeMap<&'a Id, String>,
    /// Some wait for others of the files: what they replace has to stay.
    held: bool,
    retry_at: Option<Timestamp>,
}

impl Pending<'_> {
    /// Something is still to be applied.
    pub(crate) fn is_open(&self) -> bool {
        !(self.apply.is_empty() && self.recreate.is_empty() && self.waits.is_empty())
    }

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

/// `hold` keeps back whatever is new, and whether that goes for namespaces and definitions as well.
fn pending(view: &View, hold: Option<(String, bool)>, now: Timestamp) -> Pending<'_> {
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
            // What was applied like this before heals whatever else has to wait.
            let new = wanted.known != wanted.object.hash;
            let gate = hold.as_ref().filter(|(_, all)| new && (*all || number != i64::MIN));
            let hold = gate.map(|(why, _)| why.clone()).or_else(|| held_by.clone()).or_else(|| {
                let absent = absent.contains(id.namespace.as_str());
                absent.then(|| format!("Namespace {}", id.namespace))
            });
            if let (Some(first), false) = (hold, wanted.verdict.is_good()) {
                pending.held = true;
                pending.waits.insert(id, first);
                continue;
            }
            look(wanted, now, &mut pending);
            // Namespaces are made by the same plan, before all others.
            if !wanted.is_settled() && number != i64::MIN {
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
        Verdict::Same | Verdict::Ended(_) | Verdict::Left => {}
        Verdict::Missing | Verdict::Differs => pending.apply.push(wanted),
        Verdict::Immutable(why) => {
            if let Some(live) = &wanted.live {
                pending.waits.insert(id, format!("being made anew: {why}"));
                pending.recreate.push(Removal {
                    id: id.clone(),
                    kind: wanted.object.kind,
                    uid: live.uid.clone(),
                    why: format!("to be made anew: {why}"),
                    keep: false,
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

/// Whether the object that is live was made for this application.
pub(crate) fn is_ours(view: &View, live: &Live) -> bool {
    live.owner.as_deref() == Some(view.application.name.as_str())
}

fn prune_steps(view: &View, holds: &BTreeMap<Id, Hold>) -> Vec<Step> {
    let mut groups: BTreeMap<std::cmp::Reverse<usize>, Vec<Removal>> = BTreeMap::new();
    for gone in &view.gone {
        let id = gone.told.id();
        let (Some(kind), Some(live)) = (gone.kind, &gone.live) else { continue };
        if live.deleting || !is_ours(view, live) || holds.contains_key(&id) {
            continue;
        }
        let why = format!("{} no longer wants it", view.application.name);
        let removal = Removal { kind, uid: live.uid.clone(), why, id, keep: true };
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
    if *status == *view.told {
        return Report::Nothing;
    }
    let told = &view.told;
    let inventory = |status: &Status| status.objects.iter().map(ObjectStatus::id).collect::<Vec<Id>>();
    let urgent = told.sync.state != status.sync.state
        || told.health.code != status.health.code
        || told.source.revision != status.source.revision
        || told.sync.revision != status.sync.revision
        || told.decisions != status.decisions
        || told.hooks != status.hooks
        || inventory(told) != inventory(status);
    match view.told_at.map(|at| at + REPORT_EVERY) {
        Some(due) if !urgent && due > now => Report::At(due),
        _ => Report::Now,
    }
}

#[cfg(test)]
mod tests;
