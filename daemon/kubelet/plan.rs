//! What to do about one pod: pure.
//!
//! The order of a pod's life: sandbox → address → files → images → init containers one by one → the others; and back:
//! preStop → SIGTERM → grace → SIGKILL → sandbox away → address free → the object may go.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use reconcile::Plan;
use runtime::SandboxState;

use crate::book::{MustRestart, Notes, Pull};
use crate::ending::{self, Window};
use crate::probes::Wanted;
use crate::resize::{self, Room, Wish};
use crate::rules::{self, Attempt, Member, Origin, Progress, Role};
use crate::status;
use crate::volumes::{self, TokenKey};

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
    pub(crate) images: BTreeMap<String, Option<String>>,
    /// The pod asks for what this node does not give: which field.
    pub(crate) refused: Option<String>,
    /// This node will never run the pod: reason and message.
    pub(crate) rejected: Option<(String, String)>,
    /// Something that volumes need is missing.
    pub(crate) missing: Option<String>,
    /// What the configuration of containers that do not run lacks, by container.
    pub(crate) blocked: BTreeMap<String, String>,
    /// Hash of what the volumes are to hold.
    pub(crate) files_wanted: u64,
    /// The service account tokens of its volumes: when each is to be renewed, none for those that are not here.
    pub(crate) tokens: BTreeMap<TokenKey, Option<Timestamp>>,
    /// What the node has, and what of it other pods leave.
    pub(crate) room: Room,
    pub(crate) notes: Notes,
    /// What containers left as their last words.
    pub(crate) last_words: BTreeMap<(String, u32), String>,
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
        /// How many restarts in a row this is.
        streak: u32,
    },
    /// Frees an attempt that nobody asks about any more.
    Forget {
        container: String,
        attempt: u32,
    },
    /// Its grace period begins, with its preStop hook if it has one.
    BeginStop {
        container: String,
        attempt: u32,
        since: Timestamp,
        grace_seconds: i64,
        /// What it is to be told of, when it is this container alone that is to end.
        why: Option<String>,
    },
    /// Its stop signal.
    AskToStop {
        container: String,
        attempt: u32,
    },
    /// SIGKILL.
    Kill {
        container: String,
        attempt: u32,
    },
    /// Gives a running container the resources that its spec names now.
    Resize {
        container: String,
        attempt: u32,
    },
    /// Notes that a container has to be ended and started again.
    MarkRestart {
        container: String,
        attempt: u32,
        why: &'static str,
    },
    FetchToken {
        key: TokenKey,
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

pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
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

/// Succeeded or failed for good: its last state is in the API, its logs stay until the object is deleted, its volumes go.
fn ended(view: &View) -> Plan<Step> {
    let mut steps = teardown(view);
    if view.has_files {
        steps.push(Step::RemoveFiles);
    }
    Plan::in_turn(steps)
}

fn going(view: &View, pod: &Pod, now: Timestamp) -> Plan<Step> {
    let grace_seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    // The time to be gone was set when the deletion was asked for: a restart of the daemon does not prolong it.
    let asked = pod.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0 - seconds(grace_seconds));
    let window = Window { since: asked.min(now), grace_seconds };
    if let Some(mut plan) = stop_all(view, pod, window, now) {
        if !view.probing.is_empty() {
            plan.steps.insert(0, Step::Probe { wanted: Vec::new() });
        }
        plan.steps.extend(write_status(view, pod, now));
        return plan;
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

/// The way to the end of everything that runs; none when nothing does.
fn stop_all(view: &View, pod: &Pod, window: Window, now: Timestamp) -> Option<Plan<Step>> {
    let names: Vec<&str> = rules::running(view).map(|state| state.name.as_str()).collect();
    if names.is_empty() {
        return None;
    }
    Some(ending::stop(view, &rules::members(pod), &names, window, now))
}

fn living(view: &View, pod: &Pod, now: Timestamp) -> Plan<Step> {
    let members = rules::members(pod);
    let mut plan = Plan::empty();
    if let Some(ending) = ending::ending(view, pod, now) {
        let window = Window { since: now, grace_seconds: ending.grace_seconds };
        plan = stop_all(view, pod, window, now).unwrap_or(plan);
        plan.steps.extend(write_status(view, pod, now));
        return plan;
    }
    let progress = rules::progress(view, pod, &members);
    if view.refused.is_none() && !progress.over {
        tokens(view, now, &mut plan);
    }
    match &view.sandbox {
        Some(sandbox) if !sandbox.alive => {
            // Its shim is lost and with it the namespaces: nothing in it can be saved.
            plan.steps.extend([Step::StopSandbox]);
            plan.steps.extend(view.ip.is_some().then_some(Step::Detach));
        }
        _ if progress.over => {
            let window = Window { since: now, grace_seconds: ending::grace(pod) };
            plan = stop_all(view, pod, window, now).unwrap_or(plan);
        }
        Some(_) if view.ip.is_none() && !rules::is_host_network(pod) => plan.steps.push(Step::Attach),
        Some(_) => containers(view, pod, &members, progress, now, &mut plan),
        None => {
            if view.refused.is_none() {
                plan.steps.push(Step::StartSandbox);
                pulls(view, &members, now, &mut plan);
            }
        }
    }
    if let Some(end) = ending::deadline(pod) {
        plan.look_again(end);
    }
    plan.steps.extend(write_status(view, pod, now));
    plan
}

/// Tokens that are missing or old enough to be renewed.
fn tokens(view: &View, now: Timestamp, plan: &mut Plan<Step>) {
    for (key, renew) in &view.tokens {
        let problem = view.notes.token_problem.as_ref().map(|(_, again)| *again);
        match renew.or(Some(now)).max(problem) {
            Some(due) if due > now => plan.look_again(due),
            _ => plan.steps.push(Step::FetchToken { key: key.clone() }),
        }
    }
}

fn containers(
    view: &View,
    pod: &Pod,
    members: &[Member<'_>],
    progress: Progress,
    now: Timestamp,
    plan: &mut Plan<Step>,
) {
    pulls(view, members, now, plan);
    let files_stand = view.notes.files_hold.is_some();
    if view.refused.is_none() && view.missing.is_none() && view.notes.files_hold != Some(view.files_wanted) {
        match &view.notes.files_problem {
            Some(problem) if now < problem.again => plan.look_again(problem.again),
            _ => plan.steps.push(Step::WriteFiles),
        }
    }
    // Volumes that were made once stay as they are when their source is gone.
    let ready = files_stand || (view.missing.is_none() && view.notes.files_problem.is_none());
    if view.refused.is_some() || !ready {
        return;
    }
    for member in members {
        let turn = match member.role {
            Role::Init => !progress.initialized,
            Role::Sidecar => true,
            Role::Main => progress.initialized,
            Role::Ephemeral => true,
        };
        let goes_on = !turn || one(view, pod, member, now, plan);
        let holds_up = match member.role {
            Role::Init | Role::Sidecar => !progress.initialized && !rules::init_done(view, member),
            Role::Main => !goes_on,
            Role::Ephemeral => false,
        };
        if holds_up {
            break;
        }
    }
    let ip = view.ip.as_deref().unwrap_or(&view.host_ip);
    let wanted = crate::probes::wanted(view, members, ip);
    if wanted != view.probing {
        plan.steps.push(Step::Probe { wanted });
    }
}

/// Starts, restarts or leaves one container. False while its postStart hook holds up those after it.
fn one(view: &View, pod: &Pod, member: &Member<'_>, now: Timestamp, plan: &mut Plan<Step>) -> bool {
    let name = &member.container.name;
    let known = rules::latest(view, name);
    let (attempt, streak) = match &known {
        None => (0, 0),
        Some(known) if known.is_running() => {
            replace(view, member, known, plan);
            resize(view, pod, member, known, plan);
            stop_unhealthy(view, pod, known, now, plan);
            return !rules::in_post_start(view, name, known.state.attempt);
        }
        Some(known) => {
            let code = known.exit_code().unwrap_or_default();
            // Init containers run again in a new sandbox, whatever became of them in the one before.
            let again = known.origin == Origin::Told && matches!(member.role, Role::Init | Role::Sidecar);
            // One that was stopped to become another is started whatever the policy says, and at once.
            let replaced = was_replaced(view, known);
            let again = again || replaced;
            if !again && !rules::restarts(pod, member, code) {
                return true;
            }
            let due = rules::restart_due(view, known);
            if now < due && !replaced {
                plan.look_again(due);
                return true;
            }
            (known.state.attempt + 1, rules::streak(view, known) + 1)
        }
    };
    let failed = view.notes.failed_starts.get(name).filter(|failed| failed.code.is_none());
    if let Some(failed) = failed
        && now < failed.again
    {
        plan.look_again(failed.again);
        return true;
    }
    let container = &member.container;
    let here = container.image.as_ref().and_then(|image| view.images.get(image)).is_some_and(Option::is_some);
    if !here || must_pull_first(view, container) || view.blocked.contains_key(name) {
        return true;
    }
    plan.steps.push(Step::Start { container: name.clone(), attempt, streak });
    // One attempt before the present one is kept, for its exit code and `logs --previous`.
    let old = rules::attempts(view, name).into_iter().filter(|known| known.origin == Origin::Runtime);
    let old = old.map(|known| known.state.attempt).filter(|old| old + 1 < attempt);
    plan.steps.extend(old.map(|attempt| Step::Forget { container: name.clone(), attempt }));
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
    hook.is_none()
}

/// Why a running container is stopped whose image is another now.
const REPLACED: &str = "definition changed";

/// A running container whose spec names another image than it was started with.
fn replace(view: &View, member: &Member<'_>, known: &Attempt, plan: &mut Plan<Step>) {
    let (container, attempt) = (member.container.name.clone(), known.state.attempt);
    let begun = rules::begun(view, &container, attempt);
    let other = begun.is_some_and(|begun| Some(&begun.image) != member.container.image.as_ref());
    if other && must_restart(view, &container, attempt).is_none() {
        plan.steps.push(Step::MarkRestart { container, attempt, why: REPLACED });
    }
}

fn was_replaced(view: &View, known: &Attempt) -> bool {
    let must = must_restart(view, &known.state.name, known.state.attempt);
    must.is_some_and(|must| must.why == REPLACED) && known.origin == Origin::Runtime
}

fn must_restart<'a>(view: &'a View, container: &str, attempt: u32) -> Option<&'a MustRestart> {
    let probed = view.notes.probes.get(container).filter(|probed| probed.attempt == attempt)?;
    probed.must_restart.as_ref()
}

/// A running container whose spec names other resources than it has.
fn resize(view: &View, pod: &Pod, member: &Member<'_>, known: &Attempt, plan: &mut Plan<Step>) {
    let (container, attempt) = (member.container.name.clone(), known.state.attempt);
    match resize::wish(view, pod, member, attempt) {
        Wish::None => {}
        Wish::InPlace => plan.steps.push(Step::Resize { container, attempt }),
        Wish::Restart => {
            plan.steps.push(Step::MarkRestart { container, attempt, why: "resize requires restart" });
        }
    }
}

/// A container whose liveness or startup probe failed too often is asked, then made, to stop.
fn stop_unhealthy(view: &View, pod: &Pod, known: &Attempt, now: Timestamp, plan: &mut Plan<Step>) {
    let state = &known.state;
    let Some(must) = must_restart(view, &state.name, state.attempt) else { return };
    let grace_seconds = must.grace_seconds.unwrap_or_else(|| ending::grace(pod));
    // Alone, a container has no turn to wait for.
    let steps = ending::stop(view, &[], &[&state.name], Window { since: now, grace_seconds }, now);
    plan.steps.extend(steps.steps);
    if let Some(again) = steps.again {
        plan.look_again(again);
    }
}

/// Images that are not here and are not being fetched.
fn pulls(view: &View, members: &[Member<'_>], now: Timestamp, plan: &mut Plan<Step>) {
    for (image, policy) in view.pod.iter().flat_map(volumes::images) {
        let here = view.images.get(&image).is_some_and(Option::is_some);
        let again =
            policy == "Always" && !view.notes.pulls.contains_key(&image) && view.notes.files_hold.is_none();
        if policy != "Never" && (!here || again) {
            pull(view, &image, here, now, plan);
        }
    }
    for member in members {
        let container = &member.container;
        let Some(image) = &container.image else { continue };
        let here = view.images.get(image).is_some_and(Option::is_some);
        let never = container.image_pull_policy.as_deref() == Some("Never");
        if never || (here && !must_pull_first(view, container)) {
            continue;
        }
        pull(view, image, here, now, plan);
    }
}

fn pull(view: &View, image: &str, here: bool, now: Timestamp, plan: &mut Plan<Step>) {
    match view.notes.pulls.get(image) {
        Some(Pull::Running) => {}
        Some(Pull::Failed { again, .. }) if now < *again => plan.look_again(*again),
        _ => {
            let why = if here { "pull policy Always" } else { "not present on machine" };
            let step = Step::Pull { image: image.to_owned(), why };
            if !plan.steps.contains(&step) {
                plan.steps.push(step);
            }
        }
    }
}

/// With pull policy Always an image is asked for before the pod's first start of it. It is not asked for when it was
/// built or loaded on this machine under a name that no registry serves.
fn must_pull_first(view: &View, container: &Container) -> bool {
    let always = container.image_pull_policy.as_deref() == Some("Always");
    let pulled = container.image.as_ref().is_some_and(|image| view.notes.pulls.contains_key(image));
    always && !pulled && rules::latest(view, &container.name).is_none_or(|known| known.origin == Origin::Told)
}

fn write_status(view: &View, pod: &Pod, now: Timestamp) -> Option<Step> {
    let status = status::of(view, pod, now);
    let known = view.notes.written.as_ref().or(pod.status.as_ref());
    if known.is_some_and(|known| status::same(known, &status)) {
        return None;
    }
    Some(Step::WriteStatus { status: Box::new(status) })
}

fn seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}
