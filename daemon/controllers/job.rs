//! Job: runs pods until enough of them have succeeded, or too many have failed, or time is up.
//!
//! Invariant: a pod is counted exactly once: its uid is written to `uncountedTerminatedPods` before its finalizer
//! goes, and into the counters only when the finalizer is gone.
//! Invariant: a finished Job is never started again.

mod count;
mod indexes;
mod policy;
mod run;

use std::collections::BTreeSet;
use std::sync::Arc;

use client::{Cache, Key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Plan, Reconciler};
use serde_json::json;

use crate::Error;
use crate::claims::held_claims;
use crate::owned::{Owned, PATIENCE, Pending, Unseen};
use crate::pods::{controller, uid};
use crate::step::{self, Done, Door, Note, Place, Propagation, Step, whole_seconds};

use count::{Count, count};

const COMPONENT: &str = "job-controller";
/// Keeps a pod until it is counted.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often the index of a pod had failed before it, where each index has a limit of its own.
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// `None`: gone.
    pub(crate) job: Option<Arc<Job>>,
    /// The pods that the Job controls, and those of its namespace that nobody controls.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// Pods of an earlier Job of this name, which is gone.
    pub(crate) strays: Vec<Arc<Pod>>,
    /// The names of pods that begin as the Job's do.
    pub(crate) taken: BTreeSet<String>,
    /// What was done and is not seen yet.
    pub(crate) unseen: Unseen,
    /// Its status was written and is not seen yet, while pods that were let go because of it may be.
    pub(crate) behind: bool,
}

/// Keeps Jobs.
pub(crate) struct Jobs {
    client: Door,
    jobs: Cache<Job>,
    all: Cache<Pod>,
    pods: Owned<Pod>,
    pending: Pending,
}

impl Jobs {
    /// Over these caches.
    pub(crate) fn new(client: Door, jobs: Cache<Job>, all: Cache<Pod>, pods: Owned<Pod>) -> Jobs {
        Jobs { client, jobs, all, pods, pending: Pending::default() }
    }

    fn strays(&self, key: &Key, job: Option<&str>) -> Vec<Arc<Pod>> {
        let stray = |pod: &Arc<Pod>| match controller(&pod.metadata) {
            Some(owner) => owner.kind == "Job" && owner.name == key.name && Some(owner.uid.as_str()) != job,
            None => job.is_none() && job_of_free(pod).is_some_and(|known| known == key.name),
        };
        // Pods of a Job begin with its name, which may have been cut.
        let begin: String = key.name.chars().take(50).collect();
        let snapshot = self.all.snapshot();
        snapshot
            .range(Key::new(&key.namespace, &begin)..)
            .take_while(|(at, _)| at.namespace == key.namespace && at.name.starts_with(&begin))
            .map(|(_, pod)| Arc::clone(pod))
            .filter(stray)
            .collect()
    }
}

impl Reconciler for Jobs {
    type Key = Key;
    type View = View;
    type Step = Step;
    type Error = Error;
    const NAME: &'static str = "job";

    async fn observe(&self, key: &Key) -> Result<View, Error> {
        let Some(job) = self.jobs.get(key) else {
            self.pending.forget(key);
            return Ok(View { strays: self.strays(key, None), ..View::default() });
        };
        let pods = self.pods.by(&key.namespace, uid(&job.metadata));
        let taken = self.pods.names(&key.namespace, &key.name);
        let unseen = self.pending.unseen(key, &pods, &taken);
        let behind = self.pending.behind(key, job.metadata.resource_version.as_deref());
        let strays = self.strays(key, Some(uid(&job.metadata)));
        Ok(View { job: Some(job), pods, strays, taken, unseen, behind })
    }

    fn plan(view: &View, now: Timestamp) -> Plan<Step> {
        plan(view, now)
    }

    async fn act(&self, key: &Key, step: Step) -> Result<(), Error> {
        let done = |done: Done<'_>| self.pending.done(key, done);
        step::act(&self.client, step, &done).await
    }
}

/// The Job that still holds a pod which nobody controls any more.
pub(crate) fn job_of_free(pod: &Pod) -> Option<&str> {
    let free = controller(&pod.metadata).is_none() && count::held(pod);
    pod.metadata.labels.as_ref().filter(|_| free)?.get(JOB_NAME).map(String::as_str)
}

