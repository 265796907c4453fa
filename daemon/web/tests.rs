//! The page and the paths, over a real API server on a store in memory.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not so")]

use std::sync::Mutex;

use apiserver::{Head, Server, User};
use axum::body::Body;
use axum::extract::connect_info::MockConnectInfo;
use futures::StreamExt;
use http::{Request, StatusCode};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;

const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Writes down what it was asked for.
#[derive(Default)]
struct Asked(Mutex<Vec<String>>);

impl Asked {
    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl Actions for Asked {
    fn sync(&self, application: &str) -> Result<(), Refusal> {
        self.note(format!("sync {application}"));
        if application == "demo" {
            return Ok(());
        }
        Err(Refusal { status: 404, message: format!("there is no application {application}") })
    }
    fn diff(&self, application: String) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async move { Ok(json!({"application": application, "changes": []})) })
    }
    fn decide(&self, application: String, decision: Decision) -> BoxFuture<'_, Result<Value, Refusal>> {
        self.note(format!("{decision:?} {application}"));
        Box::pin(async { Ok(json!({"message": "done"})) })
    }
    fn pruned(&self, _: String) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async { Ok(json!([])) })
    }
    fn state(&self) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async { Ok(json!({"holdfastState": 1, "objects": []})) })
    }
    fn explain(&self, kind: String, name: String, _: String) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async move {
            Ok(
                json!({"object": {"kind": kind, "name": name, "namespace": "default"}, "application": "demo", "summary": "<no> database",
                "links": [{"depth": 0, "what": "application demo", "state": "ok", "says": "Synced"},
                    {"depth": 1, "what": "container c", "state": "bad", "says": "ended", "lines": ["no database"]}]}),
            )
        })
    }
    fn hurry(&self, name: &str) -> usize {
        usize::from(name == "demo")
    }
    fn webhook_secrets(&self, name: &str) -> Result<Vec<String>, Refusal> {
        Ok(if name == "signed" { vec!["secret".to_owned()] } else { Vec::new() })
    }
    fn admit_git(&self, application: &str, is_local: bool, token: Option<String>) -> Result<(), Refusal> {
        let refuse = |status| Err(Refusal { status, message: "no".to_owned() });
        match application {
            "demo" if is_local => Ok(()),
            "locked" if token.as_deref() == Some("t0ken") => Ok(()),
            "locked" => refuse(401),
            _ => refuse(404),
        }
    }
    fn git_refs(&self, application: &str, service: &str) -> Result<Vec<u8>, Refusal> {
        Ok(format!("{application} {service}").into_bytes())
    }
    fn git(
        &self,
        application: String,
        service: &'static str,
        mut body: Incoming,
        answer: Outgoing,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            answer.send(format!("{application} {service} ").into_bytes()).await.unwrap();
            while let Some(bytes) = body.recv().await {
                answer.send(bytes).await.unwrap();
            }
        })
    }
    fn revision(&self) -> u64 {
        42
    }
    fn images(&self) -> Value {
        json!([])
    }
    fn image(&self, order: ImageOrder, tell: mpsc::Sender<Value>) -> BoxFuture<'_, Result<Value, Refusal>> {
        Box::pin(async move {
            match order {
                ImageOrder::Load { path } => {
                    self.note(format!("load {:?}", std::fs::read_to_string(path).unwrap_or_default()));
                }
                ImageOrder::Pull { reference } => {
                    self.note(format!("pull {reference}"));
                    tell.send(json!({"progress": {"done": 1}})).await.unwrap();
                }
                ImageOrder::Remove { reference } => self.note(format!("remove {reference}")),
                other => return Err(Refusal { status: 404, message: format!("{other:?}") }),
            }
            Ok(json!([]))
        })
    }
    fn save_images(&self, images: Vec<String>, format: String) -> BoxFuture<'_, Result<Pieces, Refusal>> {
        self.note(format!("save {images:?} {format}"));
        let (send, pieces) = mpsc::channel(2);
        send.try_send(Ok(b"tar".to_vec())).unwrap();
        Box::pin(async { Ok(pieces) })
    }
}

struct World {
    client: kube::Client,
    web: Web,
    asked: Arc<Asked>,
    spool: tempfile::TempDir,
}

fn kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("holdfast.dev", "v1", "Application"))
}

fn facts() -> Facts {
    Facts {
        name: "box".to_owned(),
        version: "0.1.0".to_owned(),
        api_address: "https://127.0.0.1:6443".to_owned(),
        page: "http://127.0.0.1:9440/".to_owned(),
        kubeconfig: "/var/lib/holdfast/pki/admin.kubeconfig".to_owned(),
        missing: Vec::new(),
        started: "2026-11-24T09:00:00Z".parse().unwrap(),
    }
}

