//! Which pods of a Job are made, ended and let go.
//!
//! Invariant: a pod that is ended because it is no longer wanted is let go first, so that it does not count as failed.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, Pod};

use super::count::{Count, held};
use super::{COMPONENT, INDEX, TRACKING, Verdict, View, indexes, released};
use crate::names::Names;
use crate::pods::{self, name, uid};
use crate::replicaset::batches;
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
        Some(Verdict::Failure(..)) => {
            let steps = count.active.iter().map(|pod| Step::delete(&**pod, deleted(job, pod, now))).collect();
            return Work { steps: together(steps), active: count.coming, again: None };
        }
        Some(Verdict::Success) => {
            return Work { steps: ended(job, count, all, now), active: count.coming, again: None };
        }
        None if spec.suspend == Some(true) => {
            return Work { steps: ended(job, count, all, now), active: count.coming, again: None };
        }
        None => {}
    }
    let wanted = wanted(&spec, count, active);
    if active > wanted {
        let surplus = usize::try_from(active - wanted).unwrap_or(0).min(all);
        let left = active - i32::try_from(surplus).unwrap_or(0);
        return Work { steps: ended(job, count, surplus, now), active: left, again: None };
    }
    let mut missing = wanted - active;
    if spec.pod_replacement_policy.as_deref() == Some("Failed") {
        missing -= count.terminating;
    }
    if missing <= 0 {
        return Work { steps: Vec::new(), active, again: None };
    }
    if let Some(until) = count.wait_until.filter(|until| *until > now) {
        return Work { steps: Vec::new(), active, again: Some(until) };
    }
    let made = births(view, job, count, usize::try_from(missing).unwrap_or(0).min(MOST), now);
    let active = active + i32::try_from(made.len()).unwrap_or(0);
    Work { steps: batches(made), active, again: None }
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

/// Lets go of the pods that are missed least, then deletes them.
fn ended(job: &Job, count: &Count, how_many: usize, now: Timestamp) -> Vec<Step> {
    let mut victims: Vec<&Arc<Pod>> = count.active.iter().collect();
    victims.sort_by(|a, b| pods::victims_first(a, b, now));
    victims.truncate(how_many);
    let mut steps = together(victims.iter().filter_map(|pod| released(pod)).collect());
    steps.extend(together(victims.iter().map(|pod| Step::delete(&***pod, deleted(job, pod, now))).collect()));
    steps
}

/// Takes the finalizer from what is counted, and in a Job that has succeeded from what leaves uncounted.
pub(crate) fn letting_go(view: &View, count: &Count, verdict: Option<&Verdict>) -> Vec<Step> {
    let uncounted = count.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let known: BTreeSet<&str> =
        uncounted.succeeded.iter().chain(&uncounted.failed).flatten().map(String::as_str).collect();
    let counted = |pod: &&Arc<Pod>| {
        let completed = pods::phase(pod) == "Succeeded"
            && indexes::of(pod).is_some_and(|index| count.completed.contains(&index));
        let unwanted = verdict == Some(&Verdict::Success) && pods::terminating(pod);
        known.contains(uid(&pod.metadata)) || completed || unwanted
    };
    together(view.pods.iter().filter(|pod| held(pod)).filter(counted).filter_map(released).collect())
}

fn births(view: &View, job: &Job, count: &Count, how_many: usize, now: Timestamp) -> Vec<Step> {
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
    if job.spec.as_ref().and_then(|spec| spec.completion_mode.as_deref()) != Some("Indexed") {
        let names = Names::new(name(&job.metadata), uid(&job.metadata), taken());
        return names.take(how_many).map(|pod_name| create(named(&blank, pod_name))).collect();
    }
    free_indexes(view, job, count)
        .take(how_many)
        .filter_map(|index| {
            let base = format!("{}-{index}", name(&job.metadata));
            let pod_name = Names::new(&base, uid(&job.metadata), taken()).next()?;
            Some(create(indexed(named(&blank, pod_name), &base, index)))
        })
        .collect()
}

fn named(blank: &Pod, pod_name: String) -> Pod {
    let mut pod = blank.clone();
    pod.metadata.name = Some(pod_name);
    pod
}

/// The lowest indexes that are neither completed nor worked on.
fn free_indexes(view: &View, job: &Job, count: &Count) -> impl Iterator<Item = i32> {
    let completions = job.spec.as_ref().and_then(|spec| spec.completions).unwrap_or(0);
    let begin = format!("{}-", name(&job.metadata));
    let coming = view.unseen.coming.iter().filter_map(|pod_name| {
        let (index, _) = pod_name.strip_prefix(&begin)?.split_once('-')?;
        index.parse::<i32>().ok()
    });
    let busy: BTreeSet<i32> = count.active.iter().filter_map(|pod| indexes::of(pod)).chain(coming).collect();
    (0..completions).filter(move |index| !count.completed.contains(index) && !busy.contains(index))
}

/// Tells a pod its index: by annotation, label, host name and environment.
fn indexed(mut pod: Pod, hostname: &str, index: i32) -> Pod {
    pod.metadata.generate_name = Some(format!("{hostname}-"));
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(hostname.to_owned());
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            let env = container.env.get_or_insert_default();
            if env.iter().all(|known| known.name != "JOB_COMPLETION_INDEX") {
                let value = Some(index.to_string());
                env.push(EnvVar { name: "JOB_COMPLETION_INDEX".to_owned(), value, value_from: None });
            }
        }
    }
    pod
}
