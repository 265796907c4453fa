//! The paths and what answers them.
//!
//! Invariant: every request passes the guard first; a stream ends when the node stops.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::{self, Process};
use crate::overview::Asked;
use crate::{Decision, Refusal, Room, detail, forge, git, guard, images, page, views};

/// A comment keeps a silent stream open through proxies, which cut after a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(50);
/// Only our own files, and never inside another site's frame.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

#[derive(Clone)]
pub(crate) struct App {
    pub(crate) room: Arc<Room>,
    pub(crate) stop: CancellationToken,
}

/// Answers until stopped.
pub(crate) async fn serve(room: Arc<Room>, listener: TcpListener, stop: CancellationToken) {
    let service = router(room, stop.clone()).into_make_service_with_connect_info::<SocketAddr>();
    let ended = axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = ended {
        warn!(error = reconcile::chain(&error), "the status page is not served any more");
    }
}

/// All paths.
pub(crate) fn router(room: Arc<Room>, stop: CancellationToken) -> Router {
    Router::new()
        .route("/", get(html))
        .route("/style.css", get(|| async { file("text/css; charset=utf-8", include_str!("style.css")) }))
        .route("/live.js", get(|| async { file("text/javascript; charset=utf-8", include_str!("live.js")) }))
        .route("/status", get(status))
        .route("/events", get(events))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_text))
        .route("/diff", get(diff))
        .route("/sync", post(sync))
        .route("/confirm", post(|app, which, headers| decide(app, which, headers, "confirm")))
        .route("/approve", post(|app, which, headers| decide(app, which, headers, "approve")))
        .route("/rollback", post(|app, which, headers| decide(app, which, headers, "rollback")))
        .route("/resume", post(|app, which, headers| decide(app, which, headers, "resume")))
        .route("/undo", post(|app, which, headers| decide(app, which, headers, "undo")))
        .route("/pruned", get(pruned))
        .route("/explain", get(explain))
        .route("/state", get(state))
        .route("/object", get(object))
        .route("/plan", get(plan))
        .route("/webhook/{name}", post(forge::webhook))
        .route("/git/{name}/info/refs", get(git::refs))
        .route("/git/{name}/git-receive-pack", post(git::receive))
        .route("/git/{name}/git-upload-pack", post(git::upload))
        .merge(images::routes())
        .fallback(|| async { refuse(404, "there is nothing here; the status page is at /") })
        .layer(middleware::from_fn(admit))
        .with_state(App { room, stop })
}

async fn admit(ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    if let Err((status, message)) = guard::admit(request.method(), request.headers(), peer) {
        return refuse(status, &message);
    }
    let mut answer = next.run(request).await;
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

pub(crate) fn refuse(status: u16, message: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, axum::Json(json!({"message": message}))).into_response()
}

pub(crate) fn answer(result: Result<Value, Refusal>) -> Response {
    match result {
        Ok(value) => axum::Json(value).into_response(),
        Err(refusal) => refuse(refusal.status, &refusal.message),
    }
}

async fn html(State(app): State<App>, Query(asked): Query<Asked>) -> Response {
    app.room.eyes.synced().await;
    let text = page::document(&app.room.look(), &app.room.node, &asked, (app.room.now)());
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
}

async fn status(State(app): State<App>) -> Response {
    app.room.eyes.synced().await;
    axum::Json(app.room.look().document(&app.room.node, (app.room.now)())).into_response()
}

#[derive(Deserialize)]
struct Form {
    /// `page`: the page's contents as HTML. Left out: the document of `/status`.
    #[serde(rename = "as")]
    kind: Option<String>,
}