/// Counts what ended, decides whether the Job goes on, then lets pods go, ends them or makes them.
pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    let mut steps: Vec<Step> = view.strays.iter().filter_map(released).collect();
    let Some(job) = &view.job else { return Plan::in_turn(steps) };
    let Some(spec) = &job.spec else { return Plan::in_turn(steps) };
    if spec.managed_by.as_deref().is_some_and(|by| by != "kubernetes.io/job-controller") {
        return Plan::in_turn(steps);
    }
    if job.metadata.deletion_timestamp.is_some() {
        // Nothing is counted any more; the pods are collected with the Job.
        let ours = |pod: &&Arc<Pod>| match controller(&pod.metadata) {
            Some(owner) => owner.uid == uid(&job.metadata),
            None => job_of_free(pod).is_some_and(|known| Some(known) == job.metadata.name.as_deref()),
        };
        steps.extend(view.pods.iter().filter(ours).filter_map(released));
        return Plan::in_turn(steps);
    }
    if view.behind {
        // The written status comes back as a change of the Job, and with it the next round.
        return Plan::in_turn(steps);
    }
    if let Some(end) = finished(job) {
        return after_the_end(job, end, steps, now);
    }
    let claims = spec
        .selector
        .as_ref()
        .map(|selector| held_claims(&**job, selector, &view.pods, (Some(TRACKING), |_: &Pod| true)));
    if let Some(claims) = claims.filter(|claims| !claims.steps.is_empty()) {
        // What changed hands comes back as a change of the pod, and with it the next round.
        steps.extend(claims.steps);
        return Plan::in_turn(steps);
    }
    let count = count(view, job);
    let mut status = count.status.clone();
    let mut notes = Vec::new();
    let suspended = spec.suspend == Some(true);
    resume(job, &mut status, &mut notes, now);
    let verdict = verdict(job, &count, &status, now);
    let work = run::work(view, job, &count, verdict.as_ref(), now);
    if let Some(verdict) = &verdict {
        judge(job, verdict, &count, (&mut status, &mut notes), now);
    } else if suspended {
        suspend(job, &mut status, &mut notes, now);
    }
    status.active = (work.active > 0).then_some(work.active);
    if job.status.as_ref() != Some(&status) {
        let mut job = Job::clone(job);
        job.status = Some(status.clone());
        steps.push(Step::status(&job));
    }
    // Only what the written status knows may lose its finalizer, so this comes after the status.
    steps.extend(run::letting_go(job, &count, verdict.as_ref()));
    steps.extend(work.steps);
    steps.extend(notes.into_iter().map(Step::Record));
    let mut plan = Plan::in_turn(steps);
    if !view.unseen.coming.is_empty() {
        plan = plan.again_at(now.saturating_add(PATIENCE).unwrap_or(now));
    }
    let deadline = deadline(job, &status).filter(|_| verdict.is_none() && !suspended);
    deadline.into_iter().chain(work.again).fold(plan, Plan::again_at)
}

/// How the Job ends.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// Enough pods have succeeded.
    Success(Why),
    /// It cannot succeed.
    Failure(Why),
}

/// What the conditions say of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Why {
    reason: String,
    message: String,
}

impl Why {
    fn new(reason: &str, message: &str) -> Why {
        Why { reason: reason.to_owned(), message: message.to_owned() }
    }

    fn of(known: &JobCondition) -> Why {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Why { reason: text(&known.reason), message: text(&known.message) }
    }
}

fn verdict(job: &Job, count: &Count, status: &JobStatus, now: Timestamp) -> Option<Verdict> {
    let spec = job.spec.as_ref()?;
    if let Some(known) = holds(status, "SuccessCriteriaMet") {
        return Some(Verdict::Success(Why::of(known)));
    }
    if let Some(known) = holds(status, "FailureTarget") {
        return Some(Verdict::Failure(Why::of(known)));
    }
    if let Some(why) = failure(spec, count) {
        return Some(Verdict::Failure(why));
    }
    if spec.suspend != Some(true) && deadline(job, status).is_some_and(|at| at <= now) {
        let message = "Job was active longer than specified deadline";
        return Some(Verdict::Failure(Why::new("DeadlineExceeded", message)));
    }
    if let Some(why) = lost_indexes(spec, count) {
        return Some(Verdict::Failure(why));
    }
    if let Some(rule) = policy::success(spec, &count.completed) {
        return Some(Verdict::Success(Why::new("SuccessPolicy", &rule)));
    }
    let enough = match spec.completions {
        Some(completions) => count.succeeded >= completions,
        None => count.succeeded > 0 && count.active.is_empty() && count.coming == 0,
    };
    let reached = || Why::new("CompletionsReached", "Reached expected number of succeeded pods");
    enough.then(|| Verdict::Success(reached()))
}

/// Whether pods failed in a way, or more often, than the Job allows.
fn failure(spec: &JobSpec, count: &Count) -> Option<Why> {
    if let Some(message) = &count.fatal {
        return Some(Why::new("PodFailurePolicy", message));
    }
    let limit =
        spec.backoff_limit.unwrap_or(if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 });
    let restarts_too_often =
        count.restarts_in_place && if limit == 0 { count.restarts > 0 } else { count.restarts >= limit };
    (count.failed > limit || restarts_too_often)
        .then(|| Why::new("BackoffLimitExceeded", "Job has reached the specified backoff limit"))
}

/// Whether too many indexes have failed for good, or some and nothing else is left to do.
fn lost_indexes(spec: &JobSpec, count: &Count) -> Option<Why> {
    let lost = indexes::count(count.lost.as_ref()?);
    if spec.max_failed_indexes.is_some_and(|most| lost > most) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Some(Why::new("MaxFailedIndexesExceeded", message));
    }
    let all = lost + indexes::count(&count.completed) >= spec.completions.unwrap_or(0);
    (lost > 0 && all).then(|| Why::new("FailedIndexes", "Job has failed indexes"))
}

