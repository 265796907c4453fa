//! Which pods of a Job are made, ended and let go.
//!
//! Invariant: a pod that is ended because it is no longer wanted is let go first, so that it does not count as failed.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::count::{Count, busy, counts, held, indexed, noted, replaceable_at};
use super::policy::{self, Failure};
use super::{COMPONENT, FAILURES, IGNORED_FAILURES, INDEX, TRACKING, Verdict, View, indexes, released};
use crate::names::Names;
use crate::pods::{self, name, uid};
use crate::replicas::{FIRST_BATCH, batches};
use crate::step::{Note, Step, controlled_by};

/// As Kubernetes: pods made in one round.
const MOST: usize = 500;

/// What is done about pods.
pub(crate) struct Work {
    /// The effects.
    pub(crate) steps: Vec<Step>,
    /// How many pods are active when they are done.
    pub(crate) active: i32,
    /// The end of a back-off.
    pub(crate) again: Option<Timestamp>,
}

/// Makes or ends pods until as many are active as should be.
pub(crate) fn work(view: &View, job: &Job, count: &Count, verdict: Option<&Verdict>, now: Timestamp) -> Work {
    let spec = job.spec.clone().unwrap_or_default();
    let active = i32::try_from(count.active.len()).unwrap_or(i32::MAX) + count.coming;
    let all = count.active.len();
    match verdict {
        // These count as failed: they had their chance and did not succeed.
        Some(Verdict::Failure(_)) => {
            let steps = count.active.iter().map(|pod| Step::delete(&**pod, deleted(job, pod, now))).collect();
            return Work { steps: together(steps), active: count.coming, again: None };
        }
        Some(Verdict::Success(_)) => {
            return Work { steps: ended(job, count, all, now), active: count.coming, again: None };
        }
        None if spec.suspend == Some(true) => {
            return Work { steps: ended(job, count, all, now), active: count.coming, again: None };
        }
        None => {}
    }
    let wanted = wanted(&spec, count, active);
    let doubles = doubles(&spec, count, now);
    let surplus = usize::try_from(active - wanted).unwrap_or(0).min(all).max(doubles.len());
    if surplus > 0 {
        let left = active - i32::try_from(surplus).unwrap_or(0);
        return Work {
            steps: let_go(job, victims(count, doubles, surplus, now), now),
            active: left,
            again: None,
        };
    }
    let mut missing = wanted - active;
    if policy::only_ended_are_replaced(&spec) {
        missing -= count.terminating;
    }
    let until = count.wait_until.filter(|until| *until > now);
    if missing <= 0 || until.is_some() {
        return Work { steps: Vec::new(), active, again: until.filter(|_| missing > 0) };
    }
    let (made, again) = births(view, job, count, usize::try_from(missing).unwrap_or(0).min(MOST), now);
    let active = active + i32::try_from(made.len()).unwrap_or(0);
    Work { steps: batches(made, FIRST_BATCH), active, again }
}

/// How many pods should be active.
fn wanted(spec: &JobSpec, count: &Count, active: i32) -> i32 {
    let parallelism = spec.parallelism.unwrap_or(1);
    match spec.completions {
        Some(completions) => parallelism.min((completions - count.succeeded).max(0)),
        // Without a number of completions the first success says that the work is done: others may finish, none start.
        None if count.succeeded > 0 => active.min(parallelism),
        None => parallelism,
    }
}

fn deleted(job: &Job, pod: &Pod, now: Timestamp) -> Option<Note> {
    let message = format!("Deleted pod: {}", name(&pod.metadata));
    Some(
        Note::about(job, now)
            .says(COMPONENT, "SuccessfulDelete", message)
            .or_else("FailedDelete", "Error deleting"),
    )
}

fn together(steps: Vec<Step>) -> Vec<Step> {
    if steps.is_empty() { Vec::new() } else { vec![Step::Together(steps)] }
}