async fn events(State(app): State<App>, Query(form): Query<Form>, Query(asked): Query<Asked>) -> Response {
    let room = Arc::clone(&app.room);
    let stream = match form.kind.as_deref() {
        None => {
            let web = crate::Web { room };
            web.updates()
                .map(|document| Event::default().event("status").data(document.to_string()))
                .left_stream()
        }
        Some("page") => {
            let shown = Arc::clone(&room);
            let pages = Box::pin(views(room));
            let draw =
                move |view: Arc<crate::view::View>| page::contents(&view, &shown.node, &asked, (shown.now)());
            pages.map(move |view| Event::default().event("page").data(draw(view))).right_stream()
        }
        Some(_) => return refuse(400, "as is left out or \"page\""),
    };
    let stream = stream.map(Ok::<Event, Infallible>).take_until(app.stop.cancelled_owned());
    Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// The node answers when its own view of the cluster has been read once; whether applications are well is `/status`.
async fn healthz(State(app): State<App>) -> Response {
    match app.room.eyes.synced().now_or_never() {
        Some(()) => "ok\n".into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the cluster was not read yet\n").into_response(),
    }
}

async fn metrics_text(State(app): State<App>) -> Response {
    let revision = app.room.actions.revision();
    let text = metrics::document(&app.room.look(), &app.room.node, revision, Process::read());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[derive(Deserialize)]
struct Which {
    application: Option<String>,
    /// For a rollback.
    revision: Option<String>,
    /// For an undo.
    object: Option<String>,
}

impl Which {
    /// The application that is named, or all.
    fn names(&self, room: &Room) -> Vec<String> {
        match &self.application {
            Some(name) => vec![name.clone()],
            None => room.applications.iter().cloned().collect(),
        }
    }
}

/// A list with one diff per application. One that cannot be made does not hide the others.
async fn diff(State(app): State<App>, Query(which): Query<Which>) -> Response {
    let mut diffs = Vec::new();
    for name in which.names(&app.room) {
        match app.room.actions.diff(name.clone()).await {
            Ok(diff) => diffs.push(diff),
            Err(refusal) if which.application.is_some() => return refuse(refusal.status, &refusal.message),
            Err(refusal) => diffs.push(json!({"application": name, "error": refusal.message})),
        }
    }
    axum::Json(diffs).into_response()
}

async fn sync(State(app): State<App>, Query(which): Query<Which>, headers: HeaderMap) -> Response {
    let names = which.names(&app.room);
    for name in &names {
        if let Err(refusal) = app.room.actions.sync(name) {
            return refuse(refusal.status, &refusal.message);
        }
        info!(application = %name, "sync asked for");
    }
    done(&headers, json!({"applications": names}))
}

/// A browser goes back to the page, a program gets what was done.
fn done(headers: &HeaderMap, told: Value) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("text/html") {
        return (StatusCode::SEE_OTHER, [(header::LOCATION, "/")]).into_response();
    }
    (StatusCode::ACCEPTED, axum::Json(told)).into_response()
}

/// Which application is meant has to be said, unless there is only one.
fn one(room: &Room, which: &Which) -> Result<String, Refusal> {
    match which.names(room).as_slice() {
        [one] => Ok(one.clone()),
        names => {
            Err(Refusal { status: 400, message: format!("say which application: {}", names.join(", ")) })
        }
    }
}

async fn decide(
    State(app): State<App>,
    Query(which): Query<Which>,
    headers: HeaderMap,
    what: &'static str,
) -> Response {
    let application = match one(&app.room, &which) {
        Ok(application) => application,
        Err(refusal) => return refuse(refusal.status, &refusal.message),
    };
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let decision = match what {
        "confirm" => Decision::Confirm,
        "approve" => Decision::Approve,
        "rollback" => Decision::RollBack(given(which.revision)),
        "resume" => Decision::Resume,
        _ => Decision::Undo(given(which.object)),
    };
    info!(%application, ?decision, "a person decided");
    match app.room.actions.decide(application, decision).await {
        Ok(told) => done(&headers, told),
        Err(refusal) => refuse(refusal.status, &refusal.message),
    }
}

#[derive(Deserialize)]
struct Object {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

/// All objects at once are for root alone.
async fn state(State(app): State<App>, headers: HeaderMap) -> Response {
    match guard::authorize(&headers, &app.room.token) {
        Ok(()) => answer(app.room.actions.state().await),
        Err((status, message)) => refuse(status, &message),
    }
}

async fn explain(State(app): State<App>, Query(object): Query<Object>) -> Response {
    answer(app.room.actions.explain(object.kind, object.name, object.namespace).await)
}

fn page_of(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
}

/// One object: why it is as it is, what is live, what it said.
async fn object(State(app): State<App>, Query(object): Query<Object>) -> Response {
    let told =
        app.room.actions.explain(object.kind.clone(), object.name.clone(), object.namespace.clone()).await;
    let told = match told {
        Ok(told) => told,
        Err(refusal) => return refuse(refusal.status, &refusal.message),
    };
    let found = detail::read(&app.room.door, &told).await;
    page_of(detail::object(&told, &found, &app.room.node, (app.room.now)()))
}

/// What a sync would do, as a page.
async fn plan(State(app): State<App>, Query(which): Query<Which>) -> Response {
    let application = match one(&app.room, &which) {
        Ok(application) => application,
        Err(refusal) => return refuse(refusal.status, &refusal.message),
    };
    match app.room.actions.diff(application).await {
        Ok(plan) => page_of(detail::plan(&plan, &app.room.node, (app.room.now)())),
        Err(refusal) => refuse(refusal.status, &refusal.message),
    }
}

async fn pruned(State(app): State<App>, Query(which): Query<Which>) -> Response {
    match one(&app.room, &which) {
        Ok(application) => answer(app.room.actions.pruned(application).await),
        Err(refusal) => refuse(refusal.status, &refusal.message),
    }
}
