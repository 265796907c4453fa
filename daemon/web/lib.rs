//! The status page, its JSON, its event stream, metrics and webhooks: plain HTTP for people and scripts of this machine.
//!
//! Invariant: nothing is computed here that the API does not tell; the page, `/status` and `/events` show one view.
//! Invariant: nothing is sent, and no timer runs, while nothing changes.

mod detail;
mod forge;
mod git;
mod guard;
mod html;
mod images;
mod metrics;
mod overview;
mod page;
mod serve;
mod view;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::Caches;
use futures::Stream;
use futures::future::BoxFuture;
use jiff::Timestamp;
use reconcile::Tasks;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

pub use guard::{TOKEN_FILE, token};
pub use images::ImageOrder;

use crate::view::{Eyes, View};

/// A burst of changes within this time is one update.
const BURST: Duration = Duration::from_millis(20);

/// The bytes of a request, as they arrive.
pub type Incoming = tokio::sync::mpsc::Receiver<Vec<u8>>;
/// Where the bytes of an answer go; closed when the client has gone.
pub type Outgoing = tokio::sync::mpsc::Sender<Vec<u8>>;

/// What the page can ask of the node. The names are applications' and images'; what is refused says why.
pub trait Actions: Send + Sync + 'static {
    /// Looks at the source and everything live of an application anew.
    ///
    /// # Errors
    /// 404 when there is no such application.
    fn sync(&self, application: &str) -> Result<(), Refusal>;
    /// What a sync of an application would change: `gitops::Diff` as JSON.
    fn diff(&self, application: String) -> BoxFuture<'_, Result<Value, Refusal>>;
    /// Does what a person decided of an application. What was done, in words.
    fn decide(&self, application: String, decision: Decision) -> BoxFuture<'_, Result<Value, Refusal>>;
    /// What was pruned of an application and can be brought back: `gitops::Tombstone`s as JSON.
    fn pruned(&self, application: String) -> BoxFuture<'_, Result<Value, Refusal>>;
    /// Everything that is live, for a plan without the node: the document of `gitops::Engine::state`.
    fn state(&self) -> BoxFuture<'_, Result<Value, Refusal>>;
    /// Why an object is as it is: `gitops::Explanation` as JSON.
    fn explain(&self, kind: String, name: String, namespace: String)
    -> BoxFuture<'_, Result<Value, Refusal>>;
    /// Looks at a repository, or at the source of an application, right now. How many sources that were.
    fn hurry(&self, name: &str) -> usize;
    /// What a forge signs the webhooks of an application with, or of those that follow a repository. Nothing when they
    /// need no signature.
    ///
    /// # Errors
    /// 500 when the secret that the configuration names cannot be read.
    fn webhook_secrets(&self, name: &str) -> Result<Vec<String>, Refusal>;
    /// Whether a caller may push into an application's repository and fetch from it.
    ///
    /// # Errors
    /// 401 when a token is wanted, 403 when only this machine is served, 404 when there is no such repository.
    fn admit_git(&self, application: &str, is_local: bool, token: Option<String>) -> Result<(), Refusal>;
    /// The refs of that repository, as a client of `git-receive-pack` or `git-upload-pack` reads them.
    ///
    /// # Errors
    /// 404 when there is no such repository or service.
    fn git_refs(&self, application: &str, service: &str) -> Result<Vec<u8>, Refusal>;
    /// Answers a push or a fetch: the client's bytes from `body`, the answer's to `answer`.
    fn git(
        &self,
        application: String,
        service: &'static str,
        body: Incoming,
        answer: Outgoing,
    ) -> BoxFuture<'static, ()>;
    /// The newest revision of the store.
    fn revision(&self) -> u64;
    /// The images: `[{id, digest, references: [..], size}]`.
    fn images(&self) -> Value;
    /// Does something with images, telling news on the way; answers like `images`, or what was asked for.
    fn image(&self, order: ImageOrder, tell: mpsc::Sender<Value>) -> BoxFuture<'_, Result<Value, Refusal>>;
    /// Writes images (names or ids) as one archive: `oci` or `docker`.
    fn save_images(&self, images: Vec<String>, format: String) -> BoxFuture<'_, Result<Pieces, Refusal>>;
}

/// What a person can decide of an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// What waits for a confirmation may be pruned.
    Confirm,
    /// The newest revision may be applied.
    Approve,
    /// An earlier revision is held: the one that begins so, or the last healthy one.
    RollBack(Option<String>),
    /// The newest revision is held again.
    Resume,
    /// An object that was pruned is made again, or all that went last.
    Undo(Option<String>),
}

