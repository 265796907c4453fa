//! Images over HTTP: the list, the orders that change it, archives in and out.
//!
//! Invariant: whoever changes images, or reads what is in them, shows the node's token.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::serve::{App, answer, refuse};
use crate::{Room, guard};

/// The type of an answer that tells news while the work goes on: one JSON document per line, the last one with `done` or
/// `error`.
const NEWS: &str = "application/x-ndjson";
/// News that a slow reader may be behind.
const NEWS_BEHIND: usize = 256;

/// Something to be done with images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "lowercase", deny_unknown_fields)]
pub enum ImageOrder {
    /// Take images from an OCI layout or an archive on this machine.
    Load {
        /// Absolute.
        path: PathBuf,
    },
    /// Fetch one from its registry.
    Pull {
        /// Its name.
        reference: String,
    },
    /// Send one to a registry.
    Push {
        /// Its name, or the beginning of its id.
        image: String,
        /// The name it gets there; its own when left out.
        #[serde(default)]
        to: Option<String>,
    },
    /// Give one a further name.
    Tag {
        /// Its name, or the beginning of its id.
        image: String,
        /// The name.
        name: String,
    },
    /// Take a name away.
    Remove {
        /// The name, or the beginning of an id: then all its names.
        reference: String,
    },
    /// Free what nothing needs.
    Prune {
        /// Also images that no container uses.
        #[serde(default)]
        all: bool,
    },
    /// Everything there is to know of one.
    Inspect {
        /// Its name, or the beginning of its id.
        image: String,
    },
    /// Build one from a Dockerfile; paths are of this machine.
    Build {
        /// The images room's recipe.
        recipe: Value,
    },
}

impl ImageOrder {
    /// Whether it names paths: those are taken from this machine only.
    fn names_paths(&self) -> bool {
        matches!(self, ImageOrder::Load { .. } | ImageOrder::Build { .. })
    }
}

/// The paths below `/images`.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/images", get(list))
        .route("/images/save", get(save))
        .route("/images/{order}", post(order))
}

async fn list(State(app): State<App>) -> Response {
    axum::Json(app.room.actions.images()).into_response()
}

/// An order's fields as JSON; for `load` also an archive as the body.
async fn order(
    State(app): State<App>,
    Path(name): Path<String>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if let Err((status, message)) = guard::authorize(&headers, &app.room.token) {
        return refuse(status, &message);
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if name == "load" && !kind.starts_with("application/json") {
        return receive(&app.room, body).await;
    }
    let order = match axum::body::to_bytes(body, 1024 * 1024).await {
        Ok(bytes) => read(&name, &bytes),
        Err(error) => Err(error.to_string()),
    };
    let order = match order {
        Ok(order) => order,
        Err(reason) => return refuse(400, &format!("the body is no order {name:?} in JSON: {reason}")),
    };
    if order.names_paths() && !peer.ip().to_canonical().is_loopback() {
        return refuse(403, "a path is taken from this machine only; send the archive itself");
    }
    if let ImageOrder::Load { path } = &order
        && !path.is_absolute()
    {
        return refuse(400, "the body is {\"path\": \"/absolute/path\"} of an archive or an OCI layout");
    }
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains(NEWS) {
        return told(Arc::clone(&app.room), order);
    }
    let (tell, mut news) = mpsc::channel(NEWS_BEHIND);
    let unheard = async { while news.recv().await.is_some() {} };
    let (outcome, ()) = tokio::join!(app.room.actions.image(order, tell), unheard);
    answer(outcome)
}

fn read(name: &str, bytes: &[u8]) -> Result<ImageOrder, String> {
    let mut fields: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let map = fields.as_object_mut().ok_or("it is no object")?;
    map.insert("order".to_owned(), name.into());
    serde_json::from_value(fields).map_err(|error| error.to_string())
}

/// Answers line by line. The work ends when the reader goes away.
fn told(room: Arc<Room>, order: ImageOrder) -> Response {
    let (tell, news) = mpsc::channel(NEWS_BEHIND);
    let work = async move {
        let last = match room.actions.image(order, tell.clone()).await {
            Ok(value) => json!({"done": value}),
            Err(refusal) => json!({"error": {"status": refusal.status, "message": refusal.message}}),
        };
        // Nobody may be there to hear it any more.
        let _ = tell.send(last).await;
    };
    let lines =
        futures::stream::unfold(news, |mut news| async { news.recv().await.map(|line| (Some(line), news)) });
    let work = futures::stream::once(work).map(|()| None);
    let lines = futures::stream::select(lines.boxed(), work.boxed()).filter_map(|line| async {
        line.map(|line: Value| Ok::<Vec<u8>, io::Error>(format!("{line}\n").into_bytes()))
    });
    ([(header::CONTENT_TYPE, NEWS)], Body::from_stream(lines)).into_response()
}

#[derive(Deserialize)]
struct Saved {
    /// Names or ids, separated by commas.
    images: String,
    #[serde(default)]
    format: String,
}

async fn save(State(app): State<App>, Query(saved): Query<Saved>, headers: HeaderMap) -> Response {
    if let Err((status, message)) = guard::authorize(&headers, &app.room.token) {
        return refuse(status, &message);
    }
    let images = saved.images.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match app.room.actions.save_images(images, saved.format).await {
        Err(refusal) => refuse(refusal.status, &refusal.message),
        Ok(bytes) => {
            let pieces = futures::stream::unfold(bytes, |mut bytes| async {
                bytes.recv().await.map(|piece| (piece, bytes))
            });
            ([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(pieces)).into_response()
        }
    }
}

async fn receive(room: &Room, body: Body) -> Response {
    // Removed with the last of its users, also when the sender goes away in the middle.
    let file = match Spooled::new(&room.spool) {
        Ok(file) => file,
        Err(error) => return refuse(507, &format!("make a file in {}: {error}", room.spool.display())),
    };
    match file.fill(body).await {
        Ok(()) => {
            let (tell, _) = mpsc::channel(1);
            answer(room.actions.image(ImageOrder::Load { path: file.0.clone() }, tell).await)
        }
        Err(error) => refuse(507, &format!("receive the archive into {}: {error}", file.0.display())),
    }
}

struct Spooled(PathBuf);

impl Spooled {
    fn new(dir: &std::path::Path) -> io::Result<Spooled> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        std::fs::create_dir_all(dir)?;
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Spooled(dir.join(format!("incoming-{}-{number}.tar", std::process::id()))))
    }

    async fn fill(&self, body: Body) -> io::Result<()> {
        let mut file = tokio::fs::File::create(&self.0).await?;
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            file.write_all(&chunk.map_err(io::Error::other)?).await?;
        }
        file.flush().await
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        // It may not have been made; and what is left is found under its name.
        let _ = std::fs::remove_file(&self.0);
    }
}
