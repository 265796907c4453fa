#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use super::*;
use std::fs;
use std::path::Path;
use std::time::Duration;

use apiserver::{Server, User};
use client::faults::{Faults, Faulty};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use store::Store;
use store::memory_disk::MemoryDisk;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

mod decisions;
mod defined;
mod faults;

/// A real API server in memory, and an engine over a directory.
struct Node {
    dir: TempDir,
    server: Server,
    tasks: Tasks,
    engine: Engine,
    door: Client,
}

fn no_faults() -> Faults {
    Faults { refuse_every: 0, lose_every: 0 }
}

async fn server() -> Server {
    let disk = Box::new(MemoryDisk::default());
    let store = Store::open(disk, apiserver::Head::parse, &store::Config::default()).unwrap();
    Server::open(store, &apiserver::Config::default(), Arc::new(Timestamp::now)).await.unwrap()
}

/// An engine with one application `demo` over `dir`.
fn engine(server: &Server, dir: &Path, faults: Faults, more: Value) -> (Engine, Tasks) {
    let tasks = Tasks::new();
    let door = client::door(Faulty::new(server.door(User::room("gitops")), faults));
    let mut application = json!({"name": "demo", "dir": dir.join("manifests")});
    application.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let engine = Engine::new(Parts {
        caches: Caches::new(door, CancellationToken::new()),
        applications: vec![serde_json::from_value(application).unwrap()],
        dir: dir.join("data"),
        now: Arc::new(Timestamp::now),
        ssh: "ssh".into(),
    })
    .unwrap();
    engine.start(&tasks);
    (engine, tasks)
}

impl Node {
    async fn new(files: &[(&str, &str)]) -> Node {
        Node::with(files, no_faults(), json!({})).await
    }

    async fn with(files: &[(&str, &str)], faults: Faults, more: Value) -> Node {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("manifests")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join("manifests").join(name), text).unwrap();
        }
        let server = server().await;
        let door = client::door(server.door(User::room("kubectl")));
        let (engine, tasks) = engine(&server, dir.path(), faults, more);
        Node { dir, server, tasks, engine, door }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join("manifests").join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join("manifests").join(name)).unwrap();
    }

    fn api(&self, kind: &str) -> Api<DynamicObject> {
        let row = api::kinds::kinds().iter().find(|row| row.kind == kind).unwrap();
        let resource = kube::api::ApiResource {
            group: row.group.clone(),
            version: row.version.clone(),
            api_version: row.api_version(),
            kind: row.kind.clone(),
            plural: row.plural.clone(),
        };
        if row.namespaced {
            Api::namespaced_with(self.door.clone(), "default", &resource)
        } else {
            Api::all_with(self.door.clone(), &resource)
        }
    }

    async fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let object = self.api(kind).get_opt(name).await.unwrap()?;
        Some(serde_json::to_value(object).unwrap())
    }

    /// The value of key `k` of a ConfigMap.
    async fn value(&self, name: &str) -> Option<String> {
        Some(self.get("ConfigMap", name).await?["data"]["k"].as_str()?.to_owned())
    }

    /// Waits until the status that is told is as asked for.
    async fn until(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        let mut changed = self.engine.changed();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if let Some(status) = self.engine.status("demo").filter(|status| holds(status)) {
                    return status;
                }
                changed.changed().await.unwrap();
            }
        };
        let patience = Duration::from_secs(20);
        match tokio::time::timeout(patience, wait).await {
            Ok(status) => (*status).clone(),
            Err(_) => panic!("{what} did not come; told is {:#?}", self.engine.status("demo")),
        }
    }

    async fn until_good(&self, names: &[&str]) -> Status {
        self.until(&format!("{names:?} in sync"), |status| {
            status.is_good()
                && status.objects.iter().map(|object| object.name.as_str()).eq(names.iter().copied())
        })
        .await
    }

    /// Waits until something of the cluster is as asked for.
    async fn until_live<T>(&self, what: &str, look: impl AsyncFn() -> Option<T>) -> T {
        let stop = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(tokio::time::Instant::now() < stop, "{what} did not come");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn config(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  k: \"{value}\"\n")
}

