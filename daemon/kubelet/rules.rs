//! The documented rules of a pod's containers: who is who, who is started again and when, how far the pod has come. Pure.

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, EphemeralContainer, Pod};
use runtime::{ContainerState, Phase};

use crate::book::Begun;
use crate::plan::View;

/// Back-off never grows beyond this, and is forgotten by a container that ran this long twice over, as documented.
const LONGEST_BACKOFF_SECONDS: i64 = 300;
/// How a container that was lost with its sandbox is told to have ended.
pub(crate) const LOST_CODE: i32 = 137;

/// What a container is in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next one.
    Init,
    /// An init container with restart policy Always: runs beside the others, from before until after them.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// Added to a running pod; never started again.
    Ephemeral,
}

/// A container and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Member<'a> {
    pub(crate) role: Role,
    pub(crate) container: Cow<'a, Container>,
    /// For an ephemeral container: whose processes it sees.
    pub(crate) target: Option<&'a str>,
}

/// Every container of the pod: init containers in their order, the main ones, the ephemeral ones.
pub(crate) fn members(pod: &Pod) -> Vec<Member<'_>> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let own = |role, container| Member { role, container: Cow::Borrowed(container), target: None };
    let init = spec.init_containers.iter().flatten().map(|container| {
        let lasting = container.restart_policy.as_deref() == Some("Always");
        own(if lasting { Role::Sidecar } else { Role::Init }, container)
    });
    let main = spec.containers.iter().map(|container| own(Role::Main, container));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| Member {
        role: Role::Ephemeral,
        container: Cow::Owned(plain(container)),
        target: container.target_container_name.as_deref().filter(|name| !name.is_empty()),
    });
    init.chain(main).chain(ephemeral).collect()
}

/// One container of the pod.
pub(crate) fn find<'a>(pod: &'a Pod, name: &str) -> Option<Member<'a>> {
    members(pod).into_iter().find(|member| member.container.name == name)
}

/// An ephemeral container has the fields of a container, and one more.
fn plain(from: &EphemeralContainer) -> Container {
    let from = from.clone();
    Container {
        args: from.args,
        command: from.command,
        env: from.env,
        env_from: from.env_from,
        image: from.image,
        image_pull_policy: from.image_pull_policy,
        lifecycle: from.lifecycle,
        liveness_probe: from.liveness_probe,
        name: from.name,
        ports: from.ports,
        readiness_probe: from.readiness_probe,
        resize_policy: from.resize_policy,
        resources: from.resources,
        restart_policy: from.restart_policy,
        restart_policy_rules: from.restart_policy_rules,
        security_context: from.security_context,
        startup_probe: from.startup_probe,
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        termination_message_path: from.termination_message_path,
        termination_message_policy: from.termination_message_policy,
        tty: from.tty,
        volume_devices: from.volume_devices,
        volume_mounts: from.volume_mounts,
        working_dir: from.working_dir,
    }
}

/// Whether a container that ended with this code is started again.
pub(crate) fn restarts(pod: &Pod, member: &Member<'_>, code: i32) -> bool {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let own = member.container.restart_policy.as_deref();
    let rules = member.container.restart_policy_rules.iter().flatten();
    let fits = |rule: &&k8s_openapi::api::core::v1::ContainerRestartRule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|value| *value == code);
            listed == (codes.operator == "In")
        })
    };
    match (member.role, own.unwrap_or(of_pod)) {
        (Role::Ephemeral, _) => false,
        (Role::Sidecar, _) => true,
        (Role::Init | Role::Main, _) if rules.clone().any(|rule| fits(&rule)) => true,
        (Role::Init, policy) => policy != "Never" && code != 0,
        (Role::Main, "Always") => true,
        (Role::Main, policy) => policy == "OnFailure" && code != 0,
    }
}

/// Where an attempt is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The runtime has it.
    Runtime,
    /// Its program could not be started.
    NotStarted,
    /// The API tells of it; with its sandbox it is gone.
    Told,
}

/// An attempt at running a container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Attempt {
    pub(crate) state: ContainerState,
    pub(crate) origin: Origin,
}

impl Attempt {
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state.phase, Phase::Running { .. })
    }

    pub(crate) fn exit_code(&self) -> Option<i32> {
        match self.state.phase {
            Phase::Running { .. } => None,
            Phase::Exited { code, .. } => Some(code),
        }
    }
}

/// The attempts at a container that are known, oldest first.
pub(crate) fn attempts(view: &View, name: &str) -> Vec<Attempt> {
    let here = view.sandbox.iter().flat_map(|sandbox| &sandbox.containers);
    let here = here.filter(|state| state.name == name);
    let mut found: Vec<Attempt> =
        here.map(|state| Attempt { state: state.clone(), origin: Origin::Runtime }).collect();
    if let Some(failed) = view.notes.failed_starts.get(name)
        && let Some(code) = failed.code
        && found.iter().all(|attempt| attempt.state.attempt < failed.attempt)
    {
        let phase = Phase::Exited { code, signal: None, oom_killed: false, finished_at: failed.at };
        let state = ContainerState {
            name: name.to_owned(),
            attempt: failed.attempt,
            started_at: failed.at,
            phase,
            message: failed.message.clone(),
        };
        found.push(Attempt { state, origin: Origin::NotStarted });
    }
    if found.is_empty() {
        found.extend(told(view, name));
    }
    found.sort_by_key(|attempt| attempt.state.attempt);
    found
}

