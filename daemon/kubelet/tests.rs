//! The plan of a pod's life, and the small parts that feed it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use runtime::{ContainerState, Phase, SandboxState};
use serde_json::{Value, json};

use crate::book::{FailedStart, MustRestart, Notes, Probed, Pull, Stop};
use crate::files::{Content, Files, Places, Written};
use crate::plan::{Step, View, plan};
use crate::{logs, status};

fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn pod(policy: &str, extra: Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": "p", "namespace": "default", "uid": "u" },
        "spec": { "restartPolicy": policy, "nodeName": "n", "terminationGracePeriodSeconds": 30,
                  "containers": [{ "name": "c", "image": "kubia:1", "imagePullPolicy": "IfNotPresent" }] },
        "status": { "phase": "Pending" },
    });
    json_patch(&mut pod, &extra);
    serde_json::from_value(pod).unwrap()
}

fn json_patch(target: &mut Value, patch: &Value) {
    api::patch::merge_patch(target, patch);
}

fn view(pod: Option<Pod>, containers: Option<Vec<ContainerState>>) -> View {
    let sandbox = containers.map(|containers| SandboxState {
        id: "u".to_owned(),
        labels: BTreeMap::new(),
        shim_pid: 1,
        netns: PathBuf::from("/proc/1/ns/net"),
        created_at: now(),
        containers,
        alive: true,
    });
    View {
        pod,
        ip: sandbox.is_some().then(|| "10.0.0.2".to_owned()),
        sandbox,
        host_ip: "192.0.2.1".to_owned(),
        images: BTreeMap::from([("kubia:1".to_owned(), Some("id".to_owned()))]),
        rejected: None,
        refused: None,
        missing: None,
        blocked: BTreeMap::new(),
        files_wanted: 7,
        tokens: BTreeMap::new(),
        room: crate::resize::Room::default(),
        notes: Notes { files_hold: Some(7), ..Notes::default() },
        last_words: BTreeMap::new(),
        probing: Vec::new(),
        has_files: false,
        crash_backoff_seconds: 10,
    }
}

fn running(name: &str, attempt: u32) -> ContainerState {
    ContainerState {
        name: name.to_owned(),
        attempt,
        started_at: now(),
        phase: Phase::Running { pid: 9 },
        message: String::new(),
    }
}

fn exited(name: &str, attempt: u32, code: i32, seconds_ago: i64) -> ContainerState {
    let finished_at = now() - SignedDuration::from_secs(seconds_ago);
    let phase = Phase::Exited { code, signal: None, oom_killed: false, finished_at };
    ContainerState { phase, started_at: finished_at, ..running(name, attempt) }
}

/// The names of the steps, statuses left out, and in how many seconds the plan wants to look again.
fn check(view: &View, wanted: &[&str], again_seconds: Option<i64>) {
    let plan = plan(view, now());
    let steps: Vec<String> = plan
        .steps
        .iter()
        .filter(|step| !matches!(step, Step::WriteStatus { .. }))
        .map(|step| format!("{step:?}"))
        .collect();
    assert_eq!(steps, wanted);
    assert_eq!(plan.again.map(|at| at.duration_since(now()).as_secs()), again_seconds);
}

/// A view whose status has been written already, as after a restart of the daemon.
fn told(mut view: View) -> View {
    let pod = view.pod.clone().unwrap();
    view.notes.written = Some(status::of(&view, &pod, now()));
    view
}

#[test]
fn a_new_pod_gets_its_sandbox_first() {
    check(&view(Some(pod("Always", json!({}))), None), &["StartSandbox"], None);
}

#[test]
fn an_image_that_is_missing_is_pulled_once() {
    let mut view = view(Some(pod("Always", json!({}))), Some(Vec::new()));
    view.images.insert("kubia:1".to_owned(), None);
    check(&view, &["Pull { image: \"kubia:1\", why: \"not present on machine\" }"], None);
    view.notes.pulls.insert("kubia:1".to_owned(), Pull::Running);
    check(&view, &[], None);
}

#[test]
fn an_image_that_must_not_be_pulled_is_not() {
    let never = json!({ "spec": { "containers": [{ "name": "c", "image": "kubia:1", "imagePullPolicy": "Never" }] } });
    let mut view = view(Some(pod("Always", never)), Some(Vec::new()));
    view.images.insert("kubia:1".to_owned(), None);
    check(&view, &[], None);
    let status = status::of(&view, view.pod.as_ref().unwrap(), now());
    let waiting = status.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ErrImageNeverPull"));
}