fn deadline(job: &Job, status: &JobStatus) -> Option<Timestamp> {
    let seconds = job.spec.as_ref()?.active_deadline_seconds?;
    status.start_time.as_ref()?.0.saturating_add(SignedDuration::from_secs(seconds)).ok()
}

/// Writes the verdict: the target first, the end itself when no pod is left to count.
fn judge(
    job: &Job,
    verdict: &Verdict,
    count: &Count,
    (status, notes): (&mut JobStatus, &mut Vec<Note>),
    now: Timestamp,
) {
    let (target, end, why) = match verdict {
        Verdict::Success(why) => ("SuccessCriteriaMet", "Complete", why),
        Verdict::Failure(why) => ("FailureTarget", "Failed", why),
    };
    let text = (why.reason.as_str(), why.message.as_str());
    if holds(status, target).is_none() {
        set(status, target, "True", text, now);
    }
    if !count.settled() {
        return;
    }
    set(status, end, "True", text, now);
    let note = || Note::about(job, now);
    if let Verdict::Failure(why) = verdict {
        notes.push(note().warns(COMPONENT, known_reason(&why.reason), why.message.clone()));
        return;
    }
    status.completion_time = Some(whole_seconds(now));
    let wanted = job.spec.as_ref().and_then(|spec| spec.completions);
    if wanted.is_some_and(|wanted| status.succeeded.unwrap_or(0) > wanted) {
        let message = "Too many succeeded pods running after completion count reached".to_owned();
        notes.push(note().warns(COMPONENT, "TooManySucceededPods", message));
    }
    notes.push(note().says(COMPONENT, "Completed", "Job completed".to_owned()));
}

fn known_reason(reason: &str) -> &'static str {
    match reason {
        "DeadlineExceeded" => "DeadlineExceeded",
        "PodFailurePolicy" => "PodFailurePolicy",
        "FailedIndexes" => "FailedIndexes",
        "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
        _ => "BackoffLimitExceeded",
    }
}

/// Starts the clock of a Job that runs; one that was suspended starts over.
fn resume(job: &Job, status: &mut JobStatus, notes: &mut Vec<Note>, now: Timestamp) {
    if job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true) {
        return;
    }
    if holds(status, "Suspended").is_some() {
        set(status, "Suspended", "False", ("JobResumed", "Job resumed"), now);
        status.start_time = Some(whole_seconds(now));
        notes.push(Note::about(job, now).says(COMPONENT, "Resumed", "Job resumed".to_owned()));
    }
    if status.start_time.is_none() {
        status.start_time = Some(whole_seconds(now));
    }
}

fn suspend(job: &Job, status: &mut JobStatus, notes: &mut Vec<Note>, now: Timestamp) {
    if holds(status, "Suspended").is_none() {
        set(status, "Suspended", "True", ("JobSuspended", "Job suspended"), now);
        notes.push(Note::about(job, now).says(COMPONENT, "Suspended", "Job suspended".to_owned()));
    }
    status.start_time = None;
}

/// The condition by which a Job has ended, if it has.
pub(crate) fn end_of(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref()?;
    holds(status, "Complete").or_else(|| holds(status, "Failed"))
}

/// When a Job has ended, if it has.
fn finished(job: &Job) -> Option<Timestamp> {
    end_of(job)?.last_transition_time.as_ref().map(|time| time.0)
}

/// `ttlSecondsAfterFinished`.
fn after_the_end(job: &Job, end: Timestamp, mut steps: Vec<Step>, now: Timestamp) -> Plan<Step> {
    let Some(ttl) = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished) else {
        return Plan::in_turn(steps);
    };
    let expires = end.saturating_add(SignedDuration::from_secs(ttl.into())).unwrap_or(end);
    if expires > now {
        return Plan::in_turn(steps).again_at(expires);
    }
    let (at, uid) = (Place::of(job), uid(&job.metadata).to_owned());
    steps.push(Step::Delete { at, uid, propagation: Propagation::Foreground, note: None });
    Plan::in_turn(steps)
}

/// Takes the finalizer from a pod that has it.
fn released(pod: &Arc<Pod>) -> Option<Step> {
    let finalizers = pod.metadata.finalizers.as_ref().filter(|all| all.iter().any(|one| one == TRACKING))?;
    let rest: Vec<_> = finalizers.iter().filter(|one| *one != TRACKING).collect();
    let rest = if rest.is_empty() { json!(null) } else { json!(rest) };
    Some(Step::patch(&**pod, json!({"metadata": {"finalizers": rest}})))
}

/// A condition that is true.
fn holds<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|known| known.type_ == kind && known.status == "True")
}

fn set(status: &mut JobStatus, kind: &str, value: &str, (reason, message): (&str, &str), now: Timestamp) {
    let now = whole_seconds(now);
    let condition = JobCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now),
    };
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|known| known.type_ == kind) {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}
