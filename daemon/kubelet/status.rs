//! The status of a pod as observed: pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime::{ContainerState, Phase};

use crate::book::Pull;
use crate::plan::{self, View, attempts, exit_code, is_running, latest};

/// The status to be reported for this view.
pub(crate) fn of(view: &View, pod: &Pod, now: Timestamp) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let empty = k8s_openapi::api::core::v1::PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let init: Vec<ContainerStatus> =
        spec.init_containers.iter().flatten().map(|c| container(view, pod, c, now)).collect();
    let main: Vec<ContainerStatus> = spec.containers.iter().map(|c| container(view, pod, c, now)).collect();
    let phase = phase(view, pod);
    let initialized = spec.init_containers.iter().flatten().all(|c| init_done(view, c));
    let ready =
        !main.is_empty() && main.iter().all(|status| status.ready) && initialized && phase == "Running";
    let not_ready: Vec<&str> =
        main.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    let ended = matches!(phase, "Succeeded" | "Failed");
    let has_network = view.ip.is_some() || plan::on_host_network(pod);
    let sandbox_up = view.sandbox.as_ref().is_some_and(|sandbox| sandbox.alive) && has_network;
    let waiting = (!ready).then(|| match (phase, ended) {
        ("Succeeded", _) => ("PodCompleted".to_owned(), None),
        ("Failed", _) => ("PodFailed".to_owned(), None),
        _ => (
            "ContainersNotReady".to_owned(),
            Some(format!("containers with unready status: [{}]", not_ready.join(" "))),
        ),
    });
    let init_waiting = (!initialized).then(|| {
        let names: Vec<&str> =
            init.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        (
            "ContainersNotInitialized".to_owned(),
            Some(format!("containers with incomplete status: [{}]", names.join(" "))),
        )
    });
    let mut conditions = Vec::new();
    for (name, holds, why) in [
        ("PodReadyToStartContainers", sandbox_up && !ended, None),
        ("Initialized", initialized, init_waiting),
        ("Ready", ready, waiting.clone()),
        ("ContainersReady", ready, waiting),
    ] {
        conditions.push(condition(&old, name, holds, why, now));
    }
    let ours = |condition: &PodCondition| conditions.iter().any(|known| known.type_ == condition.type_);
    let others: Vec<PodCondition> =
        old.conditions.iter().flatten().filter(|condition| !ours(condition)).cloned().collect();
    conditions.extend(others);
    let ip = if plan::on_host_network(pod) { Some(view.host_ip.clone()) } else { view.ip.clone() }
        .or(old.pod_ip.clone().filter(|_| ended));
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        container_statuses: Some(main),
        init_container_statuses: (!init.is_empty()).then_some(init),
        host_ip: Some(view.host_ip.clone()),
        host_ips: Some(vec![HostIP { ip: view.host_ip.clone() }]),
        pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip: ip,
        start_time: old.start_time.clone().or(Some(Time(floor(now)))),
        message: view.notes.sandbox_problem.clone().or(old.message.clone().filter(|_| ended)),
        observed_generation: pod.metadata.generation,
        ..old
    }
}

/// Whether two statuses tell the same: times of transitions follow from the rest.
pub(crate) fn same(one: &PodStatus, other: &PodStatus) -> bool {
    let plain = |status: &PodStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_transition_time = None;
            condition.last_probe_time = None;
        }
        if let Some(conditions) = &mut status.conditions {
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        status.start_time = None;
        status
    };
    plain(one) == plain(other)
}