fn status(sync: &str, health: &str) -> Value {
    json!({
        "sync": {"state": sync, "revision": "0123456789012345678901234567890123456789", "message": ""},
        "source": {"kind": "git", "location": "/srv/apps.git", "ref": "main", "revision": "0123456789012345678901234567890123456789", "author": "Ada", "commitMessage": "Five replicas", "fetchedAt": "2026-11-24T09:29:00Z"},
        "health": {"code": health, "message": ""},
        "objects": [{"group": "apps", "version": "v1", "kind": "Deployment", "namespace": "default", "name": "kubia", "sync": sync, "health": {"code": health, "message": "4 of 5 replicas are ready"}, "file": "deployment.yaml", "line": 1}],
        "defects": [], "history": [], "conditions": [],
    })
}

impl World {
    async fn new() -> World {
        let disk = Box::new(store::memory_disk::MemoryDisk::default());
        let store = store::Store::open(disk, Head::parse, &store::Config::default());
        let store = store.unwrap_or_else(|error| panic!("{error}"));
        let server =
            Server::open(store, &apiserver::Config::default(), Arc::new(Timestamp::now)).await.unwrap();
        let client = client::door(server.door(User::room("test")));
        let asked = Arc::new(Asked::default());
        let spool = tempfile::tempdir().unwrap();
        let web = Web::new(Parts {
            node: facts(),
            applications: BTreeSet::from(["demo".to_owned()]),
            caches: Caches::new(client.clone(), CancellationToken::new()),
            actions: Arc::clone(&asked) as Arc<dyn Actions>,
            spool: spool.path().to_owned(),
            token: TOKEN.to_owned(),
            now: Arc::new(|| "2026-11-24T09:30:00Z".parse().unwrap()),
        });
        web.room.eyes.synced().await;
        World { client, web, asked, spool }
    }

    async fn declare(&self) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind());
        let object = json!({"apiVersion": "holdfast.dev/v1", "kind": "Application", "metadata": {"name": "demo"}, "spec": {"source": {"dir": "manifests"}}});
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    async fn tell(&self, status: Value) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind());
        api.patch_status("demo", &PatchParams::default(), &Patch::Merge(json!({"status": status})))
            .await
            .unwrap();
    }

    async fn ask(&self, request: http::request::Builder, body: &str) -> (StatusCode, String) {
        let router = serve::router(Arc::clone(&self.web.room), CancellationToken::new());
        let router = router.layer(MockConnectInfo(std::net::SocketAddr::from(([127, 0, 0, 1], 5))));
        let request: Request<Body> =
            request.header("host", "127.0.0.1:9440").body(Body::from(body.to_owned())).unwrap();
        let answer = router.oneshot(request).await.unwrap();
        let status = answer.status();
        let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }
}

fn hostile_view() -> View {
    let text = "<script>alert(1)</script>\" onmouseover=\"x";
    let mut view = sample_view();
    let app = &mut view.applications[0];
    app.name = text.to_owned();
    app.read.sync.message = text.to_owned();
    app.read.source.location = text.to_owned();
    app.read.source.author = text.to_owned();
    app.read.source.commit_message = text.to_owned();
    app.read.history[0].result = format!("{text}: {text}");
    app.read.defects[0].message = text.to_owned();
    app.read.defects[0].help = text.to_owned();
    app.read.objects[0].name = text.to_owned();
    app.read.objects[0].health.code = text.to_owned();
    app.read.objects[0].file = text.to_owned();
    view.pods[0].state = text.to_owned();
    view.pods[0].message = text.to_owned();
    view.events[0].message = text.to_owned();
    view.events[0].reason = text.to_owned();
    view.services[0].name = text.to_owned();
    view.nodes[0].name = text.to_owned();
    view
}