#[tokio::test]
async fn files_become_objects_and_follow_every_change() {
    let node = Node::new(&[("a.yaml", &config("a", "1"))]).await;
    let status = node.until_good(&["a"]).await;
    assert!(status.objects[0].file.ends_with("manifests/a.yaml") && status.objects[0].line == 1);
    assert_eq!(node.value("a").await.as_deref(), Some("1"));
    let first = status.sync.revision.clone();

    node.write("a.yaml", &config("a", "2"));
    node.until("the new revision", |status| status.is_good() && status.sync.revision != first).await;
    assert_eq!(node.value("a").await.as_deref(), Some("2"));

    node.write("b.yaml", &config("b", "1"));
    node.until_good(&["a", "b"]).await;
    node.remove("a.yaml");
    let status = node.until_good(&["b"]).await;
    assert_eq!(node.value("a").await, None);
    assert_eq!(status.history.len(), 4);
    assert!(status.history.iter().all(|entry| entry.result == "Healthy"), "{:#?}", status.history);

    // The API shows the very same status.
    let told = node.get("Application", "demo").await.unwrap();
    let told: Status = serde_json::from_value(told["status"].clone()).unwrap();
    assert_eq!(told, status);
    assert!(node.tasks.stop(Duration::from_secs(5)).await.is_empty());
}

#[tokio::test]
async fn drift_heals_at_once() {
    let node = Node::new(&[("a.yaml", &config("a", "1"))]).await;
    node.until_good(&["a"]).await;
    let configs = node.api("ConfigMap");
    let edit = json!({"data": {"k": "edited"}});
    configs.patch("a", &PatchParams::default(), &Patch::Merge(&edit)).await.unwrap();
    node.until_live("the edit undone", async || node.value("a").await.filter(|value| value == "1")).await;
    configs.delete("a", &DeleteParams::default()).await.unwrap();
    node.until_live("the object back", async || node.value("a").await).await;
    let unlabel = json!({"metadata": {"labels": {crate::APPLICATION_LABEL: null}}});
    configs.patch("a", &PatchParams::default(), &Patch::Merge(&unlabel)).await.unwrap();
    node.until_live("the label back", async || {
        let object = node.get("ConfigMap", "a").await?;
        object["metadata"]["labels"][crate::APPLICATION_LABEL].as_str().map(str::to_owned)
    })
    .await;
}

#[tokio::test]
async fn what_nobody_changed_is_neither_written_nor_asked_for() {
    let node = Node::new(&[("a.yaml", &config("a", "1"))]).await;
    node.until_good(&["a"]).await;
    // Fields of another manager are no drift.
    let other = json!({"metadata": {"annotations": {"someone": "else"}}});
    node.api("ConfigMap").patch("a", &PatchParams::default(), &Patch::Merge(&other)).await.unwrap();
    node.engine.sync("demo").unwrap();
    let before = node.server.revision();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(node.server.revision(), before, "something was written");
}

#[tokio::test]
async fn a_bad_file_is_told_and_stops_nothing_and_prunes_nothing() {
    let node = Node::new(&[("a.yaml", &config("a", "1")), ("b.yaml", &config("b", "1"))]).await;
    node.until_good(&["a", "b"]).await;
    node.write("a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a\n");
    node.write("b.yaml", &config("b", "2"));
    let status = node.until("the defect", |status| {
        !status.defects.is_empty() && status.objects.iter().any(|o| o.name == "b" && o.sync == "Synced")
    });
    let status = status.await;
    assert!(status.defects[0].file.ends_with("a.yaml") && status.defects[0].line > 0, "{:?}", status.defects);
    assert_eq!(status.sync.state, "Failed");
    assert_eq!(node.value("b").await.as_deref(), Some("2"));
    assert_eq!(node.value("a").await.as_deref(), Some("1"));
    node.write("a.yaml", &config("a", "3"));
    node.until_good(&["a", "b"]).await;
    assert_eq!(node.value("a").await.as_deref(), Some("3"));
}

#[tokio::test]
async fn an_object_that_the_api_refuses_is_told_with_its_line_and_stops_no_other() {
    let bad = "apiVersion: v1\nkind: Service\nmetadata:\n  name: bad\nspec:\n  ports:\n  - port: 99999\n";
    let node = Node::new(&[("a.yaml", &config("a", "1")), ("bad.yaml", bad)]).await;
    let status =
        node.until("the failure", |status| status.defects.iter().any(|d| d.file.ends_with("bad.yaml"))).await;
    assert_eq!(status.defects[0].line, 7, "{:?}", status.defects);
    node.until_live("the good one", async || node.value("a").await).await;
    node.write("bad.yaml", &bad.replace("99999", "80"));
    node.until("the failure gone", |status| status.defects.is_empty() && status.sync.state == "Synced").await;
}

