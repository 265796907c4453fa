//! Watches: the changes of a kind as they happen, from a revision on.
//!
//! Invariant: a watcher sees every change after its start exactly once and in order, or is told 410 and lists again.

use std::time::Duration;

use api::error::ApiError;
use api::proto;
use bytes::Bytes;
use client::Body;
use futures::StreamExt;
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use store::{Event, EventKind, Watch};
use tokio::time::Instant;

use crate::auth::User;
use crate::list::Selection;
use crate::negotiate::{Form, Media, Rendering};
use crate::path::Resource;
use crate::query::Query;
use crate::{Head, Inner, object};

/// A watch ends by itself after this long when the client names no time, as Kubernetes' does (30 to 60 minutes).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45 * 60);

/// How often a watcher that asked for bookmarks is told how far it has come, as Kubernetes does. All are told at the same
/// moment, so that many watchers are one wake-up.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// Starts a watch; the body ends with the time-out, or after an ERROR event.
pub(crate) fn start(
    inner: &Inner,
    user: &User,
    resource: &Resource,
    query: &Query,
    rendering: Rendering,
) -> Result<Response<Body>, ApiError> {
    let selection = Selection::asked(resource, query)?;
    let prefix = object::prefix(resource.kind, &resource.namespace);
    let asked = query.number("resourceVersion")?;
    let stream_list = query.flag("sendInitialEvents");
    check(query)?;
    let bookmarks = query.flag("allowWatchBookmarks");
    let snapshot = inner.store.snapshot();
    if asked.is_some_and(|asked| asked > snapshot.revision()) {
        return Err(crate::list::too_new(asked.unwrap_or(0), snapshot.revision()));
    }
    let from_scratch = stream_list || asked.is_none_or(|asked| asked == 0);
    let mut first = Lines::new(&rendering);
    if from_scratch && query.get("sendInitialEvents") != Some("false") {
        for entry in snapshot.range(&prefix, None).filter(|entry| selection.matches(&entry.head)) {
            first.event("ADDED", &rendering.one(&entry.value));
        }
        if stream_list && bookmarks {
            first.bookmark(&rendering, snapshot.revision(), true);
        }
    }
    let after = if from_scratch { snapshot.revision() } else { asked.unwrap_or(0) };
    let watch = inner.store.watch(&prefix, after).map_err(|_| too_old(after))?;
    let timeout = query.number("timeoutSeconds")?.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let now = Instant::now();
    // A room of this process never has to find its way back after a cut.
    let mark = (bookmarks && !user.room).then(|| next_mark(now));
    let state = State { watch, selection, rendering, bookmarks, mark, end: now + timeout, ended: false };
    let first = first.given();
    let changes =
        futures::stream::unfold(state, |mut state| async move { Some((state.next().await?, state)) });
    let frames = futures::stream::iter(first).chain(changes).map(|bytes| Ok(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let content_type = match rendering.media {
        Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        other => other.name(),
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

/// A list that is streamed says from which version it may be, as documented.
fn check(query: &Query) -> Result<(), ApiError> {
    let refuse = |message: &str| {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {message}");
        Err(ApiError { code: 422, reason: "Invalid", message, details: json!({}) })
    };
    match (query.get("sendInitialEvents"), query.get("resourceVersionMatch")) {
        (None, None) | (Some(_), Some("NotOlderThan")) => Ok(()),
        (Some(_), None) => refuse(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (None, Some(_)) => refuse(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (Some(_), Some(other)) => refuse(&format!(
            "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"NotOlderThan\""
        )),
    }
}

fn too_old(asked: u64) -> ApiError {
    ApiError::expired(format!("too old resource version: {asked}"))
}

/// The next full minute of this process.
fn next_mark(now: Instant) -> Instant {
    static FIRST: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let first = *FIRST.get_or_init(|| now);
    let past = now.saturating_duration_since(first).as_secs() / BOOKMARKS.as_secs();
    first + Duration::from_secs((past + 1) * BOOKMARKS.as_secs())
}

struct State {
    watch: Watch<Head>,
    selection: Selection,
    rendering: Rendering,
    bookmarks: bool,
    /// When the next bookmark is due.
    mark: Option<Instant>,
    end: Instant,
    ended: bool,
}

impl State {
    /// The next lines, all of one batch together. None ends the watch.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let mut lines = Lines::new(&self.rendering);
            let due = self.mark.map_or(self.end, |mark| mark.min(self.end));
            // Cancel-safe: Watch::next gives a batch only at its return, and loses nothing when it is asked again.
            match tokio::time::timeout_at(due, self.watch.next()).await {
                Ok(Ok(events)) => events.iter().for_each(|event| self.tell(&mut lines, event)),
                Ok(Err(store::Error::Closed)) => return None,
                Ok(Err(_)) => {
                    self.ended = true;
                    lines.error(&too_old(self.watch.progress()));
                }
                Err(_) => {
                    self.ended = due == self.end;
                    self.mark = self.mark.map(|mark| mark + BOOKMARKS);
                    if self.bookmarks {
                        lines.bookmark(&self.rendering, self.watch.progress(), false);
                    }
                }
            }
            if let Some(bytes) = lines.given() {
                return Some(bytes);
            }
        }
        None
    }

    /// A change as this watcher's selection sees it: an object that comes into or leaves the selection is added or
    /// deleted, as documented.
    fn tell(&self, lines: &mut Lines, event: &Event<Head>) {
        let before = event.previous.as_ref().is_some_and(|previous| self.selection.matches(&previous.head));
        let after = event.kind == EventKind::Put && self.selection.matches(&event.entry.head);
        let name = match (before, after) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) if event.kind == EventKind::Put => return self.tell_left(lines, event),
            (true, false) => "DELETED",
            (false, false) => return,
        };
        lines.event(name, &self.rendering.one(&event.entry.value));
    }

    /// An object that left the selection is told as it was last in it, with the version of the change.
    fn tell_left(&self, lines: &mut Lines, event: &Event<Head>) {
        let Some(previous) = &event.previous else { return };
        let (mut last, now) = (object::parse(&previous.value), object::parse(&event.entry.value));
        let version = object::meta(&now, "resourceVersion").to_owned();
        object::metadata(&mut last).insert("resourceVersion".to_owned(), version.into());
        lines.event("DELETED", &self.rendering.one(&last.to_string().into()));
    }
}

/// Events as they stand in the stream: lines of JSON, or protobuf behind its length.
struct Lines {
    media: Media,
    bytes: Vec<u8>,
}

impl Lines {
    fn new(rendering: &Rendering) -> Lines {
        Lines { media: rendering.media, bytes: Vec::new() }
    }

    /// What there is to send, if anything.
    fn given(self) -> Option<Bytes> {
        (!self.bytes.is_empty()).then(|| Bytes::from(self.bytes))
    }

    fn event(&mut self, name: &str, object: &[u8]) {
        if self.media == Media::Protobuf {
            match proto::encode(object) {
                Ok(object) => self.bytes.extend_from_slice(&proto::watch_event(name, &object)),
                // A Status can always be written.
                Err(error) if name != "ERROR" => self.error(&ApiError::internal(&error)),
                Err(_) => {}
            }
            return;
        }
        self.bytes.extend_from_slice(b"{\"type\":\"");
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(b"\",\"object\":");
        self.bytes.extend_from_slice(object);
        self.bytes.extend_from_slice(b"}\n");
    }

    fn error(&mut self, error: &ApiError) {
        self.event("ERROR", error.status().to_string().as_bytes());
    }

    fn bookmark(&mut self, rendering: &Rendering, revision: u64, initial_end: bool) {
        let kind = rendering.kind;
        let mut mark = json!({
            "kind": kind.kind, "apiVersion": kind.api_version(), "metadata": { "resourceVersion": revision.to_string() },
        });
        if initial_end {
            mark["metadata"]["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let mark = Bytes::from(mark.to_string());
        let mark = if rendering.form == Form::Whole { mark } else { rendering.one(&mark) };
        self.event("BOOKMARK", &mark);
    }
}
