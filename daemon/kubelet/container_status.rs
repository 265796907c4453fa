//! The status of one container as observed: pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, Pod, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime::Phase;

use crate::book::Pull;
use crate::plan::View;
use crate::resize;
use crate::rules::{self, Attempt, Member, Origin, Role};
use crate::status::floor;

pub(crate) fn of(view: &View, pod: &Pod, member: &Member<'_>, now: Timestamp) -> ContainerStatus {
    let container = &member.container;
    let name = &container.name;
    let known = rules::status(pod, name);
    let attempts = rules::attempts(view, name);
    let latest = attempts.last();
    let begun = latest.and_then(|attempt| rules::begun(view, name, attempt.state.attempt));
    let wanted = container.image.clone().unwrap_or_default();
    // One that is to be replaced by another image is of its old one until then.
    let image = begun.map_or(wanted, |begun| begun.image.clone());
    let known_id = known.filter(|known| known.image == image).map(|known| known.image_id.clone());
    let image_id = view.images.get(&image).cloned().flatten().or(known_id.filter(|id| !id.is_empty()));
    let started = latest.is_some_and(|attempt| rules::is_started(view, member, attempt));
    let restarts = match (latest, known) {
        (Some(attempt), _) => i32::try_from(attempt.state.attempt).unwrap_or(i32::MAX),
        (None, known) => known.map_or(0, |known| known.restart_count),
    };
    let (state, last_state) = states(view, pod, member, &attempts, now);
    let here = latest.filter(|attempt| attempt.origin != Origin::Told);
    let given = latest.and_then(|attempt| resize::applied(view, member, attempt.state.attempt));
    let given = given.or_else(|| resources(container.resources.as_ref()));
    ContainerStatus {
        name: name.clone(),
        image,
        image_id: image_id
            .map(|id| format!("sha256:{}", id.trim_start_matches("sha256:")))
            .unwrap_or_default(),
        container_id: here
            .map(|attempt| id(pod, attempt))
            .or(known.and_then(|known| known.container_id.clone())),
        ready: ready(view, member, latest, started),
        started: Some(started),
        restart_count: restarts,
        state: Some(state),
        last_state,
        allocated_resources: given.as_ref().and_then(|given| given.requests.clone()),
        resources: given,
        volume_mounts: volume_mounts(member),
        user: begun.and_then(|begun| begun.user.clone()),
        stop_signal: container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
        ..ContainerStatus::default()
    }
}

fn ready(view: &View, member: &Member<'_>, latest: Option<&Attempt>, started: bool) -> bool {
    let Some(attempt) = latest else { return false };
    let probed = view.notes.probes.get(&member.container.name);
    let probed = probed.filter(|probed| probed.attempt == attempt.state.attempt);
    match (member.role, &member.container.readiness_probe) {
        (Role::Init, _) => attempt.exit_code() == Some(0),
        (Role::Ephemeral, _) => false,
        (_, None) => started,
        (_, Some(_)) => started && probed.and_then(|probed| probed.ready).unwrap_or(false),
    }
}

fn resources(of: Option<&ResourceRequirements>) -> Option<ResourceRequirements> {
    let of = of?;
    (of.limits.is_some() || of.requests.is_some()).then(|| ResourceRequirements {
        claims: None,
        limits: of.limits.clone(),
        requests: of.requests.clone(),
    })
}

fn volume_mounts(member: &Member<'_>) -> Option<Vec<VolumeMountStatus>> {
    let mounts = member.container.volume_mounts.as_ref()?;
    let told = mounts.iter().map(|mount| {
        let read_only = mount.read_only.unwrap_or(false);
        // What a container sees read-only beneath a read-only volume is told only where the volume is one.
        let recursive = match mount.recursive_read_only.as_deref() {
            Some("Enabled" | "IfPossible") => "Enabled",
            _ => "Disabled",
        };
        VolumeMountStatus {
            mount_path: mount.mount_path.clone(),
            name: mount.name.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| recursive.to_owned()),
            ..VolumeMountStatus::default()
        }
    });
    Some(told.collect())
}