#[test]
fn a_container_starts_when_everything_is_there() {
    check(
        &view(Some(pod("Always", json!({}))), Some(Vec::new())),
        &["Start { container: \"c\", attempt: 0, streak: 0 }"],
        None,
    );
}

#[test]
fn a_pod_that_runs_and_is_told_has_an_empty_plan() {
    let view = told(view(Some(pod("Always", json!({}))), Some(vec![running("c", 0)])));
    assert!(plan(&view, now()).is_empty());
}

#[test]
fn a_first_exit_is_followed_by_a_start_and_later_ones_wait_longer_each() {
    let pod = || Some(pod("Always", json!({})));
    check(
        &view(pod(), Some(vec![exited("c", 0, 1, 0)])),
        &["Start { container: \"c\", attempt: 1, streak: 1 }"],
        None,
    );
    check(&view(pod(), Some(vec![exited("c", 1, 1, 4)])), &[], Some(6));
    check(&view(pod(), Some(vec![exited("c", 3, 1, 4)])), &[], Some(36));
    check(&view(pod(), Some(vec![exited("c", 30, 1, 4)])), &[], Some(296));
    let old = vec![exited("c", 0, 1, 100), exited("c", 1, 1, 60)];
    check(
        &view(pod(), Some(old)),
        &["Start { container: \"c\", attempt: 2, streak: 2 }", "Forget { container: \"c\", attempt: 0 }"],
        None,
    );
}

#[test]
fn a_pod_that_shall_not_restart_ends_with_its_containers() {
    for (policy, code, phase) in
        [("Never", 0, "Succeeded"), ("Never", 3, "Failed"), ("OnFailure", 0, "Succeeded")]
    {
        let view = view(Some(pod(policy, json!({}))), Some(vec![exited("c", 0, code, 1)]));
        check(&view, &[], None);
        assert_eq!(status::of(&view, view.pod.as_ref().unwrap(), now()).phase.as_deref(), Some(phase));
    }
    check(
        &view(Some(pod("OnFailure", json!({}))), Some(vec![exited("c", 0, 1, 1)])),
        &["Start { container: \"c\", attempt: 1, streak: 1 }"],
        None,
    );
}

#[test]
fn init_containers_run_one_after_the_other_before_the_rest() {
    let init = json!({ "spec": { "initContainers": [{ "name": "i", "image": "kubia:1" }, { "name": "j", "image": "kubia:1" }] } });
    let pod = || Some(pod("Always", init.clone()));
    check(&view(pod(), Some(Vec::new())), &["Start { container: \"i\", attempt: 0, streak: 0 }"], None);
    check(&view(pod(), Some(vec![running("i", 0)])), &[], None);
    check(
        &view(pod(), Some(vec![exited("i", 0, 0, 1)])),
        &["Start { container: \"j\", attempt: 0, streak: 0 }"],
        None,
    );
    let done = vec![exited("i", 0, 0, 1), exited("j", 0, 0, 1)];
    check(&view(pod(), Some(done)), &["Start { container: \"c\", attempt: 0, streak: 0 }"], None);
}

/// A note of a container on its way to its end.
fn stopping(attempt: u32, since_seconds: i64, hook_ended: bool, asked_seconds: Option<i64>) -> Stop {
    let ago = |seconds| now() - SignedDuration::from_secs(seconds);
    Stop { attempt, since: ago(since_seconds), hook_ended, asked: asked_seconds.map(ago) }
}

const ASK_C: &str = "AskToStop { container: \"c\", attempt: 2 }";
const KILL_C: &str = "Kill { container: \"c\", attempt: 2 }";

fn begin(container: &str, attempt: u32, grace: i64, why: &str) -> String {
    format!(
        "BeginStop {{ container: {container:?}, attempt: {attempt}, since: 2026-11-24T12:00:00Z, grace_seconds: {grace}, why: {why} }}"
    )
}

