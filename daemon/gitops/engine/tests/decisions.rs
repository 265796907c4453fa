//! What persons and policies decide: guards, approval, rollback, hooks, order between applications.

use super::*;

fn hook(name: &str, phase: &str) -> String {
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: {name}\n  annotations: {{holdfast.dev/hook: {phase}}}\nspec:\n  template:\n    spec:\n      restartPolicy: Never\n      containers: [{{name: c, image: \"kubia:1\"}}]\n"
    )
}

impl Node {
    /// Ends a job as its controller would.
    async fn end_job(&self, name: &str, how: &str) {
        let job = self.until_live(&format!("job {name}"), async || self.get("Job", name).await).await;
        let failed = how == "Failed";
        let now = "2026-01-01T00:00:00Z";
        let mut conditions =
            vec![json!({"type": how, "status": "True", "reason": "X", "message": "it said so",
            "lastTransitionTime": now, "lastProbeTime": now})];
        let before = if failed { "FailureTarget" } else { "SuccessCriteriaMet" };
        conditions.insert(
            0,
            json!({"type": before, "status": "True", "lastTransitionTime": now, "lastProbeTime": now}),
        );
        let mut status = json!({"conditions": conditions, "startTime": now, "succeeded": i32::from(!failed), "failed": i32::from(failed)});
        if !failed {
            status["completionTime"] = json!(now);
        }
        let _ = job;
        let patch = Patch::Merge(json!({"status": status}));
        self.api("Job").patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }
}

#[tokio::test]
async fn a_claim_is_pruned_only_after_a_persons_word_and_can_be_brought_back() {
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec:\n  accessModes: [ReadWriteOnce]\n  resources: {requests: {storage: 1Mi}}\n";
    let node =
        Node::new(&[("a.yaml", &config("a", "1")), ("b.yaml", &config("b", "1")), ("c.yaml", claim)]).await;
    node.until("all there", |status| status.objects.len() == 3 && status.sync.state == "Synced").await;
    node.remove("c.yaml");
    node.remove("b.yaml");
    let status = node.until("the guard", |status| status.objects.iter().any(|object| object.confirm)).await;
    assert!(status.sync.message.contains("holdfast confirm demo"), "{}", status.sync.message);
    node.until_live("b pruned", async || node.value("b").await.is_none().then_some(())).await;
    assert!(node.get("PersistentVolumeClaim", "data").await.is_some());
    assert_eq!(node.engine.confirm("demo").unwrap(), ["PersistentVolumeClaim default/data"]);
    // No controller runs here that would see that no pod uses it any more.
    node.until_live("the deletion", async || {
        let claim = node.get("PersistentVolumeClaim", "data").await;
        claim.is_none_or(|claim| claim["metadata"]["deletionTimestamp"].is_string()).then_some(())
    })
    .await;
    let free = json!({"metadata": {"finalizers": null}});
    let _ =
        node.api("PersistentVolumeClaim").patch("data", &PatchParams::default(), &Patch::Merge(&free)).await;
    node.until("the claim let go", |status| status.objects.len() == 1 && status.sync.state == "Synced").await;
    assert!(node.engine.confirm("demo").unwrap_err().to_string().contains("nothing waits"));
    // One word is for one deletion.
    node.write("c.yaml", claim);
    node.until("the claim again", |status| status.objects.len() == 2 && status.sync.state == "Synced").await;
    node.remove("c.yaml");
    node.until("the guard again", |status| status.objects.iter().any(|object| object.confirm)).await;
    node.write("c.yaml", claim);
    node.until("the claim kept", |status| status.objects.len() == 2 && status.sync.state == "Synced").await;
    assert_eq!(node.engine.undo("demo", Some("ConfigMap/b")).await.unwrap(), ["ConfigMap default/b"]);
    assert_eq!(node.value("b").await.as_deref(), Some("1"));
    node.engine.sync("demo").unwrap();
    node.until("looked again", |status| status.sync.state == "Synced").await;
    assert_eq!(node.value("b").await.as_deref(), Some("1"), "what was brought back is nobody's");
}

#[tokio::test]
async fn a_manual_application_holds_and_heals_the_approved_revision() {
    let node = Node::with(&[("a.yaml", &config("a", "1"))], no_faults(), json!({"policy": "manual"})).await;
    let status =
        node.until("the wait", |status| status.sync.waits_for.contains("holdfast approve demo")).await;
    assert_eq!(status.sync.state, "OutOfSync");
    assert_eq!(node.value("a").await, None);
    node.engine.approve("demo").unwrap();
    node.until_good(&["a"]).await;
    node.write("a.yaml", &config("a", "2"));
    node.until("the next wait", |status| status.sync.waits_for.contains("approve")).await;
    node.api("ConfigMap").delete("a", &DeleteParams::default()).await.unwrap();
    node.until_live("the approved one healed", async || node.value("a").await.filter(|value| value == "1"))
        .await;
    let diff = node.engine.diff("demo").await.unwrap();
    assert!(diff.waits.contains("approve"), "{diff:?}");
    assert_eq!(diff.changes.len(), 1);
    node.engine.approve("demo").unwrap();
    node.until_live("the new one", async || node.value("a").await.filter(|value| value == "2")).await;
    node.until_good(&["a"]).await;
}

#[tokio::test]
async fn a_rollback_of_a_directory_heals_on_and_ends_with_the_next_revision() {
    let node = Node::new(&[("a.yaml", &config("a", "1"))]).await;
    let first = node.until_good(&["a"]).await.sync.revision;
    node.write("a.yaml", &config("a", "2"));
    node.until("the second", |status| status.is_good() && status.sync.revision != first).await;
    assert_eq!(node.engine.roll_back("demo", None).unwrap(), first);
    let status =
        node.until("the first again", |status| status.sync.revision == first && status.is_good()).await;
    assert!(status.sync.message.contains("rolled back"), "{}", status.sync.message);
    assert_eq!(node.value("a").await.as_deref(), Some("1"));
    node.api("ConfigMap").delete("a", &DeleteParams::default()).await.unwrap();
    node.until_live("healed", async || node.value("a").await.filter(|value| value == "1")).await;
    // Also in the next daemon.
    node.tasks.stop(Duration::from_secs(5)).await;
    let (engine, tasks) = engine(&node.server, node.dir.path(), no_faults(), json!({}));
    let node = Node { engine, tasks, ..node };
    node.until("held", |status| status.sync.revision == first && status.is_good()).await;
    node.write("a.yaml", &config("a", "3"));
    node.until_live("the next one", async || node.value("a").await.filter(|value| value == "3")).await;
    assert!(node.engine.roll_back("demo", Some("nonsense")).is_err());
}

#[tokio::test]
async fn a_bad_revision_is_taken_back_by_the_policy() {
    let more = json!({"rollback_after": "1s"});
    let node = Node::with(&[("a.yaml", &config("a", "1"))], no_faults(), more).await;
    let first = node.until_good(&["a"]).await.sync.revision;
    // No controller runs here: a Deployment never becomes healthy.
    let web = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  selector: {matchLabels: {a: b}}\n  template:\n    metadata: {labels: {a: b}}\n    spec: {containers: [{name: c, image: \"x:1\"}]}\n";
    node.write("web.yaml", web);
    node.until_live("the deployment", async || node.get("Deployment", "web").await).await;
    let status = node
        .until("the rollback", |status| {
            status.sync.revision == first
                && status.sync.message.contains("quarantine")
                && status.objects.len() == 1
        })
        .await;
    assert_eq!(status.sync.state, "Failed");
    assert_eq!(status.decisions.quarantined.len(), 1);
    node.until_live("the deployment gone", async || {
        node.get("Deployment", "web").await.is_none().then_some(())
    })
    .await;
    assert_eq!(status.history.last().unwrap().trigger, "automatic rollback");
    node.remove("web.yaml");
    node.write("a.yaml", &config("a", "2"));
    node.until_good(&["a"]).await;
}

#[tokio::test]
async fn hooks_run_once_per_content_before_and_after_the_objects() {
    let files = [
        ("a.yaml", config("a", "1")),
        ("before.yaml", hook("before", "pre-sync")),
        ("after.yaml", hook("after", "post-sync")),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let node = Node::new(&files).await;
    node.until("the hook", |status| status.sync.message.contains("pre-sync hook Job default/before")).await;
    assert_eq!(node.value("a").await, None, "the objects wait");
    node.end_job("before", "Complete").await;
    node.until_live("the object", async || node.value("a").await).await;
    node.end_job("after", "Complete").await;
    let status = node
        .until("the end", |status| {
            status.is_good() && status.hooks.iter().all(|hook| hook.state == "Succeeded")
        })
        .await;
    assert_eq!(status.hooks.len(), 2);
    let phases: Vec<&str> = status.history[0].phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!((phases.first(), phases.last()), (Some(&"pre-sync"), Some(&"post-sync")), "{phases:?}");
    // Their objects may go: what ran has run.
    node.api("Job").delete("before", &DeleteParams::background()).await.unwrap();
    node.engine.sync("demo").unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(node.get("Job", "before").await.is_none());
    // Another content runs them again.
    node.write("a.yaml", &config("a", "2"));
    node.end_job("before", "Failed").await;
    let status = node.until("the failure", |status| status.sync.state == "Failed").await;
    assert!(status.sync.message.contains("it said so"), "{}", status.sync.message);
    assert_eq!(node.value("a").await.as_deref(), Some("1"));
    // What is good heals all the same.
    node.api("ConfigMap").delete("a", &DeleteParams::default()).await.unwrap();
    // The content changed with this commit, and the newest wins at once, also in the middle of a hook.
    node.write("before.yaml", &hook("before2", "pre-sync"));
    node.end_job("before2", "Complete").await;
    node.until_live("the new value", async || node.value("a").await.filter(|value| value == "2")).await;
    node.until_live("the old hook gone", async || node.get("Job", "before").await.is_none().then_some(()))
        .await;
}

#[tokio::test]
async fn a_job_that_takes_itself_away_is_done() {
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: once}\nspec:\n  ttlSecondsAfterFinished: 0\n  template:\n    spec:\n      restartPolicy: Never\n      containers: [{name: c, image: \"kubia:1\"}]\n";
    let node = Node::new(&[("job.yaml", job)]).await;
    node.until("synced", |status| status.sync.state == "Synced" && !status.objects.is_empty()).await;
    node.end_job("once", "Complete").await;
    node.api("Job").delete("once", &DeleteParams::background()).await.unwrap();
    let status = node.until_good(&["once"]).await;
    assert!(status.objects[0].ended.starts_with("Complete"), "{:?}", status.objects[0]);
    node.engine.sync("demo").unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(node.get("Job", "once").await.is_none());
    node.write("job.yaml", &job.replace("kubia:1", "kubia:2"));
    node.until_live("the changed one", async || node.get("Job", "once").await).await;
}

#[tokio::test]
async fn an_application_waits_for_those_it_depends_on_and_starts_the_moment_they_are_well() {
    let dir = TempDir::new().unwrap();
    for (name, value) in [("base", "1"), ("top", "1")] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("a.yaml"), config(name, value)).unwrap();
    }
    fs::write(dir.path().join("base/job.yaml"), hook("first", "pre-sync")).unwrap();
    let server = server().await;
    let door = client::door(server.door(User::room("gitops")));
    let declared = |name: &str, on: Value| {
        serde_json::from_value::<Application>(
            json!({"name": name, "dir": dir.path().join(name), "depends_on": on}),
        )
        .unwrap()
    };
    let parts = |applications| Parts {
        caches: Caches::new(door.clone(), CancellationToken::new()),
        applications,
        dir: dir.path().join("data"),
        now: Arc::new(Timestamp::now),
        ssh: "ssh".into(),
    };
    let circle = vec![declared("base", json!(["top"])), declared("top", json!(["base"]))];
    assert!(Engine::new(parts(circle)).unwrap_err().to_string().contains("circle"));
    let engine =
        Engine::new(parts(vec![declared("base", json!([])), declared("top", json!(["base"]))])).unwrap();
    let tasks = Tasks::new();
    engine.start(&tasks);
    let node = Node { dir, server, tasks, engine, door };
    let mut changed = node.engine.changed();
    while !node.engine.status("top").is_some_and(|top| top.sync.waits_for.contains("application base")) {
        changed.changed().await.unwrap();
    }
    assert_eq!(node.value("top").await, None);
    node.end_job("first", "Complete").await;
    node.until_live("the dependent", async || node.value("top").await).await;
}

#[tokio::test]
async fn an_application_that_is_removed_takes_its_objects_with_it_when_it_was_told_to() {
    let node =
        Node::with(&[("a.yaml", &config("a", "1"))], no_faults(), json!({"on_removal": "prune"})).await;
    node.until_good(&["a"]).await;
    node.tasks.stop(Duration::from_secs(5)).await;
    let tasks = Tasks::new();
    let engine = Engine::new(Parts {
        caches: Caches::new(node.door.clone(), CancellationToken::new()),
        applications: vec![
            serde_json::from_value(json!({"name": "other", "dir": node.dir.path().join("manifests2")}))
                .unwrap(),
        ],
        dir: node.dir.path().join("data"),
        now: Arc::new(Timestamp::now),
        ssh: "ssh".into(),
    })
    .unwrap();
    engine.start(&tasks);
    let node = Node { engine, tasks, ..node };
    node.until_live("the object gone", async || node.value("a").await.is_none().then_some(())).await;
    node.until_live("the application gone", async || {
        node.get("Application", "demo").await.is_none().then_some(())
    })
    .await;
    assert_eq!(
        node.engine.undo("other", None).await.unwrap_err().to_string(),
        "other: nothing was pruned in the last seven days"
    );
}

#[tokio::test]
async fn an_ignored_field_is_left_to_whoever_has_it() {
    let more = json!({"ignore": [{"kind": "ConfigMap", "pointers": ["/data/k"]}]});
    let node = Node::with(&[("a.yaml", &config("a", "1"))], no_faults(), more).await;
    node.until_good(&["a"]).await;
    assert_eq!(node.value("a").await.as_deref(), Some("1"), "made as the files say");
    let edit = json!({"data": {"k": "theirs"}});
    node.api("ConfigMap").patch("a", &PatchParams::default(), &Patch::Merge(&edit)).await.unwrap();
    node.write("a.yaml", &format!("{}  other: x\n", config("a", "2")));
    node.until_live("the other field", async || {
        let object = node.get("ConfigMap", "a").await?;
        (object["data"]["other"] == "x").then_some(())
    })
    .await;
    assert_eq!(node.value("a").await.as_deref(), Some("theirs"));
    node.until_good(&["a"]).await;
}

#[tokio::test]
async fn without_the_source_the_last_revision_comes_up_from_this_machine() {
    let node = Node::new(&[("a.yaml", &config("a", "1"))]).await;
    node.until_good(&["a"]).await;
    node.tasks.stop(Duration::from_secs(5)).await;
    fs::rename(node.dir.path().join("manifests"), node.dir.path().join("away")).unwrap();
    node.api("ConfigMap").delete("a", &DeleteParams::default()).await.unwrap();
    let (engine, tasks) = engine(&node.server, node.dir.path(), no_faults(), json!({}));
    let node = Node { engine, tasks, ..node };
    node.until_live("the object", async || node.value("a").await).await;
    let status = node.until("trouble", |status| status.sync.state == "Failed").await;
    assert!(status.sync.message.contains("last good state stays"), "{}", status.sync.message);
}

#[tokio::test]
async fn another_cluster_is_held_through_its_kubeconfig_and_taken_over_by_another_node() {
    // Another test may have installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = TempDir::new().unwrap();
    let far = server().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pki = apiserver::Pki::open(&dir.path().join("pki"), &[], address, Timestamp::now()).unwrap();
    let kubeconfig = pki.kubeconfig.clone();
    let stop = CancellationToken::new();
    let (https, token) = (far.clone(), stop.clone());
    tokio::spawn(async move { https.serve(listener, &pki, token).await.map_err(|error| error.to_string()) });
    let more = json!({"target": {"kubeconfig": kubeconfig}});
    let node = Node::with(
        &[("a.yaml", &config("a", "1")), ("b.yaml", &config("b", "1"))],
        no_faults(),
        more.clone(),
    )
    .await;
    node.until_good(&["a", "b"]).await;
    assert_eq!(node.value("a").await, None, "nothing of it is here");
    let door = client::door(far.door(User::room("kubectl")));
    let there = Node { door, server: far, ..node };
    assert_eq!(there.value("a").await.as_deref(), Some("1"));
    there.api("ConfigMap").delete("a", &DeleteParams::default()).await.unwrap();
    there.until_live("healed there", async || there.value("a").await).await;
    // A node that never saw it prunes what left meanwhile, since the inventory is there.
    there.tasks.stop(Duration::from_secs(5)).await;
    there.remove("b.yaml");
    let fresh = server().await;
    let (engine, tasks) = self::engine(&fresh, there.dir.path(), no_faults(), more);
    let there = Node { engine, tasks, ..there };
    there.until_good(&["a"]).await;
    there.until_live("pruned there", async || there.value("b").await.is_none().then_some(())).await;
    // A cluster that does not answer is told, and what is there stays.
    stop.cancel();
    there.engine.sync("demo").unwrap();
}

#[tokio::test]
async fn what_was_put_back_is_told_with_the_name_of_who_had_changed_it() {
    let node = Node::new(&[("a.yaml", &config("a", "1"))]).await;
    node.until_good(&["a"]).await;
    let edit = json!({"data": {"k": "edited"}});
    let editor = PatchParams { field_manager: Some("an-editor".to_owned()), ..PatchParams::default() };
    node.api("ConfigMap").patch("a", &editor, &Patch::Merge(&edit)).await.unwrap();
    node.until_live("the edit undone", async || node.value("a").await.filter(|value| value == "1")).await;
    let status =
        node.until("the name", |status| status.objects.iter().any(|object| !object.healed.is_empty())).await;
    let healed = &status.objects[0].healed;
    assert!(healed.contains(".data.k") && healed.contains("an-editor"), "{healed}");
}

#[tokio::test]
async fn a_hook_may_leave_its_name_to_us_and_is_tried_again_when_a_person_asks() {
    let text = hook("x", "pre-sync")
        .replace("  name: x\n", "  generateName: migrate-\n")
        .replace("holdfast.dev/hook: pre-sync", "argocd.argoproj.io/hook: PreSync");
    let node = Node::new(&[("a.yaml", &config("a", "1")), ("hook.yaml", &text)]).await;
    let status =
        node.until("the hook", |status| status.hooks.iter().any(|hook| hook.state == "Running")).await;
    let name = status.hooks[0].name.clone();
    assert!(name.starts_with("migrate-") && name.len() == 16, "{name}");
    node.end_job(&name, "Failed").await;
    node.until("the failure", |status| status.sync.state == "Failed").await;
    node.engine.sync("demo").unwrap();
    node.until("the second try", |status| status.hooks.iter().any(|hook| hook.attempt == 2)).await;
    node.until_live("the new run", async || {
        let job = node.get("Job", &name).await?;
        job["metadata"]["annotations"][crate::hooks::RUN]
            .as_str()
            .filter(|run| run.ends_with(".2"))
            .map(str::to_owned)
    })
    .await;
    node.end_job(&name, "Complete").await;
    node.until_live("the object", async || node.value("a").await).await;
}