/// Runtime's name, pod, container and attempt: unique, and telling.
fn id(pod: &Pod, attempt: &Attempt) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    format!("holdfast://{uid}/{}/{}", attempt.state.name, attempt.state.attempt)
}

/// How it is, and how it ended the time before.
fn states(
    view: &View,
    pod: &Pod,
    member: &Member<'_>,
    attempts: &[Attempt],
    now: Timestamp,
) -> (ApiState, Option<ApiState>) {
    let name = &member.container.name;
    let known_last = rules::status(pod, name).and_then(|known| known.last_state.clone());
    let Some((attempt, earlier)) = attempts.split_last() else {
        return (waiting(view, pod, member), known_last);
    };
    let last = earlier.last().map(|earlier| terminated(view, pod, earlier));
    let last = last.or_else(|| known_last.filter(|_| attempt.state.attempt > 0));
    let Phase::Exited { finished_at, .. } = attempt.state.phase else {
        if rules::in_post_start(view, name, attempt.state.attempt) {
            return (waiting(view, pod, member), last);
        }
        let running = ContainerStateRunning { started_at: Some(Time(floor(attempt.state.started_at))) };
        return (ApiState { running: Some(running), ..ApiState::default() }, last);
    };
    let code = attempt.exit_code().unwrap_or_default();
    let going = pod.metadata.deletion_timestamp.is_some();
    if going || !rules::restarts(pod, member, code) {
        return (terminated(view, pod, attempt), last);
    }
    let due = rules::restart_due(view, attempt);
    let ended = Some(terminated(view, pod, attempt));
    if stands_still(view, member) {
        return (waiting(view, pod, member), ended);
    }
    if now < due {
        let meta = &pod.metadata;
        let text = format!(
            "back-off {} restarting failed container={name} pod={}_{}({})",
            human(due.duration_since(finished_at)),
            meta.name.as_deref().unwrap_or_default(),
            meta.namespace.as_deref().unwrap_or_default(),
            meta.uid.as_deref().unwrap_or_default(),
        );
        return (wait("CrashLoopBackOff", Some(text)), ended);
    }
    match attempt.origin {
        Origin::Told => (waiting(view, pod, member), ended),
        Origin::Runtime | Origin::NotStarted => (terminated(view, pod, attempt), last),
    }
}

/// Something other than time keeps it from being started again.
fn stands_still(view: &View, member: &Member<'_>) -> bool {
    let name = &member.container.name;
    view.blocked.contains_key(name)
        || view.notes.failed_starts.get(name).is_some_and(|failed| failed.code.is_none())
}

/// `1m20s`, as Go prints durations.
fn human(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    if seconds >= 60 { format!("{}m{}s", seconds / 60, seconds % 60) } else { format!("{seconds}s") }
}

fn terminated(view: &View, pod: &Pod, attempt: &Attempt) -> ApiState {
    let Phase::Exited { code, signal, oom_killed, finished_at } = attempt.state.phase else {
        return ApiState::default();
    };
    if attempt.origin == Origin::Told {
        return told(pod, attempt);
    }
    let reason = match (attempt.origin, oom_killed, code) {
        (Origin::NotStarted, ..) => "StartError",
        (_, true, _) => "OOMKilled",
        (_, false, 0) => "Completed",
        (_, false, _) => "Error",
    };
    let state = &attempt.state;
    let words = view.last_words.get(&(state.name.clone(), state.attempt)).cloned();
    let message = words.or_else(|| (!state.message.is_empty()).then(|| state.message.clone()));
    let terminated = ContainerStateTerminated {
        container_id: Some(id(pod, attempt)),
        exit_code: code,
        signal,
        reason: Some(reason.to_owned()),
        message,
        started_at: Some(Time(floor(state.started_at))),
        finished_at: Some(Time(floor(finished_at))),
    };
    ApiState { terminated: Some(terminated), ..ApiState::default() }
}