#[test]
fn a_pod_that_goes_is_asked_then_killed_then_taken_down() {
    let going = json!({ "metadata": { "deletionTimestamp": "2026-11-24T12:00:30Z", "deletionGracePeriodSeconds": 30 } });
    let mut view = view(Some(pod("Always", going)), Some(vec![running("c", 2)]));
    check(&view, &[&begin("c", 2, 30, "None")], None);
    let note = |view: &mut View, stop| {
        view.notes.stops.insert("c".to_owned(), stop);
    };
    note(&mut view, stopping(2, 0, false, None));
    check(&view, &[], Some(30));
    note(&mut view, stopping(2, 10, true, None));
    check(&view, &[ASK_C], None);
    note(&mut view, stopping(2, 10, true, Some(9)));
    check(&view, &[], Some(20));
    note(&mut view, stopping(2, 30, false, None));
    check(&view, &[ASK_C], None);
    note(&mut view, stopping(2, 31, false, Some(1)));
    check(&view, &[], Some(1));
    note(&mut view, stopping(2, 30, true, Some(30)));
    check(&view, &[KILL_C], None);
    view.sandbox.as_mut().unwrap().containers = vec![exited("c", 2, 137, 0)];
    view.has_files = true;
    check(&view, &["StopSandbox", "Detach", "RemoveFiles", "Release"], None);
    (view.sandbox, view.ip, view.has_files) = (None, None, false);
    check(&view, &["Release"], None);
}

#[test]
fn sidecars_start_before_the_others_and_end_after_them_in_reverse() {
    let sidecars = json!({ "spec": { "initContainers": [
        { "name": "s", "image": "kubia:1", "restartPolicy": "Always", "startupProbe": { "tcpSocket": { "port": 80 } } },
        { "name": "t", "image": "kubia:1", "restartPolicy": "Always" },
    ] } });
    let pod = |extra: Value| {
        let mut all = sidecars.clone();
        json_patch(&mut all, &extra);
        Some(pod("Never", all))
    };
    let start = |name: &str| format!("Start {{ container: {name:?}, attempt: 0, streak: 0 }}");
    check(&view(pod(json!({})), Some(Vec::new())), &[&start("s")], None);
    let mut probed = told(view(pod(json!({})), Some(vec![running("s", 0)])));
    probed.probing =
        crate::probes::wanted(&probed, &crate::rules::members(probed.pod.as_ref().unwrap()), "10.0.0.2");
    assert_eq!(probed.probing.len(), 1);
    check(&probed, &[], None);
    probed.probing.clear();
    probed.notes.probes.insert("s".to_owned(), Probed { started: true, ..Probed::default() });
    check(&probed, &[&start("t")], None);
    let all = vec![running("c", 0), running("s", 0), running("t", 0)];
    let going = json!({ "metadata": { "deletionTimestamp": "2026-11-24T12:00:30Z", "deletionGracePeriodSeconds": 30 } });
    let mut going = view(pod(going), Some(all));
    for name in ["c", "s", "t"] {
        going.notes.stops.insert(name.to_owned(), stopping(0, 0, true, None));
    }
    let ask = |name: &str| format!("AskToStop {{ container: {name:?}, attempt: 0 }}");
    check(&going, &[&ask("c")], Some(30));
    going.sandbox.as_mut().unwrap().containers = vec![exited("c", 0, 0, 0), running("s", 0), running("t", 0)];
    check(&going, &[&ask("t")], Some(30));
    going.sandbox.as_mut().unwrap().containers =
        vec![exited("c", 0, 0, 0), running("s", 0), exited("t", 0, 0, 0)];
    check(&going, &[&ask("s")], None);
    let ended = vec![exited("c", 0, 0, 0), running("s", 0), running("t", 0)];
    let ended = view(pod(json!({})), Some(ended));
    check(&ended, &[&begin("s", 0, 30, "None"), &begin("t", 0, 30, "None")], None);
    assert_eq!(phase(&ended), "Running", "until the sidecars have ended");
    let over = vec![exited("c", 0, 0, 0), exited("s", 0, 143, 0), exited("t", 0, 143, 0)];
    assert_eq!(phase(&view(pod(json!({})), Some(over))), "Succeeded");
}

fn phase(view: &View) -> String {
    status::of(view, view.pod.as_ref().unwrap(), now()).phase.unwrap()
}

#[test]
fn a_sidecar_that_crashes_is_started_again_beside_the_others() {
    let sidecar = json!({ "spec": { "initContainers": [
        { "name": "i", "image": "kubia:1" }, { "name": "s", "image": "kubia:1", "restartPolicy": "Always" },
    ] } });
    let states = vec![running("c", 0), exited("i", 0, 0, 9), exited("s", 0, 1, 1)];
    let view = view(Some(pod("Always", sidecar)), Some(states));
    check(&view, &["Start { container: \"s\", attempt: 1, streak: 1 }"], None);
    let status = status::of(&view, view.pod.as_ref().unwrap(), now());
    let holds =
        |name: &str| status.conditions.iter().flatten().any(|c| c.type_ == name && c.status == "True");
    assert!(holds("Initialized") && !holds("Ready"));
}

