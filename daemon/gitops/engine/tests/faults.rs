//! A daemon that dies between any two requests, and many applications at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response};
use tower::Service;

use super::*;

/// Passes so many requests on and then none: what a daemon that was killed still got done.
#[derive(Clone)]
struct Cut<S> {
    inner: S,
    left: Arc<AtomicUsize>,
}

impl<S> Service<Request<kube::client::Body>> for Cut<S>
where
    S: Service<Request<kube::client::Body>, Response = Response<client::Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<client::BoxError>,
{
    type Response = Response<client::Body>;
    type Error = client::BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        // Reads are free: only what changes something moves a sync on.
        let changes = request.method() != http::Method::GET
            && !request.uri().query().unwrap_or_default().contains("dryRun");
        let take = |left: usize| left.checked_sub(usize::from(changes));
        let passes = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        let mut inner = self.inner.clone();
        Box::pin(async move {
            if !passes {
                return Err("the daemon is dead".into());
            }
            std::future::poll_fn(|cx| inner.poll_ready(cx)).await.map_err(Into::into)?;
            inner.call(request).await.map_err(Into::into)
        })
    }
}

#[tokio::test]
async fn killed_between_any_two_steps_a_sync_ends_converged_and_prunes_nothing_by_error() {
    for steps in 0..14 {
        let node = Node::new(&[
            ("a.yaml", &config("a", "1")),
            ("b.yaml", &config("b", "1")),
            ("c.yaml", &config("c", "1")),
        ])
        .await;
        node.until_good(&["a", "b", "c"]).await;
        let kept = node.get("ConfigMap", "c").await.unwrap();
        node.tasks.stop(Duration::from_secs(5)).await;
        node.write("a.yaml", &config("a", "2"));
        node.remove("b.yaml");
        node.write("d.yaml", &config("d", "1"));
        let left = Arc::new(AtomicUsize::new(steps));
        let door =
            client::door(Cut { inner: node.server.door(User::room("gitops")), left: Arc::clone(&left) });
        let dying = Engine::new(parts(
            door,
            node.dir.path(),
            vec![json!({"name": "demo", "dir": node.dir.path().join("manifests")})],
        ))
        .unwrap();
        let tasks = Tasks::new();
        dying.start(&tasks);
        let mut changed = dying.changed();
        let dead = async {
            // It dies with its last request, or has nothing more to do.
            while left.load(Ordering::SeqCst) > 0
                && !dying
                    .status("demo")
                    .is_some_and(|told| told.is_good() && told.objects.len() == 3 && told.history.len() == 2)
            {
                let _ = tokio::time::timeout(Duration::from_millis(20), changed.changed()).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), dead).await.unwrap();
        tasks.stop(Duration::from_secs(5)).await;
        let (engine, tasks) = engine(&node.server, node.dir.path(), no_faults(), json!({}));
        let node = Node { engine, tasks, ..node };
        node.until_good(&["a", "c", "d"]).await;
        assert_eq!(node.value("a").await.as_deref(), Some("2"), "after {steps} steps");
        node.until_live("b gone", async || node.value("b").await.is_none().then_some(())).await;
        assert_eq!(
            node.get("ConfigMap", "c").await.unwrap()["metadata"]["uid"],
            kept["metadata"]["uid"],
            "after {steps} steps"
        );
        node.tasks.stop(Duration::from_secs(5)).await;
    }
}

fn parts(door: Client, dir: &Path, applications: Vec<Value>) -> Parts {
    Parts {
        caches: Caches::new(door, CancellationToken::new()),
        applications: applications
            .into_iter()
            .map(|declared| serde_json::from_value(declared).unwrap())
            .collect(),
        dir: dir.join("data"),
        now: Arc::new(Timestamp::now),
        ssh: "ssh".into(),
    }
}

fn git(dir: &Path, args: &[&str]) {
    let who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"];
    let done = std::process::Command::new("git").args(who).args(args).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn two_hundred_applications_of_one_repository_come_up_and_a_commit_for_one_touches_no_other_object() {
    let dir = TempDir::new().unwrap();
    let work = dir.path().join("work");
    let names: Vec<String> = (0..200).map(|n| format!("app-{n:03}")).collect();
    for name in &names {
        fs::create_dir_all(work.join(name)).unwrap();
        fs::write(work.join(name).join("a.yaml"), config(name, "1")).unwrap();
    }
    git(&work, &["init", "-q"]);
    git(&work, &["add", "-A"]);
    git(&work, &["commit", "-q", "-m", "All of them"]);
    let server = server().await;
    let door = client::door(server.door(User::room("gitops")));
    let repository = format!("file://{}", work.display());
    let declared = names
        .iter()
        .map(|name| json!({"name": name, "git": repository, "ref": "main", "path": name}))
        .collect();
    let engine = Engine::new(parts(door.clone(), dir.path(), declared)).unwrap();
    let tasks = Tasks::new();
    engine.start(&tasks);
    let mut changed = engine.changed();
    let all = async {
        while !names.iter().all(|name| engine.status(name).is_some_and(|told| told.is_good())) {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    let node = Node { dir, server, tasks, engine, door };
    let before = node.get("ConfigMap", "app-100").await.unwrap();
    fs::write(work.join("app-000/a.yaml"), config("app-000", "2")).unwrap();
    git(&work, &["commit", "-q", "-a", "-m", "Only one"]);
    node.until_live("the change", async || node.value("app-000").await.filter(|value| value == "2")).await;
    assert_eq!(node.get("ConfigMap", "app-100").await.unwrap(), before);
}
