//! What to do about one pod: pure.
//!
//! The order of a pod's life: sandbox → address → files → images → init containers one by one → the others; and back:
//! SIGTERM → grace → SIGKILL → sandbox away → address free → the object may go.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use reconcile::Plan;
use runtime::{ContainerState, Phase, SandboxState};

use crate::book::{Notes, Pull};
use crate::probes::Wanted;
use crate::status;

/// Back-off never grows beyond this, and is forgotten by a container that ran this long twice over, as documented.
const LONGEST_BACKOFF_SECONDS: i64 = 300;

/// Everything that the plan of one pod may look at.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// None: gone from the cluster, or never ours.
    pub(crate) pod: Option<Pod>,
    pub(crate) sandbox: Option<SandboxState>,
    /// The pod's address in the network, if it has one.
    pub(crate) ip: Option<String>,
    pub(crate) host_ip: String,
    /// Which of the pod's images are here, and under which id.
    pub(crate) images: std::collections::BTreeMap<String, Option<String>>,
    /// Something that volumes or environment need is missing.
    pub(crate) missing: Option<String>,
    /// Hash of what the volumes are to hold.
    pub(crate) files_wanted: u64,
    pub(crate) notes: Notes,
    /// What containers left as their last words.
    pub(crate) last_words: std::collections::BTreeMap<(String, u32), String>,
    pub(crate) probing: Vec<Wanted>,
    pub(crate) has_files: bool,
    pub(crate) crash_backoff_seconds: u32,
}

/// One effect on a pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    StartSandbox,
    /// Removes containers, namespaces, cgroups; what runs is killed.
    StopSandbox,
    Attach,
    Detach,
    WriteFiles,
    RemoveFiles,
    Pull {
        image: String,
        why: &'static str,
    },
    Start {
        container: String,
        attempt: u32,
    },
    /// Frees an attempt that nobody asks about any more.
    Forget {
        container: String,
        attempt: u32,
    },
    Signal {
        container: String,
        attempt: u32,
        signal: i32,
    },
    /// SIGTERM to all, noted, so that the grace period has a beginning.
    AskToStop {
        containers: Vec<(String, u32)>,
    },
    Probe {
        wanted: Vec<Wanted>,
    },
    WriteStatus {
        status: Box<PodStatus>,
    },
    /// Tells the API server that nothing of the pod is left.
    Release,
    ForgetPod,
}