#[test]
fn a_pod_past_its_deadline_is_stopped_and_failed() {
    let late = json!({ "spec": { "activeDeadlineSeconds": 5 }, "status": { "phase": "Running", "startTime": "2026-11-24T11:59:50Z" } });
    let mut view = view(Some(pod("Always", late)), Some(vec![running("c", 0)]));
    check(&view, &[&begin("c", 0, 30, "None")], None);
    assert_eq!(phase(&view), "Running");
    view.sandbox.as_mut().unwrap().containers = vec![exited("c", 0, 143, 0)];
    let status = status::of(&view, view.pod.as_ref().unwrap(), now());
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
    let early =
        json!({ "spec": { "activeDeadlineSeconds": 30 }, "status": { "startTime": "2026-11-24T11:59:50Z" } });
    let early = self::view(Some(pod("Always", early)), Some(vec![running("c", 0)]));
    check(&early, &[], Some(20));
}

#[test]
fn a_program_that_cannot_be_started_counts_as_ended() {
    let failed = |code| FailedStart {
        attempt: 0,
        message: "no such file".to_owned(),
        at: now(),
        code,
        again: now() + SignedDuration::from_secs(10),
        tries: 1,
    };
    let mut never = view(Some(pod("Never", json!({}))), Some(Vec::new()));
    never.notes.failed_starts.insert("c".to_owned(), failed(Some(127)));
    check(&never, &[], None);
    assert_eq!(phase(&never), "Failed");
    let status = status::of(&never, never.pod.as_ref().unwrap(), now());
    let ended = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (127, Some("StartError")));
    let mut always = view(Some(pod("Always", json!({}))), Some(Vec::new()));
    always.notes.failed_starts.insert("c".to_owned(), failed(Some(127)));
    check(&always, &["Start { container: \"c\", attempt: 1, streak: 1 }"], None);
    always.notes.failed_starts.insert("c".to_owned(), failed(None));
    check(&always, &[], Some(10));
}

#[test]
fn a_container_whose_configuration_lacks_something_waits_for_it() {
    let mut view = view(Some(pod("Always", json!({}))), Some(Vec::new()));
    view.blocked.insert("c".to_owned(), "configmap \"m\" not found".to_owned());
    check(&view, &[], None);
    let status = status::of(&view, view.pod.as_ref().unwrap(), now());
    let waiting = status.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CreateContainerConfigError"));
    assert_eq!(waiting.message.as_deref(), Some("configmap \"m\" not found"));
}

#[test]
fn rules_of_a_container_decide_on_its_restart_before_its_policy_does() {
    let check = |own: Value, code: i32, again: bool| {
        let mut container = json!({ "name": "c", "image": "kubia:1" });
        json_patch(&mut container, &own);
        let pod = pod("Never", json!({ "spec": { "containers": [container] } }));
        let member = crate::rules::find(&pod, "c").unwrap();
        assert_eq!(crate::rules::restarts(&pod, &member, code), again, "{own} ended with {code}");
    };
    check(json!({}), 1, false);
    check(json!({ "restartPolicy": "OnFailure" }), 1, true);
    check(json!({ "restartPolicy": "OnFailure" }), 0, false);
    check(json!({ "restartPolicy": "Always" }), 0, true);
    let rule = |operator: &str| {
        json!({ "restartPolicy": "Never", "restartPolicyRules": [
            { "action": "Restart", "exitCodes": { "operator": operator, "values": [42] } },
        ] })
    };
    check(rule("In"), 42, true);
    check(rule("In"), 1, false);
    check(rule("NotIn"), 1, true);
    check(rule("NotIn"), 42, false);
}

#[test]
fn a_pod_lost_with_its_sandbox_is_made_again_only_if_it_may_restart() {
    let ran = json!({ "status": { "phase": "Running", "containerStatuses": [{ "name": "c", "containerID": "x", "restartCount": 0,
        "image": "", "imageID": "", "ready": true, "state": { "running": {} } }] } });
    check(&view(Some(pod("Always", ran.clone())), None), &["StartSandbox"], None);
    let never = view(Some(pod("Never", ran)), None);
    check(&never, &[], None);
    assert_eq!(phase(&never), "Failed");
    let status = status::of(&never, never.pod.as_ref().unwrap(), now());
    let ended = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
}

#[test]
fn back_off_begins_anew_after_a_long_run() {
    let mut view = view(Some(pod("Always", json!({}))), Some(vec![exited("c", 9, 1, 1)]));
    view.sandbox.as_mut().unwrap().containers[0].started_at = now() - SignedDuration::from_secs(700);
    check(&view, &["Start { container: \"c\", attempt: 10, streak: 1 }"], None);
    let mut next = self::view(Some(pod("Always", json!({}))), Some(vec![exited("c", 10, 1, 1)]));
    next.notes.streaks.insert("c".to_owned(), (10, 1));
    check(&next, &[], Some(9));
}