/// Times in statuses have whole seconds.
fn floor(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn condition(
    old: &PodStatus,
    name: &str,
    holds: bool,
    why: Option<(String, Option<String>)>,
    now: Timestamp,
) -> PodCondition {
    let status = if holds { "True" } else { "False" };
    let known = old.conditions.iter().flatten().find(|condition| condition.type_ == name);
    let since =
        known.filter(|known| known.status == status).and_then(|known| known.last_transition_time.clone());
    let (reason, message) = why.unzip();
    PodCondition {
        type_: name.to_owned(),
        status: status.to_owned(),
        last_transition_time: since.or(Some(Time(floor(now)))),
        reason,
        message: message.flatten(),
        ..PodCondition::default()
    }
}

fn init_done(view: &View, container: &Container) -> bool {
    let state = latest(view, &container.name);
    match container.restart_policy.as_deref() {
        Some("Always") => state.is_some_and(is_running),
        _ => state.and_then(exit_code) == Some(0),
    }
}

/// The documented phases: Pending until every container has started once, then Running until all have ended for good.
fn phase(view: &View, pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else { return "Pending" };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let init_failed =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() != Some("Always")).any(
            |c| policy == "Never" && latest(view, &c.name).and_then(exit_code).is_some_and(|code| code != 0),
        );
    if init_failed {
        return "Failed";
    }
    let states: Vec<Option<&ContainerState>> =
        spec.containers.iter().map(|c| latest(view, &c.name)).collect();
    if states.iter().any(Option::is_none) {
        let ran_before = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        return if ran_before { "Running" } else { "Pending" };
    }
    let codes: Vec<Option<i32>> = states.iter().map(|state| state.and_then(exit_code)).collect();
    let for_good = |code: &Option<i32>| match (policy, code) {
        (_, None) | ("Always", _) => false,
        ("OnFailure", Some(code)) => *code == 0,
        (_, Some(_)) => true,
    };
    // A pod that is going gets no restarts: what has ended has ended.
    let going = pod.metadata.deletion_timestamp.is_some() && codes.iter().all(Option::is_some);
    match codes.iter().all(for_good) || going {
        true if codes.iter().all(|code| *code == Some(0)) => "Succeeded",
        true => "Failed",
        false => "Running",
    }
}

fn container(view: &View, pod: &Pod, container: &Container, now: Timestamp) -> ContainerStatus {
    let name = &container.name;
    let known = pod.status.iter().flat_map(|status| {
        status.container_statuses.iter().chain(status.init_container_statuses.iter()).flatten()
    });
    let known = known.into_iter().find(|status| status.name == *name);
    let state = latest(view, name);
    let previous = state.and_then(|state| {
        attempts(view, name).filter(|other| other.attempt < state.attempt).max_by_key(|other| other.attempt)
    });
    let image = container.image.clone().unwrap_or_default();
    let image_id = view.images.get(&image).cloned().flatten().unwrap_or_default();
    let probed = view
        .notes
        .probes
        .get(name)
        .filter(|probed| state.is_some_and(|state| state.attempt == probed.attempt));
    let running = state.is_some_and(is_running);
    let init =
        pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).any(|init| init.name == *name);
    let sidecar = container.restart_policy.as_deref() == Some("Always");
    let started =
        running && (container.startup_probe.is_none() || probed.is_some_and(|probed| probed.started));
    let ready = match (init && !sidecar, &container.readiness_probe) {
        (true, _) => state.and_then(exit_code) == Some(0),
        (false, None) => started,
        (false, Some(_)) => started && probed.and_then(|probed| probed.ready).unwrap_or(false),
    };
    let restarts = state.map_or(known.map_or(0, |known| known.restart_count), |state| {
        i32::try_from(state.attempt).unwrap_or(i32::MAX)
    });
    let (now_state, last_state) = match state {
        Some(state) => present(view, pod, state, previous, now),
        // A sandbox that was lost took the state of its containers along; the API still knows how they were.
        None => (
            waiting(view, container),
            known.and_then(|known| {
                known.last_state.clone().or(known.state.clone().filter(|state| state.terminated.is_some()))
            }),
        ),
    };
    ContainerStatus {
        name: name.clone(),
        image,
        image_id: if image_id.is_empty() {
            String::new()
        } else {
            format!("sha256:{}", image_id.trim_start_matches("sha256:"))
        },
        container_id: state
            .map(|state| id(pod, state))
            .or(known.and_then(|known| known.container_id.clone())),
        ready,
        started: Some(started),
        restart_count: restarts,
        state: Some(now_state),
        last_state,
        ..ContainerStatus::default()
    }
}

/// Runtime's name, pod, container and attempt: unique, and telling.
fn id(pod: &Pod, state: &ContainerState) -> String {
    format!("holdfast://{}/{}/{}", pod.metadata.uid.as_deref().unwrap_or_default(), state.name, state.attempt)
}

