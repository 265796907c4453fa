//! CronJob: a Job whenever its schedule says so.
//!
//! Invariant: a Job's name follows from the minute it is due, so no time is run twice.
//! Invariant: one timer for the next time; between two times nothing happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use api::cron::Schedule;
use client::{Cache, Key};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Plan, Reconciler};

use crate::Error;
use crate::job::end_of;
use crate::owned::{Owned, PATIENCE, Pending, Unseen};
use crate::pods::{controller, name, uid};
use crate::step::{self, Done, Door, Note, Step, controlled_by, whole_seconds};

const COMPONENT: &str = "cronjob-controller";
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// As documented: beyond so many missed times something is wrong with the clock or the schedule.
const MANY: i64 = 100;
/// What is said once about a time.
const ONCE: [&str; 5] =
    ["JobAlreadyActive", "MissSchedule", "TooManyMissedTimes", "UnknownTimeZone", "UnparseableSchedule"];

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) cron: Option<Arc<CronJob>>,
    /// The Jobs that it controls.
    pub(crate) jobs: Vec<Arc<Job>>,
    /// What was done and is not seen yet.
    pub(crate) unseen: Unseen,
    /// What was said about the time that is due: it is said once.
    pub(crate) told: BTreeSet<(&'static str, Timestamp)>,
    /// The zone of schedules that do not name one.
    pub(crate) zone: Option<TimeZone>,
}

/// Keeps CronJobs.
pub(crate) struct CronJobs {
    client: Door,
    crons: Cache<CronJob>,
    jobs: Owned<Job>,
    pending: Pending,
    told: Mutex<BTreeMap<Key, BTreeSet<(&'static str, Timestamp)>>>,
    zone: TimeZone,
}

impl CronJobs {
    /// Over these caches.
    pub(crate) fn new(client: Door, crons: Cache<CronJob>, jobs: Owned<Job>) -> CronJobs {
        // As Kubernetes: the zone of the machine that the controller runs on.
        let zone = TimeZone::system();
        CronJobs { client, crons, jobs, pending: Pending::default(), told: Mutex::default(), zone }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, BTreeSet<(&'static str, Timestamp)>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reconciler for CronJobs {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "cronjob";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(cron) = self.crons.get(key) else {
            self.pending.forget(key);
            self.told().remove(key);
            return Ok(View::default());
        };
        let jobs = self.jobs.controlled(&key.namespace, uid(&cron.metadata));
        let names = jobs.iter().map(|job| name(&job.metadata).to_owned()).collect();
        let unseen = self.pending.unseen(key, &jobs, &names);
        let told = self.told().get(key).cloned().unwrap_or_default();
        Ok(View { cron: Some(cron), jobs, unseen, told, zone: Some(self.zone.clone()) })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, key: &Key, step: Step) -> Result<(), Error> {
        if let Step::Record(note) = &step
            && ONCE.contains(&note.reason)
        {
            let mut told = self.told();
            let about = told.entry(key.clone()).or_default();
            // Only what is said of the latest time can be said again.
            about.retain(|(reason, _)| *reason != note.reason);
            about.insert((note.reason, note.at));
        }
        let done = |done: Done<'_>| self.pending.done(key, done);
        step::act(&self.client, step, &done).await
    }
}

/// Takes note of what ended, then starts the Job that is due, if one is and may.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let Some(cron) = &view.cron else { return Plan::empty() };
    let spec = &cron.spec;
    let mut work = Work { cron, spec, view, now, steps: Vec::new(), status: CronJobStatus::default() };
    work.status = cron.status.clone().unwrap_or_default();
    work.look_at_jobs();
    let again = if cron.metadata.deletion_timestamp.is_none() && spec.suspend != Some(true) {
        work.start_what_is_due()
    } else {
        None
    };
    if cron.status.clone().unwrap_or_default() != work.status {
        let status = Some(work.status);
        work.steps.push(Step::status(&CronJob { status, ..CronJob::clone(cron) }));
    }
    let mut plan = Plan::in_turn(work.steps);
    if !view.unseen.coming.is_empty() {
        plan = plan.again_at(now.saturating_add(PATIENCE).unwrap_or(now));
    }
    again.into_iter().fold(plan, Plan::again_at)
}

struct Work<'a> {
    cron: &'a Arc<CronJob>,
    spec: &'a CronJobSpec,
    view: &'a View,
    now: Timestamp,
    steps: Vec<Step>,
    status: CronJobStatus,
}

