//! The one that numbers changes: decides them, writes them in groups, publishes, then answers.
//!
//! Everything that arrives while a group is on its way to the disk becomes the next group and shares one fsync.
//!
//! Invariant: a change is decided against the newest numbered state, earlier changes of its group included.
//! Invariant: no revision above the durable ceiling is handed out, so none is handed out twice, crash or not.
//! Invariant: after a failed append memory is as before, and every key that memory and disk may disagree on is owed:
//! it is written again before or together with the next change.

use std::{collections::BTreeMap, mem, sync::Arc};

use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::{
    Change, Config, Durability, Entry, Error, Event, EventKind, Expect, Revision, Store, Write,
    disk::{Disk, Fault, Group, Record, Stored},
    history::Shared,
    present::{Map, Present},
};

/// Revisions reserved on the disk at a time; the most that a crash can skip.
const RESERVED: Revision = 100_000;
/// Bounds of a group, so that the first in it does not wait for too many others.
const GROUP_CHANGES: usize = 1024;
const GROUP_BYTES: usize = 8 << 20;

/// What handles send to the writer.
pub(crate) enum Message<H> {
    Change { change: Change<H>, answer: Answer<H> },
    Close { answer: oneshot::Sender<()> },
}

type Outcome<H> = Result<Entry<H>, Error<H>>;
type Answer<H> = oneshot::Sender<Outcome<H>>;
type Asked<H> = (Change<H>, Answer<H>);

/// Loads the disk and starts the thread.
pub(crate) fn open<H: Send + Sync + 'static>(
    mut disk: Box<dyn Disk>,
    parse: fn(&str, &[u8]) -> H,
    config: &Config,
) -> Result<Store<H>, Error<H>> {
    let place = disk.place();
    let mut map = Map::new();
    let mut newest = 1;
    let ceiling = disk
        .load(&mut |key, stored| {
            let Stored { value, created, modified } = stored;
            newest = newest.max(modified);
            let head = Arc::new(parse(&key, &value));
            map.insert(key.clone(), Entry { key, value, head, created, modified });
        })
        .map_err(|source| Error::Disk { what: place.clone(), source })?;
    let start = newest.max(ceiling);
    let shared = Arc::new(Shared::new(Present { map: map.clone(), revision: start }, config));
    let (sender, inbox) = mpsc::channel(config.queue.max(1));
    let writer = Writer {
        disk,
        place,
        shared: shared.clone(),
        map,
        numbered: start,
        ceiling,
        owed: BTreeMap::new(),
        unsynced: false,
        failing: false,
    };
    std::thread::Builder::new()
        .name("store".into())
        .spawn(move || writer.run(inbox))
        .map_err(Error::Start)?;
    Ok(Store { shared, writer: sender })
}

struct Writer<H> {
    disk: Box<dyn Disk>,
    place: String,
    shared: Arc<Shared<H>>,
    /// The published map; a group works on a clone.
    map: Map<H>,
    /// The last revision handed out.
    numbered: Revision,
    /// Durable: no revision above it may be handed out.
    ceiling: Revision,
    /// Keys that the disk must still be told of, with what memory holds.
    owed: BTreeMap<Arc<str>, Option<Stored>>,
    /// Something was appended since the last synced append.
    unsynced: bool,
    /// The last append failed.
    failing: bool,
}

/// One group as it arrived.
struct Arrived<H> {
    synced: Vec<Asked<H>>,
    journalled: Vec<Asked<H>>,
    bytes: usize,
    close: Option<oneshot::Sender<()>>,
}

/// The next present while it is being numbered.
struct Draft<H> {
    map: Map<H>,
    numbered: Revision,
    events: Vec<Event<H>>,
    answers: Vec<(Answer<H>, Outcome<H>)>,
}

/// Tells watchers that nothing will come, however the thread ends.
struct Ending<H>(Arc<Shared<H>>);