/// The end of a container that went with its sandbox: as the API has it, or lost.
fn told(pod: &Pod, attempt: &Attempt) -> ApiState {
    let known = rules::status(pod, &attempt.state.name);
    let ended = |state: &Option<ApiState>| state.clone().filter(|state| state.terminated.is_some());
    let runs = known.and_then(|known| known.state.as_ref()).is_some_and(|state| state.running.is_some());
    let kept = known.filter(|_| !runs).and_then(|known| ended(&known.state).or(ended(&known.last_state)));
    kept.unwrap_or_else(|| {
        let lost = ContainerStateTerminated {
            exit_code: rules::LOST_CODE,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            ..ContainerStateTerminated::default()
        };
        ApiState { terminated: Some(lost), ..ApiState::default() }
    })
}

fn wait(reason: &str, message: Option<String>) -> ApiState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ApiState { waiting: Some(waiting), ..ApiState::default() }
}

/// Why a container that does not run is not there yet.
fn waiting(view: &View, pod: &Pod, member: &Member<'_>) -> ApiState {
    let container = &member.container;
    let image = container.image.as_deref().unwrap_or_default();
    if let Some(refused) = &view.refused {
        return wait("CreateContainerConfigError", Some(refused.clone()));
    }
    let failed = view.notes.failed_starts.get(&container.name).filter(|failed| failed.code.is_none());
    if let Some(failed) = failed {
        return wait("CreateContainerError", Some(failed.message.clone()));
    }
    if image.parse::<images::Reference>().is_err() {
        return wait("InvalidImageName", Some(invalid_name(image)));
    }
    let here = view.images.get(image).is_some_and(Option::is_some);
    match view.notes.pulls.get(image) {
        Some(Pull::Failed { message, tries: 1, .. }) if !here => {
            return wait("ErrImagePull", Some(message.clone()));
        }
        Some(Pull::Failed { message, .. }) if !here => {
            let message = format!("Back-off pulling image {image:?}: ErrImagePull: {message}");
            return wait("ImagePullBackOff", Some(message));
        }
        None if !here && container.image_pull_policy.as_deref() == Some("Never") => {
            let message = format!(
                "Container image {image:?} is not present with pull policy of Never: `holdfast image load` it, or let it be pulled"
            );
            return wait("ErrImageNeverPull", Some(message));
        }
        _ => {}
    }
    let init = pod.spec.as_ref().is_some_and(|spec| spec.init_containers.iter().flatten().next().is_some());
    let holds_files = view.notes.files_hold.is_some();
    let token = view.notes.token_problem.as_ref().map(|(why, _)| why);
    let missing = token.or(view.missing.as_ref()).filter(|_| !holds_files);
    let problem = missing.or(view.notes.files_problem.as_ref().map(|problem| &problem.why));
    if let Some(problem) = problem {
        return wait(if init { "PodInitializing" } else { "ContainerCreating" }, Some(problem.clone()));
    }
    let blocked = view.blocked.get(&container.name).filter(|_| here && is_next(view, pod, member));
    if let Some(blocked) = blocked {
        return wait("CreateContainerConfigError", Some(blocked.clone()));
    }
    wait(if init { "PodInitializing" } else { "ContainerCreating" }, None)
}

/// What is documented for a name that cannot be one, with what is wrong about it.
pub(crate) fn invalid_name(image: &str) -> String {
    let why = image.parse::<images::Reference>().err().map(|error| error.to_string()).unwrap_or_default();
    format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}")
}

/// Whether it is this container's turn: those that come later have no reason of their own to wait.
fn is_next(view: &View, pod: &Pod, member: &Member<'_>) -> bool {
    let members = rules::members(pod);
    let initialized = rules::progress(view, pod, &members).initialized;
    match member.role {
        Role::Main => initialized,
        Role::Ephemeral => true,
        Role::Init | Role::Sidecar => {
            let before = members.iter().take_while(|other| other.container.name != member.container.name);
            initialized || before.into_iter().all(|other| rules::init_done(view, other))
        }
    }
}