/// An archive on its way.
pub type Pieces = mpsc::Receiver<std::io::Result<Vec<u8>>>;

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The HTTP status that says it.
    pub status: u16,
    /// What on what, why, and the way out.
    pub message: String,
}

/// What the page tells of the node itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its name in the cluster.
    pub name: String,
    /// Of holdfast.
    pub version: String,
    /// `https://127.0.0.1:6443`.
    pub api_address: String,
    /// `http://127.0.0.1:9440/`.
    pub page: String,
    /// The path of the administrator's kubeconfig.
    pub kubeconfig: String,
    /// What this machine cannot isolate, in words.
    pub missing: Vec<String>,
    /// When the node started.
    pub started: Timestamp,
}

/// What the web room is made of.
pub struct Parts {
    /// The node.
    pub node: Facts,
    /// The declared applications.
    pub applications: BTreeSet<String>,
    /// The shared caches.
    pub caches: Caches,
    /// What can be asked of the node.
    pub actions: Arc<dyn Actions>,
    /// Where an archive lies while it is being received.
    pub spool: PathBuf,
    /// The token of [`token`].
    pub token: String,
    /// The time.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("node", &self.node).finish_non_exhaustive()
    }
}

/// The web room. Cheap to clone.
#[derive(Clone)]
pub struct Web {
    room: Arc<Room>,
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web").field("node", &self.room.node).finish_non_exhaustive()
    }
}

struct Room {
    node: Facts,
    door: kube::Client,
    applications: BTreeSet<String>,
    eyes: Eyes,
    actions: Arc<dyn Actions>,
    spool: PathBuf,
    token: String,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    changed: watch::Sender<u64>,
}

impl Web {
    /// Begins to look; nothing is answered yet.
    pub fn new(parts: Parts) -> Web {
        let eyes = Eyes::new(&parts.caches);
        let changed = watch::Sender::new(0);
        let wake = changed.clone();
        eyes.listen(move || wake.send_modify(|count| *count += 1));
        let room = Room {
            node: parts.node,
            door: parts.caches.client(),
            applications: parts.applications,
            eyes,
            actions: parts.actions,
            spool: parts.spool,
            token: parts.token,
            now: parts.now,
            changed,
        };
        Web { room: Arc::new(room) }
    }

    /// Answers on this listener until the tasks are stopped.
    pub fn start(&self, tasks: &Tasks, listener: TcpListener) {
        let room = Arc::clone(&self.room);
        tasks.spawn("web", move |stop| serve::serve(room, listener, stop));
    }

    /// The document of `/status`, now and whenever it changes. The first one comes when everything was read once.
    pub fn updates(&self) -> impl Stream<Item = Value> + Send + Unpin + 'static {
        let room = Arc::clone(&self.room);
        let views = Box::pin(views(Arc::clone(&room)));
        let mut last: Option<Arc<View>> = None;
        Box::pin(futures::StreamExt::filter_map(views, move |view| {
            let known = last.as_ref().is_some_and(|last| last.tells_the_same(&view));
            let news = (!known).then(|| view.document(&room.node, (room.now)()));
            last = Some(view);
            futures::future::ready(news)
        }))
    }
}

impl Room {
    fn look(&self) -> View {
        self.eyes.look(&self.applications)
    }
}

/// What there is to show, now and whenever it changes.
fn views(room: Arc<Room>) -> impl Stream<Item = Arc<View>> + Send {
    let seen = Seen { changed: room.changed.subscribe(), room, last: None, pause: BURST };
    futures::stream::unfold(seen, |mut seen| async move {
        seen.room.eyes.synced().await;
        loop {
            if seen.last.is_some() {
                seen.changed.changed().await.ok()?;
                tokio::time::sleep(seen.pause).await;
            }
            seen.changed.borrow_and_update();
            let begin = tokio::time::Instant::now();
            let view = Arc::new(seen.room.look());
            // The more there is to look at, the longer a burst is waited out: looking takes a tenth of the time at most.
            seen.pause = BURST.max(begin.elapsed() * 10);
            if seen.last.as_ref() != Some(&view) {
                seen.last = Some(Arc::clone(&view));
                return Some((view, seen));
            }
        }
    })
}

/// What one listener was shown last.
struct Seen {
    room: Arc<Room>,
    changed: watch::Receiver<u64>,
    last: Option<Arc<View>>,
    pause: Duration,
}

/// Where the token of a node with this data directory lies.
pub fn token_path(data_dir: &Path) -> PathBuf {
    data_dir.join(TOKEN_FILE)
}

#[cfg(test)]
mod tests;