impl<H> Drop for Ending<H> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<H> Writer<H> {
    fn run(mut self, mut inbox: mpsc::Receiver<Message<H>>) {
        let ending = Ending(self.shared.clone());
        let mut close = None;
        while let Some(first) = inbox.blocking_recv() {
            let mut arrived = Arrived::new(first);
            while arrived.has_room() {
                let Ok(message) = inbox.try_recv() else { break };
                arrived.add(message);
            }
            close = arrived.close.take();
            self.write(arrived);
            if close.is_some() {
                break;
            }
        }
        self.finish();
        drop(inbox);
        drop(ending);
        if let Some(answer) = close {
            // Whoever closed may have stopped waiting.
            let _unheard = answer.send(());
        }
    }

    /// Journalled changes go first: they need not wait for the fsync of the others.
    fn write(&mut self, arrived: Arrived<H>) {
        let Arrived { synced, journalled, .. } = arrived;
        let alone = synced.is_empty();
        if !journalled.is_empty() {
            self.write_journalled(journalled, alone);
        }
        if !alone {
            self.write_synced(synced);
        }
    }

    fn write_journalled(&mut self, asked: Vec<Asked<H>>, alone: bool) {
        if let Err(fault) = self.reserve(asked.len()) {
            return self.refuse(asked.into_iter().map(|(_, answer)| answer), &fault);
        }
        let draft = self.draft(asked);
        for event in &draft.events {
            self.owed.insert(event.entry.key.clone(), stored(event));
        }
        self.publish(draft);
        if alone && !self.owed.is_empty() {
            // Answered already, and owed until a later append succeeds.
            let _retried_later = self.append(Vec::new(), None, Durability::Journalled);
        }
    }

    fn write_synced(&mut self, asked: Vec<Asked<H>>) {
        let draft = self.draft(asked);
        if draft.events.is_empty() {
            self.publish(draft);
            if !self.owed.is_empty() {
                let _retried_later = self.append(Vec::new(), None, Durability::Journalled);
            }
            return;
        }
        let records = draft.events.iter().map(record).collect();
        let ceiling = (draft.numbered + RESERVED / 2 > self.ceiling).then_some(draft.numbered + RESERVED);
        match self.append(records, ceiling, Durability::Synced) {
            Ok(()) => self.publish(draft),
            Err(fault) => {
                // Their numbers may be on the disk, so they are not used again.
                self.numbered = draft.numbered;
                for event in &draft.events {
                    let key = event.entry.key.clone();
                    let held = self.map.get(&key).map(of_entry);
                    self.owed.insert(key, held);
                }
                self.refuse(draft.answers.into_iter().map(|(answer, _)| answer), &fault);
            }
        }
    }

    /// Decides and numbers changes one after the other.
    fn draft(&self, asked: Vec<Asked<H>>) -> Draft<H> {
        let mut draft = Draft {
            map: self.map.clone(),
            numbered: self.numbered,
            events: Vec::with_capacity(asked.len()),
            answers: Vec::with_capacity(asked.len()),
        };
        for (change, answer) in asked {
            let outcome = draft.decide(change);
            draft.answers.push((answer, outcome));
        }
        draft
    }

    /// Makes a draft the present and answers those who asked for it.
    fn publish(&mut self, draft: Draft<H>) {
        let Draft { map, numbered, events, answers } = draft;
        self.map = map.clone();
        self.numbered = numbered;
        if !events.is_empty() {
            self.shared.publish(Present { map, revision: numbered }, events);
        }
        for (answer, outcome) in answers {
            // Whoever asked may have gone.
            let _unheard = answer.send(outcome);
        }
    }

    fn refuse(&self, answers: impl Iterator<Item = Answer<H>>, fault: &Fault) {
        for answer in answers {
            let refusal = Error::Disk { what: self.place.clone(), source: fault.clone() };
            let _unheard = answer.send(Err(refusal));
        }
    }

    /// Makes sure that `count` more revisions may be handed out without asking the disk.
    fn reserve(&mut self, count: usize) -> Result<(), Fault> {
        let last = self.numbered + count as Revision;
        if last <= self.ceiling {
            return Ok(());
        }
        self.append(Vec::new(), Some(last + RESERVED), Durability::Synced)
    }