/// Ends the pods that are missed least.
fn ended(job: &Job, count: &Count, how_many: usize, now: Timestamp) -> Vec<Step> {
    let_go(job, victims(count, Vec::new(), how_many, now), now)
}

/// The pods to end: those given, then the ones that are missed least.
fn victims(count: &Count, first: Vec<Arc<Pod>>, how_many: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let given: BTreeSet<String> = first.iter().map(|pod| uid(&pod.metadata).to_owned()).collect();
    let mut rest: Vec<Arc<Pod>> =
        count.active.iter().filter(|pod| !given.contains(uid(&pod.metadata))).cloned().collect();
    rest.sort_by(|a, b| pods::victims_first(a, b, now));
    first.into_iter().chain(rest).take(how_many.min(MOST)).collect()
}

/// The active pods of an Indexed Job whose index another one works on, or nobody asks for any more.
fn doubles(spec: &JobSpec, count: &Count, now: Timestamp) -> Vec<Arc<Pod>> {
    if !indexed(spec) {
        return Vec::new();
    }
    let mut keepers: Vec<&Arc<Pod>> = count.active.iter().collect();
    keepers.sort_by(|a, b| pods::victims_first(b, a, now));
    let mut taken = BTreeSet::new();
    let double = |pod: &&Arc<Pod>| !counts(spec, pod) || !taken.insert(indexes::of(pod));
    keepers.into_iter().filter(double).cloned().collect()
}

/// Takes the finalizer, so that they do not count, then deletes.
fn let_go(job: &Job, victims: Vec<Arc<Pod>>, now: Timestamp) -> Vec<Step> {
    let mut steps = together(victims.iter().filter_map(released).collect());
    steps.extend(together(victims.iter().map(|pod| Step::delete(&**pod, deleted(job, pod, now))).collect()));
    steps
}

/// Takes the finalizer from what is counted, from what does not count, and in a Job that has succeeded from what leaves
/// uncounted.
pub(crate) fn letting_go(job: &Job, count: &Count, verdict: Option<&Verdict>) -> Vec<Step> {
    let spec = job.spec.clone().unwrap_or_default();
    let uncounted = count.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let known: BTreeSet<&str> =
        uncounted.succeeded.iter().chain(&uncounted.failed).flatten().map(String::as_str).collect();
    let kept: BTreeSet<&str> =
        count.replaced.values().map(|pod| uid(&pod.metadata)).filter(|_| verdict.is_none()).collect();
    let counted = |pod: &&Arc<Pod>| {
        let completed = pods::phase(pod) == "Succeeded"
            && indexes::of(pod).is_some_and(|index| count.completed.contains(&index));
        let unwanted = matches!(verdict, Some(Verdict::Success(_))) && pods::terminating(pod);
        let ignored = policy::failed(&spec, pod)
            && !kept.contains(uid(&pod.metadata))
            && policy::failure(&spec, pod) == Failure::Ignored;
        let strange = pods::finished(pod) && !counts(&spec, pod);
        known.contains(uid(&pod.metadata)) || completed || unwanted || ignored || strange
    };
    together(count.ours.iter().filter(|pod| held(pod)).filter(counted).filter_map(released).collect())
}