/// The time that is due, and whether times before it were missed.
#[derive(Debug, PartialEq)]
struct Due {
    at: Timestamp,
    many_missed: bool,
}

impl Work<'_> {
    fn note(&self) -> Note {
        Note::about(&**self.cron, self.now)
    }

    /// Jobs that have not ended and are not on their way out.
    fn running(&self) -> Vec<&Arc<Job>> {
        let leaves = |job: &Job| self.view.unseen.leaving.contains(uid(&job.metadata));
        self.view.jobs.iter().filter(|job| end_of(job).is_none() && !leaves(job)).collect()
    }

    /// Brings `active` and `lastSuccessfulTime` up to date, and lets go of the oldest that ended.
    fn look_at_jobs(&mut self) {
        for known in self.status.active.clone().unwrap_or_default() {
            let job = self.view.jobs.iter().find(|job| Some(uid(&job.metadata)) == known.uid.as_deref());
            let called = known.name.unwrap_or_default();
            let note = self.note();
            let note = match job.map(|job| end_of(job)) {
                None => note.says(COMPONENT, "MissingJob", format!("Active job went missing: {called}")),
                Some(None) => continue,
                Some(Some(end)) => {
                    let message = format!("Saw completed job: {called}, condition: {}", end.type_);
                    note.says(COMPONENT, "SawCompletedJob", message)
                }
            };
            self.steps.push(Step::Record(note));
        }
        let active: Vec<ObjectReference> = self.running().iter().map(|job| reference(job)).collect();
        self.status.active = (!active.is_empty()).then_some(active);
        let succeeded = self.view.jobs.iter().filter_map(|job| job.status.as_ref()?.completion_time.clone());
        self.status.last_successful_time = succeeded.chain(self.status.last_successful_time.clone()).max();
        self.forget("Complete", self.spec.successful_jobs_history_limit);
        self.forget("Failed", self.spec.failed_jobs_history_limit);
    }

    fn forget(&mut self, kind: &str, limit: Option<i32>) {
        let Some(limit) = limit else { return };
        let of_kind = |job: &&Arc<Job>| end_of(job).is_some_and(|end| end.type_ == kind);
        let stays = |job: &&Arc<Job>| job.metadata.deletion_timestamp.is_none();
        let mut ended: Vec<&Arc<Job>> = self.view.jobs.iter().filter(of_kind).filter(stays).collect();
        let started = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.clone());
        ended.sort_by(|a, b| (started(a), name(&a.metadata)).cmp(&(started(b), name(&b.metadata))));
        let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        let deletes: Vec<Step> = ended.into_iter().take(surplus).map(|job| self.delete(job)).collect();
        self.steps.extend(deletes);
    }

    fn delete(&self, job: &Job) -> Step {
        let message = format!("Deleted job {}", name(&job.metadata));
        let note = self.note().says(COMPONENT, "SuccessfulDelete", message);
        Step::delete(job, Some(note.or_else("FailedDelete", format!("Deleted job {}", name(&job.metadata)))))
    }

    /// Starts a Job, if one is due; the answer is when the next one is.
    fn start_what_is_due(&mut self) -> Option<Timestamp> {
        let zone = self.zone()?;
        let schedule = match Schedule::parse(&self.spec.schedule) {
            Ok(schedule) => schedule,
            Err(error) => {
                let message = format!("unparseable schedule: {:?} : {error}", self.spec.schedule);
                self.say_once(self.created(), "UnparseableSchedule", message);
                return None;
            }
        };
        let next = schedule.next(self.now, &zone);
        let Some(due) = self.due(&schedule, &zone) else { return next };
        if due.many_missed {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.say_once(due.at, "TooManyMissedTimes", message.to_owned());
        }
        if self
            .deadline()
            .is_some_and(|deadline| due.at.saturating_add(deadline).is_ok_and(|at| at < self.now))
        {
            let at = due.at.to_zoned(zone).strftime("%a, %d %b %Y %H:%M:%S %z").to_string();
            self.say_once(due.at, "MissSchedule", format!("Missed scheduled time to start a job: {at}"));
            return next;
        }
        self.start(due.at, &zone);
        next
    }

    fn start(&mut self, at: Timestamp, zone: &TimeZone) {
        let called = format!("{}-{}", name(&self.cron.metadata), at.as_second() / 60);
        let exists = self.view.jobs.iter().any(|job| name(&job.metadata) == called);
        if exists || self.view.unseen.coming.contains(&called) {
            // Started, but the status did not say so yet.
            self.status.last_schedule_time = Some(whole_seconds(at));
            return;
        }
        let busy = !self.running().is_empty() || !self.view.unseen.coming.is_empty();
        match self.spec.concurrency_policy.as_deref() {
            Some("Forbid") if busy => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.say_once(at, "JobAlreadyActive", message.to_owned());
                return;
            }
            Some("Replace") => {
                let deletes: Vec<Step> = self.running().into_iter().map(|job| self.delete(job)).collect();
                self.steps.extend(deletes);
                self.status.active = None;
            }
            _ => {}
        }
        let note = self
            .note()
            .says(COMPONENT, "SuccessfulCreate", format!("Created job {called}"))
            .or_else("FailedCreate", "Error creating job".to_owned());
        self.steps.push(Step::create(&self.job(called, at, zone), Some(note)));
        self.status.last_schedule_time = Some(whole_seconds(at));
    }

    fn job(&self, called: String, at: Timestamp, zone: &TimeZone) -> Job {
        let template = self.spec.job_template.clone();
        let meta = template.metadata.unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        let local = at.to_zoned(zone.clone());
        let text = if local.offset().is_zero() {
            at.to_string()
        } else {
            local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
        };
        annotations.insert(SCHEDULED.to_owned(), text);
        Job {
            metadata: ObjectMeta {
                name: Some(called),
                namespace: self.cron.metadata.namespace.clone(),
                labels: meta.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![controlled_by(&**self.cron)]),
                ..ObjectMeta::default()
            },
            spec: template.spec,
            status: None,
        }
    }

    fn created(&self) -> Timestamp {
        self.cron.metadata.creation_timestamp.as_ref().map_or(self.now, |time| time.0)
    }

    fn deadline(&self) -> Option<SignedDuration> {
        self.spec.starting_deadline_seconds.map(SignedDuration::from_secs)
    }

    fn zone(&mut self) -> Option<TimeZone> {
        let Some(wanted) = self.spec.time_zone.clone() else {
            return Some(self.view.zone.clone().unwrap_or(TimeZone::UTC));
        };
        match TimeZone::get(&wanted) {
            Ok(zone) => Some(zone),
            Err(error) => {
                let message = format!("invalid timeZone: {wanted:?}: {error}");
                self.say_once(self.created(), "UnknownTimeZone", message);
                None
            }
        }
    }

    /// The latest time that has come since the last one that was started.
    fn due(&self, schedule: &Schedule, zone: &TimeZone) -> Option<Due> {
        let last = self.status.last_schedule_time.as_ref().map(|time| time.0);
        let mut from = last.unwrap_or(self.created());
        if let Some(deadline) = self.deadline() {
            from = from.max(self.now.saturating_sub(deadline).ok()?);
        }
        let first = schedule.next(from, zone).filter(|at| *at <= self.now)?;
        let second = schedule.next(first, zone);
        let Some(second) = second.filter(|at| *at <= self.now) else {
            return Some(Due { at: first, many_missed: false });
        };
        let pause = second.duration_since(first).as_secs().max(1);
        let missed = self.now.duration_since(first).as_secs() / pause + 1;
        // Not every missed time is looked at: after a long night there can be millions. So the search begins shortly
        // before now, and earlier when no time lies in between.
        let mut back = SignedDuration::from_secs(pause.saturating_mul(2));
        let mut at = first;
        loop {
            let from = self.now.saturating_sub(back).unwrap_or(first).max(first);
            let mut later = schedule.next(from, zone);
            while let Some(next) = later.filter(|next| *next <= self.now) {
                at = next;
                later = schedule.next(next, zone);
            }
            if at > first || from == first {
                break;
            }
            back = back.saturating_mul(2);
        }
        Some(Due { at, many_missed: missed > MANY })
    }

    /// A warning about a time, or a word about it, unless it was said already.
    fn say_once(&mut self, at: Timestamp, reason: &'static str, message: String) {
        if self.view.told.contains(&(reason, at)) {
            return;
        }
        let note = Note::about(&**self.cron, at);
        let note = match reason {
            "JobAlreadyActive" => note.says(COMPONENT, reason, message),
            _ => note.warns(COMPONENT, reason, message),
        };
        self.steps.push(Step::Record(note));
    }
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        namespace: job.metadata.namespace.clone(),
        name: job.metadata.name.clone(),
        uid: job.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The CronJob that controls a Job.
pub(crate) fn cron_of(job: &Job) -> Option<&str> {
    controller(&job.metadata).filter(|owner| owner.kind == "CronJob").map(|owner| owner.name.as_str())
}