#[tokio::test]
async fn a_vanished_or_emptied_directory_prunes_nothing() {
    let node = Node::new(&[("a.yaml", &config("a", "1"))]).await;
    node.until_good(&["a"]).await;
    let (here, away) = (node.dir.path().join("manifests"), node.dir.path().join("away"));
    fs::rename(&here, &away).unwrap();
    let status = node.until("trouble", |status| status.sync.state == "Failed").await;
    assert!(status.sync.message.contains("manifests"), "{}", status.sync.message);
    node.api("ConfigMap").delete("a", &DeleteParams::default()).await.unwrap();
    node.until_live("healed from the last good state", async || node.value("a").await).await;
    fs::rename(&away, &here).unwrap();
    node.until_good(&["a"]).await;
    node.remove("a.yaml");
    let status = node.until("the brake", |status| status.sync.message.contains("allow_empty")).await;
    assert_eq!(status.sync.state, "OutOfSync");
    assert!(node.value("a").await.is_some());
}

#[tokio::test]
async fn a_restart_keeps_everything_and_prunes_what_was_removed_meanwhile() {
    let node = Node::new(&[("a.yaml", &config("a", "1")), ("b.yaml", &config("b", "1"))]).await;
    let before = node.until_good(&["a", "b"]).await;
    node.tasks.stop(Duration::from_secs(5)).await;
    let revision = node.server.revision();
    let (engine, tasks) = engine(&node.server, node.dir.path(), no_faults(), json!({}));
    let node = Node { engine, tasks, ..node };
    node.until("the same status", |status| *status == before).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(node.server.revision(), revision, "a restart with nothing to do writes nothing");
    node.tasks.stop(Duration::from_secs(5)).await;
    node.remove("b.yaml");
    let (engine, tasks) = self::engine(&node.server, node.dir.path(), no_faults(), json!({}));
    let node = Node { engine, tasks, ..node };
    node.until_good(&["a"]).await;
    assert_eq!(node.value("b").await, None);
}

#[tokio::test]
async fn with_every_third_write_refused_and_every_fifth_answer_lost_all_ends_converged() {
    let many: String = (0..20).map(|n| format!("---\n{}", config(&format!("c{n:02}"), "1"))).collect();
    let faults = Faults { refuse_every: 3, lose_every: 5 };
    let node =
        Node::with(&[("many.yaml", &many), ("last.yaml", &config("last", "1"))], faults, json!({})).await;
    node.until("all in sync", |status| status.is_good() && status.objects.len() == 21).await;
    node.write("many.yaml", &many.replace("\"1\"", "\"2\"").replace("name: c07", "name: c99"));
    node.until("all in sync again", |status| {
        let has = |name: &str| status.objects.iter().any(|object| object.name == name);
        status.is_good() && has("c99") && !has("c07")
    })
    .await;
    assert_eq!(node.value("c03").await.as_deref(), Some("2"));
    assert_eq!(node.value("c07").await, None);
}

#[tokio::test]
async fn a_diff_names_every_field_and_changes_nothing() {
    let node = Node::with(&[("a.yaml", &config("a", "1"))], no_faults(), json!({"suspend": true})).await;
    node.until("a look", |status| !status.objects.is_empty()).await;
    let diff = node.engine.diff("demo").await.unwrap();
    assert_eq!((diff.changes.len(), diff.changes[0].kind), (1, crate::ChangeKind::Create));
    assert_eq!(node.value("a").await, None, "suspended");
    let made =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "0"}});
    let apply = PatchParams::apply("someone");
    node.api("ConfigMap").patch("a", &apply, &Patch::Apply(&made)).await.unwrap();
    let diff = node
        .until_live("the change", async || {
            let diff = node.engine.diff("demo").await.unwrap();
            (diff.changes[0].kind == crate::ChangeKind::Change).then_some(diff)
        })
        .await;
    let field = diff.changes[0].fields.iter().find(|field| field.path == "data.k").unwrap();
    assert_eq!((field.old.clone(), field.new.clone()), (Some(json!("0")), Some(json!("1"))));
    assert!(matches!(node.engine.diff("nope").await, Err(Error::NoApplication(_))));
}