pub(crate) fn plan(view: &View, now: Timestamp) -> Plan<Step> {
    match &view.pod {
        None => gone(view),
        Some(pod) if pod.metadata.deletion_timestamp.is_some() => going(view, pod, now),
        Some(pod) if has_ended(pod) => ended(view),
        Some(pod) => living(view, pod, now),
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Not in the cluster any more: nothing of it stays.
fn gone(view: &View) -> Plan<Step> {
    let mut steps = teardown(view);
    if view.has_files {
        steps.push(Step::RemoveFiles);
    }
    if view.notes != Notes::default() {
        steps.push(Step::ForgetPod);
    }
    Plan::in_turn(steps)
}

fn teardown(view: &View) -> Vec<Step> {
    let mut steps = Vec::new();
    if !view.probing.is_empty() {
        steps.push(Step::Probe { wanted: Vec::new() });
    }
    if view.sandbox.is_some() {
        steps.push(Step::StopSandbox);
    }
    // The address is free only when the network namespace is gone, so detaching comes after stopping.
    if view.ip.is_some() {
        steps.push(Step::Detach);
    }
    steps
}

/// Succeeded or failed for good: its last state is in the API, its logs stay until the object is deleted.
fn ended(view: &View) -> Plan<Step> {
    Plan::in_turn(teardown(view))
}

fn going(view: &View, pod: &Pod, now: Timestamp) -> Plan<Step> {
    let running: Vec<(String, u32)> = newest(view)
        .filter(|state| is_running(state))
        .map(|state| (state.name.clone(), state.attempt))
        .collect();
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    if !running.is_empty() {
        let Some(asked) = view.notes.asked_to_stop else {
            return Plan::in_turn(vec![
                Step::Probe { wanted: Vec::new() },
                Step::AskToStop { containers: running },
            ])
            .again_at(now + seconds(grace));
        };
        let end = asked + seconds(grace);
        if now < end {
            return Plan::empty().again_at(end);
        }
        let kill = |(container, attempt)| Step::Signal { container, attempt, signal: 9 };
        return Plan::together(running.into_iter().map(kill).collect());
    }
    let mut steps = Vec::new();
    if view.sandbox.is_some() {
        steps.extend(write_status(view, pod, now));
    }
    steps.extend(teardown(view));
    if view.has_files {
        steps.push(Step::RemoveFiles);
    }
    steps.push(Step::Release);
    Plan::in_turn(steps)
}

fn living(view: &View, pod: &Pod, now: Timestamp) -> Plan<Step> {
    let mut plan = Plan::empty();
    match &view.sandbox {
        Some(sandbox) if !sandbox.alive => {
            // Its shim is lost and with it the namespaces: nothing in it can be saved.
            plan.steps.extend([Step::StopSandbox]);
            plan.steps.extend(view.ip.is_some().then_some(Step::Detach));
        }
        Some(_) if view.ip.is_none() && !on_host_network(pod) => plan.steps.push(Step::Attach),
        Some(_) => containers(view, pod, now, &mut plan),
        None => {
            plan.steps.push(Step::StartSandbox);
            pulls(view, pod, now, &mut plan);
        }
    }
    plan.steps.extend(write_status(view, pod, now));
    plan
}

pub(crate) fn on_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

fn containers(view: &View, pod: &Pod, now: Timestamp, plan: &mut Plan<Step>) {
    pulls(view, pod, now, plan);
    if view.missing.is_some()
        || view.notes.files_problem.is_some() && view.notes.files_hold != Some(view.files_wanted)
    {
        if view.missing.is_none() {
            plan.steps.push(Step::WriteFiles);
        }
        return;
    }
    if view.notes.files_hold != Some(view.files_wanted) {
        plan.steps.push(Step::WriteFiles);
    }
    let Some(spec) = &pod.spec else { return };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let mut all_initialized = true;
    for init in spec.init_containers.iter().flatten() {
        let sidecar = init.restart_policy.as_deref() == Some("Always");
        let done = match latest(view, &init.name) {
            Some(state) if sidecar => is_running(state),
            Some(state) => exit_code(state) == Some(0),
            None => false,
        };
        if sidecar || !done {
            let policy = if sidecar {
                "Always"
            } else if policy == "Always" {
                "OnFailure"
            } else {
                policy
            };
            one(view, pod, init, policy, now, plan);
        }
        if !done {
            all_initialized = false;
            break;
        }
    }
    if all_initialized {
        for container in &spec.containers {
            one(view, pod, container, policy, now, plan);
        }
    }
    let wanted = crate::probes::wanted(
        pod,
        view.sandbox.as_ref(),
        view.ip.as_deref().unwrap_or(&view.host_ip),
        &view.notes,
    );
    if wanted != view.probing {
        plan.steps.push(Step::Probe { wanted });
    }
}

/// Starts, restarts or leaves one container.
fn one(view: &View, pod: &Pod, container: &Container, policy: &str, now: Timestamp, plan: &mut Plan<Step>) {
    let name = &container.name;
    let attempt = match latest(view, name) {
        None => first_attempt(pod, name),
        Some(state) if is_running(state) => {
            stop_unhealthy(view, pod, state, now, plan);
            return;
        }
        Some(state) => {
            let failed = exit_code(state) != Some(0);
            if policy == "Never" || (policy == "OnFailure" && !failed) {
                return;
            }
            let due = restart_due(view, state);
            if now < due {
                plan.look_again(due);
                return;
            }
            state.attempt + 1
        }
    };
    if let Some(failed) = view.notes.failed_starts.get(name)
        && now < failed.again
    {
        let again = failed.again;
        plan.look_again(again);
        return;
    }
    let here = container.image.as_ref().and_then(|image| view.images.get(image)).is_some_and(Option::is_some);
    if !here || must_pull_first(view, container) {
        return;
    }
    plan.steps.push(Step::Start { container: name.clone(), attempt });
    // One attempt before the present one is kept, for its exit code and `logs --previous`.
    let old = attempts(view, name).filter(|state| state.attempt + 1 < attempt);
    plan.steps.extend(old.map(|state| Step::Forget { container: name.clone(), attempt: state.attempt }));
}

/// A container whose liveness or startup probe failed too often is asked, then made, to stop.
fn stop_unhealthy(view: &View, pod: &Pod, state: &ContainerState, now: Timestamp, plan: &mut Plan<Step>) {
    let probed = view.notes.probes.get(&state.name).filter(|probed| probed.attempt == state.attempt);
    if probed.is_none_or(|probed| probed.must_restart.is_none()) {
        return;
    }
    let signal = |signal| Step::Signal { container: state.name.clone(), attempt: state.attempt, signal };
    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    match view.notes.unhealthy.get(&state.name) {
        Some((attempt, asked)) if *attempt == state.attempt => {
            let end = *asked + seconds(grace);
            if now >= end {
                plan.steps.push(signal(9));
            } else {
                plan.look_again(end);
            }
        }
        _ => {
            plan.steps.push(signal(15));
            plan.look_again(now + seconds(grace));
        }
    }
}

/// After a restart of the machine attempts go on counting where the API knows them to have been.
fn first_attempt(pod: &Pod, name: &str) -> u32 {
    let statuses = pod.status.iter().flat_map(|status| {
        status.container_statuses.iter().chain(status.init_container_statuses.iter()).flatten()
    });
    let known = statuses.into_iter().find(|status| status.name == name && status.container_id.is_some());
    known.map_or(0, |status| u32::try_from(status.restart_count).unwrap_or(0) + 1)
}

/// The first restart comes at once; later ones wait 10 s, 20 s, … 5 min, as documented.
pub(crate) fn restart_due(view: &View, state: &ContainerState) -> Timestamp {
    let Phase::Exited { finished_at, .. } = state.phase else { return Timestamp::MIN };
    finished_at + backoff(view, state)
}

fn backoff(view: &View, state: &ContainerState) -> SignedDuration {
    let Phase::Exited { finished_at, .. } = state.phase else { return SignedDuration::ZERO };
    let ran_long = finished_at.duration_since(state.started_at) >= seconds(2 * LONGEST_BACKOFF_SECONDS);
    if ran_long || state.attempt == 0 {
        return SignedDuration::ZERO;
    }
    let doubled = i64::from(view.crash_backoff_seconds).saturating_mul(1i64 << (state.attempt - 1).min(20));
    seconds(doubled.min(LONGEST_BACKOFF_SECONDS))
}

/// Images that are not here and are not being fetched.
fn pulls(view: &View, pod: &Pod, now: Timestamp, plan: &mut Plan<Step>) {
    let Some(spec) = &pod.spec else { return };
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let Some(image) = &container.image else { continue };
        let here = view.images.get(image).is_some_and(Option::is_some);
        let never = container.image_pull_policy.as_deref() == Some("Never");
        if never || (here && !must_pull_first(view, container)) {
            continue;
        }
        match view.notes.pulls.get(image) {
            Some(Pull::Running) => {}
            Some(Pull::Failed { again, .. }) if now < *again => {
                *plan = std::mem::replace(plan, Plan::empty()).again_at(*again)
            }
            _ => {
                let why = if here { "pull policy Always" } else { "not present on machine" };
                let step = Step::Pull { image: image.clone(), why };
                if !plan.steps.contains(&step) {
                    plan.steps.push(step);
                }
            }
        }
    }
}

/// With pull policy Always an image is asked for before the pod's first start of it. It is not asked for when it was
/// built or loaded on this machine under a name that no registry serves.
fn must_pull_first(view: &View, container: &Container) -> bool {
    let always = container.image_pull_policy.as_deref() == Some("Always");
    let pulled = container.image.as_ref().is_some_and(|image| view.notes.pulls.contains_key(image));
    always && !pulled && latest(view, &container.name).is_none()
}

fn write_status(view: &View, pod: &Pod, now: Timestamp) -> Option<Step> {
    let status = status::of(view, pod, now);
    let known = view.notes.written.as_ref().or(pod.status.as_ref());
    if known.is_some_and(|known| status::same(known, &status)) {
        return None;
    }
    Some(Step::WriteStatus { status: Box::new(status) })
}

pub(crate) fn attempts<'a>(view: &'a View, name: &'a str) -> impl Iterator<Item = &'a ContainerState> {
    view.sandbox.iter().flat_map(|sandbox| &sandbox.containers).filter(move |state| state.name == name)
}

pub(crate) fn latest<'a>(view: &'a View, name: &'a str) -> Option<&'a ContainerState> {
    attempts(view, name).max_by_key(|state| state.attempt)
}

fn newest(view: &View) -> impl Iterator<Item = &ContainerState> {
    view.sandbox.iter().filter(|sandbox| sandbox.alive).flat_map(|sandbox| &sandbox.containers)
}

pub(crate) fn is_running(state: &ContainerState) -> bool {
    matches!(state.phase, Phase::Running { .. })
}

pub(crate) fn exit_code(state: &ContainerState) -> Option<i32> {
    match state.phase {
        Phase::Running { .. } => None,
        Phase::Exited { code, .. } => Some(code),
    }
}

fn seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}
