//! Keeps bytes under keys: numbered changes, compare-and-set, watch, durability; what the bytes mean is not its business.
//!
//! Memory holds the present in a persistent ordered map, so a snapshot costs O(1) and readers never wait for the
//! writer. One writer thread numbers changes, writes them to the disk in groups, publishes them, and then answers.
//!
//! Invariant: a revision is handed out once, also across a crash; a key's `modified` only grows.
//! Invariant: a `Synced` change is answered only after the disk has made it durable.
//! Invariant: a snapshot at revision r holds every published change ≤ r and none above; a watcher that has seen an
//! event finds it in every later snapshot.
//! Invariant: idle means idle: without changes there is no write, no fsync, no timer.

pub mod conformance;
pub mod disk;
pub mod fjall_disk;
mod history;
pub mod memory_disk;
mod present;
mod watch;
mod writer;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::{disk::Disk, history::Shared, writer::Message};

/// Number of a change. Starts at 1 for an empty store and only grows; after a restart it jumps ahead.
pub type Revision = u64;

/// What is stored under one key. A clone costs three reference counts.
pub struct Entry<H> {
    /// Its place in the order of all entries.
    pub key: Arc<str>,
    /// What was written, its own revision filled in.
    pub value: Bytes,
    /// The parsed part of `value` that readers need without parsing again.
    pub head: Arc<H>,
    /// Revision of the change that made the key exist.
    pub created: Revision,
    /// Revision of the change that wrote `value`.
    pub modified: Revision,
}

/// The bytes to store, with a gap for their own revision where `numbered`.
#[derive(Clone, Debug)]
pub struct Template {
    /// Bytes up to the gap.
    pub before: Bytes,
    /// Bytes after the gap.
    pub after: Bytes,
    /// The stored bytes are `before`, the decimal revision of the change, `after`; without it only the two ends.
    pub numbered: bool,
}

/// What must be true of a key for a change of it to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key does not exist.
    Absent,
    /// The key exists and was last modified by exactly this revision.
    At(Revision),
}

/// What an answer to a change promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Answered after the disk has it for good.
    Synced,
    /// Answered from memory; written with the next group, made durable with the next synced one. A crash may lose it.
    Journalled,
}

/// What a change does to its key.
pub enum Write<H> {
    /// The key holds `value` from now on, whether it existed or not.
    Put {
        /// What to store.
        value: Template,
        /// The parsed head of `value`.
        head: H,
    },
    /// The key, which must exist, is gone.
    Delete {
        /// The object as watchers see it go, numbered with the revision of the deletion.
        last: Template,
    },
}

/// One change of one key.
pub struct Change<H> {
    /// Which key.
    pub key: Arc<str>,
    /// What must be true of it.
    pub expect: Expect,
    /// What happens to it.
    pub write: Write<H>,
    /// When it is answered.
    pub durability: Durability,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It holds something new; it was created when the event has no previous entry.
    Put,
    /// It is gone.
    Delete,
}

/// One published change, as a watcher gets it.
pub struct Event<H> {
    /// What happened.
    pub kind: EventKind,
    /// The entry as written; for a deletion the last bytes with the head of what was deleted.
    pub entry: Entry<H>,
    /// What the key held before; none when the change created it.
    pub previous: Option<Entry<H>>,
}

/// How much of the past is kept for watchers, and how much may wait for the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Events kept per bucket (the first two segments of a key, so per kind of object).
    pub history_events: usize,
    /// Bytes that the past alone may hold, over all buckets; the largest bucket gives first.
    pub history_bytes: usize,
    /// Changes that may wait for the writer before committers are held back.
    pub queue: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { history_events: 8192, history_bytes: 6 << 20, queue: 1024 }
    }
}

