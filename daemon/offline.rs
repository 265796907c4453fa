//! A plan without a node: a saved state in an API server in memory, and the engine looking at the files beside it.
//!
//! Invariant: the same code decides as in a node; nothing is applied, and nothing outlives the plan but its answer.

use std::path::Path;
use std::time::Duration;

use apiserver::{Head, Server, User};
use client::{Caches, Clock};
use gitops::{Application, Engine};
use reconcile::Tasks;
use serde_json::{Value, json};
use store::Store;
use store::memory_disk::MemoryDisk;

use crate::config::Config;

/// A source has to be read within this time.
const PATIENCE: Duration = Duration::from_secs(120);

/// The plans of all applications, or of one, against a saved state.
///
/// # Errors
/// What is wrong with the file or the configuration, in words.
pub(crate) async fn plan(config: &Config, file: &Path, only: Option<&str>) -> Result<Value, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("read {}: {error}", file.display()))?;
    let document: Value =
        serde_json::from_str(&text).map_err(|error| format!("{} is no JSON: {error}", file.display()))?;
    let objects = gitops::objects_of(&document).map_err(|why| format!("{}: {why}", file.display()))?;
    let clock = Clock::Wall;
    let store = Store::open(Box::new(MemoryDisk::default()), Head::parse, &config.store)
        .map_err(|error| reconcile::chain(&error))?;
    let server =
        Server::open(store, &config.api, clock.teller()).await.map_err(|error| reconcile::chain(&error))?;
    server.restore(&objects).await.map_err(|error| reconcile::chain(&error))?;
    let applications: Vec<Application> = config
        .application
        .iter()
        .filter(|application| only.is_none_or(|name| application.name == name))
        // Looks and tells, and changes nothing.
        .map(|application| Application {
            suspend: true,
            target: None,
            depends_on: Vec::new(),
            ..application.clone()
        })
        .collect();
    if let (true, Some(name)) = (applications.is_empty(), only) {
        return Err(format!("there is no application {name} in the configuration"));
    }
    let scratch = std::env::temp_dir().join(format!("holdfast-plan-{}", std::process::id()));
    let tasks = Tasks::new();
    let caches = Caches::new(client::door(server.door(User::room("gitops"))), tasks.token());
    let engine = Engine::new(gitops::Parts {
        caches,
        applications,
        dir: scratch.clone(),
        now: clock.teller(),
        ssh: "ssh".into(),
    })
    .map_err(|error| reconcile::chain(&error))?;
    engine.start(&tasks);
    let plans = plans(&engine).await;
    tasks.stop(Duration::from_secs(1)).await;
    // What is left of it is in the directory for passing files.
    let _ = std::fs::remove_dir_all(&scratch);
    Ok(plans)
}

async fn plans(engine: &Engine) -> Value {
    let mut plans = Vec::new();
    for name in engine.names() {
        let read = tokio::time::timeout(PATIENCE, read(engine, &name)).await;
        let plan = match read {
            Err(_) => {
                json!({"application": name, "error": format!("its source was not read within {} s", PATIENCE.as_secs())})
            }
            Ok(()) => match engine.diff(&name).await {
                Ok(diff) => {
                    let mut plan = serde_json::to_value(diff).expect("a diff is plain data");
                    gitops::without_withheld(&mut plan);
                    plan
                }
                Err(error) => json!({"application": name, "error": reconcile::chain(&error)}),
            },
        };
        plans.push(plan);
    }
    Value::Array(plans)
}

/// Returns when the source was read, or cannot be.
async fn read(engine: &Engine, name: &str) {
    let mut changed = engine.changed();
    loop {
        changed.borrow_and_update();
        if engine.is_read(name) || changed.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_plan_against_a_saved_state_needs_no_node() {
        let dir = tempfile::tempdir().unwrap();
        let manifests = dir.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        let made = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: \"2\"}\n";
        std::fs::write(manifests.join("a.yaml"), made).unwrap();
        let application = serde_json::from_value(json!({"name": "demo", "dir": manifests})).unwrap();
        let config = Config { application: vec![application], ..Config::default() };
        let owned = json!([{"manager": "holdfast", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {"f:k": {}}, "f:metadata": {"f:labels": {"f:holdfast.dev/application": {}}}}}]);
        let live = |name: &str| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default", "uid": name,
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"holdfast.dev/application": "demo"}, "managedFields": owned}, "data": {"k": "1"}})
        };
        let known = |name: &str| json!({"group": "", "version": "v1", "kind": "ConfigMap", "namespace": "default", "name": name, "file": "x.yaml", "line": 1});
        let told = json!({"apiVersion": "holdfast.dev/v1", "kind": "Application", "metadata": {"name": "demo", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"source": {}}, "status": {"objects": [known("a"), known("b")], "source": {"revision": "old"}, "sync": {"revision": "old", "state": "Synced"}}});
        let file = dir.path().join("state.json");
        let state = json!({"holdfastState": 1, "objects": [live("a"), live("b"), told]});
        std::fs::write(&file, state.to_string()).unwrap();
        let plans = plan(&config, &file, None).await.unwrap();
        let kinds: Vec<(&str, &str)> = plans[0]["changes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|change| (change["kind"].as_str().unwrap(), change["object"]["name"].as_str().unwrap()))
            .collect();
        assert_eq!(kinds, [("change", "a"), ("prune", "b")], "{plans:#}");
        assert!(plan(&config, &dir.path().join("nothing"), None).await.is_err());
        assert!(plan(&config, &file, Some("other")).await.unwrap_err().contains("no application other"));
    }
}