    /// Writes what is owed and then `records`, as one group.
    fn append(
        &mut self,
        records: Vec<Record>,
        ceiling: Option<Revision>,
        durability: Durability,
    ) -> Result<(), Fault> {
        let owed = self.owed.iter().map(|(key, held)| Record { key: key.clone(), stored: held.clone() });
        let group = Group { records: owed.chain(records).collect(), ceiling };
        let outcome = self.disk.append(&group, durability);
        match &outcome {
            Ok(()) => {
                self.owed.clear();
                self.ceiling = ceiling.unwrap_or(self.ceiling);
                self.unsynced = durability == Durability::Journalled;
                if mem::take(&mut self.failing) {
                    info!(store = self.place, "the disk takes changes again");
                }
            }
            Err(fault) => {
                if !mem::replace(&mut self.failing, true) {
                    let cause = &fault.source;
                    warn!(store = self.place, "{fault}: {cause}; will try again with the next change");
                }
            }
        }
        outcome
    }

    /// Writes what still waits, for good.
    fn finish(mut self) {
        if self.owed.is_empty() && !self.unsynced {
            return;
        }
        if self.append(Vec::new(), None, Durability::Synced).is_err() {
            warn!(
                store = self.place,
                keys = self.owed.len(),
                "closed with changes that the disk did not take"
            );
        }
    }
}

impl<H> Arrived<H> {
    fn new(first: Message<H>) -> Arrived<H> {
        let mut arrived = Arrived { synced: Vec::new(), journalled: Vec::new(), bytes: 0, close: None };
        arrived.add(first);
        arrived
    }

    fn has_room(&self) -> bool {
        let changes = self.synced.len() + self.journalled.len();
        self.close.is_none() && changes < GROUP_CHANGES && self.bytes < GROUP_BYTES
    }

    fn add(&mut self, message: Message<H>) {
        match message {
            Message::Close { answer } => self.close = Some(answer),
            Message::Change { change, answer } => {
                let (Write::Put { value: template, .. } | Write::Delete { last: template }) = &change.write;
                self.bytes += template.before.len() + template.after.len();
                match change.durability {
                    Durability::Synced => self.synced.push((change, answer)),
                    Durability::Journalled => self.journalled.push((change, answer)),
                }
            }
        }
    }
}

impl<H> Draft<H> {
    /// Makes one change of the draft, or says why not.
    fn decide(&mut self, change: Change<H>) -> Outcome<H> {
        let Change { key, expect, write, .. } = change;
        let current = self.map.get(&key).cloned();
        let met = match (expect, &current) {
            (Expect::Any, _) | (Expect::Absent, None) => true,
            (Expect::At(revision), Some(entry)) => entry.modified == revision,
            (Expect::Absent, Some(_)) | (Expect::At(_), None) => false,
        };
        if !met {
            return Err(Error::Conflict { key, current });
        }
        let revision = self.numbered + 1;
        let (kind, entry) = match (write, &current) {
            (Write::Put { value, head }, _) => {
                // The first key's allocation serves all later entries of it.
                let (key, created) = match &current {
                    Some(entry) => (entry.key.clone(), entry.created),
                    None => (key, revision),
                };
                let value = value.fill(revision);
                let entry =
                    Entry { key: key.clone(), value, head: Arc::new(head), created, modified: revision };
                self.map.insert(key, entry.clone());
                (EventKind::Put, entry)
            }
            (Write::Delete { last }, Some(gone)) => {
                self.map.remove(&*key);
                (EventKind::Delete, Entry { value: last.fill(revision), modified: revision, ..gone.clone() })
            }
            (Write::Delete { .. }, None) => return Err(Error::Absent { key }),
        };
        self.numbered = revision;
        self.events.push(Event { kind, entry: entry.clone(), previous: current });
        Ok(entry)
    }
}

fn record<H>(event: &Event<H>) -> Record {
    Record { key: event.entry.key.clone(), stored: stored(event) }
}

/// What the key holds after the event.
fn stored<H>(event: &Event<H>) -> Option<Stored> {
    match event.kind {
        EventKind::Put => Some(of_entry(&event.entry)),
        EventKind::Delete => None,
    }
}

fn of_entry<H>(entry: &Entry<H>) -> Stored {
    Stored { value: entry.value.clone(), created: entry.created, modified: entry.modified }
}