#[test]
fn a_container_starts_with_the_end_of_its_post_start_hook() {
    let hooked = json!({ "spec": { "containers": [
        { "name": "c", "image": "kubia:1", "lifecycle": { "postStart": { "exec": { "command": ["true"] } } } },
        { "name": "d", "image": "kubia:1" },
    ] } });
    let pod = || Some(pod("Always", hooked.clone()));
    check(&view(pod(), Some(Vec::new())), &["Start { container: \"c\", attempt: 0, streak: 0 }"], None);
    let mut during = view(pod(), Some(vec![running("c", 0)]));
    during.notes.post_starts.insert("c".to_owned(), 0);
    check(&during, &[], None);
    assert_eq!(phase(&during), "Pending");
    during.notes.post_starts.clear();
    check(&during, &["Start { container: \"d\", attempt: 0, streak: 0 }"], None);
}

#[test]
fn a_gate_that_is_shut_keeps_a_pod_from_being_ready() {
    let gated = |condition: Value| json!({ "spec": { "readinessGates": [{ "conditionType": "example.org/open" }] }, "status": { "conditions": condition } });
    let ready = |condition: Value| {
        let view = view(Some(pod("Always", gated(condition))), Some(vec![running("c", 0)]));
        let status = status::of(&view, view.pod.as_ref().unwrap(), now());
        let ready =
            status.conditions.unwrap().into_iter().find(|condition| condition.type_ == "Ready").unwrap();
        (ready.status, ready.message.unwrap_or_default())
    };
    let shut = ready(json!([]));
    assert_eq!(shut.1, "corresponding condition of pod readiness gate \"example.org/open\" does not exist.");
    let no = ready(json!([{ "type": "example.org/open", "status": "False" }]));
    assert_eq!(no.1, "the status of pod readiness gate \"example.org/open\" is not \"True\", but False");
    assert_eq!(ready(json!([{ "type": "example.org/open", "status": "True" }])).0, "True");
}

#[test]
fn signals_are_known_by_name_and_number() {
    for (name, number) in
        [("SIGUSR1", 10), ("USR2", 12), ("9", 9), ("SIGRTMIN+3", 37), ("SIGRTMAX", 64), ("", 15)]
    {
        assert_eq!(crate::stopping::signal_number(name), number, "{name}");
    }
}

#[test]
fn what_has_no_pod_any_more_is_removed() {
    let mut view = view(None, Some(vec![running("c", 0)]));
    view.has_files = true;
    check(&view, &["StopSandbox", "Detach", "RemoveFiles", "ForgetPod"], None);
    (view.sandbox, view.ip, view.has_files, view.notes) = (None, None, false, Notes::default());
    check(&view, &[], None);
}

#[test]
fn a_lost_sandbox_is_replaced_and_restarts_go_on_counting() {
    let ran = json!({ "status": { "phase": "Running", "containerStatuses": [{ "name": "c", "containerID": "x", "restartCount": 4, "image": "", "imageID": "", "ready": true, "state": { "running": {} } }] } });
    let mut view = view(Some(pod("Always", ran)), Some(vec![running("c", 4)]));
    view.sandbox.as_mut().unwrap().alive = false;
    check(&view, &["StopSandbox", "Detach"], None);
    view.sandbox.as_mut().unwrap().alive = true;
    view.sandbox.as_mut().unwrap().containers.clear();
    check(&view, &["Start { container: \"c\", attempt: 5, streak: 5 }"], None);
}

#[test]
fn a_container_that_fails_its_liveness_probe_is_asked_then_killed() {
    let mut view = view(Some(pod("Always", json!({}))), Some(vec![running("c", 2)]));
    let must = MustRestart { why: "failed liveness probe".to_owned(), grace_seconds: Some(5) };
    view.notes
        .probes
        .insert("c".to_owned(), Probed { attempt: 2, must_restart: Some(must), ..Probed::default() });
    check(&view, &[&begin("c", 2, 5, "Some(\"failed liveness probe\")")], None);
    view.notes.stops.insert("c".to_owned(), stopping(2, 0, true, None));
    check(&view, &[ASK_C], None);
    view.notes.stops.insert("c".to_owned(), stopping(2, 5, true, Some(5)));
    check(&view, &[KILL_C], None);
}