fn sample_view() -> View {
    let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    let object = |kind: &str, name: &str, sync: &str, health: &str, message: &str, line: u32| json!({"group": "", "version": "v1", "kind": kind, "namespace": "default", "name": name, "sync": sync, "health": {"code": health, "message": message}, "file": format!("{}.yaml", kind.to_lowercase()), "line": line});
    let revision = "3f2a91c4d5e6f708192a3b4c5d6e7f8091a2b3c4";
    let status = json!({
        "sync": {"state": "OutOfSync", "revision": revision, "message": "1 object is kept back until its file is mended"},
        "source": {"kind": "git", "location": "/srv/apps.git", "ref": "main", "revision": revision, "author": "Ada Lovelace", "commitMessage": "Five replicas and a new greeting\n\nBecause of the fair.", "fetchedAt": "2026-11-24T09:29:12Z"},
        "health": {"code": "Progressing", "message": "Deployment default/kubia: 4 of 5 replicas are ready"},
        "objects": [
            object("ConfigMap", "kubia", "Synced", "Healthy", "", 1),
            object("Deployment", "kubia", "Synced", "Progressing", "4 of 5 replicas are ready: pod kubia-7d9f-x2 waits for its readiness probe", 1),
            object("Job", "kubia-check", "Synced", "Healthy", "", 1),
            object("Service", "kubia", "OutOfSync", "Healthy", "", 12),
            object("Deployment", "billing-worker", "Failed", "Degraded", "pod billing-worker-5c-k9: container main: back-off restarting failed container (exit code 137, out of memory)", 40),
        ],
        "defects": [{"file": "service.yaml", "line": 17, "column": 7, "message": "Service default/kubia: unknown field \"spec.ports[0].targetport\"", "help": "did you mean \"targetPort\"?", "object": "Service default/kubia"}],
        "history": [
            {"revision": "aa11bb22cc33dd44ee55ff6600112233445566aa", "author": "Ada Lovelace", "message": "First", "startedAt": "2026-11-24T08:00:00Z", "finishedAt": "2026-11-24T08:00:00.820Z", "result": "Healthy"},
            {"revision": "bb11bb22cc33dd44ee55ff6600112233445566bb", "author": "Grace Hopper", "message": "Try the other image", "startedAt": "2026-11-24T09:10:00Z", "finishedAt": "2026-11-24T09:11:30Z", "result": "Degraded: image kubia:2 is not there"},
            {"revision": revision, "author": "Ada Lovelace", "message": "Five replicas and a new greeting", "startedAt": "2026-11-24T09:29:12Z", "finishedAt": "", "result": ""},
        ],
        "conditions": [{"type": "Synced", "status": "False", "reason": "OutOfSync", "message": "", "lastTransitionTime": "2026-11-24T09:29:12Z"}],
    });
    let pod = |name: &str, state: &str, ready: usize, restarts: i32, ip: &str, message: &str| view::Pod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        node: "box".to_owned(),
        phase: "Running".to_owned(),
        state: state.to_owned(),
        message: message.to_owned(),
        containers: 1,
        ready,
        restarts,
        ip: ip.to_owned(),
        since: at("2026-11-24T08:00:00Z"),
    };
    let event =
        |time: &str, warning: bool, reason: &str, object: &str, message: &str, count: i32| view::Event {
            at: at(time),
            warning,
            reason: reason.to_owned(),
            object: object.to_owned(),
            message: message.to_owned(),
            count,
        };
    View {
        ready: false,
        applications: vec![view::Application {
            name: "demo".to_owned(),
            followed: true,
            read: serde_json::from_value(status.clone()).unwrap(),
            object: Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": "demo"},
                    "spec": {"source": {"git": "/srv/apps.git", "ref": "main", "path": "clusters/home"}},
                    "status": status,
                }))
                .unwrap(),
            ),
        }],
        services: vec![view::Service {
            namespace: "default".to_owned(),
            name: "kubia".to_owned(),
            kind: "NodePort".to_owned(),
            address: "10.43.0.17".to_owned(),
            ports: vec![(80, "TCP".to_owned(), 30123)],
        }],
        nodes: vec![view::Node {
            name: "box".to_owned(),
            ready: true,
            message: String::new(),
            address: "192.0.2.10".to_owned(),
            since: at("2026-11-24T08:00:00Z"),
        }],
        pods: vec![
            pod("kubia-7d9f-a1", "Running", 1, 0, "10.42.0.5", ""),
            pod("kubia-7d9f-x2", "Running", 0, 1, "10.42.0.6", ""),
            pod("kubia-check-9z", "Succeeded", 0, 0, "10.42.0.7", ""),
            pod(
                "billing-worker-5c-k9",
                "CrashLoopBackOff",
                0,
                6,
                "10.42.0.8",
                "back-off 2m40s restarting failed container",
            ),
        ],
        events: vec![
            event(
                "2026-11-24T09:29:40Z",
                true,
                "BackOff",
                "Pod billing-worker-5c-k9",
                "Back-off restarting failed container main",
                6,
            ),
            event(
                "2026-11-24T09:29:13Z",
                false,
                "Started",
                "Pod kubia-7d9f-x2",
                "Started container kubia",
                1,
            ),
            event(
                "2026-11-24T09:29:12Z",
                false,
                "ScalingReplicaSet",
                "Deployment kubia",
                "Scaled up replica set kubia-7d9f to 5",
                1,
            ),
        ],
    }
}

