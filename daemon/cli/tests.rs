//! What people read, word for word.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use clap::CommandFactory;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;

const INK: Ink = Ink { colour: false, width: 100, height: 24 };

fn document() -> Value {
    let object = |kind: &str, name: &str, sync: &str, health: &str, message: &str| json!({"kind": kind, "namespace": "default", "name": name, "sync": sync, "health": {"code": health, "message": message}, "file": format!("{}.yaml", kind.to_lowercase()), "line": 1});
    json!({
        "node": {"name": "box", "version": "0.1.0", "uptimeSeconds": 7300, "page": "http://127.0.0.1:9440/", "kubeconfig": "/var/lib/holdfast/pki/admin.kubeconfig"},
        "ready": false,
        "applications": [{"name": "demo", "followed": true, "spec": {}, "status": {
            "sync": {"state": "OutOfSync", "message": "1 object is kept back until its file is mended"},
            "source": {"kind": "git", "location": "/srv/apps.git", "ref": "main", "revision": "3f2a91c4d5e6f708192a3b4c5d6e7f8091a2b3c4", "author": "Ada", "commitMessage": "Five replicas\n\nmore"},
            "health": {"code": "Progressing", "message": ""},
            "objects": [
                object("ConfigMap", "kubia", "Synced", "Healthy", ""),
                object("Deployment", "kubia", "Synced", "Progressing", "4 of 5 replicas are ready: pod kubia-x2 waits for its readiness probe on port 8080"),
            ],
            "defects": [{"file": "service.yaml", "line": 17, "column": 7, "message": "unknown field \"spec.ports[0].targetport\"", "help": "did you mean \"targetPort\"?"}],
            "conditions": [{"type": "Synced", "lastTransitionTime": "2026-11-24T09:29:12Z"}],
        }}],
        "services": [{"namespace": "default", "name": "kubia", "address": "10.43.0.17", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30123}]}],
    })
}

fn ready() -> Value {
    let mut document = document();
    document["ready"] = json!(true);
    let status = &mut document["applications"][0]["status"];
    status["sync"] = json!({"state": "Synced", "message": ""});
    status["health"] = json!({"code": "Healthy", "message": ""});
    status["objects"][1]["health"] = json!({"code": "Healthy", "message": ""});
    status["defects"] = json!([]);
    document
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
    let parsed = Cli::parse_from(["holdfast", "status", "--wait", "5", "--config", "x.toml"]);
    assert_eq!(parsed.command, Some(Command::Status { json: false, wait: Some(5) }));
    assert_eq!(parsed.config, Some("x.toml".into()));
    assert_eq!(Cli::parse_from(["holdfast", "--data", "d"]).command, None);
    assert_eq!(Cli::try_parse_from(["holdfast", "statsu"]).unwrap_err().exit_code(), 2);
}