#[test]
fn readiness_follows_the_probe() {
    let probed = json!({ "spec": { "containers": [{ "name": "c", "image": "kubia:1", "readinessProbe": { "tcpSocket": { "port": 80 } } }] } });
    let mut view = view(Some(pod("Always", probed)), Some(vec![running("c", 0)]));
    let ready = |view: &View| {
        let status: PodStatus = status::of(view, view.pod.as_ref().unwrap(), now());
        status
            .conditions
            .unwrap()
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    assert!(!ready(&view));
    view.notes.probes.insert("c".to_owned(), Probed { attempt: 0, ready: Some(true), ..Probed::default() });
    assert!(ready(&view));
}

#[test]
fn variables_expand_as_documented() {
    let known = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
    for (text, wanted) in
        [("$(A)b", "1b"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A $", "$A $"), ("$(A)$(A)", "11")]
    {
        assert_eq!(crate::env::expand(text, &known), wanted);
    }
}

#[test]
fn files_of_a_volume_change_together_and_stale_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places { disk: dir.path().join("disk"), memory: dir.path().join("memory") };
    let files = |contents: &[(&str, &str)]| Files {
        group: None,
        volumes: BTreeMap::from([(
            "v".to_owned(),
            Content::Files {
                secret: false,
                files: contents
                    .iter()
                    .map(|(name, text)| ((*name).to_owned(), Written::roots(text.as_bytes().to_vec(), 0o640)))
                    .collect(),
            },
        )]),
        etc: BTreeMap::new(),
    };
    let volume = places.disk.join("volumes/v");
    let first = files(&[("a", "1"), ("b/c", "2")]);
    places.write(&first).unwrap();
    let data = std::fs::read_link(volume.join("..data")).unwrap();
    assert_eq!(std::fs::read_to_string(volume.join("b/c")).unwrap(), "2");
    places.write(&first).unwrap();
    assert_eq!(
        std::fs::read_link(volume.join("..data")).unwrap(),
        data,
        "nothing changed, so nothing is switched"
    );
    places.write(&files(&[("a", "3")])).unwrap();
    assert_eq!(std::fs::read_to_string(volume.join("a")).unwrap(), "3");
    assert!(!volume.join("b").exists() && !volume.join(&data).exists());
    assert_eq!(places.hold(), Some(files(&[("a", "3")]).hash()));
    places.remove().unwrap();
    places.remove().unwrap();
    assert!(!places.exist());
}

#[tokio::test]
async fn a_log_is_told_from_its_tail_across_rotations() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(dir.path().join("0.log.1"), "2026-11-24T11:00:00Z stdout F old\n").unwrap();
    std::fs::write(&path, "2026-11-24T12:00:00Z stdout P par\n2026-11-24T12:00:01Z stdout F tial\n2026-11-24T12:00:02Z stderr F new\n").unwrap();
    let read = async |wanted: logs::Wanted| {
        let (to, mut from) = tokio::sync::mpsc::channel(16);
        logs::send(path.clone(), wanted, || false, to).await;
        let mut all = Vec::new();
        while let Some(bytes) = from.recv().await {
            all.extend_from_slice(&bytes);
        }
        String::from_utf8(all).unwrap()
    };
    assert_eq!(read(logs::Wanted::default()).await, "old\npartial\nnew\n");
    assert_eq!(read(logs::Wanted { tail_lines: Some(1), ..Default::default() }).await, "new\n");
    let since = Some("2026-11-24T12:00:02Z".parse().unwrap());
    assert_eq!(
        read(logs::Wanted { since, timestamps: true, ..Default::default() }).await,
        "2026-11-24T12:00:02Z new\n"
    );
    assert_eq!(
        read(logs::Wanted { limit_bytes: Some(5), follow: true, ..Default::default() }).await,
        "old\np"
    );
}

#[test]
fn what_is_not_served_is_refused_by_its_field() {
    let check = |extra: Value, wanted: Option<&str>| {
        let refused = crate::refuse::refused(&pod("Always", extra));
        assert_eq!(refused.as_deref().and_then(|text| text.split(' ').next()), wanted);
    };
    check(json!({}), None);
    check(json!({ "spec": { "hostUsers": false } }), Some("spec.hostUsers"));
    let unmasked = json!([{ "name": "c", "image": "i", "securityContext": { "procMount": "Unmasked" } }]);
    check(
        json!({ "spec": { "containers": unmasked } }),
        Some("spec.containers[0].securityContext.procMount"),
    );
}

#[test]
fn a_resize_is_done_in_place_or_by_a_restart_or_waits() {
    let spec = |cpu: &str, policy: &str| {
        json!({ "spec": { "containers": [{ "name": "c", "image": "kubia:1", "resources": { "requests": { "cpu": cpu } },
            "resizePolicy": [{ "resourceName": "cpu", "restartPolicy": policy }] }] } })
    };
    let has = |cpu: &str| {
        let given = serde_json::from_value(json!({ "requests": { "cpu": cpu } })).unwrap();
        BTreeMap::from([("c".to_owned(), (0, given))])
    };
    let resized = |cpu: &str, policy: &str| {
        let mut view = view(Some(pod("Always", spec(cpu, policy))), Some(vec![running("c", 0)]));
        view.notes.applied = has("100m");
        view.room.allocatable = BTreeMap::from([("cpu".to_owned(), 2000)]);
        view.room.taken = BTreeMap::from([("cpu".to_owned(), 1500)]);
        view
    };
    check(&resized("0.1", "NotRequired"), &[], None);
    check(&resized("200m", "NotRequired"), &["Resize { container: \"c\", attempt: 0 }"], None);
    let restart = "MarkRestart { container: \"c\", attempt: 0, why: \"resize requires restart\" }";
    check(&resized("200m", "RestartContainer"), &[restart], None);
    for (cpu, reason) in [("600m", "Deferred"), ("3", "Infeasible")] {
        let view = resized(cpu, "NotRequired");
        check(&view, &[], None);
        let status = status::of(&view, view.pod.as_ref().unwrap(), now());
        let pending = status.conditions.unwrap().into_iter().find(|c| c.type_ == "PodResizePending").unwrap();
        assert_eq!((pending.status.as_str(), pending.reason.as_deref()), ("True", Some(reason)));
        let given = status.container_statuses.unwrap()[0].resources.clone().unwrap().requests.unwrap();
        assert_eq!(given["cpu"].0, "100m", "what it has is told, not what it asked for");
        let given = crate::resize::as_given(view.pod.as_ref().unwrap(), &view.notes.applied);
        assert_eq!(crate::resize::asked(&given, "cpu"), 100, "what it asks for is not taken from others");
    }
}

#[test]
fn classes_of_service_are_as_documented() {
    let check = |resources: Value, wanted: &str| {
        let container = json!([{ "name": "c", "image": "i", "resources": resources }]);
        let pod = pod("Always", json!({ "spec": { "containers": container } }));
        assert_eq!(crate::resources::quality_of_service(&pod), wanted, "{resources}");
    };
    check(json!({}), "BestEffort");
    check(json!({ "requests": { "cpu": "0" } }), "BestEffort");
    check(
        json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1000m", "memory": "1024Mi" } }),
        "Guaranteed",
    );
    check(json!({ "limits": { "cpu": "1", "memory": "1Gi" } }), "Guaranteed");
    check(json!({ "requests": { "cpu": "1" } }), "Burstable");
    check(json!({ "limits": { "cpu": "1" } }), "Burstable");
}

#[test]
fn a_pods_bounds_are_those_of_its_containers_when_each_has_one() {
    let pod = pod(
        "Always",
        json!({ "spec": {
        "initContainers": [
            { "name": "i", "image": "i", "resources": { "limits": { "memory": "4Mi", "cpu": "1" }, "requests": { "cpu": "3" } } },
            { "name": "s", "image": "i", "restartPolicy": "Always", "resources": { "limits": { "memory": "1Mi" } } },
        ],
        "containers": [{ "name": "c", "image": "i", "resources": { "limits": { "memory": "2Mi", "cpu": "1" }, "requests": { "cpu": "1" } } }],
    } }),
    );
    let bounds = crate::resources::of_pod(&pod, 7);
    assert_eq!((bounds.memory_bytes, bounds.cpu_quota_us), (Some(5 << 20), None));
    assert_eq!((bounds.cpu_shares, bounds.pids), (Some(3072), Some(7)));
}

#[test]
fn programs_find_services_by_variables() {
    let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
        "metadata": { "name": "foo-service", "namespace": "default" },
        "spec": { "clusterIP": "10.43.0.9", "ports": [{ "port": 8765, "name": "http-api", "protocol": "TCP" }] },
    }))
    .unwrap();
    let mut sources = crate::env::Sources::default();
    sources.services.insert(client::Key::new("default", "foo-service"), std::sync::Arc::new(service));
    let facts = crate::env::Facts {
        pod_ip: String::new(),
        host_ip: String::new(),
        machine_cpu_milli: 0,
        machine_memory_bytes: 0,
        machine_disk_bytes: 0,
    };
    let of = |pod: &Pod| {
        let container = &pod.spec.as_ref().unwrap().containers[0];
        crate::env::variables(pod, container, &sources, &facts).unwrap()
    };
    let found: BTreeMap<String, String> = of(&pod("Always", json!({}))).into_iter().collect();
    let wanted = [
        ("FOO_SERVICE_SERVICE_HOST", "10.43.0.9"),
        ("FOO_SERVICE_SERVICE_PORT", "8765"),
        ("FOO_SERVICE_SERVICE_PORT_HTTP_API", "8765"),
        ("FOO_SERVICE_PORT", "tcp://10.43.0.9:8765"),
        ("FOO_SERVICE_PORT_8765_TCP", "tcp://10.43.0.9:8765"),
        ("FOO_SERVICE_PORT_8765_TCP_PROTO", "tcp"),
        ("FOO_SERVICE_PORT_8765_TCP_PORT", "8765"),
        ("FOO_SERVICE_PORT_8765_TCP_ADDR", "10.43.0.9"),
    ];
    assert_eq!(found, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert!(of(&pod("Always", json!({ "spec": { "enableServiceLinks": false } }))).is_empty());
}