/// The pods that are made, and when more could be.
fn births(
    view: &View,
    job: &Job,
    count: &Count,
    how_many: usize,
    now: Timestamp,
) -> (Vec<Step>, Option<Timestamp>) {
    let template = job.spec.clone().unwrap_or_default().template;
    let mut blank = pods::from_template(&template, &job.metadata, controlled_by(job));
    let labels = blank.metadata.labels.get_or_insert_default();
    for (key, value) in [("controller-uid", uid(&job.metadata)), ("job-name", name(&job.metadata))] {
        labels.insert(key.to_owned(), value.to_owned());
        labels.insert(format!("batch.kubernetes.io/{key}"), value.to_owned());
    }
    blank.metadata.finalizers.get_or_insert_default().push(TRACKING.to_owned());
    let create = |pod: Pod| {
        let note = Note::about(job, now)
            .says(COMPONENT, "SuccessfulCreate", format!("Created pod: {}", name(&pod.metadata)))
            .or_else("FailedCreate", "Error creating");
        Step::create(&pod, Some(note))
    };
    let taken = || view.taken.iter().chain(&view.unseen.coming).map(String::as_str);
    if !job.spec.as_ref().is_some_and(indexed) {
        let names = Names::new(name(&job.metadata), uid(&job.metadata), taken());
        return (names.take(how_many).map(|pod_name| create(named(&blank, pod_name))).collect(), None);
    }
    let indexes: Vec<i32> = free_indexes(view, job, count).take(how_many).collect();
    let ready_at = |index: &i32| count.replaced.get(index).and_then(|pod| replaceable_at(pod));
    let again = indexes.iter().filter_map(ready_at).filter(|at| *at > now).min();
    let made =
        indexes.iter().filter(|index| ready_at(index).is_none_or(|at| at <= now)).filter_map(|index| {
            let base = format!("{}-{index}", name(&job.metadata));
            let pod_name = Names::new(&base, uid(&job.metadata), taken()).next()?;
            let mut pod = with_index(named(&blank, pod_name), &base, *index);
            if count.lost.is_some() {
                note_failures(job, &mut pod, count.replaced.get(index));
            }
            Some(create(pod))
        });
    (made.collect(), again)
}

/// How often the index has failed, for the pod that takes it over.
fn note_failures(job: &Job, pod: &mut Pod, replaced: Option<&Arc<Pod>>) {
    let (mut failures, mut ignored) =
        replaced.map_or((0, 0), |pod| (noted(pod, FAILURES), noted(pod, IGNORED_FAILURES)));
    if let (Some(replaced), Some(spec)) = (replaced, &job.spec) {
        match policy::failure(spec, replaced) {
            Failure::Ignored => ignored += 1,
            _ => failures += 1,
        }
    }
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(FAILURES.to_owned(), failures.to_string());
    if ignored > 0 {
        annotations.insert(IGNORED_FAILURES.to_owned(), ignored.to_string());
    }
}

fn named(blank: &Pod, pod_name: String) -> Pod {
    let mut pod = blank.clone();
    pod.metadata.name = Some(pod_name);
    pod
}

/// The lowest indexes that are neither completed, nor lost, nor worked on.
fn free_indexes(view: &View, job: &Job, count: &Count) -> impl Iterator<Item = i32> {
    let spec = job.spec.clone().unwrap_or_default();
    let mut busy = busy(&count.active, view, job);
    if policy::only_ended_are_replaced(&spec) {
        let leaving = count.ours.iter().filter(|pod| pods::terminating(pod) && !pods::finished(pod));
        busy.extend(leaving.filter_map(|pod| indexes::of(pod)));
    }
    let open = move |index: &i32| {
        let lost = count.lost.as_ref().is_some_and(|lost| lost.contains(index));
        !count.completed.contains(index) && !busy.contains(index) && !lost
    };
    (0..spec.completions.unwrap_or(0)).filter(open)
}

/// Tells a pod its index: by annotation, label, host name and environment.
fn with_index(mut pod: Pod, hostname: &str, index: i32) -> Pod {
    pod.metadata.generate_name = Some(format!("{hostname}-"));
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(hostname.to_owned());
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            let env = container.env.get_or_insert_default();
            if env.iter().all(|known| known.name != "JOB_COMPLETION_INDEX") {
                env.push(index_variable());
            }
        }
    }
    pod
}

/// As Kubernetes: read from the label, so that one template serves every index.
fn index_variable() -> EnvVar {
    let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    EnvVar { name: "JOB_COMPLETION_INDEX".to_owned(), value: None, value_from: Some(source) }
}