#[test]
fn status_says_what_is_there_and_what_is_wrong() {
    let shown = status::render(&document(), INK, "2026-11-24T09:30:00Z".parse::<Timestamp>().unwrap());
    let expected = "\
node box · holdfast 0.1.0 · up 2 h · http://127.0.0.1:9440/

demo  ◌ OutOfSync  ◌ Progressing
  git /srv/apps.git at main · 3f2a91c \"Five replicas\" by Ada · so since 48 s
  1 object is kept back until its file is mended
  OBJECT                    SYNC      HEALTH         WHY                           FROM
  ConfigMap default/kubia   ✓ Synced  ✓ Healthy                                    configmap.yaml:1
  Deployment default/kubia  ✓ Synced  ◌ Progressing  4 of 5 replicas are ready:    deployment.yaml:1
                                                     pod kubia-x2 waits for its
                                                     readiness probe on port 8080

error: unknown field \"spec.ports[0].targetport\"
  --> service.yaml:17:7
  help: did you mean \"targetPort\"?

◌ not there yet: demo
";
    assert_eq!(shown, expected, "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 100));
}

#[test]
fn many_applications_are_told_worst_first_and_what_is_well_in_a_line() {
    let mut document = document();
    let mut broken = document["applications"][0].clone();
    broken["name"] = json!("broken");
    broken["status"]["defects"] = json!([]);
    broken["status"]["objects"] = json!([{"kind": "Deployment", "namespace": "shop", "name": "web", "sync": "Synced",
        "health": {"code": "Degraded", "message": "no"}}]);
    broken["status"]["health"] = json!({"code": "Degraded", "message": "Deployment shop/web: no"});
    let mut waiting = document["applications"][0].clone();
    (waiting["name"], waiting["status"]["defects"]) = (json!("a-slow-one"), json!([]));
    let well = ready()["applications"][0].clone();
    let named = |name: &str| {
        let mut app = well.clone();
        app["name"] = json!(name);
        app
    };
    document["applications"] = json!([named("fine-1"), waiting, named("fine-2"), broken, named("fine-3")]);
    let shown = status::render(&document, INK, "2026-11-24T09:30:00Z".parse::<Timestamp>().unwrap());
    assert!(shown.contains("5 applications: 1 failing, 1 waiting, 3 in sync and healthy\n"), "{shown}");
    let at = |text: &str| shown.find(text).unwrap_or_else(|| panic!("{text} in {shown}"));
    assert!(at("\nbroken  ") < at("\na-slow-one  ") && at("\na-slow-one  ") < at("✓ fine-1"));
    assert!(shown.contains("all there is to know: holdfast explain deployment/web -n shop\n"), "{shown}");
    let line = shown.lines().find(|line| line.contains("✓ fine-2")).unwrap();
    assert!(
        line.ends_with("3f2a91c   Five replicas") && shown.ends_with("not there yet: a-slow-one, broken\n"),
        "{shown}"
    );
}

#[test]
fn what_is_waited_for_is_each_object_that_is_not_well() {
    let waits: Vec<String> = status::waits(&document()).into_iter().collect();
    assert_eq!(
        waits,
        [
            "Deployment default/kubia Synced, Progressing: 4 of 5 replicas are ready: pod kubia-x2 waits for its readiness probe on port 8080",
            "service.yaml:17:7: unknown field \"spec.ports[0].targetport\"",
        ]
    );
    assert!(status::waits(&ready()).is_empty());
}

#[test]
fn a_diff_names_each_field_with_old_and_new() {
    let diffs = json!([{"application": "demo", "revision": "dir-1", "defects": [], "changes": [
        {"object": {"kind": "Deployment", "namespace": "default", "name": "kubia"}, "kind": "change", "file": "d.yaml", "line": 1, "reason": "", "fields": [
            {"path": "spec.replicas", "old": 3, "new": 5}, {"path": "spec.paused", "old": null, "new": true}, {"path": "metadata.labels.a", "old": "b", "new": null}]},
        {"object": {"kind": "Job", "namespace": "default", "name": "old"}, "kind": "prune", "file": "", "line": 0, "reason": "left the source", "fields": []},
    ]}]);
    let expected = "\
demo at dir-1: 2 objects would change

~ Deployment default/kubia changed  d.yaml:1
    spec.replicas: 3 → 5
    spec.paused: + true
    metadata.labels.a: - \"b\"

- Job default/old pruned
    left the source
";
    assert_eq!(diff::render(&diffs, INK), expected);
}

#[test]
fn where_to_look_names_page_service_and_kubeconfig() {
    let expected = "
✓ everything is in sync and healthy
  status page    http://127.0.0.1:9440/
  default/kubia  http://10.43.0.17:80  http://127.0.0.1:30123
  kubectl        kubectl --kubeconfig /var/lib/holdfast/pki/admin.kubeconfig get pods

Ctrl-C stops the node; its containers keep running. `holdfast down` takes everything away.

";
    assert_eq!(up::where_to_look(&ready(), INK), expected);
}

#[test]
fn nothing_hostile_reaches_the_terminal() {
    let hostile = "\u{1b}[2J\u{1b}]0;x\u{7}\r\n\u{202e}\u{9b}1m";
    let text =
        document().to_string().replace("kubia", serde_json::to_string(hostile).unwrap().trim_matches('"'));
    let document: Value = serde_json::from_str(&text).unwrap();
    let shown = [
        status::render(&document, INK, Timestamp::UNIX_EPOCH),
        up::where_to_look(&document, INK),
        status::waits(&document).into_iter().collect(),
        diff::render(
            &json!([{"application": hostile, "changes": [{"object": {"kind": hostile}, "kind": "change", "fields": [{"path": hostile, "old": hostile, "new": 1}]}]}]),
            INK,
        ),
        image::render(&json!([{"references": [hostile], "id": hostile, "size": 1}]), INK),
    ];
    for text in shown {
        assert!(!text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    }
}

#[test]
fn images_are_listed_with_readable_sizes() {
    let images = json!([{"references": ["kubia:1"], "id": "sha256:0123456789abcdef", "size": 1_572_864}]);
    assert_eq!(
        image::render(&images, INK),
        "  IMAGE    ID            SIZE\n  kubia:1  0123456789ab  1.5 MiB\n"
    );
    assert!(image::render(&json!([]), INK).contains("holdfast image load"));
}

#[test]
fn stopping_says_what_runs_on_and_how_to_take_it_away() {
    let said = down::stopped(&ready(), "holdfast --data d");
    assert!(said.contains("keep running") && said.contains("holdfast --data d down"), "{said}");
}

#[tokio::test]
async fn without_a_node_the_way_out_is_named() {
    // Bound and let go: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let at = At { web: free, token: "/nowhere".into(), kubeconfig: "/nowhere".into() };
    let error = at.get("/status").await.unwrap_err();
    assert_eq!(error.to_string(), format!("no node answers at http://{free}: start one with `holdfast up`"));
}

#[test]
fn a_plan_says_what_happens_to_what_runs() {
    let plans = json!([{"application": "demo", "revision": "0123456789012345678901234567890123456789", "held": "dir-1",
    "waits": "revision 0123456 waits for approval: holdfast approve demo",
    "hooks": [{"object": {"kind": "Job", "namespace": "default", "name": "migrate"}, "phase": "pre-sync", "file": "m.yaml", "line": 1}],
    "defects": [],
    "changes": [
        {"object": {"kind": "Deployment", "namespace": "default", "name": "web"}, "kind": "change", "file": "w.yaml", "line": 3,
         "fields": [{"path": "spec.replicas", "old": 3, "new": 2}],
         "effects": [{"kind": "roll", "message": "2 pods replaced, at most 0 of 2 unavailable", "pods": ["web-1", "web-0"], "unavailable": 0}]},
        {"object": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": "data"}, "kind": "hold", "file": "w.yaml", "line": 9,
         "reason": "the data on its volume would go with it; `holdfast confirm demo` lets it go", "fields": [],
         "effects": [{"kind": "data", "message": "volume v (1Gi) and the data on it are deleted"}]},
    ]}]);
    let expected = "demo: dir-1 → 0123456
revision 0123456 waits for approval: holdfast approve demo

► Job default/migrate pre-sync hook  m.yaml:1

~ Deployment default/web changed  w.yaml:3
    spec.replicas: 3 → 2
    → 2 pods replaced, at most 0 of 2 unavailable
      web-1, web-0

= PersistentVolumeClaim default/data kept  w.yaml:9
    the data on its volume would go with it; `holdfast confirm demo` lets it go
    ! volume v (1Gi) and the data on it are deleted

1 to change, 1 kept back
";
    assert_eq!(plan::render(&plans, INK), expected);
    assert!(plan::is_sound(&plans));
    let none = json!([{"application": "demo", "revision": "a", "held": "a", "changes": [], "defects": []}]);
    assert_eq!(plan::render(&none, INK), "demo: at a\n\nnothing to do: live is what the files say\n");
}

#[test]
fn the_history_says_what_each_sync_did_and_how_it_ended() {
    let app = json!({"name": "demo", "status": {"sync": {"revision": "r2"}, "history": [
        {"revision": "r1", "author": "Ada", "message": "One\n\nmore", "startedAt": "2026-01-01T00:00:00Z", "result": "Healthy",
         "did": {"created": 2}, "phases": [{"name": "apply", "milliseconds": 12}, {"name": "health", "milliseconds": 1500}]},
        {"revision": "r2", "startedAt": "2026-01-01T00:01:00Z", "result": "Failed: no", "trigger": "rollback",
         "objects": [{"object": "ConfigMap default/a", "did": "failed", "from": "a.yaml:1", "message": "no"}]}]}});
    let expected = "demo
● r2, 60 s ago (rollback)
    Failed: no
    failed ConfigMap default/a: no a.yaml:1
  r1 One by Ada, 2 min ago
    Healthy · 2 created · apply 12 ms, health 1.5 s
";
    let now = "2026-01-01T00:02:00Z".parse().unwrap();
    assert_eq!(history::render(&app, INK, now), expected.replace("60 s", "1 min"));
}

#[test]
fn an_explanation_is_one_indented_chain() {
    let told = json!({"object": {"kind": "Pod", "namespace": "default", "name": "web-1"}, "summary": "container app: ended — no database",
        "links": [{"depth": 0, "what": "application demo", "state": "ok", "says": "Synced"},
            {"depth": 1, "what": "container app", "state": "bad", "says": "ended", "lines": ["no \u{1b}[31mdatabase"]}]});
    let expected = "Pod default/web-1
container app: ended — no database

✓ application demo  Synced
  ✗ container app  ended
      │ no \u{fffd}[31mdatabase
";
    assert_eq!(explain::render(&told, INK), expected);
}
