//! Telling people and forges what became of a revision: webhooks, chats, mail, commit status.
//!
//! Invariant: what is told is decided purely from two statuses; sending never holds up a sync, and is tried again.
//! Invariant: the same thing is told once an hour at most, and what an earlier daemon told is not told again.

mod config;
mod forge;
mod mail;
mod send;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Clock, Recorder, Weight};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use reconcile::Tasks;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::decide::short;
use crate::engine::Engine;
use crate::status::Status;

pub use config::{Channel, Forge, ForgeKind, Notify};

/// The same thing is not told again within this time.
const QUIET: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
/// Notices that may wait for one receiver.
const WAITING: usize = 100;
/// How often one notice is tried, and the first wait between tries; it doubles up to the most.
const TRIES: u32 = 8;
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MOST_RETRY: Duration = Duration::from_secs(120);

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// `failed`, `healthy`, `recovered`, `rolled-back`, `waiting`.
    pub event: &'static str,
    /// Of which application.
    pub application: String,
    /// The revision it is about.
    pub revision: String,
    /// Of the commit.
    pub author: String,
    /// Of the commit.
    pub commit_message: String,
    /// One sentence.
    pub message: String,
    /// RFC 3339.
    pub at: String,
}

impl Notice {
    /// The line that people read.
    pub(crate) fn line(&self) -> String {
        let subject = self.commit_message.lines().next().unwrap_or_default();
        let of = match (subject, self.author.as_str()) {
            ("", _) => String::new(),
            (subject, "") => format!(" \"{subject}\""),
            (subject, author) => format!(" \"{subject}\" by {author}"),
        };
        format!("{} {} at {}{of}: {}", self.application, self.event, short(&self.revision), self.message)
    }

    /// A person's own words: `{application}`, `{event}`, `{revision}`, `{author}`, `{subject}`, `{message}`.
    pub(crate) fn filled(&self, template: &str) -> String {
        let subject = self.commit_message.lines().next().unwrap_or_default();
        [
            ("{application}", self.application.as_str()),
            ("{event}", self.event),
            ("{revision}", short(&self.revision)),
            ("{author}", &self.author),
            ("{subject}", subject),
            ("{message}", &self.message),
        ]
        .iter()
        .fold(template.to_owned(), |text, (name, value)| text.replace(name, value))
    }
}

/// What the step from one status to the next is worth telling.
pub(crate) fn notices(name: &str, before: &Status, after: &Status, now: Timestamp) -> Vec<Notice> {
    let mut found = Vec::new();
    let notice = |event: &'static str, revision: &str, message: &str| {
        let entry = after.history.iter().rev().find(|entry| entry.revision == revision);
        Notice {
            event,
            application: name.to_owned(),
            revision: revision.to_owned(),
            author: entry.map(|entry| entry.author.clone()).unwrap_or_default(),
            commit_message: entry.map(|entry| entry.message.clone()).unwrap_or_default(),
            message: message.to_owned(),
            at: now.to_string(),
        }
    };
    let revision = &after.sync.revision;
    if after.decisions.pinned.as_ref().is_some_and(|pin| pin.automatic) && before.decisions.pinned.is_none() {
        for known in after
            .decisions
            .quarantined
            .iter()
            .filter(|known| before.decisions.quarantine(&known.revision).is_none())
        {
            found.push(notice("rolled-back", &known.revision, &known.reason));
        }
    }
    let trouble = |status: &Status| match (status.sync.state.as_str(), status.health.code.as_str()) {
        ("Failed", _) => Some(status.sync.message.clone()),
        (_, "Degraded") => Some(status.health.message.clone()),
        _ => None,
    };
    match (trouble(before), trouble(after)) {
        (None, Some(why)) => found.push(notice("failed", revision, &why)),
        (Some(_), Some(why)) if before.sync.revision != *revision => {
            found.push(notice("failed", revision, &why))
        }
        _ => {}
    }
    let result = |status: &Status| {
        status.history.last().map(|entry| (entry.revision.clone(), entry.result == "Healthy"))
    };
    let healthy = result(after).is_some_and(|(_, healthy)| healthy) && result(after) != result(before);
    if healthy && found.is_empty() {
        found.push(notice("healthy", revision, &after.sync.message));
    } else if trouble(before).is_some() && after.is_good() {
        found.push(notice("recovered", revision, &after.sync.message));
    }
    let confirm = |status: &Status| status.objects.iter().filter(|object| object.confirm).count();
    let waits = |status: &Status| match confirm(status) {
        0 if status.sync.waits_for.contains("holdfast approve") => Some(status.sync.waits_for.clone()),
        0 => None,
        count => Some(format!("{count} objects wait for holdfast confirm {name} before they are deleted")),
    };
    if let Some(why) = waits(after).filter(|why| waits(before).as_ref() != Some(why)) {
        found.push(notice("waiting", &after.source.revision, &why));
    }
    found
}

/// What telling needs.
pub(crate) struct Telling {
    engine: Engine,
    receivers: Vec<Notify>,
    forges: BTreeMap<String, Forge>,
    events: Recorder,
}