/// What can go wrong with a store.
#[derive(thiserror::Error)]
pub enum Error<H> {
    /// The expectation did not hold; `current` is what the key holds by the newest change, and snapshots show it.
    #[error("{key} is not as the change expected it")]
    Conflict {
        /// Which key.
        key: Arc<str>,
        /// None when it does not exist.
        current: Option<Entry<H>>,
    },
    /// A deletion of a key that does not exist.
    #[error("{key} does not exist")]
    Absent {
        /// Which key.
        key: Arc<str>,
    },
    /// The disk did not take a change (or could not be read when opening). Memory is as before; the store goes on
    /// and tries the disk again with the next change. A synced change that failed so may still come back after a
    /// crash that happens before the disk has taken anything else.
    #[error("store on {what}: the disk failed")]
    Disk {
        /// Where the store lives.
        what: String,
        /// What failed there.
        #[source]
        source: disk::Fault,
    },
    /// The past after the asked revision is no longer kept; list again and watch from there.
    #[error("changes of {prefix} are only kept after revision {oldest}")]
    Compacted {
        /// What was watched.
        prefix: Arc<str>,
        /// The first revision that a watch may start after.
        oldest: Revision,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The writer's thread could not be started.
    #[error("start the store's writer thread")]
    Start(#[source] std::io::Error),
}

/// The store: a cheap handle, cloned by everyone who reads, writes or watches.
pub struct Store<H> {
    shared: Arc<Shared<H>>,
    writer: mpsc::Sender<Message<H>>,
}

/// The present at one revision; what is written later does not show.
pub struct Snapshot<H> {
    map: present::Map<H>,
    revision: Revision,
}

/// A reader of the changes under one prefix, from one revision on.
pub struct Watch<H> {
    inner: watch::Reader<H>,
}

impl<H: Send + Sync + 'static> Store<H> {
    /// Reads everything from `disk` and starts the writer. `parse` makes the head of a stored value.
    ///
    /// # Errors
    /// `Error::Disk` when the disk cannot be read, `Error::Start` when there is no thread to be had.
    pub fn open(
        disk: Box<dyn Disk>,
        parse: fn(&str, &[u8]) -> H,
        config: &Config,
    ) -> Result<Store<H>, Error<H>> {
        writer::open(disk, parse, config)
    }

    /// Makes one change and gives back the entry as written (for a deletion: as watchers see it go).
    ///
    /// Not cancel-safe: a dropped call may or may not have made the change.
    ///
    /// # Errors
    /// `Conflict`, `Absent`, `Disk` and `Closed`, as their descriptions say; the change was then not made.
    pub async fn commit(&self, change: Change<H>) -> Result<Entry<H>, Error<H>> {
        let (answer, answered) = oneshot::channel();
        self.writer.send(Message::Change { change, answer }).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }

    /// The present, in O(1).
    pub fn snapshot(&self) -> Snapshot<H> {
        self.shared.snapshot()
    }

    /// The changes under `prefix` with revisions strictly above `after`. A prefix that names at least the first two
    /// segments of its keys ("/apps/deployments/") is woken by its own kind only; a shorter one by every change.
    ///
    /// # Errors
    /// `Compacted` when changes after `after` are no longer kept.
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watch<H>, Error<H>> {
        Ok(Watch { inner: watch::Reader::new(self.shared.clone(), prefix, after)? })
    }

    /// Revision of the last published change.
    pub fn revision(&self) -> Revision {
        self.shared.revision()
    }

    /// Finishes what was handed in before, writes what waits for the disk, lets the disk go and ends every watch.
    pub async fn close(self) {
        let (answer, answered) = oneshot::channel();
        if self.writer.send(Message::Close { answer }).await.is_ok() {
            // An error means that the writer has already ended, which is what was asked for.
            let _ended = answered.await;
        }
    }
}

impl<H> Snapshot<H> {
    /// Every change up to this revision shows.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// What the key held at this revision.
    pub fn get(&self, key: &str) -> Option<&Entry<H>> {
        self.map.get(key)
    }

    /// Entries whose key starts with `prefix` in the order of keys, from the first key above `after_key`.
    pub fn range<'a>(
        &'a self,
        prefix: &str,
        after_key: Option<&str>,
    ) -> impl Iterator<Item = &'a Entry<H>> + use<'a, H> {
        present::range(&self.map, prefix, after_key)
    }

    /// Number of entries whose key starts with `prefix`; costs as much as walking them.
    pub fn count(&self, prefix: &str) -> usize {
        self.range(prefix, None).count()
    }
}

impl<H: Send + Sync + 'static> Watch<H> {
    /// Waits for the next changes and gives them in the order of their revisions, each exactly once.
    ///
    /// Cancel-safe: a dropped call has taken nothing.
    ///
    /// # Errors
    /// `Compacted` when this reader fell behind what is kept, `Closed` when the store was closed and all was read.
    pub async fn next(&mut self) -> Result<Vec<Event<H>>, Error<H>> {
        self.inner.next().await
    }

    /// All changes up to this revision were given by `next`; what a bookmark may say.
    pub fn progress(&self) -> Revision {
        self.inner.progress()
    }
}

impl Template {
    /// Bytes stored as they are.
    pub fn plain(value: impl Into<Bytes>) -> Template {
        Template { before: value.into(), after: Bytes::new(), numbered: false }
    }

    /// Bytes stored with their own decimal revision between `before` and `after`.
    pub fn numbered(before: impl Into<Bytes>, after: impl Into<Bytes>) -> Template {
        Template { before: before.into(), after: after.into(), numbered: true }
    }

    /// How many bytes it has without its revision.
    pub fn size_bytes(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// The bytes to store for a change with this revision.
    pub fn fill(self, revision: Revision) -> Bytes {
        if !self.numbered && self.after.is_empty() {
            return self.before;
        }
        let mut value = BytesMut::with_capacity(self.before.len() + self.after.len() + 20);
        value.extend_from_slice(&self.before);
        if self.numbered {
            value.extend_from_slice(revision.to_string().as_bytes());
        }
        value.extend_from_slice(&self.after);
        value.freeze()
    }
}

impl<H> Clone for Store<H> {
    fn clone(&self) -> Self {
        Store { shared: self.shared.clone(), writer: self.writer.clone() }
    }
}

impl<H> Clone for Snapshot<H> {
    fn clone(&self) -> Self {
        Snapshot { map: self.map.clone(), revision: self.revision }
    }
}

impl<H> Clone for Entry<H> {
    fn clone(&self) -> Self {
        Entry {
            key: self.key.clone(),
            value: self.value.clone(),
            head: self.head.clone(),
            created: self.created,
            modified: self.modified,
        }
    }
}

impl<H> Clone for Event<H> {
    fn clone(&self) -> Self {
        Event { kind: self.kind, entry: self.entry.clone(), previous: self.previous.clone() }
    }
}

impl<H> std::fmt::Debug for Entry<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ({} bytes, created {}, modified {})",
            self.key,
            self.value.len(),
            self.created,
            self.modified
        )
    }
}

impl<H> std::fmt::Debug for Event<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.kind, self.entry)
    }
}

impl<H> std::fmt::Debug for Error<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")?;
        match self {
            Error::Conflict { current, .. } => write!(f, ": {current:?}"),
            Error::Disk { source, .. } => write!(f, ": {source:?}"),
            Error::Start(source) => write!(f, ": {source:?}"),
            Error::Absent { .. } | Error::Compacted { .. } | Error::Closed => Ok(()),
        }
    }
}