/// The last attempt of a sandbox that is gone, as the API tells of it.
fn told(view: &View, name: &str) -> Option<Attempt> {
    let status = view.pod.as_ref().and_then(|pod| status(pod, name))?;
    status.container_id.as_ref()?;
    let state = status.state.as_ref();
    let ended = state.and_then(|state| state.terminated.as_ref());
    let before = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let runs = state.is_some_and(|state| state.running.is_some());
    let terminated = if runs { None } else { Some(ended.or(before)?) };
    let time = |time: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.map_or(Timestamp::UNIX_EPOCH, |time| time.0)
    };
    let phase = Phase::Exited {
        code: terminated.map_or(LOST_CODE, |terminated| terminated.exit_code),
        signal: terminated.and_then(|terminated| terminated.signal),
        oom_killed: terminated.is_some_and(|terminated| terminated.reason.as_deref() == Some("OOMKilled")),
        finished_at: time(terminated.and_then(|terminated| terminated.finished_at.as_ref())),
    };
    let state = ContainerState {
        name: name.to_owned(),
        attempt: u32::try_from(status.restart_count).unwrap_or(0),
        started_at: time(terminated.and_then(|terminated| terminated.started_at.as_ref())),
        phase,
        message: String::new(),
    };
    Some(Attempt { state, origin: Origin::Told })
}

/// The status of a container as the API has it.
pub(crate) fn status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}

/// What an attempt was when it began, as far as it is known.
pub(crate) fn begun<'a>(view: &'a View, container: &str, attempt: u32) -> Option<&'a Begun> {
    view.notes.begun.get(container).filter(|begun| begun.attempt == attempt)
}

pub(crate) fn latest(view: &View, name: &str) -> Option<Attempt> {
    attempts(view, name).pop()
}

/// The containers that run now, whatever they are.
pub(crate) fn running(view: &View) -> impl Iterator<Item = &ContainerState> {
    let here = view.sandbox.iter().filter(|sandbox| sandbox.alive).flat_map(|sandbox| &sandbox.containers);
    here.filter(|state| matches!(state.phase, Phase::Running { .. }))
}

/// When an ended container may be started again. The first restart comes at once; later ones wait 10 s, 20 s, … 5 min.
pub(crate) fn restart_due(view: &View, attempt: &Attempt) -> Timestamp {
    let Phase::Exited { finished_at, .. } = attempt.state.phase else { return Timestamp::MIN };
    let wait = match (attempt.origin, streak(view, attempt)) {
        (Origin::Told, _) | (_, 0) => SignedDuration::ZERO,
        (_, streak) => backoff(view, streak),
    };
    finished_at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

fn backoff(view: &View, streak: u32) -> SignedDuration {
    let doubled = i64::from(view.crash_backoff_seconds).saturating_mul(1i64 << (streak - 1).min(20));
    SignedDuration::from_secs(doubled.min(LONGEST_BACKOFF_SECONDS))
}

/// How many restarts in a row the end of this attempt is; a long run begins anew.
pub(crate) fn streak(view: &View, attempt: &Attempt) -> u32 {
    let state = &attempt.state;
    let Phase::Exited { finished_at, .. } = state.phase else { return 0 };
    let long = SignedDuration::from_secs(2 * LONGEST_BACKOFF_SECONDS);
    if finished_at.duration_since(state.started_at) >= long {
        return 0;
    }
    let noted = view.notes.streaks.get(&state.name).filter(|(noted, _)| *noted == state.attempt);
    // After a restart of the daemon the count of restarts stands in for what was noted.
    noted.map_or(state.attempt, |(_, streak)| *streak)
}

/// How far a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The main containers may run.
    pub(crate) initialized: bool,
    /// An init container has failed for good.
    pub(crate) init_failed: bool,
    /// Nothing will be started any more but what is stopped now.
    pub(crate) over: bool,
}

pub(crate) fn progress(view: &View, pod: &Pod, members: &[Member<'_>]) -> Progress {
    let init = || members.iter().filter(|member| matches!(member.role, Role::Init | Role::Sidecar));
    let main = || members.iter().filter(|member| member.role == Role::Main);
    let last = |member: &Member<'_>| latest(view, &member.container.name);
    let for_good = |member: &Member<'_>| {
        last(member).and_then(|attempt| attempt.exit_code()).is_some_and(|code| !restarts(pod, member, code))
    };
    // In a sandbox in which a main container was started once, init containers are not run again.
    let begun = main().any(|member| last(member).is_some_and(|attempt| attempt.origin != Origin::Told));
    let mains_over = main().next().is_some() && main().all(for_good);
    let init_failed = !begun
        && init().any(|member| {
            member.role == Role::Init
                && for_good(member)
                && last(member).is_some_and(|attempt| attempt.exit_code() != Some(0))
        });
    let initialized = mains_over || begun || init().all(|member| init_done(view, member));
    Progress { initialized, init_failed, over: mains_over || init_failed }
}

/// Whether the next init container, or the main ones, may follow.
pub(crate) fn init_done(view: &View, member: &Member<'_>) -> bool {
    let Some(attempt) = latest(view, &member.container.name) else { return false };
    match member.role {
        Role::Sidecar => is_started(view, member, &attempt),
        _ => attempt.origin != Origin::Told && attempt.exit_code() == Some(0),
    }
}

/// Runs, its postStart hook has ended, and its startup probe, if it has one, has succeeded.
pub(crate) fn is_started(view: &View, member: &Member<'_>, attempt: &Attempt) -> bool {
    let name = &member.container.name;
    let probed = view.notes.probes.get(name).filter(|probed| probed.attempt == attempt.state.attempt);
    attempt.is_running()
        && !in_post_start(view, name, attempt.state.attempt)
        && (member.container.startup_probe.is_none() || probed.is_some_and(|probed| probed.started))
}

pub(crate) fn in_post_start(view: &View, name: &str, attempt: u32) -> bool {
    view.notes.post_starts.get(name) == Some(&attempt)
}

/// Kubernetes' word for how much a pod may count on.
pub(crate) fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}