fn present(
    view: &View,
    pod: &Pod,
    state: &ContainerState,
    previous: Option<&ContainerState>,
    now: Timestamp,
) -> (ApiState, Option<ApiState>) {
    let last = previous.map(|previous| terminated(view, pod, previous));
    match state.phase {
        Phase::Running { .. } => {
            let running = ContainerStateRunning { started_at: Some(Time(floor(state.started_at))) };
            (ApiState { running: Some(running), ..ApiState::default() }, last)
        }
        Phase::Exited { code, .. } => {
            let policy = policy(pod, &state.name);
            let restarts = pod.metadata.deletion_timestamp.is_none()
                && (policy == "Always" || (policy == "OnFailure" && code != 0));
            let due = plan::restart_due(view, state);
            if let Some(failed) = view.notes.failed_starts.get(&state.name).filter(|_| restarts) {
                return (
                    wait(failed.reason, Some(failed.message.clone())),
                    Some(terminated(view, pod, state)),
                );
            }
            if restarts && now < due {
                let text = format!(
                    "back-off {} restarting failed container={} pod={}_{}({})",
                    human(due.duration_since(match state.phase {
                        Phase::Exited { finished_at, .. } => finished_at,
                        Phase::Running { .. } => now,
                    })),
                    state.name,
                    pod.metadata.name.as_deref().unwrap_or_default(),
                    pod.metadata.namespace.as_deref().unwrap_or_default(),
                    pod.metadata.uid.as_deref().unwrap_or_default(),
                );
                return (wait("CrashLoopBackOff", Some(text)), Some(terminated(view, pod, state)));
            }
            (terminated(view, pod, state), last)
        }
    }
}

fn policy<'a>(pod: &'a Pod, name: &str) -> &'a str {
    let Some(spec) = &pod.spec else { return "Always" };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    match spec.init_containers.iter().flatten().find(|init| init.name == name) {
        Some(init) if init.restart_policy.as_deref() == Some("Always") => "Always",
        Some(_) if policy == "Always" => "OnFailure",
        _ => policy,
    }
}

/// `1m20s`, as Go prints durations.
fn human(duration: jiff::SignedDuration) -> String {
    let seconds = duration.as_secs();
    if seconds >= 60 { format!("{}m{}s", seconds / 60, seconds % 60) } else { format!("{seconds}s") }
}

fn terminated(view: &View, pod: &Pod, state: &ContainerState) -> ApiState {
    let Phase::Exited { code, signal, oom_killed, finished_at } = state.phase else {
        return ApiState::default();
    };
    let reason = match (oom_killed, code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    let words = view.last_words.get(&(state.name.clone(), state.attempt)).cloned();
    let message = words.or_else(|| (!state.message.is_empty()).then(|| state.message.clone()));
    let terminated = ContainerStateTerminated {
        container_id: Some(id(pod, state)),
        exit_code: code,
        signal,
        reason: Some(reason.to_owned()),
        message,
        started_at: Some(Time(floor(state.started_at))),
        finished_at: Some(Time(floor(finished_at))),
    };
    ApiState { terminated: Some(terminated), ..ApiState::default() }
}

fn wait(reason: &str, message: Option<String>) -> ApiState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ApiState { waiting: Some(waiting), ..ApiState::default() }
}

/// Why a container that has not started in this sandbox is not there yet.
fn waiting(view: &View, container: &Container) -> ApiState {
    let image = container.image.as_deref().unwrap_or_default();
    if let Some(failed) = view.notes.failed_starts.get(&container.name) {
        return wait(failed.reason, Some(failed.message.clone()));
    }
    let here = view.images.get(image).is_some_and(Option::is_some);
    match view.notes.pulls.get(image) {
        Some(Pull::Failed { message, tries, .. }) if !here => {
            let reason = if *tries > 1 { "ImagePullBackOff" } else { "ErrImagePull" };
            return wait(reason, Some(message.clone()));
        }
        None if !here && container.image_pull_policy.as_deref() == Some("Never") => {
            let message = format!(
                "image {image:?} is not on this node and its pull policy is Never: `holdfast image load` it, or let it be pulled"
            );
            return wait("ErrImageNeverPull", Some(message));
        }
        _ => {}
    }
    if let Some(missing) = &view.missing {
        return wait("CreateContainerConfigError", Some(missing.clone()));
    }
    if let Some(problem) = &view.notes.files_problem {
        return wait("ContainerCreating", Some(problem.clone()));
    }
    let initializing = !view
        .pod
        .iter()
        .flat_map(|pod| &pod.spec)
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .all(|init| init_done(view, init));
    wait(if initializing { "PodInitializing" } else { "ContainerCreating" }, None)
}