/// Watches every application and tells of it.
pub(crate) async fn run(telling: Telling, tasks: Tasks, stop: CancellationToken) {
    let Telling { engine, receivers, forges, events } = telling;
    let http = send::client();
    let mut queues = Vec::new();
    for (at, receiver) in receivers.into_iter().enumerate() {
        let (queue, waiting) = mpsc::channel::<Notice>(WAITING);
        let (http, wanted) = (http.clone(), receiver.clone());
        tasks.spawn(format!("notify {at} {}", receiver.kind.word()), move |stop| {
            deliver(http, wanted, waiting, stop)
        });
        queues.push((receiver, queue));
    }
    let forges: BTreeMap<String, mpsc::Sender<Arc<Status>>> = forges
        .into_iter()
        .map(|(name, forge)| {
            let (queue, waiting) = mpsc::channel(WAITING);
            let (http, application) = (http.clone(), name.clone());
            tasks.spawn(format!("commit status {name}"), move |stop| {
                forge::follow(http, application, forge, waiting, stop)
            });
            (name, queue)
        })
        .collect();
    let mut changed = engine.changed();
    let mut known: BTreeMap<String, Arc<Status>> = BTreeMap::new();
    let mut told: BTreeMap<String, Timestamp> = BTreeMap::new();
    loop {
        changed.borrow_and_update();
        for name in engine.names() {
            let Some(after) = engine.status(&name) else { continue };
            // Told anew is another allocation: most of many applications are passed over without a look inside.
            if known.get(&name).is_some_and(|known| Arc::ptr_eq(known, &after)) {
                continue;
            }
            let before = known.insert(name.clone(), Arc::clone(&after));
            if let Some(queue) = forges.get(&name) {
                // A full queue has a newer status of this application in it soon enough.
                let _ = queue.try_send(Arc::clone(&after));
            }
            // The first one is what an earlier daemon told already.
            let Some(before) = before else { continue };
            let now = engine.now();
            told.retain(|_, at| now.duration_since(*at) < QUIET);
            for notice in notices(&name, &before, &after, now) {
                if told.insert(key(&notice), now).is_some() {
                    continue;
                }
                record(&events, &notice);
                for (_, queue) in queues.iter().filter(|(receiver, _)| receiver.wants(&notice)) {
                    if queue.try_send(notice.clone()).is_err() {
                        warn!(application = name, "a receiver is too far behind, a notice is dropped");
                    }
                }
            }
        }
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => return,
            // Cancel-safe: the receiver keeps what it has not marked as seen.
            more = changed.changed() => if more.is_err() { return },
        }
    }
}

/// As an event of the application, for `kubectl describe`.
fn record(events: &Recorder, notice: &Notice) {
    let (weight, reason) = match notice.event {
        "failed" => (Weight::Warning, "SyncFailed"),
        "rolled-back" => (Weight::Warning, "RolledBack"),
        "waiting" => (Weight::Normal, "Waiting"),
        "recovered" => (Weight::Normal, "Recovered"),
        _ => (Weight::Normal, "Healthy"),
    };
    let about = ObjectReference {
        api_version: Some("holdfast.dev/v1".to_owned()),
        kind: Some("Application".to_owned()),
        name: Some(notice.application.clone()),
        ..ObjectReference::default()
    };
    events.tell_of(about, weight, reason, &notice.message);
}

/// Counts change while a thing fails in the same way: digits are no news.
fn key(notice: &Notice) -> String {
    let message: String = notice.message.chars().filter(|c| !c.is_ascii_digit()).collect();
    format!("{} {} {} {message}", notice.application, notice.event, notice.revision)
}

async fn deliver(
    http: reqwest::Client,
    receiver: Notify,
    mut waiting: mpsc::Receiver<Notice>,
    stop: CancellationToken,
) {
    loop {
        let notice = tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = stop.cancelled() => return,
            // Cancel-safe per docs of mpsc::Receiver::recv.
            notice = waiting.recv() => notice,
        };
        let Some(notice) = notice else { return };
        // Cancel-safe: what was not sent when the node stops is not sent.
        let sent = stop.run_until_cancelled(persist(|| send::send(&http, &receiver, &notice))).await;
        if let Some(Err(error)) = sent {
            warn!(
                receiver = receiver.kind.word(),
                error = reconcile::chain(&*error),
                "a notice could not be told"
            );
        }
    }
}

/// Tries until it succeeds or was tried often enough.
pub(crate) async fn persist<F>(attempt: impl Fn() -> F) -> Result<(), send::SendError>
where
    F: Future<Output = Result<(), send::SendError>>,
{
    let mut wait = FIRST_RETRY;
    for _ in 1..TRIES {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(_) => tokio::time::sleep(wait).await,
        }
        wait = (wait * 2).min(MOST_RETRY);
    }
    attempt().await
}

impl Engine {
    /// Tells these receivers what becomes of the applications, and their forges of each commit.
    ///
    /// # Errors
    /// `Config` for a receiver or a forge that cannot be reached as it is declared.
    pub fn tell(&self, tasks: &Tasks, receivers: Vec<Notify>, clock: Clock) -> Result<(), crate::Error> {
        for receiver in &receivers {
            receiver
                .check()
                .map_err(|why| crate::Error::Config { application: "[[notify]]".to_owned(), why })?;
        }
        let forges = self.forges();
        let events = Recorder::new(self.door(), "holdfast", clock, tasks.token());
        let (engine, own) = (self.clone(), tasks.clone());
        tasks.spawn("notices", move |stop| run(Telling { engine, receivers, forges, events }, own, stop));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