#[tokio::test]
async fn a_job_whose_template_changed_is_made_anew() {
    let job = |image: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: once}}\nspec:\n  template:\n    spec:\n      restartPolicy: Never\n      containers: [{{name: c, image: \"{image}\"}}]\n"
        )
    };
    let node = Node::new(&[("job.yaml", &job("kubia:1"))]).await;
    let image = async || {
        let job = node.get("Job", "once").await?;
        job["spec"]["template"]["spec"]["containers"][0]["image"].as_str().map(str::to_owned)
    };
    node.until_live("the job", async || image().await.filter(|image| image == "kubia:1")).await;
    node.write("job.yaml", &job("kubia:2"));
    node.until_live("the new job", async || image().await.filter(|image| image == "kubia:2")).await;
}

#[tokio::test]
async fn the_newest_of_many_quick_revisions_wins() {
    let node = Node::new(&[("a.yaml", &config("a", "0"))]).await;
    node.until_good(&["a"]).await;
    for count in 1..=100 {
        node.write("a.yaml", &config("a", &count.to_string()));
        tokio::time::sleep(Duration::from_millis(count % 7)).await;
    }
    node.until_live("the last", async || node.value("a").await.filter(|value| value == "100")).await;
    node.until_good(&["a"]).await;
}

#[test]
fn a_repository_is_the_same_however_it_is_reached() {
    for url in [
        "https://github.com/a/b",
        "https://github.com/a/b.git",
        "https://x:token@GitHub.com/a/b.git/",
        "git@github.com:a/b.git",
        "ssh://git@github.com:22/a/b.git",
    ] {
        assert_eq!(plain(url), "github.com/a/b", "{url}");
    }
    assert_eq!(plain("/srv/b.git"), plain("file:///srv/b.git"));
    assert_ne!(plain("https://github.com/a/c"), plain("https://github.com/a/b"));
}

#[tokio::test]
async fn a_push_is_applied_with_its_commit_author_and_message() {
    let dir = TempDir::new().unwrap();
    let work = dir.path().join("work");
    let git = |args: &[&str]| {
        let done = std::process::Command::new("git")
            .args([
                "-c",
                "user.name=Ada",
                "-c",
                "user.email=ada@example.org",
                "-c",
                "init.defaultBranch=main",
            ])
            .args(args)
            .current_dir(if work.exists() { &work } else { dir.path() })
            .output()
            .unwrap();
        assert!(done.status.success(), "git {args:?}");
    };
    git(&["init", "-q", "--bare", "bare.git"]);
    git(&["init", "-q", "work"]);
    fs::write(work.join("a.yaml"), config("a", "1")).unwrap();
    git(&["add", "-A"]);
    git(&["commit", "-q", "-m", "Say one"]);
    git(&["push", "-q", "../bare.git", "HEAD:main"]);
    let server = server().await;
    let door = client::door(server.door(User::room("gitops")));
    let repository = format!("file://{}", dir.path().join("bare.git").display());
    let application = json!({"name": "demo", "git": repository, "ref": "main"});
    let engine = Engine::new(Parts {
        caches: Caches::new(door.clone(), CancellationToken::new()),
        applications: vec![serde_json::from_value(application).unwrap()],
        dir: dir.path().join("data"),
        now: Arc::new(Timestamp::now),
        ssh: "ssh".into(),
    })
    .unwrap();
    let tasks = Tasks::new();
    engine.start(&tasks);
    assert_eq!(engine.hurry(&repository) + engine.hurry("demo") + engine.hurry("https://nowhere/x"), 2);
    let node = Node { dir: TempDir::new().unwrap(), server, tasks, engine, door };
    node.until_good(&["a"]).await;
    fs::write(work.join("a.yaml"), config("a", "2")).unwrap();
    git(&["commit", "-q", "-a", "-m", "Say two"]);
    git(&["push", "-q", "../bare.git", "HEAD:main"]);
    let status =
        node.until("the second commit", |status| status.is_good() && status.history.len() == 2).await;
    assert_eq!(node.value("a").await.as_deref(), Some("2"));
    assert_eq!(status.source.author, "Ada <ada@example.org>");
    assert_eq!(status.source.commit_message, "Say two");
    assert_eq!((status.objects[0].file.as_str(), status.objects[0].line), ("a.yaml", 1));
}