#[test]
fn the_page_is_the_one_that_was_looked_at() {
    let drawn = page::document(
        &sample_view(),
        &facts(),
        &overview::Asked::default(),
        "2026-11-24T09:30:00Z".parse().unwrap(),
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/page.html");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &drawn).unwrap();
    }
    assert!(
        drawn == std::fs::read_to_string(&path).unwrap(),
        "the page differs from {}: look at it, then UPDATE=1",
        path.display()
    );
}

#[test]
fn no_text_of_the_cluster_becomes_markup_on_the_page() {
    let drawn = page::document(
        &hostile_view(),
        &facts(),
        &overview::Asked::default(),
        "2026-11-24T09:30:00Z".parse().unwrap(),
    );
    assert_eq!(drawn.matches("<script").count(), 1, "only our own");
    assert!(!drawn.contains("\" onmouseover"), "no attribute is left");
    assert!(drawn.matches("&lt;script&gt;").count() >= 16);
}

#[tokio::test]
async fn a_node_is_ready_only_when_each_declared_application_is_good() {
    let world = World::new().await;
    let mut updates = world.web.updates();
    let mut next =
        async || tokio::time::timeout(Duration::from_secs(10), updates.next()).await.unwrap().unwrap();
    assert_eq!(next().await["ready"], json!(false), "declared but never told");
    world.declare().await;
    assert_eq!(next().await["applications"][0]["spec"], json!({"source": {"dir": "manifests"}}));
    world.tell(status("Synced", "Progressing")).await;
    assert_eq!(next().await["ready"], json!(false));
    world.tell(status("Synced", "Healthy")).await;
    let last = next().await;
    assert_eq!(last["ready"], json!(true));
    assert_eq!(last["applications"][0]["status"], status("Synced", "Healthy"), "exactly as stored");
    assert_eq!(last["node"]["uptimeSeconds"], json!(1800));
    let (_, told) = world.ask(Request::get("/status"), "").await;
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap(), last);
}

#[tokio::test]
async fn every_path_answers() {
    let world = World::new().await;
    world.declare().await;
    world.tell(status("Synced", "Healthy")).await;
    let mut updates = world.web.updates();
    while updates.next().await.unwrap()["ready"] != json!(true) {}
    for (path, holds) in [
        ("/", "4 of 5 replicas are ready"),
        ("/style.css", ":root"),
        ("/live.js", "EventSource"),
        ("/healthz", "ok"),
        (
            "/metrics",
            "holdfast_application_info{application=\"demo\",sync=\"Synced\",health=\"Healthy\"} 1\n",
        ),
        ("/metrics", "holdfast_store_revision 42\n"),
        ("/diff", "[{\"application\":\"demo\",\"changes\":[]}]"),
        ("/images", "[]"),
    ] {
        let (status, text) = world.ask(Request::get(path), "").await;
        assert!(status == StatusCode::OK && text.contains(holds), "{path}: {status} {text}");
    }
    let browser =
        || Request::post("/sync").header("accept", "text/html").header("sec-fetch-site", "same-origin");
    for (request, expected) in [
        (Request::post("/sync"), 202),
        (browser(), 303),
        (Request::post("/sync?application=nobody"), 404),
        (Request::post("/sync").header("sec-fetch-site", "cross-site"), 403),
        (Request::post("/webhook/demo"), 202),
        (Request::post("/webhook/nobody"), 404),
        (Request::get("/nothing"), 404),
        (Request::get("/events?as=poem"), 400),
    ] {
        let (status, text) = world.ask(request, "").await;
        assert_eq!(status.as_u16(), expected, "{text}");
    }
}

#[tokio::test]
async fn images_change_only_with_the_token() {
    let world = World::new().await;
    for path in ["/images/load", "/images/pull", "/images/remove"] {
        let request = Request::post(path).header("content-type", "application/json");
        let (status, _) = world.ask(request, "{\"reference\": \"a:1\", \"path\": \"/x\"}").await;
        assert_eq!(status.as_u16(), 401, "{path}");
    }
    assert!(world.asked.0.lock().unwrap().is_empty());
    let post = |path: &str| Request::post(path).header("authorization", format!("Bearer {TOKEN}"));
    let json = |path: &str| post(path).header("content-type", "application/json");
    world.ask(post("/images/load"), "an archive").await;
    world.ask(json("/images/pull"), "{\"reference\": \"a:1\"}").await;
    world.ask(json("/images/remove"), "{\"reference\": \"a:1\"}").await;
    let (relative, _) = world.ask(json("/images/load"), "{\"path\": \"etc/x\"}").await;
    assert_eq!(relative.as_u16(), 400);
    assert_eq!(*world.asked.0.lock().unwrap(), ["load \"an archive\"", "pull a:1", "remove a:1"]);
    assert_eq!(
        std::fs::read_dir(world.spool.path()).unwrap().count(),
        0,
        "nothing is left of what was received"
    );
}