#[test]
fn a_claim_is_a_volume_once_it_is_bound() {
    let pod = pod(
        "Always",
        json!({ "spec": { "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] } }),
    );
    let facts = crate::env::Facts {
        pod_ip: String::new(),
        host_ip: String::new(),
        machine_cpu_milli: 0,
        machine_memory_bytes: 0,
        machine_disk_bytes: 0,
    };
    let names = crate::etc::Names {
        dns: String::new(),
        host_resolv_conf: String::new(),
        host_hosts: String::new(),
        ip: String::new(),
    };
    let mut sources = crate::env::Sources::default();
    let check = |sources: &crate::env::Sources, wanted: Result<Content, &str>| {
        let found =
            crate::volumes::wanted(&pod, sources, &facts, &names).map(|files| files.volumes["v"].clone());
        assert_eq!(found, wanted.map_err(|why| format!("MountVolume.SetUp failed for volume \"v\" : {why}")));
    };
    check(&sources, Err("persistentvolumeclaim \"data\" not found"));
    let mut claim = json!({ "metadata": { "name": "data", "namespace": "default", "uid": "c" }, "spec": { "volumeName": "pv" } });
    let put = |sources: &mut crate::env::Sources, claim: &Value| {
        let claim = serde_json::from_value(claim.clone()).unwrap();
        sources.claims.insert(client::Key::new("default", "data"), std::sync::Arc::new(claim));
    };
    put(&mut sources, &claim);
    check(&sources, Err("persistentvolumeclaim \"data\" is not bound"));
    claim["status"] = json!({ "phase": "Bound" });
    put(&mut sources, &claim);
    check(&sources, Err("persistentvolume \"pv\" not found"));
    let volume = json!({ "metadata": { "name": "pv" }, "spec": { "claimRef": { "name": "data", "uid": "c" }, "local": { "path": "/data" } } });
    let volume = serde_json::from_value(volume).unwrap();
    sources.volumes.insert(client::Key::new("", "pv"), std::sync::Arc::new(volume));
    check(&sources, Ok(Content::Lasting { path: "/data".to_owned(), made_here: false }));
}

#[test]
fn a_pod_knows_itself_by_its_whole_name_where_it_asks_to() {
    let named = |extra: Value| pod("Always", json!({ "spec": extra }));
    let kernel = |extra: Value| crate::etc::kernel_hostname(&named(extra)).map_err(|_| ());
    assert_eq!(kernel(json!({})), Ok("p".to_owned()));
    assert_eq!(kernel(json!({ "hostname": "h", "subdomain": "s" })), Ok("h".to_owned()));
    let whole = json!({ "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true });
    assert_eq!(kernel(whole), Ok("h.s.default.svc.cluster.local".to_owned()));
    let long = json!({ "hostname": "h".repeat(60), "subdomain": "s", "setHostnameAsFQDN": true });
    assert_eq!(kernel(long), Err(()));
}

#[test]
fn the_volumes_of_a_pod_that_has_ended_are_freed() {
    let ended = json!({ "status": { "phase": "Succeeded" } });
    let mut view = view(Some(pod("Never", ended)), Some(vec![exited("c", 0, 0, 1)]));
    view.has_files = true;
    check(&view, &["StopSandbox", "Detach", "RemoveFiles"], None);
    (view.sandbox, view.ip, view.has_files) = (None, None, false);
    check(&view, &[], None);
}
