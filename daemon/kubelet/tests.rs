//! The plan of a pod's life, and the small parts that feed it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use runtime::{ContainerState, Phase, SandboxState};
use serde_json::{Value, json};

use crate::book::{Notes, Probed, Pull};
use crate::files::{Content, Files, Places};
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
        missing: None,
        files_wanted: 7,
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
        &["Start { container: \"c\", attempt: 0 }"],
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
    check(&view(pod(), Some(vec![exited("c", 0, 1, 0)])), &["Start { container: \"c\", attempt: 1 }"], None);
    check(&view(pod(), Some(vec![exited("c", 1, 1, 4)])), &[], Some(6));
    check(&view(pod(), Some(vec![exited("c", 3, 1, 4)])), &[], Some(36));
    check(&view(pod(), Some(vec![exited("c", 30, 1, 4)])), &[], Some(296));
    let old = vec![exited("c", 0, 1, 100), exited("c", 1, 1, 60)];
    check(
        &view(pod(), Some(old)),
        &["Start { container: \"c\", attempt: 2 }", "Forget { container: \"c\", attempt: 0 }"],
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
        &["Start { container: \"c\", attempt: 1 }"],
        None,
    );
}

#[test]
fn init_containers_run_one_after_the_other_before_the_rest() {
    let init = json!({ "spec": { "initContainers": [{ "name": "i", "image": "kubia:1" }, { "name": "j", "image": "kubia:1" }] } });
    let pod = || Some(pod("Always", init.clone()));
    check(&view(pod(), Some(Vec::new())), &["Start { container: \"i\", attempt: 0 }"], None);
    check(&view(pod(), Some(vec![running("i", 0)])), &[], None);
    check(&view(pod(), Some(vec![exited("i", 0, 0, 1)])), &["Start { container: \"j\", attempt: 0 }"], None);
    let done = vec![exited("i", 0, 0, 1), exited("j", 0, 0, 1)];
    check(&view(pod(), Some(done)), &["Start { container: \"c\", attempt: 0 }"], None);
}

#[test]
fn a_pod_that_goes_is_asked_then_killed_then_taken_down() {
    let going = json!({ "metadata": { "deletionTimestamp": "2026-11-24T12:00:30Z", "deletionGracePeriodSeconds": 30 } });
    let mut view = view(Some(pod("Always", going)), Some(vec![running("c", 2)]));
    check(&view, &["Probe { wanted: [] }", "AskToStop { containers: [(\"c\", 2)] }"], Some(30));
    view.notes.asked_to_stop = Some(now() - SignedDuration::from_secs(10));
    check(&view, &[], Some(20));
    view.notes.asked_to_stop = Some(now() - SignedDuration::from_secs(30));
    check(&view, &["Signal { container: \"c\", attempt: 2, signal: 9 }"], None);
    view.sandbox.as_mut().unwrap().containers = vec![exited("c", 2, 137, 0)];
    view.has_files = true;
    check(&view, &["StopSandbox", "Detach", "RemoveFiles", "Release"], None);
    (view.sandbox, view.ip, view.has_files) = (None, None, false);
    check(&view, &["Release"], None);
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
    let ran = json!({ "status": { "phase": "Running", "containerStatuses": [{ "name": "c", "containerID": "x", "restartCount": 4, "image": "", "imageID": "", "ready": true }] } });
    let mut view = view(Some(pod("Always", ran)), Some(vec![running("c", 4)]));
    view.sandbox.as_mut().unwrap().alive = false;
    check(&view, &["StopSandbox", "Detach"], None);
    view.sandbox.as_mut().unwrap().alive = true;
    view.sandbox.as_mut().unwrap().containers.clear();
    check(&view, &["Start { container: \"c\", attempt: 5 }"], None);
}

#[test]
fn a_container_that_fails_its_liveness_probe_is_asked_then_killed() {
    let mut view = view(Some(pod("Always", json!({}))), Some(vec![running("c", 1)]));
    let failed =
        Probed { attempt: 1, must_restart: Some("failed liveness probe".to_owned()), ..Probed::default() };
    view.notes.probes.insert("c".to_owned(), failed);
    check(&view, &["Signal { container: \"c\", attempt: 1, signal: 15 }"], Some(30));
    view.notes.unhealthy.insert("c".to_owned(), (1, now() - SignedDuration::from_secs(31)));
    check(&view, &["Signal { container: \"c\", attempt: 1, signal: 9 }"], None);
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
        volumes: BTreeMap::from([(
            "v".to_owned(),
            Content::Files {
                secret: false,
                files: contents
                    .iter()
                    .map(|(name, text)| ((*name).to_owned(), (text.as_bytes().to_vec(), 0o640)))
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
    check(json!({ "spec": { "hostPID": true } }), Some("spec.hostPID"));
    let unmasked = json!([{ "name": "c", "image": "i", "securityContext": { "procMount": "Unmasked" } }]);
    check(
        json!({ "spec": { "containers": unmasked } }),
        Some("spec.containers[0].securityContext.procMount"),
    );
}