#[tokio::test]
async fn the_stream_tells_changes_and_ends_with_the_node() {
    let world = World::new().await;
    let stop = CancellationToken::new();
    let router = serve::router(Arc::clone(&world.web.room), stop.clone());
    let router = router.layer(MockConnectInfo(std::net::SocketAddr::from(([127, 0, 0, 1], 5))));
    let request = Request::get("/events?as=page").header("host", "localhost").body(Body::empty()).unwrap();
    let mut body = router.oneshot(request).await.unwrap().into_body().into_data_stream();
    let mut text = async || String::from_utf8(body.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(text().await.contains("The applications are being read"));
    world.declare().await;
    assert!(text().await.contains("demo is not there yet"));
    stop.cancel();
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn an_object_and_a_plan_have_pages_in_which_nothing_is_markup() {
    let world = World::new().await;
    let (status, page) = world.ask(Request::get("/object?kind=Pod&name=web&namespace=default"), "").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("&lt;no&gt; database") && page.contains("container c"), "{page}");
    let (status, page) = world.ask(Request::get("/plan?application=demo"), "").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("Nothing to do"), "{page}");
    let plan = json!({"application": "<b>", "waits": "<i>", "hooks": [], "changes": [{"kind": "change", "object": {"kind": "X", "name": "\"><script>"},
        "fields": [{"path": "<u>", "old": "<s>", "new": 3}], "effects": [{"kind": "data", "message": "<q>", "pods": ["<em>"]}]}]});
    let page = detail::plan(&plan, &facts(), Timestamp::UNIX_EPOCH);
    for tag in ["<b><", "<i>", "<script>", "<u>", "<s>", "<q>", "<em>"] {
        assert!(!page.contains(tag), "{tag} in {page}");
    }
}

#[tokio::test]
async fn decisions_reach_the_engine_and_a_browser_goes_back_to_the_page() {
    let world = World::new().await;
    for path in [
        "/confirm",
        "/approve",
        "/resume",
        "/undo?object=configmap/a",
        "/rollback?application=demo&revision=abc",
    ] {
        let (status, _) = world.ask(Request::post(path), "").await;
        assert_eq!(status, StatusCode::ACCEPTED, "{path}");
    }
    let asked = world.asked.0.lock().unwrap().join("; ");
    let expected = "Confirm demo; Approve demo; Resume demo; Undo(Some(\"configmap/a\")) demo; RollBack(Some(\"abc\")) demo";
    assert_eq!(asked, expected);
    let (status, _) = world.ask(Request::get("/state"), "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "all objects are for who has the token");
    let (status, _) = world.ask(Request::post("/confirm").header("accept", "text/html"), "").await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let (status, _) = world.ask(Request::post("/confirm").header("sec-fetch-site", "cross-site"), "").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn git_is_spoken_with_whom_the_application_admits() {
    let world = World::new().await;
    let get = |path: &str| http::Request::get(path);
    let refs = "info/refs?service=git-receive-pack";
    let (code, text) = world.ask(get(&format!("/git/demo.git/{refs}")), "").await;
    assert_eq!((code, text.as_str()), (StatusCode::OK, "demo git-receive-pack"));
    let (code, text) = world.ask(http::Request::post("/git/demo/git-receive-pack"), "bytes").await;
    assert_eq!((code, text.as_str()), (StatusCode::OK, "demo git-receive-pack bytes"));
    assert_eq!(world.ask(get(&format!("/git/locked/{refs}")), "").await.0, StatusCode::UNAUTHORIZED);
    let given = get(&format!("/git/locked/{refs}")).header("authorization", "Basic bWU6dDBrZW4=");
    assert_eq!(world.ask(given, "").await.0, StatusCode::OK);
    assert_eq!(world.ask(get(&format!("/git/none/{refs}")), "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.ask(http::Request::post("/webhook/signed"), "{}").await.0, StatusCode::UNAUTHORIZED);
}
